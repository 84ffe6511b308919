//! The command line: words with values, separated by spaces. Words that are not ours are left
//! alone, a value that makes no sense is an error.

use core::fmt;

use crate::leaves::{self, Leaf, Leaves};
use crate::workload::{self, Item, Workloads};

/// When the exit log is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogMode {
    /// At the end: printing costs exits.
    #[default]
    Final,
    /// At every milestone.
    Each,
    /// Never, and nothing is asked.
    Off,
}

/// Where the exit log has its figures from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exits {
    /// From the exit page where there is one, else by the leaves.
    #[default]
    Auto,
    /// From the exit page.
    Page,
    /// By the leaves, at the gate.
    Leaves,
    /// From the page, compared with the leaves, and with what the leaves cost.
    Both,
}

/// How the kernel crashes when it is asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// A panic.
    Panic,
    /// A page fault that nobody expects.
    PageFault,
    /// The stack runs into its guard page: a double fault.
    Stack,
}

/// Most CPUs that `cpus=` tells of.
pub const CPUS_MAX: u64 = 254;
/// Most resets that `reboot=` asks for.
pub const REBOOTS_MAX: u64 = 1000;

/// Most queries that `queries=` repeats.
pub const QUERIES_MAX: u32 = 32;

/// What the command line asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `log=`
    pub log: LogMode,
    /// `exits=`
    pub exits: Exits,
    /// `queries=`
    pub queries: u32,
    /// `workload=`
    pub workloads: Workloads,
    /// `hypercall`
    pub hypercall: bool,
    /// `leaves=`
    pub leaves: Leaves,
    /// `gate=port`
    pub gate_by_port: bool,
    /// `exit=`
    pub exit: u32,
    /// `crash=`
    pub crash: Option<Crash>,
    /// `devices`
    pub devices: bool,
    /// `caps`
    pub caps: bool,
    /// `cpus=`: instead of those that the device tree names; 0 where it is not given.
    pub cpus: u32,
    /// `reboot=`
    pub reboot: u32,
    /// `poweroff`
    pub power_off: bool,
}

/// A word whose value makes no sense, and what would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error<'a> {
    /// The word, or the part of it that is wrong.
    pub word: &'a str,
    /// What is expected.
    pub expected: &'static str,
}

impl fmt::Display for Error<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "command line: `{}`: expected {}",
            self.word, self.expected
        )
    }
}

/// A decimal number up to `max`: digits alone.
fn number(text: &str, max: u64) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let mut value = 0_u64;
    for digit in text.bytes() {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value
            .checked_mul(10)?
            .checked_add(u64::from(digit - b'0'))?;
    }
    (value <= max).then_some(value)
}

/// Reads the command line.
pub fn parse(cmdline: &str) -> Result<Options, Error<'_>> {
    let mut options = Options::default();
    for word in cmdline.split_ascii_whitespace() {
        let (key, value) = match word.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (word, None),
        };
        let value_or_empty = value.unwrap_or_default();
        let wrong = |expected| Error { word, expected };
        match key {
            "log" => {
                options.log = match value_or_empty {
                    "final" => LogMode::Final,
                    "each" => LogMode::Each,
                    "off" => LogMode::Off,
                    _ => return Err(wrong("log=final, log=each or log=off")),
                }
            }
            "exits" => {
                options.exits = match value_or_empty {
                    "auto" => Exits::Auto,
                    "page" => Exits::Page,
                    "leaves" => Exits::Leaves,
                    "both" => Exits::Both,
                    _ => return Err(wrong("exits=auto, exits=page, exits=leaves or exits=both")),
                }
            }
            "queries" => {
                options.queries = number(value_or_empty, QUERIES_MAX.into())
                    .ok_or(wrong("a number of queries up to 32"))?
                    as u32;
            }
            "workload" => workloads(value_or_empty, &mut options.workloads)?,
            "hypercall" if value.is_none() => options.hypercall = true,
            "leaves" => questions(value_or_empty, &mut options.leaves)?,
            "gate" => {
                options.gate_by_port = match value_or_empty {
                    "note" => false,
                    "port" => true,
                    _ => return Err(wrong("gate=note or gate=port")),
                }
            }
            "exit" => {
                options.exit = number(value_or_empty, exit_abi::status::GUEST_MAX.into())
                    .ok_or(wrong("an exit status up to 63"))? as u32;
            }
            "devices" if value.is_none() => options.devices = true,
            "caps" if value.is_none() => options.caps = true,
            "poweroff" if value.is_none() => options.power_off = true,
            "cpus" => {
                options.cpus = number(value_or_empty, CPUS_MAX)
                    .filter(|&n| n > 0)
                    .ok_or(wrong("a number of CPUs from 1 to 254"))?
                    as u32;
            }
            "reboot" => {
                options.reboot = number(value_or_empty, REBOOTS_MAX)
                    .ok_or(wrong("a number of resets up to 1000"))?
                    as u32;
            }
            "crash" => {
                options.crash = Some(match value_or_empty {
                    "panic" => Crash::Panic,
                    "page-fault" => Crash::PageFault,
                    "stack" => Crash::Stack,
                    _ => return Err(wrong("crash=panic, crash=page-fault or crash=stack")),
                })
            }
            _ => {}
        }
    }
    Ok(options)
}

/// Reads `kind:count,kind:count…`.
fn workloads<'a>(list: &'a str, into: &mut Workloads) -> Result<(), Error<'a>> {
    for part in list.split(',') {
        let wrong = |expected| Error {
            word: part,
            expected,
        };
        let (name, count) = part
            .split_once(':')
            .ok_or(wrong("a workload and its count, as pio:500"))?;
        let kind =
            workload::Kind::named(name).ok_or(wrong("a workload, as pio, cpuid or touch"))?;
        let count = number(count, workload::COUNT_MAX)
            .filter(|&n| n > 0)
            .ok_or(wrong("a count from 1 to 10000000"))?;
        into.push(Item { kind, count })
            .ok_or(wrong("at most 16 workloads"))?;
    }
    Ok(())
}

/// Reads `leaf:ecx,leaf:first-last…`.
fn questions<'a>(list: &'a str, into: &mut Leaves) -> Result<(), Error<'a>> {
    for part in list.split(',') {
        let wrong = |expected| Error {
            word: part,
            expected,
        };
        let (leaf, range) = part.split_once(':').unwrap_or((part, "0"));
        let leaf = Leaf::named(leaf)
            .or_else(|| register(leaf).map(Leaf::Number))
            .ok_or(wrong("a leaf, as exits-of:0-85 or 0x4FFFFFFF"))?;
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = register(first)
            .zip(register(last))
            .filter(|(first, last)| {
                last.checked_sub(*first)
                    .is_some_and(|n| n < leaves::RANGE_MAX)
            })
            .ok_or(wrong("ECX, or a range of at most 256"))?;
        into.push(leaves::Item { leaf, first, last })
            .ok_or(wrong("at most 16 leaves"))?;
    }
    Ok(())
}

/// What fits in a register: decimal, or hexadecimal behind 0x.
fn register(text: &str) -> Option<u32> {
    let Some(digits) = text.strip_prefix("0x") else {
        return number(text, u32::MAX.into())?.try_into().ok();
    };
    let is_hex = (1..=8).contains(&digits.len()) && digits.bytes().all(|d| d.is_ascii_hexdigit());
    is_hex.then(|| u32::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Kind;

    #[test]
    fn empty_and_foreign_words() {
        assert_eq!(parse(""), Ok(Options::default()));
        assert_eq!(
            parse(" console=ttyS0  quiet hypercall=x"),
            Ok(Options::default())
        );
    }

    #[test]
    fn all_words() {
        let options = parse(
            "log=each exits=both queries=5 workload=cpuid:1000,pio:500 workload=mmio:10000000,hlt:1 \
             hypercall gate=port exit=63 crash=stack devices caps cpus=254 reboot=3 poweroff \
             leaves=exits-of:0x0-255,0x4FFFFFFF leaves=4294967295:0xFFFFFFFF",
        )
        .unwrap();
        let items: Vec<_> = options
            .workloads
            .iter()
            .map(|i| (i.kind, i.count))
            .collect();
        assert_eq!(
            items,
            [
                (Kind::Cpuid, 1000),
                (Kind::Pio, 500),
                (Kind::Mmio, 10_000_000),
                (Kind::Hlt, 1)
            ]
        );
        assert_eq!(
            (options.log, options.queries, options.exit, options.crash),
            (LogMode::Each, 5, 63, Some(Crash::Stack))
        );
        assert_eq!(options.exits, Exits::Both);
        assert!(options.hypercall && options.gate_by_port);
        assert!(options.devices && options.caps && options.power_off);
        assert_eq!((options.cpus, options.reboot), (254, 3));
        let questions = options.leaves.as_slice().iter();
        let questions: Vec<_> = questions.map(|q| (q.leaf, q.first, q.last)).collect();
        assert_eq!(
            questions,
            [
                (Leaf::ExitsOf, 0, 255),
                (Leaf::Number(0x4FFF_FFFF), 0, 0),
                (Leaf::Number(u32::MAX), u32::MAX, u32::MAX)
            ]
        );
    }

    #[test]
    fn values_that_make_no_sense() {
        for (line, word) in [
            ("log=never", "log=never"),
            ("log", "log"),
            ("exits=all", "exits=all"),
            ("exits", "exits"),
            ("queries=33", "queries=33"),
            ("queries=-1", "queries=-1"),
            ("queries=", "queries="),
            ("exit=64", "exit=64"),
            ("leaves", ""),
            ("leaves=exits", "exits"),
            ("leaves=0x", "0x"),
            ("leaves=0x123456789", "0x123456789"),
            ("leaves=0x+1", "0x+1"),
            ("leaves=1:2:3", "1:2:3"),
            ("leaves=1:-2", "1:-2"),
            ("leaves=exits-of:2-1", "exits-of:2-1"),
            ("leaves=exits-of:0-256", "exits-of:0-256"),
            ("leaves=0,exits-of:4294967296", "exits-of:4294967296"),
            ("exit=18446744073709551616", "exit=18446744073709551616"),
            ("gate=both", "gate=both"),
            ("crash=now", "crash=now"),
            ("cpus=0", "cpus=0"),
            ("cpus=255", "cpus=255"),
            ("reboot=", "reboot="),
            ("reboot=1001", "reboot=1001"),
            ("workload=", ""),
            ("workload=pio", "pio"),
            ("workload=pio:1,popcnt:2", "popcnt:2"),
            ("workload=pio:0", "pio:0"),
            ("workload=pio:10000001", "pio:10000001"),
            (
                "workload=pio:99999999999999999999999",
                "pio:99999999999999999999999",
            ),
            ("workload=pio:1,", ""),
            ("workload=pio:+1", "pio:+1"),
        ] {
            assert_eq!(parse(line).unwrap_err().word, word, "{line}");
        }
        let many = format!("leaves={}", ["1"; 17].join(","));
        assert_eq!(parse(&many).unwrap_err().expected, "at most 16 leaves");
        let many = format!("workload={}", ["pio:1"; 17].join(","));
        assert_eq!(parse(&many).unwrap_err().expected, "at most 16 workloads");
        let text = parse("exit=64").unwrap_err().to_string();
        assert_eq!(
            text,
            "command line: `exit=64`: expected an exit status up to 63"
        );
    }
}
