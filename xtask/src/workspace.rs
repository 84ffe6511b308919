//! The workspace: its root, and where built things go.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;

use crate::step::Step;

/// The workspace's root: the folder above this package.
pub(crate) fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// The folder for what xtask itself writes: `exitvisor/` in the target folder, made if missing.
pub(crate) fn output_folder() -> anyhow::Result<PathBuf> {
    let folder = target_folder()?.join("exitvisor");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// Where cargo puts what it builds.
pub(crate) fn target_folder() -> anyhow::Result<PathBuf> {
    #[derive(Deserialize)]
    struct Metadata {
        target_directory: PathBuf,
    }
    let mut step = Step::cargo().args(["metadata", "--no-deps", "--format-version", "1"]);
    let output = step.output()?;
    let metadata: Metadata = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).trim().to_owned())
        .with_context(|| format!("`{step}` does not name the target folder"))?;
    Ok(metadata.target_directory)
}

/// A path as the user would write it: relative to where they stand, if it lies below. What is no
/// path stays as it is.
pub(crate) fn shown(path: &(impl AsRef<OsStr> + ?Sized)) -> &OsStr {
    let path = Path::new(path);
    let here = std::env::current_dir();
    let below = here.ok().and_then(|here| path.strip_prefix(here).ok());
    below.unwrap_or(path).as_os_str()
}

/// This very program, as a file that can be started and carried into a lab.
///
/// `cargo test --workspace` puts another build of the same xtask in its place while it runs; the
/// kernel then calls its own file deleted (proc(5), `/proc/PID/exe`).
pub(crate) fn this_program() -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe().context("cannot find xtask")?;
    let replaced = path
        .to_str()
        .and_then(|text| text.strip_suffix(" (deleted)"))
        .map(PathBuf::from);
    Ok(replaced.filter(|path| path.is_file()).unwrap_or(path))
}
