//! The workspace: its root, and where built things go.

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
    #[derive(Deserialize)]
    struct Metadata {
        target_directory: PathBuf,
    }
    let mut step = Step::cargo().args(["metadata", "--no-deps", "--format-version", "1"]);
    let output = step.output()?;
    let metadata: Metadata = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).trim().to_owned())
        .with_context(|| format!("`{step}` does not name the target folder"))?;
    let folder = metadata.target_directory.join("exitvisor");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// A path as the user would write it: relative to where they stand, if it lies below.
pub(crate) fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here)
        .unwrap_or(path)
        .display()
        .to_string()
}
