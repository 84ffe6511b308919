//! Who uses KVM: processes with one of its files open, and modules that build on it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// `qemu-system-x86 (1234)` of every process that holds `/dev/kvm`, a VM or a vCPU, as far as we may
/// look.
pub(super) fn of_kvm() -> BTreeSet<String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| uses_kvm(*id))
        .map(|id| {
            let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
            format!("{} ({id})", name.trim())
        })
        .collect()
}

fn uses_kvm(process: u32) -> bool {
    let files = fs::read_dir(format!("/proc/{process}/fd"));
    let files = files.into_iter().flatten().flatten();
    files
        .filter_map(|file| fs::read_link(file.path()).ok())
        .any(|file| is_of_kvm(&file.to_string_lossy()))
}

/// Whether what `/proc/PID/fd` says of a file is one of KVM's.
fn is_of_kvm(file: &str) -> bool {
    file == "/dev/kvm" || file.starts_with("anon_inode:kvm-")
}

/// The modules that use a module.
pub(super) fn holders(module: &Path) -> BTreeSet<String> {
    let holders = fs::read_dir(module.join("holders"));
    let holders = holders.into_iter().flatten().flatten();
    holders
        .map(|holder| format!("the module {}", holder.file_name().to_string_lossy()))
        .collect()
}

/// All of them, with what to do.
pub(super) fn told(processes: &BTreeSet<String>, modules: &BTreeSet<String>) -> String {
    const SHOWN: usize = 8;
    let all: Vec<&str> = processes.union(modules).map(String::as_str).collect();
    match all.len() {
        0 => "by whom, cannot be told (processes of another container?): end all VMs first".into(),
        n if n > SHOWN => format!(
            "{} and {} more: end them first",
            all[..SHOWN].join(", "),
            n - SHOWN
        ),
        _ => format!("{}: end that first", all.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_kvm() {
        for file in ["/dev/kvm", "anon_inode:kvm-vm", "anon_inode:kvm-vcpu:0"] {
            assert!(is_of_kvm(file), "{file}");
        }
        for file in ["/dev/kvm2", "anon_inode:[eventfd]", "socket:[1]"] {
            assert!(!is_of_kvm(file), "{file}");
        }
    }

    #[test]
    fn who_is_told() {
        let set = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
        let told = |p: &[&str], m: &[&str]| told(&set(p), &set(m));
        assert!(told(&[], &[]).starts_with("by whom, cannot be told"));
        assert_eq!(
            told(&["qemu (7)"], &["the module kvmgt"]),
            "qemu (7), the module kvmgt: end that first"
        );
        let many: Vec<String> = (0..11).map(|n| format!("v{n:02}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(told(&many, &[]).ends_with("v07 and 3 more: end them first"));
    }
}
