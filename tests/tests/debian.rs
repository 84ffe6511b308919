//! A whole Debian on virtio devices: to its login prompt and back down, what it writes stays, and its
//! journal recovers what a VMM that was killed left behind.
// Helpers stop a test as its own assertions do.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use black_box::{command, skip};

/// A boot takes half a minute in a lab on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// What a lab brings along.
struct Debian {
    kernel: String,
    initrd: String,
    disk: String,
}

/// Debian on 6.12, or a word on why there is none.
fn debian(test: &str) -> Option<Debian> {
    let variable = |name| std::env::var(name).ok();
    if let Some(why) = variable("EXITVISOR_DEBIAN_MISSING") {
        skip(test, &format!("no Debian could be made: {why}"));
        return None;
    }
    let found = || {
        Some(Debian {
            kernel: variable("EXITVISOR_LINUX_6_12")?,
            initrd: variable("EXITVISOR_DEBIAN_6_12")?,
            disk: variable("EXITVISOR_DEBIAN_DISK")?,
        })
    };
    let found = found();
    if found.is_none() {
        skip(
            test,
            "Debian is booted in the AMD lab: cargo xtask test --on amd-lab",
        );
    }
    found
}

/// A Debian that runs, and who types at its console. Killed when dropped.
struct Machine {
    child: Child,
    keyboard: ChildStdin,
    screen: Receiver<Vec<u8>>,
    /// What has been shown and not been looked for yet.
    shown: String,
    commands: u32,
}

impl Debian {
    /// Boots, and logs in.
    fn boot(&self) -> Machine {
        let mut child = command(&[
            "run",
            "--kernel",
            &self.kernel,
            "--initrd",
            &self.initrd,
            "--disk",
            &self.disk,
            "--memory",
            "512M",
            "--rng",
            "--cmdline",
            "console=ttyS0 root=/dev/vda ro reboot=k panic=-1",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
        let (to_us, screen) = mpsc::channel();
        let mut stdout = child.stdout.take().unwrap();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = stdout.read(&mut bytes) {
                if to_us.send(bytes[..read].to_vec()).is_err() {
                    break;
                }
            }
        });
        let mut machine = Machine {
            keyboard: child.stdin.take().unwrap(),
            child,
            screen,
            shown: String::new(),
            commands: 0,
        };
        machine.wait_for("exitvisor login: ");
        machine.type_in("root\n");
        machine.wait_for(":~# ");
        // The kernel shall not speak into what commands print: a lab that stands still makes it complain.
        machine.does("dmesg -n 1");
        machine
    }
}

impl Machine {
    fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
        self.keyboard.flush().unwrap();
    }

    /// Waits until this is shown; all that was shown before it.
    fn wait_for(&mut self, text: &str) -> String {
        let start = Instant::now();
        loop {
            if let Some(at) = self.shown.find(text) {
                let rest = self.shown.split_off(at + text.len());
                let mut before = std::mem::replace(&mut self.shown, rest);
                before.truncate(at);
                return before;
            }
            match self.screen.recv_timeout(Duration::from_millis(100)) {
                Ok(bytes) => self.shown += &String::from_utf8_lossy(&bytes),
                Err(RecvTimeoutError::Timeout) if start.elapsed() < PATIENCE => {}
                Err(error) => panic!("waited in vain for {text:?} ({error}): {}", self.shown),
            }
        }
    }

    /// Has a command done; what it printed.
    fn does(&mut self, command: &str) -> String {
        self.commands += 1;
        let number = self.commands;
        // What is typed is echoed; only what is printed has these words whole.
        self.type_in(&format!(
            "echo be''gin-{number}; {command}; echo e''nd-{number}\n"
        ));
        self.wait_for(&format!("begin-{number}\r\n"));
        self.wait_for(&format!("end-{number}\r\n"))
            .replace('\r', "")
    }

    /// Powers it off, and waits for the VMM's end.
    fn power_off(mut self) {
        self.type_in("poweroff\n");
        self.wait_for("Power down");
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            assert!(start.elapsed() < PATIENCE, "it does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// systemd has started all that it was to start, the drivers are those of virtio, and 100 MB that were
/// written before it was powered off are there when it is booted again.
#[test]
fn debian_keeps_its_data() {
    let Some(debian) = debian("debian_keeps_its_data") else {
        return;
    };
    let mut machine = debian.boot();
    assert_eq!(
        machine.does("systemctl is-system-running --wait").trim(),
        "running"
    );
    assert_eq!(
        machine.does("findmnt -no SOURCE,FSTYPE /").trim(),
        "/dev/vda ext4"
    );
    let rng = machine.does("cat /sys/class/misc/hw_random/rng_current");
    assert_eq!(rng.trim(), "virtio_rng.0");
    machine.does("dd if=/dev/urandom of=/root/big bs=1M count=100; sync");
    let sum = machine.does("md5sum /root/big");
    assert!(sum.contains("/root/big"), "{sum}");
    machine.power_off();

    let mut machine = debian.boot();
    let checked = machine.does("journalctl -b -u systemd-fsck-root --no-pager");
    assert!(checked.contains(": clean,"), "{checked}");
    assert_eq!(machine.does("md5sum /root/big"), sum);
    machine.does("rm /root/big");
    machine.power_off();
}

/// A VMM that is killed in mid-write is a power cut: what was synced is there, and the journal is replayed.
#[test]
fn a_killed_vmm_is_a_power_cut() {
    let Some(debian) = debian("a_killed_vmm_is_a_power_cut") else {
        return;
    };
    let mut machine = debian.boot();
    machine.does("dd if=/dev/urandom of=/root/synced bs=1M count=10; sync");
    let sum = machine.does("md5sum /root/synced");
    machine.type_in(
        "i=0; while :; do i=$((i+1)); echo $i >/root/file$((i%500)); \
         dd if=/dev/zero of=/root/more bs=1M count=8 conv=fsync 2>/dev/null; echo rou''nd-$i; done\n",
    );
    machine.wait_for("round-3\r\n");
    machine.child.kill().unwrap();
    drop(machine);

    let mut machine = debian.boot();
    let log = machine.does("dmesg | grep EXT4-fs");
    assert!(log.contains("recovery complete"), "{log}");
    assert_eq!(machine.does("md5sum /root/synced"), sum);
    assert_eq!(
        machine.does("systemctl is-system-running --wait").trim(),
        "running"
    );
    machine.does("rm -f /root/synced /root/more /root/file*");
    machine.power_off();
}
