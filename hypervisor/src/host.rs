//! The host: its CPU, its kernel, its KVM.

use std::fs;
use std::path::Path;

use crate::profile::{Host, KvmKind};

/// Which KVM this is, by the modules that are there.
pub fn kvm_kind() -> KvmKind {
    let cpuinfo = || fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    kvm_kind_at(Path::new("/sys/module"), cpuinfo)
}

fn kvm_kind_at(modules: &Path, cpuinfo: impl FnOnce() -> String) -> KvmKind {
    let has = |name: &str| modules.join(name).is_dir();
    // Built into the kernel both are there; the CPU tells which of them works.
    let both = has("kvm_intel") && has("kvm_amd");
    if has("kvm_intel") && !(both && is_amd(&cpuinfo())) {
        KvmKind::Intel
    } else if has("kvm_amd") {
        KvmKind::Amd
    } else if has("kvm_pvm") {
        KvmKind::Software
    } else {
        KvmKind::Unknown
    }
}

/// Whether `/proc/cpuinfo` tells of a CPU with SVM's kind of virtualization.
fn is_amd(cpuinfo: &str) -> bool {
    let vendor = cpuinfo.lines().find(|l| l.starts_with("vendor_id"));
    vendor.is_some_and(|l| {
        ["AuthenticAMD", "HygonGenuine"]
            .iter()
            .any(|v| l.ends_with(v))
    })
}

/// Nested or shadow paging, by the module's parameter.
fn paging_at(modules: &Path, kvm: KvmKind) -> &'static str {
    let parameter = match kvm {
        KvmKind::Intel => "kvm_intel/parameters/ept",
        KvmKind::Amd => "kvm_amd/parameters/npt",
        KvmKind::Software => return "shadow",
        KvmKind::Unknown => return "unknown",
    };
    match fs::read_to_string(modules.join(parameter))
        .as_deref()
        .map(str::trim)
    {
        Ok("Y" | "1") => "nested",
        Ok("N" | "0") => "shadow",
        _ => "unknown",
    }
}

/// The CPU's model name in `/proc/cpuinfo`'s text.
fn cpu_model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find(|l| l.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim())
}

/// What a profile says of the host.
pub fn describe(kvm: KvmKind, tsc_khz: u64) -> Host {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Host {
        cpu: cpu_model(&cpuinfo).unwrap_or("unknown").to_owned(),
        kernel: kernel.trim().to_owned(),
        kvm,
        paging: paging_at(Path::new("/sys/module"), kvm).to_owned(),
        tsc_khz,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_tell_the_kvm() {
        let modules = tempfile::tempdir().unwrap();
        let kind = |cpuinfo: &str| kvm_kind_at(modules.path(), || cpuinfo.to_owned());
        assert_eq!(kind(""), KvmKind::Unknown);
        let parameters = modules.path().join("kvm_amd/parameters");
        fs::create_dir_all(&parameters).unwrap();
        fs::write(parameters.join("npt"), "N\n").unwrap();
        assert_eq!(kind(""), KvmKind::Amd);
        assert_eq!(paging_at(modules.path(), KvmKind::Amd), "shadow");
        assert_eq!(paging_at(modules.path(), KvmKind::Intel), "unknown");
        fs::create_dir(modules.path().join("kvm_intel")).unwrap();
        assert_eq!(kind("vendor_id\t: AuthenticAMD\n"), KvmKind::Amd);
        assert_eq!(kind("vendor_id\t: GenuineIntel\n"), KvmKind::Intel);
        assert_eq!(kind(""), KvmKind::Intel);
    }

    #[test]
    fn cpu_models() {
        assert_eq!(
            cpu_model("processor : 0\nmodel name\t: AMD EPYC\n"),
            Some("AMD EPYC")
        );
        assert_eq!(cpu_model(""), None);
    }
}
