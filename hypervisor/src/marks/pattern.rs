//! Patterns in what the guest writes to its console, byte by byte (Knuth, Morris, Pratt).

use super::Label;

/// Longest pattern, bytes.
pub const PATTERN_MAX: usize = 256;

/// A pattern that has not been seen yet.
#[derive(Debug)]
struct Pattern {
    label: Label,
    text: Box<[u8]>,
    /// For each length that matches: the longest that still does after one more byte that does not.
    fallback: Box<[u16]>,
    matched: usize,
}

impl Pattern {
    fn new(label: Label, text: &[u8]) -> Self {
        let text = &text[..text.len().min(PATTERN_MAX)];
        let mut fallback = vec![0_u16; text.len()];
        let mut length = 0;
        for i in 1..text.len() {
            while length > 0 && text[i] != text[length] {
                length = usize::from(fallback[length - 1]);
            }
            length += usize::from(text[i] == text[length]);
            fallback[i] = length as u16;
        }
        Self {
            label,
            text: text.into(),
            fallback: fallback.into(),
            matched: 0,
        }
    }

    /// Whether this byte completes it.
    fn feed(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.text[self.matched] != byte {
            self.matched = usize::from(self.fallback[self.matched - 1]);
        }
        self.matched += usize::from(self.text[self.matched] == byte);
        self.matched == self.text.len()
    }
}

/// What is looked for: each pattern once.
#[derive(Debug, Default)]
pub struct Patterns {
    open: Vec<Pattern>,
    seen: Vec<Label>,
}

impl Patterns {
    /// These, each with what it is called.
    pub fn new<'a>(patterns: impl IntoIterator<Item = (Label, &'a str)>) -> Self {
        let patterns = patterns.into_iter().filter(|(_, text)| !text.is_empty());
        Self {
            open: patterns
                .map(|(label, text)| Pattern::new(label, text.as_bytes()))
                .collect(),
            seen: Vec::new(),
        }
    }

    /// The next byte on the console.
    pub fn feed(&mut self, byte: u8) {
        if self.open.is_empty() {
            return;
        }
        let seen = self.open.extract_if(.., |pattern| pattern.feed(byte));
        self.seen.extend(seen.map(|pattern| pattern.label));
    }

    /// What has been seen since this was asked last.
    pub fn take_seen(&mut self) -> Vec<Label> {
        std::mem::take(&mut self.seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::MilestoneKind;
    use proptest::prelude::*;

    fn patterns(texts: &[&str]) -> Patterns {
        Patterns::new(
            texts
                .iter()
                .map(|t| (Label::new(t, MilestoneKind::Console), *t)),
        )
    }

    #[test]
    fn each_is_seen_once_whatever_comes_before() {
        let mut patterns = patterns(&["aab", "login:", "never", ""]);
        for byte in b"aaaab login:login: aab" {
            patterns.feed(*byte);
        }
        let seen: Vec<String> = patterns
            .take_seen()
            .iter()
            .map(|l| l.name.to_string())
            .collect();
        assert_eq!(seen, ["aab", "login:"]);
        assert!(patterns.take_seen().is_empty());
    }

    proptest! {
        #[test]
        fn what_is_there_is_seen(text in "[ab]{1,6}", output in "[ab]{0,40}") {
            let mut patterns = patterns(&[&text]);
            output.bytes().for_each(|b| patterns.feed(b));
            prop_assert_eq!(patterns.take_seen().len() == 1, output.contains(&text));
        }
    }
}
