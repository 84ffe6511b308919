//! The terminal: raw while the guest owns it, restored whatever happens.

use std::io::{self, IsTerminal, Stdin};
use std::os::fd::AsFd;

use nix::sys::termios::{
    InputFlags, LocalFlags, OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr,
};

/// Ctrl-]: ends the run while the guest owns the terminal, where Ctrl-C is the guest's.
pub const ESCAPE_KEY: u8 = 0x1D;

/// A terminal in raw mode; dropping it restores the terminal.
#[derive(Debug)]
pub struct RawMode {
    stdin: Stdin,
    before: Termios,
}

impl RawMode {
    /// Gives the terminal on standard input to the guest; `None` if there is none.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        // Output goes on as before: the guest's consoles end lines with CR LF or LF alone.
        raw.output_flags |= before.output_flags & (OutputFlags::OPOST | OutputFlags::ONLCR);
        debug_assert!(!raw.local_flags.contains(LocalFlags::ISIG));
        debug_assert!(!raw.input_flags.contains(InputFlags::ICRNL));
        tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw)?;
        Ok(Some(Self { stdin, before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // The terminal may be gone; then there is nothing to restore.
        let _ = tcsetattr(self.stdin.as_fd(), SetArg::TCSANOW, &self.before);
    }
}
