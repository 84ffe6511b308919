//! The Intel lab's machine: Bochs, which emulates VT-x with EPT and unrestricted guest.

use anyhow::bail;

use super::machine::{Launch, Machine, Start};
use super::packages::Packages;

/// Bochs, fetched.
#[derive(Debug)]
pub(crate) struct Bochs {}

impl Bochs {
    /// Fetches it if it is not there yet.
    pub(crate) fn setup(_packages: &Packages) -> anyhow::Result<Self> {
        bail!("the Intel lab is not there yet");
    }
}

impl Machine for Bochs {
    fn name(&self) -> String {
        "Bochs".to_owned()
    }

    fn launch(&self, _start: &Start<'_>) -> anyhow::Result<Launch> {
        bail!("the Intel lab is not there yet");
    }
}
