//! Real Linux kernels, Debian's as shipped, to user space and to their end: in the labs, which bring
//! them along.
// Helpers stop a test as its own assertions do.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use black_box::linux::{Guest, guest};
use black_box::{Run, arg, command, finish, host_cpus, kvm, run, skip};
use exitvisor::profile::{EndKind, KvmKind, Profile};
use exitvisor::status::{INPUT, NO_KVM};
use tempfile::tempdir;

/// Expects that user space was reached, with so many CPUs, and that it powered the machine off.
#[track_caller]
fn expect_power_off(run: Run, release: &str, cpus: u32) -> Profile {
    let cpus = format!(", {cpus} CPUs");
    let run = run.expect_status(0);
    let run = run.expect_stderr(&["exitvisor-guest: user space", release, &cpus]);
    let profile = run.profile();
    assert_eq!(profile.end.kind, EndKind::PowerOff);
    profile
}

/// Exits of a reason.
fn exits(profile: &Profile, reason: u8) -> u64 {
    profile.total.reason(reason).map_or(0, |r| r.exits)
}

#[test]
fn the_older_kernel_boots() {
    let Some(guest) = guest("the_older_kernel_boots") else {
        return;
    };
    let run = guest.boot(&guest.old, "", &[]);
    let profile = expect_power_off(run, "6.1.0-", 1);
    // What is probed in vain, where the machine could say that it is not there: 24 pins of an IOAPIC
    // (500 exits), 32 devices on a PCI bus (90), three more UARTs (18), MTRRs (40), a CMOS clock (40,000).
    let (mmio, ports) = (
        exits(&profile, 48) + exits(&profile, 49),
        exits(&profile, 30),
    );
    println!("{mmio} faults and MMIO, {ports} port accesses");
    let msrs = exits(&profile, 31);
    assert!(ports < 700, "{ports} port accesses");
    assert!(msrs < 120, "{msrs} MSRs read");
}

#[test]
fn the_newer_kernel_boots() {
    let Some(guest) = guest("the_newer_kernel_boots") else {
        return;
    };
    let run = guest.boot(&guest.new, "", &[]);
    expect_power_off(run, "6.12.", 1);
}

#[test]
fn both_kernels_boot_through_the_firmware() {
    let Some(guest) = guest("both_kernels_boot_through_the_firmware") else {
        return;
    };
    let firmware = black_box::guest("firmware");
    for (kernel, release) in [(&guest.old, "6.1.0-"), (&guest.new, "6.12.")] {
        let run = guest.boot(kernel, "", &["--firmware", arg(&firmware)]);
        let profile = expect_power_off(run, release, 1);
        let names: Vec<&str> = profile.milestones.iter().map(|m| &*m.name).collect();
        let expected = ["reset", "firmware entry", "long mode", "kernel loaded"];
        assert_eq!(names[..4], expected);
    }
}

#[test]
fn a_kernel_boots_with_kvms_own_irqchip() {
    let Some(guest) = guest("a_kernel_boots_with_kvms_own_irqchip") else {
        return;
    };
    let run = guest.boot(&guest.old, "", &["--irqchip", "kernel"]);
    expect_power_off(run, "6.1.0-", 1);
}

#[test]
fn an_unpacked_kernel_boots_by_both_protocols() {
    let Some(guest) = guest("an_unpacked_kernel_boots_by_both_protocols") else {
        return;
    };
    for protocol in ["linux", "pvh"] {
        let run = guest.boot(&guest.vmlinux, "", &["--boot", protocol]);
        expect_power_off(run, "6.1.0-", 1);
    }
}

#[test]
fn two_cpus() {
    let Some(guest) = guest("two_cpus") else {
        return;
    };
    if host_cpus() < 2 {
        skip("two_cpus", "this host has one CPU");
        return;
    }
    let run = guest.boot(&guest.new, "", &["--cpus", "2"]);
    expect_power_off(run, "6.12.", 2);
}

/// Boots a kernel that is not told to be quiet, with its console on a page.
fn by_page(guest: &Guest, kernel: &Path, arguments: &str, options: &[&str]) -> Command {
    let cmdline = format!("console=ttyS0 panic=-1 {arguments}");
    let page = [&["--console", "page"], options].concat();
    command(&guest.profile(kernel, &cmdline, &page))
}

#[test]
fn a_console_that_is_read_without_exits() {
    let Some(guest) = guest("a_console_that_is_read_without_exits") else {
        return;
    };
    let firmware = black_box::guest("firmware");
    let through = ["--firmware", arg(&firmware)];
    for (kernel, release, options) in [
        (&guest.old, "6.1.0-", &[][..]),
        (&guest.new, "6.12.", &[]),
        (&guest.old, "6.1.0-", &through),
    ] {
        let mut command = by_page(&guest, kernel, "rdinit=/init", options);
        let run = finish(command.spawn().unwrap());
        // As long as nobody knows a port, and then the port at the same page.
        let run = run.expect_stderr(&[
            "Linux version 6.",
            "bootconsole [uart8250] disabled",
            "ttyS0 at MMIO 0xd1400000 (irq = ",
            "is a 16550A",
        ]);
        for fault in ["unstable", "WARNING", "BUG", "[Firmware", "APIC ID"] {
            assert!(!run.stderr.contains(fault), "{fault}: {}", run.stderr);
        }
        let bytes = run.stderr.len() as u64;
        let profile = expect_power_off(run, release, 1);
        let (page, ports) = (
            exits(&profile, 48) + exits(&profile, 49),
            exits(&profile, 30),
        );
        println!("{release} {options:?}: {bytes} bytes, {page} to the page, {ports} to ports");
        assert!(page < bytes + bytes / 8, "{page} exits for {bytes} bytes");
        assert!(ports < 100 + bytes / 64, "{ports} port accesses");
    }
}

#[test]
fn a_shell_on_the_page_is_typed_at() {
    let Some(guest) = guest("a_shell_on_the_page_is_typed_at") else {
        return;
    };
    let mut command = by_page(&guest, &guest.old, "quiet rdinit=/bin/sh", &[]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut keys = child.stdin.take().unwrap();
    // One line longer than the receiver's FIFO.
    let line = "echo 'one line that is longer than the sixty-four bytes that the receiver holds'";
    let lines = format!("{line}\n/bin/busybox poweroff -f\n");
    keys.write_all(lines.as_bytes()).unwrap();
    drop(keys);
    let run = finish(child).expect_status(0);
    let run = run.expect_stderr(&["\none line that is longer than the sixty-four"]);
    assert_eq!(run.profile().end.kind, EndKind::PowerOff);
}

#[test]
fn a_random_seed_in_every_way() {
    let Some(guest) = guest("a_random_seed_in_every_way") else {
        return;
    };
    let firmware = black_box::guest("firmware");
    // Without what the CPU itself would give.
    let arguments = "rdinit=/init random.trust_cpu=off random.trust_bootloader=on";
    for options in [&[][..], &["--firmware", arg(&firmware)]] {
        let mut command = by_page(&guest, &guest.old, arguments, options);
        let run = finish(command.spawn().unwrap());
        // Before there is time.
        let run = run.expect_stderr(&["[    0.000000] random: crng init done"]);
        expect_power_off(run, "6.1.0-", 1);
    }
}

#[test]
fn a_reset_by_any_way_is_a_reset() {
    let Some(guest) = guest("a_reset_by_any_way_is_a_reset") else {
        return;
    };
    for way in ["", "reboot=k", "reboot=a"] {
        let arguments = format!("{way} -- reset");
        let run = guest.boot(&guest.old, &arguments, &[]).expect_status(0);
        assert_eq!(run.profile().end.kind, EndKind::Reset, "{way}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(guest) = guest("what_does_not_fit_is_refused") else {
        return;
    };
    let small = run(&["run", "--kernel", arg(&guest.old), "--memory", "32M"]);
    let small = small.expect_status(INPUT);
    small.expect_one_line(&["needs memory up to 68 MiB", "give more with --memory"]);
    // Between the kernel and the top of RAM, or the highest address that the kernel takes.
    let folder = tempdir().unwrap();
    for (memory, mib) in [("96M", 64_u64), ("4G", 2048)] {
        let initrd = folder.path().join(format!("initrd-{mib}"));
        let file = std::fs::File::create(&initrd).unwrap();
        file.set_len(mib << 20).unwrap();
        let kernel = ["--kernel", arg(&guest.old), "--memory", memory];
        let options = [&["run"][..], &kernel, &["--initrd", arg(&initrd)]].concat();
        let run = run(&options);
        if run.status != i32::from(INPUT) && run.stderr.contains("is more than this host has") {
            skip(
                "what_does_not_fit_is_refused",
                "4 GiB are more than this host has",
            );
            continue;
        }
        let run = run.expect_status(INPUT);
        run.expect_one_line(&["initrd", "does not fit"]);
    }
}

#[test]
fn software_kvm_is_no_place_for_linux() {
    if kvm() != Some(KvmKind::Software) {
        skip(
            "software_kvm_is_no_place_for_linux",
            "this KVM is not software",
        );
        return;
    }
    let folder = tempdir().unwrap();
    let kernel = black_box::bzimage::BzImage::default().write(folder.path());
    let run = run(&["run", "--kernel", arg(&kernel)]).expect_status(NO_KVM);
    run.expect_one_line(&["is Linux", "software KVM", "cargo xtask run --on amd-lab"]);
}
