//! Where a guest is booted: on this machine's KVM, or in a lab.

use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

use clap::ValueEnum;

use crate::build::Built;
use crate::lab::{self, Host, Job, disk, drivers};
use crate::run::value_of;
use crate::step::Step;

/// What the user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum On {
    /// This machine's KVM
    Host,
    /// Real kvm_amd on an emulated CPU
    AmdLab,
    /// Real kvm_intel on an emulated CPU
    IntelLab,
    /// Hardware KVM if there is one; otherwise software KVM, for our own guests; otherwise the AMD
    /// lab
    #[default]
    Auto,
}

/// Where it will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Where {
    /// Here.
    Host,
    /// In a lab.
    Lab(Host),
}

/// What KVM this machine has.
#[derive(Debug)]
enum Kvm {
    Hardware,
    Software,
    /// None that can be used.
    None(io::Error),
}

impl On {
    /// Decides. A choice of our own is told on stderr, with what the others would add.
    pub(crate) fn choose(self, built: &Built, options: &[OsString]) -> Where {
        self.choose_for(|| ours(built, options))
    }

    /// Decides for a Linux, and tells.
    pub(crate) fn choose_linux(self) -> Where {
        self.choose_for(|| false)
    }

    fn choose_for(self, ours: impl FnOnce() -> bool) -> Where {
        match self {
            On::Host => Where::Host,
            On::AmdLab => Where::Lab(Host::Amd),
            On::IntelLab => Where::Lab(Host::Intel),
            On::Auto => {
                let (place, why) = choice(&kvm(), ours());
                eprintln!("xtask: {why}");
                place
            }
        }
    }
}

/// Whether what is booted is of this project: nothing else was named, or one of the guests built.
fn ours(built: &Built, options: &[OsString]) -> bool {
    let folder = |path: &Path| path.canonicalize().ok()?.parent().map(Path::to_owned);
    let guests = folder(&built.guest_kernel);
    value_of(options, "--kernel").is_none_or(|kernel| folder(Path::new(&kernel)) == guests)
}

fn choice(kvm: &Kvm, ours: bool) -> (Where, String) {
    match kvm {
        Kvm::Hardware => (
            Where::Host,
            "on this machine's KVM; --on amd-lab and --on intel-lab: another kernel's, on an \
             emulated CPU of either vendor"
                .to_owned(),
        ),
        Kvm::Software if ours => (
            Where::Host,
            "on this machine's software KVM (kvm_pvm), which has no hardware exits; --on amd-lab and \
             --on intel-lab: the exits of real kvm_amd and kvm_intel, on an emulated CPU"
                .to_owned(),
        ),
        Kvm::Software => (
            Where::Lab(Host::Amd),
            "in the AMD lab: this machine's software KVM (kvm_pvm) is for this project's guests \
             only; --on intel-lab: VT-x, for small guests"
                .to_owned(),
        ),
        Kvm::None(error) => (
            Where::Lab(Host::Amd),
            format!(
                "in the AMD lab, as /dev/kvm cannot be used ({error}); --on intel-lab: VT-x, for \
                 small guests; --on host, once there is KVM: real speed"
            ),
        ),
    }
}

fn kvm() -> Kvm {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Err(error) => Kvm::None(error),
        Ok(_) if is_software(Path::new("/sys/module")) => Kvm::Software,
        Ok(_) => Kvm::Hardware,
    }
}

/// As exitvisor tells it (`hypervisor/src/host.rs`): by the modules.
fn is_software(modules: &Path) -> bool {
    let has = |name: &str| fs::exists(modules.join(name)).unwrap_or(false);
    has("kvm_pvm") && !has("kvm_intel") && !has("kvm_amd")
}

/// An exitvisor command in a lab, with its guests at hand.
pub(crate) fn job(
    host: Host,
    built: &Built,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> anyhow::Result<Job> {
    let mut job = Job::exitvisor(host, built)?;
    job.args = args
        .into_iter()
        .map(|arg| arg.as_ref().to_owned())
        .collect();
    job.disks = disk::named(&job.args, &job.cwd);
    job.taps = disk::values(&job.args, "--net")
        .filter_map(|value| tap_of(&value).map(str::to_owned))
        .collect();
    if !job.taps.is_empty() {
        job.drivers.push(drivers::TAP);
    }
    Ok(job)
}

/// From `tap=NAME,mac=…`: the name.
fn tap_of(net: &str) -> Option<&str> {
    net.split(',').find_map(|part| part.strip_prefix("tap="))
}

impl Where {
    /// Runs an exitvisor command to its end; its status.
    pub(crate) fn status(self, built: &Built, args: &[OsString]) -> anyhow::Result<u8> {
        match self {
            Where::Host => Step::new(&built.exitvisor).args(args).status(),
            Where::Lab(host) => Ok(lab::run(&job(host, built, args)?)?.status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn software_kvm_is_for_our_own_guests() {
        let none = Kvm::None(io::ErrorKind::NotFound.into());
        for (kvm, ours, place) in [
            (&Kvm::Hardware, true, Where::Host),
            (&Kvm::Hardware, false, Where::Host),
            (&Kvm::Software, true, Where::Host),
            (&Kvm::Software, false, Where::Lab(Host::Amd)),
            (&none, true, Where::Lab(Host::Amd)),
            (&none, false, Where::Lab(Host::Amd)),
        ] {
            let (chosen, why) = choice(kvm, ours);
            assert_eq!(chosen, place, "{kvm:?} {ours}");
            assert!(
                why.contains("--on intel-lab") && !why.contains('\n'),
                "{why}"
            );
        }
    }

    #[test]
    fn modules_tell_software_kvm() {
        let modules = tempfile::tempdir().unwrap();
        assert!(!is_software(modules.path()));
        fs::create_dir(modules.path().join("kvm_pvm")).unwrap();
        assert!(is_software(modules.path()));
        fs::create_dir(modules.path().join("kvm_intel")).unwrap();
        assert!(!is_software(modules.path()));
    }

    #[test]
    fn our_own_guests() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("guest-kernel");
        let other = folder.path().join("other");
        fs::write(&kernel, "").unwrap();
        fs::write(&other, "").unwrap();
        let built = Built {
            exitvisor: "x".into(),
            firmware: "f".into(),
            guest_kernel: kernel,
        };
        assert!(ours(&built, &[]));
        assert!(ours(&built, &["--kernel".into(), other.into()]));
        assert!(!ours(&built, &["--kernel=/boot/vmlinuz".into()]));
    }
}
