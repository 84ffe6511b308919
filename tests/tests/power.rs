//! Power-off and reset: how they end a run, and what is kept, bounded and released over reboots.
// Helpers stop a test as its own assertions do.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use black_box::accounts::{KERNEL, has_ledger};
use black_box::{Live, Run, arg, command, guest, needs_kvm, profile, run};
use exitvisor::profile::figures::KVM_RUN;
use exitvisor::profile::{EndKind, Pass, Profile};
use exitvisor::status::{CRASH, INPUT, INTERRUPTED, RESET_LIMIT, TERMINATED, TIMEOUT, USAGE};
use nix::sys::signal::Signal;

/// A run that was ended ends within this time, on a busy machine too.
const AT_ONCE: Duration = Duration::from_secs(3);

const POWER_OFF: &str = "0";
const WRONG_VALUES: &str = "1";
const RESET: &str = "2";
const TYPED: &str = "3";

const AGAIN: [&str; 2] = ["--on-reset", "continue"];

#[track_caller]
fn power(what: &str, options: &[&str]) -> Run {
    profile("power", &[&["--cmdline", what], options].concat())
}

/// (exits, own) of port accesses.
fn port_exits(profile: &Profile) -> (u64, u64) {
    let account = profile.total.reason(30);
    account.map_or((0, 0), |r| (r.exits, r.own))
}

#[test]
fn a_power_off_ends_well() {
    needs_kvm!("a_power_off_ends_well");
    let run = power(POWER_OFF, &[]).expect_status(0);
    assert_eq!(run.stderr, "");
    let profile = run.profile();
    assert_eq!(profile.end.kind, EndKind::PowerOff);
    assert_eq!(profile.end.detail, "the guest powered off");
    assert!(!profile.end.cut_short);
    // The milestone is the profiler's own exit, the power-off is the guest's.
    assert_eq!(port_exits(&profile), (2, 1));
}

#[test]
fn wrong_values_end_nothing() {
    needs_kvm!("wrong_values_end_nothing");
    let run = power(WRONG_VALUES, &[]).expect_status(3);
    let profile = run.profile();
    assert_eq!(profile.end.kind, EndKind::Exit);
    // Of 256 values 16 power off and one resets; then two values at one port, two widths at three,
    // and three reads. The profiler's own are the milestone and the exit status.
    let guests = 240 + 255 + 2 * (1 + 2 * 3) + 3;
    assert_eq!(port_exits(&profile), (guests + 2, 2));
}

#[test]
fn a_reset_ends_the_run_unless_it_may_go_on() {
    needs_kvm!("a_reset_ends_the_run_unless_it_may_go_on");
    for options in [&[][..], &["--on-reset", "end"]] {
        let profile = power(RESET, options).expect_status(0).profile();
        assert_eq!(profile.end.kind, EndKind::Reset);
        assert_eq!(profile.end.detail, "the guest reset itself");
        assert!(!profile.end.cut_short && !profile.has_reboots());
        assert_eq!(profile.first_end, None);
        assert_eq!(port_exits(&profile), (2, 1));
    }
}

#[test]
fn every_pass_is_profiled_on_its_own() {
    needs_kvm!("every_pass_is_profiled_on_its_own");
    let options = [&AGAIN[..], &["--max-resets", "4", "--cpus", "2"]].concat();
    let run = power(RESET, &options).expect_status(RESET_LIMIT);
    let said = "cut short: the guest reset itself more often than --max-resets 4";
    assert_eq!(run.stderr, format!("exitvisor: {said}\n"));
    let profile = run.profile();
    assert_eq!(profile.end.kind, EndKind::ResetLimit);
    assert!(profile.end.cut_short);
    assert_eq!(profile.reboots.len(), 4);
    assert_eq!(profile.first_end().kind, EndKind::Reset);
    let mut before = profile.first_end().nanos;
    let source = if has_ledger(&profile) {
        KERNEL
    } else {
        KVM_RUN
    };
    for pass in &profile.reboots {
        let names: Vec<&str> = pass.milestones.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["reset", "kernel entry"]);
        assert_eq!(pass.vcpus.len(), 2);
        assert_eq!(pass.end.kind, EndKind::Reset);
        // Counted from zero: what the first boot took, not a sum.
        assert_eq!(pass.total.reason(30), pass.vcpus[0].reason(30));
        let io = pass.total.reason(30).unwrap();
        assert_eq!((io.exits, io.own, io.source.as_str()), (2, 1, source));
        assert!(pass.start_nanos > before, "{} > {before}", pass.start_nanos);
        before = pass.start_nanos + pass.end.nanos;
    }
    assert!(profile.end.nanos >= before, "the end's clock is the run's");
}

/// A guest that obeys what is typed, with its input to type into.
fn typing(options: &[&str]) -> (Live, std::process::ChildStdin) {
    let kernel = guest("power");
    let args = ["run", "--kernel", arg(&kernel), "--cmdline", TYPED];
    let args = [&args[..], &AGAIN, &["--timeout", "30s"], options].concat();
    let mut child = command(&args).stdin(Stdio::piped()).spawn().unwrap();
    let keys = child.stdin.take().unwrap();
    (Live::of(child), keys)
}

#[test]
fn input_reaches_the_boot_that_reads_it() {
    needs_kvm!("input_reaches_the_boot_that_reads_it");
    let (live, mut keys) = typing(&[]);
    // All at once: what a boot has not read is the next one's.
    keys.write_all(b"arbcrrdp").unwrap();
    // `c` crashes in the second boot.
    let run = live.finish().expect_status(CRASH);
    assert_eq!(run.stdout, "ready\na\nr\nready\nb\nc\n");
    let (live, mut keys) = typing(&[]);
    keys.write_all(b"arrbrp").unwrap();
    let run = live.finish().expect_status(0);
    let expected = "ready\na\nr\nready\nr\nready\nb\nr\nready\np\n";
    assert_eq!(run.stdout, expected);
    run.expect_one_line(&["the guest powered off", "in the first of 4 boots"]);
}

#[test]
fn more_input_than_a_uart_holds_survives_a_reset() {
    needs_kvm!("more_input_than_a_uart_holds_survives_a_reset");
    let (live, mut keys) = typing(&[]);
    let text: String = ('A'..='Z').cycle().take(3000).collect();
    keys.write_all(format!("r{text}x").as_bytes()).unwrap();
    let run = live.finish().expect_status(0);
    let echoed: String = run.stdout.lines().skip(3).collect();
    assert_eq!(echoed, text + "x");
}

#[test]
fn how_the_last_boot_ends_is_how_the_run_ends() {
    needs_kvm!("how_the_last_boot_ends_is_how_the_run_ends");
    for (key, status, kind) in [
        (b'p', 0, EndKind::PowerOff),
        (b'x', 0, EndKind::Exit),
        (b'c', CRASH, EndKind::Crash),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let saved = folder.path().join("profile.json");
        let (live, mut keys) = typing(&["--format", "json", "--output", arg(&saved)]);
        keys.write_all(&[b'r', key]).unwrap();
        live.finish().expect_status(status);
        let profile = exitvisor::profile::load::load(&saved).unwrap();
        assert_eq!(profile.end.kind, kind);
        let [Pass { end, .. }] = profile.reboots.as_slice() else {
            panic!("{} reboots", profile.reboots.len());
        };
        assert_eq!((end.kind, end.status), (kind, profile.end.status));
        assert!(end.nanos < profile.end.nanos);
    }
}

#[test]
fn the_time_limit_is_for_the_whole_run() {
    needs_kvm!("the_time_limit_is_for_the_whole_run");
    // Every boot is much shorter than the limit.
    let options = [&AGAIN[..], &["--timeout", "700ms"]].concat();
    let run = power(RESET, &options).expect_status(TIMEOUT);
    assert!(run.took > Duration::from_millis(700) && run.took < AT_ONCE);
    let profile = run.profile();
    assert_eq!(profile.end.kind, EndKind::Timeout);
    assert!(profile.end.nanos >= 690_000_000, "{:?}", profile.end);
    assert!(profile.reboots.len() > 3, "{}", profile.reboots.len());
}

/// Open descriptors and resident pages of a process.
fn held(live: &Live) -> (usize, u64) {
    let of = |what: &str| format!("/proc/{}/{what}", live.id());
    let descriptors = fs::read_dir(of("fd")).unwrap().count();
    let status = fs::read_to_string(of("status")).unwrap();
    let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kilobytes = resident.unwrap().trim().trim_end_matches(" kB");
    (descriptors, kilobytes.parse().unwrap())
}

#[test]
fn a_storm_holds_on_to_nothing_and_obeys_signals() {
    needs_kvm!("a_storm_holds_on_to_nothing_and_obeys_signals");
    let kernel = guest("power");
    for (signal, status) in [(Signal::SIGINT, INTERRUPTED), (Signal::SIGTERM, TERMINATED)] {
        let args = ["profile", "--kernel", arg(&kernel), "--cmdline", RESET];
        let options = ["--format", "json", "--cpus", "2", "--max-resets", "100000"];
        let args = [&args[..], &AGAIN, &options].concat();
        let live = Live::of(command(&args).spawn().unwrap());
        // The most of many looks, in the storm's first second and two seconds later.
        let look = || {
            let looks = (0..50).map(|_| {
                std::thread::sleep(Duration::from_millis(10));
                held(&live)
            });
            looks.fold((0, 0), |(a, b), (c, d)| (a.max(c), b.max(d)))
        };
        std::thread::sleep(Duration::from_millis(500));
        let early = look();
        std::thread::sleep(Duration::from_secs(2));
        let late = look();
        live.signal(signal);
        let run = live.finish().expect_status(status);
        assert!(run.took < Duration::from_secs(8), "{:?}", run.took);
        let profile = run.profile();
        assert_eq!(profile.end.kind, EndKind::Interrupted);
        assert!(profile.reboots.len() > 20, "{}", profile.reboots.len());
        assert!(late.0 <= early.0 + 8, "descriptors: {early:?}, {late:?}");
        // The profile itself grows, by some kilobytes for each pass.
        assert!(late.1 < early.1 + 8192, "kilobytes: {early:?}, {late:?}");
    }
}

#[test]
fn no_reset_may_be_allowed() {
    needs_kvm!("no_reset_may_be_allowed");
    let options = [&AGAIN[..], &["--max-resets", "0"]].concat();
    let profile = power(RESET, &options).expect_status(RESET_LIMIT).profile();
    assert!(!profile.has_reboots());
    assert_eq!(profile.end.kind, EndKind::ResetLimit);
    // The boot itself came to its end.
    assert_eq!(profile.first_end().kind, EndKind::Reset);
}

#[test]
fn an_image_that_changes_meanwhile_ends_the_run() {
    needs_kvm!("an_image_that_changes_meanwhile_ends_the_run");
    type Change = fn(&std::path::Path);
    let changes: [(Change, &str); 2] = [
        (|path| fs::remove_file(path).unwrap(), "No such file"),
        (
            |path| {
                let other = path.with_extension("new");
                fs::copy(guest("ends"), &other).unwrap();
                fs::rename(other, path).unwrap();
            },
            "has changed since the first boot",
        ),
    ];
    for (change, why) in changes {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel");
        fs::copy(guest("power"), &kernel).unwrap();
        let args = ["run", "--kernel", arg(&kernel), "--cmdline", TYPED];
        let args = [&args[..], &AGAIN, &["--timeout", "30s"]].concat();
        let mut child = command(&args).stdin(Stdio::piped()).spawn().unwrap();
        let mut keys = child.stdin.take().unwrap();
        let mut live = Live::of(child);
        live.wait_for("ready\n");
        change(&kernel);
        keys.write_all(b"r").unwrap();
        let run = live.finish().expect_status(INPUT);
        run.expect_stderr(&["cut short: the machine cannot be booted again: kernel", why]);
    }
}

#[test]
fn resets_in_reports() {
    needs_kvm!("resets_in_reports");
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("profile.json");
    let options = ["--max-resets", "2", "--output", arg(&saved)];
    power(RESET, &[&AGAIN[..], &options].concat()).expect_status(RESET_LIMIT);
    let shown = run(&["report", arg(&saved)]).expect_status(0).stdout;
    for part in [
        "the first boot and 2 reboots",
        "\nreboot 2 ",
        "What does a reboot cost?",
        "to build the machine anew",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let csv = run(&["report", "--format", "csv", arg(&saved)]).expect_status(0);
    let rows = |pass: &str| csv.stdout.lines().filter(|l| l.starts_with(pass)).count();
    assert!(csv.stdout.starts_with("pass,"));
    // The first boot maps what the second finds mapped (48), and interrupts (1) come when they come.
    let lasting = |pass: &str| {
        let is_one = |l: &&str| {
            l.starts_with(pass) && !l.contains("EPT violation") && !l.contains("external interrupt")
        };
        csv.stdout.lines().filter(is_one).count()
    };
    assert_eq!(lasting("0,"), lasting("2,"));
    assert!(rows("2,") > 3 && rows("3,") == 0);
    let both = run(&["report", arg(&saved), arg(&saved)]).expect_status(0);
    assert!(both.stdout.contains("only first boots are looked at"));
    let compared = run(&["compare", arg(&saved), arg(&saved)]).expect_status(0);
    assert!(compared.stdout.contains("only its first boot is compared"));
}

#[test]
fn options_that_make_no_sense() {
    let run = |options: &[&str]| run(&[&["run", "--kernel", "k"], options].concat());
    for (options, why) in [
        (&["--max-resets", "3"][..], "without --on-reset continue"),
        (&["--on-reset", "end", "--max-resets", "3"], "without"),
        (&["--on-reset", "maybe"], "end, continue"),
        (&["--on-reset", "continue", "--max-resets", "-1"], "-1"),
        (&["--on-reset", "continue", "--max-resets", "many"], "many"),
    ] {
        run(options).expect_status(USAGE).expect_one_line(&[why]);
    }
}
