//! The initramfs of one run: the agent, its orders, modules, the command and its files.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::agent::{INIT, ORDERS, Orders};
use super::cpio::Archive;
use super::programs;

/// An image in the making.
#[derive(Debug, Default)]
pub(crate) struct Image {
    archive: Archive,
    libraries: BTreeSet<PathBuf>,
}

impl Image {
    /// What every image has, with this program as the agent.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let mut image = Self::default();
        for folder in ["/etc", "/proc", "/root", "/sys", "/tmp", "/usr/bin", "/var"] {
            image.archive.folder(Path::new(folder));
        }
        // What the kernel opens for the agent before /dev is mounted.
        image
            .archive
            .device(Path::new("/dev/console"), 0o600, (5, 1));
        let this = crate::workspace::this_program()?;
        image.program(&this, Path::new(INIT))?;
        Ok(image)
    }

    /// A folder.
    pub(crate) fn folder(&mut self, path: &Path) {
        self.archive.folder(path);
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: &Path, to: &Path) {
        self.archive.link(path, to.as_os_str());
    }

    /// A program of the host, without what is not loaded, and all libraries it needs.
    pub(crate) fn program(&mut self, from: &Path, to: &Path) -> anyhow::Result<()> {
        self.libraries_of(from)?;
        self.archive.file(to, 0o755, programs::trimmed(read(from)?));
        Ok(())
    }

    /// A file of the host as it is; the libraries too, if it is a program.
    pub(crate) fn file(&mut self, from: &Path, to: &Path) -> anyhow::Result<()> {
        // Where it cannot be told (a program for another machine), it is taken for data.
        let _ = self.libraries_of(from);
        let mode = from
            .metadata()
            .map_or(0o644, |found| found.permissions().mode());
        self.archive.file(to, mode, read(from)?);
        Ok(())
    }

    /// Whether there is something at this path.
    pub(crate) fn has(&self, path: &Path) -> bool {
        self.archive.has(path)
    }

    fn libraries_of(&mut self, program: &Path) -> anyhow::Result<()> {
        for library in programs::needs(program)? {
            if self.libraries.insert(library.clone()) {
                self.archive.file(&library, 0o755, read(&library)?);
            }
        }
        Ok(())
    }

    /// Writes it, with what the agent is to do.
    pub(crate) fn write(mut self, orders: &Orders, to: &Path) -> anyhow::Result<()> {
        let orders = serde_json::to_vec(orders).context("orders")?;
        self.archive.file(Path::new(ORDERS), 0o644, orders);
        let write = || {
            let mut file = BufWriter::new(File::create(to)?);
            self.archive.write(&mut file)?;
            file.flush()
        };
        write().with_context(|| format!("cannot write {}", to.display()))
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
