//! KVM's modules and their parameters (`/sys/module/NAME/parameters`).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;

/// A module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Its parameters, as far as they can be read.
    pub parameters: BTreeMap<String, String>,
}

const NAMES: [&str; 4] = ["kvm", "kvm_amd", "kvm_intel", "kvm_pvm"];

/// Those that are there.
pub(super) fn of_kvm() -> Vec<Module> {
    at(Path::new("/sys/module"))
}

fn at(folder: &Path) -> Vec<Module> {
    let found = NAMES.iter().filter(|name| folder.join(name).is_dir());
    found
        .map(|name| Module {
            name: (*name).to_owned(),
            parameters: parameters(&folder.join(name).join("parameters")),
        })
        .collect()
}

fn parameters(folder: &Path) -> BTreeMap<String, String> {
    let files = folder.read_dir().into_iter().flatten().flatten();
    files
        .filter_map(|file| {
            let value = fs::read_to_string(file.path()).ok()?;
            let name = file.file_name().to_string_lossy().into_owned();
            Some((name, value.trim().to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_that_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let of_amd = folder.path().join("kvm_amd/parameters");
        fs::create_dir_all(of_amd.join("no file")).unwrap();
        fs::write(of_amd.join("npt"), "Y\n").unwrap();
        fs::create_dir(folder.path().join("kvm")).unwrap();
        fs::create_dir(folder.path().join("other")).unwrap();
        let modules = at(folder.path());
        let names: Vec<&str> = modules.iter().map(|m| &*m.name).collect();
        assert_eq!(names, ["kvm", "kvm_amd"]);
        assert!(modules[0].parameters.is_empty());
        assert_eq!(
            modules[1].parameters,
            BTreeMap::from([("npt".into(), "Y".into())])
        );
    }
}
