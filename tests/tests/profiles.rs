//! Profiles that cannot be believed: one line, status 65 or 66, for `report` and `compare` alike;
//! and limits of growth, which have a status of their own.
// Helpers stop a test as its own assertions do.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;

use black_box::code::hello;
use black_box::{Live, Run, arg, command, file, needs_kvm, run};
use exitvisor::profile::VERSION;
use exitvisor::status::{DATA, GROWTH, INPUT, USAGE};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

/// A profile as the hypervisor writes it: of one run, for all tests here.
fn sample() -> &'static str {
    static SAMPLE: OnceLock<String> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let folder = tempdir().unwrap();
        let image = hello().write(folder.path());
        // What one source says on its own can be changed without contradicting another.
        let options = ["--format", "json", "--ledger", "off"];
        let run = run(&[&["profile", "--kernel", arg(&image)], &options[..]].concat());
        run.expect_status(0).stdout
    })
}

/// A folder with the sample and one other profile.
struct Pair {
    _folder: TempDir,
    sample: PathBuf,
    other: PathBuf,
}

impl Pair {
    fn with(other: &[u8]) -> Self {
        let folder = tempdir().unwrap();
        Self {
            sample: file(folder.path(), "sample.json", sample().as_bytes()),
            other: file(folder.path(), "other.json", other),
            _folder: folder,
        }
    }

    /// The sample, changed.
    fn changed(change: impl FnOnce(&mut Value)) -> Self {
        let mut value = serde_json::from_str(sample()).unwrap();
        change(&mut value);
        Self::with(value.to_string().as_bytes())
    }

    /// Compares sample and other, with these limits.
    fn compare(&self, limits: &[&str]) -> Run {
        let mut args = vec!["compare", arg(&self.sample), arg(&self.other)];
        limits
            .iter()
            .for_each(|limit| args.extend(["--max-growth", limit]));
        run(&args)
    }

    /// Runs of `report` and `compare` which read the other one.
    fn runs(&self) -> Vec<Run> {
        let (sample, other) = (arg(&self.sample), arg(&self.other));
        [
            &["report", other][..],
            &["report", sample, other],
            &["report", other, "--format", "csv"],
            &["compare", sample, other],
            &["compare", other, sample, "--max-growth", "0"],
        ]
        .map(run)
        .into()
    }

    #[track_caller]
    fn refused(&self, why: &str) {
        for run in self.runs() {
            let run = run.expect_status(DATA);
            let run = run.expect_one_line(&[arg(&self.other), why]);
            assert_eq!(run.stdout, "");
        }
    }
}

#[test]
fn the_sample_is_shown() {
    needs_kvm!("the_sample_is_shown");
    for run in Pair::with(sample().as_bytes()).runs() {
        let run = run.expect_status(0);
        assert!(!run.stdout.is_empty() && run.stderr.is_empty(), "{run:#?}");
    }
}

#[test]
fn files_that_cannot_be_read() {
    needs_kvm!("files_that_cannot_be_read");
    let pair = Pair::with(b"");
    let folder = tempdir().unwrap();
    for (path, why) in [
        (Path::new("/nowhere/p.json"), "no such file or directory"),
        (folder.path(), "is a directory"),
        (&pair.sample.join("p.json"), "not a directory"),
    ] {
        let (sample, path) = (arg(&pair.sample), arg(path));
        for args in [
            &["report", path][..],
            &["compare", path, sample],
            &["compare", sample, path],
        ] {
            let run = run(args).expect_status(INPUT);
            let run = run.expect_one_line(&["cannot read profile", path, why]);
            assert_eq!(run.stdout, "");
        }
    }
}

#[test]
fn endless_input_is_not_read_to_its_end() {
    let run = run(&["report", "/dev/zero"]).expect_status(DATA);
    run.expect_one_line(&["/dev/zero is larger than 64 MiB: not a profile"]);
}

#[test]
fn a_profile_on_standard_input() {
    needs_kvm!("a_profile_on_standard_input");
    let pair = Pair::with(&sample().as_bytes()[..1000]);
    for (path, status) in [(&pair.sample, 0), (&pair.other, DATA)] {
        let mut command = command(&["report", "-"]);
        command.stdin(Stdio::from(fs::File::open(path).unwrap()));
        let run = Live::of(command.spawn().unwrap()).finish();
        let run = run.expect_status(status);
        if status != 0 {
            run.expect_one_line(&["profile standard input is truncated"]);
        }
    }
}

#[test]
fn no_profile_at_all() {
    needs_kvm!("no_profile_at_all");
    for (bytes, why) in [
        (&b""[..], "is empty"),
        (b" \n\n\t", "is empty"),
        (b"\0", "is not JSON"),
        (b"\x7fELF\x02\x01\x01", "is not JSON"),
        (b"milestone,exits\nreset,0\n", "is not JSON"),
        (b"\xff\xfe\xfd", "is not JSON"),
        (b"{\"schema\":\"\xff\"}", "is not JSON"),
        (b"42", "is not an Exitvisor profile"),
        (b"[]", "is not an Exitvisor profile"),
        (b"null", "is not an Exitvisor profile"),
        (b"{}", "it names no schema"),
        (
            b"{\"name\":\"package\",\"version\":1}",
            "it names no schema",
        ),
        (b"{\"schema\":7}", "it names no schema"),
        (b"{\"schema\":\"other\",\"version\":1}", "schema \"other\""),
        (b"{\"schema\":\"exitvisor-profile\"}", "no valid version"),
        (
            b"{\"schema\":\"exitvisor-profile\",\"version\":1}",
            "is corrupt",
        ),
    ] {
        Pair::with(bytes).refused(why);
    }
}

#[test]
fn versions() {
    needs_kvm!("versions");
    for version in [json!(VERSION + 1), json!(1_000_000), json!(u64::MAX)] {
        let told = format!(
            "written by a newer Exitvisor (version {version}; this one reads up to {VERSION})"
        );
        Pair::changed(|p| {
            p["version"] = version;
            p["total"] = json!("of a shape of the future");
        })
        .refused(&told);
    }
    for version in [json!(0), json!(-1), json!(1.5), json!("1"), json!(null)] {
        Pair::changed(|p| p["version"] = version).refused("no valid version");
    }
    // Older ones lack what came later, and are read all the same.
    let older = Pair::with(include_bytes!(
        "../../hypervisor/src/profile/version-1.json"
    ));
    for run in older.runs() {
        assert!([0, GROWTH.into()].contains(&run.status), "{run:#?}");
        assert!(!run.stdout.is_empty() && run.stderr.is_empty(), "{run:#?}");
    }
}

#[test]
fn truncated_anywhere() {
    needs_kvm!("truncated_anywhere");
    let whole = sample().trim_end().as_bytes();
    for len in (1..whole.len()).step_by(whole.len() / 60) {
        let pair = Pair::with(&whole[..len]);
        for args in [
            &["report", arg(&pair.other)][..],
            &["compare", arg(&pair.sample), arg(&pair.other)],
        ] {
            let run = run(args).expect_status(DATA);
            run.expect_one_line(&["is truncated"]);
        }
    }
}

#[test]
fn flipped_bits() {
    needs_kvm!("flipped_bits");
    let whole = sample().as_bytes();
    let folder = tempdir().unwrap();
    let mut refused = 0;
    for i in 0..250 {
        // Any place, the same in each run.
        let (at, bit) = (i * 7919 % whole.len(), i % 8);
        let mut bytes = whole.to_vec();
        bytes[at] ^= 1 << bit;
        let path = file(folder.path(), "flipped.json", &bytes);
        let run = run(&["report", arg(&path)]);
        // A flipped digit or letter can make another profile that is as good.
        if run.status != 0 {
            run.expect_status(DATA).expect_one_line(&["flipped.json"]);
            refused += 1;
        }
    }
    assert!(refused > 80, "only {refused} of 250 were noticed");
}

#[test]
fn figures_that_contradict_each_other() {
    needs_kvm!("figures_that_contradict_each_other");
    let wrong = "contradicts itself";
    Pair::changed(|p| p["total"]["total"] = json!(1)).refused(wrong);
    Pair::changed(|p| p["total"]["residual"] = json!(u64::MAX)).refused(wrong);
    Pair::changed(|p| p["vcpus"][0]["other"] = json!(1)).refused(wrong);
    Pair::changed(|p| p["total"]["reasons"][0]["own"] = json!(u64::MAX)).refused(wrong);
    Pair::changed(|p| p["total"]["reasons"][0]["reason"] = json!(200)).refused("");
}

#[test]
fn fields_of_another_kind() {
    needs_kvm!("fields_of_another_kind");
    let corrupt = "is corrupt";
    for figure in [
        json!(-1),
        json!(1.5),
        json!(1e300),
        json!("1"),
        json!(null),
        json!([]),
        json!({}),
    ] {
        Pair::changed(|p| p["total"]["total"] = figure).refused(corrupt);
    }
    let huge = sample().replacen(
        "\"residual\": 0",
        &format!("\"residual\": {}", "9".repeat(40)),
        1,
    );
    Pair::with(huge.as_bytes()).refused(corrupt);
    let huge = sample().replacen("\"residual\": 0", "\"residual\": 1e999", 1);
    Pair::with(huge.as_bytes()).refused("");
    Pair::changed(|p| p["surprise"] = json!(1)).refused(corrupt);
    Pair::changed(|p| drop(p.as_object_mut().unwrap().remove("milestones"))).refused(corrupt);
    Pair::changed(|p| p["end"]["kind"] = json!("\u{1b}[2J\nboom")).refused(corrupt);
    Pair::changed(|p| p["end"]["status"] = json!(256)).refused(corrupt);
}

#[test]
fn deep_nesting() {
    needs_kvm!("deep_nesting");
    for open in ["[", "{\"a\":", "{\"schema\":["] {
        Pair::with(open.repeat(100_000).as_bytes()).refused("");
    }
    let inside = format!(
        "{{\"schema\":\"exitvisor-profile\",\"version\":1,\"x\":{}",
        "[".repeat(100_000)
    );
    Pair::with(inside.as_bytes()).refused("");
}

#[test]
fn what_cannot_be_shown_as_it_is_is_escaped() {
    needs_kvm!("what_cannot_be_shown_as_it_is_is_escaped");
    let pair = Pair::changed(|p| {
        for field in ["cpu", "kernel"] {
            p["host"][field] = json!("\u{1b}[2J\u{202e}\u{7}");
        }
        p["machine"]["cmdline"] = json!("\u{1b}]0;title\u{7}");
        p["milestones"][0]["name"] = json!("\u{1b}[31m");
    });
    for run in pair.runs() {
        let run = run.expect_status(0);
        let odd = run.stdout.chars().find(|c| c.is_control() && *c != '\n');
        assert_eq!(odd, None, "{run:#?}");
    }
}

/// The sample with ten more exits by I/O, everywhere and consistently.
fn grown() -> Pair {
    Pair::changed(|p| {
        let grow = |accounts: &mut Value| {
            let more = |v: &mut Value| *v = json!(v.as_u64().unwrap() + 10);
            let reasons = accounts["reasons"].as_array_mut().unwrap();
            let io = reasons.iter_mut().find(|r| r["reason"] == 30).unwrap();
            more(&mut io["exits"]);
            more(&mut accounts["total"]);
        };
        grow(&mut p["total"]);
        grow(&mut p["vcpus"][0]);
    })
}

#[test]
fn a_profile_has_not_grown_over_itself() {
    needs_kvm!("a_profile_has_not_grown_over_itself");
    let same = Pair::with(sample().as_bytes());
    for limits in [
        &[][..],
        &["0"],
        &["0%"],
        &["total=0"],
        &["30=0,48=0", "total=0%"],
    ] {
        let run = same.compare(limits).expect_status(0);
        assert_eq!(run.stderr, "");
    }
}

#[test]
fn growth_beyond_a_limit() {
    needs_kvm!("growth_beyond_a_limit");
    let grown = grown();
    for limits in [
        &["0"][..],
        &["9"],
        &["30=0"],
        &["30=9"],
        &["30=9,total=100"],
        &["total=0"],
        &["total=9,30=10"],
        &["1%"],
        // The last one counts.
        &["30=100", "30=0"],
    ] {
        let run = grown.compare(limits).expect_status(GROWTH);
        assert_eq!(run.stderr, "", "the table says it all: {run:#?}");
        assert!(run.stdout.contains("10"), "{run:#?}");
    }
    for limits in [
        &[][..],
        &["10"],
        &["30=12,total=12"],
        &["30=12", "total=12"],
        &["0", "30=10,total=10"],
        &["1000%"],
        &["48=0"],
    ] {
        grown.compare(limits).expect_status(0);
    }
}

#[test]
fn shrinking_is_no_growth() {
    needs_kvm!("shrinking_is_no_growth");
    let grown = grown();
    let (before, after) = (arg(&grown.other), arg(&grown.sample));
    run(&["compare", before, after, "--max-growth", "0"]).expect_status(0);
}

#[test]
fn limits_that_make_no_sense() {
    needs_kvm!("limits_that_make_no_sense");
    let same = Pair::with(sample().as_bytes());
    for limit in [
        "", ",", "x", "-5%", "+5", "5 %", "%", "30=", "=5", "128=0", "boot=0", "1.5", "30=0=1",
    ] {
        let args = ["compare", arg(&same.sample), arg(&same.other)];
        let limit = format!("--max-growth={limit}");
        let run = run(&[&args[..], &[&limit]].concat()).expect_status(USAGE);
        let run = run.expect_one_line(&["write 5%, 12, 30=0, total=5% or fixed=0"]);
        assert_eq!(run.stdout, "");
    }
}
