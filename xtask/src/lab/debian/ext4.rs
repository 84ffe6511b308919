//! An ext4 image of what is in a tar archive, without mounting anything: mke2fs fills it from a
//! folder. Who is not root has fakeroot remember whose the files are.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use nix::unistd::geteuid;

use super::super::packages::{Packages, Tree, Wanted, said, spinning};

/// mke2fs with its libraries: of the release that the image is of, so that its fsck knows all that is
/// in it.
const MKE2FS: Wanted = Wanted {
    name: "e2fsprogs",
    packages: &["e2fsprogs"],
    release: None,
};
const PROGRAM: &str = "sbin/mke2fs";

/// How the file system is made. All is laid out here: a guest that did it at its first boot would write
/// for no reason of its own (`lazy_…`). The same ids each time make the same image.
pub(super) const FORMAT: [&str; 15] = [
    "-q",
    "-F",
    "-t",
    "ext4",
    "-T",
    "default",
    "-b",
    "4096",
    "-m",
    "1",
    "-L",
    "exitvisor",
    "-U",
    "65786974-7669-736f-7200-64656269616e",
    "-Elazy_itable_init=0,lazy_journal_init=0,hash_seed=65786974-7669-736f-7200-64656269616e",
];

/// Its size. The file is sparse: it takes what is in it.
pub(super) const SIZE_MIB: u32 = 400;

/// What is needed, fetched if it is not there yet.
pub(super) struct Tools {
    mke2fs: Tree,
    /// For who is not root.
    fakeroot: Option<Tree>,
}

impl Tools {
    pub(super) fn fetched(packages: &Packages) -> anyhow::Result<Self> {
        let fakeroot = (!geteuid().is_root())
            .then(|| packages.tree_alone("fakeroot", &["fakeroot", "libfakeroot"]))
            .transpose()?;
        Ok(Self {
            mke2fs: packages.tree(&MKE2FS)?,
            fakeroot,
        })
    }

    /// Writes `image` with all of `tar`, which is unpacked into `folder` for it.
    pub(super) fn make(&self, tar: &Path, folder: &Path, image: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        // Words: image, folder, size, tar, and mke2fs with what it is told.
        const BOTH: &str = "set -e; image=$1 folder=$2 size=$3 tar=$4; shift 4
            tar --extract --preserve-permissions --numeric-owner --xattrs --xattrs-include='*' \
                --file \"$tar\" --directory \"$folder\"
            \"$@\" -d \"$folder\" \"$image\" \"$size\"";
        let mut command = match &self.fakeroot {
            None => Command::new("sh"),
            Some(tree) => {
                let mut command = Command::new(tree.path("usr/bin/fakeroot-sysv"));
                let library = "usr/lib/x86_64-linux-gnu/libfakeroot/libfakeroot-sysv.so";
                command.arg("--lib").arg(tree.path(library));
                command.arg("--faked").arg(tree.path("usr/bin/faked-sysv"));
                command.args(["--", "sh"]);
                command
            }
        };
        command.args(["-c", BOTH, "sh"]);
        command.arg(image).arg(folder).arg(format!("{SIZE_MIB}M"));
        command.arg(tar);
        let mke2fs = self.mke2fs.command(PROGRAM);
        command.arg(mke2fs.get_program()).args(mke2fs.get_args());
        command.args(FORMAT);
        command.env("MKE2FS_CONFIG", self.mke2fs.path("etc/mke2fs.conf"));
        spinning("making the file system", || said(&mut command))?;
        Ok(())
    }
}
