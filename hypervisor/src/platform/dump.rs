//! Dumps of the descriptions, for `iasl`, `dtc` and curious people.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::Described;
use crate::profile::save::{self, SaveError};

/// Where the descriptions are dumped to, if at all.
#[derive(Clone, Debug, Default)]
pub struct Dump {
    /// A folder for the ACPI tables, one file each. It is made if it is not there.
    pub acpi: Option<PathBuf>,
    /// A file for the device tree.
    pub dtb: Option<PathBuf>,
}

impl Dump {
    /// Whether [`Dump::write`] will be able to write, as far as can be told before: nothing need
    /// boot for a dump that has no place to go.
    pub fn check(&self) -> Result<(), SaveError> {
        if let Some(folder) = &self.acpi {
            match fs::create_dir(folder) {
                // What is no folder is found below.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.map_err(|source| SaveError {
                    name: save::name(folder),
                    source,
                })?,
            }
            save::check(&folder.join("rsdp.dat"))?;
        }
        if let Some(file) = &self.dtb {
            save::check(file)?;
        }
        Ok(())
    }

    /// Writes what is wanted: the very bytes that lie in guest memory.
    pub fn write(&self, described: &Described) -> Result<(), SaveError> {
        if let Some(folder) = &self.acpi {
            for table in described.acpi.all() {
                save::save(&folder.join(table.file), &table.bytes)?;
            }
        }
        if let Some(file) = &self.dtb {
            save::save(file, &described.tree)?;
        }
        Ok(())
    }
}
