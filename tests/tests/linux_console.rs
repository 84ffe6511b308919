//! Linux on the virtio console (`--console virtio`, hvc0): its log, what is typed, and the window.
// Helpers stop a test as its own assertions do.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use black_box::linux::{LIMIT, console, guest};
use black_box::{Live, arg, command, run};
use exitvisor::status::{CRASH, INTERRUPTED};
use exitvisor::terminal::ESCAPE_KEY;
use nix::libc;
use nix::pty::{Winsize, openpty};
use nix::sys::signal::Signal;

/// The arguments that boot it quietly into a shell.
fn shell(kernel: &Path, initramfs: &Path) -> Vec<String> {
    options(kernel, initramfs, "quiet panic=-1 rdinit=/init -- shell")
}

/// The arguments that boot Debian's 6.1 with the console's drivers, and with what its /init is to do.
fn options(kernel: &Path, initramfs: &Path, cmdline: &str) -> Vec<String> {
    let all = [
        "--kernel",
        arg(kernel),
        "--initrd",
        arg(initramfs),
        "--memory",
        "256M",
    ];
    let rest = [
        "--console",
        "virtio",
        "--timeout",
        LIMIT,
        "--cmdline",
        cmdline,
    ];
    [&all[..], &rest]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect()
}

fn window(columns: u16, rows: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

#[test]
fn the_whole_log_is_on_hvc0() {
    let test = "the_whole_log_is_on_hvc0";
    let (Some(linux), Some(initramfs)) = (guest(test), console(test)) else {
        return;
    };
    for (kernel, initramfs) in [(linux.old, initramfs.old), (linux.new, initramfs.new)] {
        // A UART's name is taken for the console.
        let options = options(
            &kernel,
            &initramfs,
            "console=ttyS0,115200 panic=-1 rdinit=/init",
        );
        let json = ["profile".to_owned(), "--format".into(), "json".into()];
        let run = run(&[&json[..], &options].concat()).expect_status(0);
        let run = run.expect_stderr(&[
            "] Linux version 6.1",
            "8250.nr_uarts=0 console=hvc0 panic=-1",
            "exitvisor-guest: user space",
            "exitvisor-guest: 6.1",
        ]);
        // Nobody looked for the UART, and nobody found it.
        assert!(!run.stderr.contains("ttyS0"), "{}", run.stderr);
        let profile = run.profile();
        let device = &profile.devices[0];
        assert_eq!((device.name.as_str(), device.broken), ("console0", 0));
        assert!(
            device.from_guest > 10_000 && device.kicks > 500,
            "{device:?}"
        );
        assert_eq!(device.to_guest, 0);
    }
}

#[test]
fn what_is_typed_is_heard_and_a_panic_too() {
    let test = "what_is_typed_is_heard_and_a_panic_too";
    let (Some(linux), Some(initramfs)) = (guest(test), console(test)) else {
        return;
    };
    let options = shell(&linux.old, &initramfs.old);
    let mark = ["--milestone", "console:typed-42"].map(str::to_owned);
    let args = [&["run".to_owned()][..], &options, &mark].concat();
    let (stdin, mut keys) = std::io::pipe().unwrap();
    // Long before anybody listens; more than the guest has buffers for, in one line or in many.
    let many = format!("# {}\n", "x".repeat(60)).repeat(120);
    write!(keys, "{many}echo typed-$((6 * 7))\nexit 3\n").unwrap();
    let child = command(&args).stdin(stdin).stdout(Stdio::piped()).spawn();
    let run = Live::of(child.unwrap()).finish().expect_status(CRASH);
    assert!(run.stdout.contains("\ntyped-42"), "{}", run.stdout);
    run.expect_stderr(&[
        "the guest's kernel panicked: Attempted to kill init!",
        "typed-42",
    ]);
}

#[test]
fn a_terminal_and_its_window() {
    let test = "a_terminal_and_its_window";
    let (Some(linux), Some(initramfs)) = (guest(test), console(test)) else {
        return;
    };
    let options = shell(&linux.old, &initramfs.old);
    let pty = openpty(Some(&window(81, 26)), None).unwrap();
    let mut keys = File::from(pty.master);
    let mut command = command(&[&["run".to_owned()][..], &options].concat());
    command.stdin(pty.slave.try_clone().unwrap());
    let mut live = Live::of(command.spawn().unwrap());
    live.wait_for("exitvisor: the guest has the terminal; Ctrl-] ends the run\n");
    live.wait_for("# ");
    // Until it has heard of the window, which takes it a moment.
    let mut ask = |live: &mut Live, size: &str| {
        let start = Instant::now();
        while !live.printed().contains(size) {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "{}",
                live.printed()
            );
            keys.write_all(b"stty size\r").unwrap();
            thread::sleep(Duration::from_secs(1));
        }
    };
    ask(&mut live, "\n26 81");
    let now = window(133, 44);
    // SAFETY: the descriptor is a terminal's, and open; the kernel reads a `winsize`, which lives long
    // enough.
    let result = unsafe { libc::ioctl(pty.slave.as_raw_fd(), libc::TIOCSWINSZ, &raw const now) };
    assert_eq!(result, 0);
    live.signal(Signal::SIGWINCH);
    ask(&mut live, "\n44 133");
    assert!(
        live.printed().contains("stty size"),
        "what is typed is not echoed"
    );
    keys.write_all(&[ESCAPE_KEY]).unwrap();
    let run = live.finish().expect_status(INTERRUPTED);
    run.expect_stderr(&["exitvisor: cut short: interrupted by Ctrl-]\n"]);
}
