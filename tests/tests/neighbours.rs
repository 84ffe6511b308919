//! Several VMs at once, several vCPUs, vCPU threads that migrate: no exit of another VM is counted,
//! and none is lost. (Every profile here is checked against KVM's own statistics, vCPU by vCPU.)
// A harness may stop a test by panicking: that is how tests fail.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use black_box::accounts::{at, grown, of_guest};
use black_box::witness::{Registrar, Threads, witnessed};
use black_box::{Live, arg, guest, host_cpus, needs_ledger, skip, witness};
use exitvisor::profile::Profile;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// A boot of the guest kernel, under way.
fn boot(cmdline: &str, more: &[&str]) -> Live {
    Live::of(command(cmdline, more).spawn().unwrap())
}

fn command(cmdline: &str, more: &[&str]) -> Command {
    let kernel = guest("guest-kernel");
    let fixed = ["profile", "--format", "json", "--timeout", "50s"];
    let kernel = ["--kernel", arg(&kernel), "--cmdline", cmdline];
    let all: Vec<&str> = fixed.iter().chain(&kernel).chain(more).copied().collect();
    black_box::command(&all)
}

#[test]
fn two_vms_at_once_count_their_own() {
    let name = "two_vms_at_once_count_their_own";
    needs_ledger!("two_vms_at_once_count_their_own");
    let witness = witness(name);
    let one = boot("workload=cpuid:3000,wrmsr:2000 log=off", &[]);
    let other = boot("workload=rdmsr:2500,pio:1500 log=off", &[]);
    let third = boot(
        "workload=cr:1000,wbinvd:500 log=off",
        &["--ledger", "histogram"],
    );
    let vms = [one, other, third];
    let registrars: Vec<Registrar> = vms.iter().map(Registrar::of).collect();
    let runs = vms.map(|vm| vm.finish().expect_status(0));
    let threads: Vec<Threads> = registrars.into_iter().map(Registrar::threads).collect();
    let profiles = runs.each_ref().map(|run| run.profile());
    let expected = [
        BTreeMap::from([(10, 3000), (31, 1), (32, 2000)]),
        BTreeMap::from([(30, 1500), (31, 2501)]),
        BTreeMap::from([(28, 1000), (54, 500)]),
    ];
    for (profile, expected) in profiles.iter().zip(expected) {
        assert_eq!(grown(profile, "devices", "workload"), expected);
    }
    if let Some(witness) = witness {
        let testimony = witness.testimony();
        testimony.check_no_unknown(&threads.iter().collect::<Vec<_>>());
        for (profile, threads) in profiles.iter().zip(&threads) {
            testimony.check(profile, threads);
        }
    }
}

#[test]
fn an_smp_vm_beside_another_counts_its_own() {
    let name = "an_smp_vm_beside_another_counts_its_own";
    needs_ledger!("an_smp_vm_beside_another_counts_its_own");
    let witness = witness(name);
    // The other comes once all CPUs are up, which a guest does not wait for long.
    let mut smp = boot(
        "cpus=4 workload=cpuid:20000 log=each exits=both",
        &["--cpus", "4"],
    );
    let registrar = Registrar::of(&smp);
    smp.wait_for("[exit-log] SMP");
    let other = boot("workload=cpuid:1000,pio:1000 log=off", &[]);
    let registrars = [registrar, Registrar::of(&other)];
    let profiles = [smp, other].map(|vm| vm.finish().expect_status(0).profile());
    let threads = registrars.map(Registrar::threads);
    check_smp(&profiles[0], 4, 20_000);
    let expected = BTreeMap::from([(10, 1000), (30, 1000)]);
    assert_eq!(grown(&profiles[1], "devices", "workload"), expected);
    if let Some(witness) = witness {
        let testimony = witness.testimony();
        testimony.check_no_unknown(&[&threads[0], &threads[1]]);
        for (profile, threads) in profiles.iter().zip(&threads) {
            testimony.check(profile, threads);
        }
    }
}

/// An SMP guest whose first CPU did a `cpuid` workload while the others were parked.
#[track_caller]
fn check_smp(profile: &Profile, cpus: u32, cpuid: u64) {
    assert_eq!(profile.vcpus.len() as u32, cpus);
    let cost = grown(profile, "devices", "workload");
    assert_eq!(cost, BTreeMap::from([(10, cpuid)]));
    let first = of_guest(&profile.vcpus[0]);
    assert!(first[&10] >= cpuid, "{first:?}");
    for other in &profile.vcpus[1..] {
        let exits = of_guest(other);
        // It came up, asked, and parked with HLT.
        assert_eq!(exits.get(&12), Some(&1), "{exits:?}");
        assert!(exits.get(&10).is_none_or(|&n| n < cpuid), "{exits:?}");
    }
    assert!(at(profile, "done").total > cpuid);
}

/// Sends the vCPU threads of a VM from CPU to CPU while it runs; how often one was sent.
fn finish_migrating(vm: Live) -> (Profile, u64) {
    let (over, moves) = (AtomicBool::new(false), AtomicU64::new(0));
    let (id, cpus) = (vm.id(), host_cpus());
    let profile = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut threads = Threads::default();
            let mut turn = 0;
            while !over.load(Relaxed) {
                threads.look(id);
                for thread in threads.all() {
                    let mut set = CpuSet::new();
                    set.set((turn + thread as usize) % cpus).unwrap();
                    // It may have ended.
                    if sched_setaffinity(Pid::from_raw(thread as i32), &set).is_ok() {
                        moves.fetch_add(1, Relaxed);
                    }
                }
                turn += 1;
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        let run = vm.finish();
        over.store(true, Relaxed);
        run.expect_status(0).profile()
    });
    (profile, moves.into_inner())
}

#[test]
fn threads_that_migrate_lose_no_exit() {
    let name = "threads_that_migrate_lose_no_exit";
    needs_ledger!("threads_that_migrate_lose_no_exit");
    if host_cpus() < 2 {
        return skip(name, "there is one CPU");
    }
    for (workload, expected) in [
        ("cpuid:20000", BTreeMap::from([(10, 20_000)])),
        (
            "pio:5000,wrmsr:5000",
            BTreeMap::from([(30, 5000), (31, 1), (32, 5000)]),
        ),
    ] {
        for level in ["counts", "cycles", "histogram"] {
            let cmdline = format!("workload={workload} log=off");
            let (profile, moves) = finish_migrating(boot(&cmdline, &["--ledger", level]));
            assert_eq!(grown(&profile, "devices", "workload"), expected, "{level}");
            assert!(moves > 20, "{level}: moved {moves} times");
        }
    }
}

#[test]
fn an_smp_vm_whose_threads_migrate_loses_no_exit() {
    let name = "an_smp_vm_whose_threads_migrate_loses_no_exit";
    needs_ledger!("an_smp_vm_whose_threads_migrate_loses_no_exit");
    if host_cpus() < 2 {
        return skip(name, "there is one CPU");
    }
    // The kernel does not wait long for its CPUs: they migrate once they are up.
    let mut vm = boot(
        "cpus=4 workload=cpuid:20000 log=each exits=both",
        &["--cpus", "4"],
    );
    vm.wait_for("[exit-log] SMP");
    let (profile, moves) = finish_migrating(vm);
    check_smp(&profile, 4, 20_000);
    assert!(moves > 20, "moved {moves} times");

    // Here all of them work at once, and migrate from the start.
    let kernel = guest("smp_milestones");
    let args = [
        "profile",
        "--format",
        "json",
        "--kernel",
        arg(&kernel),
        "--timeout",
        "30s",
    ];
    for _ in 0..5 {
        let mut vm = black_box::command(&[&args[..], &["--cpus", "4", "--cmdline", "4"]].concat());
        let (profile, _) = finish_migrating(Live::of(vm.spawn().unwrap()));
        for (index, vcpu) in profile.vcpus.iter().enumerate() {
            let of = |reason| vcpu.reason(reason).map(|r| (r.exits, r.own));
            assert_eq!(of(0), Some((20, 20)), "the queries of CPU {index}");
            let expected = if index == 0 { (508, 8) } else { (7, 7) };
            assert_eq!(of(30), Some(expected), "the port accesses of CPU {index}");
        }
    }
}

#[test]
fn vcpus_keep_their_own_books() {
    let name = "vcpus_keep_their_own_books";
    needs_ledger!("vcpus_keep_their_own_books");
    if witness(name).is_none() {
        return;
    }
    let mut vm = command(
        "cpus=3 log=each exits=both workload=cpuid:500",
        &["--cpus", "3"],
    );
    let (run, threads) = witnessed(&mut vm);
    let profile = run.expect_status(0).profile();
    // What the witness compares is per vCPU; that there was something to compare:
    let busy: BTreeSet<bool> = profile.vcpus.iter().map(|v| v.total > 10).collect();
    assert_eq!(busy, BTreeSet::from([true]), "{:?}", profile.vcpus);
    assert_eq!(threads.all().len(), 3);
}
