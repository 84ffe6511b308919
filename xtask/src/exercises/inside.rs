//! What runs inside a lab: exitvisor, several times in one boot of the lab. What each run says is
//! kept and told as one JSON text at the end.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::step;

/// Run the exercises' guests, started in a lab by `cargo xtask exercises`
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct InLab {
    /// What to run, JSON
    orders: PathBuf,
}

/// What to run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    pub(crate) exitvisor: PathBuf,
    pub(crate) runs: Vec<Order>,
}

/// One run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) name: String,
    pub(crate) args: Vec<String>,
}

/// What a lab's boot came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Told {
    /// Parameters of KVM's modules, as `kvm_amd.npt`.
    pub(crate) parameters: BTreeMap<String, String>,
    /// By name.
    pub(crate) runs: BTreeMap<String, Said>,
}

/// What one run said.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Said {
    pub(crate) status: u8,
    pub(crate) stdout: String,
    /// The guest's console, and exitvisor's own words.
    pub(crate) stderr: String,
}

impl Said {
    /// The last line that is not the guest's.
    pub(crate) fn complaint(&self) -> String {
        let mut lines = self.stderr.lines().rev();
        let own = lines.find(|line| line.starts_with("exitvisor: ") || line.starts_with("error: "));
        let own = own.map(str::to_owned);
        own.unwrap_or_else(|| format!("exitvisor ended with status {}", self.status))
    }
}

impl InLab {
    /// Runs all; prints one JSON text, and a line on stderr for each run that is done.
    pub(crate) fn run(self) -> anyhow::Result<u8> {
        let orders = fs::read(&self.orders);
        let orders = orders.with_context(|| format!("cannot read {}", self.orders.display()))?;
        let orders: Orders = serde_json::from_slice(&orders).context("the orders")?;
        let mut told = Told {
            parameters: parameters(Path::new("/sys/module")),
            runs: BTreeMap::new(),
        };
        for order in orders.runs {
            let args = order.args.iter().map(OsString::from);
            let output = Command::new(&orders.exitvisor)
                .args(args)
                .stdin(Stdio::null())
                .output()
                .with_context(|| format!("cannot start {}", orders.exitvisor.display()))?;
            let said = Said {
                status: step::number(output.status),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            };
            eprintln!("{}", order.name);
            told.runs.insert(order.name, said);
        }
        println!("{}", serde_json::to_string(&told)?);
        Ok(0)
    }
}

/// Those of KVM's modules; what cannot be read is left out.
fn parameters(modules: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for module in ["kvm", "kvm_amd", "kvm_intel"] {
        let folder = modules.join(module).join("parameters");
        for file in folder.read_dir().into_iter().flatten().flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            if let Ok(value) = fs::read_to_string(file.path()) {
                found.insert(format!("{module}.{name}"), value.trim().to_owned());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_modules() {
        let folder = tempfile::tempdir().unwrap();
        let amd = folder.path().join("kvm_amd/parameters");
        fs::create_dir_all(&amd).unwrap();
        fs::write(amd.join("npt"), "N\n").unwrap();
        let found = parameters(folder.path());
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [("kvm_amd.npt".into(), "N".into())]
        );
    }

    #[test]
    fn complaints() {
        let said = |stderr: &str| Said {
            status: 64,
            stdout: String::new(),
            stderr: stderr.to_owned(),
        };
        let line = "error: unrecognized subcommand 'caps'";
        assert_eq!(said(&format!("{line}\n\nUsage: …\n")).complaint(), line);
        assert_eq!(
            said("guest\n").complaint(),
            "exitvisor ended with status 64"
        );
    }
}
