//! KVM's module on a real host, loaded anew with nested or with shadow paging, and put back as it
//! was whatever happens: success, failure, a panic, Ctrl-C, SIGTERM.
//!
//! `rmmod`, not `modprobe -r`: the latter would take the module `kvm` along, and with it what was
//! set in its parameters.

mod node;
mod paging;
mod parameters;
mod signals;
mod users;

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::step::{self, Ended, Step};
use anyhow::{Context, bail};
use node::Node;
use paging::PARAMETERS;
pub(crate) use paging::Paging;
use parameters::Parameters;
use signals::Signals;

/// Where the kernel tells of its modules.
const MODULES: &str = "/sys/module";

/// The vendor's module of a KVM that uses the processor's virtualization.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Module {
    name: &'static str,
    /// Its parameter for nested paging.
    parameter: &'static str,
    /// Where the kernel tells of it.
    folder: PathBuf,
}

impl Module {
    /// The one that is loaded.
    fn loaded(modules: &Path) -> anyhow::Result<Self> {
        let found: Vec<Self> = PARAMETERS
            .into_iter()
            .map(|(name, parameter)| Self {
                name,
                parameter,
                folder: modules.join(name),
            })
            .filter(|module| module.folder.join("parameters").is_dir())
            .collect();
        let loadable = found.iter().find(|module| module.is_loadable());
        if let Some(module) = loadable {
            return Ok(module.clone());
        }
        match found.first() {
            Some(Self {
                name, parameter, ..
            }) => bail!(
                "{name} is built into this kernel and cannot be loaded anew: boot the kernel with \
                 {name}.{parameter}=0 or =1 instead"
            ),
            None if modules.join("kvm_pvm").is_dir() => bail!(
                "this machine's KVM is software (kvm_pvm), which knows shadow paging alone: use \
                 --on amd-lab or --on intel-lab"
            ),
            None => bail!(
                "neither kvm_intel nor kvm_amd is loaded: load one with modprobe, or use --on \
                 amd-lab or --on intel-lab"
            ),
        }
    }

    /// Whether it is a module at all, not a part of the kernel.
    fn is_loadable(&self) -> bool {
        self.folder.join("initstate").exists()
    }

    fn paging(&self, parameters: &Parameters) -> Option<Paging> {
        Paging::of_value(parameters.get(self.parameter)?)
    }

    /// The argument that asks for it.
    fn argument(&self, paging: Paging) -> String {
        paging.assigned(self.parameter)
    }

    /// Waits, for not longer than this, until nobody uses it.
    fn wait_until_unused(&self, limit: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let count = fs::read_to_string(self.folder.join("refcnt"));
            let count = count.with_context(|| format!("cannot tell who uses {}", self.name))?;
            match count.trim() {
                "0" => return Ok(()),
                // The last VM's end takes KVM a moment.
                _ if start.elapsed() < limit => thread::sleep(Duration::from_millis(20)),
                count => bail!(
                    "{} is in use ({count}): {}",
                    self.name,
                    users::told(&users::of_kvm(), &users::holders(&self.folder))
                ),
            }
        }
    }

    fn unload(&self) -> anyhow::Result<()> {
        tool("rmmod", [self.name])
    }

    fn load(&self, arguments: &[String]) -> anyhow::Result<()> {
        let name = std::iter::once(self.name);
        tool("modprobe", name.chain(arguments.iter().map(String::as_str)))
    }

    /// What a person types to have it with these arguments.
    fn by_hand(&self, arguments: &[String]) -> String {
        let load = Step::new("modprobe").arg(self.name).args(arguments);
        if self.folder.exists() {
            format!("rmmod {}; {load}", self.name)
        } else {
            load.to_string()
        }
    }
}

/// Runs modprobe or rmmod. Out of a terminal's reach: a Ctrl-C must not end it half-way.
fn tool<'a>(name: &str, arguments: impl IntoIterator<Item = &'a str>) -> anyhow::Result<()> {
    let mut step = Step::new(name).args(arguments);
    say(&format!("+ {step}"));
    step.command().process_group(0);
    // Both are quiet but for errors, which tell most.
    let status = step.command().status();
    let status = status.with_context(|| format!("cannot start `{step}`"))?;
    match step::number(status) {
        0 => Ok(()),
        status => Err(Ended {
            what: step.to_string(),
            status,
        }
        .into()),
    }
}

/// A line on stderr, of which it does not matter whether anybody reads it: `eprintln!` panics where
/// nobody does, and what is to be put back would stay.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// How long the last VM may take to end.
const LAST_VM: Duration = Duration::from_secs(2);
/// The same where a module is to be put back: nothing else is left to try.
const LAST_VM_BEFORE_PUTTING_BACK: Duration = Duration::from_secs(10);

/// A module as it was; put back when this is dropped.
#[derive(Debug)]
pub(crate) struct Reloaded {
    module: Module,
    before: Parameters,
    node: Option<Node>,
    put_back: bool,
}

impl Reloaded {
    /// Does `f` while KVM translates in this way; what it returns.
    ///
    /// Where KVM does so already, nothing is loaded. Otherwise the caller must be root and no VM
    /// alive, and the module is as it was when this returns. While it goes on, signals that ask for
    /// an end are passed on to the processes that `f` started, and do not end this one. A Ctrl-C is
    /// for them alone, and `f` tells what came of it; any other signal is an error here.
    ///
    /// # Errors
    ///
    /// That the module cannot be loaded anew, each in a line; what `f` says; that the module is not
    /// as it was, with what to type then.
    pub(crate) fn with<T>(
        paging: Paging,
        f: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let module = Module::loaded(Path::new(MODULES))?;
        let before = Parameters::of(&module.folder)?;
        if module.paging(&before) == Some(paging) {
            say(&format!(
                "xtask: {} has {} already",
                module.name,
                module.argument(paging)
            ));
            return f();
        }
        check(&module)?;
        let signals = Signals::new()?;
        let mut this = Self {
            node: Node::of(node::KVM),
            module,
            before,
            put_back: false,
        };
        let result = match this.load(paging) {
            Err(error) => Err(error),
            // It came too early for `f` to hear of it.
            Ok(()) => match signals.take() {
                Some(signal) => Err(signals::interrupted(signal)),
                None => signals.passed_on(f),
            },
        };
        this.put_back()?;
        result
    }

    /// Loads the module anew.
    fn load(&self, paging: Paging) -> anyhow::Result<()> {
        let module = &self.module;
        let mut arguments = match module.paging(&self.before) {
            Some(Paging::Shadow) => self.before.independent_of_shadow_paging(),
            _ => self.before.arguments(),
        };
        arguments.retain(|argument| !is_of(argument, module.parameter));
        arguments.push(module.argument(paging));
        module.unload()?;
        module.load(&arguments)?;
        self.restore_node();
        let now = Parameters::of(&module.folder)?;
        if module.paging(&now) != Some(paging) {
            bail!(
                "{} does not take {}: this processor, or the hypervisor that it is a guest of, has \
                 no nested paging",
                module.name,
                module.argument(paging)
            );
        }
        Ok(())
    }

    /// Puts the module back, once; says loudly what to do where that fails.
    fn put_back(&mut self) -> anyhow::Result<()> {
        if std::mem::replace(&mut self.put_back, true) {
            return Ok(());
        }
        let done = self.try_to_put_back();
        self.restore_node();
        done.map_err(|error| {
            let command = self.module.by_hand(&self.before.arguments());
            say(&format!(
                "xtask: {} IS NOT AS IT WAS; as root, type: {command}",
                self.module.name
            ));
            error.context(format!("{} is not as it was", self.module.name))
        })
    }

    fn try_to_put_back(&self) -> anyhow::Result<()> {
        let (module, before) = (&self.module, &self.before);
        if module.folder.exists() {
            if Parameters::of(&module.folder)? == *before {
                return Ok(());
            }
            module.wait_until_unused(LAST_VM_BEFORE_PUTTING_BACK)?;
            module.unload()?;
        }
        if let Err(error) = module.load(&before.arguments()) {
            // Better without a setting than without KVM.
            say(&format!("xtask: {error:#}"));
            let paging: Vec<String> = before.arguments();
            let paging = paging.into_iter().filter(|a| is_of(a, module.parameter));
            module.load(&paging.collect::<Vec<_>>())?;
        }
        Parameters::of(&module.folder)?.turn_into(before)
    }

    /// Where no udev does it, `/dev/kvm` would be root's alone.
    fn restore_node(&self) {
        if let Some(Err(error)) = self.node.as_ref().map(Node::restore) {
            say(&format!("xtask: {error:#}"));
        }
    }
}

impl Drop for Reloaded {
    fn drop(&mut self) {
        if let Err(error) = self.put_back() {
            say(&format!("xtask: {error:#}"));
        }
    }
}

/// Whether `npt=1` is of `npt`.
fn is_of(argument: &str, parameter: &str) -> bool {
    argument
        .split_once('=')
        .is_some_and(|(name, _)| name == parameter)
}

/// Sees that the module can be loaded anew, before anything is changed.
fn check(module: &Module) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("only root can load {} anew", module.name);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    for tool in ["modprobe", "rmmod"] {
        if !is_in(&path, tool) {
            bail!("there is no {tool} in PATH: install kmod, or add /usr/sbin to PATH");
        }
    }
    module.wait_until_unused(LAST_VM)
}

fn is_in(path: &OsString, program: &str) -> bool {
    std::env::split_paths(path).any(|folder| folder.join(program).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A module as the kernel shows it.
    fn module(modules: &Path, name: &str, parameter: (&str, &str)) {
        let folder = modules.join(name).join("parameters");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(parameter.0), parameter.1).unwrap();
    }

    #[test]
    fn which_module_is_loaded() {
        let modules = tempfile::tempdir().unwrap();
        let modules = modules.path();
        let why = || Module::loaded(modules).unwrap_err().to_string();
        assert!(why().contains("neither kvm_intel nor kvm_amd is loaded"));
        fs::create_dir(modules.join("kvm_pvm")).unwrap();
        assert!(why().contains("software (kvm_pvm)"));
        module(modules, "kvm_intel", ("ept", "Y\n"));
        assert_eq!(
            why(),
            "kvm_intel is built into this kernel and cannot be loaded anew: boot the kernel with \
             kvm_intel.ept=0 or =1 instead"
        );
        module(modules, "kvm_amd", ("npt", "N\n"));
        fs::write(modules.join("kvm_amd/initstate"), "live\n").unwrap();
        let found = Module::loaded(modules).unwrap();
        assert_eq!((found.name, found.parameter), ("kvm_amd", "npt"));
        let parameters = Parameters::of(&found.folder).unwrap();
        assert_eq!(found.paging(&parameters), Some(Paging::Shadow));
        assert_eq!(found.argument(Paging::Nested), "npt=1");
    }

    #[test]
    fn a_module_in_use_is_left_alone() {
        let modules = tempfile::tempdir().unwrap();
        module(modules.path(), "kvm_amd", ("npt", "Y\n"));
        let folder = modules.path().join("kvm_amd");
        fs::write(folder.join("initstate"), "live\n").unwrap();
        fs::write(folder.join("refcnt"), "2\n").unwrap();
        fs::create_dir_all(folder.join("holders/kvmgt")).unwrap();
        let module = Module::loaded(modules.path()).unwrap();
        let why = module.wait_until_unused(Duration::ZERO).unwrap_err();
        let why = why.to_string();
        assert!(why.starts_with("kvm_amd is in use (2): "), "{why}");
        assert!(why.contains("the module kvmgt"), "{why}");
        fs::write(folder.join("refcnt"), "0\n").unwrap();
        assert!(module.wait_until_unused(Duration::ZERO).is_ok());
        assert_eq!(
            module.by_hand(&["npt=1".into(), "nested=0".into()]),
            "rmmod kvm_amd; modprobe kvm_amd npt=1 nested=0"
        );
    }
}
