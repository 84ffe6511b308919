//! `cargo xtask run`: build, then become exitvisor.

use std::ffi::{OsStr, OsString};

use clap::Args;

use crate::build::{self, Built};
use crate::on::{On, Where};
use crate::step::Step;

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
  cargo xtask run --on amd-lab --kernel vmlinuz --cmdline console=ttyS0")]
pub(crate) struct Run {
    /// Which KVM to boot on; comes before the options of exitvisor
    #[arg(long, value_enum, default_value_t = On::default())]
    pub(crate) on: On,
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
    pub(crate) fn run(self) -> anyhow::Result<u8> {
        let built = build::build()?;
        let mut args = vec!["run".into()];
        args.extend(defaults(&built, &self.options));
        args.extend_from_slice(&self.options);
        match self.on.choose(&built, &self.options) {
            Where::Host => Err(Step::new(&built.exitvisor).args(args).exec()),
            lab => lab.status(&built, &args),
        }
    }
}

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
