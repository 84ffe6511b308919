//! The VMMs, and how each boots the same Linux.

use std::ffi::OsString;
use std::path::Path;

use clap::ValueEnum;

use super::inside::Boot;

/// Who boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Vmm {
    /// exitvisor
    Ours,
    /// QEMU -M microvm,rtc=on
    Microvm,
    /// QEMU -M pc
    Pc,
    /// QEMU -M q35
    Q35,
}

/// What the guest prints on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Console {
    /// `quiet`: next to nothing.
    Quiet,
    /// The whole kernel log on the serial port.
    Serial,
    /// The whole kernel log, by the way that costs least.
    Fast,
}

/// The kernel, as a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As distributions ship it: it unpacks itself.
    BzImage,
    /// Unpacked.
    Vmlinux,
}

/// One way to boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) vmm: Vmm,
    pub(crate) form: Form,
    pub(crate) console: Console,
}

/// What is booted.
#[derive(Debug)]
pub(crate) struct Guest<'a> {
    pub(crate) bzimage: &'a Path,
    pub(crate) vmlinux: &'a Path,
    pub(crate) initrd: &'a Path,
    /// MiB.
    pub(crate) memory: u64,
}

/// The programs.
#[derive(Debug)]
pub(crate) struct Programs<'a> {
    pub(crate) exitvisor: &'a Path,
    /// The words that start QEMU, with its firmware.
    pub(crate) qemu: &'a [OsString],
}

/// What every guest is told; behind `--` are `/init`'s own words.
const CMDLINE: &str = "reboot=k panic=-1 rdinit=/init";

impl Vmm {
    /// As people know it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "exitvisor",
            Self::Microvm => "QEMU microvm,rtc=on",
            Self::Pc => "QEMU pc",
            Self::Q35 => "QEMU q35",
        }
    }

    fn machine(self) -> &'static str {
        match self {
            Self::Ours | Self::Pc => "pc",
            Self::Microvm => "microvm,rtc=on",
            Self::Q35 => "q35",
        }
    }
}

impl Way {
    /// As people know it: `exitvisor`, `QEMU pc (vmlinux)`, `exitvisor, not quiet`.
    pub(crate) fn name(self) -> String {
        let form = match self.form {
            Form::BzImage => "",
            Form::Vmlinux => " (vmlinux)",
        };
        let console = match self.console {
            Console::Quiet => "",
            Console::Serial => ", not quiet",
            Console::Fast => ", not quiet, fast console",
        };
        format!("{}{form}{console}", self.vmm.name())
    }

    /// The guest's command line.
    pub(crate) fn cmdline(self) -> String {
        let console = match self.console {
            Console::Quiet => "console=ttyS0 quiet",
            Console::Serial => "console=ttyS0",
            Console::Fast => FAST_ARGUMENTS,
        };
        format!("{console} {CMDLINE} -- idle")
    }

    /// The words that boot it so.
    pub(crate) fn boot(self, programs: &Programs<'_>, guest: &Guest<'_>, counted: bool) -> Boot {
        let kernel = match self.form {
            Form::BzImage => guest.bzimage,
            Form::Vmlinux => guest.vmlinux,
        };
        let memory = format!("{}M", guest.memory);
        let mut words: Vec<OsString> = Vec::new();
        let mut add = |more: &[&str]| words.extend(more.iter().map(OsString::from));
        let cmdline = self.cmdline();
        if self.vmm == Vmm::Ours {
            add(&[&programs.exitvisor.to_string_lossy(), "run"]);
            add(&["--ledger", "off", "--exit-page", "off"]);
            add(&["--memory", &memory, "--cmdline", &cmdline]);
            if self.console == Console::Fast {
                add(&FAST_OPTIONS);
            }
        } else {
            add(&[]);
            words.extend_from_slice(programs.qemu);
            let mut add = |more: &[&str]| words.extend(more.iter().map(OsString::from));
            add(&["-accel", "kvm", "-cpu", "host", "-M", self.vmm.machine()]);
            add(&["-nodefaults", "-no-user-config", "-display", "none"]);
            add(&["-serial", "stdio", "-no-reboot", "-m", &memory]);
            add(&["-append", &cmdline]);
        }
        let option = |ours: &'static str, qemu: &'static str| match self.vmm {
            Vmm::Ours => ours,
            _ => qemu,
        };
        words.push(option("--kernel", "-kernel").into());
        words.push(kernel.into());
        words.push(option("--initrd", "-initrd").into());
        words.push(guest.initrd.into());
        Boot {
            name: self.name(),
            words,
            counted,
        }
    }
}

/// The option of exitvisor's by which a console costs less, and what Linux is told then.
pub(crate) const FAST_OPTION: &str = "--console";
const FAST_OPTIONS: [&str; 2] = [FAST_OPTION, "fast"];
const FAST_ARGUMENTS: &str = "console=ttyS0";

/// All that are booted for these VMMs; `fast`: exitvisor has a console that costs less.
pub(crate) fn ways(only: &[Vmm], fast: bool) -> Vec<Way> {
    let way = |vmm, form, console| Way { vmm, form, console };
    let all = [
        way(Vmm::Ours, Form::BzImage, Console::Quiet),
        way(Vmm::Ours, Form::BzImage, Console::Serial),
        way(Vmm::Ours, Form::BzImage, Console::Fast),
        way(Vmm::Microvm, Form::Vmlinux, Console::Quiet),
        way(Vmm::Microvm, Form::BzImage, Console::Quiet),
        way(Vmm::Pc, Form::BzImage, Console::Quiet),
        way(Vmm::Q35, Form::BzImage, Console::Quiet),
    ];
    let mut ways = all.to_vec();
    ways.retain(|way| only.is_empty() || only.contains(&way.vmm));
    ways.retain(|way| fast || way.console != Console::Fast);
    ways
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(way: Way) -> String {
        let guest = Guest {
            bzimage: Path::new("/k/vmlinuz"),
            vmlinux: Path::new("/k/vmlinux"),
            initrd: Path::new("/i"),
            memory: 256,
        };
        let qemu = ["/q".into()];
        let programs = Programs {
            exitvisor: Path::new("/x"),
            qemu: &qemu,
        };
        let words = way.boot(&programs, &guest, true).words;
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn command_lines() {
        let all = ways(&[], true);
        assert_eq!(
            shown(all[0]),
            "/x run --ledger off --exit-page off --memory 256M --cmdline console=ttyS0 quiet reboot=k \
             panic=-1 rdinit=/init -- idle --kernel /k/vmlinuz --initrd /i"
        );
        assert_eq!(
            shown(all[3]),
            "/q -accel kvm -cpu host -M microvm,rtc=on -nodefaults -no-user-config -display none -serial \
             stdio -no-reboot -m 256M -append console=ttyS0 quiet reboot=k panic=-1 rdinit=/init -- idle \
             -kernel /k/vmlinux -initrd /i"
        );
    }

    #[test]
    fn only_some() {
        let names = |only: &[Vmm], fast| -> Vec<String> {
            ways(only, fast).into_iter().map(Way::name).collect()
        };
        assert_eq!(names(&[Vmm::Pc], true), ["QEMU pc"]);
        assert_eq!(
            names(&[Vmm::Ours], false),
            ["exitvisor", "exitvisor, not quiet"]
        );
        assert_eq!(names(&[], true).len(), 7);
    }
}
