//! A line of text in a fixed buffer: built whole, then sent with one pass of OUTs.

use core::fmt;

/// Room of a [`Line`], in bytes.
pub const ROOM: usize = 512;

/// A line being built. What does not fit is cut off, never an error.
pub struct Line {
    bytes: [u8; ROOM],
    length: usize,
}

impl Line {
    /// An empty line.
    pub const fn new() -> Self {
        Self {
            bytes: [0; ROOM],
            length: 0,
        }
    }

    /// Appends text, whole characters only.
    pub fn text(&mut self, text: &str) -> &mut Self {
        let room = ROOM - self.length;
        let mut n = text.len().min(room);
        while !text.is_char_boundary(n) {
            n -= 1;
        }
        self.bytes[self.length..self.length + n].copy_from_slice(&text.as_bytes()[..n]);
        self.length += n;
        self
    }

    /// Appends a number in decimal: a tenth of what `core::fmt` would spend on it.
    pub fn number(&mut self, mut number: u64) -> &mut Self {
        let mut digits = [0; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.ascii(&digits[at..])
    }

    /// Appends a number as eight hexadecimal digits.
    pub fn hex32(&mut self, number: u32) -> &mut Self {
        self.hex16((number >> 16) as u16).hex16(number as u16)
    }

    /// Appends a number as four hexadecimal digits.
    pub fn hex16(&mut self, number: u16) -> &mut Self {
        let mut digits = [0; 4];
        for (i, digit) in digits.iter_mut().enumerate() {
            let nibble = (number >> (12 - 4 * i) & 0xF) as u8;
            *digit = if nibble < 10 {
                b'0' + nibble
            } else {
                b'A' + nibble - 10
            };
        }
        self.ascii(&digits)
    }

    /// Appends spaces until the line is this long.
    pub fn pad_to(&mut self, length: usize) -> &mut Self {
        while self.length < length.min(ROOM) {
            self.bytes[self.length] = b' ';
            self.length += 1;
        }
        self
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing has been appended.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The bytes so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Ends the line: if it is full, the newline takes the last byte's place.
    pub fn end(&mut self) -> &mut Self {
        self.length = self.length.min(ROOM - 1);
        self.bytes[self.length] = b'\n';
        self.length += 1;
        self
    }

    fn ascii(&mut self, digits: &[u8]) -> &mut Self {
        for &digit in digits {
            if self.length < ROOM {
                self.bytes[self.length] = digit;
                self.length += 1;
            }
        }
        self
    }
}

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.text(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;

    fn show(line: &Line) -> &str {
        std::str::from_utf8(line.as_bytes()).unwrap()
    }

    #[test]
    fn numbers() {
        let mut line = Line::new();
        line.number(0)
            .text(" ")
            .number(u64::MAX)
            .text(" 0x")
            .hex32(0x4FFF_FFA9)
            .end();
        assert_eq!(show(&line), "0 18446744073709551615 0x4FFFFFA9\n");
    }

    #[test]
    fn padding() {
        let mut line = Line::new();
        line.text("ab").pad_to(4).text("c").pad_to(2);
        assert_eq!(show(&line), "ab  c");
        assert_eq!(line.pad_to(usize::MAX).len(), ROOM);
    }

    #[test]
    fn a_full_line_is_cut_at_a_character_and_still_ends() {
        let mut line = Line::new();
        for _ in 0..ROOM {
            line.text("·x").number(10);
        }
        assert_eq!(line.len(), ROOM);
        line.end();
        assert_eq!(line.len(), ROOM);
        assert_eq!(line.as_bytes().last(), Some(&b'\n'));
        let mut line = Line::new();
        line.pad_to(ROOM - 1).text("·");
        assert_eq!(line.len(), ROOM - 1, "half a character would not be UTF-8");
        assert!(write!(line, "{}", "y".repeat(9)).is_ok());
        assert_eq!(line.len(), ROOM);
    }
}
