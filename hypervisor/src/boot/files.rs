//! The files that a VM is built from, kept open: a machine that boots again must find them although
//! Exitvisor has dropped the capabilities by which it could read them.

use std::fs::File;
use std::io::{self, Seek};
use std::path::{Path, PathBuf};

use super::elf::ElfError;

/// The files opened so far.
#[derive(Debug, Default)]
pub struct Files(Vec<(PathBuf, File)>);

impl Files {
    /// A file to load, and its size: regular, not empty. A file that may no longer be opened is
    /// the one that was opened before.
    pub fn open(&mut self, path: &Path) -> Result<(File, u64), ElfError> {
        let file = match fresh(path) {
            Ok(file) => {
                if !self.0.iter().any(|(kept, _)| kept == path) {
                    let kept = file.try_clone().map_err(ElfError::Read)?;
                    self.0.push((path.to_owned(), kept));
                }
                file
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let kept = self.0.iter().find(|(kept, _)| kept == path);
                let Some((_, kept)) = kept else {
                    return Err(ElfError::Read(error));
                };
                let mut file = kept.try_clone().map_err(ElfError::Read)?;
                file.rewind().map_err(ElfError::Read)?;
                file
            }
            Err(error) => return Err(ElfError::Read(error)),
        };
        let metadata = file.metadata().map_err(ElfError::Read)?;
        if !metadata.is_file() {
            return Err(ElfError::NotAFile);
        }
        if metadata.len() == 0 {
            return Err(ElfError::Empty);
        }
        Ok((file, metadata.len()))
    }
}

fn fresh(path: &Path) -> io::Result<File> {
    // O_NONBLOCK: a FIFO must not make us wait for a writer before we can refuse it.
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        std::fs::OpenOptions::new().read(true),
        libc::O_NONBLOCK,
    )
    .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn each_opening_starts_at_the_beginning() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"abc").unwrap();
        let mut files = Files::default();
        for _ in 0..2 {
            let (mut opened, bytes) = files.open(file.path()).unwrap();
            let mut text = String::new();
            opened.read_to_string(&mut text).unwrap();
            assert_eq!((text.as_str(), bytes), ("abc", 3));
        }
    }

    #[test]
    fn what_is_no_file_to_load() {
        let mut files = Files::default();
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(files.open(folder.path()), Err(ElfError::NotAFile)));
        let empty = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(files.open(empty.path()), Err(ElfError::Empty)));
        let none = folder.path().join("none");
        assert!(matches!(files.open(&none), Err(ElfError::Read(_))));
    }
}
