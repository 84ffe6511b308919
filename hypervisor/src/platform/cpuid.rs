//! CPUID: what KVM supports, and the leaves that are shaped on purpose ([`LEAVES`]).

use exit_abi::leaf::{self, Layout, Registers};
use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use crate::exits::gate;

/// Leaves that are not as KVM gives them: which, and how. Prose: `docs/platform.md`, which a test holds
/// against this.
pub const LEAVES: &[(&str, &str)] = &[
    (
        "1",
        "EBX[31:24] = APIC ID, EBX[23:16] = vCPUs of the package, EDX[28] HTT with more than one; ECX[24] \
         TSC deadline timer, which needs no calibration, ECX[31] hypervisor present; EDX[12] MTRR off: KVM \
         maps all memory as write-back whatever they say, and Linux reads 39 of them",
    ),
    (
        "4, 0x8000001D",
        "EAX[25:14]: a vCPU has caches of level 1 and 2 to itself, and shares others with all; leaf 4: \
         EAX[31:26] = cores of the package, less one",
    ),
    (
        "7.0",
        "ECX[16] LA57 off: gates are checked as 48-bit addresses",
    ),
    (
        "0xB, 0x1F",
        "one thread a core, all cores in one package; EDX = x2APIC ID; where KVM has the leaf",
    ),
    (
        "0x15",
        "0: the local APIC's clock is not the host's crystal, and Linux takes the one for the other",
    ),
    ("0x40000000", "EAX = 0x40000010, the last of these leaves"),
    (
        "0x40000001",
        "EAX[4, 10, 14] asynchronous page faults off: what the host fills in would come as interrupts; \
         EAX[7, 11, 13, 16, 17] off while hypercalls are passed on to the VMM",
    ),
    (
        "0x40000010",
        "EAX = kHz of the TSC, EBX = kHz of the local APIC's clock (VMware's leaf; FreeBSD reads it)",
    ),
    (
        "0x80000001",
        "ECX[1] CmpLegacy with more than one vCPU; AMD",
    ),
    (
        "0x80000008",
        "ECX = vCPUs less one, bits of the APIC ID that tell them apart; AMD",
    ),
    (
        "0x8000001E",
        "EAX = APIC ID, EBX = core, one thread each, ECX: one node; AMD, where KVM has the leaf",
    ),
    (
        "0x80000026",
        "off: it would say of the host's cores what 0xB says of the vCPUs",
    ),
    (
        "0x4FFFFF00",
        "added: discovery (`exit_abi::leaf::DISCOVERY`)",
    ),
    (
        "0x4FFFFF03",
        "added: interface version, exit page and layout (`exit_abi::leaf::INFO`)",
    ),
];

/// Leaf 1 (SDM vol. 2A, CPUID).
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
const MTRR: u32 = 1 << 12;
const HTT: u32 = 1 << 28;
/// Leaf 7.0, ECX.
const LA57: u32 = 1 << 16;
/// Leaf 0xB: how its levels are called, in ECX[15:8].
const THREADS: u32 = 1 << 8;
const CORES: u32 = 2 << 8;
/// TSC and crystal.
const TSC: u32 = 0x15;
/// Hypervisor leaves: the first, whose EAX is the last; KVM's features, which is the last that KVM has;
/// and VMware's leaf of frequencies.
const KVM_SIGNATURE: u32 = 0x4000_0000;
const KVM_FEATURES: u32 = 0x4000_0001;
const FREQUENCIES: u32 = 0x4000_0010;
/// KVM_FEATURE_ASYNC_PF, _VMEXIT and _INT (linux/Documentation/virt/kvm/x86/cpuid.rst).
const ASYNC_FAULTS: u32 = 1 << 4 | 1 << 10 | 1 << 14;
/// Leaf 0x80000001, ECX (AMD64 vol. 3, appendix E).
const CMP_LEGACY: u32 = 1 << 1;
/// What leaf 0 answers in EBX, EDX, ECX.
const AMD: [u32; 3] = [0x6874_7541, 0x6974_6E65, 0x444D_4163];
const HYGON: [u32; 3] = [0x6F67_7948, 0x6E65_476E, 0x656E_6975];

/// What a vCPU's table says besides what KVM supports.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Its APIC ID: less than `cpus`.
    pub apic_id: u8,
    /// How many vCPUs there are.
    pub cpus: u32,
    /// Which leaf asks what.
    pub layout: Layout,
    /// There is an exit page.
    pub exit_page: bool,
    /// KVM has a TSC deadline timer.
    pub deadline: bool,
    /// Frequency of its TSC, kHz; 0 if KVM does not say.
    pub tsc_khz: u32,
    /// Frequency of its local APIC's timer before the divider, Hz.
    pub timer_hz: u32,
}

impl Shape {
    /// How many low bits of an APIC ID tell the vCPUs apart.
    fn bits(&self) -> u32 {
        u32::BITS - self.cpus.saturating_sub(1).leading_zeros()
    }

    /// The most APIC IDs that so many bits make.
    fn ids(&self) -> u32 {
        1 << self.bits()
    }

    /// Leaves 0xB and 0x1F: threads of a core, cores of the package, the end (SDM vol. 2A).
    fn topology(&self, function: u32) -> impl Iterator<Item = kvm_cpuid_entry2> {
        let edx = self.apic_id.into();
        let levels = [(0, 1, THREADS), (self.bits(), self.cpus, CORES), (0, 0, 0)];
        (0..).zip(levels).map(move |(index, (eax, ebx, kind))| {
            let ecx = kind | index;
            kvm_cpuid_entry2 {
                index,
                // KVM_CPUID_FLAG_SIGNIFCANT_INDEX.
                flags: 1,
                ..entry(function, Registers { eax, ebx, ecx, edx })
            }
        })
    }

    /// How many APIC IDs share a cache of this level, less one.
    fn sharing(&self, level: u32) -> u32 {
        match level {
            0..=2 => 0,
            _ => self.ids() - 1,
        }
    }
}

fn entry(function: u32, r: Registers) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function,
        eax: r.eax,
        ebx: r.ebx,
        ecx: r.ecx,
        edx: r.edx,
        ..Default::default()
    }
}

/// Sets or clears bits.
fn set(register: &mut u32, bits: u32, on: bool) {
    match on {
        true => *register |= bits,
        false => *register &= !bits,
    }
}

/// The CPUID table of one vCPU; `None` if it has no room for our leaves.
pub fn table(supported: &CpuId, shape: &Shape) -> Option<CpuId> {
    let supported = supported.as_slice();
    let first = supported.iter().find(|e| e.function == 0);
    let vendor = first.map(|e| [e.ebx, e.edx, e.ecx]);
    let is_amd = matches!(vendor, Some(AMD | HYGON));
    let has = |leaf| first.is_some_and(|e| e.eax >= leaf);
    // What is written anew, or not at all.
    let mut entries: Vec<_> = supported
        .iter()
        .filter(|e| !matches!(e.function, 0xB | TSC | 0x1F | FREQUENCIES | 0x8000_0026))
        .copied()
        .collect();
    for e in &mut entries {
        reshape(e, shape, is_amd);
    }
    for leaf in [0xB, 0x1F] {
        if has(leaf) {
            entries.extend(shape.topology(leaf));
        }
    }
    if shape.tsc_khz != 0 {
        let frequencies = Registers {
            eax: shape.tsc_khz,
            ebx: shape.timer_hz / 1000,
            ..Registers::default()
        };
        entries.push(entry(FREQUENCIES, frequencies));
    }
    entries.push(entry(leaf::DISCOVERY, gate::discovery()));
    entries.push(entry(leaf::INFO, gate::info(shape.layout, shape.exit_page)));
    CpuId::from_entries(&entries).ok()
}

fn reshape(e: &mut kvm_cpuid_entry2, shape: &Shape, is_amd: bool) {
    let several = shape.cpus > 1;
    match e.function {
        1 => {
            let count = shape.ids().min(0xFF);
            e.ebx = e.ebx & 0xFFFF | count << 16 | u32::from(shape.apic_id) << 24;
            e.ecx |= HYPERVISOR;
            if shape.deadline {
                e.ecx |= TSC_DEADLINE;
            }
            e.edx &= !MTRR;
            set(&mut e.edx, HTT, several);
        }
        // No cache of a type: the end.
        4 | 0x8000_001D if e.eax & 0x1F != 0 => {
            let shared = shape.sharing(e.eax >> 5 & 7);
            let cores = match e.function {
                4 => (shape.ids() - 1).min(0x3F) << 26,
                _ => e.eax & 0x3F << 26,
            };
            e.eax = e.eax & 0x3FFF | shared << 14 | cores;
        }
        7 if e.index == 0 => e.ecx &= !LA57,
        KVM_SIGNATURE if shape.tsc_khz != 0 => e.eax = e.eax.max(FREQUENCIES),
        KVM_FEATURES => e.eax &= !ASYNC_FAULTS,
        0x8000_0001 if is_amd => set(&mut e.ecx, CMP_LEGACY, several),
        0x8000_0008 if is_amd => {
            e.ecx = e.ecx & 0xFFFF_0F00 & !0xF000 | shape.bits() << 12 | (shape.cpus - 1).min(0xFF);
        }
        0x8000_001E if is_amd => {
            let id = u32::from(shape.apic_id);
            (e.eax, e.ebx, e.ecx, e.edx) = (id, id, 0, 0);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INTEL: [u32; 3] = [0x756E_6547, 0x4965_6E69, 0x6C65_746E];

    fn shape(apic_id: u8, cpus: u32) -> Shape {
        Shape {
            apic_id,
            cpus,
            layout: Layout::REVERSED,
            exit_page: true,
            deadline: true,
            tsc_khz: 2_999_998,
            timer_hz: 1_000_000_000,
        }
    }

    fn vendor(name: [u32; 3], most: u32) -> kvm_cpuid_entry2 {
        let [ebx, edx, ecx] = name;
        let eax = most;
        entry(0, Registers { eax, ebx, ecx, edx })
    }

    /// All bits set: what is not shaped stays so.
    fn all(function: u32, index: u32) -> kvm_cpuid_entry2 {
        let ones = Registers {
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
        };
        kvm_cpuid_entry2 {
            index,
            ..entry(function, ones)
        }
    }

    fn shaped(entries: &[kvm_cpuid_entry2], shape: &Shape) -> CpuId {
        table(&CpuId::from_entries(entries).unwrap(), shape).unwrap()
    }

    fn find(table: &CpuId, function: u32, index: u32) -> Option<[u32; 4]> {
        let mut found = table
            .as_slice()
            .iter()
            .filter(|e| (e.function, e.index) == (function, index));
        let only = found.next().map(|e| [e.eax, e.ebx, e.ecx, e.edx]);
        assert!(found.next().is_none(), "{function:#x} twice");
        only
    }

    #[test]
    fn one_vcpu_is_alone() {
        let table = shaped(&[vendor(INTEL, 0x16), all(1, 0), all(7, 0)], &shape(0, 1));
        let [_, ebx, ecx, edx] = find(&table, 1, 0).unwrap();
        assert_eq!(ebx >> 16, 1);
        assert_eq!(ecx, u32::MAX);
        assert_eq!(edx, !(MTRR | HTT));
        assert_eq!(find(&table, 7, 0).unwrap()[2], !LA57);
        assert_eq!(find(&table, 0xB, 1), Some([0, 1, 0x201, 0]));
        assert_eq!(find(&table, 0x1F, 0), None);
    }

    #[test]
    fn three_vcpus_are_cores_of_one_package() {
        let intel = [vendor(INTEL, 0x1F), all(1, 0), all(0xB, 0), all(0x1F, 5)];
        let caches = [0x1C00_4121, 0x1C00_4143, 0x1C03_C163, 0].map(|eax| {
            let r = Registers {
                eax,
                ..Registers::default()
            };
            entry(4, r)
        });
        let caches = (0..)
            .zip(caches)
            .map(|(index, e)| kvm_cpuid_entry2 { index, ..e });
        let entries: Vec<_> = intel.into_iter().chain(caches).collect();
        let table = shaped(&entries, &shape(2, 3));
        assert_eq!(find(&table, 1, 0).unwrap()[1], 0x0204_FFFF);
        for leaf in [0xB, 0x1F] {
            assert_eq!(find(&table, leaf, 0), Some([0, 1, 0x100, 2]));
            assert_eq!(find(&table, leaf, 1), Some([2, 3, 0x201, 2]));
            assert_eq!(find(&table, leaf, 2), Some([0, 0, 2, 2]));
        }
        assert_eq!(find(&table, 0x1F, 5), None);
        let caches: Vec<_> = (0..4).map(|i| find(&table, 4, i).unwrap()[0]).collect();
        assert_eq!(caches, [0x0C00_0121, 0x0C00_0143, 0x0C00_C163, 0]);
    }

    #[test]
    fn amd_has_leaves_of_its_own() {
        let leaves = [0x8000_0001, 0x8000_0008, 0x8000_001E, 0x8000_0026];
        let mut entries = vec![vendor(AMD, 0x10), all(0x15, 0)];
        entries.extend(leaves.map(|leaf| all(leaf, 0)));
        let table = shaped(&entries, &shape(4, 5));
        assert_eq!(find(&table, 0x8000_0001, 0).unwrap()[2], u32::MAX);
        assert_eq!(find(&table, 0x8000_0008, 0).unwrap()[2], 0xFFFF_3F04);
        assert_eq!(find(&table, 0x8000_001E, 0), Some([4, 4, 0, 0]));
        for absent in [0x8000_0026, TSC] {
            assert_eq!(find(&table, absent, 0), None);
        }
        let one = shaped(&entries, &shape(0, 1));
        assert_eq!(find(&one, 0x8000_0001, 0).unwrap()[2], !CMP_LEGACY);
        assert_eq!(find(&one, 0x8000_0008, 0).unwrap()[2], 0xFFFF_0F00);
        let intel = shaped(&[vendor(INTEL, 1), all(0x8000_0008, 0)], &shape(0, 1));
        assert_eq!(find(&intel, 0x8000_0008, 0).unwrap()[2], u32::MAX);
    }

    #[test]
    fn kvms_leaves_go_on_to_the_frequencies() {
        let signature = Registers {
            eax: KVM_FEATURES,
            ..Registers::default()
        };
        let entries = [entry(KVM_SIGNATURE, signature), all(KVM_FEATURES, 0)];
        let table = shaped(&entries, &shape(0, 1));
        assert_eq!(find(&table, KVM_SIGNATURE, 0).unwrap()[0], FREQUENCIES);
        assert_eq!(find(&table, KVM_FEATURES, 0).unwrap()[0], !ASYNC_FAULTS);
        let frequencies = find(&table, FREQUENCIES, 0);
        assert_eq!(frequencies, Some([2_999_998, 1_000_000, 0, 0]));
        let unknown = Shape {
            tsc_khz: 0,
            ..shape(0, 1)
        };
        let table = shaped(&entries, &unknown);
        assert_eq!(find(&table, KVM_SIGNATURE, 0).unwrap()[0], KVM_FEATURES);
        assert_eq!(find(&table, FREQUENCIES, 0), None);
    }

    #[test]
    fn our_own_leaves() {
        let table = shaped(&[], &shape(0, 1));
        assert_eq!(find(&table, leaf::DISCOVERY, 0).unwrap()[0], 0x4FFF_FFFF);
        let [_, ebx, ecx, edx] = find(&table, leaf::INFO, 0).unwrap();
        assert_eq!((ebx, ecx), (1, 0xD1000));
        assert_eq!(edx, Layout::REVERSED.pack());
    }

    proptest! {
        #[test]
        fn apic_ids_are_within_their_bits(cpus in 1..=crate::config::MAX_CPUS, id in 0_u8..254) {
            let shape = shape(id, cpus);
            prop_assert!(shape.ids() >= cpus && shape.ids() < 2 * cpus.max(2));
        }
    }
}
