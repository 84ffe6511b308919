//! Names of what guests ask for: model-specific registers, ports, CPUID leaves.

use crate::layout;
use crate::profile::{Ask, AskKind};
use exit_abi::{leaf, port};

/// First number, last number, name.
type Row = (u64, u64, &'static str);

/// Well-known MSRs. Intel SDM vol. 4, table 2-2; from 0xC0000080 AMD APM vol. 2, appendix A;
/// KVM's own: linux/Documentation/virt/kvm/x86/msr.rst. Ordered.
#[rustfmt::skip]
const MSRS: &[Row] = &[
    (0x10, 0x10, "IA32_TIME_STAMP_COUNTER"),
    (0x11, 0x11, "KVM wall clock (old)"),
    (0x12, 0x12, "KVM system time (old)"),
    (0x17, 0x17, "IA32_PLATFORM_ID"),
    (0x1B, 0x1B, "IA32_APIC_BASE"),
    (0x34, 0x34, "MSR_SMI_COUNT"),
    (0x3A, 0x3A, "IA32_FEATURE_CONTROL"),
    (0x3B, 0x3B, "IA32_TSC_ADJUST"),
    (0x48, 0x48, "IA32_SPEC_CTRL"),
    (0x49, 0x49, "IA32_PRED_CMD"),
    (0x79, 0x79, "IA32_BIOS_UPDT_TRIG"),
    (0x8B, 0x8B, "IA32_BIOS_SIGN_ID"),
    (0xC1, 0xC8, "IA32_PMCx"),
    (0xCE, 0xCE, "MSR_PLATFORM_INFO"),
    (0xCF, 0xCF, "IA32_CORE_CAPABILITIES"),
    (0xE7, 0xE7, "IA32_MPERF"),
    (0xE8, 0xE8, "IA32_APERF"),
    (0xFE, 0xFE, "IA32_MTRRCAP"),
    (0x10A, 0x10A, "IA32_ARCH_CAPABILITIES"),
    (0x10B, 0x10B, "IA32_FLUSH_CMD"),
    (0x122, 0x122, "IA32_TSX_CTRL"),
    (0x140, 0x140, "MISC_FEATURE_ENABLES"),
    (0x174, 0x174, "IA32_SYSENTER_CS"),
    (0x175, 0x175, "IA32_SYSENTER_ESP"),
    (0x176, 0x176, "IA32_SYSENTER_EIP"),
    (0x179, 0x179, "IA32_MCG_CAP"),
    (0x17A, 0x17A, "IA32_MCG_STATUS"),
    (0x17B, 0x17B, "IA32_MCG_CTL"),
    (0x186, 0x18D, "IA32_PERFEVTSELx"),
    (0x198, 0x198, "IA32_PERF_STATUS"),
    (0x199, 0x199, "IA32_PERF_CTL"),
    (0x19A, 0x19A, "IA32_CLOCK_MODULATION"),
    (0x19B, 0x19B, "IA32_THERM_INTERRUPT"),
    (0x19C, 0x19C, "IA32_THERM_STATUS"),
    (0x1A0, 0x1A0, "IA32_MISC_ENABLE"),
    (0x1B0, 0x1B0, "IA32_ENERGY_PERF_BIAS"),
    (0x1D9, 0x1D9, "IA32_DEBUGCTL"),
    (0x200, 0x213, "IA32_MTRR_PHYSx"),
    (0x250, 0x26F, "IA32_MTRR_FIXx"),
    (0x277, 0x277, "IA32_PAT"),
    (0x280, 0x29F, "IA32_MCx_CTL2"),
    (0x2FF, 0x2FF, "IA32_MTRR_DEF_TYPE"),
    (0x309, 0x30C, "IA32_FIXED_CTRx"),
    (0x345, 0x345, "IA32_PERF_CAPABILITIES"),
    (0x38D, 0x38D, "IA32_FIXED_CTR_CTRL"),
    (0x38E, 0x38E, "IA32_PERF_GLOBAL_STATUS"),
    (0x38F, 0x38F, "IA32_PERF_GLOBAL_CTRL"),
    (0x390, 0x390, "IA32_PERF_GLOBAL_OVF_CTRL"),
    (0x3F1, 0x3F1, "IA32_PEBS_ENABLE"),
    (0x400, 0x47F, "IA32_MCx"),
    (0x480, 0x491, "IA32_VMX_x"),
    (0x600, 0x600, "IA32_DS_AREA"),
    (0x606, 0x606, "MSR_RAPL_POWER_UNIT"),
    (0x6E0, 0x6E0, "IA32_TSC_DEADLINE"),
    (0x770, 0x770, "IA32_PM_ENABLE"),
    (0x802, 0x802, "x2APIC ID"),
    (0x803, 0x803, "x2APIC version"),
    (0x808, 0x808, "x2APIC TPR"),
    (0x80A, 0x80A, "x2APIC PPR"),
    (0x80B, 0x80B, "x2APIC EOI"),
    (0x80D, 0x80D, "x2APIC LDR"),
    (0x80F, 0x80F, "x2APIC SIVR"),
    (0x810, 0x817, "x2APIC ISR"),
    (0x818, 0x81F, "x2APIC TMR"),
    (0x820, 0x827, "x2APIC IRR"),
    (0x828, 0x828, "x2APIC ESR"),
    (0x82F, 0x82F, "x2APIC LVT CMCI"),
    (0x830, 0x830, "x2APIC ICR"),
    (0x832, 0x832, "x2APIC LVT timer"),
    (0x833, 0x833, "x2APIC LVT thermal"),
    (0x834, 0x834, "x2APIC LVT PMI"),
    (0x835, 0x835, "x2APIC LVT LINT0"),
    (0x836, 0x836, "x2APIC LVT LINT1"),
    (0x837, 0x837, "x2APIC LVT error"),
    (0x838, 0x838, "x2APIC initial count"),
    (0x839, 0x839, "x2APIC current count"),
    (0x83E, 0x83E, "x2APIC divide"),
    (0x83F, 0x83F, "x2APIC self IPI"),
    (0xDA0, 0xDA0, "IA32_XSS"),
    (0x4000_0000, 0x4000_01FF, "Hyper-V"),
    (0x4B56_4D00, 0x4B56_4D00, "KVM wall clock"),
    (0x4B56_4D01, 0x4B56_4D01, "KVM system time"),
    (0x4B56_4D02, 0x4B56_4D02, "KVM async PF"),
    (0x4B56_4D03, 0x4B56_4D03, "KVM steal time"),
    (0x4B56_4D04, 0x4B56_4D04, "KVM EOI"),
    (0x4B56_4D05, 0x4B56_4D05, "KVM poll control"),
    (0x4B56_4D06, 0x4B56_4D06, "KVM async PF interrupt"),
    (0x4B56_4D07, 0x4B56_4D07, "KVM async PF ack"),
    (0x4B56_4D08, 0x4B56_4D08, "KVM migration control"),
    (0xC000_0080, 0xC000_0080, "EFER"),
    (0xC000_0081, 0xC000_0081, "STAR"),
    (0xC000_0082, 0xC000_0082, "LSTAR"),
    (0xC000_0083, 0xC000_0083, "CSTAR"),
    (0xC000_0084, 0xC000_0084, "SFMASK"),
    (0xC000_0100, 0xC000_0100, "FS.base"),
    (0xC000_0101, 0xC000_0101, "GS.base"),
    (0xC000_0102, 0xC000_0102, "KernelGSbase"),
    (0xC000_0103, 0xC000_0103, "TSC_AUX"),
    (0xC000_0104, 0xC000_0104, "TSC ratio"),
    (0xC001_0000, 0xC001_0003, "PerfEvtSelx"),
    (0xC001_0004, 0xC001_0007, "PerfCtrx"),
    (0xC001_0010, 0xC001_0010, "SYSCFG"),
    (0xC001_0015, 0xC001_0015, "HWCR"),
    (0xC001_001F, 0xC001_001F, "NB_CFG"),
    (0xC001_0055, 0xC001_0055, "interrupt pending"),
    (0xC001_0058, 0xC001_0058, "MMIO configuration base"),
    (0xC001_0061, 0xC001_006B, "P-states"),
    (0xC001_0114, 0xC001_0114, "VM_CR"),
    (0xC001_0117, 0xC001_0117, "VM_HSAVE_PA"),
    (0xC001_011F, 0xC001_011F, "VIRT_SPEC_CTRL"),
    (0xC001_0131, 0xC001_0131, "SEV_STATUS"),
    (0xC001_0140, 0xC001_0140, "OSVW_ID_Length"),
    (0xC001_0141, 0xC001_0141, "OSVW_Status"),
    (0xC001_0200, 0xC001_020B, "PerfEvtSelx, PerfCtrx"),
    (0xC001_1020, 0xC001_1020, "LS_CFG"),
    (0xC001_1029, 0xC001_1029, "DE_CFG"),
];

/// Ports of a PC, and Exitvisor's. Ordered.
#[rustfmt::skip]
const PORTS: &[Row] = &[
    (0x00, 0x0F, "DMA 1"),
    (0x20, 0x21, "PIC 1"),
    (0x2E, 0x2F, "super I/O"),
    (0x40, 0x43, "PIT"),
    (0x4E, 0x4F, "super I/O"),
    (0x60, 0x60, "i8042"),
    (0x61, 0x61, "port B"),
    (0x64, 0x64, "i8042"),
    (0x70, 0x71, "RTC"),
    (0x80, 0x80, "POST code"),
    (0x81, 0x8F, "DMA pages"),
    (0x92, 0x92, "port A: A20"),
    (0xA0, 0xA1, "PIC 2"),
    (0xC0, 0xDF, "DMA 2"),
    (0xED, 0xED, "I/O delay"),
    (0xF0, 0xF1, "FPU errors"),
    (0x170, 0x177, "IDE 2"),
    (0x1F0, 0x1F7, "IDE 1"),
    (0x2E8, 0x2EF, "COM4"),
    (0x2F8, 0x2FF, "COM2"),
    (0x376, 0x376, "IDE 2"),
    (0x378, 0x37F, "LPT1"),
    (0x3B0, 0x3DF, "VGA"),
    (0x3E8, 0x3EF, "COM3"),
    (0x3F0, 0x3F5, "floppy"),
    (0x3F6, 0x3F6, "IDE 1"),
    (0x3F7, 0x3F7, "floppy"),
    (0x3F8, 0x3FF, "COM1"),
    (0x402, 0x402, "debug console"),
    (0x4D0, 0x4D1, "ELCR"),
    (0x510, 0x51B, "fw_cfg"),
    (0xB000, 0xB03F, "ACPI PM"),
    (0xCF8, 0xCFB, "PCI config address"),
    (0xCFC, 0xCFF, "PCI config data"),
    (port::MILESTONE as u64, 0xE03, "Exitvisor: milestone"),
    (port::MILESTONE_NAME as u64, 0xE07, "Exitvisor: milestone name"),
    (port::EXIT as u64, 0xE0B, "Exitvisor: exit"),
    (port::OWN_SECTION as u64, 0xE0F, "Exitvisor: own section"),
    (port::GATE_LOW as u64, 0xE1B, "Exitvisor: gates"),
    (port::SCRATCH as u64, 0xE1F, "Exitvisor: scratch"),
    (port::SLEEP_CONTROL as u64, 0xE21, "Exitvisor: ACPI sleep"),
    (port::RESET as u64, 0xE22, "Exitvisor: ACPI reset"),
];

/// The 16550's registers by offset (with DLAB clear): read, written.
const UART: [(&str, &str); 8] = [
    ("RBR", "THR"),
    ("IER", "IER"),
    ("IIR", "FCR"),
    ("LCR", "LCR"),
    ("MCR", "MCR"),
    ("LSR", "LSR"),
    ("MSR", "MSR"),
    ("SCR", "SCR"),
];

/// CPUID leaves. Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E. Ordered.
#[rustfmt::skip]
const LEAVES: &[Row] = &[
    (0x0, 0x0, "vendor"),
    (0x1, 0x1, "features"),
    (0x2, 0x2, "caches"),
    (0x3, 0x3, "serial number"),
    (0x4, 0x4, "caches"),
    (0x5, 0x5, "MONITOR"),
    (0x6, 0x6, "power management"),
    (0x7, 0x7, "features"),
    (0xA, 0xA, "PMU"),
    (0xB, 0xB, "topology"),
    (0xD, 0xD, "XSAVE"),
    (0xF, 0x10, "resource director"),
    (0x12, 0x12, "SGX"),
    (0x14, 0x14, "processor trace"),
    (0x15, 0x15, "TSC"),
    (0x16, 0x16, "frequencies"),
    (0x1D, 0x1E, "AMX"),
    (0x1F, 0x1F, "topology"),
    (0x4000_0000, 0x4000_FFFF, "hypervisor"),
    (leaf::DISCOVERY as u64, 0x4FFF_FFFF, "Exitvisor"),
    (0x8000_0000, 0x8000_0000, "highest leaf"),
    (0x8000_0001, 0x8000_0001, "features"),
    (0x8000_0002, 0x8000_0004, "brand string"),
    (0x8000_0005, 0x8000_0006, "caches"),
    (0x8000_0007, 0x8000_0007, "power management"),
    (0x8000_0008, 0x8000_0008, "address widths"),
    (0x8000_000A, 0x8000_000A, "SVM"),
    (0x8000_001D, 0x8000_001D, "caches"),
    (0x8000_001E, 0x8000_001E, "topology"),
    (0x8000_001F, 0x8000_001F, "memory encryption"),
    (0x8000_0021, 0x8000_0021, "features"),
];

/// Guest-physical pages that are no RAM above 1 MiB: what `layout.rs` has there, and a PC. Ordered.
#[rustfmt::skip]
const PAGES: &[Row] = &[
    (0x0, 0x9_FFFF, "low RAM"),
    (0xA_0000, 0xB_FFFF, "VGA memory"),
    (0xC_0000, 0xD_FFFF, "option ROMs"),
    (layout::ACPI, 0xE_FFFF, "ACPI tables"),
    (0xF_0000, 0xF_FFFF, "BIOS area"),
    (layout::SCRATCH_PAGE, 0xD000_0FFF, "scratch page"),
    (layout::EXIT_PAGE, layout::EXIT_PAGE_END - 1, "exit page"),
    (layout::STATUS_PAGE, layout::STATUS_PAGE + 0xFFF, "console's page"),
    (layout::VIRTIO, layout::VIRTIO_END - 1, "virtio device"),
    (layout::IO_APIC, 0xFEC0_0FFF, "IOAPIC"),
    (0xFED0_0000, 0xFED0_0FFF, "HPET"),
    (0xFED4_0000, 0xFED4_4FFF, "TPM"),
    (layout::LOCAL_APIC, 0xFEE0_0FFF, "local APIC"),
    (layout::IDENTITY_MAP, layout::TSS - 1, "KVM's identity map"),
    (layout::TSS, 0xFFFB_FFFF, "KVM's TSS"),
];

/// Exceptions (SDM vol. 3A, table 7-1). Ordered.
#[rustfmt::skip]
const EXCEPTIONS: &[Row] = &[
    (0, 0, "#DE"), (1, 1, "#DB"), (2, 2, "NMI"), (3, 3, "#BP"), (4, 4, "#OF"), (5, 5, "#BR"),
    (6, 6, "#UD"), (7, 7, "#NM"), (8, 8, "#DF"), (10, 10, "#TS"), (11, 11, "#NP"), (12, 12, "#SS"),
    (13, 13, "#GP"), (14, 14, "#PF"), (16, 16, "#MF"), (17, 17, "#AC"), (18, 18, "#MC"),
    (19, 19, "#XM"), (20, 20, "#VE"), (21, 21, "#CP"),
];

fn find(table: &[Row], number: u64) -> Option<&'static str> {
    let row = table.iter().find(|r| (r.0..=r.1).contains(&number))?;
    Some(row.2)
}

/// The instruction that asks.
pub(super) fn verb(kind: AskKind) -> &'static str {
    match kind {
        AskKind::MsrRead => "RDMSR",
        AskKind::MsrWrite => "WRMSR",
        AskKind::PortIn => "IN",
        AskKind::PortOut => "OUT",
        AskKind::Cpuid => "CPUID",
        AskKind::Page => "page",
        AskKind::Ram => "RAM",
        AskKind::Exception => "exception",
        AskKind::Interrupt => "interrupt",
        AskKind::CrRead => "read of CR",
        AskKind::CrWrite => "write to CR",
    }
}

/// Its number, with as many digits as its kind has.
pub(super) fn number(ask: &Ask) -> String {
    let digits = match ask.kind {
        AskKind::Exception | AskKind::CrRead | AskKind::CrWrite => return ask.index.to_string(),
        AskKind::Cpuid => format!("{:X}", ask.index),
        AskKind::Page | AskKind::Ram => format!("{:08X}", ask.index),
        AskKind::Interrupt => format!("{:02X}", ask.index),
        AskKind::MsrRead | AskKind::MsrWrite | AskKind::PortIn | AskKind::PortOut => {
            format!("{:03X}", ask.index)
        }
    };
    format!("0x{digits}")
}

/// What is known of its name: the register's, the device's, the leaf's subject.
pub(super) fn name(ask: &Ask) -> Option<&'static str> {
    match ask.kind {
        AskKind::MsrRead | AskKind::MsrWrite => find(MSRS, ask.index),
        AskKind::PortIn | AskKind::PortOut => find(PORTS, ask.index),
        AskKind::Cpuid => find(LEAVES, ask.index),
        AskKind::Page => find(PAGES, ask.index),
        AskKind::Exception => find(EXCEPTIONS, ask.index),
        AskKind::Ram | AskKind::Interrupt | AskKind::CrRead | AskKind::CrWrite => None,
    }
}

/// The name, and for a UART the register's.
pub(super) fn full_name(ask: &Ask) -> String {
    let Some(name) = name(ask) else {
        return String::new();
    };
    let register = UART.get((ask.index & 7) as usize);
    match (ask.kind, register) {
        (AskKind::PortIn, Some((read, _))) if name.starts_with("COM") => format!("{name} {read}"),
        (AskKind::PortOut, Some((_, written))) if name.starts_with("COM") => {
            format!("{name} {written}")
        }
        _ => name.to_owned(),
    }
}

/// Whether only the profiler's own code asks for it: ports of milestones, gates and the exit.
pub(super) fn is_own(ask: &Ask) -> bool {
    let own = u64::from(port::MILESTONE)..u64::from(port::SCRATCH);
    matches!(ask.kind, AskKind::PortIn | AskKind::PortOut) && own.contains(&ask.index)
}

/// In running text: "WRMSR x2APIC EOI", "OUT COM1", "CPUID 0xD".
pub(super) fn short(ask: &Ask) -> String {
    let what = match (ask.kind, name(ask)) {
        (AskKind::Cpuid, _) | (_, None) => number(ask),
        (_, Some(name)) => name.to_owned(),
    };
    format!("{} {what}", verb(ask.kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(kind: AskKind, index: u64) -> Ask {
        let count = 1;
        Ask { kind, index, count }
    }

    #[test]
    fn rows_do_not_overlap() {
        for table in [MSRS, PORTS, LEAVES, PAGES, EXCEPTIONS] {
            for (i, row) in table.iter().enumerate() {
                assert!(row.0 <= row.1, "{row:?}");
                for other in &table[i + 1..] {
                    assert!(row.1 < other.0 || other.1 < row.0, "{row:?} {other:?}");
                }
            }
        }
    }

    #[test]
    fn every_port_of_ours_has_a_name() {
        for number in [port::GATE_COMMAND, port::SLEEP_STATUS, port::RESET] {
            let name = name(&ask(AskKind::PortOut, number.into()));
            assert!(name.unwrap().starts_with("Exitvisor: "), "{number:#x}");
        }
    }

    #[test]
    fn names() {
        let full = |kind, index| full_name(&ask(kind, index));
        assert_eq!(full(AskKind::MsrWrite, 0x6E0), "IA32_TSC_DEADLINE");
        assert_eq!(full(AskKind::PortOut, 0x3F8), "COM1 THR");
        assert_eq!(full(AskKind::PortIn, 0x3FD), "COM1 LSR");
        assert_eq!(full(AskKind::PortOut, 0x43), "PIT");
        assert_eq!(full(AskKind::Cpuid, 0x6E0), "");
        assert_eq!(short(&ask(AskKind::MsrRead, 0x123)), "RDMSR 0x123");
        assert_eq!(short(&ask(AskKind::PortIn, 0x3FD)), "IN COM1");
        assert_eq!(short(&ask(AskKind::Cpuid, 0xD)), "CPUID 0xD");
        assert_eq!(number(&ask(AskKind::PortOut, 0x20)), "0x020");
    }
}
