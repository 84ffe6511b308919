//! Debian packages without root and without touching the system: apt with a configuration of its
//! own resolves, fetches and verifies them, `dpkg-deb -x` unpacks them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::bail;

/// A set of packages that is unpacked, with all it depends on, into one folder.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// The folder's name below `target/lab`.
    pub(crate) name: &'static str,
    /// Debian's names for them.
    pub(crate) packages: &'static [&'static str],
    /// The release to prefer (`bookworm-backports`), if not the stable one.
    pub(crate) release: Option<&'static str>,
}

/// Where packages come from and go to.
#[derive(Debug)]
pub(crate) struct Packages {
    /// `target/lab`.
    folder: PathBuf,
}

/// A folder of unpacked packages: a root with `usr/bin`, `lib` and so on.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    root: PathBuf,
}

impl Packages {
    /// Unpacked packages; fetched first if they are not there yet.
    pub(crate) fn tree(&self, wanted: &Wanted) -> anyhow::Result<Tree> {
        let root = self.folder.join(wanted.name);
        bail!("{} is not there yet", root.display());
    }
}

impl Tree {
    /// The path of a file in it, named as from its root without the slash: `usr/bin/bochs`.
    pub(crate) fn path(&self, file: impl AsRef<Path>) -> PathBuf {
        self.root.join(file)
    }

    /// A program in it, run by its own dynamic loader with its own libraries, so that what the
    /// host has installed does not matter.
    pub(crate) fn command(&self, program: &str) -> Command {
        let libraries = ["lib", "usr/lib"].map(|lib| self.path(lib).join("x86_64-linux-gnu"));
        let mut command = Command::new(libraries[0].join("ld-linux-x86-64.so.2"));
        let libraries: Vec<_> = libraries.iter().map(|path| path.to_string_lossy()).collect();
        command.args(["--inhibit-cache", "--library-path", &libraries.join(":")]);
        command.arg(self.path(program));
        command
    }
}
