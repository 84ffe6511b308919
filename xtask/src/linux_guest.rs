//! `--guest initramfs` and `--guest debian`, as options of exitvisor: Debian's Linux with a busybox that
//! says it is there and powers off, or with a whole Debian on a disk.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::ValueEnum;

use crate::lab::debian::{self, Debian};
use crate::lab::{Own, Version, guest};
use crate::run::value_of;
use crate::tap;

/// Which guest is booted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Guest {
    /// This project's guest kernel, or what --kernel names
    #[default]
    Kernel,
    /// Debian's Linux with busybox in an initramfs, both fetched; `--kernel 6.1`, `6.12` (the default)
    /// or a bzImage of your own
    Initramfs,
    /// A whole Debian with systemd on virtio devices, its disk in target/lab/guest/debian.img: it keeps
    /// its data; `cargo xtask guest debian --fresh` puts it back
    Debian,
}

/// What Linux is told; what the user gives comes behind it.
const CMDLINE: &str = "console=ttyS0 quiet reboot=k panic=-1 rdinit=/init";
/// What the user may choose otherwise.
const DEFAULTS: [(&str, &str); 3] = [
    ("--firmware", "none"),
    ("--memory", "256M"),
    // For the speed of a lab on a busy machine.
    ("--timeout", "5m"),
];

/// The same for a whole Debian, behind its console.
const DEBIAN_CMDLINE: &str = "root=/dev/vda ro reboot=k panic=-1";
const DEBIAN_DEFAULTS: [(&str, &str); 4] = [
    ("--firmware", "none"),
    ("--memory", "512M"),
    ("--console", "virtio"),
    // It reboots when it is told to.
    ("--on-reset", "continue"),
];

/// What is booted: its name in files, and the options of exitvisor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Linux {
    pub(crate) name: OsString,
    pub(crate) options: Vec<OsString>,
}

impl Linux {
    /// This guest with these options of the user's; fetched first what is not there yet. None for one
    /// that is no Linux of ours.
    pub(crate) fn of(guest: Guest, options: &[OsString]) -> anyhow::Result<Option<Self>> {
        Ok(match guest {
            Guest::Kernel => None,
            Guest::Initramfs => Some(Self::initramfs(options)?),
            Guest::Debian => Some(Self::debian(options)?),
        })
    }

    fn debian(options: &[OsString]) -> anyhow::Result<Self> {
        let version = match value_of(options, "--kernel") {
            None => Version::default(),
            Some(kernel) => version(&kernel).with_context(|| {
                format!(
                    "--guest debian is for --kernel 6.1 or 6.12, whose drivers it has, not {}",
                    kernel.display()
                )
            })?,
        };
        let debian = debian::fetched(&Own::default().or_environment(), version, false)?;
        Ok(Self {
            name: format!("debian-{}", version.name()).into(),
            options: with_debian(options, &debian),
        })
    }

    fn initramfs(options: &[OsString]) -> anyhow::Result<Self> {
        let own = Own::default().or_environment();
        let wanted = value_of(options, "--kernel");
        let version = match &wanted {
            Some(kernel) => version(kernel),
            None => Some(Version::default()),
        };
        let (name, kernel) = match (version, wanted) {
            (None, Some(kernel)) => (stem(&kernel), PathBuf::from(kernel)),
            (version, _) => {
                let version = version.unwrap_or_default();
                let name = format!("linux-{}", version.name());
                (name.into(), guest::fetched(&own, version)?.kernel)
            }
        };
        let initrd = match value_of(options, "--initrd") {
            Some(initrd) => initrd.into(),
            None => guest::initramfs_alone(&own)?,
        };
        Ok(Self {
            name,
            options: with(options, &kernel, &initrd),
        })
    }
}

fn stem(kernel: &OsStr) -> OsString {
    let stem = Path::new(kernel).file_stem();
    stem.unwrap_or_default().to_owned()
}

/// `6.1` or `6.12`.
fn version(kernel: impl AsRef<OsStr>) -> Option<Version> {
    let text = kernel.as_ref().to_str()?;
    Version::value_variants()
        .iter()
        .copied()
        .find(|version| version.name() == text)
}

/// The user's options, and what makes a whole Debian of them. Its disk is the first: `/dev/vda`.
fn with_debian(options: &[OsString], debian: &Debian) -> Vec<OsString> {
    let mut all = defaults(options, &DEBIAN_DEFAULTS);
    let mut options = options;
    let others;
    match value_of(options, "--net") {
        None => all.extend(["--net".into(), format!("tap={}", tap::NAME).into()]),
        // Ours alone to know.
        Some(net) if net == "none" => {
            others = without(options, &["--net"]);
            options = &others;
        }
        Some(_) => {}
    }
    if !options.iter().any(|option| option == "--rng") {
        all.push("--rng".into());
    }
    all.extend(["--disk".into(), debian.disk.clone().into()]);
    let console = match value_of(options, "--console") {
        Some(console) if console != "virtio" => "ttyS0",
        _ => "hvc0",
    };
    let cmdline = format!("console={console} {DEBIAN_CMDLINE}");
    let initrd = value_of(options, "--initrd").map(PathBuf::from);
    let initrd = initrd.as_ref().unwrap_or(&debian.initrd);
    all.extend(booted(options, &debian.kernel, initrd, &cmdline));
    all
}

/// The user's options, and what makes a Linux of them.
fn with(options: &[OsString], kernel: &Path, initrd: &Path) -> Vec<OsString> {
    let mut all = defaults(options, &DEFAULTS);
    all.extend(booted(options, kernel, initrd, CMDLINE));
    all
}

/// What the user has not chosen.
fn defaults(options: &[OsString], defaults: &[(&str, &str)]) -> Vec<OsString> {
    let mut all = Vec::new();
    for (name, value) in defaults {
        if value_of(options, name).is_none() {
            all.extend([name.into(), value.into()]);
        }
    }
    all
}

/// Kernel, initramfs and command line, and the user's options but for these.
fn booted(options: &[OsString], kernel: &Path, initrd: &Path, cmdline: &str) -> Vec<OsString> {
    let mut all: Vec<OsString> = Vec::new();
    let mut cmdline = OsString::from(cmdline);
    if let Some(more) = value_of(options, "--cmdline") {
        cmdline.push(" ");
        cmdline.push(more);
    }
    all.extend(["--kernel".into(), kernel.into()]);
    all.extend(["--initrd".into(), initrd.into()]);
    all.extend(["--cmdline".into(), cmdline]);
    all.extend(without(options, &["--kernel", "--initrd", "--cmdline"]));
    all
}

/// The options but these, each of which has a value.
fn without(options: &[OsString], names: &[&str]) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let text = option.to_string_lossy();
        let name = text.split('=').next().unwrap_or_default();
        if !names.contains(&name) {
            kept.push(option.clone());
        } else if name == text {
            // Its value.
            options.next();
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ')
            .filter(|word| !word.is_empty())
            .map(Into::into)
            .collect()
    }

    fn shown(options: &str) -> String {
        let options = with(&words(options), Path::new("/k"), Path::new("/i"));
        let words: Vec<_> = options.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn what_the_user_says_stands() {
        let linux =
            "--kernel /k --initrd /i --cmdline console=ttyS0 quiet reboot=k panic=-1 rdinit=/init";
        assert_eq!(
            shown(""),
            format!("--firmware none --memory 256M --timeout 5m {linux}")
        );
        assert_eq!(
            shown("--kernel 6.1 --memory=1G --cmdline nokaslr --cpus 2 --timeout 1m --firmware f"),
            format!("{linux} nokaslr --memory=1G --cpus 2 --timeout 1m --firmware f")
        );
    }

    #[test]
    fn a_debian_has_every_device() {
        let debian = Debian {
            kernel: "/k".into(),
            initrd: "/i".into(),
            disk: "/d".into(),
        };
        let shown = |line: &str| {
            let options = with_debian(&words(line), &debian);
            let words: Vec<_> = options.iter().map(|word| word.to_string_lossy()).collect();
            words.join(" ")
        };
        let linux = "root=/dev/vda ro reboot=k panic=-1";
        assert_eq!(
            shown("--disk /more,ro"),
            format!(
                "--firmware none --memory 512M --console virtio --on-reset continue \
                 --net tap=exitvisor0 --rng --disk /d --kernel /k --initrd /i \
                 --cmdline console=hvc0 {linux} --disk /more,ro"
            )
        );
        assert_eq!(
            shown(
                "--kernel 6.1 --console page --net tap=x --rng --firmware f --memory=1G --on-reset end"
            ),
            format!(
                "--disk /d --kernel /k --initrd /i --cmdline console=ttyS0 {linux} \
                 --console page --net tap=x --rng --firmware f --memory=1G --on-reset end"
            )
        );
    }

    #[test]
    fn versions() {
        assert_eq!(version("6.1"), Some(Version::V6_1));
        assert_eq!(version("6.12"), Some(Version::V6_12));
        assert_eq!(version("/boot/vmlinuz"), None);
        assert_eq!(stem(OsStr::new("/boot/vmlinuz-6.1.0")), "vmlinuz-6.1");
    }
}
