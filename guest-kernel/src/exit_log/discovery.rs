//! Finding out whether an Exitvisor is underneath, which leaf asks what, and where its exit page is.

use core::fmt;

use exit_abi::leaf::{self, Layout, Registers};

/// Why there is nothing to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// The discovery leaf does not answer with the signature.
    NoSignature,
    /// The interface is of a version that we do not speak.
    Version(u32),
    /// The layout makes no sense.
    Layout(u32),
    /// The device tree names another layout.
    Contradiction,
    /// The leaves answer nothing: the gate is not armed.
    Silent,
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSignature => f.write_str("no Exitvisor underneath: nobody to ask"),
            Self::Version(v) => write!(
                f,
                "Exitvisor speaks version {v} of the interface: not asked"
            ),
            Self::Layout(l) => write!(
                f,
                "Exitvisor names an impossible layout, {l:#010x}: not asked"
            ),
            Self::Contradiction => {
                f.write_str("Exitvisor and its device tree name different layouts: not asked")
            }
            Self::Silent => f.write_str("Exitvisor does not answer at our gate"),
        }
    }
}

/// What the static leaves tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which leaf asks what.
    pub layout: Layout,
    /// Address of the exit page, if there is one.
    pub page: Option<u64>,
}

/// Asks the two static leaves, by an ordinary CPUID. A layout that the device tree names must be
/// the one that they tell.
pub fn discover(
    mut cpuid: impl FnMut(u32, u32) -> Registers,
    described: Option<Layout>,
) -> Result<Found, Absent> {
    let found = cpuid(leaf::DISCOVERY, 0);
    let words = [found.ebx, found.ecx, found.edx];
    let signature = leaf::SIGNATURE.as_chunks::<4>().0;
    if !words
        .iter()
        .zip(signature)
        .all(|(word, bytes)| word.to_le_bytes() == *bytes)
    {
        return Err(Absent::NoSignature);
    }
    let info = cpuid(leaf::INFO, 0);
    if info.eax != exit_abi::VERSION {
        return Err(Absent::Version(info.eax));
    }
    let layout = Layout::unpack(info.edx);
    if !layout.is_valid() {
        Err(Absent::Layout(info.edx))
    } else if described.is_some_and(|d| d != layout) {
        Err(Absent::Contradiction)
    } else {
        let page = (info.ebx == 1).then(|| u64::from(info.ecx) << 12);
        Ok(Found { layout, page })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exitvisor(version: u32, layout: u32) -> impl FnMut(u32, u32) -> Registers {
        move |leaf, _| match leaf {
            leaf::DISCOVERY => Registers {
                eax: leaf::HIGHEST,
                ebx: u32::from_le_bytes(*b"Exit"),
                ecx: u32::from_le_bytes(*b"viso"),
                edx: u32::from_le_bytes(*b"rABI"),
            },
            leaf::INFO => Registers {
                eax: version,
                edx: layout,
                ..Registers::default()
            },
            _ => Registers::default(),
        }
    }

    #[test]
    fn layouts() {
        for layout in [
            Layout::CLASSIC,
            Layout::REVERSED,
            Layout::unpack(0x1314_1512),
        ] {
            let found = Found { layout, page: None };
            assert_eq!(discover(exitvisor(1, layout.pack()), None), Ok(found));
            let described = Some(Layout::CLASSIC);
            let both = discover(exitvisor(1, layout.pack()), described);
            if layout == Layout::CLASSIC {
                assert_eq!(both, Ok(found));
            } else {
                assert_eq!(both, Err(Absent::Contradiction));
            }
        }
    }

    #[test]
    fn the_exit_page() {
        for (ebx, page) in [(1, Some(0xD100_0000)), (0, None), (3, None)] {
            let mut answers = exitvisor(1, Layout::CLASSIC.pack());
            let found = discover(
                |leaf, ecx| match leaf {
                    leaf::INFO => Registers {
                        ebx,
                        ecx: 0xD1000,
                        ..answers(leaf, ecx)
                    },
                    _ => answers(leaf, ecx),
                },
                None,
            );
            assert_eq!(found.map(|f| f.page), Ok(page));
        }
    }

    #[test]
    fn nobody_to_ask() {
        assert_eq!(
            discover(|_, _| Registers::default(), None),
            Err(Absent::NoSignature)
        );
        assert_eq!(
            discover(exitvisor(2, 0xFCFD_FEFF), None),
            Err(Absent::Version(2))
        );
        assert_eq!(
            discover(exitvisor(1, 0xFFFF_FFFF), None),
            Err(Absent::Layout(u32::MAX))
        );
        assert_eq!(discover(exitvisor(1, 0), None), Err(Absent::Layout(0)));
    }
}
