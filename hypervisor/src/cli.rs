//! The command line: parsed by clap, validated into a [`Config`].

use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};
use exit_abi::reason::Edition;

use crate::boot::Protocol;
use crate::config::{
    self, Config, ConfigError, Console, CpuCount, Devices, Ledger, MemorySize, NamedLayout,
    OnReset, TimeLimit,
};
use crate::devices::console::Way;
use crate::devices::virtio::block;
use crate::error::Error;
use crate::exits::hypercall::Wish;
use crate::exits::source::open::KernelWish;
use crate::marks::spec::{SPECS_MAX, Sequence, Spec, Wish as Milestones};
use crate::memory::prefault::Prefault;
use crate::memory::{HUGE_PAGE, Pages};
use crate::platform::dump::Dump;
use crate::platform::irqchip;
use crate::profile::culprits::By;
use crate::profile::limit::Limits;
use crate::report::culprits::View;

/// A tiny KVM hypervisor whose product is knowledge: what a boot costs in VM exits.
#[derive(Debug, Parser)]
#[command(name = "exitvisor", version, max_term_width = 100)]
#[command(after_help = "\
Exit status: 0-63 the guest's own; 64 usage, 65 bad profile, 66 bad image, 69 no KVM, 70 internal,
71 host, 73 output, 80 time limit, 81 triple fault, 82 guest crash, 83 KVM gave up, 84 growth,
85 too many resets, 86 a milestone asked for and not reached, 129/130/143 interrupted by SIGHUP, Ctrl-C, SIGTERM.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a guest: its console is yours, a summary of its exits comes at the end
    Run(RunArgs),
    /// Boot a guest and report what each step of its boot cost in exits
    Profile(ProfileArgs),
    /// Show a saved profile; several show how much runs differ
    Report(ReportArgs),
    /// Show what grew and what shrank between two profiles
    Compare(CompareArgs),
    /// Show what shadow paging costs a boot, beside nested paging
    Paging(PagingArgs),
    /// Show what pages and filling in memory beforehand do to a boot: one row per profile
    Ablation(AblationArgs),
    /// Show where everything lies in a guest's memory
    Layout(LayoutArgs),
    /// Show what this host's KVM can intercept and control
    Caps(CapsArgs),
}

/// Options of `run`.
#[derive(Debug, Args)]
#[command(after_help = "\
While the guest listens to its console it owns the terminal: Ctrl-C is the guest's, and Ctrl-] ends
the run. Before that, Ctrl-C ends it.

Examples:
  exitvisor run --kernel kernel.elf
  exitvisor run --kernel kernel.elf --cmdline 'queries=5' --timeout 10s --log-queries
  exitvisor run --kernel kernel.elf --format json --output profile.json
  exitvisor run --kernel kernel.elf --dump-acpi tables --dump-dtb machine.dtb")]
pub struct RunArgs {
    /// The VM.
    #[command(flatten)]
    pub vm: VmArgs,
    /// Also write the profile, in this format
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Also write the profile, to this file [- is standard output]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Options of `profile`.
#[derive(Debug, Args)]
#[command(after_help = "\
The guest's console goes to standard error, the profile to standard output.

Examples:
  exitvisor profile --kernel kernel.elf
  exitvisor profile --kernel kernel.elf --format json --output profile.json
  exitvisor profile --kernel kernel.elf --leaves reversed --sdm 2020 --timeout 5s
  exitvisor profile --kernel kernel.elf --on-reset continue --max-resets 5
  exitvisor profile --kernel kernel.elf --by msr --top 5
  exitvisor profile --kernel kernel.elf --dump-acpi tables --dump-dtb machine.dtb")]
pub struct ProfileArgs {
    /// The VM.
    #[command(flatten)]
    pub vm: VmArgs,
    /// Format of the profile
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
    /// Write the profile to this file [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Who caused the exits.
    #[command(flatten)]
    pub culprits: CulpritArgs,
}

/// Which table of culprits is wanted, if one is.
#[derive(Debug, Args)]
pub struct CulpritArgs {
    /// Show, instead, who caused the exits: by port, MSR, leaf, guest-physical page, vector or control
    /// register; by whatever it was for every reason; or by function of the guest
    #[arg(long, value_enum, value_name = "WHAT")]
    pub by: Option<By>,
    /// Most rows of a table of --by [default: 16 in text, else all]
    #[arg(long, value_name = "N", requires = "by")]
    pub top: Option<usize>,
    /// Only what was added on the way to this milestone; `each`: a table per step
    #[arg(long, value_name = "MILESTONE", requires = "by")]
    pub at: Option<String>,
}

impl CulpritArgs {
    /// What is to be shown, if anything is.
    pub fn view(self) -> Option<View> {
        let Self { by, top, at } = self;
        by.map(|by| View { by, top, at })
    }
}

impl ValueEnum for By {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.name()))
    }
}

/// Options of `report`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  exitvisor report profile.json
  exitvisor report profile.json --format csv --output profile.csv
  exitvisor report profile.json --by msr --top 5
  exitvisor report profile.json --by symbol --at each
  exitvisor report run1.json run2.json run3.json")]
pub struct ReportArgs {
    /// Saved profiles, JSON [- is standard input]
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Format of the report
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
    /// Write the report to this file [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Who caused the exits.
    #[command(flatten)]
    pub culprits: CulpritArgs,
}

/// Options of `compare`.
#[derive(Debug, Args)]
#[command(after_help = "\
Limits: 5% the total and every reason; 0 nothing may grow; 12 by at most 12 exits; 30=0 only reason
30; total=5% only the total; fixed=0 only the total without what time drives (needs the kernel ledger
in both). Separated by commas, or given again. Growth beyond a limit ends with status 84.

Examples:
  exitvisor compare before.json after.json
  exitvisor compare before.json after.json --max-growth 5%
  exitvisor compare before.json after.json --max-growth total=2%,30=0,48=10%")]
pub struct CompareArgs {
    /// The earlier profile
    pub before: PathBuf,
    /// The later profile
    pub after: PathBuf,
    /// Fail if something grew by more
    #[arg(long, value_name = "LIMITS")]
    pub max_growth: Vec<Limits>,
    /// Format of the comparison
    #[arg(long, value_enum, default_value = "text")]
    pub format: CompareFormat,
    /// Write the comparison to this file [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Options of `paging`.
#[derive(Debug, Args)]
#[command(after_help = "\
Each profile is checked first: one that claims shadow paging and shows nested page faults, or the
other way round, is void (status 65). Then profiles are paired that differ in nothing but paging;
several pairs are a sweep, and may differ in the N of workload=ptes:N.

Examples:
  exitvisor paging nested.json shadow.json
  exitvisor paging *.json --format csv --output sweep.csv
  exitvisor paging --check shadow.json")]
pub struct PagingArgs {
    /// Saved profiles of both kinds, JSON, in any order [- is standard input]
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Only check that each profile is of the paging that it claims
    #[arg(long, conflicts_with_all = ["format", "output"])]
    pub check: bool,
    /// Format of the report
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
    /// Write the report to this file [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Options of `ablation`.
#[derive(Debug, Args)]
#[command(after_help = "\
The profiles are boots of one guest with different --prefault and --pages, in the order of the rows.
`cargo xtask boot-profile --ablate memory` records them.

Examples:
  exitvisor ablation none-4k.json touch-4k.json kvm-4k.json
  exitvisor ablation *.json --format json --output ablation.json")]
pub struct AblationArgs {
    /// Saved profiles, JSON
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Say of a combination that it was not booted, and why
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub skipped: Vec<String>,
    /// Format of the table
    #[arg(long, value_enum, default_value = "text")]
    pub format: CompareFormat,
    /// Write the table to this file [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Options of `layout`.
#[derive(Debug, Args)]
#[command(after_help = "\
`end` is the address after the last.

Examples:
  exitvisor layout
  exitvisor layout --memory 5G
  exitvisor layout --format json --output layout.json")]
pub struct LayoutArgs {
    /// Guest memory
    #[arg(long, value_name = "SIZE", default_value = "64M")]
    #[arg(allow_hyphen_values = true)]
    pub memory: MemorySize,
    /// Format of the table
    #[arg(long, value_enum, default_value = "text")]
    pub format: LayoutFormat,
    /// Write the table to this file [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Options of `caps`.
#[derive(Debug, Args)]
#[command(after_help = "\
guest: what KVM offers to a guest. CPU: this CPU's own; its VMX needs root and the module msr. What
cannot be seen is named, with what to do, and is no failure.

Examples:
  exitvisor caps
  sudo modprobe msr; sudo exitvisor caps
  exitvisor caps --format json --output caps.json")]
pub struct CapsArgs {
    /// Format of the survey
    #[arg(long, value_enum, default_value = "text")]
    pub format: CapsFormat,
    /// Write the survey to this file [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// The VM.
#[derive(Debug, Args)]
pub struct VmArgs {
    /// Firmware to boot through, an ELF with PVH entry; it finds the kernel as its first module
    #[arg(long, value_name = "FILE|none", default_value = "none")]
    pub firmware: PathBuf,
    /// Kernel: an ELF with PVH entry, or Linux (bzImage or vmlinux)
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Protocol by which the kernel is entered
    #[arg(long, value_enum, value_name = "PROTOCOL", default_value = "auto")]
    pub boot: Protocol,
    /// Initial RAM disk, handed over as a module
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "TEXT", default_value = "", value_parser = config::cmdline)]
    #[arg(allow_hyphen_values = true)]
    pub cmdline: String,
    /// Guest memory
    #[arg(long, value_name = "SIZE", default_value = "64M")]
    #[arg(allow_hyphen_values = true)]
    pub memory: MemorySize,
    /// Pages of which the host makes guest memory: host (as it is set up), 4k, thp (huge where it finds
    /// some), huge (of 2 MiB, from the pool in /proc/sys/vm/nr_hugepages) or auto (for Linux thp where
    /// the host has it, else host)
    #[arg(
        long,
        value_name = "PAGES",
        default_value = "auto",
        allow_hyphen_values = true
    )]
    pub pages: Pages,
    /// Fill guest memory in before the guest runs: none, touch (by the host) or kvm (mapped by KVM too,
    /// so that no first touch exits)
    #[arg(
        long,
        value_name = "HOW",
        default_value = "none",
        allow_hyphen_values = true
    )]
    pub prefault: Prefault,
    /// Number of vCPUs
    #[arg(
        long,
        value_name = "N",
        default_value = "1",
        allow_hyphen_values = true
    )]
    pub cpus: CpuCount,
    /// Time limit: 30s, 500ms, 2m or none [default: none for run, 30s for profile]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub timeout: Option<TimeLimit>,
    /// What a reset by the guest does: end the run, or boot it again and profile that too
    #[arg(long, value_enum, value_name = "WHAT", default_value = "end")]
    pub on_reset: ResetMode,
    /// How often the guest may reset itself with --on-reset continue [default: 1000]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub max_resets: Option<u32>,
    /// Which CPUID leaves ask what: classic, reversed, or four leaves A,B,C,D (total exits, total
    /// cycles, exits of ECX, cycles of ECX)
    #[arg(
        long,
        value_name = "LAYOUT",
        default_value = "classic",
        allow_hyphen_values = true
    )]
    pub leaves: NamedLayout,
    /// Edition of the SDM's table of exit reasons: current or 2020
    #[arg(long, value_name = "EDITION", default_value = "current", value_parser = config::edition)]
    pub sdm: Edition,
    /// How much the kernel-side ledger keeps of every exit, at this cost to each (host
    /// instructions, of a port's access and of an MSR's or CPUID): counts (some 345 and 550), cycles
    /// (some 600 and 800), histogram (some 30 more), or off
    #[arg(long, value_name = "LEVEL", default_value = "cycles", value_parser = config::ledger)]
    pub ledger: Ledger,
    /// Where tracefs is mounted, which the kernel-side ledger reads [default: a usual place]
    #[arg(long, value_name = "DIR")]
    pub tracefs: Option<PathBuf>,
    /// Interrupt controllers: KVM's, with 24 pins, or local APICs alone and an IOAPIC of only the pins
    /// that are wired, which saves Linux exits (auto: this for Linux)
    #[arg(long, value_enum, value_name = "KIND", default_value = "auto")]
    pub irqchip: irqchip::Wish,
    /// How the console is reached: ports (COM1, two exits a byte), page (COM1 in memory that is read
    /// without an exit: one a byte) or virtio (Linux's hvc0: one for up to 16 bytes). Linux is told by
    /// its command line
    #[arg(long, value_enum, value_name = "HOW", default_value = "ports")]
    #[arg(hide_possible_values = true)]
    pub console: Way,
    /// Give the guest a disk (virtio): a raw file or a block device, locked against other VMs; can be
    /// repeated
    #[arg(long, value_name = "FILE[,ro][,serial=TEXT]", value_parser = config::disk)]
    pub disk: Vec<block::Wish>,
    /// Give the guest an entropy device (virtio)
    #[arg(long)]
    pub rng: bool,
    /// How hypercalls arrive: auto, xen (KVM passes every VMCALL on, where it can) or gate (a
    /// breakpoint on a registered instruction)
    #[arg(
        long,
        value_name = "WAY",
        default_value = "auto",
        allow_hyphen_values = true
    )]
    pub hypercall: Wish,
    /// Whether the guest is shown its live counters as read-only memory, where this KVM can
    #[arg(long, value_enum, value_name = "on|off", default_value = "on")]
    #[arg(hide_possible_values = true)]
    pub exit_page: Switch,
    /// Print a line on standard error for each query of the guest's
    #[arg(long)]
    pub log_queries: bool,
    /// Take a milestone where the guest comes to this first; can be repeated: symbol:NAME (of its kernel's
    /// code), console:TEXT (on its console), cpuid:LEAF, or port (a milestone of its own)
    #[arg(long, value_name = "WHAT", allow_hyphen_values = true)]
    pub milestone: Vec<Spec>,
    /// Milestones of a whole boot: linux (from the kernel's entry to user space) or none [default: linux
    /// for profile, none for run]
    #[arg(long, value_enum, value_name = "WHOSE", hide_possible_values = true)]
    pub milestones: Option<Sequence>,
    /// End the run, with status 0, at the milestone of this name; or at one as --milestone takes it
    #[arg(long, value_name = "NAME")]
    pub until: Option<String>,
    /// The kernel's symbols: a System.map or an ELF file [default: the kernel's own table]
    #[arg(long, value_name = "FILE")]
    pub symbols: Option<PathBuf>,
    /// Also write the guest's ACPI tables into this folder, one file each, for `iasl -d`
    #[arg(long, value_name = "DIR")]
    pub dump_acpi: Option<PathBuf>,
    /// Also write the guest's device tree to this file, for `dtc -I dtb`
    #[arg(long, value_name = "FILE")]
    pub dump_dtb: Option<PathBuf>,
}

/// How often a guest may reset itself when nothing else is said.
const MAX_RESETS: u32 = 1000;

/// What a reset by the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ResetMode {
    /// The run ends, with status 0.
    End,
    /// The machine boots again, and each boot is profiled.
    Continue,
}

/// Whether something is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// It is.
    On,
    /// It is not.
    Off,
}

/// Format of a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// Everything; what report and compare read.
    Json,
    /// For spreadsheets.
    Csv,
}

/// Format of the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LayoutFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Format of the survey.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CapsFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Format of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CompareFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

impl VmArgs {
    /// Validates what clap could not.
    pub fn config(
        self,
        console: Console,
        timeout: TimeLimit,
        sequence: Sequence,
    ) -> Result<Config, Error> {
        let kernel = self.kernel.ok_or_else(|| {
            Error::Usage(
                "no kernel to boot: give --kernel FILE, or use `cargo xtask run`, which builds \
                 and boots this project's own"
                    .into(),
            )
        })?;
        let on_reset = match (self.on_reset, self.max_resets) {
            (ResetMode::End, None) => OnReset::End,
            (ResetMode::End, Some(_)) => {
                let what = "--max-resets means nothing without --on-reset continue: add that, or \
                            leave it out";
                return Err(Error::Usage(what.into()));
            }
            (ResetMode::Continue, most) => OnReset::Continue(most.unwrap_or(MAX_RESETS)),
        };
        if self.pages == Pages::Huge && !self.memory.bytes().is_multiple_of(HUGE_PAGE) {
            return Err(ConfigError::NotHuge(self.memory.bytes()).into());
        }
        if self.dump_dtb.as_deref() == Some(Path::new("-")) {
            let what = "--dump-dtb needs the name of a file: standard output is not for it alone";
            return Err(Error::Usage(what.into()));
        }
        let milestones = milestones(
            self.milestone,
            self.milestones,
            self.until,
            self.symbols,
            sequence,
        )?;
        Ok(Config {
            milestones,
            firmware: (self.firmware.as_os_str() != "none").then_some(self.firmware),
            kernel,
            boot: self.boot,
            initrd: self.initrd,
            cmdline: self.cmdline,
            memory: self.memory,
            pages: self.pages,
            prefault: self.prefault,
            cpus: self.cpus,
            timeout: self.timeout.unwrap_or(timeout),
            on_reset,
            leaves: self.leaves,
            edition: self.sdm,
            kernel_ledger: KernelWish {
                level: self.ledger.0,
                tracefs: self.tracefs,
            },
            irqchip: self.irqchip,
            way: self.console,
            devices: Devices {
                disks: self.disk,
                rng: self.rng,
            },
            hypercall: self.hypercall,
            exit_page: self.exit_page == Switch::On,
            log_queries: self.log_queries,
            console,
            dump: Dump {
                acpi: self.dump_acpi,
                dtb: self.dump_dtb,
            },
        })
    }
}

/// What milestones are looked for.
fn milestones(
    mut own: Vec<Spec>,
    asked: Option<Sequence>,
    until: Option<String>,
    symbols: Option<PathBuf>,
    usual: Sequence,
) -> Result<Milestones, Error> {
    let until = match until {
        Some(text) if Spec::is_one(&text) => {
            let spec: Spec = text.parse()?;
            let name = spec.name();
            if !own.contains(&spec) {
                own.push(spec);
            }
            Some(name)
        }
        Some(text) if text.trim().is_empty() => {
            let what = "--until needs the name of a milestone: see docs/milestones.md";
            return Err(Error::Usage(what.into()));
        }
        until => until,
    };
    if own.len() > SPECS_MAX {
        let what = format!("{} times --milestone: at most {SPECS_MAX}", own.len());
        return Err(Error::Usage(what));
    }
    Ok(Milestones {
        sequence: asked.unwrap_or(usual),
        asked: asked.is_some(),
        own,
        until,
        symbols,
    })
}

/// Parses the command line; help and version come as text to print, errors as one line.
pub fn parse() -> Result<Cli, Stop> {
    Cli::try_parse().map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Stop::Print(error.to_string()),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Stop::Error(Error::Usage("no command: try `exitvisor --help`".into()))
        }
        _ => Stop::Error(Error::Usage(one_line(&error.to_string()))),
    })
}

/// Why there is nothing to do.
#[derive(Debug)]
pub enum Stop {
    /// Print this and end well.
    Print(String),
    /// End with this error.
    Error(Error),
}

/// clap's message, up to the blank line before its usage, in one line.
fn one_line(message: &str) -> String {
    let message = message.trim_start_matches("error: ");
    let lines: Vec<&str> = message
        .lines()
        .take_while(|l| !l.starts_with("Usage:") && !l.starts_with("For more information"))
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    // Our own messages say what to do; clap's leave that to its usage.
    match lines.as_slice() {
        [only] if !only.contains(": ") => format!("{only}: try `exitvisor --help`"),
        lines => lines.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_holds() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    fn refused(args: &[&str]) -> String {
        let args = [&["exitvisor", "run", "--kernel", "k"], args].concat();
        one_line(&Cli::try_parse_from(args).unwrap_err().to_string())
    }

    #[test]
    fn errors_are_one_line_with_what_to_do() {
        for (args, expected) in [
            (&["--memory", "64X"][..], "write a number with K, M or G"),
            (&["--memory", "0"], "at least 2M"),
            (&["--cpus", "1000"], "from 1 to 254"),
            (&["--leaves", "odd"], "classic, reversed"),
            (&["--sdm", "1999"], "current or 2020"),
            (&["--hypercall", "kvm"], "auto, xen or gate"),
            (&["--pages", "2M"], "auto, host, 4k, thp or huge"),
            (&["--prefault", "all"], "none, touch or kvm"),
            (&["--timeout", "soon"], "for example 30s"),
            (&["--format", "xml"], "possible values: text, json, csv"),
            (&["--nonsense"], "--nonsense"),
        ] {
            let message = refused(args);
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
            assert_eq!(message.lines().count(), 1, "{message:?}");
        }
    }
}
