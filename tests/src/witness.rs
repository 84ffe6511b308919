//! An independent witness: histogram triggers of the kernel's own tracing, by raw fields and
//! thread (linux/Documentation/trace/histogram.rst). They lose nothing, or say how much.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use exitvisor::exits::reason::{svm, vmx};
use exitvisor::layout::{HIGH_START, guest_ram};
use exitvisor::profile::{Accounts, AskKind, KvmKind, Profile};

use crate::{Live, Run};

const TRACEFS: &str = "/sys/kernel/tracing";
/// Codes whose reason depends on EXITINFO1: MSR, nested page fault, AVIC_NOACCEL.
const SPLIT: [u64; 3] = [0x7C, 0x400, 0x402];

/// Event, keys (at most three), condition. The keys of one event differ, so that its histograms can
/// be told apart: by the last of them.
const TRIGGERS: [(&str, &str, &str); 8] = [
    ("kvm_exit", "common_pid,vcpu_id,exit_reason", ""),
    (
        "kvm_exit",
        "common_pid,exit_reason,info1",
        " if exit_reason == 0x7c || exit_reason == 0x400 || exit_reason == 0x402 \
         || exit_reason == 0x7b || exit_reason == 0x1e",
    ),
    ("kvm_exit", "common_pid,exit_reason,guest_rip", ""),
    (
        "kvm_exit",
        "common_pid,exit_reason,info2",
        " if exit_reason == 0x400",
    ),
    ("kvm_msr", "common_pid,write,ecx", ""),
    ("kvm_pio", "common_pid,rw,port", ""),
    ("kvm_cpuid", "common_pid,function", ""),
    ("kvm_page_fault", "common_pid,fault_address", ""),
];
/// The events of these.
const EVENTS: [&str; 5] = [
    "kvm_exit",
    "kvm_msr",
    "kvm_pio",
    "kvm_cpuid",
    "kvm_page_fault",
];
/// Reasons whose exits are kept without a place: what time drives.
const PLACELESS: [u8; 4] = [1, 7, 8, 52];

/// Triggers that count, in a tracing instance of their own; they go with it.
pub struct Witness {
    instance: PathBuf,
}

/// One line of a histogram: its keys, and how often they were seen.
type Line = (BTreeMap<String, u64>, u64);

impl Witness {
    /// Sets the triggers; why not, where that cannot be done.
    pub fn set() -> Result<Self, String> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Relaxed);
        let name = format!("exitvisor-witness-{}-{number}", std::process::id());
        let instance = Path::new(TRACEFS).join("instances").join(name);
        fs::create_dir(&instance)
            .map_err(|error| format!("a witness needs root and tracefs at {TRACEFS} ({error})"))?;
        let witness = Self { instance };
        for (event, keys, condition) in TRIGGERS {
            let text = format!("hist:keys={keys}:size=16384{condition}\n");
            witness.add(event, &text).map_err(|error| {
                format!("this kernel's tracing has no histograms of kvm:{event} ({error})")
            })?;
        }
        Ok(witness)
    }

    fn add(&self, event: &str, trigger: &str) -> io::Result<()> {
        use std::io::Write;
        let path = self.event(event).join("trigger");
        let mut file = fs::OpenOptions::new().append(true).open(path)?;
        file.write_all(trigger.as_bytes())
    }

    fn event(&self, name: &str) -> PathBuf {
        self.instance.join("events/kvm").join(name)
    }

    /// Everything that was counted so far.
    pub fn testimony(&self) -> Testimony {
        let mut lines = BTreeMap::new();
        for event in EVENTS {
            let text = fs::read_to_string(self.event(event).join("hist")).expect("a histogram");
            for dropped in text
                .lines()
                .filter_map(|l| l.trim().strip_prefix("Dropped: "))
            {
                assert_eq!(dropped, "0", "the witness was overcharged: {text}");
            }
            lines.insert(event, text.lines().filter_map(parse).collect::<Vec<_>>());
        }
        Testimony { lines }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // An instance with triggers can be removed: they go with it.
        if let Err(error) = fs::remove_dir(&self.instance) {
            eprintln!("cannot remove {}: {error}", self.instance.display());
        }
    }
}

/// `{ common_pid:        139, exit_reason:        114 } hitcount:       1000`
fn parse(line: &str) -> Option<Line> {
    let (keys, count) = line.strip_prefix("{ ")?.split_once("} hitcount:")?;
    let number = |text: &str| {
        let text = text.trim();
        text.strip_prefix("0x").map_or_else(
            || {
                text.parse::<i64>()
                    .map(i64::cast_unsigned)
                    .or_else(|_| text.parse())
            },
            |hex| u64::from_str_radix(hex, 16),
        )
    };
    let mut fields = BTreeMap::new();
    for part in keys.split(',') {
        let (name, value) = part.split_once(':')?;
        fields.insert(name.trim().to_owned(), number(value).ok()?);
    }
    Some((fields, count.trim().parse().ok()?))
}

/// What the witness has seen, of all threads of the machine.
pub struct Testimony {
    lines: BTreeMap<&'static str, Vec<Line>>,
}

/// Raw code and reason (of the AMD codes that have two) to exits.
type Codes = BTreeMap<u64, u64>;
type Asks = BTreeMap<(AskKind, u64), u64>;

impl Testimony {
    /// The lines of the histogram with this key, of these threads.
    fn of<'t>(
        &'t self,
        event: &str,
        threads: &'t BTreeSet<u64>,
        key: &'static str,
    ) -> impl Iterator<Item = &'t Line> {
        let lines = self.lines.get(event).map_or(&[][..], Vec::as_slice);
        lines.iter().filter(move |(keys, _)| {
            keys.contains_key(key)
                && keys
                    .get("common_pid")
                    .is_some_and(|pid| threads.contains(pid))
        })
    }

    /// Threads with exits that are neither among these nor alive: their exits would be nobody's.
    #[track_caller]
    pub fn check_no_unknown(&self, known: &[&Threads]) {
        let known: BTreeSet<u64> = known.iter().flat_map(|t| t.all()).collect();
        for (keys, hits) in self.lines.values().flatten() {
            let pid = keys.get("common_pid").copied().unwrap_or(0);
            let alive = Path::new(&format!("/proc/{pid}")).exists();
            assert!(
                known.contains(&pid) || alive,
                "{hits} events of thread {pid}, which nobody knows: {keys:?}"
            );
        }
    }

    /// Threads with exits that have ended, and which vCPUs they were.
    fn of_the_dead(&self) -> BTreeMap<u64, u64> {
        let exits = self.lines.get("kvm_exit").into_iter().flatten();
        let threads = exits.filter_map(|(keys, _)| {
            let (thread, vcpu) = (*keys.get("common_pid")?, *keys.get("vcpu_id")?);
            let alive = Path::new(&format!("/proc/{thread}")).exists();
            (!alive).then_some((thread, vcpu))
        });
        threads.collect()
    }

    fn codes(&self, kvm: KvmKind, threads: &BTreeSet<u64>) -> Codes {
        let mut codes = Codes::new();
        for (keys, hits) in self.of("kvm_exit", threads, "vcpu_id") {
            *codes.entry(code(kvm, keys["exit_reason"])).or_default() += hits;
        }
        codes
    }

    /// What exits were for, as the events tell.
    fn asks(&self, profile: &Profile, threads: &BTreeSet<u64>) -> Asks {
        let mut asks = Asks::new();
        let mut add = |kind, index, hits: &u64| *asks.entry((kind, index)).or_default() += hits;
        for (keys, hits) in self.of("kvm_msr", threads, "ecx") {
            let kind = match keys["write"] {
                0 => AskKind::MsrRead,
                _ => AskKind::MsrWrite,
            };
            add(kind, keys["ecx"] & 0xFFFF_FFFF, hits);
        }
        for (keys, hits) in self.of("kvm_cpuid", threads, "function") {
            add(AskKind::Cpuid, keys["function"] & 0xFFFF_FFFF, hits);
        }
        // AMD64 APM vol. 2, 15.10.2; SDM vol. 3C, table 28-5.
        let (io, is_in) = match profile.host.kvm {
            KvmKind::Amd => (0x7B, 1 << 0),
            _ => (30, 1 << 3),
        };
        for (keys, hits) in self.of("kvm_exit", threads, "info1") {
            let (code, info1) = (keys["exit_reason"], keys["info1"]);
            if code == io {
                let kind = match info1 & is_in {
                    0 => AskKind::PortOut,
                    _ => AskKind::PortIn,
                };
                add(kind, info1 >> 16 & 0xFFFF, hits);
            }
        }
        if profile.host.kvm == KvmKind::Amd && profile.host.paging == "nested" {
            for (keys, hits) in self.of("kvm_exit", threads, "info2") {
                let (kind, index) = page(profile, keys["info2"]);
                add(kind, index, hits);
            }
        }
        asks
    }

    /// Where exits came from: by reason (the lower one of those that share a code) and address.
    fn places(&self, kvm: KvmKind, threads: &BTreeSet<u64>) -> BTreeMap<(u8, u64), u64> {
        let mut places = BTreeMap::new();
        for (keys, hits) in self.of("kvm_exit", threads, "guest_rip") {
            let code = code(kvm, keys["exit_reason"]);
            let reason = match kvm {
                KvmKind::Amd => svm::translate(code, 0),
                _ => vmx::translate(code as u32).reason,
            };
            let reason = reason.map(|r| shared(r.number()));
            if let Some(reason) = reason.filter(|r| !PLACELESS.contains(r)) {
                *places.entry((reason, keys["guest_rip"])).or_default() += hits;
            }
        }
        places
    }

    /// Every key, and every place, of all that exits were for.
    #[track_caller]
    fn check_culprits(&self, profile: &Profile, threads: &BTreeSet<u64>) {
        let seen = self.asks(profile, threads);
        let kinds: BTreeSet<AskKind> = seen.keys().map(|(kind, _)| *kind).collect();
        let asks = profile.total.asks.iter();
        let ours: Asks = asks
            .filter(|ask| kinds.contains(&ask.kind))
            .map(|ask| ((ask.kind, ask.index), ask.count))
            .collect();
        assert_eq!(ours, seen, "what exits were for");
        let culprits = profile.culprits().expect("a profile with culprits");
        let mut ours = BTreeMap::<(u8, u64), u64>::new();
        for (culprit, tally) in culprits.each() {
            if let Some((reason, rip)) = culprit.reason.zip(culprit.rip) {
                *ours.entry((shared(reason), rip)).or_default() += tally.exits;
            }
        }
        let seen = self.places(profile.host.kvm, threads);
        assert_eq!(ours, seen, "where exits came from");
    }

    /// Checks a run's profile: every code of every vCPU, and of all together what exits were for
    /// and where they came from, equals what was witnessed of the run's threads, to the last exit.
    #[track_caller]
    pub fn check(&self, profile: &Profile, threads: &Threads) {
        let kvm = profile.host.kvm;
        let mut all = 0;
        for (index, accounts) in profile.vcpus.iter().enumerate() {
            let of_vcpu = threads.of(index as u64);
            let seen = self.codes(kvm, &of_vcpu);
            all += seen.values().sum::<u64>();
            check_codes(kvm, accounts, &seen, &format!("vCPU {index}"));
            self.check_splits(kvm, accounts, &of_vcpu);
            // The tracepoint's own idea of which vCPU it was.
            for (keys, _) in self.of("kvm_exit", &of_vcpu, "vcpu_id") {
                assert_eq!(keys["vcpu_id"], index as u64, "{keys:?}");
            }
        }
        check_codes(
            kvm,
            &profile.total,
            &self.codes(kvm, &threads.all()),
            "total",
        );
        assert_eq!(profile.total.total, all, "KVM's own count and the witness");
        assert_eq!(profile.total.asks_dropped, 0);
        self.check_culprits(profile, &threads.all());
    }

    /// The codes that have two reasons, by what came with them.
    #[track_caller]
    fn check_splits(&self, kvm: KvmKind, accounts: &Accounts, threads: &BTreeSet<u64>) {
        if kvm != KvmKind::Amd {
            return;
        }
        let mut seen = BTreeMap::<(u64, Option<u8>), u64>::new();
        for (keys, hits) in self.of("kvm_exit", threads, "info1") {
            let (code, info1) = (keys["exit_reason"], keys["info1"]);
            // AMD64 APM vol. 2, 15.11 (MSR), 15.25.6 (nested page fault).
            let reason = match code {
                0x7C => Some(if info1 & 1 == 0 { 31 } else { 32 }),
                0x400 => Some(if info1 & 8 == 0 { 48 } else { 49 }),
                // Neither lab has AVIC; its table has tests of its own.
                0x402 => return,
                _ => continue,
            };
            *seen.entry((code, reason)).or_default() += hits;
        }
        let codes = accounts.codes.iter();
        let ours = codes.filter_map(|c| {
            let code = c.code.filter(|code| SPLIT.contains(code))?;
            Some(((code, c.reason), c.exits))
        });
        assert_eq!(ours.collect::<BTreeMap<_, _>>(), seen, "splits");
    }
}

/// The page that a guest-physical address lies in, as profiles tell pages apart.
fn page(profile: &Profile, address: u64) -> (AskKind, u64) {
    let ram = guest_ram(profile.machine.memory);
    let is_ram = |&(start, length): &(u64, u64)| {
        start >= HIGH_START && (start..start + length).contains(&address)
    };
    match ram.iter().any(is_ram) {
        true => (AskKind::Ram, address & !0x1F_FFFF),
        false => (AskKind::Page, address & !0xFFF),
    }
}

/// One reason for those that share a code on AMD.
fn shared(reason: u8) -> u8 {
    match reason {
        32 => 31,
        49 => 48,
        other => other,
    }
}

/// The code as profiles have it.
fn code(kvm: KvmKind, traced: u64) -> u64 {
    match kvm {
        // The basic exit reason; flags are above.
        KvmKind::Intel => traced & 0xFFFF,
        // −1 and its neighbours are negative 64-bit numbers that the trace cuts.
        _ => traced & 0xFFFF_FFFF,
    }
}

#[track_caller]
fn check_codes(kvm: KvmKind, accounts: &Accounts, seen: &Codes, what: &str) {
    let mut ours = Codes::new();
    let mut without_code = 0;
    for account in &accounts.codes {
        match account.code {
            Some(raw) => *ours.entry(code(kvm, raw)).or_default() += account.exits,
            None => without_code += account.exits,
        }
    }
    let mut seen = seen.clone();
    let not_ours: Vec<u64> = seen
        .keys()
        .filter(|c| !ours.contains_key(c))
        .copied()
        .collect();
    let in_bucket: u64 = not_ours.iter().filter_map(|c| seen.remove(c)).sum();
    assert_eq!(
        ours, seen,
        "{what}: exits by raw code, ours and the witness's"
    );
    assert_eq!(
        without_code, in_bucket,
        "{what}: codes without a place {not_ours:X?}"
    );
}

/// The vCPU threads of a run, as they were seen while it ran.
#[derive(Debug, Default)]
pub struct Threads(BTreeMap<u64, u64>);

impl Threads {
    /// Those of one vCPU.
    pub fn of(&self, vcpu: u64) -> BTreeSet<u64> {
        let of_it = self.0.iter().filter(|(_, v)| **v == vcpu);
        of_it.map(|(thread, _)| *thread).collect()
    }

    /// All of them.
    pub fn all(&self) -> BTreeSet<u64> {
        self.0.keys().copied().collect()
    }

    /// Looks which there are now.
    pub fn look(&mut self, process: u32) {
        let tasks = fs::read_dir(format!("/proc/{process}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let path = task.path();
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            let vcpu = name
                .trim()
                .strip_prefix("vcpu")
                .and_then(|n| n.parse().ok());
            let thread = path.file_name().and_then(|n| n.to_str()?.parse().ok());
            if let (Some(vcpu), Some(thread)) = (vcpu, thread) {
                self.0.insert(thread, vcpu);
            }
        }
    }
}

/// Somebody who writes down a run's vCPU threads while it runs.
pub struct Registrar {
    over: Arc<AtomicBool>,
    looking: JoinHandle<Threads>,
}

impl Registrar {
    /// Begins to look.
    pub fn of(live: &Live) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (process, seen) = (live.id(), over.clone());
        let looking = thread::spawn(move || {
            let mut threads = Threads::default();
            while !seen.load(Relaxed) {
                threads.look(process);
                thread::sleep(Duration::from_millis(1));
            }
            threads
        });
        Self { over, looking }
    }

    /// What was seen.
    pub fn threads(self) -> Threads {
        self.over.store(true, Relaxed);
        self.looking.join().expect("a registrar")
    }
}

/// Runs an `exitvisor` to its end with a witness, and compares the two.
#[track_caller]
pub fn witnessed(command: &mut Command) -> (Run, Threads) {
    let witness = Witness::set().expect("a witness: the test has asked before");
    let live = Live::of(command.spawn().expect("exitvisor starts"));
    let registrar = Registrar::of(&live);
    let run = live.finish();
    let mut threads = registrar.threads();
    let testimony = witness.testimony();
    // A run can be over before anybody has looked: who has had exits and is gone was of it.
    threads.0.extend(testimony.of_the_dead());
    assert!(!threads.0.is_empty(), "no vCPU thread was seen: {run:#?}");
    testimony.check(&run.profile(), &threads);
    (run, threads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_histograms() {
        let keys = |pairs: &[(&str, u64)]| {
            let own = pairs.iter().map(|(k, v)| ((*k).to_owned(), *v));
            own.collect::<BTreeMap<_, _>>()
        };
        assert_eq!(
            parse("{ common_pid:        139, exit_reason:        114 } hitcount:       1000"),
            Some((keys(&[("common_pid", 139), ("exit_reason", 114)]), 1000))
        );
        assert_eq!(
            parse("{ exit_reason: 4294967295, info1: 18446744073709551615 } hitcount: 1"),
            Some((
                keys(&[("exit_reason", u32::MAX.into()), ("info1", u64::MAX)]),
                1
            ))
        );
        for other in [
            "",
            "# event histogram",
            "    Hits: 3",
            "{ a: b } hitcount: 1",
        ] {
            assert_eq!(parse(other), None);
        }
    }
}
