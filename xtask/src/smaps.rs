//! The memory of a running VMM besides its guest's: `/proc/PID/smaps`, read while it runs.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Guest memory of the guest that is watched, in KiB: its mapping has this size, and is the only one
/// for which the kernel reserves nothing (`nr` among its flags).
const GUEST_RAM_KIB: u64 = 64 << 10;

/// Resident memory besides guest memory, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Besides {
    /// All of it, shared libraries and the program's text included.
    pub(crate) resident: u64,
    /// What no other process could share.
    pub(crate) private: u64,
}

/// Watches one process.
#[derive(Debug)]
pub(crate) struct Watch {
    path: PathBuf,
    text: String,
    most: Option<Besides>,
}

impl Watch {
    /// Of the process with this id.
    pub(crate) fn new(pid: u32) -> Self {
        Self {
            path: format!("/proc/{pid}/smaps").into(),
            text: String::new(),
            most: None,
        }
    }

    /// Looks once. A process that has just ended, or has no guest memory yet, adds nothing.
    pub(crate) fn sample(&mut self) {
        self.text.clear();
        // Opened anew: an open file stays with the address space that it was opened on, and that of
        // a process that was started just now may still be its parent's.
        let file = File::open(&self.path);
        let read = file.and_then(|mut file| file.read_to_string(&mut self.text));
        let Some(now) = read.ok().and_then(|_| parse(&self.text)) else {
            return;
        };
        let most = self.most.get_or_insert_default();
        most.resident = most.resident.max(now.resident);
        most.private = most.private.max(now.private);
    }

    /// The most that was seen; `None` if guest memory was never seen.
    pub(crate) fn most(&self) -> Option<Besides> {
        self.most
    }
}

/// Sums the mappings of `smaps` but for guest memory; `None` if that is not among them, since
/// what is not told apart must not be booked as the VMM's.
fn parse(smaps: &str) -> Option<Besides> {
    let is_guest = |mapping: &Mapping| mapping.size == GUEST_RAM_KIB && mapping.unreserved;
    let mut sum = Besides::default();
    for mapping in besides(smaps, is_guest)? {
        sum.resident += mapping.resident * 1024;
        sum.private += mapping.private * 1024;
    }
    Some(sum)
}

/// Resident memory of any VMM besides guest memory, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Resident {
    /// Of no file: heap, stacks, what was written of libraries' data.
    pub(crate) anonymous: u64,
    /// Of files: the program's text, shared libraries.
    pub(crate) file: u64,
}

/// That of a process whose guest has so much memory in one mapping; `None` if it has none such, or
/// has ended.
pub(crate) fn resident(pid: i32, guest_memory: u64) -> Option<Resident> {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    resident_in(&smaps, guest_memory)
}

fn resident_in(smaps: &str, guest_memory: u64) -> Option<Resident> {
    let is_guest = |mapping: &Mapping| mapping.size * 1024 == guest_memory;
    let mut sum = Resident::default();
    for mapping in besides(smaps, is_guest)? {
        let anonymous = mapping.anonymous.min(mapping.resident);
        sum.anonymous += anonymous * 1024;
        sum.file += (mapping.resident - anonymous) * 1024;
    }
    Some(sum)
}

/// A mapping, as far as it is of interest; KiB.
#[derive(Clone, Copy, Debug, Default)]
struct Mapping {
    size: u64,
    resident: u64,
    private: u64,
    anonymous: u64,
    unreserved: bool,
}

/// All mappings but the guest's; `None` if that is not among them.
fn besides(smaps: &str, is_guest: impl Fn(&Mapping) -> bool) -> Option<Vec<Mapping>> {
    let all = mappings(smaps);
    let before = all.len();
    let besides: Vec<Mapping> = all
        .into_iter()
        .filter(|mapping| !is_guest(mapping))
        .collect();
    (besides.len() < before).then_some(besides)
}

/// "7f…-7f… rw-p 00000000 00:00 0" opens a mapping, "Rss:   4 kB" belongs to it, and its flags
/// end it.
fn mappings(smaps: &str) -> Vec<Mapping> {
    let mut mappings = Vec::new();
    let mut mapping = Mapping::default();
    for line in smaps.lines() {
        let first = line.split_ascii_whitespace().next().unwrap_or_default();
        match first.strip_suffix(':') {
            None => mapping = Mapping::default(),
            Some("Size") => mapping.size = kib(line),
            Some("Rss") => mapping.resident = kib(line),
            Some("Private_Clean" | "Private_Dirty") => mapping.private += kib(line),
            Some("Anonymous") => mapping.anonymous = kib(line),
            Some("VmFlags") => {
                mapping.unreserved = line.split_ascii_whitespace().any(|flag| flag == "nr");
                mappings.push(mapping);
            }
            Some(_) => {}
        }
    }
    mappings
}

/// The figure of a line such as `Rss:   4 kB`.
fn kib(line: &str) -> u64 {
    let figure = line
        .split_ascii_whitespace()
        .nth(1)
        .and_then(|word| word.parse::<u64>().ok());
    figure.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0c0000000-55d0c0100000 r-xp 00000000 fe:00 1234    /target/release/exitvisor
Size:               1024 kB
Rss:                 800 kB
Private_Clean:       700 kB
Private_Dirty:         0 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0004000000 rw-p 00000000 00:00 0
Size:              65536 kB
Rss:               12000 kB
Private_Dirty:     12000 kB
Anonymous:         12000 kB
VmFlags: rd wr mr mw me nr
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0       [stack]
Size:                132 kB
Rss:                  24 kB
Private_Dirty:        20 kB
Anonymous:            20 kB
VmFlags: rd wr mr mw me gd ac
";

    #[test]
    fn guest_memory_is_left_out() {
        let besides = Besides {
            resident: 824 * 1024,
            private: 720 * 1024,
        };
        assert_eq!(parse(SMAPS), Some(besides));
        let resident = Resident {
            anonymous: 20 * 1024,
            file: 804 * 1024,
        };
        assert_eq!(resident_in(SMAPS, 64 << 20), Some(resident));
        assert_eq!(resident_in(SMAPS, 128 << 20), None);
    }

    #[test]
    fn unknown_without_guest_memory() {
        for (one, other) in [("65536", "65540"), (" nr", "")] {
            assert_eq!(parse(&SMAPS.replace(one, other)), None);
        }
        assert_eq!(parse(""), None);
    }
}
