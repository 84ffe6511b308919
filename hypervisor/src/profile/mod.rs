//! The profile: snapshots and metadata as pure data, serialisable and versioned.
//!
//! Every ratio and difference is a method here; reports render, they do not compute. The schema
//! in prose is `docs/profile-schema.md`.

pub mod ablation;
mod asked;
pub mod compare;
pub mod culprits;
pub mod deputy;
pub mod durations;
pub mod figures;
pub mod fixed;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod limit;
pub mod load;
pub mod paging;
pub mod passes;
pub mod questions;
pub mod runs;
pub mod save;
pub mod split;

use serde::{Deserialize, Serialize};

/// Value of [`Profile::schema`].
pub const SCHEMA: &str = "exitvisor-profile";
/// Version of the schema that this code writes, and the highest that it reads.
pub const VERSION: u32 = 4;

/// One run, measured: its first boot, and those that followed it if the guest reset itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// Schema version.
    pub version: u32,
    /// What wrote it.
    pub tool: Tool,
    /// When the VM started: RFC 3339, UTC.
    pub created: String,
    /// The machine underneath.
    pub host: Host,
    /// The VM.
    pub machine: Machine,
    /// Where the figures come from, and how complete each source is.
    pub sources: Vec<SourceInfo>,
    /// How the whole run ended.
    pub end: End,
    /// Snapshots, in the order in which they were taken; the first is "reset".
    pub milestones: Vec<Milestone>,
    /// Milestones that were reached after the room for snapshots was used up.
    pub milestones_dropped: u64,
    /// Milestones that were looked for in the first boot, and not reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub milestones_missed: Vec<Missed>,
    /// The accounts at the end of the first boot, all vCPUs together.
    pub total: Accounts,
    /// The same per vCPU.
    pub vcpus: Vec<Accounts>,
    /// What the gates did.
    pub gates: GateFigures,
    /// What guest memory was made of in the first boot; absent before version 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryAccount>,
    /// What its virtio devices did in the first boot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// CPU time, user's and system's, of the process from its start until the first vCPU first entered
    /// the guest, nanoseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup_cpu_nanos: Option<u64>,
    /// How long exits took, per reason (`--ledger histogram`): the first boot, all vCPUs together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub histograms: Vec<Histogram>,
    /// Who caused the exits of the first boot: [`Accounts::culprits`] counts them in this order. Absent
    /// before version 4.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub culprits: Vec<Culprit>,
    /// How the first boot ended, if that was not the end of the run; else it is `end`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_end: Option<End>,
    /// The boots after the first: the guest reset itself, and was allowed to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reboots: Vec<Pass>,
    /// Reboots of which nothing is kept: the room for them was used up.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reboots_dropped: u64,
    /// Every reason of 0–127 that the chosen edition of the SDM defines, with what this KVM can
    /// raise: tells "never seen" from "cannot occur here".
    pub reasons: Vec<ReasonInfo>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A boot after the first, measured as the first is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pass {
    /// When its VM started: nanoseconds since the first did.
    pub start_nanos: u64,
    /// How it ended; its clocks count from its own start.
    pub end: End,
    /// Snapshots, as of the first boot; their clocks count from its own start.
    pub milestones: Vec<Milestone>,
    /// Milestones for which there was no room.
    pub milestones_dropped: u64,
    /// Milestones that were looked for, and not reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub milestones_missed: Vec<Missed>,
    /// The accounts at its end, all vCPUs together.
    pub total: Accounts,
    /// The same per vCPU.
    pub vcpus: Vec<Accounts>,
    /// What the gates did.
    pub gates: GateFigures,
    /// What guest memory was made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryAccount>,
    /// What its virtio devices did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// As of the first boot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub histograms: Vec<Histogram>,
    /// As of the first boot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub culprits: Vec<Culprit>,
}

/// A virtio device, and what it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// `blk0`, `console0`, `net0`, `rng0`, …
    pub name: String,
    /// Guest-physical address of the page of its registers.
    pub address: u64,
    /// Its interrupt.
    pub gsi: u32,
    /// Accesses to its registers that reached the VMM. (Reads do not, where KVM has read-only memory; nor
    /// do kicks, where a thread hears them.)
    pub exits: u64,
    /// Kicks; of those that a thread heard, as many as it heard one by one.
    pub kicks: u64,
    /// Requests, on all queues.
    pub requests: u64,
    /// Interrupts that it raised.
    pub interrupts: u64,
    /// Bytes that the guest got.
    pub to_guest: u64,
    /// Bytes that the guest sent, requests' headers included.
    pub from_guest: u64,
    /// How often the guest set it up or used it in a way that makes no sense, so that it stood still until
    /// it was reset.
    pub broken: u64,
}

/// The program that wrote a profile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// `exitvisor`.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// The machine underneath.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// CPU model name, as `/proc/cpuinfo` gives it.
    pub cpu: String,
    /// Kernel release (`uname -r`).
    pub kernel: String,
    /// Which KVM.
    pub kvm: KvmKind,
    /// `nested`, `shadow` or `unknown`.
    pub paging: String,
    /// TSC frequency in kHz, as KVM reports it for the vCPU; 0 if it does not.
    pub tsc_khz: u64,
}

/// Which KVM runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KvmKind {
    /// `kvm_intel`.
    Intel,
    /// `kvm_amd`.
    Amd,
    /// A KVM without hardware virtualization underneath (`kvm_pvm`).
    Software,
    /// None of these modules is visible.
    Unknown,
}

impl KvmKind {
    /// The kernel module, for people.
    pub fn module(self) -> &'static str {
        match self {
            Self::Intel => "kvm_intel",
            Self::Amd => "kvm_amd",
            Self::Software => "kvm_pvm",
            Self::Unknown => "unknown KVM",
        }
    }
}

/// The VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Number of vCPUs.
    pub cpus: u32,
    /// Guest memory, bytes.
    pub memory: u64,
    /// Kernel command line.
    pub cmdline: String,
    /// `classic`, `reversed` or `custom`.
    pub layout: String,
    /// The four leaves: total exits, total cycles, exits of ECX, cycles of ECX.
    pub leaves: [u32; 4],
    /// Edition of the SDM table: `current` or `2020`.
    pub sdm: String,
    /// How the kernel was entered: `PVH`, `Linux 64-bit`; `… via firmware`.
    pub boot: String,
    /// How hypercalls reached the VMM: `xen` (KVM passed every one on, as KVM_EXIT_XEN) or `gate`
    /// (a breakpoint on the instruction); absent before version 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hypercall: Option<String>,
    /// The files that were loaded.
    pub images: Vec<Image>,
    /// Who wrote the exit page of the first boot ([`exit_abi::page::PageKind::name`]), if there was
    /// one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_page: Option<String>,
}

/// A file that was loaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// `kernel`, `firmware` or `initrd`.
    pub role: String,
    /// Its path, as given.
    pub path: String,
    /// Its size, bytes.
    pub bytes: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
}

/// Where figures come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceInfo {
    /// `KVM_RUN`, `KVM stats`, `kernel ledger`.
    pub name: String,
    /// Whether it served in this run.
    pub available: bool,
    /// What it counts, and what it cannot see; or why it was not available.
    pub completeness: String,
    /// How much it kept, where that was a choice: `counts`, `cycles`, `histogram`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
}

/// How a run, or one of its boots, ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// The exit status of the process.
    pub status: u8,
    /// In what way.
    pub kind: EndKind,
    /// One line for people.
    pub detail: String,
    /// The guest did not end by itself: the profile stops in the middle.
    pub cut_short: bool,
    /// TSC cycles since the VM started.
    pub tsc: u64,
    /// Nanoseconds since the VM started (CLOCK_MONOTONIC).
    pub nanos: u64,
}

/// In what way a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndKind {
    /// The guest wrote its exit status.
    Exit,
    /// The guest said that it crashed.
    Crash,
    /// The guest powered the machine off.
    PowerOff,
    /// The guest reset the machine.
    Reset,
    /// The milestone was reached that was to end it.
    Milestone,
    /// The guest reset the machine more often than it may.
    ResetLimit,
    /// Triple fault.
    TripleFault,
    /// The time limit was reached.
    Timeout,
    /// A person or another process interrupted it (SIGINT, SIGTERM, SIGHUP, the escape key).
    Interrupted,
    /// KVM could not go on with the guest.
    KvmError,
    /// An error of Exitvisor's own or of the host.
    Internal,
}

/// The accounts at a milestone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Milestone {
    /// Its number (`exit_abi::milestone`); guests' own start at 0x100.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// How it was noticed; absent before version 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<MilestoneKind>,
    /// The symbol at which it was, if it was at one and that is not its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// The vCPU that reached it.
    pub vcpu: u32,
    /// TSC cycles since the VM started.
    pub tsc: u64,
    /// Nanoseconds since the VM started (CLOCK_MONOTONIC).
    pub nanos: u64,
    /// The accounts, cumulative, all vCPUs together.
    pub accounts: Accounts,
}

/// How a milestone was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MilestoneKind {
    /// The VM started.
    Reset,
    /// The guest wrote to its milestone port.
    Port,
    /// An execute breakpoint.
    Breakpoint,
    /// What the guest wrote to its console.
    Console,
    /// A CPUID of the guest's.
    Cpuid,
}

/// A milestone that was looked for, and not reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Missed {
    /// Its name.
    pub name: String,
    /// One line for people.
    pub why: String,
}

/// Exits and cycles, cumulative since the VM started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accounts {
    /// All exits known of: KVM's own count where there is one, else what was attributed.
    pub total: u64,
    /// Exits handled in the kernel whose reason no source shows, and that are the guest's:
    /// `total` + `excess` - Σ `reasons` - `other` - `own_residual`.
    pub residual: u64,
    /// The same within sections of the profiler's own (while the exit log asks and prints).
    pub own_residual: u64,
    /// Attributed by no basic exit reason (a KVM exit without one), counted and shown.
    pub other: u64,
    /// How many exits were attributed beyond KVM's own count (0, or the sources disagree).
    pub excess: u64,
    /// Per reason, by number; only those that are not zero.
    pub reasons: Vec<ReasonAccount>,
    /// Entries that failed (VM exits with bit 31 of the exit reason set; SDM vol. 3C, 27.8). They
    /// are among the exits of their reason.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failed: u64,
    /// How many exits reached userspace, so far as KVM_RUN's returns tell (one exit can return
    /// several times: a wide or page-crossing access, a long string).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub userspace: u64,
    /// How many of them are the profiler's own.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub own_userspace: u64,
    /// TSC cycles in the VMM: from KVM_RUN's return to the next KVM_RUN, all exits together.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub vmm_cycles: u64,
    /// How many of them are the profiler's own.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub own_vmm_cycles: u64,
    /// TSC cycles for which KVM had the vCPU wait in HLT, polling or asleep (KVM's statistics, in
    /// nanoseconds, times the TSC's rate). They are among the cycles of reason 12.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub blocked_cycles: u64,
    /// The processor's own exit codes behind the reasons (kernel ledger), those that are not zero,
    /// by their place in the ledger; also the codes without a reason, which add up to `other`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub codes: Vec<CodeAccount>,
    /// What was asked for: MSRs, ports, leaves, pages (kernel ledger; before version 4 MSRs and ports,
    /// of emulated events leaves too). Ordered by kind, then by number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asks: Vec<Ask>,
    /// Accesses for which `asks` had no room.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub asks_dropped: u64,
    /// Exits by who caused them, in the order of [`Profile::culprits`]; what is not there is 0. All
    /// vCPUs together: absent in those of one vCPU.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub culprits: Vec<u64>,
    /// Their TSC cycles from exit to next entry, so far as they are timed: in the total alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub culprit_cycles: Vec<u64>,
    /// What KVM emulated, where hardware exits cannot be traced (software KVM): events, not exits,
    /// and in no sum of exits. By reason; only those that are not zero.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub emulated: Vec<EventAccount>,
}

/// An exit code of the processor's, counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodeAccount {
    /// The code: a basic exit reason on Intel, EXITCODE on AMD; absent for all codes that are not
    /// in the tables, together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u64>,
    /// Its name; one code can have several, told apart by what came with it (`MSR read`,
    /// `MSR write`).
    pub name: String,
    /// The basic exit reason that it counts under; absent if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<u8>,
    /// Exits, the profiler's own included.
    pub exits: u64,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AskKind {
    /// RDMSR of this index.
    MsrRead,
    /// WRMSR of this index.
    MsrWrite,
    /// IN from this port.
    PortIn,
    /// OUT to this port.
    PortOut,
    /// CPUID with this EAX.
    Cpuid,
    /// An access to the guest-physical page of 4 KiB at this address: a device's, or nobody's.
    Page,
    /// The same to RAM: the 2 MiB at this address.
    Ram,
    /// An exception with this vector.
    Exception,
    /// An interrupt of the host's with this vector (where the processor tells it: VMX).
    Interrupt,
    /// A read of this control register.
    CrRead,
    /// A write of this control register.
    CrWrite,
}

/// Accesses to one MSR, port, leaf or page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// What is asked for.
    pub kind: AskKind,
    /// Which.
    pub index: u64,
    /// How often, the profiler's own included.
    pub count: u64,
}

/// Who caused exits: what they were for, and where in the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Culprit {
    /// The basic exit reason; absent for codes that have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<u8>,
    /// What was asked for; absent where the reason has no such thing, or it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<AskKind>,
    /// Which: there if `kind` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// The guest's instruction pointer; absent for what time drives (it would be anywhere), for emulated
    /// events, and where there was no room for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rip: Option<u64>,
    /// The function that it lies in, with the offset (`lapic_next_deadline+0x1c`), where symbols were
    /// known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symbol: Option<String>,
    /// The address to which that function returns, where it is one that others call for its instruction
    /// (`native_write_msr`) and the guest's stack told; before version 4 never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<u64>,
    /// The function that lies in, with the offset: the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub called_from: Option<String>,
    /// Why all that is known of these is the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<Lost>,
}

/// Why it is not known what exits were for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lost {
    /// The table was full.
    NoRoom,
    /// KVM did not trace it.
    NotTold,
}

/// Events that KVM emulated, by the reason that hardware would have had for an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventAccount {
    /// Basic exit reason.
    pub reason: u8,
    /// Events, the profiler's own included.
    pub events: u64,
    /// How many of them are the profiler's own.
    pub own: u64,
}

/// How long the exits of a reason took, the profiler's own included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Histogram {
    /// Basic exit reason.
    pub reason: u8,
    /// Timed exits by duration: place i has those of 2^i up to 2^(i+1) nanoseconds, place 0 also
    /// the shorter ones, the last of 32 also the longer ones. Trailing zeros are left out.
    pub buckets: Vec<u64>,
}

/// One reason's account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReasonAccount {
    /// Basic exit reason.
    pub reason: u8,
    /// Exits of this reason, the profiler's own included.
    pub exits: u64,
    /// How many of them are the profiler's own (gates, milestones, exit log).
    pub own: u64,
    /// How many of the exits were timed.
    pub timed: u64,
    /// How many of the profiler's own were timed.
    pub own_timed: u64,
    /// TSC cycles from exit to next entry, summed over the timed ones, the profiler's own included.
    pub cycles: u64,
    /// How many of these cycles are the profiler's own.
    pub own_cycles: u64,
    /// Shortest timed exit that is the guest's; 0 if there was none.
    pub min: u64,
    /// Longest timed exit that is the guest's; 0 if there was none.
    pub max: u64,
    /// The source of `exits`: `KVM_RUN`, `KVM stats`, `kernel ledger`.
    pub source: String,
}

/// What the gates did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateFigures {
    /// Queries answered.
    pub queries: u64,
    /// Hypercalls answered.
    pub hypercalls: u64,
    /// Gated instructions that were stepped over unchanged.
    pub stepped: u64,
    /// Debug exceptions that were not ours and were given back to the guest.
    pub foreign: u64,
    /// Most gates armed at once, of four. While one is, KVM masks the guest's own hardware
    /// breakpoints (software KVM does not).
    pub armed: u64,
}

/// What guest memory was made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryAccount {
    /// Pages that were asked for: `host` (as the host is set up), `4k`, `thp` or `huge`.
    pub pages: String,
    /// How it was filled in before the boot: `none`, `touch` or `kvm`.
    pub prefault: String,
    /// Nanoseconds that took, before the VM started: in no other figure.
    pub prefault_nanos: u64,
    /// Bytes that the host had given at the end.
    pub resident: u64,
    /// How many of these in huge pages.
    pub huge: u64,
}

/// What is known of a reason on this host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReasonInfo {
    /// Basic exit reason.
    pub reason: u8,
    /// Its name, after the SDM's.
    pub name: String,
    /// Whether this KVM can raise it.
    pub can_occur: bool,
    /// Whether every exit of this reason was counted.
    pub exact: bool,
}
