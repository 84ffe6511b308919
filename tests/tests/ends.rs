//! How runs end that do not end by themselves: in bounded time, named, with the profile so far.
// Helpers stop a test as its own assertions do.
#![allow(clippy::unwrap_used)]

use std::io::{PipeReader, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use black_box::code::{
    GREETING, asking, asking_once, flooding, halted, hello, spinning, spinning_deaf,
    spinning_silently, triple_fault,
};
use black_box::elf::Elf;
use black_box::{Live, Run, arg, command, kvm, lab, needs_kvm, skip, start};
use exitvisor::profile::{EndKind, KvmKind};
use exitvisor::status::{HUNG_UP, INTERRUPTED, KVM_ERROR, TERMINATED, TIMEOUT, TRIPLE_FAULT};
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{SigSet, Signal};
use tempfile::{TempDir, tempdir};

/// A run that was ended ends within this time, on a busy machine too.
const AT_ONCE: Duration = Duration::from_secs(3);

/// An image, and the command that boots it.
struct Guest {
    _folder: TempDir,
    args: Vec<String>,
}

impl Guest {
    fn new(command: &str, elf: &Elf, options: &[&str]) -> Self {
        let folder = tempdir().unwrap();
        let image = elf.write(folder.path());
        let args = [&[command, "--kernel", arg(&image)], options].concat();
        Self {
            args: args.into_iter().map(str::to_owned).collect(),
            _folder: folder,
        }
    }

    fn run(&self) -> Run {
        black_box::run(&self.args)
    }

    fn start(&self) -> Live {
        Live::of(start(&self.args))
    }
}

/// Checks the profile on standard output: it says how the run was cut short.
#[track_caller]
fn cut_short(run: &Run, kind: EndKind, detail: &str) {
    let end = run.profile().end;
    assert_eq!((end.kind, end.cut_short), (kind, true), "{run:#?}");
    assert_eq!(i32::from(end.status), run.status);
    assert!(end.detail.contains(detail), "{run:#?}");
}

const JSON: [&str; 2] = ["--format", "json"];

#[test]
fn signals_end_a_run() {
    needs_kvm!("signals_end_a_run");
    for (signal, status, name) in [
        (Signal::SIGINT, INTERRUPTED, "interrupted by Ctrl-C"),
        (Signal::SIGTERM, TERMINATED, "interrupted by SIGTERM"),
        (Signal::SIGHUP, HUNG_UP, "interrupted by SIGHUP"),
    ] {
        for elf in [spinning(), halted()] {
            let guest = Guest::new("profile", &elf, &JSON);
            let mut live = guest.start();
            live.wait_for(GREETING);
            live.signal(signal);
            let run = live.finish().expect_status(status);
            assert!(run.took < AT_ONCE, "{run:#?}");
            cut_short(&run, EndKind::Interrupted, name);
            let said = format!("{GREETING}exitvisor: cut short: {name}\n");
            assert_eq!(run.stderr, said);
        }
    }
}

#[test]
fn an_interrupted_run_shows_its_report() {
    needs_kvm!("an_interrupted_run_shows_its_report");
    let guest = Guest::new("run", &spinning(), &[]);
    let mut live = guest.start();
    live.wait_for(GREETING);
    live.signal(Signal::SIGINT);
    let run = live.finish().expect_status(INTERRUPTED);
    assert_eq!(run.stdout, GREETING);
    run.expect_stderr(&["exitvisor: cut short: interrupted by Ctrl-C\n", "I/O"]);
}

#[test]
fn impatient_signals_change_nothing() {
    needs_kvm!("impatient_signals_change_nothing");
    let guest = Guest::new("run", &spinning(), &[]);
    let mut live = guest.start();
    live.wait_for(GREETING);
    // While they are blocked: before the run is over.
    live.signal(Signal::SIGINT);
    live.signal(Signal::SIGINT);
    let run = live.finish();
    // The second may come so late that the run is over and it counts as any signal does.
    assert!([130, -2].contains(&run.status), "{run:#?}");
}

#[test]
fn signals_that_come_together_do_not_cost_the_profile() {
    needs_kvm!("signals_that_come_together_do_not_cost_the_profile");
    let guest = Guest::new("profile", &spinning(), &JSON);
    let mut live = guest.start();
    live.wait_for(GREETING);
    // Stopped, so that all of them are there before it looks.
    for signal in [
        Signal::SIGSTOP,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGCONT,
    ] {
        live.signal(signal);
    }
    let run = live.finish();
    assert!([129, 130, 143].contains(&run.status), "{run:#?}");
    cut_short(&run, EndKind::Interrupted, "interrupted by");
}

#[test]
fn a_signal_that_ends_nothing_is_ignored() {
    needs_kvm!("a_signal_that_ends_nothing_is_ignored");
    let guest = Guest::new("run", &spinning(), &["--timeout", "500ms"]);
    let mut live = guest.start();
    live.wait_for(GREETING);
    for signal in [Signal::SIGWINCH, Signal::SIGCONT, Signal::SIGURG] {
        live.signal(signal);
    }
    live.finish().expect_status(TIMEOUT);
}

#[test]
fn a_stopped_run_goes_on() {
    needs_kvm!("a_stopped_run_goes_on");
    let guest = Guest::new("run", &spinning(), &["--timeout", "300ms"]);
    let mut live = guest.start();
    live.wait_for(GREETING);
    live.signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_millis(100));
    live.signal(Signal::SIGCONT);
    live.finish().expect_status(TIMEOUT);
}

#[test]
fn time_limits_name_what_the_guest_did() {
    needs_kvm!("time_limits_name_what_the_guest_did");
    for (elf, did) in [
        (spinning_silently(), "running at rip 0x100001"),
        (spinning(), "running at rip 0x10000b"),
        (
            spinning_deaf(),
            "running with interrupts off at rip 0x10000a",
        ),
        (halted(), "halted with interrupts off at rip 0x10000b"),
    ] {
        if did.starts_with("running with interrupts off") && lab().as_deref() == Some("intel") {
            // Bochs 2.7 takes no exit for the host's interrupts while the guest's are off.
            let why = "part of it: nothing stops a guest that spins with interrupts off";
            skip("time_limits_name_what_the_guest_did", why);
            continue;
        }
        let options = [&JSON[..], &["--timeout", "300ms"]].concat();
        let run = Guest::new("profile", &elf, &options).run();
        let run = run.expect_status(TIMEOUT);
        assert!(run.took > Duration::from_millis(300) && run.took < AT_ONCE);
        let detail = format!("time limit of 300ms reached: vCPU 0 was {did}");
        cut_short(&run, EndKind::Timeout, &detail);
        run.expect_stderr(&[&format!("exitvisor: cut short: {detail}\n")]);
    }
}

/// A signal mask outlives exec: some shells and services start us with all signals blocked.
#[test]
fn a_run_that_was_started_with_signals_blocked_ends_too() {
    needs_kvm!("a_run_that_was_started_with_signals_blocked_ends_too");
    let guest = Guest::new("run", &spinning(), &["--timeout", "300ms"]);
    let mut command = command(&guest.args);
    // SAFETY: it allocates nothing, and sigfillset and pthread_sigmask may be called between fork
    // and exec (signal-safety(7)).
    unsafe { command.pre_exec(|| Ok(SigSet::all().thread_block()?)) };
    let run = Live::of(command.spawn().unwrap()).finish();
    let run = run.expect_status(TIMEOUT);
    assert!(run.took < AT_ONCE, "{run:#?}");
}

#[test]
fn several_vcpus_end_too() {
    needs_kvm!("several_vcpus_end_too");
    let options = [&JSON[..], &["--timeout", "300ms", "--cpus", "4"]].concat();
    let run = Guest::new("profile", &spinning(), &options).run();
    let run = run.expect_status(TIMEOUT);
    assert!(run.took < AT_ONCE, "{run:#?}");
    assert_eq!(run.profile().vcpus.len(), 4);
}

#[test]
fn a_guest_that_is_faster_than_its_limit() {
    needs_kvm!("a_guest_that_is_faster_than_its_limit");
    let run = Guest::new("run", &hello(), &["--timeout", "1h"]).run();
    let run = run.expect_status(0).expect_one_line(&["status 0"]);
    assert_eq!(run.stdout, GREETING);
}

#[test]
fn a_triple_fault() {
    needs_kvm!("a_triple_fault");
    let run = Guest::new("profile", &triple_fault(), &JSON).run();
    let run = run.expect_status(TRIPLE_FAULT);
    assert!(run.took < AT_ONCE, "{run:#?}");
    cut_short(&run, EndKind::TripleFault, "triple fault on vCPU 0");
    let said = format!("{GREETING}exitvisor: cut short: triple fault on vCPU 0\n");
    assert_eq!(run.stderr, said);
}

#[test]
fn an_instruction_that_kvm_cannot_emulate() {
    if kvm() != Some(KvmKind::Software) {
        let why = "hardware KVM runs the instruction that software KVM cannot emulate";
        return black_box::skip("an_instruction_that_kvm_cannot_emulate", why);
    }
    // popcnt eax, ecx; hlt
    let elf = Elf::of_code(&[0xF3, 0x0F, 0xB8, 0xC1, 0xF4]);
    let run = Guest::new("profile", &elf, &JSON).run();
    let run = run.expect_status(KVM_ERROR);
    cut_short(
        &run,
        EndKind::KvmError,
        "at rip 0x100000: bytes f3 0f b8 c1 f4",
    );
    run.expect_one_line(&["cut short", "cannot emulate an instruction"]);
}

/// Starts a flooding guest whose console is a pipe that nobody reads, and that is full soon.
fn stuck(guest: &Guest) -> (Live, PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let mut command = command(&guest.args);
    command.stdout(writer);
    (Live::of(command.spawn().unwrap()), reader)
}

#[test]
fn a_console_that_nobody_reads_does_not_stop_the_time_limit() {
    needs_kvm!("a_console_that_nobody_reads_does_not_stop_the_time_limit");
    let guest = Guest::new("run", &flooding(), &["--timeout", "700ms"]);
    let (live, reader) = stuck(&guest);
    let run = live.finish().expect_status(TIMEOUT);
    assert!(run.took < AT_ONCE, "{run:#?}");
    run.expect_stderr(&["cut short: time limit of 700ms"]);
    drop(reader);
}

#[test]
fn a_console_that_nobody_reads_does_not_stop_signals() {
    needs_kvm!("a_console_that_nobody_reads_does_not_stop_signals");
    for (signal, status) in [(Signal::SIGINT, INTERRUPTED), (Signal::SIGTERM, TERMINATED)] {
        let guest = Guest::new("run", &flooding(), &[]);
        let (live, reader) = stuck(&guest);
        let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        assert_eq!(
            poll(&mut fds, 10_000_u16),
            Ok(1),
            "the guest prints nothing"
        );
        // Long enough to fill the pipe.
        std::thread::sleep(Duration::from_millis(500));
        live.signal(signal);
        let run = live.finish().expect_status(status);
        assert!(run.took < AT_ONCE, "{run:#?}");
    }
}

#[test]
fn a_profile_is_saved_even_if_nobody_reads_what_is_said() {
    needs_kvm!("a_profile_is_saved_even_if_nobody_reads_what_is_said");
    let folder = tempdir().unwrap();
    let saved = folder.path().join("profile.json");
    let options = [&JSON[..], &["--timeout", "500ms", "--output", arg(&saved)]].concat();
    let guest = Guest::new("profile", &flooding(), &options);
    let (reader, writer) = std::io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let mut command = command(&guest.args);
    let mut live = Live::of(command.stderr(writer).spawn().unwrap());
    // The pipe's end that the command holds.
    drop(command);
    live.wait_until("a profile", |_| saved.exists());
    let profile = exitvisor::profile::load::load(&saved).unwrap();
    assert_eq!(profile.end.kind, EndKind::Timeout);
    drop(reader);
    live.finish().expect_status(TIMEOUT);
}

/// A log of queries that cannot be written, or that nobody takes, is no reason to panic or to hang.
#[test]
fn a_query_log_that_nobody_reads_ends_nothing() {
    needs_kvm!("a_query_log_that_nobody_reads_ends_nothing");
    let guest = Guest::new("run", &asking_once(), &["--log-queries"]);
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full");
    let child = command(&guest.args).stderr(full().unwrap()).spawn();
    Live::of(child.unwrap()).finish().expect_status(0);

    let folder = tempdir().unwrap();
    let saved = folder.path().join("profile.json");
    let options = [&JSON[..], &["--timeout", "500ms", "--output", arg(&saved)]].concat();
    let guest = Guest::new(
        "run",
        &asking(),
        &[&options[..], &["--log-queries"]].concat(),
    );
    let (reader, writer) = std::io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let mut command = command(&guest.args);
    let mut live = Live::of(command.stderr(writer).spawn().unwrap());
    // The pipe's end that the command holds.
    drop(command);
    live.wait_until("a profile", |_| saved.exists());
    drop(reader);
    live.finish().expect_status(TIMEOUT);
}

#[test]
fn a_console_that_is_read_late_loses_nothing() {
    needs_kvm!("a_console_that_is_read_late_loses_nothing");
    let guest = Guest::new("run", &flooding(), &["--timeout", "50s"]);
    let (live, mut reader) = stuck(&guest);
    std::thread::sleep(Duration::from_millis(500));
    let mut taken = vec![0; 10_000];
    reader.read_exact(&mut taken).unwrap();
    assert!(taken.starts_with(GREETING.as_bytes()));
    assert!(taken[GREETING.len()..].iter().all(|&b| b == b'\n'));
    drop(reader);
    live.signal(Signal::SIGINT);
    live.finish().expect_status(INTERRUPTED);
}

#[test]
fn a_console_whose_reader_is_gone_ends_nothing() {
    needs_kvm!("a_console_whose_reader_is_gone_ends_nothing");
    for (elf, status) in [(flooding(), TIMEOUT), (hello(), 0)] {
        let guest = Guest::new("run", &elf, &["--timeout", "500ms"]);
        let (live, reader) = stuck(&guest);
        drop(reader);
        let run = live.finish().expect_status(status);
        assert!(run.took < AT_ONCE, "{run:#?}");
    }
}
