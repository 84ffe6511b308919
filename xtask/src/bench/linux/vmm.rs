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

/// One way to boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) vmm: Vmm,
    pub(crate) console: Console,
}

/// What is booted.
#[derive(Debug)]
pub(crate) struct Guest<'a> {
    pub(crate) kernel: &'a Path,
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

    /// What follows `-M`. Without system management mode: where the CPU itself is emulated, KVM's hangs
    /// QEMU's firmware now and then.
    fn machine(self) -> &'static str {
        match self {
            Self::Ours | Self::Pc => "pc,smm=off",
            Self::Microvm => "microvm,rtc=on",
            Self::Q35 => "q35,smm=off",
        }
    }
}

impl Way {
    /// As people know it: `QEMU pc`, `exitvisor, not quiet`.
    pub(crate) fn name(self) -> String {
        let console = match self.console {
            Console::Quiet => "",
            Console::Serial => ", not quiet",
            Console::Fast => ", not quiet, --console page",
        };
        format!("{}{console}", self.vmm.name())
    }

    /// The guest's command line.
    pub(crate) fn cmdline(self) -> String {
        let console = match self.console {
            Console::Quiet => "console=ttyS0 quiet",
            Console::Serial | Console::Fast => "console=ttyS0",
        };
        format!("{console} {CMDLINE} -- idle")
    }

    /// The words that boot it so.
    pub(crate) fn boot(self, programs: &Programs<'_>, guest: &Guest<'_>, counted: bool) -> Boot {
        let memory = format!("{}M", guest.memory);
        let cmdline = self.cmdline();
        let own = |words: &[&str]| -> Vec<OsString> { words.iter().map(Into::into).collect() };
        let mut words = if self.vmm == Vmm::Ours {
            let mut words = vec![programs.exitvisor.into()];
            words.extend(own(&["run", "--ledger", "off", "--exit-page", "off"]));
            words.extend(own(&["--memory", &memory, "--cmdline", &cmdline]));
            if self.console == Console::Fast {
                words.extend(own(&FAST_OPTIONS));
            }
            words
        } else {
            let mut words = programs.qemu.to_vec();
            let machine = self.vmm.machine();
            words.extend(own(&["-accel", "kvm", "-cpu", "host", "-M", machine]));
            words.extend(own(&["-nodefaults", "-no-user-config", "-display", "none"]));
            words.extend(own(&["-serial", "stdio", "-no-reboot", "-m", &memory]));
            words.extend(own(&["-append", &cmdline]));
            words
        };
        let option = |ours: &'static str, qemu: &'static str| match self.vmm {
            Vmm::Ours => ours,
            _ => qemu,
        };
        words.push(option("--kernel", "-kernel").into());
        words.push(guest.kernel.into());
        words.push(option("--initrd", "-initrd").into());
        words.push(guest.initrd.into());
        Boot {
            name: self.name(),
            words,
            counted,
        }
    }
}

/// What makes the console cost less (`docs/linux.md`).
const FAST_OPTIONS: [&str; 2] = ["--console", "page"];

/// All that are booted for these VMMs.
pub(crate) fn ways(only: &[Vmm]) -> Vec<Way> {
    let way = |vmm, console| Way { vmm, console };
    let all = [
        way(Vmm::Ours, Console::Quiet),
        way(Vmm::Ours, Console::Serial),
        way(Vmm::Ours, Console::Fast),
        way(Vmm::Microvm, Console::Quiet),
        way(Vmm::Pc, Console::Quiet),
        way(Vmm::Q35, Console::Quiet),
    ];
    let mut ways = all.to_vec();
    ways.retain(|way| only.is_empty() || only.contains(&way.vmm));
    ways
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(way: Way) -> String {
        let guest = Guest {
            kernel: Path::new("/k/vmlinuz"),
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
        let all = ways(&[]);
        assert_eq!(
            shown(all[0]),
            "/x run --ledger off --exit-page off --memory 256M --cmdline console=ttyS0 quiet reboot=k \
             panic=-1 rdinit=/init -- idle --kernel /k/vmlinuz --initrd /i"
        );
        assert_eq!(
            shown(all[3]),
            "/q -accel kvm -cpu host -M microvm,rtc=on -nodefaults -no-user-config -display none -serial \
             stdio -no-reboot -m 256M -append console=ttyS0 quiet reboot=k panic=-1 rdinit=/init -- idle \
             -kernel /k/vmlinuz -initrd /i"
        );
    }

    #[test]
    fn only_some() {
        let names =
            |only: &[Vmm]| -> Vec<String> { ways(only).into_iter().map(Way::name).collect() };
        assert_eq!(names(&[Vmm::Pc]), ["QEMU pc"]);
        let ours = [
            "exitvisor",
            "exitvisor, not quiet",
            "exitvisor, not quiet, --console page",
        ];
        assert_eq!(names(&[Vmm::Ours]), ours);
        assert_eq!(names(&[]).len(), 6);
    }
}
