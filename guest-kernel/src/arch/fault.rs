//! Instructions that may fault, and the table that tells the handler how to go on after one.
//!
//! Each site is one instruction. Its entry in the table holds where it stands and where to land,
//! both relative to the entry itself. A fault at a site reports itself in R10 and R11.

use core::arch::asm;

use super::traps::Frame;

/// An exception that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its vector: 14 for a page fault, 6 for an undefined instruction, 13 for a general one.
    pub vector: u8,
    /// Its error code; 0 where there is none.
    pub error_code: u32,
    /// CR2: the address that faulted, meaningful for page faults.
    pub address: u64,
}

/// Set in R11 by a fault, so that vector 0 differs from none.
const FAULTED: u64 = 1 << 8;

impl Fault {
    const fn pack(self) -> u64 {
        (self.error_code as u64) << 32 | FAULTED | self.vector as u64
    }

    const fn unpack(report: u64, address: u64) -> Option<Self> {
        if report & FAULTED == 0 {
            return None;
        }
        Some(Self {
            vector: report as u8,
            error_code: (report >> 32) as u32,
            address,
        })
    }
}

/// An assembler template: one instruction as a site, with its entry in the table.
macro_rules! site {
    ($instruction:literal, $($operands:tt)*) => {
        asm!(
            "22:",
            $instruction,
            "33:",
            ".pushsection .fixups, \"a\"",
            ".long 22b - .",
            ".long 33b - .",
            ".popsection",
            $($operands)*
        )
    };
}

/// Reads eight bytes at an address that may not be mapped.
pub fn read(address: u64) -> Result<u64, Fault> {
    let (value, report, at): (u64, u64, u64);
    // SAFETY: a load writes no memory; where it faults, the handler lands behind it and `value`,
    // undefined then, is not used. The caller gets plain bytes, not a reference.
    unsafe {
        site!("mov {value}, [{address}]", address = in(reg) address, value = out(reg) value,
            inout("r11") 0_u64 => report, out("r10") at, options(readonly, nostack, preserves_flags));
    }
    Fault::unpack(report, at).map_or(Ok(value), Err)
}

/// Writes eight bytes at an address that may not be mapped, or not for writing.
///
/// # Safety
///
/// What is mapped there belongs to the caller, or the store faults.
pub(super) unsafe fn write(address: u64, value: u64) -> Result<(), Fault> {
    let (report, at): (u64, u64);
    // SAFETY: the caller owns the memory; where the store faults, the handler lands behind it.
    unsafe {
        site!("mov [{address}], {value}", address = in(reg) address, value = in(reg) value,
            inout("r11") 0_u64 => report, out("r10") at, options(nostack, preserves_flags));
    }
    Fault::unpack(report, at).map_or(Ok(()), Err)
}

/// Executes UD2, which is undefined by definition.
pub fn undefined_instruction() -> Result<(), Fault> {
    let (report, at): (u64, u64);
    // SAFETY: the instruction does nothing but fault; the handler lands behind it.
    unsafe {
        site!("ud2", inout("r11") 0_u64 => report, out("r10") at, options(nomem, nostack, preserves_flags));
    }
    Fault::unpack(report, at).map_or(Ok(()), Err)
}

/// Reads a model-specific register that the machine may not have.
pub fn read_msr(number: u32) -> Result<u64, Fault> {
    let (low, high, report, at): (u32, u32, u64, u64);
    // SAFETY: RDMSR changes nothing but EAX and EDX; where it faults they are not used.
    unsafe {
        site!("rdmsr", in("ecx") number, out("eax") low, out("edx") high,
            inout("r11") 0_u64 => report, out("r10") at, options(nomem, nostack, preserves_flags));
    }
    Fault::unpack(report, at).map_or(Ok(u64::from(high) << 32 | u64::from(low)), Err)
}

/// Writes a model-specific register with a value that was read from it.
pub fn write_back_msr(number: u32, value: u64) -> Result<(), Fault> {
    let (report, at): (u64, u64);
    // SAFETY: a register that is not written by reads (the APIC's base) keeps its value.
    unsafe {
        site!("wrmsr", in("ecx") number, in("eax") value as u32, in("edx") (value >> 32) as u32,
            inout("r11") 0_u64 => report, out("r10") at, options(nostack, preserves_flags));
    }
    Fault::unpack(report, at).map_or(Ok(()), Err)
}

/// The hypercall instruction of this CPU's maker at a site that is no gate, with KVM's number 1
/// (KVM_HC_VAPIC_POLL_IRQ), which does nothing.
pub fn hypercall(amd: bool) -> Result<(), Fault> {
    let (report, at): (u64, u64);
    // SAFETY: the call has no arguments and no effect but its answer in RAX.
    unsafe {
        if amd {
            site!("vmmcall", inout("rax") 1_u64 => _, inout("r11") 0_u64 => report,
                out("r10") at, options(nostack));
        } else {
            site!("vmcall", inout("rax") 1_u64 => _, inout("r11") 0_u64 => report,
                out("r10") at, options(nostack));
        }
    }
    Fault::unpack(report, at).map_or(Ok(()), Err)
}

/// Reads extended control register 0.
pub fn xgetbv() -> Result<u64, Fault> {
    let (low, high, report, at): (u32, u32, u64, u64);
    // SAFETY: reading changes nothing but EAX and EDX; where it faults they are not used.
    unsafe {
        site!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high,
            inout("r11") 0_u64 => report, out("r10") at, options(nomem, nostack, preserves_flags));
    }
    Fault::unpack(report, at).map_or(Ok(u64::from(high) << 32 | u64::from(low)), Err)
}

/// Writes extended control register 0 with a value that was read from it.
pub fn write_back_xcr0(value: u64) -> Result<(), Fault> {
    let (report, at): (u64, u64);
    // SAFETY: the register keeps its value.
    unsafe {
        site!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32,
            inout("r11") 0_u64 => report, out("r10") at, options(nostack, preserves_flags));
    }
    Fault::unpack(report, at).map_or(Ok(()), Err)
}

/// Lands a fault that stands in the table; `false` for any other.
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
pub(super) fn recover(frame: &mut Frame, address: u64) -> bool {
    let Some(landing) = landing(table(), frame.rip) else {
        return false;
    };
    let fault = Fault {
        vector: frame.vector as u8,
        error_code: frame.error_code as u32,
        address,
    };
    frame.rip = landing;
    frame.r10 = fault.address;
    frame.r11 = fault.pack();
    true
}

/// An entry: two distances from the field that holds them.
#[repr(C)]
pub(super) struct Fixup {
    site: i32,
    landing: i32,
}

fn landing(table: &[Fixup], rip: u64) -> Option<u64> {
    let place = |field: &i32| (&raw const *field as u64).wrapping_add_signed((*field).into());
    table
        .iter()
        .find(|f| place(&f.site) == rip)
        .map(|f| place(&f.landing))
}

#[cfg(target_os = "none")]
fn table() -> &'static [Fixup] {
    unsafe extern "sysv64" {
        static __fixups_start: Fixup;
        static __fixups_end: Fixup;
    }
    let start = &raw const __fixups_start;
    let length = (&raw const __fixups_end as usize - start as usize) / size_of::<Fixup>();
    // SAFETY: the linker script puts nothing but the entries above between the two symbols, in
    // memory that nobody writes, and asserts that their size is a multiple of an entry's.
    unsafe { core::slice::from_raw_parts(start, length) }
}

#[cfg(not(target_os = "none"))]
fn table() -> &'static [Fixup] {
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_survives_its_registers() {
        let fault = Fault {
            vector: 0,
            error_code: u32::MAX,
            address: 8,
        };
        assert_eq!(Fault::unpack(fault.pack(), 8), Some(fault));
        assert_eq!(Fault::unpack(0, 8), None);
    }

    #[test]
    fn sites_are_found_by_distance() {
        let table = [
            Fixup {
                site: -64,
                landing: -60,
            },
            Fixup {
                site: 100,
                landing: 200,
            },
        ];
        let second = &raw const table[1] as u64;
        assert_eq!(landing(&table, second + 100), Some(second + 4 + 200));
        assert_eq!(landing(&table, second), None);
    }

    #[test]
    fn instructions_that_do_not_fault() {
        let value = 0x1234_5678_9ABC_DEF0_u64;
        assert_eq!(read(&raw const value as u64), Ok(value));
    }
}
