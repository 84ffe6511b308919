//! BTF, as far as callers need it: where in a structure of a kernel module's a member lies.
//!
//! Source: linux/Documentation/bpf/btf.rst; linux/include/uapi/linux/btf.h.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use thiserror::Error;

/// Where the kernel shows it.
const FOLDER: &str = "/sys/kernel/btf";
const MAGIC: u16 = 0xEB9F;
/// A header as far as it is looked at.
const HEADER: usize = 24;
/// Most of a module's: KVM's are some hundred kilobytes.
const LARGEST: usize = 16 << 20;

/// Why a member is not found.
#[derive(Debug, Error)]
pub(super) enum BtfError {
    /// The kernel was built without it, or it is not for us.
    #[error("the kernel does not describe its structures ({FOLDER}/{0}: {1})")]
    Absent(String, #[source] io::Error),
    /// It says something that is not understood.
    #[error("{FOLDER}/{0} is not understood: {1}")]
    Strange(String, &'static str),
    /// There is no such thing.
    #[error("{FOLDER}/{0} has no {1}.{2} of a whole number of bytes")]
    Missing(String, &'static str, &'static str),
}

/// The offset of a member, in bytes, in a structure of a module's own.
pub(super) fn member(
    module: &str,
    structure: &'static str,
    member: &'static str,
) -> Result<usize, BtfError> {
    let folder = Path::new(FOLDER);
    let absent = |name: &str| {
        let name = name.to_owned();
        |error| BtfError::Absent(name, error)
    };
    let own = std::fs::read(folder.join(module)).map_err(absent(module))?;
    // Of the kernel's own, which the module's builds on, only its strings are of interest.
    const BASE: &str = "vmlinux";
    let base = File::open(folder.join(BASE)).map_err(absent(BASE))?;
    let mut header = [0; HEADER];
    base.read_exact_at(&mut header, 0).map_err(absent(BASE))?;
    let strange = |what| BtfError::Strange(module.to_owned(), what);
    let shape = Shape::of(&header).ok_or_else(|| strange("its base has no header"))?;
    let of_base = |offset: usize, wanted: &[u8]| {
        let mut found = vec![0; wanted.len() + 1];
        let at = (shape.strings.0 + offset) as u64;
        let is_read = base.read_exact_at(&mut found, at).is_ok();
        is_read && found.split_last() == Some((&0, wanted))
    };
    let find = Module::of(&own, shape.strings.1, &of_base).ok_or_else(|| strange("its header"))?;
    match find.member(structure, member) {
        Some(Some(offset)) => Ok(offset),
        Some(None) => Err(BtfError::Missing(module.to_owned(), structure, member)),
        None => Err(strange("its types")),
    }
}

/// Where types and strings are: first byte and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    types: (usize, usize),
    strings: (usize, usize),
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
}

impl Shape {
    fn of(header: &[u8]) -> Option<Self> {
        let magic = header.get(..2)?;
        if u16::from_le_bytes(magic.try_into().ok()?) != MAGIC {
            return None;
        }
        let field = |n: usize| number(header, n);
        let length = field(4)?;
        let part = |at: usize| Some((length.checked_add(field(at)?)?, field(at + 4)?));
        Some(Self {
            types: part(8)?,
            strings: part(16)?,
        })
    }
}

/// A module's types.
struct Module<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Strings below this offset are the base's.
    first: usize,
    /// Whether the base has this string there.
    of_base: &'a dyn Fn(usize, &[u8]) -> bool,
}

impl<'a> Module<'a> {
    fn of(own: &'a [u8], first: usize, of_base: &'a dyn Fn(usize, &[u8]) -> bool) -> Option<Self> {
        if own.len() > LARGEST {
            return None;
        }
        let shape = Shape::of(own)?;
        let part = |(start, length): (usize, usize)| own.get(start..start.checked_add(length)?);
        Some(Self {
            types: part(shape.types)?,
            strings: part(shape.strings)?,
            first,
            of_base,
        })
    }

    fn is(&self, name: usize, wanted: &str) -> bool {
        match name.checked_sub(self.first) {
            None => (self.of_base)(name, wanted.as_bytes()),
            Some(own) => {
                let bytes = self.strings.get(own..).unwrap_or_default();
                bytes.split(|&byte| byte == 0).next() == Some(wanted.as_bytes())
            }
        }
    }

    /// The member's offset; `Some(None)` if there is none, `None` if the types are not understood.
    fn member(&self, structure: &str, member: &str) -> Option<Option<usize>> {
        let mut at = 0;
        while at < self.types.len() {
            let field = |n: usize| number(self.types, at + n);
            let (name, info) = (field(0)?, field(4)?);
            let (kind, many) = (info >> 24 & 0x1F, info & 0xFFFF);
            let has_bitfields = info >> 31 != 0;
            if kind == 4 && self.is(name, structure) {
                for n in 0..many {
                    let of = |part: usize| field(12 + n * 12 + part);
                    let (name, bits) = (of(0)?, of(8)?);
                    if self.is(name, member) {
                        let is_bitfield = has_bitfields && bits >> 24 != 0;
                        let whole = !is_bitfield && bits % 8 == 0;
                        return Some(whole.then_some(bits / 8));
                    }
                }
                return Some(None);
            }
            at += 12
                + match kind {
                    // INT, VAR, DECL_TAG
                    1 | 14 | 17 => 4,
                    // ARRAY
                    3 => 12,
                    // STRUCT, UNION, DATASEC, ENUM64
                    4 | 5 | 15 | 19 => many * 12,
                    // ENUM, FUNC_PROTO
                    6 | 13 => many * 8,
                    // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
                    2 | 7..=12 | 16 | 18 => 0,
                    _ => return None,
                };
        }
        Some(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A pointer, an integer, and a structure of two members: the first name is the base's.
    fn example() -> Vec<u8> {
        let strings = b"\0vcpu_svm\0vmcb\0";
        let types: [u32; 3 + 4 + 9] = [
            0,
            2 << 24,
            1, // a pointer
            0,
            1 << 24,
            4,
            32, // an integer
            101,
            4 << 24 | 2,
            64, // struct vcpu_svm
            7,
            1,
            0, // the base's name
            110,
            1,
            0x1A40 * 8,
        ];
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut bytes = vec![0x9F, 0xEB, 1, 0];
        let lengths = [24, 0, types.len(), types.len(), strings.len()];
        bytes.extend(lengths.iter().flat_map(|&n| (n as u32).to_le_bytes()));
        bytes.extend(&types);
        bytes.extend(strings);
        bytes
    }

    fn find(bytes: &[u8], member: &str) -> Option<Option<usize>> {
        let of_base = |at: usize, name: &[u8]| at == 7 && name == b"vcpu";
        Module::of(bytes, 100, &of_base)?.member("vcpu_svm", member)
    }

    #[test]
    fn members_are_found() {
        let bytes = example();
        assert_eq!(find(&bytes, "vmcb"), Some(Some(0x1A40)));
        assert_eq!(find(&bytes, "vcpu"), Some(Some(0)));
        assert_eq!(find(&bytes, "vmc"), Some(None));
        assert_eq!(find(&bytes[..60], "vmcb"), None);
    }

    #[test]
    fn no_such_module() {
        let error = member("no_such_module", "a", "b").unwrap_err().to_string();
        assert!(error.contains("/sys/kernel/btf/no_such_module"), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(at in 0usize..96, value: u32, cut in 0usize..120) {
            let mut bytes = example();
            if let Some(place) = bytes.get_mut(at..at + 4) {
                place.copy_from_slice(&value.to_le_bytes());
            }
            bytes.truncate(cut.max(24));
            let _ = find(&bytes, "vmcb");
        }
    }
}
