//! What Linux says on its console when it cannot go on: heard, so that a boot that failed is not
//! taken for one that ended well, nor waited for.
//!
//! A guest that panics may reset itself as if all were well (`panic=-1`), or stop for ever
//! (`panic=0`). The words are those of `panic()` (linux/kernel/panic.c) and of the code that unpacks
//! the kernel (linux/arch/x86/boot/compressed/error.c).

/// What stands before the message of a panic.
const PANIC: &str = "Kernel panic - not syncing: ";
/// What begins the line after which a kernel that does not reboot does nothing more.
const END: &str = "---[ end Kernel panic - not syncing";
/// The last words of the code that unpacks the kernel, which no line feed follows.
const HALTED: &str = "-- System halted";
/// Most bytes of a line that are looked at.
const ROOM: usize = 240;
/// Most bytes of a message that are told.
const TOLD: usize = 120;

/// What a line means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// The kernel panics, for this reason; it will stop, or reset the machine.
    Panic(String),
    /// Nothing more will come.
    End,
}

/// Listens to a console, byte by byte, within fixed room.
#[derive(Clone, Debug)]
pub struct Listener {
    line: [u8; ROOM],
    len: usize,
}

impl Default for Listener {
    fn default() -> Self {
        Self {
            line: [0; ROOM],
            len: 0,
        }
    }
}

impl Listener {
    /// Hears a byte; what a line means is known at its end.
    pub fn hear(&mut self, byte: u8) -> Option<Word> {
        if byte != b'\n' {
            if let Some(place) = self.line.get_mut(self.len) {
                *place = byte;
                self.len += 1;
            }
            let line = self.line.get(..self.len)?;
            return (line.trim_ascii() == HALTED.as_bytes()).then_some(Word::End);
        }
        let line = self.line.get(..std::mem::take(&mut self.len))?;
        let line = String::from_utf8_lossy(line);
        meaning(without_time(line.trim()))
    }
}

/// A line of the kernel's log without the time (and the caller) that may stand before it.
fn without_time(line: &str) -> &str {
    let mut rest = line;
    while let Some((_, after)) = rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
        rest = after.trim_start();
    }
    rest
}

fn meaning(line: &str) -> Option<Word> {
    if let Some(message) = line.strip_prefix(PANIC) {
        let clean = message.chars().filter(|c| !c.is_control());
        return Some(Word::Panic(clean.take(TOLD).collect()));
    }
    line.starts_with(END).then_some(Word::End)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn heard(text: &str) -> Vec<Word> {
        let mut listener = Listener::default();
        text.bytes().filter_map(|b| listener.hear(b)).collect()
    }

    #[test]
    fn a_panic_is_heard() {
        let text = "[    0.51] VFS: Unable to mount root fs\r\n\
                    [    0.512345][    T1] Kernel panic - not syncing: No working init found.\r\n\
                    [    0.6] ---[ end Kernel panic - not syncing: No working init found. ]---\r\n";
        let words = [Word::Panic("No working init found.".into()), Word::End];
        assert_eq!(heard(text), words);
        let text =
            "Kernel panic - not syncing: early\nXZ-compressed data is corrupt\n\n -- System halted";
        assert_eq!(heard(text), [Word::Panic("early".into()), Word::End]);
    }

    #[test]
    fn who_talks_of_a_panic_does_not_panic() {
        for text in [
            "see: Kernel panic - not syncing: x\n",
            "Kernel panic\n",
            "Kernel panic - not syncing: unfinished",
            "the -- System halted\n",
        ] {
            assert_eq!(heard(text), [], "{text}");
        }
    }

    #[test]
    fn a_long_message_is_cut() {
        let text = format!("{PANIC}{}\n", "x".repeat(4000));
        assert_eq!(heard(&text), [Word::Panic("x".repeat(TOLD))]);
    }

    proptest! {
        #[test]
        fn anything_can_be_heard(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut listener = Listener::default();
            for byte in bytes {
                listener.hear(byte);
            }
        }
    }
}
