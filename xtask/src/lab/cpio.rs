//! Writes cpio archives as the kernel takes them for an initramfs ("newc",
//! linux/Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// An archive in the making: entries by absolute path; the last one given for a path counts.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    entries: BTreeMap<PathBuf, Entry>,
}

#[derive(Debug)]
struct Entry {
    mode: u32,
    device: (u32, u32),
    content: Vec<u8>,
}

impl Archive {
    /// A folder, and those above it.
    pub(crate) fn folder(&mut self, path: &Path) {
        for folder in path.ancestors() {
            self.entries.entry(folder.to_owned()).or_insert(Entry {
                mode: DIRECTORY | 0o755,
                device: (0, 0),
                content: Vec::new(),
            });
        }
    }

    /// A regular file with these permissions.
    pub(crate) fn file(&mut self, path: &Path, permissions: u32, content: Vec<u8>) {
        self.entry(path, REGULAR | permissions & 0o7777, (0, 0), content);
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: &Path, to: &OsStr) {
        self.entry(path, LINK | 0o777, (0, 0), to.as_bytes().to_vec());
    }

    /// A character device.
    pub(crate) fn device(&mut self, path: &Path, permissions: u32, device: (u32, u32)) {
        self.entry(path, CHARACTER_DEVICE | permissions, device, Vec::new());
    }

    /// Whether there is something at this path.
    pub(crate) fn has(&self, path: &Path) -> bool {
        self.entries.contains_key(path)
    }

    fn entry(&mut self, path: &Path, mode: u32, device: (u32, u32), content: Vec<u8>) {
        if let Some(folder) = path.parent() {
            self.folder(folder);
        }
        let entry = Entry {
            mode,
            device,
            content,
        };
        self.entries.insert(path.to_owned(), entry);
    }

    /// Writes it all. Folders come before what is in them.
    pub(crate) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut written = 0;
        for (inode, (path, entry)) in (1..).zip(&self.entries) {
            let name = path.strip_prefix("/").unwrap_or(path).as_os_str();
            if !name.is_empty() {
                written += record(to, inode, name.as_bytes(), entry)?;
            }
        }
        let end = Entry {
            mode: 0,
            device: (0, 0),
            content: Vec::new(),
        };
        written += record(to, 0, b"TRAILER!!!", &end)?;
        // Archives behind each other begin at multiples of 4; readers like blocks.
        to.write_all(&[0; 512][..(512 - written % 512) % 512])
    }
}

/// One entry; how many bytes were written, a multiple of 4.
fn record(to: &mut impl Write, inode: u32, name: &[u8], entry: &Entry) -> io::Result<usize> {
    let too_long = |_| io::Error::other("a file in an initramfs must be smaller than 4 GiB");
    let size = u32::try_from(entry.content.len()).map_err(too_long)?;
    let name_size = u32::try_from(name.len() + 1).map_err(too_long)?;
    let (major, minor) = entry.device;
    let mut head = b"070701".to_vec();
    // Inode, mode, owner, group, links, time, size, device of the file, device it is, name, sum.
    let fields = [
        inode, entry.mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0,
    ];
    for field in fields {
        write!(head, "{field:08x}")?;
    }
    head.extend_from_slice(name);
    head.push(0);
    head.resize(head.len().next_multiple_of(4), 0);
    to.write_all(&head)?;
    to.write_all(&entry.content)?;
    let padded = entry.content.len().next_multiple_of(4);
    to.write_all(&[0; 4][..padded - entry.content.len()])?;
    Ok(head.len() + padded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive() {
        let mut archive = Archive::default();
        archive.file(Path::new("/a/b/file"), 0o100_755, b"12345".to_vec());
        archive.link(Path::new("/a/link"), OsStr::new("b"));
        archive.device(Path::new("/dev/console"), 0o600, (5, 1));
        assert!(archive.has(Path::new("/a/b")) && !archive.has(Path::new("/b")));
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        assert_eq!(bytes.len() % 512, 0);

        let hex = |at: usize| {
            let field = std::str::from_utf8(&bytes[at..at + 8]).unwrap();
            usize::from_str_radix(field, 16).unwrap()
        };
        let (mut at, mut found) = (0, Vec::new());
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (mode, size, name) = (hex(at + 14), hex(at + 54), hex(at + 94));
            let path = std::str::from_utf8(&bytes[at + 110..at + 110 + name - 1]).unwrap();
            let content = (at + 110 + name).next_multiple_of(4);
            if path == "TRAILER!!!" {
                break;
            }
            found.push((path, mode, &bytes[content..content + size]));
            at = (content + size).next_multiple_of(4);
        }
        let expected: [(&str, usize, &[u8]); 6] = [
            ("a", 0o040_755, b""),
            ("a/b", 0o040_755, b""),
            ("a/b/file", 0o100_755, b"12345"),
            ("a/link", 0o120_777, b"b"),
            ("dev", 0o040_755, b""),
            ("dev/console", 0o020_600, b""),
        ];
        assert_eq!(found, expected);
    }
}
