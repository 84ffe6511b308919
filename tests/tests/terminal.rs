//! The terminal: the guest's while it listens, and as it was before once the run is over.
// Helpers stop a test as its own assertions do.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use black_box::code::{GREETING, echoing, listening, listening_and_flooding, spinning};
use black_box::elf::Elf;
use black_box::{Live, arg, command, needs_kvm, skip};
use exitvisor::status::{HUNG_UP, INTERRUPTED, TERMINATED, TIMEOUT};
use exitvisor::terminal::ESCAPE_KEY;
use nix::fcntl::{FcntlArg, fcntl};
use nix::pty::openpty;
use nix::sys::signal::Signal;
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use tempfile::{TempDir, tempdir};

const CTRL_C: u8 = 3;
const GIVEN: &str = "exitvisor: the guest has the terminal; Ctrl-] ends the run\n";

/// A guest on a terminal of its own: standard input is the terminal, outputs are pipes.
struct Session {
    keys: File,
    terminal: OwnedFd,
    before: Termios,
    live: Live,
    _folder: TempDir,
}

/// A terminal: the end with the keys, the end for programs.
fn terminal() -> (File, OwnedFd) {
    let pty = openpty(None, None).unwrap();
    (File::from(pty.master), pty.slave)
}

impl Session {
    fn start(elf: &Elf, options: &[&str]) -> Self {
        Self::with(elf, options, |_| ())
    }

    fn with(elf: &Elf, options: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let folder = tempdir().unwrap();
        let image = elf.write(folder.path());
        let args = [&["run", "--kernel", arg(&image)], options].concat();
        let mut command = command(&args);
        let (keys, terminal) = terminal();
        command.stdin(terminal.try_clone().unwrap());
        change(&mut command);
        Self {
            keys,
            before: tcgetattr(terminal.as_fd()).unwrap(),
            terminal,
            live: Live::of(command.spawn().unwrap()),
            _folder: folder,
        }
    }

    fn now(&self) -> Termios {
        tcgetattr(self.terminal.as_fd()).unwrap()
    }

    /// Waits until the guest has the terminal.
    #[track_caller]
    fn wait_for_raw(&mut self) {
        self.live.wait_for(GIVEN);
        assert!(self.before.local_flags.contains(LocalFlags::ICANON));
        let flags = self.now().local_flags;
        let cooked = LocalFlags::ICANON | LocalFlags::ISIG | LocalFlags::ECHO;
        assert!(!flags.intersects(cooked), "{flags:?}");
    }

    fn press(&mut self, keys: &[u8]) {
        self.keys.write_all(keys).unwrap();
    }

    /// Waits for the end and checks that the terminal is as it was.
    #[track_caller]
    fn finish(self, status: u8) -> black_box::Run {
        let run = self.live.finish().expect_status(status);
        let now = tcgetattr(self.terminal.as_fd()).unwrap();
        assert_eq!(now, self.before, "the terminal is not as it was");
        run
    }
}

#[test]
fn the_escape_key_ends_a_run() {
    needs_kvm!("the_escape_key_ends_a_run");
    let mut session = Session::start(&listening(), &[]);
    session.wait_for_raw();
    session.press(&[ESCAPE_KEY]);
    let run = session.finish(INTERRUPTED);
    run.expect_stderr(&[GIVEN, "exitvisor: cut short: interrupted by Ctrl-]\n"]);
}

#[test]
fn a_terminal_is_given_even_if_nobody_can_be_told() {
    needs_kvm!("a_terminal_is_given_even_if_nobody_can_be_told");
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut session = Session::with(&listening(), &["--timeout", "500ms"], |command| {
        command.stderr(full);
    });
    session.live.wait_for(GREETING);
    session.finish(TIMEOUT);
}

#[test]
fn keys_are_the_guests_ctrl_c_too() {
    needs_kvm!("keys_are_the_guests_ctrl_c_too");
    let mut session = Session::start(&echoing(), &[]);
    session.wait_for_raw();
    session.press(b"hello\r");
    session.press(&[CTRL_C, 0x1A, 0x11, 4, b'\n', 0xFF]);
    session.live.wait_for("hello\r\u{3}\u{1a}\u{11}\u{4}\n");
    // What comes before the escape key is the guest's, what comes behind it nobody's.
    session.press(b"bye\n");
    session.live.wait_for("bye\n");
    session.press(&[b'x', ESCAPE_KEY, b'y']);
    let run = session.finish(INTERRUPTED);
    // One of "bye".
    assert_eq!(run.stdout.matches('y').count(), 1, "{run:#?}");
}

#[test]
fn more_keys_than_the_uart_has_room_for() {
    needs_kvm!("more_keys_than_the_uart_has_room_for");
    let mut session = Session::start(&echoing(), &[]);
    session.wait_for_raw();
    let many: String = ('a'..='z').cycle().take(1500).chain(['\n']).collect();
    session.press(many.as_bytes());
    session.live.wait_for(&many);
    session.press(&[ESCAPE_KEY]);
    session.finish(INTERRUPTED);
}

#[test]
fn the_escape_key_behind_keys_that_the_guest_does_not_take() {
    needs_kvm!("the_escape_key_behind_keys_that_the_guest_does_not_take");
    let mut session = Session::start(&listening(), &["--timeout", "2s"]);
    session.wait_for_raw();
    session.press(&[b'x'; 1000]);
    session.press(&[ESCAPE_KEY]);
    session.finish(INTERRUPTED);
}

#[test]
fn every_end_restores_the_terminal() {
    needs_kvm!("every_end_restores_the_terminal");
    for (signal, status) in [
        (Signal::SIGTERM, TERMINATED),
        (Signal::SIGINT, INTERRUPTED),
        (Signal::SIGHUP, HUNG_UP),
    ] {
        let mut session = Session::start(&listening(), &[]);
        session.wait_for_raw();
        session.live.signal(signal);
        session.finish(status);
    }
    let mut session = Session::start(&listening(), &["--timeout", "400ms"]);
    session.wait_for_raw();
    session.finish(TIMEOUT);
}

#[test]
fn a_guest_that_does_not_listen_leaves_the_terminal_alone() {
    needs_kvm!("a_guest_that_does_not_listen_leaves_the_terminal_alone");
    let mut session = Session::start(&spinning(), &["--timeout", "300ms"]);
    session.live.wait_for(GREETING);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(session.now(), session.before);
    // No escape key: it is not the guest's terminal.
    session.press(&[ESCAPE_KEY]);
    session.finish(TIMEOUT);
}

#[test]
fn a_terminal_that_is_gone() {
    needs_kvm!("a_terminal_that_is_gone");
    let mut session = Session::start(&listening(), &["--timeout", "900ms"]);
    session.wait_for_raw();
    let Session { keys, live, .. } = session;
    drop(keys);
    std::thread::sleep(Duration::from_millis(600));
    // The guest is halted, and there is nothing else to do.
    let busy = live.busy();
    assert!(busy < Duration::from_millis(200), "busy for {busy:?}");
    live.finish().expect_status(TIMEOUT);
}

#[test]
fn the_escape_key_while_the_console_is_stuck() {
    needs_kvm!("the_escape_key_while_the_console_is_stuck");
    let folder = tempdir().unwrap();
    let image = listening_and_flooding().write(folder.path());
    let (mut keys, terminal) = terminal();
    let (reader, writer) = std::io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let mut command = command(&["run", "--timeout", "10s", "--kernel", arg(&image)]);
    command.stdin(terminal).stdout(writer);
    let mut live = Live::of(command.spawn().unwrap());
    live.wait_for(GIVEN);
    // Long enough to fill the pipe.
    std::thread::sleep(Duration::from_millis(500));
    keys.write_all(&[ESCAPE_KEY]).unwrap();
    live.finish().expect_status(INTERRUPTED);
    drop(reader);
}

#[test]
fn ctrl_c_before_the_guest_listens() {
    needs_kvm!("ctrl_c_before_the_guest_listens");
    let folder = tempdir().unwrap();
    let image = spinning().write(folder.path());
    let (mut keys, terminal) = terminal();
    // Ctrl-C is a signal for those whose controlling terminal it is.
    let mut setsid = Command::new("setsid");
    setsid
        .args(["-c", arg(black_box::exitvisor())])
        .args(["run", "--kernel", arg(&image)])
        .stdin(terminal)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let Ok(child) = setsid.spawn() else {
        return skip("ctrl_c_before_the_guest_listens", "no setsid");
    };
    let mut live = Live::of(child);
    live.wait_for(GREETING);
    keys.write_all(&[CTRL_C]).unwrap();
    let run = live.finish().expect_status(INTERRUPTED);
    run.expect_stderr(&["exitvisor: cut short: interrupted by Ctrl-C\n"]);
}

#[test]
fn input_from_a_pipe_and_a_file() {
    needs_kvm!("input_from_a_pipe_and_a_file");
    let folder = tempdir().unwrap();
    let image = echoing().write(folder.path());
    let text = "input\u{1d}, and the escape key is a byte like any other\n".repeat(20);
    let path = black_box::file(folder.path(), "input", text.as_bytes());
    let (pipe, mut writer) = std::io::pipe().unwrap();
    writer.write_all(text.as_bytes()).unwrap();
    drop(writer);
    for stdin in [Stdio::from(pipe), Stdio::from(File::open(&path).unwrap())] {
        let mut command = command(&["run", "--kernel", arg(&image)]);
        let mut live = Live::of(command.stdin(stdin).spawn().unwrap());
        live.wait_for(&text);
        live.signal(Signal::SIGINT);
        let run = live.finish().expect_status(INTERRUPTED);
        assert_eq!(run.stdout, format!("{GREETING}{text}"));
    }
}
