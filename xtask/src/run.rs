//! `cargo xtask run`: build, then become exitvisor.

use std::ffi::{OsStr, OsString};

use anyhow::Context;
use clap::Args;

use crate::build::{self, Built};
use crate::linux_guest::{Guest, Linux};
use crate::on::{self, On, Where};
use crate::step::Step;
use crate::{lab, tap};

/// Boot a guest: build all, then `exitvisor run`
///
/// Everything that follows goes to `exitvisor run`, whose exit status is the one you get. Without
/// --kernel the guest is this project's guest kernel, without --firmware it is booted through this
/// project's firmware; --firmware none enters the kernel directly.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask run
  cargo xtask run --firmware none
  cargo xtask run --cmdline 'workload=cpuid:1000,pio:500 queries=5'
  cargo xtask run --kernel my-kernel --memory 128M --timeout 10s
  cargo xtask run --guest debian
  cargo xtask run --guest initramfs --kernel 6.1
  cargo xtask run --on amd-lab --kernel vmlinuz --cmdline console=ttyS0")]
pub(crate) struct Run {
    /// Which KVM to boot on; comes before the options of exitvisor
    #[arg(long, value_enum, default_value_t = On::default())]
    pub(crate) on: On,
    /// What to boot; comes before the options of exitvisor
    #[arg(long, value_enum, default_value_t = Guest::default())]
    pub(crate) guest: Guest,
    /// Options of `exitvisor run`
    #[arg(
        value_name = "OPTIONS OF EXITVISOR",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) options: Vec<OsString>,
}

impl Run {
    /// Builds and becomes exitvisor (returns only if that fails), or runs it in a lab.
    pub(crate) fn run(mut self) -> anyhow::Result<u8> {
        let built = build::build()?;
        if let Some(linux) = Linux::of(self.guest, &self.options)? {
            self.options = linux.options;
        }
        let mut args = vec!["run".into()];
        args.extend(defaults(&built, &self.options));
        args.extend_from_slice(&self.options);
        match self.on.choose(&built, &self.options) {
            Where::Host => {
                if self.guest == Guest::Debian && value_of(&args, "--net") == Some(own_tap()) {
                    tap::in_namespace(tap::NAME).context(NO_NET)?;
                }
                Err(Step::new(&built.exitvisor).args(args).exec())
            }
            Where::Lab(host) if self.guest == Guest::Debian && lab::is_at_a_terminal() => {
                lab::at_terminal(&on::job(host, &built, &args)?)
            }
            lab => lab.status(&built, &args),
        }
    }
}

/// What `--guest debian` says of its NIC, unless the user does.
fn own_tap() -> OsString {
    format!("tap={}", tap::NAME).into()
}

/// What else can be done where there can be no TAP.
const NO_NET: &str = "the guest's network, a TAP in a namespace of its own, cannot be made (--net none: do \
                      without; --net tap=NAME: one that is there)";

/// Arguments for what is booted by default, as far as `options` do not name it.
pub(crate) fn defaults(built: &Built, options: &[OsString]) -> Vec<OsString> {
    let mut args = Vec::new();
    for (name, path) in [
        ("--firmware", &built.firmware),
        ("--kernel", &built.guest_kernel),
    ] {
        if value_of(options, name).is_none() {
            args.extend([name.into(), path.into()]);
        }
    }
    args
}

/// The value that `options` give to `name`, as `--name VALUE` or `--name=VALUE`.
pub(crate) fn value_of(options: &[OsString], name: &str) -> Option<OsString> {
    options.iter().enumerate().find_map(|(i, option)| {
        let text = option.to_string_lossy();
        match text.strip_prefix(name)?.strip_prefix('=') {
            Some(value) => Some(OsString::from(value)),
            None if option == OsStr::new(name) => {
                Some(options.get(i + 1).cloned().unwrap_or_default())
            }
            None => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        let options: Vec<OsString> = ["--memory", "64M", "--kernel=a=b", "--kernels", "x"]
            .map(Into::into)
            .into();
        assert_eq!(value_of(&options, "--memory"), Some("64M".into()));
        assert_eq!(value_of(&options, "--kernel"), Some("a=b".into()));
        assert_eq!(value_of(&options, "--timeout"), None);
        assert_eq!(value_of(&options[4..], "x"), Some("".into()));
    }
}
