//! The ablation of memory: one boot with guest memory of different pages, filled in in different ways,
//! side by side.

use serde::Serialize;

use super::{KvmKind, MemoryAccount, Profile};

/// Schema of the ablation as JSON, and its version.
pub const SCHEMA: &str = "exitvisor-memory-ablation";
/// Its version: grows with every change.
pub const VERSION: u32 = 1;

/// EPT violation or nested page fault: the first touch of a page, where paging is nested.
const NESTED: u8 = 48;
/// Exception: the same where KVM shadows page tables, among other exceptions.
const SHADOW: u8 = 0;

/// Boots side by side.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ablation {
    /// Always [`SCHEMA`].
    pub schema: &'static str,
    /// Always [`VERSION`].
    pub version: u32,
    /// The CPU, the kernel and the KVM of the first boot.
    pub host: String,
    /// The guest of the first boot, and its command line.
    pub guest: String,
    /// Guest memory, bytes.
    pub memory: u64,
    /// The reason under which first touches are counted: 48, or 0 (among other exceptions) where KVM
    /// shadows page tables.
    pub reason: u8,
    /// The boots.
    pub rows: Vec<Row>,
    /// Combinations that were not booted, each with why.
    pub skipped: Vec<String>,
    /// What makes the rows not comparable.
    pub doubts: Vec<String>,
}

/// One boot. Exits and cycles are the guest's own.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// How memory was filled in before.
    pub prefault: String,
    /// Of which pages it was to be.
    pub pages: String,
    /// Exits for first touches; null if nobody counted them.
    pub touches: Option<u64>,
    /// TSC cycles of these; null if nobody timed them.
    pub touch_cycles: Option<u64>,
    /// All exits.
    pub exits: u64,
    /// Those that time does not drive; null without the kernel ledger.
    pub fixed: Option<u64>,
    /// Nanoseconds that it took to fill memory in.
    pub prefault_nanos: u64,
    /// Nanoseconds of the boot, after that.
    pub boot_nanos: u64,
    /// Both.
    pub total_nanos: u64,
    /// Bytes of guest memory that the host had given at the end.
    pub resident: u64,
    /// How many of these in huge pages.
    pub huge: u64,
    /// The boot did not come to its end.
    pub cut_short: bool,
}

impl Row {
    fn of(profile: &Profile, memory: &MemoryAccount, reason: u8) -> Self {
        let account = profile.total.reason(reason);
        let counted = profile.has_kernel_ledger();
        let boot_nanos = profile.first_end().nanos;
        Self {
            prefault: memory.prefault.clone(),
            pages: memory.pages.clone(),
            touches: counted.then(|| account.map_or(0, |r| r.guest_exits())),
            touch_cycles: match account {
                Some(account) => account.times().map(|_| account.guest_cycles()),
                None => counted.then_some(0),
            },
            exits: profile.total.guest_total(),
            fixed: profile.fixed(&profile.total).map(|fixed| fixed.count()),
            prefault_nanos: memory.prefault_nanos,
            boot_nanos,
            total_nanos: memory.prefault_nanos.saturating_add(boot_nanos),
            resident: memory.resident,
            huge: memory.huge,
            cut_short: profile.first_end().cut_short,
        }
    }
}

impl Ablation {
    /// Of these profiles, in their order; `None` if there is none, or one says nothing of its memory
    /// (its place is given).
    pub fn of(profiles: &[Profile], skipped: &[String]) -> Result<Self, usize> {
        let first = profiles.first().ok_or(0_usize)?;
        let reason = match (first.host.kvm, first.host.paging.as_str()) {
            (KvmKind::Software, _) | (_, "shadow") => SHADOW,
            _ => NESTED,
        };
        let rows = profiles.iter().enumerate().map(|(place, profile)| {
            let memory = profile.memory.as_ref().ok_or(place)?;
            Ok(Row::of(profile, memory, reason))
        });
        let rows = rows.collect::<Result<Vec<Row>, usize>>()?;
        let mut doubts = Vec::new();
        let mut differs = |what: &str, by: &dyn Fn(&Profile) -> String| {
            if profiles.iter().any(|p| by(p) != by(first)) {
                doubts.push(format!("the boots differ in {what}"));
            }
        };
        differs("their images", &|p| {
            let hashes = p.machine.images.iter().map(|i| i.sha256.as_str());
            hashes.collect::<Vec<_>>().join(" ")
        });
        differs("their command line", &|p| p.machine.cmdline.clone());
        differs("the size of their memory", &|p| {
            p.machine.memory.to_string()
        });
        differs("their CPUs", &|p| p.machine.cpus.to_string());
        differs("their host", &|p| {
            format!(
                "{} {} {:?} {}",
                p.host.cpu, p.host.kernel, p.host.kvm, p.host.paging
            )
        });
        let kernel = first.machine.images.iter().find(|i| i.role == "kernel");
        let kernel = kernel.map_or("no kernel", |i| {
            i.path.rsplit('/').next().unwrap_or(&i.path)
        });
        let paging = &first.host.paging;
        Ok(Self {
            schema: SCHEMA,
            version: VERSION,
            host: format!(
                "{} · Linux {} · {} · {paging} paging",
                first.host.cpu,
                first.host.kernel,
                first.host.kvm.module()
            ),
            guest: format!("{kernel} {}", first.machine.cmdline)
                .trim_end()
                .to_owned(),
            memory: first.machine.memory,
            reason,
            rows,
            skipped: skipped.to_vec(),
            doubts,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::fixtures;
    use super::*;

    /// Boots as they could be: none, touch and kvm by 4k and huge.
    pub(crate) fn boots() -> Vec<Profile> {
        let cases = [
            ("none", "4k", 1043, 0, 0),
            ("touch", "4k", 1043, 9_400_000, 0),
            ("kvm", "4k", 4, 21_700_000, 0),
            ("none", "huge", 37, 0, 64 << 20),
            ("kvm", "huge", 4, 2_300_000, 64 << 20),
        ];
        cases
            .map(|(prefault, pages, touches, nanos, huge)| {
                let mut profile = fixtures::ledger();
                profile.memory = Some(MemoryAccount {
                    pages: pages.into(),
                    prefault: prefault.into(),
                    prefault_nanos: nanos,
                    resident: 64 << 20,
                    huge,
                });
                let total = &mut profile.total;
                let other = total.total;
                let account = total
                    .reasons
                    .iter_mut()
                    .find(|r| r.reason == NESTED)
                    .unwrap();
                total.total = other - account.exits + touches;
                account.exits = touches;
                account.timed = touches;
                account.cycles = touches * 9_000;
                (account.min, account.max) = (8_000, 20_000);
                profile
            })
            .to_vec()
    }

    #[test]
    fn figures() {
        let ablation = Ablation::of(&boots(), &["touch × thp: none here".into()]).unwrap();
        assert_eq!((ablation.reason, ablation.rows.len()), (48, 5));
        assert_eq!(ablation.doubts, [""; 0]);
        let row = &ablation.rows[2];
        assert_eq!((row.touches, row.touch_cycles), (Some(4), Some(36_000)));
        assert_eq!(row.total_nanos, row.boot_nanos + 21_700_000);
        assert!(ablation.rows[0].exits - row.exits == 1039);
    }

    #[test]
    fn what_cannot_be_compared() {
        let mut boots = boots();
        boots[1].machine.cmdline = "another".into();
        boots[2].host.paging = "shadow".into();
        let ablation = Ablation::of(&boots, &[]).unwrap();
        assert_eq!(ablation.doubts.len(), 2);
        boots[3].memory = None;
        assert_eq!(Ablation::of(&boots, &[]), Err(3));
        assert_eq!(Ablation::of(&[], &[]), Err(0));
        // Without the kernel ledger nobody knows how many first touches there were.
        boots = vec![fixtures::software()];
        boots[0].memory = Some(MemoryAccount::default());
        let ablation = Ablation::of(&boots, &[]).unwrap();
        assert_eq!((ablation.reason, ablation.rows[0].touches), (0, None));
    }
}
