//! VMX: the exit reason as the processor gives it.

use exit_abi::reason::{Edition, Reason};

/// Bit 31: the VM entry failed, the guest did not run (SDM vol. 3C, "Basic VM-Exit Information").
const FAILED_ENTRY: u32 = 1 << 31;
/// Bits 15:0: the basic exit reason. Bits 16–30 are flags (bus lock 26, enclave 27, …) and must
/// not disturb the index.
const BASIC: u32 = 0xFFFF;

/// An exit reason, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmxExit {
    /// The basic exit reason; `None` if the SDM does not define the number, or the ledger has no
    /// room for it.
    pub reason: Option<Reason>,
    /// The VM entry failed.
    pub failed_entry: bool,
}

/// Takes an exit reason apart: the whole 32-bit field, as `kvm:kvm_exit` traces it.
pub const fn translate(raw: u32) -> VmxExit {
    let reason = match Reason::new(raw & BASIC) {
        Some(reason) if reason.is_defined(Edition::Current) => Some(reason),
        _ => None,
    };
    VmxExit {
        reason,
        failed_entry: raw & FAILED_ENTRY != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;

    fn number(raw: u32) -> Option<u8> {
        translate(raw).reason.map(Reason::number)
    }

    #[test]
    fn flags_do_not_disturb_the_index() {
        let failed = translate(0x8000_0021);
        assert_eq!(failed.reason, Some(Reason::INVALID_STATE));
        assert!(failed.failed_entry);

        assert_eq!(number(0x0400_001E), Some(30)); // with the bus-lock flag
        assert!(!translate(0x7FFF_000C).failed_entry);
        assert_eq!(number(0x7FFF_000C), Some(12));
    }

    #[test]
    fn numbers_without_a_reason() {
        for raw in [
            35,
            38,
            42,
            71,
            82,
            83,
            86,
            127,
            128,
            0x100,
            0x100 + 12,
            0xFFFF,
        ] {
            assert_eq!(number(raw), None, "{raw:#x}");
        }
    }

    #[test]
    fn table() {
        let mut table = String::new();
        for raw in 0..=130 {
            let name = translate(raw).reason.and_then(Reason::name).unwrap_or("-");
            writeln!(table, "{raw:3} {name}").unwrap();
        }
        insta::assert_snapshot!(table);
    }
}
