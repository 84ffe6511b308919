//! A module's parameters, as `/sys/module/NAME/parameters` shows them and as modprobe takes them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// What the kernel says of a module's parameters.
#[derive(Clone, Debug)]
pub(super) struct Parameters {
    folder: PathBuf,
    values: BTreeMap<String, String>,
}

impl PartialEq for Parameters {
    fn eq(&self, other: &Self) -> bool {
        self.values == other.values
    }
}

impl Parameters {
    /// Those that can be read.
    pub(super) fn of(module: &Path) -> anyhow::Result<Self> {
        let folder = module.join("parameters");
        let mut values = BTreeMap::new();
        let mut list = || -> std::io::Result<_> {
            for file in folder.read_dir()? {
                let file = file?;
                // Some can only be written.
                let Ok(value) = fs::read_to_string(file.path()) else {
                    continue;
                };
                let name = file.file_name().to_string_lossy().into_owned();
                values.insert(name, value.trim().to_owned());
            }
            Ok(())
        };
        list().with_context(|| format!("cannot read {}", folder.display()))?;
        Ok(Self { folder, values })
    }

    /// The value of one.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// All that a load takes.
    pub(super) fn arguments(&self) -> Vec<String> {
        self.arguments_if(|_| true)
    }

    /// Those that a load takes, but for switches that are off: without nested paging KVM switches
    /// off what builds on it (unrestricted guest, SEV, AVIC, …), whatever was asked for.
    pub(super) fn independent_of_shadow_paging(&self) -> Vec<String> {
        self.arguments_if(|value| value != "N")
    }

    fn arguments_if(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let values = self.values.iter();
        let values = values.filter(|(_, value)| is_taken(value) && wanted(value));
        values
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }

    /// Makes these parameters, those of a module that is loaded, equal to others where they can be
    /// written.
    pub(super) fn turn_into(&self, wanted: &Self) -> anyhow::Result<()> {
        let mut others = Vec::new();
        for (name, value) in &wanted.values {
            let now = self.get(name);
            if now == Some(value) || !is_taken(value) {
                continue;
            }
            if fs::write(self.folder.join(name), value).is_err() {
                others.push(format!("{name} was {value}, is {}", now.unwrap_or("gone")));
            }
        }
        if !others.is_empty() {
            bail!("{}", others.join("; "));
        }
        Ok(())
    }
}

/// Whether a module takes what it shows. What it shows in several words is not for it to take:
/// "not required", "EPT disabled" (`vmentry_l1d_flush` of kvm_intel).
fn is_taken(value: &str) -> bool {
    !value.is_empty() && value != "(null)" && value.chars().all(|c| c.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(folder: &Path, values: &[(&str, &str)]) -> Parameters {
        let files = folder.join("parameters");
        fs::create_dir_all(&files).unwrap();
        for (name, value) in values {
            fs::write(files.join(name), format!("{value}\n")).unwrap();
        }
        Parameters::of(folder).unwrap()
    }

    #[test]
    fn what_a_load_takes() {
        let folder = tempfile::tempdir().unwrap();
        let found = parameters(
            folder.path(),
            &[
                ("ept", "N"),
                ("nested", "Y"),
                ("ple_window", "4096"),
                ("unrestricted_guest", "N"),
                ("vmentry_l1d_flush", "not required"),
                ("name", "(null)"),
                ("none", ""),
            ],
        );
        assert_eq!(found.get("ple_window"), Some("4096"));
        assert_eq!(
            found.arguments(),
            [
                "ept=N",
                "nested=Y",
                "ple_window=4096",
                "unrestricted_guest=N"
            ]
        );
        assert_eq!(
            found.independent_of_shadow_paging(),
            ["nested=Y", "ple_window=4096"]
        );
    }

    #[test]
    fn what_differs_is_written() {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let wanted = parameters(old.path(), &[("a", "1"), ("b", "two words")]);
        let now = parameters(new.path(), &[("a", "2"), ("b", "x")]);
        now.turn_into(&wanted).unwrap();
        let now = Parameters::of(new.path()).unwrap();
        assert_eq!((now.get("a"), now.get("b")), (Some("1"), Some("x")));
        // A folder can be written by nobody.
        fs::remove_file(new.path().join("parameters/a")).unwrap();
        fs::create_dir(new.path().join("parameters/a")).unwrap();
        let now = Parameters::of(new.path()).unwrap();
        let why = now.turn_into(&wanted).unwrap_err().to_string();
        assert_eq!(why, "a was 1, is gone");
    }
}
