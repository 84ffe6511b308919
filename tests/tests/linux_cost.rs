//! What a boot of Linux may cost: exits that time does not drive, up to the first line of user space.
//! `cargo xtask bench linux` counts them otherwise (by tracefs, under a clock of instructions), beside
//! other VMMs.
// Helpers stop a test as its own assertions do.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use black_box::linux::{console, guest};
use black_box::{arg, run};
use exitvisor::profile::Profile;

/// Debian's 6.1 to user space, nothing armed, with these arguments and options.
#[track_caller]
fn boot(test: &str, arguments: &str, options: &[&str]) -> Option<Profile> {
    let initramfs = guest(test)?.initramfs;
    boot_with(test, &initramfs, arguments, options)
}

/// The same with another initramfs.
#[track_caller]
fn boot_with(test: &str, initramfs: &Path, arguments: &str, options: &[&str]) -> Option<Profile> {
    let guest = guest(test)?;
    let cmdline = format!("console=ttyS0 reboot=k panic=-1 rdinit=/init {arguments} -- idle");
    let standard = [
        "profile",
        "--kernel",
        arg(&guest.old),
        "--initrd",
        arg(initramfs),
        "--memory",
        "256M",
        "--cmdline",
        &cmdline,
        "--ledger",
        "counts",
        "--milestones",
        "none",
        "--until",
        "console:exitvisor-guest: user space",
        "--timeout",
        "180s",
        "--format",
        "json",
    ];
    let run = run(&[&standard[..], options].concat()).expect_status(0);
    Some(run.profile())
}

/// Exits that time does not drive. Their number is the guest's and the machine's, not the host's
/// speed's, but for a few: what Linux does while it waits depends on how long that takes.
#[track_caller]
fn fixed(profile: &Profile) -> u64 {
    let fixed = profile.fixed(&profile.total).unwrap();
    println!(
        "{} exits, {} without what time drives: {:?}",
        fixed.total,
        fixed.count(),
        fixed.driven
    );
    assert_eq!(fixed.unknown, 0);
    fixed.count()
}

#[test]
fn a_quiet_boot_costs_no_more_than_its_budget() {
    let test = "a_quiet_boot_costs_no_more_than_its_budget";
    let Some(profile) = boot(test, "quiet", &[]) else {
        return;
    };
    let fixed = fixed(&profile);
    assert!(fixed <= 1_200, "{fixed} exits");
}

#[test]
fn a_whole_kernel_log_costs_no_more_than_its_budget() {
    let test = "a_whole_kernel_log_costs_no_more_than_its_budget";
    let Some(profile) = boot(test, "", &[]) else {
        return;
    };
    let fixed = fixed(&profile);
    assert!(fixed <= 42_000, "{fixed} exits");
}

#[test]
fn a_console_by_page_halves_that() {
    let test = "a_console_by_page_halves_that";
    let Some(profile) = boot(test, "", &["--console", "page"]) else {
        return;
    };
    let fixed = fixed(&profile);
    assert!(fixed <= 22_000, "{fixed} exits");
}

/// Up to a line that /init prints when the kernel's log has left; drivers in the initramfs.
#[test]
fn a_virtio_console_costs_no_more_than_its_budget() {
    let test = "a_virtio_console_costs_no_more_than_its_budget";
    let Some(initramfs) = console(test) else {
        return;
    };
    let Some(profile) = boot_with(test, &initramfs.old, "", &["--console", "virtio"]) else {
        return;
    };
    let fixed = fixed(&profile);
    assert!(fixed <= 3_000, "{fixed} exits");
    // The whole log came: a line by two kicks, for /init prints it, and without an interrupt for each.
    let console = &profile.devices[0];
    assert!(console.from_guest > 15_000, "{console:?}");
    assert!((400..=700).contains(&console.kicks), "{console:?}");
    assert!(console.interrupts <= 30, "{console:?}");
}
