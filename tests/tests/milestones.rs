//! Milestones that need no word from the guest: by its symbols, by patterns on its console, by CPUID
//! leaves. And those that are never reached.
// Helpers stop a test as its own assertions do.
#![allow(clippy::unwrap_used)]

use black_box::{arg, file, guest, needs_kvm, profile, run};
use exitvisor::profile::{EndKind, MilestoneKind, Profile};
use exitvisor::status::{INPUT, MISSED, USAGE};
use tempfile::tempdir;

fn names(profile: &Profile) -> Vec<&str> {
    profile.milestones.iter().map(|m| &*m.name).collect()
}

#[test]
fn symbols_of_an_elf_file() {
    needs_kvm!("symbols_of_an_elf_file");
    let options = [
        "--milestone",
        "symbol:guest_main",
        "--milestone",
        "symbol:boot_long_mode",
    ];
    let run = profile("guest-kernel", &options).expect_status(0);
    let profile = run.profile();
    let at = |name: &str| {
        let found = profile.milestones.iter().find(|m| m.name == name);
        found.unwrap_or_else(|| panic!("{name}: {run:#?}"))
    };
    let (first, second) = (at("boot_long_mode"), at("guest_main"));
    assert_eq!(first.kind, Some(MilestoneKind::Breakpoint));
    assert!(first.tsc < second.tsc);
    assert_eq!(at("done").kind, Some(MilestoneKind::Port));
    assert_eq!(profile.milestones[0].kind, Some(MilestoneKind::Reset));
    let debug = profile.total.reason(0).unwrap();
    assert_eq!(debug.exits, debug.own);
}

#[test]
fn a_run_until_a_milestone() {
    needs_kvm!("a_run_until_a_milestone");
    for (until, last) in [
        ("symbol:guest_main", "guest_main"),
        ("devices", "devices"),
        ("port", "kernel entry"),
    ] {
        let run = profile("guest-kernel", &["--until", until]).expect_status(0);
        let profile = run.profile();
        assert_eq!(profile.end.kind, EndKind::Milestone, "{run:#?}");
        assert_eq!(profile.milestones.last().unwrap().name, last);
    }
    let run = profile("guest-kernel", &["--until", "no such"]).expect_status(MISSED);
    run.profile();
    run.expect_stderr(&[r#"milestone "no such": not reached"#]);
}

#[test]
fn patterns_on_the_console() {
    needs_kvm!("patterns_on_the_console");
    let options = [
        "--milestone",
        "console:exits=",
        "--milestone",
        "console:never printed",
    ];
    let run = profile("guest-kernel", &options).expect_status(MISSED);
    let profile = run.profile();
    let seen = profile
        .milestones
        .iter()
        .filter(|m| m.kind == Some(MilestoneKind::Console));
    assert_eq!(seen.map(|m| &*m.name).collect::<Vec<_>>(), ["exits="]);
    run.expect_stderr(&[r#"milestone "never printed": not reached"#]);
}

#[test]
fn a_leaf_at_a_gate() {
    needs_kvm!("a_leaf_at_a_gate");
    let options = ["--milestone", "cpuid:0x4fffffff"];
    let run = profile("leaves", &options).expect_status(0);
    let profile = run.profile();
    let seen = profile
        .milestones
        .iter()
        .filter(|m| m.kind == Some(MilestoneKind::Cpuid));
    assert_eq!(seen.count(), 1);
}

#[test]
fn milestones_give_way_to_gates() {
    needs_kvm!("milestones_give_way_to_gates");
    // It fills all slots, and checks that it gets them.
    let options = ["--timeout", "20s", "--milestone", "symbol:__text_end"];
    let run = profile("gates", &options).expect_status(MISSED);
    let profile = run.profile();
    assert_eq!((profile.gates.queries, profile.gates.armed), (4, 4));
    let missed = &profile.milestones_missed;
    assert!(
        missed.len() == 1 && missed[0].why.contains("gates"),
        "{missed:?}"
    );
    let lines = run
        .stderr
        .lines()
        .filter(|l| l.starts_with("exitvisor: a CPU has 4 breakpoints"));
    assert_eq!(lines.count(), 1, "{run:#?}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let kernel = guest("guest-kernel");
    let kernel = ["run", "--kernel", arg(&kernel)];
    for (options, says) in [
        (["--milestone", "symbol:"], "symbol:NAME, console:TEXT"),
        (["--milestone", "cpuid:pie"], "symbol:NAME, console:TEXT"),
        (["--milestone", "nonsense"], "symbol:NAME, console:TEXT"),
        (["--until", " "], "needs the name of a milestone"),
        (["--milestones", "windows"], "possible values"),
    ] {
        let run = run(&[&kernel[..], &options].concat()).expect_status(USAGE);
        run.expect_one_line(&[says]);
    }
    let folder = tempdir().unwrap();
    for (name, bytes, says) in [
        (
            "text",
            &b"no symbols\n"[..],
            "neither a System.map (line 1) nor an ELF file",
        ),
        ("cut", b"\x7fELF\x02\x01\x01", "truncated or damaged"),
    ] {
        let file = file(folder.path(), name, bytes);
        let run = run(&[&kernel[..], &["--symbols", arg(&file)]].concat());
        run.expect_status(INPUT)
            .expect_one_line(&["symbols", name, says]);
    }
    let none = folder.path().join("none");
    let run = run(&[&kernel[..], &["--symbols", arg(&none)]].concat());
    run.expect_status(INPUT)
        .expect_one_line(&["symbols", "cannot be read"]);
}

#[test]
fn a_stripped_guest_needs_symbols() {
    needs_kvm!("a_stripped_guest_needs_symbols");
    let folder = tempdir().unwrap();
    let mut image = std::fs::read(guest("guest-kernel")).unwrap();
    // No section headers: e_shoff, e_shnum and e_shstrndx are 0.
    image[40..48].fill(0);
    image[60..64].fill(0);
    let stripped = file(folder.path(), "stripped", &image);
    let options = ["--milestone", "symbol:guest_main", "--format", "json"];
    let kernel = ["profile", "--kernel", arg(&stripped)];
    let run = run(&[&kernel[..], &options].concat()).expect_status(MISSED);
    run.profile();
    let run = run.expect_stderr(&["the kernel has no symbols: give --symbols FILE"]);
    drop(run);
    // With the file it was made from they are there again.
    let whole = guest("guest-kernel");
    let more = ["--symbols", arg(&whole)];
    let run = black_box::run(&[&kernel[..], &options, &more].concat()).expect_status(0);
    assert!(names(&run.profile()).contains(&"guest_main"));
}
