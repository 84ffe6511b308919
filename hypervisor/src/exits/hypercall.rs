//! The hypercall: how it reaches the VMM, and what is answered.
//!
//! Two mechanisms. *Intercepted*: KVM hands every VMCALL (VMMCALL on AMD) to the VMM as KVM_EXIT_XEN
//! (KVM API, 4.76 KVM_XEN_HVM_CONFIG, 5 "KVM_EXIT_XEN"), which a kernel with CONFIG_KVM_XEN offers:
//! each is one exit, of reason 18, and needs no debug register. *At gates*: a breakpoint on the
//! instruction, anywhere. Only the interception is used of Xen's interface: no CPUID leaf names Xen.
//!
//! While calls are intercepted KVM's own paravirtual hypercalls come to the VMM too. It answers them as
//! a KVM answers that offers none of the features that use them, and CPUID says that it offers none.

use std::str::FromStr;

use exit_abi::hypercall;
use kvm_bindings::{CpuId, KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, KVMIO, kvm_xen_hvm_config};
use kvm_ioctls::{Cap, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};
use vmm_sys_util::ioctl::ioctl_with_ref;

use crate::config::ConfigError;
use crate::error::{Error, kvm as kvm_error};
use crate::profile::KvmKind;

/// The one ioctl that kvm-ioctls lacks (KVM API, 4.76).
mod request {
    use super::{KVMIO, kvm_xen_hvm_config};
    vmm_sys_util::ioctl_iow_nr!(KVM_XEN_HVM_CONFIG, KVMIO, 0x7a, kvm_xen_hvm_config);
}

/// The MSR that KVM wants named before it intercepts anything: by a write there a Xen guest asks for
/// its hypercall page. In the range that KVM demands (0x40000000–0x4FFFFFFF), and used by nobody: Xen
/// and Hyper-V have 0x40000000 and what follows, KVM's own lie at 0x4B564D00.
pub const PAGE_MSR: u32 = 0x4E00_0283;

/// KVM's leaf of paravirtual features (linux/Documentation/virt/kvm/x86/cpuid.rst).
const KVM_CPUID_FEATURES: u32 = 0x4000_0001;
/// Those whose use is a hypercall: PV_UNHALT, PV_SEND_IPI, PV_SCHED_YIELD, HC_MAP_GPA_RANGE, and
/// MIGRATION_CONTROL, which tells a guest to announce encrypted pages by the one before.
const FEATURES_BY_HYPERCALL: u32 = 1 << 7 | 1 << 11 | 1 << 13 | 1 << 16 | 1 << 17;

/// KVM_HC_VAPIC_POLL_IRQ and KVM_HC_CLOCK_PAIRING: the two of KVM's hypercalls that no feature announces
/// (linux/include/uapi/linux/kvm_para.h).
const VAPIC_POLL_IRQ: u64 = 1;
const CLOCK_PAIRING: u64 = 9;
/// -KVM_EOPNOTSUPP: what KVM_HC_CLOCK_PAIRING answers where KVM cannot tell both clocks at once.
const NOT_SUPPORTED: u64 = -95_i64 as u64;

/// What is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// Interception where KVM offers it, otherwise gates; gates for a Linux with several CPUs.
    #[default]
    Auto,
    /// Interception, or no run at all.
    Xen,
    /// Gates.
    Gate,
}

impl Wish {
    /// What it means for this guest. A Linux with several CPUs is better off with KVM's own hypercalls:
    /// the features that use them save it a tenth of its exits and more.
    #[must_use]
    pub fn of(self, linux: bool, cpus: u32) -> Self {
        match self {
            Self::Auto if linux && cpus > 1 => Self::Gate,
            wish => wish,
        }
    }
}

impl FromStr for Wish {
    type Err = ConfigError;

    fn from_str(s: &str) -> Result<Self, ConfigError> {
        match s {
            "auto" => Ok(Self::Auto),
            "xen" => Ok(Self::Xen),
            "gate" => Ok(Self::Gate),
            _ => Err(ConfigError::Hypercall(s.to_owned())),
        }
    }
}

/// How hypercalls reach the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// KVM passes every one on, as KVM_EXIT_XEN.
    Xen,
    /// A breakpoint on the instruction; one that stands at no gate is KVM's to answer.
    Gate,
}

impl Mechanism {
    /// Its name in profiles.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xen => "xen",
            Self::Gate => "gate",
        }
    }
}

/// Makes KVM intercept hypercalls, so far as that is wanted and offered. Before there are vCPUs.
///
/// # Errors
///
/// Interception was asked for by name, and this KVM does not offer it; or KVM offers and refuses it.
pub fn set_up(vm: &VmFd, kvm: KvmKind, wish: Wish) -> Result<Mechanism, Error> {
    if wish == Wish::Gate {
        return Ok(Mechanism::Gate);
    }
    // Software KVM interprets the instruction, and cannot do this one.
    let offered = kvm != KvmKind::Software
        && vm.check_extension_int(Cap::XenHvm) as u32 & KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL != 0;
    if !offered {
        if wish == Wish::Auto {
            return Ok(Mechanism::Gate);
        }
        let why = match kvm {
            KvmKind::Software => "software KVM (kvm_pvm) cannot pass hypercalls on",
            _ => "this KVM cannot pass hypercalls on (its kernel lacks CONFIG_KVM_XEN)",
        };
        return Err(Error::NoKvm(format!(
            "--hypercall xen: {why}: leave it out, or give --hypercall gate"
        )));
    }
    let config = kvm_xen_hvm_config {
        flags: KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL,
        msr: PAGE_MSR,
        ..Default::default()
    };
    // SAFETY: KVM_XEN_HVM_CONFIG reads one `kvm_xen_hvm_config`, which `config` is, and whose pointers
    // to hypercall pages are null; `vm` is a live VM descriptor.
    let result = unsafe { ioctl_with_ref(vm, request::KVM_XEN_HVM_CONFIG(), &config) };
    if result < 0 {
        let error = kvm_ioctls::Error::last();
        return Err(kvm_error("to intercept hypercalls (KVM_XEN_HVM_CONFIG)")(
            error,
        ));
    }
    hide_the_page_msr(vm);
    Ok(Mechanism::Xen)
}

/// Makes [`PAGE_MSR`] an MSR that is not there, as it was before it was named: without this a guest
/// that writes an address there has KVM fill that page of its own memory with hypercalls (KVM checks
/// the address as it does the guest's own accesses, so no more could come of it).
fn hide_the_page_msr(vm: &VmFd) {
    // A denied access is #GP: nobody asked for it in userspace.
    let denied = [0];
    let range = MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base: PAGE_MSR,
        msr_count: 1,
        bitmap: &denied,
    };
    if let Err(error) = vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[range]) {
        tracing::debug!(%error, "cannot hide the MSR that KVM_XEN_HVM_CONFIG needs");
    }
}

/// Takes the features out of a CPUID table whose use is a hypercall: while KVM passes all of them on,
/// nobody would do what they ask for (an SMP Linux would lose interrupts).
pub fn hide_features(table: &mut CpuId) {
    for entry in table.as_mut_slice() {
        if entry.function == KVM_CPUID_FEATURES {
            entry.eax &= !FEATURES_BY_HYPERCALL;
        }
    }
}

/// Whether `bytes` begin with the hypercall instruction of this KVM's CPU: VMCALL (Intel), VMMCALL
/// (AMD). The other one is #UD there, upon which KVM rewrites the guest's code, if it can.
pub fn is_native(kvm: KvmKind, bytes: &[u8]) -> bool {
    match kvm {
        KvmKind::Intel => bytes.starts_with(&[0x0F, 0x01, 0xC1]),
        KvmKind::Amd => bytes.starts_with(&[0x0F, 0x01, 0xD9]),
        KvmKind::Software | KvmKind::Unknown => false,
    }
}

/// A call, as the guest made it. All of it is the guest's to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// RAX.
    pub rax: u64,
    /// The privilege level.
    pub cpl: u8,
    /// In 64-bit mode; elsewhere only EAX counts, and only EAX is answered, as KVM has it.
    pub in_64_bit_mode: bool,
}

impl Call {
    fn number(self) -> u64 {
        match self.in_64_bit_mode {
            true => self.rax,
            false => self.rax & 0xFFFF_FFFF,
        }
    }

    /// Whether this asks who the hypervisor is: the profiler's own exit. Any other call would be an
    /// exit without a profiler, too.
    pub fn is_ours(self) -> bool {
        (self.cpl, self.number()) == (0, hypercall::WHO_ARE_YOU)
    }

    /// RAX of the answer. What is not ours is answered as KVM answers without the features that
    /// [`hide_features`] hides (`kvm_emulate_hypercall` in linux/arch/x86/kvm/x86.c).
    pub fn answer(self) -> u64 {
        let answer = match (self.cpl, self.number()) {
            (1.., _) => hypercall::NOT_PERMITTED,
            (_, hypercall::WHO_ARE_YOU) => hypercall::ANSWER,
            (_, VAPIC_POLL_IRQ) => 0,
            (_, CLOCK_PAIRING) => NOT_SUPPORTED,
            _ => hypercall::UNKNOWN,
        };
        match self.in_64_bit_mode {
            true => answer,
            false => answer & 0xFFFF_FFFF,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_cpuid_entry2;
    use proptest::prelude::*;

    fn call(rax: u64, cpl: u8, in_64_bit_mode: bool) -> Call {
        Call {
            rax,
            cpl,
            in_64_bit_mode,
        }
    }

    #[test]
    fn answers() {
        assert_eq!(call(0x283, 0, true).answer(), 0x0033_3832_4550_4D43);
        assert_eq!(call(0x284, 0, true).answer() as i64, -1000);
        assert_eq!(call(0x283, 3, true).answer() as i64, -1);
        // KVM's own: KVM_HC_VAPIC_POLL_IRQ, KVM_HC_CLOCK_PAIRING, and those that need a feature.
        assert_eq!(call(1, 0, true).answer(), 0);
        assert_eq!(call(1, 3, true).answer() as i64, -1);
        assert_eq!(call(9, 0, true).answer() as i64, -95);
        for number in [0, 2, 5, 10, 11, 12, u64::MAX] {
            assert_eq!(call(number, 0, true).answer() as i64, -1000);
        }
        // What 64-bit code has left in the upper half.
        let stale = 0xFFFF_8000_0000_0283;
        assert_eq!(call(stale, 0, true).answer() as i64, -1000);
        assert_eq!(call(stale, 0, false).answer(), 0x4550_4D43);
        assert_eq!(call(5, 0, false).answer(), (-1000_i32) as u32 as u64);
        assert!(call(stale, 0, false).is_ours());
        assert!(!call(stale, 0, true).is_ours());
        assert!(!call(0x283, 1, true).is_ours());
    }

    #[test]
    fn features_that_are_hypercalls_are_hidden() {
        let entry = |function| kvm_cpuid_entry2 {
            function,
            eax: u32::MAX,
            ..Default::default()
        };
        let mut table = CpuId::from_entries(&[entry(1), entry(KVM_CPUID_FEATURES)]).unwrap();
        hide_features(&mut table);
        assert_eq!(table.as_slice()[0].eax, u32::MAX);
        assert_eq!(table.as_slice()[1].eax, !0x0003_2880);
    }

    #[test]
    fn whose_instruction() {
        let (vmcall, vmmcall) = ([0x0F, 0x01, 0xC1], [0x0F, 0x01, 0xD9]);
        assert!(is_native(KvmKind::Intel, &vmcall) && !is_native(KvmKind::Intel, &vmmcall));
        assert!(is_native(KvmKind::Amd, &vmmcall) && !is_native(KvmKind::Amd, &vmcall));
        assert!(!is_native(KvmKind::Software, &vmcall));
        assert!(!is_native(KvmKind::Intel, &vmcall[..2]));
    }

    #[test]
    fn wishes() {
        assert_eq!("xen".parse(), Ok(Wish::Xen));
        assert_eq!(Wish::Auto.of(true, 2), Wish::Gate);
        for (wish, linux, cpus) in [
            (Wish::Auto, true, 1),
            (Wish::Auto, false, 2),
            (Wish::Xen, true, 2),
        ] {
            assert_eq!(wish.of(linux, cpus), wish);
        }
        assert_eq!("".parse::<Wish>(), Err(ConfigError::Hypercall("".into())));
    }

    proptest! {
        #[test]
        fn any_call_is_answered(rax: u64, cpl in 0_u8..4, long: bool) {
            let answer = call(rax, cpl, long).answer();
            prop_assert!(long || answer <= u64::from(u32::MAX));
        }
    }
}
