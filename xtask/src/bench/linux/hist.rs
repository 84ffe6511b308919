//! tracefs' hist triggers: the kernel's own counters of KVM's events, which know no VMM and count
//! every one alike (linux/Documentation/trace/histogram.rst).

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Where KVM's events are.
const EVENTS: &str = "/sys/kernel/tracing/events/kvm";

/// A counter: one event, by the values of up to two of its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hist {
    event: &'static str,
    /// The fields, as the kernel wants them written.
    keys: &'static str,
    /// Which of the events count.
    filter: &'static str,
}

/// Exits, by the processor's code.
pub(crate) const EXITS: Hist = Hist {
    event: "kvm_exit",
    keys: "exit_reason.hex",
    filter: "",
};
/// Nested page faults, by guest-physical address. 0x400: SVM_EXIT_NPF
/// (linux/arch/x86/include/uapi/asm/svm.h); its second piece of information is the address (AMD APM
/// vol. 2, 15.25.6).
pub(crate) const FAULTS: Hist = Hist {
    event: "kvm_exit",
    keys: "info2.hex",
    filter: " if exit_reason==0x400",
};
/// Returns of KVM_RUN, by KVM_EXIT_….
pub(crate) const RETURNS: Hist = Hist {
    event: "kvm_userspace_exit",
    keys: "reason",
    filter: "",
};
/// Port accesses, by port and direction (1: OUT).
pub(crate) const PORTS: Hist = Hist {
    event: "kvm_pio",
    keys: "port.hex,rw",
    filter: "",
};
/// MSR accesses, by index and direction (1: WRMSR).
pub(crate) const MSRS: Hist = Hist {
    event: "kvm_msr",
    keys: "ecx.hex,write",
    filter: "",
};
/// CPUID, by leaf.
pub(crate) const LEAVES: Hist = Hist {
    event: "kvm_cpuid",
    keys: "function.hex",
    filter: "",
};

/// All of them.
pub(crate) const ALL: [Hist; 6] = [EXITS, FAULTS, RETURNS, PORTS, MSRS, LEAVES];

/// What a counter came to, by its keys; the second is 0 where there is only one.
pub(crate) type Counted = BTreeMap<(u64, u64), u64>;

impl Hist {
    fn file(self, name: &str) -> PathBuf {
        Path::new(EVENTS).join(self.event).join(name)
    }

    /// As the kernel takes it.
    fn trigger(self) -> String {
        format!("hist:keys={}:size=32768{}", self.keys, self.filter)
    }

    fn write(self, text: &str) -> anyhow::Result<()> {
        let path = self.file("trigger");
        let file = OpenOptions::new().append(true).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("cannot write `{text}` to {}", path.display()))
    }

    /// What it has counted.
    pub(crate) fn read(self) -> anyhow::Result<Counted> {
        let path = self.file("hist");
        let text = fs::read_to_string(&path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        counted(&text, self.keys)
    }
}

/// All counters, from zero on, until this is dropped.
#[derive(Debug)]
pub(crate) struct Counting(());

impl Counting {
    /// Sets them.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let counting = Self(());
        for hist in ALL {
            hist.write(&hist.trigger())?;
        }
        Ok(counting)
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        for hist in ALL {
            // One that was not set cannot be taken away.
            let _ = hist.write(&format!("!{}", hist.trigger()));
        }
    }
}

/// Reads what the file `hist` says of the counter with these keys; an event may have several.
fn counted(text: &str, keys: &str) -> anyhow::Result<Counted> {
    let named = format!("keys={keys}:");
    let mut counted = Counted::new();
    let (mut mine, mut found, mut hits) = (false, false, 0);
    for line in text.lines().map(str::trim) {
        if let Some(trigger) = line.strip_prefix("# trigger info: ") {
            mine = trigger.contains(&named);
            found |= mine;
        } else if !mine {
        } else if line.starts_with('{') {
            let (keys, count) = row(line).with_context(|| format!("hist: `{line}`"))?;
            *counted.entry(keys).or_default() += count;
        } else if let Some(number) = line.strip_prefix("Hits:") {
            hits = number.trim().parse()?;
        }
    }
    if !found {
        bail!("there is no counter by {keys}");
    }
    // What had no room is in the hits alone.
    let sum: u64 = counted.values().sum();
    if sum != hits {
        bail!(
            "the counter by {keys} had no room for {} of {hits} hits",
            hits - sum
        );
    }
    Ok(counted)
}

/// `{ port:        3f8, rw:          1 } hitcount:        120`.
fn row(line: &str) -> Option<((u64, u64), u64)> {
    let (keys, rest) = line.strip_prefix('{')?.split_once('}')?;
    let count = rest.trim().strip_prefix("hitcount:")?.trim();
    // Behind it may come sums of other fields.
    let count = count.split_whitespace().next()?.parse().ok()?;
    let mut keys = keys.split(',').map(|key| {
        let (name, value) = key.split_once(':')?;
        let value = value.trim();
        match HEX.contains(&name.trim()) {
            true => u64::from_str_radix(value, 16).ok(),
            false => value.parse().ok(),
        }
    });
    let first = keys.next()??;
    Some(((first, keys.next().map_or(Some(0), |key| key)?), count))
}

/// The fields that are shown in hexadecimal.
const HEX: [&str; 5] = ["exit_reason", "info2", "port", "ecx", "function"];

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "\
# event histogram
#
# trigger info: hist:keys=exit_reason.hex:vals=hitcount:sort=hitcount:size=32768 [active]
#

{ exit_reason:         7c } hitcount:          5
{ exit_reason:        400 } hitcount:         12

Totals:
    Hits: 17
    Entries: 2
    Dropped: 0


# event histogram
#
# trigger info: hist:keys=port.hex,rw:vals=hitcount:sort=hitcount:size=32768 [active]
#

{ port:        3f8, rw:          1 } hitcount:        120
{ port:        3fd, rw:          0 } hitcount:        121

Totals:
    Hits: 242
    Entries: 2
    Dropped: 1
";

    #[test]
    fn counters_are_told_apart() {
        let exits = counted(TWO, "exit_reason.hex").unwrap();
        assert_eq!(exits, Counted::from([((0x7c, 0), 5), ((0x400, 0), 12)]));
        let error = counted(TWO, "port.hex,rw").unwrap_err().to_string();
        assert!(error.ends_with("no room for 1 of 242 hits"), "{error}");
        assert!(counted(TWO, "ecx.hex,write").is_err());
    }

    #[test]
    fn keys_by_their_base() {
        let line = "{ port:        3f8, rw:          1 } hitcount:        120";
        assert_eq!(row(line), Some(((0x3f8, 1), 120)));
        assert_eq!(row("{ reason: 10 } hitcount: 3"), Some(((10, 0), 3)));
        assert_eq!(row("{ reason: x } hitcount: 3"), None);
        assert_eq!(row("{ reason: 1 }"), None);
    }
}
