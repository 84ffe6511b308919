//! Saving: output that is either there as a whole or not there.

use super::load::{line, reason};
use crate::status;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Output that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {name}: {}", reason(source))]
pub struct SaveError {
    /// Where to, ready to be printed.
    pub name: String,
    /// What the system said.
    pub source: io::Error,
}

impl SaveError {
    /// The exit status that it calls for.
    pub fn status(&self) -> u8 {
        status::OUTPUT
    }

    /// Whether the reader has gone: nobody is left to complain to.
    pub fn is_broken_pipe(&self) -> bool {
        self.source.kind() == io::ErrorKind::BrokenPipe
    }
}

/// Writes a report or a dump to a file; `-` is standard output.
///
/// A regular file appears in one step, by a rename within its directory, so nobody ever reads half
/// of it. What exists and is no regular file (a FIFO, `/dev/stdout`) is written to as it is, and
/// so is the file that standard output already goes to.
pub fn save(path: &Path, contents: &(impl AsRef<[u8]> + ?Sized)) -> Result<(), SaveError> {
    write(path, contents.as_ref()).map_err(|source| SaveError {
        name: name(path),
        source,
    })
}

/// Whether [`save`] will be able to write there, as far as can be told without writing: a guest
/// need not boot for a profile that has no place to go.
pub fn check(path: &Path) -> Result<(), SaveError> {
    let error = |source| SaveError {
        name: name(path),
        source,
    };
    if path.as_os_str() == "-" {
        return Ok(());
    }
    let target = through_links(path);
    match fs::metadata(&target) {
        Ok(found) if found.is_dir() => Err(error(io::ErrorKind::IsADirectory.into())),
        Ok(found) if !found.is_file() => Ok(()),
        Ok(_) => OpenOptions::new()
            .write(true)
            .open(&target)
            .map(drop)
            .map_err(error),
        Err(e) if e.kind() == io::ErrorKind::NotFound => folder_of(&target)
            .and_then(|folder| {
                tempfile::Builder::new()
                    .prefix(".exitvisor-")
                    .tempfile_in(folder)
            })
            .map(drop)
            .map_err(error),
        Err(e) => Err(error(e)),
    }
}

/// The directory that a new file goes to.
fn folder_of(target: &Path) -> io::Result<&Path> {
    if target.as_os_str().is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        let text = format!("there is no directory {}", name(folder));
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    }
    Ok(folder)
}

/// A path as errors call it.
pub(crate) fn name(path: &Path) -> String {
    match path.as_os_str().to_str() {
        Some("-") => "standard output".to_owned(),
        Some("") => "\"\"".to_owned(),
        _ => line(&path.display().to_string()),
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if path.as_os_str() == "-" {
        return to_stdout(bytes);
    }
    let target = through_links(path);
    match fs::metadata(&target) {
        Ok(found) if is_stdout(&found) => to_stdout(bytes),
        Ok(found) if found.is_file() => {
            // A rename would overwrite a file that its owner made read-only.
            OpenOptions::new().write(true).open(&target)?;
            replace(&target, bytes, Some(found.permissions()))
        }
        Ok(_) => OpenOptions::new()
            .write(true)
            .open(&target)?
            .write_all(bytes),
        Err(e) if e.kind() == io::ErrorKind::NotFound => replace(&target, bytes, None),
        Err(e) => Err(e),
    }
}

fn to_stdout(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// The file behind symbolic links, so that the link survives; also where it does not exist yet.
fn through_links(path: &Path) -> PathBuf {
    if let Ok(real) = fs::canonicalize(path) {
        return real;
    }
    match (fs::read_link(path), path.parent()) {
        (Ok(link), Some(parent)) => parent.join(link),
        _ => path.to_owned(),
    }
}

/// Whether standard output goes to this very file. Opened a second time it would have an offset
/// of its own, and renamed over it would lose what is printed later.
fn is_stdout(found: &fs::Metadata) -> bool {
    io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .and_then(|fd| File::from(fd).metadata())
        .is_ok_and(|out| (out.dev(), out.ino()) == (found.dev(), found.ino()))
}

fn replace(target: &Path, bytes: &[u8], like: Option<Permissions>) -> io::Result<()> {
    let folder = folder_of(target)?;
    // 0666 as every new file: the umask takes its part.
    let mut file = tempfile::Builder::new()
        .prefix(".exitvisor-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    if let Some(permissions) = like {
        file.as_file().set_permissions(permissions)?;
    }
    file.as_file().sync_all()?;
    file.persist(target).map(drop).map_err(|e| e.error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn replaces_as_a_whole_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        save(&path, "first").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let old = File::open(&path).unwrap();
        save(&path, "second").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "second");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o640
        );
        assert_eq!(io::read_to_string(old).unwrap(), "first");
        assert_eq!(names(folder.path()), ["a.json"]);
    }

    #[test]
    fn links_survive() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("real", &link).unwrap();
        for text in ["new", "again"] {
            save(&link, text).unwrap();
            assert_eq!(
                fs::read_to_string(folder.path().join("real")).unwrap(),
                text
            );
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        }
    }

    #[test]
    fn a_fifo_is_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let reader = std::thread::spawn({
            let path = path.clone();
            move || {
                let mut text = String::new();
                File::open(path).unwrap().read_to_string(&mut text).unwrap();
                text
            }
        });
        save(&path, "through").unwrap();
        assert_eq!(reader.join().unwrap(), "through");
        assert_eq!(names(folder.path()), ["fifo"]);
    }

    /// Runs itself with a file as standard output: what is saved to `/dev/stdout` and what is
    /// printed after it must end up in that very file.
    #[test]
    fn standard_output_is_shared() {
        const CHILD: &str = "EXITVISOR_TEST_STDOUT";
        if std::env::var_os(CHILD).is_some() {
            return save(Path::new("/dev/stdout"), "saved\n").unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let mut out = File::create(&path).unwrap();
        out.write_all(b"first\n").unwrap();
        let name = "profile::save::tests::standard_output_is_shared";
        let done = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .stdout(out)
            .status()
            .unwrap();
        assert!(done.success());
        let text = fs::read_to_string(&path).unwrap();
        let places = ["first\n", "saved\n", "test result: ok. 1 passed"].map(|t| text.find(t));
        assert!(
            places.iter().all(Option::is_some) && places.is_sorted(),
            "{text}"
        );
    }

    #[test]
    fn a_file_made_read_only_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        save(&path, "kept").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
        if OpenOptions::new().write(true).open(&path).is_ok() {
            return; // root may write to it
        }
        let error = save(&path, "lost").unwrap_err();
        assert!(
            error.to_string().ends_with(": permission denied"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
    }

    #[test]
    fn a_check_finds_what_saving_would() {
        let folder = tempfile::tempdir().unwrap();
        let good = folder.path().join("a.json");
        assert!(check(&good).is_ok() && check(Path::new("-")).is_ok());
        assert_eq!(names(folder.path()), [""; 0], "nothing is left behind");
        for bad in [
            &folder.path().join("no/a.json"),
            folder.path(),
            Path::new(""),
        ] {
            assert_eq!(
                check(bad).unwrap_err().to_string(),
                save(bad, "x").unwrap_err().to_string()
            );
        }
    }

    #[test]
    fn refusals_name_path_and_reason() {
        let folder = tempfile::tempdir().unwrap();
        let error = save(&folder.path().join("no/a.json"), "x").unwrap_err();
        assert!(
            error
                .to_string()
                .contains("/no/a.json: there is no directory /"),
            "{error}"
        );
        let error = save(folder.path(), "x").unwrap_err();
        assert!(error.to_string().ends_with(": is a directory"), "{error}");
        let error = save(Path::new("/dev/full"), "x").unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot write /dev/full: no space left on device"
        );
        assert_eq!(error.status(), status::OUTPUT);
        assert!(save(Path::new(""), "x").is_err());
    }
}
