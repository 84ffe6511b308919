//! Walking a flattened device tree (Devicetree Specification, chapter 5), by the crate `dtb`.
//!
//! One walk from front to back, because an interpreted CPU executes a million instructions a second:
//! a crate that checks a whole tree first and then looks up each property takes longer for it than
//! the rest of the boot.

use dtb::{Reader, StructItem, StructItems};

/// The blob is no device tree, or it is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

impl From<dtb::Error> for Damaged {
    fn from(_: dtb::Error) -> Self {
        Self
    }
}

/// Bytes of the header, and the fields that the crate does not give out, by offset (5.2).
const HEADER: usize = 40;
mod field {
    pub(super) const TOTAL_SIZE: usize = 4;
    pub(super) const BOOT_CPU: usize = 28;
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

/// The name of a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'t>(&'t str);

impl Name<'_> {
    /// Whether it is this one.
    pub fn is(self, name: &str) -> bool {
        self.0 == name
    }
}

/// A walk from front to back.
pub struct Walk<'t> {
    items: StructItems<'t>,
    /// APIC ID of the CPU that boots.
    pub boot_cpu: u32,
}

impl<'t> Walk<'t> {
    /// Begins at the root. The blob may be longer than the tree says it is.
    pub fn new(blob: &'t [u8]) -> Result<Self, Damaged> {
        let header = blob.get(..HEADER).ok_or(Damaged)?;
        let word = |at: usize| header.get(at..).and_then(first).ok_or(Damaged);
        // The crate slices by sizes that it holds against this one alone.
        let tree = blob.get(..word(field::TOTAL_SIZE)? as usize);
        Ok(Self {
            items: Reader::read(tree.ok_or(Damaged)?)?.struct_items(),
            boot_cpu: word(field::BOOT_CPU)?,
        })
    }

    /// The next step. The tree's end is no step: a root that has ended says it.
    pub fn step(&mut self) -> Result<Step<'t>, Damaged> {
        Ok(match self.items.next_item()? {
            StructItem::BeginNode { .. } => Step::Begin,
            StructItem::Property { name, value } => Step::Property(Name(name), value),
            StructItem::EndNode => Step::End,
        })
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
                Step::Property(Name("a"), b"xyzt\0"),
                Step::Begin,
                Step::Property(Name("b"), b""),
                Step::End,
                Step::End,
            ]
        );
    }

    #[test]
    fn headers_that_make_no_sense() {
        for (at, value) in [
            (0, 0),
            (field::TOTAL_SIZE, 0xFFFF),
            (8, u32::MAX),
            (36, u32::MAX),
            (12, 0x8000),
            (32, 0x8000),
            (20, 15),
            (24, 18),
        ] {
            let mut blob = blob();
            blob[at..at + 4].copy_from_slice(&value.to_be_bytes());
            assert!(Walk::new(&blob).is_err(), "{at}");
        }
        assert!(Walk::new(&blob()[..HEADER - 1]).is_err());
    }
}
