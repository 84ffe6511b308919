//! Which files of the host a command needs inside a lab, and which it may leave behind, told from
//! its arguments.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// What arguments name, by absolute paths.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Named {
    /// Files that exist.
    pub(crate) files: Vec<PathBuf>,
    /// Paths that may be written: what lies in a folder that exists and is no folder itself.
    pub(crate) outputs: Vec<PathBuf>,
}

/// Looks at every argument, at what follows its `=`, and at the parts of these between commas.
pub(crate) fn named(args: &[OsString], cwd: &Path) -> Named {
    let mut named = Named::default();
    for candidate in args.iter().flat_map(candidates) {
        let path = plain(&cwd.join(&candidate));
        if path.is_file() {
            push(&mut named.files, &path);
        }
        let folder = path.parent().filter(|folder| folder.is_dir());
        if folder.is_some() && !path.is_dir() {
            push(&mut named.outputs, &path);
        }
    }
    named
}

fn push(paths: &mut Vec<PathBuf>, path: &Path) {
    if !paths.iter().any(|known| known == path) {
        paths.push(path.to_owned());
    }
}

/// What in an argument may be a path.
fn candidates(arg: &OsString) -> Vec<PathBuf> {
    let bytes = arg.as_bytes();
    let value = bytes.iter().position(|byte| *byte == b'=');
    let value = value.map(|at| &bytes[at + 1..]);
    let wholes = [Some(bytes), value].into_iter().flatten();
    let parts = wholes.flat_map(|whole| {
        let parts = whole.split(|byte| *byte == b',');
        std::iter::once(whole).chain(parts.filter(move |part| part.len() < whole.len()))
    });
    let parts = parts.filter(|part| !part.is_empty());
    parts
        .map(|part| OsString::from_vec(part.to_vec()).into())
        .collect()
}

/// A path without `.` and `..`, as far as that can be told from the path alone.
pub(crate) fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            component => plain.push(component),
        }
    }
    plain
}

/// All files below a folder.
pub(crate) fn below(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in folder.read_dir()? {
        let path = entry?.path();
        if path.symlink_metadata()?.is_dir() {
            below(&path, files)?;
        } else if path.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_name_files() {
        let folder = tempfile::tempdir().unwrap();
        let cwd = folder.path();
        std::fs::create_dir(cwd.join("out")).unwrap();
        for file in ["kernel", "disk", "initrd"] {
            std::fs::write(cwd.join(file), "").unwrap();
        }
        let other = cwd.join("out/../kernel");
        let args = [
            "run",
            "--kernel",
            "./kernel",
            "--initrd=initrd",
            "--drive=file=x,path,disk,ro",
            "out",
            "--output",
            "out/new.json",
            "none/x",
        ];
        let mut args: Vec<OsString> = args.map(Into::into).into();
        args.push(other.into());
        let named = named(&args, cwd);
        let absolute =
            |names: &[&str]| -> Vec<PathBuf> { names.iter().map(|name| cwd.join(name)).collect() };
        assert_eq!(named.files, absolute(&["kernel", "initrd", "disk"]));
        for output in absolute(&["kernel", "out/new.json"]) {
            assert!(named.outputs.contains(&output), "{output:?} in {named:?}");
        }
        for no_output in absolute(&["out", "none/x"]) {
            assert!(
                !named.outputs.contains(&no_output),
                "{no_output:?} in {named:?}"
            );
        }
    }

    #[test]
    fn plain_paths() {
        assert_eq!(plain(Path::new("/a/./b/../../c")), Path::new("/c"));
        assert_eq!(plain(Path::new("/../x")), Path::new("/x"));
    }
}
