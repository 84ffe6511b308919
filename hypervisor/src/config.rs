//! A validated configuration: what the command line says, checked once.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use exit_abi::leaf::Layout;
use exit_abi::reason::Edition;
use thiserror::Error;

use crate::boot::Protocol;
use crate::devices::console::Way;
use crate::devices::virtio::block;
use crate::exits::hypercall::Wish;
use crate::exits::source::kernel::Level;
use crate::exits::source::open::KernelWish;
use crate::layout;
use crate::marks;
use crate::memory::prefault::Prefault;
use crate::memory::{self, Pages};
use crate::platform::dump::Dump;
use crate::platform::irqchip;

/// Most vCPUs: what 8-bit xAPIC identifiers can name.
pub const MAX_CPUS: u32 = 254;
/// Least guest memory: start info, command line and some RAM above 1 MiB.
pub const MIN_MEMORY: u64 = 2 << 20;

/// What is wrong with an option.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Not a size.
    #[error("`{0}` is not a size: write a number with K, M or G, for example 64M")]
    NotASize(String),
    /// Below [`MIN_MEMORY`].
    #[error("memory of {0} bytes is too little: give at least 2M")]
    TooLittleMemory(u64),
    /// Not a multiple of the page size.
    #[error("memory of {0} bytes is not a multiple of the page size, 4096")]
    UnalignedMemory(u64),
    /// More than the host has.
    #[error("memory of {asked} MiB is more than this host has ({host} MiB): give less")]
    TooMuchMemory {
        /// Asked for, MiB.
        asked: u64,
        /// Host's, MiB.
        host: u64,
    },
    /// Number of CPUs out of range.
    #[error("`{0}` CPUs: give a number from 1 to {MAX_CPUS}")]
    Cpus(String),
    /// Not a time.
    #[error("`{0}` is not a time limit: write for example 30s, 500ms, 2m or none")]
    NotATime(String),
    /// Not a layout.
    #[error(
        "`{0}` is not a leaf layout: write classic, reversed, or four distinct leaves \
         A,B,C,D from 0x4fffff10 to 0x4fffffff (total exits, total cycles, exits of ECX, \
         cycles of ECX)"
    )]
    Layout(String),
    /// Not an edition.
    #[error("`{0}` is not an edition of the SDM's table: write current or 2020")]
    Edition(String),
    /// Not a level.
    #[error("`{0}` is not a level of the kernel ledger: write counts, cycles, histogram or off")]
    Ledger(String),
    /// Not a way for hypercalls.
    #[error("`{0}` is not a way for hypercalls to arrive: write auto, xen or gate")]
    Hypercall(String),
    /// Not a kind of pages.
    #[error("`{0}` is not a kind of pages: write auto, host, 4k, thp or huge")]
    Pages(String),
    /// Not a way to fill memory in.
    #[error("`{0}` is not a way to fill memory in: write none, touch or kvm")]
    Prefault(String),
    /// Not whole huge pages.
    #[error(
        "--pages huge: memory of {0} bytes is not whole pages of 2 MiB: give --memory {rounded}M",
        rounded = .0.div_ceil(memory::HUGE_PAGE) * 2
    )]
    NotHuge(u64),
    /// Not a milestone.
    #[error(
        "`{0}` is no milestone: write symbol:NAME, console:TEXT, cpuid:LEAF or port, of at most 256 bytes"
    )]
    Milestone(String),
    /// Not a disk.
    #[error(
        "`{0}` is not a disk: write FILE[,ro][,serial=TEXT], TEXT of at most 20 letters, digits or -_."
    )]
    Disk(String),
    /// Command line too long.
    #[error("the command line has {0} bytes: at most {max} fit", max = layout::CMDLINE_SIZE - 1)]
    CmdlineTooLong(usize),
    /// Command line with a NUL.
    #[error("the command line has a NUL byte at offset {0}: leave it out")]
    CmdlineNul(usize),
}

/// Guest memory in bytes: whole pages, at least [`MIN_MEMORY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySize(u64);

impl MemorySize {
    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// Checks against what the host has.
    pub fn within(self, host: u64) -> Result<Self, ConfigError> {
        if self.0 > host {
            return Err(ConfigError::TooMuchMemory {
                asked: self.0 >> 20,
                host: host >> 20,
            });
        }
        Ok(self)
    }
}

impl FromStr for MemorySize {
    type Err = ConfigError;

    fn from_str(s: &str) -> Result<Self, ConfigError> {
        let wrong = || ConfigError::NotASize(s.to_owned());
        let digits = s.trim_end_matches(|c: char| !c.is_ascii_digit());
        let shift = match s[digits.len()..].to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(wrong()),
        };
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let bytes = number.checked_mul(1 << shift).ok_or_else(wrong)?;
        if bytes < MIN_MEMORY {
            return Err(ConfigError::TooLittleMemory(bytes));
        }
        if bytes % 4096 != 0 {
            return Err(ConfigError::UnalignedMemory(bytes));
        }
        Ok(Self(bytes))
    }
}

/// A number of vCPUs from 1 to [`MAX_CPUS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuCount(u32);

impl CpuCount {
    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl FromStr for CpuCount {
    type Err = ConfigError;

    fn from_str(s: &str) -> Result<Self, ConfigError> {
        match s.parse() {
            Ok(n @ 1..=MAX_CPUS) => Ok(Self(n)),
            _ => Err(ConfigError::Cpus(s.to_owned())),
        }
    }
}

/// A time limit, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLimit(pub Option<Duration>);

impl FromStr for TimeLimit {
    type Err = ConfigError;

    fn from_str(s: &str) -> Result<Self, ConfigError> {
        let wrong = || ConfigError::NotATime(s.to_owned());
        if s == "none" {
            return Ok(Self(None));
        }
        let number = s.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &s[number.len()..] {
            "ms" => 0.001,
            "" | "s" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        let plain = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let limit = Duration::try_from_secs_f64(number * unit).map_err(|_| wrong())?;
        // A timer that fires at once, or in a year, is a slip of the finger.
        if !plain || limit < Duration::from_millis(1) || limit > Duration::from_secs(31_536_000) {
            return Err(wrong());
        }
        Ok(Self(Some(limit)))
    }
}

/// A leaf layout with its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedLayout {
    /// `classic`, `reversed` or `custom`.
    pub name: &'static str,
    /// The four leaves.
    pub layout: Layout,
}

impl FromStr for NamedLayout {
    type Err = ConfigError;

    fn from_str(s: &str) -> Result<Self, ConfigError> {
        let wrong = || ConfigError::Layout(s.to_owned());
        match s {
            "classic" => {
                return Ok(Self {
                    name: "classic",
                    layout: Layout::CLASSIC,
                });
            }
            "reversed" => {
                return Ok(Self {
                    name: "reversed",
                    layout: Layout::REVERSED,
                });
            }
            _ => {}
        }
        let leaves = s
            .split(',')
            .map(|leaf| {
                let leaf = leaf.trim().to_ascii_lowercase();
                u32::from_str_radix(leaf.strip_prefix("0x").unwrap_or(&leaf), 16).ok()
            })
            .collect::<Option<Vec<u32>>>()
            .ok_or_else(wrong)?;
        let &[a, b, c, d] = leaves.as_slice() else {
            return Err(wrong());
        };
        let layout = Layout::new(a, b, c, d);
        if !layout.is_valid() {
            return Err(wrong());
        }
        Ok(Self {
            name: "custom",
            layout,
        })
    }
}

/// Reads an edition's name.
pub fn edition(s: &str) -> Result<Edition, ConfigError> {
    match s {
        "current" => Ok(Edition::Current),
        "2020" => Ok(Edition::Sdm2020),
        _ => Err(ConfigError::Edition(s.to_owned())),
    }
}

/// The name that [`edition`] reads.
pub fn edition_name(edition: Edition) -> &'static str {
    match edition {
        Edition::Current => "current",
        Edition::Sdm2020 => "2020",
    }
}

/// Reads a disk: its options are taken off its end, so that a file's name may have commas.
pub fn disk(s: &str) -> Result<block::Wish, ConfigError> {
    let wrong = || ConfigError::Disk(s.to_owned());
    let mut path = s;
    let (mut read_only, mut serial) = (false, None);
    while let Some((rest, option)) = path.rsplit_once(',') {
        match option.split_once('=') {
            None if option == "ro" => read_only = true,
            Some(("serial", text)) => {
                let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
                if text.is_empty() || text.len() > block::SERIAL || !text.bytes().all(plain) {
                    return Err(wrong());
                }
                serial = Some(text.to_owned());
            }
            _ => return Err(wrong()),
        }
        path = rest;
    }
    if path.is_empty() {
        return Err(wrong());
    }
    Ok(block::Wish {
        path: path.into(),
        read_only,
        serial: serial.unwrap_or_default(),
    })
}

/// Checks a command line.
pub fn cmdline(s: &str) -> Result<String, ConfigError> {
    if let Some(at) = s.bytes().position(|b| b == 0) {
        return Err(ConfigError::CmdlineNul(at));
    }
    if s.len() >= layout::CMDLINE_SIZE {
        return Err(ConfigError::CmdlineTooLong(s.len()));
    }
    Ok(s.to_owned())
}

/// Where the guest's console goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// Standard output.
    Stdout,
    /// Standard error: standard output carries the profile.
    Stderr,
}

/// What becomes of a guest that resets itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnReset {
    /// The run ends.
    End,
    /// The machine boots again, this many times at most.
    Continue(u32),
}

/// A level of the kernel-side ledger, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ledger(pub Option<Level>);

/// Parses a level.
pub fn ledger(s: &str) -> Result<Ledger, ConfigError> {
    match s {
        "off" => Ok(Ledger(None)),
        level => level
            .parse()
            .map(|level| Ledger(Some(level)))
            .map_err(|_| ConfigError::Ledger(s.to_owned())),
    }
}

/// Which virtio devices a machine has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    /// Disks.
    pub disks: Vec<block::Wish>,
    /// An entropy device.
    pub rng: bool,
}

/// A VM to run, validated.
#[derive(Clone, Debug)]
pub struct Config {
    /// Firmware to enter, which then finds the kernel as its first module.
    pub firmware: Option<PathBuf>,
    /// Kernel.
    pub kernel: PathBuf,
    /// By which protocol it is entered.
    pub boot: Protocol,
    /// Initial RAM disk, handed over as a module.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Guest memory.
    pub memory: MemorySize,
    /// What pages it is made of.
    pub pages: Pages,
    /// How it is filled in before the guest runs.
    pub prefault: Prefault,
    /// vCPUs.
    pub cpus: CpuCount,
    /// Time limit.
    pub timeout: TimeLimit,
    /// What becomes of a guest that resets itself.
    pub on_reset: OnReset,
    /// Leaf layout.
    pub leaves: NamedLayout,
    /// Edition of the SDM's table.
    pub edition: Edition,
    /// What is wanted of the kernel-side ledger.
    pub kernel_ledger: KernelWish,
    /// Which interrupt controllers the machine has.
    pub irqchip: irqchip::Wish,
    /// How the guest reaches its console.
    pub way: Way,
    /// Which virtio devices it has.
    pub devices: Devices,
    /// How hypercalls are to arrive.
    pub hypercall: Wish,
    /// Show the guest its exit page, where that is possible.
    pub exit_page: bool,
    /// Print a host line per query.
    pub log_queries: bool,
    /// Where the guest's console goes.
    pub console: Console,
    /// Where the machine's descriptions are dumped to.
    pub dump: Dump,
    /// Which milestones are looked for, besides those that the guest reports.
    pub milestones: marks::spec::Wish,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn memory_sizes() {
        assert_eq!("64M".parse::<MemorySize>().unwrap().bytes(), 64 << 20);
        assert_eq!("2g".parse::<MemorySize>().unwrap().bytes(), 2 << 30);
        assert_eq!("4194304".parse::<MemorySize>().unwrap().bytes(), 4 << 20);
        for s in [
            "",
            "M",
            "64X",
            "-1M",
            "0x10M",
            "1.5G",
            "99999999999999999999",
            "64 M",
            "17179869184G",
        ] {
            assert_eq!(
                s.parse::<MemorySize>(),
                Err(ConfigError::NotASize(s.into()))
            );
        }
        assert_eq!(
            "0".parse::<MemorySize>(),
            Err(ConfigError::TooLittleMemory(0))
        );
        assert_eq!(
            "1M".parse::<MemorySize>(),
            Err(ConfigError::TooLittleMemory(1 << 20))
        );
        assert_eq!(
            "67108865".parse::<MemorySize>(),
            Err(ConfigError::UnalignedMemory(67_108_865))
        );
        let big: MemorySize = "1T".parse().unwrap();
        assert!(matches!(
            big.within(1 << 30),
            Err(ConfigError::TooMuchMemory { .. })
        ));
    }

    #[test]
    fn cpu_counts() {
        assert_eq!("254".parse::<CpuCount>().unwrap().get(), 254);
        for s in ["0", "255", "1000", "", "two", "-1"] {
            assert_eq!(s.parse::<CpuCount>(), Err(ConfigError::Cpus(s.into())));
        }
    }

    #[test]
    fn time_limits() {
        let ms = |s: &str| s.parse::<TimeLimit>().unwrap().0.map(|d| d.as_millis());
        assert_eq!(ms("30s"), Some(30_000));
        assert_eq!(ms("500ms"), Some(500));
        assert_eq!(ms("1.5"), Some(1_500));
        assert_eq!(ms("2m"), Some(120_000));
        assert_eq!(ms("none"), None);
        for s in ["", "s", "0", "-1s", "1y", "1e9", "inf", "nan", "99999h"] {
            assert_eq!(
                s.parse::<TimeLimit>(),
                Err(ConfigError::NotATime(s.into())),
                "{s}"
            );
        }
    }

    #[test]
    fn layouts() {
        assert_eq!(
            "classic".parse::<NamedLayout>().unwrap().layout,
            Layout::CLASSIC
        );
        let custom: NamedLayout = "0x4FFFFF10,4fffff11,0x4fffff12,0x4fffff13".parse().unwrap();
        assert_eq!(custom.name, "custom");
        assert_eq!(custom.layout.exits_of, 0x4FFF_FF12);
        for s in [
            "",
            "backwards",
            "1,2,3,4",
            "0x4fffff10,0x4fffff10,0x4fffff11,0x4fffff12",
            "0x4fffff10,0x4fffff11,0x4fffff12",
            "0x4fffff00,0x4fffff11,0x4fffff12,0x4fffff13",
        ] {
            assert_eq!(
                s.parse::<NamedLayout>(),
                Err(ConfigError::Layout(s.into())),
                "{s}"
            );
        }
    }

    #[test]
    fn cmdlines() {
        assert!(cmdline(&"x".repeat(2047)).is_ok());
        assert_eq!(
            cmdline(&"x".repeat(2048)),
            Err(ConfigError::CmdlineTooLong(2048))
        );
        assert_eq!(cmdline("a\0b"), Err(ConfigError::CmdlineNul(1)));
    }

    proptest! {
        #[test]
        fn parsers_never_panic(s in "\\PC*") {
            let _ = s.parse::<MemorySize>();
            let _ = s.parse::<CpuCount>();
            let _ = s.parse::<TimeLimit>();
            let _ = s.parse::<NamedLayout>();
            let _ = edition(&s);
            let _ = cmdline(&s);
        }

        #[test]
        fn memory_sizes_are_whole_pages(s in "[0-9]{1,12}[KMG]?") {
            if let Ok(size) = s.parse::<MemorySize>() {
                prop_assert_eq!(size.bytes() % 4096, 0);
                prop_assert!(size.bytes() >= MIN_MEMORY);
            }
        }
    }
}
