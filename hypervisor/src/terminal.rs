//! The terminal: raw while the guest owns it, restored whatever happens; and how large it is.

use std::io::{self, IsTerminal, Stdin};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::termios::{
    InputFlags, LocalFlags, OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr,
};

/// Ctrl-]: ends the run while the guest owns the terminal, where Ctrl-C is the guest's.
pub const ESCAPE_KEY: u8 = 0x1D;

/// The size of a window, in characters; 0 where the terminal does not know it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// The size of the terminal that the run was started on: that of standard input, else of standard output,
/// else of standard error; `None` if none of them is a terminal (ioctl_tty(2), `TIOCGWINSZ`).
pub fn size() -> Option<Size> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]
        .into_iter()
        .find_map(size_of)
}

fn size_of(terminal: BorrowedFd<'_>) -> Option<Size> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the descriptor is open, and the kernel writes a `winsize`, or nothing, through a pointer to
    // one that lives as long as the call.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (result == 0).then_some(Size {
        columns: size.ws_col,
        rows: size.ws_row,
    })
}

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
