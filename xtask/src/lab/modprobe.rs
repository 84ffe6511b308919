//! modprobe and rmmod inside a lab: this very program once more, called by their names. They know
//! the modules that the agent was ordered to load.

use std::ffi::{CString, OsStr};
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use nix::kmod::{DeleteModuleFlags, delete_module};

use super::agent::{Load, ORDERS, Orders, load_module};

/// The names.
pub(crate) const NAMES: [&str; 2] = ["modprobe", "rmmod"];

/// Which of them this process is to be.
pub(crate) fn called() -> Option<&'static str> {
    let name = std::env::args_os().next()?;
    let name = Path::new(&name).file_name()?;
    let called = NAMES.into_iter().find(|known| name == OsStr::new(known));
    called.filter(|_| Path::new(ORDERS).exists())
}

/// Does what the arguments ask for; the exit status.
pub(crate) fn main(name: &str) -> u8 {
    let words: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let done = match (name, words.as_slice()) {
        ("modprobe", [module, parameters @ ..]) => load(module, parameters),
        ("rmmod", [module]) => unload(module),
        _ => Err(anyhow::anyhow!("expected the name of one module")),
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{name}: ERROR: {error:#}");
            1
        }
    }
}

/// Loads a module and those that it needs, which come before it in the orders.
fn load(module: &str, parameters: &[String]) -> anyhow::Result<()> {
    let orders = fs::read(ORDERS).with_context(|| format!("cannot read {ORDERS}"))?;
    let orders: Orders = serde_json::from_slice(&orders).with_context(|| ORDERS.to_owned())?;
    let module = module.replace('-', "_");
    let Some(last) = orders.modules.iter().position(|load| load.name == module) else {
        bail!("the module {module} is not in this lab");
    };
    for needed in &orders.modules[..last] {
        load_module(needed)?;
    }
    let ordered = &orders.modules[last];
    let mut all = ordered.parameters.clone();
    for parameter in parameters {
        all = format!("{all} {parameter}");
    }
    load_module(&Load {
        name: module,
        file: ordered.file.clone(),
        parameters: all,
    })
}

fn unload(module: &str) -> anyhow::Result<()> {
    let name = CString::new(module.replace('-', "_")).context("the module's name")?;
    delete_module(&name, DeleteModuleFlags::O_NONBLOCK)
        .with_context(|| format!("cannot unload {module}"))
}
