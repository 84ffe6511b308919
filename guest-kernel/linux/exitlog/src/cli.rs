//! The command line, and the words of it that the kernel's command line may hold for an `exitlog`
//! that is init.

use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use exit_abi::milestone::NAME_MAX;

use crate::log::Form;

/// Ask Exitvisor how many VM exits this machine has cost so far
///
/// Each reading is the coursework's line and a table by reason, with what grew since the reading
/// before. Asking takes one of Exitvisor's four gates and gives it back. Needs root.
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  exitlog
  exitlog --every 5s --count 5
  exitlog --json --from page
  exitlog gate-kernel && cpuid -k -1 -l 0x4FFFFFFF

As init: rdinit=/exitlog (initramfs) or init=/exitlog on the kernel's command line, and there
  exitlog.init=PATH    the real init [default: /sbin/init]
  exitlog.every=5s exitlog.count=5    more readings beside it
  exitlog.brief        the line alone, no table"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) task: Option<Task>,
    #[command(flatten)]
    pub(crate) repeat: Repeat,
    /// Where figures come from
    #[arg(long, value_enum, default_value_t)]
    pub(crate) from: From,
    /// One JSON object per reading, a line each
    #[arg(long, conflicts_with = "brief")]
    json: bool,
    /// Print the line alone, no table
    #[arg(long)]
    brief: bool,
    /// Tell Exitvisor, before each reading, that a milestone of this name is reached
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub(crate) milestone: Option<String>,
}

/// What else than to ask.
#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum Task {
    /// Make the kernel's own CPUID instruction a gate, for `cpuid -k`
    GateKernel,
    /// Take that gate away again
    UngateKernel,
}

/// How often.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct Repeat {
    /// Ask again after this long: 500ms, 5s, 1m [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) every: Option<Duration>,
    /// So many readings [default: 1, with --every without end]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) count: Option<u32>,
}

impl Repeat {
    pub(crate) fn every(self) -> Duration {
        self.every.unwrap_or(Duration::from_secs(1))
    }

    pub(crate) fn count(self) -> u32 {
        let unsaid = if self.every.is_some() { u32::MAX } else { 1 };
        self.count.unwrap_or(unsaid)
    }
}

/// Where figures come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum From {
    /// The leaves, compared with the exit page if it can be had
    #[default]
    Auto,
    /// The leaves alone
    Leaves,
    /// The exit page alone: no gate is taken, and a reading costs no exit
    Page,
    /// Both, compared; an error if the page cannot be had
    Both,
}

impl Cli {
    /// How readings are shown.
    pub(crate) fn form(&self) -> Form {
        match (self.json, self.brief) {
            (true, _) => Form::Json,
            (_, true) => Form::Line,
            _ => Form::Table,
        }
    }
}

/// A length of time: a number and `ms`, `s`, `m` or `h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: Option<u64> = digits.parse().ok();
    let milliseconds = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("a time is a number and ms, s, m or h: 500ms, 5s".to_owned()),
    };
    let total = number.and_then(|number| number.checked_mul(milliseconds));
    total
        .map(Duration::from_millis)
        .ok_or_else(|| "no number, or too large".to_owned())
}

fn name(text: &str) -> Result<String, String> {
    if text.len() > NAME_MAX {
        return Err(format!("a milestone's name has at most {NAME_MAX} bytes"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats() {
        let parsed = |args: &[&str]| Cli::try_parse_from([&["exitlog"], args].concat());
        let of = |args: &[&str]| {
            let repeat = parsed(args).unwrap().repeat;
            (repeat.every(), repeat.count())
        };
        let second = Duration::from_secs(1);
        assert_eq!(of(&[]), (second, 1));
        assert_eq!(of(&["--count", "3"]), (second, 3));
        assert_eq!(of(&["--every", "1500ms"]), (second * 3 / 2, u32::MAX));
        assert_eq!(of(&["--every", "5s", "--count", "5"]), (second * 5, 5));
        for wrong in [
            &["--every", "5"][..],
            &["--every", "s"],
            &["--every", "-1s"],
            &["--every", "99999999999999999999h"],
            &["--count", "0"],
            &["--json", "--brief"],
            &[
                "--milestone",
                "a name that is far longer than thirty-two bytes",
            ],
            &["gate-kernel", "--json"],
        ] {
            assert!(parsed(wrong).is_err(), "{wrong:?}");
        }
    }
}
