//! `/dev/kvm` itself: it comes and goes with the module, and where no udev looks after it, it comes
//! back as root's alone.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::Context;

/// The device.
pub(super) const KVM: &str = "/dev/kvm";

/// Who may use a device.
#[derive(Debug)]
pub(super) struct Node {
    path: PathBuf,
    mode: u32,
    owner: (u32, u32),
}

impl Node {
    /// As it is now; `None` where it is not.
    pub(super) fn of(path: impl AsRef<Path>) -> Option<Self> {
        let path = path.as_ref();
        let found = fs::metadata(path).ok()?;
        Some(Self {
            path: path.to_owned(),
            mode: found.mode() & 0o7777,
            owner: (found.uid(), found.gid()),
        })
    }

    /// Makes it so again, if it is there.
    pub(super) fn restore(&self) -> anyhow::Result<()> {
        match Self::of(&self.path) {
            Some(now) if (now.mode, now.owner) != (self.mode, self.owner) => {}
            _ => return Ok(()),
        }
        let (user, group) = self.owner;
        chown(&self.path, Some(user), Some(group))
            .and_then(|()| fs::set_permissions(&self.path, fs::Permissions::from_mode(self.mode)))
            .with_context(|| format!("cannot restore the permissions of {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_come_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mode = |mode| fs::set_permissions(file.path(), fs::Permissions::from_mode(mode));
        mode(0o640).unwrap();
        let before = Node::of(file.path()).unwrap();
        before.restore().unwrap();
        mode(0o600).unwrap();
        before.restore().unwrap();
        assert_eq!(Node::of(file.path()).unwrap().mode, 0o640);
        drop(file);
        before.restore().unwrap();
        assert!(Node::of("/no/such/device").is_none());
    }
}
