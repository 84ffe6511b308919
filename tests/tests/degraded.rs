//! Less than everything: without rights, without tracefs, with BPF refused, with tracepoints that are
//! not as they should be. Each is one clear line and a poorer, correct profile; and what is merely
//! unusual (a namespace, a mount elsewhere) costs nothing.
// A harness may stop a test by panicking: that is how tests fail.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use black_box::accounts::{grown, has_ledger};
use black_box::confined::{self, CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN};
use black_box::{
    Run, arg, command, finish, guest, is_root, lab, needs_ledger, skip, unprivileged, witness,
};
use exitvisor::profile::{AskKind, Profile};
use nix::libc;
use tempfile::TempDir;

/// Exits that the kernel handles, and some that reach the VMM.
const CMDLINE: &str = "workload=cpuid:400,wrmsr:300,pio:100,mmio:50 log=off";

/// What it costs by reason.
fn cost() -> BTreeMap<u8, u64> {
    BTreeMap::from([(10, 400), (30, 100), (31, 1), (32, 300), (49, 50)])
}

fn arguments(more: &[&str]) -> Vec<String> {
    let kernel = guest("guest-kernel");
    let fixed = ["profile", "--format", "json", "--timeout", "50s"];
    let kernel = ["--kernel", arg(&kernel), "--cmdline", CMDLINE];
    let all = fixed.iter().chain(&kernel).chain(more);
    all.map(|&a| a.to_owned()).collect()
}

fn run(mut command: Command) -> Run {
    finish(command.spawn().unwrap())
}

/// All is there: the guest's cost is exact.
#[track_caller]
fn check_whole(run: Run) -> Profile {
    let run = run.expect_status(0);
    let profile = run.profile();
    assert!(has_ledger(&profile), "{run:#?}");
    assert_eq!(complaints(&run), Vec::<&str>::new());
    assert_eq!(grown(&profile, "devices", "workload"), cost(), "{run:#?}");
    profile
}

/// There is no ledger; a line says why and the rest is as true as ever.
#[track_caller]
fn check_poorer(run: Run, parts: &[&str]) -> Profile {
    let run = run.expect_status(0);
    let profile = run.profile();
    assert!(!has_ledger(&profile), "{run:#?}");
    let said = complaints(&run);
    assert_eq!(said.len(), 1, "one line: {run:#?}");
    for part in ["no kernel ledger, exits that the kernel handles are counted, but not by reason: "]
        .iter()
        .chain(parts)
    {
        assert!(said[0].contains(part), "no {part:?} in {:?}", said[0]);
    }
    // The profile keeps the reason why.
    let source = profile.sources.iter().find(|s| s.name == "kernel ledger");
    let why = &source.unwrap().completeness;
    assert!(said[0].ends_with(why.as_str()), "{why}: {said:?}");
    // What reaches the VMM is as exact as ever, and KVM's own total is there.
    let grown = grown(&profile, "devices", "workload");
    assert_eq!(grown.get(&30), Some(&100), "{grown:?}");
    assert_eq!(grown.get(&49), Some(&51), "{grown:?}");
    assert_eq!(grown.get(&10), None);
    let total = &profile.total;
    assert!(total.residual >= 400 + 300, "{total:?}");
    assert_eq!((total.excess, total.other), (0, 0), "{total:?}");
    profile
}

/// Lines of ours on standard error.
fn complaints(run: &Run) -> Vec<&str> {
    let all = run.notice.iter().map(String::as_str);
    let lines = run.stderr.lines().filter(|l| l.starts_with("exitvisor: "));
    all.chain(lines).map(str::trim).collect()
}

/// Whether this is root, with what only root can take from itself.
fn can_confine(name: &str) -> bool {
    let root = is_root();
    if !root {
        skip(name, "only root can take rights from itself");
    }
    root
}

#[test]
fn nobody_gets_a_poorer_profile() {
    let name = "nobody_gets_a_poorer_profile";
    needs_ledger!("nobody_gets_a_poorer_profile");
    if !can_confine(name) {
        return;
    }
    let Some(mut command) = unprivileged(&arguments(&[])) else {
        return skip(name, "nobody may not start exitvisor here");
    };
    let run = finish(command.spawn().unwrap());
    if run.status == i32::from(exitvisor::status::NO_KVM) {
        return skip(name, "nobody may not use /dev/kvm here");
    }
    // Which of the two it lacks first is the host's doing.
    let said = complaints(&run).join("\n");
    let how = ["run as root", "CAP_"];
    assert!(how.iter().any(|part| said.contains(part)), "{said}");
    check_poorer(run, &[]);
}

/// Where tracefs is, and where it comes up by itself.
const MOUNTS: [&str; 3] = [
    "/sys/kernel/debug/tracing",
    "/sys/kernel/tracing",
    "/sys/kernel/debug",
];

#[test]
fn root_needs_no_mounted_tracefs() {
    let name = "root_needs_no_mounted_tracefs";
    needs_ledger!("root_needs_no_mounted_tracefs");
    if !can_confine(name) {
        return;
    }
    let mut confined = command(&arguments(&[]));
    confined::without_mounts(&mut confined, &MOUNTS);
    check_whole(run(confined));
}

#[test]
fn without_tracefs_and_without_the_right_to_mount_it() {
    let name = "without_tracefs_and_without_the_right_to_mount_it";
    needs_ledger!("without_tracefs_and_without_the_right_to_mount_it");
    if !can_confine(name) {
        return;
    }
    let mut confined = command(&arguments(&[]));
    confined::without_mounts(&mut confined, &MOUNTS);
    confined::without_capabilities(&mut confined, &[CAP_SYS_ADMIN]);
    check_poorer(
        run(confined),
        &["no tracefs is mounted", "mount -t tracefs"],
    );
}

#[test]
fn without_the_capabilities_for_bpf() {
    let name = "without_the_capabilities_for_bpf";
    needs_ledger!("without_the_capabilities_for_bpf");
    if !can_confine(name) {
        return;
    }
    for lacking in [
        &[CAP_SYS_ADMIN, CAP_BPF, CAP_PERFMON][..],
        &[CAP_SYS_ADMIN, CAP_PERFMON],
    ] {
        let mut confined = command(&arguments(&[]));
        confined::without_capabilities(&mut confined, lacking);
        check_poorer(run(confined), &["CAP_PERFMON", "run as root"]);
    }
}

#[test]
fn two_capabilities_are_enough_unless_the_host_is_paranoid() {
    let name = "two_capabilities_are_enough_unless_the_host_is_paranoid";
    needs_ledger!("two_capabilities_are_enough_unless_the_host_is_paranoid");
    if !can_confine(name) {
        return;
    }
    if lab().is_none() {
        return skip(
            name,
            "kernel.perf_event_paranoid may be changed in a lab only",
        );
    }
    const PARANOID: &str = "/proc/sys/kernel/perf_event_paranoid";
    let before = fs::read_to_string(PARANOID).unwrap();
    let confined_run = |level: &str| {
        fs::write(PARANOID, level).unwrap();
        // What is left of root's capabilities are CAP_BPF, CAP_PERFMON and those over files.
        let mut confined = command(&arguments(&[]));
        confined::without_capabilities(&mut confined, &[CAP_SYS_ADMIN]);
        run(confined)
    };
    let (usual, paranoid) = (confined_run("2"), confined_run("3"));
    let whole = run(command(&arguments(&[])));
    fs::write(PARANOID, before).unwrap();
    check_whole(usual);
    // Debian's kernel has a level 3, at which CAP_PERFMON does not do; elsewhere it is as 2.
    if complaints(&paranoid).is_empty() {
        check_whole(paranoid);
    } else {
        check_poorer(paranoid, &["kernel.perf_event_paranoid", "kvm:kvm_"]);
    }
    check_whole(whole);
}

#[test]
fn system_calls_that_a_container_refuses() {
    needs_ledger!("system_calls_that_a_container_refuses");
    for (call, parts) in [
        (libc::SYS_bpf, ["refuses bpf()", "CAP_BPF"]),
        (
            libc::SYS_perf_event_open,
            ["tracepoint kvm:kvm_", "not permitted"],
        ),
    ] {
        let mut confined = command(&arguments(&[]));
        confined::without_call(&mut confined, call);
        check_poorer(run(confined), &parts);
    }
}

#[test]
fn in_a_pid_namespace_nothing_is_different() {
    let name = "in_a_pid_namespace_nothing_is_different";
    needs_ledger!("in_a_pid_namespace_nothing_is_different");
    if !can_confine(name) {
        return;
    }
    let witness = witness(name);
    for level in ["counts", "histogram"] {
        let mut confined = command(&arguments(&["--ledger", level]));
        confined::in_pid_namespace(&mut confined);
        check_whole(run(confined));
    }
    drop(witness);
}

/// What becomes of a field's offset and size; `None`: the field goes.
type Edit = dyn Fn(u64, u64) -> Option<(u64, u64)>;

/// A tracefs of plain files: what the ledger reads of the real one.
struct Fake {
    folder: TempDir,
}

const TRACEFS: &str = "/sys/kernel/tracing";

impl Fake {
    /// A copy of the real one; `None` where that cannot be read.
    fn copy() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let events = Path::new(TRACEFS).join("events/kvm");
        for event in fs::read_dir(events).ok()?.flatten() {
            let to = folder.path().join("events/kvm").join(event.file_name());
            if !event.path().is_dir() {
                continue;
            }
            fs::create_dir_all(&to).unwrap();
            for file in ["format", "id"] {
                fs::write(to.join(file), fs::read(event.path().join(file)).ok()?).unwrap();
            }
        }
        Some(Self { folder })
    }

    fn file(&self, event: &str, file: &str) -> PathBuf {
        let event = self.folder.path().join("events/kvm").join(event);
        event.join(file)
    }

    /// Rewrites a field's line in an event's format: its offset and size become these.
    fn edit(&self, event: &str, field: &str, edit: &Edit) {
        let path = self.file(event, "format");
        let format = fs::read_to_string(&path).unwrap();
        let number = |line: &str, key: &str| {
            let digits = line.split_once(key)?.1.split(';').next()?;
            digits.parse::<u64>().ok()
        };
        let mut found = false;
        let mut edited = String::new();
        for line in format.lines() {
            if !line.contains(&format!(" {field};")) {
                edited += &format!("{line}\n");
                continue;
            }
            found = true;
            let (offset, size) = (
                number(line, "offset:").unwrap(),
                number(line, "size:").unwrap(),
            );
            if let Some((to_offset, to_size)) = edit(offset, size) {
                let line = line.replace(
                    &format!("offset:{offset};"),
                    &format!("offset:{to_offset};"),
                );
                let line = line.replace(&format!("size:{size};"), &format!("size:{to_size};"));
                edited += &format!("{line}\n");
            }
        }
        assert!(found, "{event} has no field {field}: {format}");
        fs::write(path, edited).unwrap();
    }

    fn run(&self) -> Run {
        let more = ["--tracefs", arg(self.folder.path())];
        black_box::run(&arguments(&more))
    }
}

#[test]
fn a_tracefs_elsewhere_does_as_well() {
    let name = "a_tracefs_elsewhere_does_as_well";
    needs_ledger!("a_tracefs_elsewhere_does_as_well");
    let Some(fake) = Fake::copy() else {
        return skip(name, "tracefs cannot be read here");
    };
    check_whole(fake.run());
}

#[test]
fn fields_that_are_missing_are_refused() {
    let name = "fields_that_are_missing_are_refused";
    needs_ledger!("fields_that_are_missing_are_refused");
    for (event, field) in [
        ("kvm_exit", "exit_reason"),
        ("kvm_exit", "vcpu_id"),
        ("kvm_exit", "info1"),
        ("kvm_msr", "ecx"),
        ("kvm_exit", "guest_rip"),
        ("kvm_cpuid", "function"),
    ] {
        let Some(fake) = Fake::copy() else {
            return skip(name, "tracefs cannot be read here");
        };
        fake.edit(event, field, &|_, _| None);
        let path = format!("/events/kvm/{event}/format has no field `{field}`");
        check_poorer(fake.run(), &[&path]);
    }
}

#[test]
fn fields_where_none_can_be_are_refused() {
    let name = "fields_where_none_can_be_are_refused";
    needs_ledger!("fields_where_none_can_be_are_refused");
    for field in ["exit_reason", "vcpu_id", "info1"] {
        let fake = |edit: &Edit| {
            let fake = Fake::copy()?;
            fake.edit("kvm_exit", field, edit);
            Some(fake.run())
        };
        // A size that no number has, one that lies across others, two behind any record.
        let edits: [&Edit; 4] = [
            &|offset, _| Some((offset, 3)),
            &|offset, size| Some((offset + 1, size)),
            &|_, size| Some((1 << 20, size)),
            &|_, size| Some((u64::MAX - 7, size)),
        ];
        for edit in edits {
            let Some(run) = fake(edit) else {
                return skip(name, "tracefs cannot be read here");
            };
            let named = format!("`{field}`");
            check_poorer(run, &["/events/kvm/kvm_exit/format ", &named]);
        }
        // Behind this record, though not behind any: the kernel itself sees that.
        let behind = fake(&|_, size| Some((4096, size))).unwrap();
        check_poorer(behind, &["does not take the program", "kvm:kvm_exit"]);
    }
}

/// MSRs and ports are arguments of their tracepoints as long as these have the order that is known;
/// in another, they are found in the record.
#[test]
fn fields_in_another_order_are_found() {
    let name = "fields_in_another_order_are_found";
    needs_ledger!("fields_in_another_order_are_found");
    let Some(fake) = Fake::copy() else {
        return skip(name, "tracefs cannot be read here");
    };
    // How often memory is touched first is the host's matter.
    let asks = |run: Run| {
        let mut asks = check_whole(run).total.asks;
        asks.retain(|ask| ask.kind <= AskKind::Cpuid);
        asks
    };
    let usual = asks(fake.run());
    for (event, first) in [("kvm_msr", "write"), ("kvm_cpuid", "function")] {
        let path = fake.file(event, "format");
        let format = fs::read_to_string(&path).unwrap();
        let is_first = |line: &&str| line.contains(&format!(" {first};"));
        let line = format.lines().find(is_first).unwrap();
        // It comes last now, with the offset it has.
        let reordered = format.replace(&format!("{line}\n"), "") + line + "\n";
        fs::write(path, reordered).unwrap();
    }
    let reordered = asks(fake.run());
    // What the guest asks for does not depend on time.
    assert_eq!(usual, reordered);
}

#[test]
fn tracepoints_that_are_not_there() {
    let name = "tracepoints_that_are_not_there";
    needs_ledger!("tracepoints_that_are_not_there");
    for event in ["kvm_exit", "kvm_msr", "kvm_cpuid"] {
        let Some(fake) = Fake::copy() else {
            return skip(name, "tracefs cannot be read here");
        };
        fs::remove_dir_all(fake.file(event, "format").parent().unwrap()).unwrap();
        let tracepoint = format!("no tracepoint kvm:{event}");
        check_poorer(fake.run(), &[&tracepoint, "is KVM loaded"]);
    }
    // A number that is none, and one that no tracepoint has.
    for (id, part) in [
        ("x\n", "kvm_exit/id is not a number"),
        ("65535\n", "kvm:kvm_exit"),
    ] {
        let fake = Fake::copy().unwrap();
        fs::write(fake.file("kvm_exit", "id"), id).unwrap();
        check_poorer(fake.run(), &[part]);
    }
    // A folder without events, and none at all.
    let empty = tempfile::tempdir().unwrap();
    for folder in [empty.path(), Path::new("/nonexistent")] {
        let run = black_box::run(&arguments(&["--tracefs", arg(folder)]));
        check_poorer(run, &[arg(folder), "is no tracefs"]);
    }
}
