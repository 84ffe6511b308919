//! What `caps` prints: which virtualization this guest is offered, by its own CPUID and its own
//! reads of the VMX capability MSRs, decoded with the tables that the host decodes with.

use exit_abi::leaf::Registers;
use exit_abi::{svm, vmx};

use crate::arch::fault::Fault;
use crate::line::Line;

/// The machine, as far as it is asked here.
pub struct Cpu<C, M> {
    /// CPUID by leaf.
    pub cpuid: C,
    /// RDMSR, its fault caught.
    pub read_msr: M,
}

/// What begins every line.
const CAPS: &str = "caps: ";
/// The same below a head.
const BELOW: &str = "caps:   ";

impl<C, M> Cpu<C, M>
where
    C: Fn(u32) -> Registers,
    M: Fn(u32) -> Result<u64, Fault>,
{
    /// Hands the lines to `emit`, without their newlines.
    pub fn lines(&self, mut emit: impl FnMut(&mut Line)) {
        let has_vmx = (self.cpuid)(1).ecx & vmx::CPUID_1_ECX_VMX != 0;
        let has = |leaf: u32| (self.cpuid)(0x8000_0000).eax >= leaf;
        let has_svm =
            has(0x8000_0001) && (self.cpuid)(0x8000_0001).ecx & svm::CPUID_80000001_ECX_SVM != 0;
        let mut line = Line::new();
        line.text(CAPS);
        self.vendor(&mut line);
        line.text(if has_vmx { ", VMX" } else { ", no VMX" });
        if !has_vmx {
            line.text(" (");
            self.basic(&mut line);
            line.text(")");
        }
        line.text(if has_svm { ", SVM" } else { ", no SVM" });
        emit(&mut line);
        if has_vmx {
            self.vmx(&mut emit);
        }
        if has_svm && has(svm::LEAF) {
            let leaf = (self.cpuid)(svm::LEAF);
            self.svm(leaf, &mut emit);
        }
    }

    /// The vendor's twelve letters; a hypervisor can make them anything.
    fn vendor(&self, line: &mut Line) {
        let r = (self.cpuid)(0);
        for byte in [r.ebx, r.edx, r.ecx].map(u32::to_le_bytes).as_flattened() {
            let shown = if byte.is_ascii_graphic() { *byte } else { b'?' };
            line.text(char::from(shown).encode_utf8(&mut [0; 4]));
        }
    }

    /// What a read of IA32_VMX_BASIC gives where VMX is not offered: a fault, usually.
    fn basic(&self, line: &mut Line) {
        line.text("RDMSR ");
        number(line, vmx::BASIC);
        match (self.read_msr)(vmx::BASIC) {
            Ok(value) => hex64(line.text(" = "), value),
            Err(fault) => faulted(line, fault),
        }
    }

    fn vmx(&self, emit: &mut impl FnMut(&mut Line)) {
        let mut line = Line::new();
        line.text(CAPS).text("IA32_FEATURE_CONTROL ");
        number(&mut line, vmx::FEATURE_CONTROL);
        match (self.read_msr)(vmx::FEATURE_CONTROL) {
            Ok(value) => {
                hex64(line.text(" = "), value);
                let locked = value & vmx::FEATURE_CONTROL_LOCKED != 0;
                let allowed = value & vmx::FEATURE_CONTROL_VMX != 0;
                line.text(match (locked, allowed) {
                    (false, _) => ": not locked, VMXON is for the guest to allow",
                    (true, true) => ": locked, VMXON allowed",
                    (true, false) => ": locked, VMXON forbidden",
                });
            }
            Err(fault) => faulted(&mut line, fault),
        }
        emit(&mut line);
        for msr in &vmx::MSRS {
            let mut line = Line::new();
            line.text(CAPS).text(msr.name).text(" ");
            number(&mut line, msr.number);
            match (self.read_msr)(msr.number) {
                Ok(value) => hex64(line.text(" = "), value),
                Err(fault) => faulted(&mut line, fault),
            }
            emit(&mut line);
        }
        let basic = (self.read_msr)(vmx::BASIC).unwrap_or(0);
        for group in &vmx::CONTROLS {
            self.controls(group, basic, emit);
        }
        for features in &vmx::FEATURES {
            self.features(features, emit);
        }
    }

    fn controls(&self, group: &vmx::Controls, basic: u64, emit: &mut impl FnMut(&mut Line)) {
        let number = group.msr(basic);
        let Ok(value) = (self.read_msr)(number) else {
            return;
        };
        head(group.title, number, emit);
        for &(bit, name) in group.names {
            setting(name, group.setting(value, bit), emit);
        }
        for (bit, of) in group.unnamed(value) {
            let mut name = Line::new();
            name.text("bit ").number(bit.into());
            setting(
                core::str::from_utf8(name.as_bytes()).unwrap_or(""),
                of,
                emit,
            );
        }
    }

    fn features(&self, features: &vmx::Features, emit: &mut impl FnMut(&mut Line)) {
        let Ok(value) = (self.read_msr)(features.msr) else {
            return;
        };
        head(features.title, features.msr, emit);
        for &(bit, name) in features.names {
            let mut line = Line::new();
            line.text(BELOW).text(name).text(": ");
            line.text(yes(features.has(value, bit)));
            emit(&mut line);
        }
    }

    fn svm(&self, leaf: Registers, emit: &mut impl FnMut(&mut Line)) {
        let mut line = Line::new();
        line.text(CAPS).text("SVM revision ");
        line.number((leaf.eax & 0xFF).into()).text(", ");
        line.number(leaf.ebx.into()).text(" ASIDs, features 0x");
        line.hex32(leaf.edx);
        emit(&mut line);
        for &(bit, name, meaning) in &svm::FEATURES {
            let mut line = Line::new();
            line.text(BELOW).text(name).text(" (").text(meaning);
            line.text("): ").text(yes(leaf.edx >> bit & 1 != 0));
            emit(&mut line);
        }
    }
}

fn head(title: &str, msr: u32, emit: &mut impl FnMut(&mut Line)) {
    let mut line = Line::new();
    line.text(CAPS).text(title).text(", ");
    line.text(vmx::msr_name(msr).unwrap_or(""));
    emit(&mut line);
}

fn setting(name: &str, setting: vmx::Setting, emit: &mut impl FnMut(&mut Line)) {
    let mut line = Line::new();
    line.text(BELOW).text(name).text(": Can set: ");
    line.text(yes(setting.can_be_set)).text(", Can clear: ");
    line.text(yes(setting.can_be_cleared));
    emit(&mut line);
}

fn faulted(line: &mut Line, fault: Fault) {
    line.text(" faults with exception ")
        .number(fault.vector.into());
}

/// `0x480`.
fn number(line: &mut Line, number: u32) {
    let mut digits = Line::new();
    digits.hex32(number);
    let digits = core::str::from_utf8(digits.as_bytes()).unwrap_or("");
    line.text("0x").text(digits.trim_start_matches('0'));
}

fn hex64(line: &mut Line, value: u64) {
    line.text("0x");
    line.hex32((value >> 32) as u32).hex32(value as u32);
}

fn yes(is: bool) -> &'static str {
    if is { "Yes" } else { "No" }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAULT: Fault = Fault {
        vector: 13,
        error_code: 0,
        address: 0,
    };

    fn lines(
        cpuid: impl Fn(u32) -> Registers,
        read_msr: impl Fn(u32) -> Result<u64, Fault>,
    ) -> Vec<String> {
        let mut lines = Vec::new();
        Cpu { cpuid, read_msr }.lines(|line| {
            lines.push(String::from_utf8(line.as_bytes().to_vec()).unwrap());
        });
        lines
    }

    fn intel(leaf: u32) -> Registers {
        match leaf {
            0 => Registers {
                ebx: 0x756E_6547,
                ecx: 0x6C65_746E,
                edx: 0x4965_6E69,
                ..Registers::default()
            },
            1 => Registers {
                ecx: 1 << 5,
                ..Registers::default()
            },
            _ => Registers::default(),
        }
    }

    #[test]
    fn one_line_where_nothing_is_offered() {
        let nothing = |_| Registers::default();
        assert_eq!(
            lines(nothing, |_| Err(FAULT)),
            ["caps: ????????????, no VMX (RDMSR 0x480 faults with exception 13), no SVM"]
        );
        let first = &lines(nothing, |_| Ok(7))[0];
        assert!(
            first.contains("(RDMSR 0x480 = 0x0000000000000007)"),
            "{first}"
        );
    }

    #[test]
    fn controls_in_the_courseworks_manner() {
        let lines = lines(intel, |number| match number {
            0x3A => Ok(5),
            0x480 => Ok(1 << 55),
            0x48D => Ok(0x0000_0017_0000_0016),
            _ => Err(FAULT),
        });
        let has = |line: &str| assert!(lines.iter().any(|l| l == line), "{line}: {lines:#?}");
        has("caps: GenuineIntel, VMX, no SVM");
        has("caps: IA32_FEATURE_CONTROL 0x3A = 0x0000000000000005: locked, VMXON allowed");
        has("caps: IA32_VMX_BASIC 0x480 = 0x0080000000000000");
        has("caps: IA32_VMX_PINBASED_CTLS 0x481 faults with exception 13");
        has("caps: pin-based VM-execution controls, IA32_VMX_TRUE_PINBASED_CTLS");
        has("caps:   External-interrupt exiting: Can set: Yes, Can clear: Yes");
        has("caps:   NMI exiting: Can set: No, Can clear: Yes");
        has("caps:   bit 4: Can set: Yes, Can clear: No");
        has("caps:   TRUE MSRs: default1 controls may be 0: Yes");
        assert!(!lines.iter().any(|line| line.contains("entry controls")));
    }

    #[test]
    fn features_of_svm() {
        let amd = |leaf| match leaf {
            0x8000_0000 => Registers {
                eax: svm::LEAF,
                ..Registers::default()
            },
            0x8000_0001 => Registers {
                ecx: 4,
                ..Registers::default()
            },
            svm::LEAF => Registers {
                eax: 1,
                ebx: 8,
                edx: 1,
                ..Registers::default()
            },
            _ => Registers::default(),
        };
        let lines = lines(amd, |_| Err(FAULT));
        assert!(lines[0].ends_with(", SVM"));
        assert_eq!(
            lines[1],
            "caps: SVM revision 1, 8 ASIDs, features 0x00000001"
        );
        assert_eq!(lines[2], "caps:   NP (nested paging): Yes");
        assert_eq!(lines.len(), 2 + svm::FEATURES.len());
    }
}
