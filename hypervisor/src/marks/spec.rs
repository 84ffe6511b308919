//! What milestones a person asks for.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;

use super::Label;
use super::pattern::{PATTERN_MAX, Patterns};
use crate::config::ConfigError;
use crate::exits::milestone::Awaited;
use crate::profile::MilestoneKind;

/// Most milestones that can be asked for.
pub const SPECS_MAX: usize = 64;

/// A milestone that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// The first execution of this symbol's code.
    Symbol(String),
    /// The first time that this is written to the console.
    Console(String),
    /// The first CPUID of this leaf.
    Cpuid(u32),
    /// The guest's own, at its milestone port: they are recorded in any case.
    Port,
}

impl Spec {
    /// What its milestone is called.
    pub fn name(&self) -> String {
        match self {
            Self::Symbol(name) => name.clone(),
            Self::Console(text) => text.clone(),
            Self::Cpuid(leaf) => format!("CPUID {leaf:#x}"),
            Self::Port => "port".into(),
        }
    }

    /// How it is recorded.
    pub fn label(&self) -> Label {
        let kind = match self {
            Self::Symbol(_) => MilestoneKind::Breakpoint,
            Self::Console(_) => MilestoneKind::Console,
            Self::Cpuid(_) => MilestoneKind::Cpuid,
            Self::Port => MilestoneKind::Port,
        };
        Label::new(&self.name(), kind)
    }

    /// Whether it begins like one: what does not is a name.
    pub fn is_one(text: &str) -> bool {
        let kinds = ["symbol:", "console:", "cpuid:"];
        text == "port" || kinds.iter().any(|kind| text.starts_with(kind))
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Symbol(name) => write!(f, "symbol:{name}"),
            Self::Console(text) => write!(f, "console:{text}"),
            Self::Cpuid(leaf) => write!(f, "cpuid:{leaf:#x}"),
            Self::Port => f.write_str("port"),
        }
    }
}

impl FromStr for Spec {
    type Err = ConfigError;

    fn from_str(s: &str) -> Result<Self, ConfigError> {
        let wrong = || ConfigError::Milestone(s.to_owned());
        if s == "port" {
            return Ok(Self::Port);
        }
        let (kind, what) = s.split_once(':').ok_or_else(wrong)?;
        let fits = !what.is_empty() && what.len() <= PATTERN_MAX;
        fits.then_some(()).ok_or_else(wrong)?;
        match kind {
            "symbol" if what.bytes().all(|b| b.is_ascii_graphic()) => {
                Ok(Self::Symbol(what.to_owned()))
            }
            "console" if !what.contains(char::is_control) => Ok(Self::Console(what.to_owned())),
            "cpuid" => {
                let hexadecimal = what.strip_prefix("0x").or_else(|| what.strip_prefix("0X"));
                let leaf = match hexadecimal {
                    Some(digits) => u32::from_str_radix(digits, 16),
                    None => what.parse(),
                };
                leaf.map(Self::Cpuid).map_err(|_| wrong())
            }
            _ => Err(wrong()),
        }
    }
}

/// Which milestones are taken without being asked for one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Sequence {
    /// None.
    #[default]
    None,
    /// A Linux kernel's boot, from its entry to the first instruction in user space.
    Linux,
}

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Those of a boot.
    pub sequence: Sequence,
    /// Whether somebody asked for those, or they are usual.
    pub asked: bool,
    /// Those asked for one by one.
    pub own: Vec<Spec>,
    /// The run ends at the milestone of this name.
    pub until: Option<String>,
    /// Where symbols are read from.
    pub symbols: Option<PathBuf>,
}

impl Wish {
    /// Whether breakpoints are needed, if the kernel is Linux or not.
    pub fn needs_symbols(&self, is_linux: bool) -> bool {
        let is_symbol = |spec: &Spec| matches!(spec, Spec::Symbol(_));
        is_linux && self.sequence == Sequence::Linux || self.own.iter().any(is_symbol)
    }

    /// What somebody waits for.
    pub fn awaited(&self) -> Vec<Awaited> {
        let own = self.own.iter().map(|spec| {
            let kind = (*spec == Spec::Port).then_some(MilestoneKind::Port);
            let ends = self.until.as_ref() == Some(&spec.name());
            Awaited::new(spec.name(), kind, ends)
        });
        let is_own = |name: &String| self.own.iter().any(|spec| spec.name() == *name);
        let until = self.until.iter().filter(|name| !is_own(name));
        let until = until.map(|name| Awaited::new(name.clone(), None, true));
        own.chain(until).collect()
    }

    /// Whether the run ends before the guest executes an instruction: at "reset", the milestone that
    /// every boot begins with.
    pub fn ends_at_reset(&self) -> bool {
        self.until.as_deref() == exit_abi::milestone::name(exit_abi::milestone::RESET)
    }

    /// What is looked for on the console.
    pub fn patterns(&self) -> Patterns {
        Patterns::new(self.own.iter().filter_map(|spec| match spec {
            Spec::Console(text) => Some((spec.label(), text.as_str())),
            _ => None,
        }))
    }

    /// Whether a milestone of this name was asked for.
    pub fn asks_for(&self, name: &str) -> bool {
        let until = self.until.as_deref() == Some(name);
        until || self.own.iter().any(|spec| spec.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn milestones_are_read_as_they_are_written() {
        for (text, spec) in [
            ("symbol:start_kernel", Spec::Symbol("start_kernel".into())),
            ("console:login: ", Spec::Console("login: ".into())),
            ("cpuid:0x40000000", Spec::Cpuid(0x4000_0000)),
            ("port", Spec::Port),
        ] {
            assert_eq!(text.parse(), Ok(spec.clone()));
            assert_eq!(spec.to_string(), text);
            assert!(Spec::is_one(text));
        }
        assert_eq!("cpuid:7".parse(), Ok(Spec::Cpuid(7)));
        for text in [
            "",
            "symbol",
            "symbol:",
            "symbol:a b",
            "console:",
            "cpuid:x",
            "cpuid:0x100000000",
            "port:1",
        ] {
            assert_eq!(
                text.parse::<Spec>(),
                Err(ConfigError::Milestone(text.into())),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(symbol:|console:|cpuid:)?\\PC{0,300}") {
            if let Ok(spec) = text.parse::<Spec>() {
                let again = spec.to_string().parse();
                prop_assert_eq!(again, Ok(spec));
            }
        }
    }
}
