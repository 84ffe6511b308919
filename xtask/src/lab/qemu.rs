//! The AMD lab's machine: QEMU, whose TCG emulates AMD-V with nested paging.

use std::process::Command;

use super::machine::{Launch, Machine, Results, Start};
use super::packages::{Packages, Tree, Wanted};

/// QEMU and the libraries and ROMs it needs. Older ones than 10 ignore a guest's debug registers
/// under SVM.
const WANTED: Wanted = Wanted {
    name: "qemu",
    packages: &["qemu-system-x86"],
    release: Some("bookworm-backports"),
};

/// QEMU, fetched.
#[derive(Debug)]
pub(crate) struct Qemu {
    tree: Tree,
}

impl Qemu {
    /// Fetches it if it is not there yet.
    pub(crate) fn setup(packages: &Packages) -> anyhow::Result<Self> {
        let tree = packages.tree(&WANTED)?;
        Ok(Self { tree })
    }
}

impl Machine for Qemu {
    fn name(&self) -> String {
        "QEMU".to_owned()
    }

    fn launch(&self, start: &Start<'_>) -> anyhow::Result<Launch> {
        let mut command: Command = self.tree.command("usr/bin/qemu-system-x86_64");
        command.args(start.extra);
        Ok(Launch {
            command,
            results: Results::Stdio,
        })
    }
}
