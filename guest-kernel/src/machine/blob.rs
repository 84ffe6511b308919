//! Walking a flattened device tree (Devicetree Specification, chapter 5), every offset checked.
//!
//! A walk of our own: dtoolkit, which checks a whole tree first and then looks up each property
//! several times, takes four times as long on an interpreted CPU, more than the rest of the boot.

/// The blob is no device tree, or it is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

const MAGIC: u32 = 0xD00D_FEED;
/// The version that we read, which later ones promise to be compatible with.
const VERSION: u32 = 17;
/// Bytes of the header, and its fields by offset (5.2).
const HEADER: usize = 40;
mod field {
    pub(super) const TOTAL_SIZE: usize = 4;
    pub(super) const STRUCTURE: usize = 8;
    pub(super) const STRINGS: usize = 12;
    pub(super) const VERSION: usize = 20;
    pub(super) const COMPATIBLE_VERSION: usize = 24;
    pub(super) const BOOT_CPU: usize = 28;
    pub(super) const STRINGS_SIZE: usize = 32;
    pub(super) const STRUCTURE_SIZE: usize = 36;
}

/// Tokens of the structure block (5.4.1).
mod token {
    pub(super) const BEGIN_NODE: u32 = 1;
    pub(super) const END_NODE: u32 = 2;
    pub(super) const PROPERTY: u32 = 3;
    pub(super) const NOP: u32 = 4;
}

/// What a walk comes upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'t> {
    /// A node begins.
    Begin,
    /// A property of the node that began last: name and value.
    Property(Name<'t>, &'t [u8]),
    /// The node that is open ends.
    End,
}

/// The name of a property: what the strings block holds from its first byte on. It is compared
/// with the few that are known, and never measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'t>(&'t [u8]);

impl Name<'_> {
    /// Whether it is this one.
    #[inline(always)] // with a constant, a few comparisons of whole words
    pub fn is(self, name: &str) -> bool {
        let rest = self.0.strip_prefix(name.as_bytes());
        rest.is_some_and(|rest| rest.first() == Some(&0))
    }
}

/// A walk from front to back.
pub struct Walk<'t> {
    structure: &'t [u8],
    strings: &'t [u8],
    /// APIC ID of the CPU that boots.
    pub boot_cpu: u32,
}

impl<'t> Walk<'t> {
    /// Begins at the root. The blob may be longer than the tree says it is.
    pub fn new(blob: &'t [u8]) -> Result<Self, Damaged> {
        let header = blob.get(..HEADER).ok_or(Damaged)?;
        let word = |at: usize| header.get(at..).and_then(first).ok_or(Damaged);
        let tree = blob.get(..word(field::TOTAL_SIZE)? as usize);
        let versions = word(field::COMPATIBLE_VERSION)?..=word(field::VERSION)?;
        if word(0)? != MAGIC || !versions.contains(&VERSION) {
            return Err(Damaged);
        }
        let block = |start, size| {
            let start = word(start)? as usize;
            let size = word(size)? as usize;
            let end = start.checked_add(size).ok_or(Damaged)?;
            tree.and_then(|t| t.get(start..end)).ok_or(Damaged)
        };
        Ok(Self {
            structure: block(field::STRUCTURE, field::STRUCTURE_SIZE)?,
            strings: block(field::STRINGS, field::STRINGS_SIZE)?,
            boot_cpu: word(field::BOOT_CPU)?,
        })
    }

    fn word(&mut self) -> Result<u32, Damaged> {
        let word = first(self.structure).ok_or(Damaged)?;
        self.structure = &self.structure[4..];
        Ok(word)
    }

    /// The next step. The tree's end is no step: a root that has ended says it.
    pub fn step(&mut self) -> Result<Step<'t>, Damaged> {
        loop {
            match self.word()? {
                token::NOP => {}
                token::BEGIN_NODE => {
                    // Its name, which nobody asks for, up to the word that ends it.
                    while self.word()?.to_be_bytes().iter().all(|&b| b != 0) {}
                    return Ok(Step::Begin);
                }
                token::END_NODE => return Ok(Step::End),
                token::PROPERTY => {
                    let length = self.word()? as usize;
                    let name = self.strings.get(self.word()? as usize..).ok_or(Damaged)?;
                    let value = self.structure.get(..length).ok_or(Damaged)?;
                    let padded = length.next_multiple_of(4);
                    self.structure = self.structure.get(padded..).ok_or(Damaged)?;
                    return Ok(Step::Property(Name(name), value));
                }
                _ => return Err(Damaged),
            }
        }
    }
}

/// The first four bytes.
fn first(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|b| u32::from_be_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_fdt::FdtWriter;

    fn blob() -> Vec<u8> {
        let mut w = FdtWriter::new().unwrap();
        w.set_boot_cpuid_phys(7);
        let root = w.begin_node("").unwrap();
        w.property_string("a", "xyzt").unwrap();
        let node = w.begin_node("node@1").unwrap();
        w.property_null("b").unwrap();
        w.end_node(node).unwrap();
        w.end_node(root).unwrap();
        w.finish().unwrap()
    }

    #[test]
    fn a_walk() {
        let blob = blob();
        let mut walk = Walk::new(&blob).unwrap();
        assert_eq!(walk.boot_cpu, 7);
        let steps: Vec<_> = std::iter::from_fn(|| walk.step().ok()).collect();
        assert_eq!(
            steps,
            [
                Step::Begin,
                Step::Property(Name(b"a\0b\0"), b"xyzt\0"),
                Step::Begin,
                Step::Property(Name(b"b\0"), b""),
                Step::End,
                Step::End,
            ]
        );
    }

    #[test]
    fn names() {
        let name = Name(b"reg\0x");
        assert!(name.is("reg"));
        assert!(!name.is("re") && !name.is("reg\0x") && !name.is("regs"));
        assert!(!Name(b"reg").is("reg"), "it does not end");
    }

    #[test]
    fn headers_that_make_no_sense() {
        for (at, value) in [
            (0, 0),
            (field::TOTAL_SIZE, 0xFFFF),
            (field::STRUCTURE, u32::MAX),
            (field::STRUCTURE_SIZE, u32::MAX),
            (field::STRINGS, 0x8000),
            (field::STRINGS_SIZE, 0x8000),
            (field::VERSION, 16),
            (field::COMPATIBLE_VERSION, 18),
        ] {
            let mut blob = blob();
            blob[at..at + 4].copy_from_slice(&value.to_be_bytes());
            assert!(Walk::new(&blob).is_err(), "{at}");
        }
        assert!(Walk::new(&blob()[..HEADER - 1]).is_err());
    }
}
