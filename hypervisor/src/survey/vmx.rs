//! VMX: the capability MSRs, decoded twice: as KVM offers them to a guest, and as this CPU has them.

use std::collections::BTreeMap;

use exit_abi::vmx::{self, Controls, Setting};
use serde::Serialize;

use super::Hex;
use super::msr::Values;

/// What is known of VMX. `guest` stands for what KVM offers to a guest, `cpu` for this CPU's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Vmx {
    /// Why nothing is known of what KVM offers.
    pub no_guest: Option<String>,
    /// Why nothing is known of this CPU's own.
    pub no_cpu: Option<String>,
    /// The MSRs that either has.
    pub msrs: Vec<Msr>,
    /// The controls of VM execution, exits and entries.
    pub controls: Vec<Group>,
    /// The bits of CR0 and CR4 in VMX operation.
    pub registers: Vec<Group>,
    /// Features.
    pub features: Vec<Feature>,
    /// Numbers.
    pub numbers: Vec<Number>,
}

/// A pair: of a guest, of the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Both<T> {
    /// What KVM offers to a guest.
    pub guest: Option<T>,
    /// This CPU's own.
    pub cpu: Option<T>,
}

impl<T> Both<T> {
    /// Whether there is either.
    pub fn any(&self) -> bool {
        self.guest.is_some() || self.cpu.is_some()
    }
}

/// A capability MSR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Msr {
    /// `0x480`.
    pub number: String,
    /// `IA32_VMX_BASIC`.
    pub name: &'static str,
    /// The values.
    #[serde(flatten)]
    pub values: Both<Hex>,
}

/// Controls that one field or register holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// What they are.
    pub title: &'static str,
    /// The names of the MSRs that tell of them.
    pub msr: Both<&'static str>,
    /// Each, by bit.
    pub controls: Vec<Control>,
}

/// A control.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Control {
    /// Its bit.
    pub bit: u8,
    /// Its name in the SDM. Bits without one are here if they need not be 0 in either.
    pub name: Option<&'static str>,
    /// What may be done with it.
    #[serde(flatten)]
    pub settings: Both<Choice>,
}

/// A [`Setting`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// It may be 1.
    pub can_be_set: bool,
    /// It may be 0.
    pub can_be_cleared: bool,
}

impl From<Setting> for Choice {
    fn from(setting: Setting) -> Self {
        Self {
            can_be_set: setting.can_be_set,
            can_be_cleared: setting.can_be_cleared,
        }
    }
}

/// A feature that one bit of an MSR tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// What it belongs to.
    pub about: &'static str,
    /// The MSR.
    pub msr: &'static str,
    /// Its bit.
    pub bit: u8,
    /// Its name; bits without one are here if either has them.
    pub name: Option<&'static str>,
    /// Whether it is there.
    #[serde(flatten)]
    pub has: Both<bool>,
}

/// A number in an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Number {
    /// The MSR.
    pub msr: &'static str,
    /// What it is.
    pub name: &'static str,
    /// The number.
    #[serde(flatten)]
    pub values: Both<u64>,
}

type Known = BTreeMap<u32, u64>;

impl Vmx {
    /// Decodes both.
    pub(super) fn of(guest: Values, cpu: Values) -> Self {
        let split = |values: Values| match values {
            Ok(values) => (values, None),
            Err(why) => (Known::new(), Some(why)),
        };
        let ((guest, no_guest), (cpu, no_cpu)) = (split(guest), split(cpu));
        let pair = Pair { guest, cpu };
        Self {
            no_guest,
            no_cpu,
            msrs: pair.msrs(),
            controls: vmx::CONTROLS.iter().filter_map(|g| pair.group(g)).collect(),
            registers: vmx::REGISTERS
                .iter()
                .filter_map(|r| pair.register(r))
                .collect(),
            features: vmx::FEATURES
                .iter()
                .flat_map(|f| pair.features(f))
                .collect(),
            numbers: vmx::FIELDS.iter().filter_map(|f| pair.number(f)).collect(),
        }
    }
}

struct Pair {
    guest: Known,
    cpu: Known,
}

fn name(number: u32) -> &'static str {
    vmx::msr_name(number).unwrap_or_default()
}

impl Pair {
    fn both<T>(&self, f: impl Fn(&Known) -> Option<T>) -> Both<T> {
        Both {
            guest: f(&self.guest),
            cpu: f(&self.cpu),
        }
    }

    fn msrs(&self) -> Vec<Msr> {
        let all = vmx::MSRS.iter().map(|msr| Msr {
            number: format!("{:#x}", msr.number),
            name: msr.name,
            values: self.both(|known| known.get(&msr.number).copied().map(Hex)),
        });
        all.filter(|msr| msr.values.any()).collect()
    }

    fn group(&self, group: &Controls) -> Option<Group> {
        let number = |known: &Known| {
            let basic = known.get(&vmx::BASIC).copied().unwrap_or(0);
            Some(group.msr(basic)).filter(|number| known.contains_key(number))
        };
        let value = |known: &Known| Some(known[&number(known)?]);
        let msr = self.both(|known| number(known).map(name));
        if !msr.any() {
            return None;
        }
        let named = group.names.iter().map(|&(bit, name)| (bit, Some(name)));
        let mut bits: Vec<(u8, Option<&str>)> = named.collect();
        let unnamed = |known: &Known| {
            let value = value(known)?;
            Some(group.unnamed(value).map(|(bit, _)| bit).collect::<Vec<_>>())
        };
        let unnamed = self.both(unnamed);
        for bit in [unnamed.guest, unnamed.cpu].into_iter().flatten().flatten() {
            if bits.iter().all(|(other, _)| *other != bit) {
                bits.push((bit, None));
            }
        }
        bits.sort_by_key(|(bit, _)| *bit);
        let control = |(bit, name)| Control {
            bit,
            name,
            settings: self.both(|known| Some(group.setting(value(known)?, bit).into())),
        };
        Some(Group {
            title: group.title,
            msr,
            controls: bits.into_iter().map(control).collect(),
        })
    }

    fn register(&self, register: &vmx::Register) -> Option<Group> {
        let values =
            |known: &Known| Some((*known.get(&register.fixed0)?, *known.get(&register.fixed1)?));
        let msr = self.both(|known| values(known).map(|_| name(register.fixed0)));
        let control = |&(bit, name)| Control {
            bit,
            name: Some(name),
            settings: self.both(|known| {
                let (fixed0, fixed1) = values(known)?;
                Some(register.setting(fixed0, fixed1, bit).into())
            }),
        };
        msr.any().then(|| Group {
            title: register.name,
            msr,
            controls: register.names.iter().map(control).collect(),
        })
    }

    fn features(&self, features: &vmx::Features) -> Vec<Feature> {
        let value = |known: &Known| known.get(&features.msr).copied();
        let feature = |bit, of| Feature {
            about: features.title,
            msr: name(features.msr),
            bit,
            name: of,
            has: self.both(|known| Some(features.has(value(known)?, bit))),
        };
        let named = features.names.iter().map(|&(bit, name)| (bit, Some(name)));
        let either = [value(&self.guest), value(&self.cpu)];
        let either = either
            .into_iter()
            .flatten()
            .fold(0, |all, value| all | value);
        let unnamed = features.unnamed(either).map(|bit| (bit, None));
        let mut all: Vec<Feature> = named.chain(unnamed).map(|(b, n)| feature(b, n)).collect();
        all.retain(|feature| feature.has.any());
        all.sort_by_key(|feature| feature.bit);
        all
    }

    fn number(&self, field: &vmx::Field) -> Option<Number> {
        let number = Number {
            msr: name(field.msr),
            name: field.name,
            values: self.both(|known| known.get(&field.msr).map(|value| field.get(*value))),
        };
        number.values.any().then_some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_by_its_own_msr() {
        // The guest's BASIC points at the TRUE MSR, the CPU's does not.
        let guest = Known::from([
            (0x480, vmx::BASIC_TRUE_CONTROLS),
            (0x481, 0),
            (0x48D, 0x0000_0001_0000_0000),
        ]);
        let cpu = Known::from([(0x480, 0), (0x481, 0x0000_0009_0000_0001)]);
        let vmx = Vmx::of(Ok(guest), Ok(cpu));
        let pin = &vmx.controls[0];
        assert_eq!(pin.msr.guest, Some("IA32_VMX_TRUE_PINBASED_CTLS"));
        assert_eq!(pin.msr.cpu, Some("IA32_VMX_PINBASED_CTLS"));
        let first = pin.controls[0];
        assert_eq!(first.name, Some("External-interrupt exiting"));
        let choice = |can_be_set, can_be_cleared| {
            Some(Choice {
                can_be_set,
                can_be_cleared,
            })
        };
        assert_eq!(first.settings.guest, choice(true, true));
        assert_eq!(first.settings.cpu, choice(true, false));
        assert_eq!(vmx.controls.len(), 1);
        assert!(vmx.registers.is_empty());
    }

    #[test]
    fn nothing_known() {
        let vmx = Vmx::of(Err("a".into()), Err("b".into()));
        assert_eq!(
            (vmx.no_guest.as_deref(), vmx.no_cpu.as_deref()),
            (Some("a"), Some("b"))
        );
        assert!(vmx.msrs.is_empty() && vmx.controls.is_empty() && vmx.features.is_empty());
    }

    proptest! {
        #[test]
        fn any_values_decode(values: Vec<u64>, of_cpu: Vec<u64>) {
            let known = |values: &[u64]| {
                let numbers = vmx::MSRS.iter().map(|msr| msr.number);
                numbers.zip(values.iter().copied()).collect::<Known>()
            };
            let decoded = Vmx::of(Ok(known(&values)), Ok(known(&of_cpu)));
            for group in &decoded.controls {
                prop_assert!(group.controls.is_sorted_by(|a, b| a.bit < b.bit));
            }
            for feature in &decoded.features {
                prop_assert!(feature.name.is_some() || feature.has.guest == Some(true)
                    || feature.has.cpu == Some(true));
            }
        }
    }
}
