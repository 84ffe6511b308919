//! CPUID: what KVM supports, and the few leaves that are shaped on purpose.
//!
//! | leaf | change |
//! |---|---|
//! | 1 | EBX\[31:24\] = APIC ID; ECX\[24\] TSC deadline timer, ECX\[31\] hypervisor present; EDX\[12\] MTRR off: KVM maps all memory as write-back whatever they say, and Linux reads 39 of them |
//! | 7.0 | ECX\[16\] LA57 off: gates are checked as 48-bit addresses |
//! | 0xB, 0x1F | EDX = x2APIC ID |
//! | 0x40000001 | EAX\[7, 11, 13, 16, 17\] off while hypercalls are passed on to the VMM |
//! | 0x4FFFFF00 | added: discovery (`exit_abi::leaf::DISCOVERY`) |
//! | 0x4FFFFF03 | added: interface version, exit page and layout (`exit_abi::leaf::INFO`) |

use exit_abi::leaf::{self, Layout, Registers};
use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use crate::exits::gate;

const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
const MTRR: u32 = 1 << 12;
const LA57: u32 = 1 << 16;

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

/// The CPUID table of one vCPU; `None` if it has no room for our leaves.
pub fn table(
    supported: &CpuId,
    apic_id: u8,
    layout: Layout,
    exit_page: bool,
    deadline: bool,
) -> Option<CpuId> {
    let mut entries = supported.as_slice().to_vec();
    for e in &mut entries {
        match e.function {
            1 => {
                e.ebx = e.ebx & 0x00FF_FFFF | u32::from(apic_id) << 24;
                e.ecx |= HYPERVISOR;
                if deadline {
                    e.ecx |= TSC_DEADLINE;
                }
                e.edx &= !MTRR;
            }
            7 if e.index == 0 => e.ecx &= !LA57,
            0xB | 0x1F => e.edx = apic_id.into(),
            _ => {}
        }
    }
    entries.push(entry(leaf::DISCOVERY, gate::discovery()));
    entries.push(entry(leaf::INFO, gate::info(layout, exit_page)));
    CpuId::from_entries(&entries).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_are_shaped() {
        let one = Registers {
            ebx: 0xFF00_0800,
            ..Registers::default()
        };
        let supported =
            CpuId::from_entries(&[entry(1, one), entry(0xB, Registers::default())]).unwrap();
        let table = table(&supported, 3, Layout::REVERSED, true, true).unwrap();
        let find = |f| table.as_slice().iter().find(|e| e.function == f).unwrap();
        assert_eq!(find(1).ebx, 0x0300_0800);
        assert_eq!(find(1).ecx, TSC_DEADLINE | HYPERVISOR);
        assert_eq!(find(0xB).edx, 3);
        assert_eq!(find(leaf::DISCOVERY).eax, 0x4FFF_FFFF);
        assert_eq!(find(leaf::INFO).edx, Layout::REVERSED.pack());
        assert_eq!((find(leaf::INFO).ebx, find(leaf::INFO).ecx), (1, 0xD1000));
    }
}
