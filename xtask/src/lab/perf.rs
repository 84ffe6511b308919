//! perf, for who measures what it costs: Debian's, of one version for every kernel of the labs. Of
//! its records only tracepoints are wanted, which do not depend on the version.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

use super::packages::Wanted;
use super::{Own, packages, programs};

const WANTED: Wanted = Wanted {
    name: "perf",
    packages: &["linux-perf"],
    release: None,
};

/// It.
#[derive(Debug)]
pub(crate) struct Perf {
    /// The words that start it.
    pub(crate) command: Vec<OsString>,
    /// What it needs in a lab.
    pub(crate) files: BTreeSet<PathBuf>,
    /// `6.1.192`.
    pub(crate) version: String,
}

/// Fetches it if it is not there yet.
pub(crate) fn setup(own: &Own) -> anyhow::Result<Perf> {
    let tree = packages(own)?.tree(&WANTED)?;
    let command = tree.command(PROGRAM);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    Ok(Perf {
        command: words.map(Into::into).collect(),
        files: programs::needs_of(&tree, PROGRAM)?,
        version: tree.version("linux-perf").unwrap_or_default(),
    })
}

const PROGRAM: &str = "usr/bin/perf";
