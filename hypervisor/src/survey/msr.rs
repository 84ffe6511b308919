//! The VMX capability MSRs: those that KVM offers to guests (`KVM_GET_MSR_FEATURE_INDEX_LIST`,
//! `KVM_GET_MSRS` of `/dev/kvm`), and this CPU's own (`/dev/cpu/0/msr`, of the module msr).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use exit_abi::vmx;
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::Kvm;

use super::modules::Module;
use crate::profile::KvmKind;

/// Values by number, or why there are none and what to do.
pub(super) type Values = Result<BTreeMap<u32, u64>, String>;

/// What KVM offers.
pub(super) fn offered(kvm: Option<&Kvm>, kind: KvmKind, modules: &[Module]) -> Values {
    let Some(kvm) = kvm else {
        return Err("there is no usable /dev/kvm".to_owned());
    };
    let list = kvm.get_msr_feature_index_list();
    let list = list.map_err(|error| format!("KVM does not list its feature MSRs: {error}"))?;
    let known = |number: &&u32| vmx::msr_name(**number).is_some();
    // The list alone tells what there is: a value of what is not listed means nothing.
    let numbers = list.as_slice().iter().filter(known);
    let values: BTreeMap<u32, u64> = numbers
        .filter_map(|&number| Some((number, feature(kvm, number)?)))
        .collect();
    if values.is_empty() {
        return Err(nothing_offered(kind, modules));
    }
    Ok(values)
}

fn feature(kvm: &Kvm, number: u32) -> Option<u64> {
    let entry = kvm_msr_entry {
        index: number,
        ..Default::default()
    };
    let mut msrs = Msrs::from_entries(&[entry]).ok()?;
    let read = kvm.get_msrs(&mut msrs).ok()?;
    let entry = msrs.as_slice().first()?;
    (read == 1).then_some(entry.data)
}

fn nothing_offered(kind: KvmKind, modules: &[Module]) -> String {
    let module = modules.iter().find(|m| m.name == "kvm_intel");
    let nested = module.and_then(|m| m.parameters.get("nested"));
    match (kind, nested.map(String::as_str)) {
        (KvmKind::Intel, Some("N" | "0")) => {
            "kvm_intel has nested=N: load it with nested=1 to offer VMX to guests".to_owned()
        }
        (KvmKind::Amd, _) => "kvm_amd offers SVM alone".to_owned(),
        _ => format!("{} lists no VMX capability MSR", kind.module()),
    }
}

/// What the CPU itself has.
pub(super) fn own(has_vmx: bool) -> Values {
    if !has_vmx {
        return Err("it has none".to_owned());
    }
    own_at(Path::new("/dev/cpu/0/msr"))
}

fn own_at(device: &Path) -> Values {
    let shown = device.display();
    let refused = |error: io::Error| match error.kind() {
        ErrorKind::NotFound => format!("there is no {shown}: as root, run modprobe msr"),
        ErrorKind::PermissionDenied => {
            format!(
                "{shown} is root's alone: run this as root (a locked-down kernel keeps it shut)"
            )
        }
        _ => format!("cannot open {shown}: {error}"),
    };
    let file = File::open(device).map_err(refused)?;
    // EIO where the CPU lacks the MSR.
    let value = |number: u32| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, number.into()).ok()?;
        Some(u64::from_le_bytes(bytes))
    };
    let values: BTreeMap<u32, u64> = vmx::MSRS
        .iter()
        .filter_map(|msr| Some((msr.number, value(msr.number)?)))
        .collect();
    if values.is_empty() {
        return Err(format!("{shown} holds none of them"));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_of_msrs() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("msr");
        assert!(own_at(&device).unwrap_err().contains("run modprobe msr"));
        let mut bytes = vec![0; 0x480];
        bytes.extend(0x1234_u64.to_le_bytes());
        std::fs::write(&device, &bytes).unwrap();
        // Numbers are offsets: what lies beyond the end, or half beyond, is not there.
        assert_eq!(own_at(&device), Ok(BTreeMap::from([(0x480, 0x1234)])));
        std::fs::write(&device, "").unwrap();
        assert!(own_at(&device).unwrap_err().contains("holds none"));
        assert!(own(false).is_err());
    }

    #[test]
    fn why_nothing_is_offered() {
        let module = |nested: &str| Module {
            name: "kvm_intel".to_owned(),
            parameters: BTreeMap::from([("nested".to_owned(), nested.to_owned())]),
        };
        let why = |kind, nested| nothing_offered(kind, &[module(nested)]);
        assert!(why(KvmKind::Intel, "N").contains("load it with nested=1"));
        assert!(why(KvmKind::Intel, "Y").contains("lists no VMX"));
        assert!(why(KvmKind::Amd, "N").contains("kvm_amd offers SVM"));
        assert!(why(KvmKind::Software, "N").contains("kvm_pvm lists"));
        assert!(offered(None, KvmKind::Intel, &[]).is_err());
    }
}
