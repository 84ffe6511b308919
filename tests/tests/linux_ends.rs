//! Linux that cannot go on, stops, hangs or ends itself, and images that are no good: each has its
//! status and its line, and the profile comes out.
// Helpers stop a test as its own assertions do.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use black_box::linux::{Guest, guest};
use black_box::{Run, arg, command, finish, run};
use exitvisor::profile::EndKind;
use exitvisor::status::{CRASH, INPUT, INTERRUPTED, TIMEOUT, TRIPLE_FAULT};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::{TempDir, tempdir};

/// Boots as given, without an initramfs unless there is one among the options.
fn boot(kernel: &Path, cmdline: &str, options: &[&str]) -> Run {
    let cmdline = format!("console=ttyS0 {cmdline}");
    run(&[&profile(kernel, &cmdline)[..], options].concat())
}

fn profile<'a>(kernel: &'a Path, cmdline: &'a str) -> [&'a str; 9] {
    let image = ["profile", "--kernel", arg(kernel), "--memory", "256M"];
    let [a, b, c, d, e] = image;
    [a, b, c, d, e, "--cmdline", cmdline, "--format", "json"]
}

/// What a run that the guest did not end well must have: its status, the word for it, and a profile that
/// says the same.
#[track_caller]
fn expect_end(run: Run, status: u8, kind: EndKind, words: &[&str]) {
    let run = run.expect_status(status).expect_stderr(words);
    let profile = run.profile();
    assert_eq!(profile.end.kind, kind, "{}", run.stderr);
    assert_eq!(profile.end.cut_short, kind != EndKind::Reset);
    assert!(profile.total.total > 0);
}

/// A copy of a kernel, changed.
fn changed(kernel: &Path, change: impl FnOnce(&mut Vec<u8>)) -> (TempDir, PathBuf) {
    let mut bytes = std::fs::read(kernel).unwrap();
    change(&mut bytes);
    let folder = tempdir().unwrap();
    let path = folder.path().join("vmlinuz");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

#[test]
fn a_panic_is_a_crash_whether_it_resets_or_stops() {
    let Some(Guest { old, new, .. }) = guest("a_panic_is_a_crash_whether_it_resets_or_stops")
    else {
        return;
    };
    // There is no root file system. A kernel that stops would do so until the time limit.
    for (kernel, cmdline) in [(&new, "panic=-1 quiet"), (&old, "panic=0 quiet")] {
        let run = boot(kernel, cmdline, &["--timeout", "100s"]);
        let words = ["the guest's kernel panicked: VFS: Unable to mount root fs"];
        expect_end(run, CRASH, EndKind::Crash, &words);
    }
    // Nor does it boot for ever.
    let options = ["--timeout", "100s", "--on-reset", "continue"];
    let run = boot(&old, "panic=-1 quiet", &options);
    expect_end(run, CRASH, EndKind::Crash, &["panicked"]);
}

#[test]
fn init_that_ends_is_a_panic() {
    let Some(Guest { old, initramfs, .. }) = guest("init_that_ends_is_a_panic") else {
        return;
    };
    let options = ["--initrd", arg(&initramfs), "--timeout", "100s"];
    let run = boot(&old, "panic=-1 quiet rdinit=/bin/busybox", &options);
    let words = ["the guest's kernel panicked: Attempted to kill init!"];
    expect_end(run, CRASH, EndKind::Crash, &words);
}

#[test]
fn a_triple_fault_is_one() {
    let Some(Guest { old, initramfs, .. }) = guest("a_triple_fault_is_one") else {
        return;
    };
    let options = ["--initrd", arg(&initramfs), "--timeout", "100s"];
    let run = boot(&old, "quiet rdinit=/init reboot=t -- reset", &options);
    let words = ["triple fault on vCPU 0"];
    expect_end(run, TRIPLE_FAULT, EndKind::TripleFault, &words);
}

#[test]
fn a_hang_at_each_stage_ends_at_the_time_limit() {
    let Some(Guest { old, initramfs, .. }) = guest("a_hang_at_each_stage_ends_at_the_time_limit")
    else {
        return;
    };
    let limit = ["--timeout", "15s"];
    // What is unpacked is damaged: the code that unpacks it stops, with interrupts off, and says
    // nothing where no early console is.
    let (_folder, damaged) = changed(&old, |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle..middle + 4096].fill(0xA5);
    });
    let run = boot(&damaged, "quiet", &limit);
    let words = ["time limit", "halted with interrupts off"];
    expect_end(run, TIMEOUT, EndKind::Timeout, &words);
    // It is said where it can be.
    let cmdline = "earlyprintk=ttyS0";
    let run = boot(&damaged, cmdline, &["--timeout", "100s"]);
    expect_end(run, CRASH, EndKind::Crash, &["panicked: it stopped"]);
    // In user space.
    let options = ["--initrd", arg(&initramfs), "--timeout", "10s"];
    let run = boot(&old, "quiet rdinit=/init -- idle", &options);
    expect_end(run, TIMEOUT, EndKind::Timeout, &["time limit"]);
    // Before anything could be done.
    let run = boot(&old, "quiet", &["--timeout", "100ms"]);
    expect_end(run, TIMEOUT, EndKind::Timeout, &["time limit"]);
}

#[test]
fn an_interrupted_boot_has_its_profile() {
    let Some(Guest { old, .. }) = guest("an_interrupted_boot_has_its_profile") else {
        return;
    };
    let mut start = command(&profile(&old, "console=ttyS0"));
    let child = start.spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let words = ["interrupted by Ctrl-C"];
    expect_end(finish(child), INTERRUPTED, EndKind::Interrupted, &words);
}

#[test]
fn a_flood_of_input_drowns_nobody() {
    let Some(Guest { new, initramfs, .. }) = guest("a_flood_of_input_drowns_nobody") else {
        return;
    };
    let options = ["--initrd", arg(&initramfs), "--timeout", "100s"];
    let cmdline = "console=ttyS0 panic=-1 rdinit=/init quiet";
    let mut child = command(&[&profile(&new, cmdline)[..], &options].concat())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    // Ends with the reader: a broken pipe.
    let flood = std::thread::spawn(move || {
        let line = b"\x03\x1a\xff\0what nobody asked for\r\n".repeat(2000);
        let mut sent = 0_u64;
        while input.write_all(&line).is_ok() && sent < 256 << 20 {
            sent += line.len() as u64;
        }
    });
    let run = finish(child).expect_status(0);
    assert_eq!(run.profile().end.kind, EndKind::PowerOff);
    flood.join().unwrap();
}

#[test]
fn a_real_kernel_truncated_or_of_another_kind_is_refused() {
    let Some(Guest { old, .. }) = guest("a_real_kernel_truncated_or_of_another_kind_is_refused")
    else {
        return;
    };
    let whole = std::fs::metadata(&old).unwrap().len();
    for bytes in [
        1,
        0x1F0,
        0x202,
        0x264,
        0x400,
        0x8000,
        whole / 2,
        whole - 1024,
    ] {
        let (_folder, kernel) = changed(&old, |b| b.truncate(bytes as usize));
        let run = run(&["run", "--kernel", arg(&kernel)]).expect_status(INPUT);
        run.expect_one_line(&["kernel", arg(&kernel)]);
    }
    // Offsets of the header's fields: linux/Documentation/arch/x86/boot.rst.
    let cases: [(usize, &[u8], &str); 4] = [
        (0x206, &[0x0B, 0x02], "2.11"),
        (0x211, &[0x00], "zImage"),
        (0x236, &[0x00, 0x00], "without 64-bit entry"),
        (0x258, &[0xFF; 8], "header"),
    ];
    for (at, with, why) in cases {
        let (_folder, kernel) = changed(&old, |b| b[at..at + with.len()].copy_from_slice(with));
        let run = run(&["run", "--kernel", arg(&kernel)]).expect_status(INPUT);
        run.expect_one_line(&["kernel", why]);
    }
}

/// Whatever a header says, and whatever code it makes run: an end within the limit, and no panic of ours.
#[test]
fn a_damaged_kernel_ends_cleanly() {
    let Some(Guest { old, .. }) = guest("a_damaged_kernel_ends_cleanly") else {
        return;
    };
    let (_folder, kernel) = changed(&old, |_| {});
    let file = std::fs::File::options().write(true).open(&kernel).unwrap();
    let good = std::fs::read(&old).unwrap();
    // Two bytes at a time, in the header and where the kernel is entered; a fixed sequence.
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize % below
    };
    let entry = (usize::from(good[0x1F1]) + 1) * 512 + 0x200;
    for round in 0..24 {
        let (from, room) = if round % 2 == 0 {
            (0x1F1, 0x90)
        } else {
            (entry, 0x180)
        };
        let places: Vec<usize> = (0..2).map(|_| from + random(room)).collect();
        for &place in &places {
            file.write_all_at(&[random(256) as u8], place as u64)
                .unwrap();
        }
        let run = boot(&kernel, "quiet panic=-1", &["--timeout", "1s"]);
        let ours = [INPUT, TIMEOUT, TRIPLE_FAULT, CRASH, 83, 64];
        let known = run.status == 0 || ours.iter().any(|&s| run.status == i32::from(s));
        assert!(known, "{places:x?}: {run:#?}");
        for place in places {
            file.write_all_at(&good[place..=place], place as u64)
                .unwrap();
        }
    }
}
