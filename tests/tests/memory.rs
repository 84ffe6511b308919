//! Guest memory: of what pages the host makes it, and filling it in before the guest runs.
// A harness may stop a test by panicking: that is how tests fail.
#![allow(clippy::unwrap_used)]

use std::os::unix::process::CommandExt;

use black_box::accounts::is_shadowed;
use black_box::{
    Run, arg, command, finish, guest, is_root, kvm, lab, needs_kvm, needs_ledger, profile, skip,
};
use exitvisor::profile::{EndKind, KvmKind, Profile};
use nix::sys::signal::{SigSet, Signal, raise};

const MIB: u64 = 32;

/// A guest that touches all of its memory.
fn touching(args: &[&str]) -> Run {
    let mib = MIB.to_string();
    let memory = format!("{MIB}M");
    let fixed = ["--memory", &memory, "--cmdline", &mib, "--timeout", "30s"];
    profile("touching", &[&fixed[..], args].concat())
}

/// Exits of the guest's own for a page that was not mapped yet.
fn faults(profile: &Profile) -> u64 {
    profile.total.reason(48).map_or(0, |r| r.exits)
}

/// Whether KVM can map memory beforehand; if not, that is said in one line, and the test is skipped.
fn prefaults(name: &str) -> bool {
    if kvm().is_none() {
        skip(name, "no usable /dev/kvm");
        return false;
    }
    let run = touching(&["--prefault", "kvm"]);
    if run.status == 0 {
        return true;
    }
    run.expect_status(69)
        .expect_one_line(&["--prefault kvm: this KVM cannot", "--prefault touch"]);
    skip(name, "this KVM cannot map memory beforehand");
    false
}

#[test]
fn memory_reads_as_zero_however_it_is_made() {
    needs_kvm!("memory_reads_as_zero_however_it_is_made");
    for pages in ["host", "4k", "thp"] {
        for prefault in ["none", "touch"] {
            let run = touching(&["--pages", pages, "--prefault", prefault]).expect_status(0);
            let memory = run.profile().memory.unwrap();
            assert_eq!((&*memory.pages, &*memory.prefault), (pages, prefault));
            assert_eq!(memory.prefault_nanos > 0, prefault == "touch");
            assert!(memory.resident >= (MIB - 8) << 20, "{memory:?}");
            assert!(memory.huge <= memory.resident, "{memory:?}");
            if prefault == "touch" {
                assert_eq!(memory.resident, MIB << 20, "{pages}: all of it");
            }
            if pages == "4k" {
                assert_eq!(memory.huge, 0);
            }
        }
    }
}

#[test]
fn mapped_by_kvm_no_first_touch_exits() {
    needs_ledger!("mapped_by_kvm_no_first_touch_exits");
    let untouched = touching(&["--pages", "4k"]).expect_status(0).profile();
    if is_shadowed(&untouched) {
        return skip(
            "mapped_by_kvm_no_first_touch_exits",
            "page tables are shadowed",
        );
    }
    const PAGES: u64 = (MIB - 8) << 20 >> 12;
    assert!(faults(&untouched) >= PAGES, "{}", faults(&untouched));
    let touched = touching(&["--pages", "4k", "--prefault", "touch"]);
    let touched = touched.expect_status(0).profile();
    assert!(faults(&touched) >= PAGES, "KVM still has to map each page");
    if !prefaults("mapped_by_kvm_no_first_touch_exits (by KVM)") {
        return;
    }
    for pages in ["host", "4k", "thp"] {
        for cpus in ["1", "2"] {
            let run = touching(&["--pages", pages, "--prefault", "kvm", "--cpus", cpus]);
            let profile = run.expect_status(0).profile();
            assert_eq!(faults(&profile), 0, "{pages}, {cpus} CPUs");
        }
    }
}

/// A Ctrl-C that came first: who is not to run for long need not have all of its memory.
#[test]
fn an_interrupt_ends_the_filling_in() {
    needs_kvm!("an_interrupt_ends_the_filling_in");
    let kernel = guest("touching");
    let options = [
        "profile",
        "--format",
        "json",
        "--memory",
        "256M",
        "--prefault",
        "touch",
        "--kernel",
    ];
    let mut command = command(&[&options[..], &[arg(&kernel)]].concat());
    let interrupted = || {
        SigSet::from(Signal::SIGINT).thread_block()?;
        Ok(raise(Signal::SIGINT)?)
    };
    // SAFETY: between fork and exec the closure changes the thread's signal mask and sends it a signal,
    // nothing else. What waits then goes on waiting after exec.
    unsafe { command.pre_exec(interrupted) };
    let profile = finish(command.spawn().unwrap())
        .expect_status(130)
        .profile();
    assert_eq!(profile.end.kind, EndKind::Interrupted);
    let memory = profile.memory.unwrap();
    assert!(memory.resident < 64 << 20, "{memory:?}");
}

#[test]
fn after_a_reset_it_is_filled_in_again() {
    needs_kvm!("after_a_reset_it_is_filled_in_again");
    let args = ["--prefault", "touch", "--on-reset", "continue", "--cmdline"];
    let run = profile("guest-kernel", &[&args[..], &["reboot=2 log=off"]].concat());
    let profile = run.expect_status(0).profile();
    let all = profile.reboots.iter().map(|pass| &pass.memory);
    let all: Vec<_> = all.chain([&profile.memory]).flatten().collect();
    assert_eq!(all.len(), 3);
    for memory in all {
        assert!(memory.prefault_nanos > 0);
        assert_eq!(memory.resident, profile.machine.memory);
    }
}

#[test]
fn huge_pages_of_the_pool() {
    let name = "huge_pages_of_the_pool";
    needs_kvm!("huge_pages_of_the_pool");
    const POOL: &str = "/proc/sys/vm/nr_hugepages";
    if lab().is_none() || !is_root() {
        return skip(name, "the pool is the whole system's: only in a lab");
    }
    let kept = std::fs::read_to_string(POOL).unwrap();
    std::fs::write(POOL, "0").unwrap();
    let refused = touching(&["--pages", "huge"]).expect_status(71);
    refused.expect_one_line(&[
        "--pages huge: 16 huge pages",
        "echo 16 | sudo tee /proc/sys/vm",
    ]);
    std::fs::write(POOL, "17").unwrap();
    for prefault in ["none", "touch"] {
        let run = touching(&["--pages", "huge", "--prefault", prefault]);
        let memory = run.expect_status(0).profile().memory.unwrap();
        assert_eq!(memory.resident, memory.huge, "{memory:?}");
        let least = if prefault == "touch" { MIB } else { MIB - 8 };
        assert!(
            (least << 20..=MIB << 20).contains(&memory.huge),
            "{memory:?}"
        );
    }
    // The memory of a boot is given back before the next one needs it.
    let more = [
        "--memory",
        "32M",
        "--on-reset",
        "continue",
        "--pages",
        "huge",
        "--cmdline",
    ];
    let run = profile("guest-kernel", &[&more[..], &["reboot=2 log=off"]].concat());
    assert_eq!(run.expect_status(0).profile().reboots.len(), 2);
    std::fs::write(POOL, kept.trim()).unwrap();
}

#[test]
fn hostile_sizes() {
    needs_kvm!("hostile_sizes");
    let with = |args: &[&str]| profile("ends", &[args, &["--timeout", "10s"]].concat());
    with(&["--memory", "3M", "--pages", "huge"])
        .expect_status(64)
        .expect_one_line(&["whole pages of 2 MiB", "--memory 4M"]);
    with(&["--memory", "2052K", "--pages", "4k", "--prefault", "touch"]).expect_status(0);
    with(&["--memory", "2052K", "--pages", "thp"]).expect_status(0);
    with(&["--pages", "1G"])
        .expect_status(64)
        .expect_one_line(&["host, 4k, thp or huge"]);
    with(&["--prefault", ""])
        .expect_status(64)
        .expect_one_line(&["none, touch or kvm"]);
    // What only the host's pool could tell: far too much of it is one line as well.
    if exitvisor::memory::host_total().is_some_and(|total| total < 1 << 40) {
        with(&["--memory", "1T", "--pages", "huge"])
            .expect_status(64)
            .expect_one_line(&["more than this host has"]);
    }
}

#[test]
fn software_kvm_cannot_map_beforehand() {
    match kvm() {
        Some(KvmKind::Software) => {
            touching(&["--prefault", "kvm"])
                .expect_status(69)
                .expect_one_line(&["--prefault kvm: this KVM cannot"]);
        }
        _ => skip("software_kvm_cannot_map_beforehand", "not software KVM"),
    }
}
