//! What `leaves=` asks: any CPUID leaf, for one ECX or a range of them, the answer shown as four
//! registers.

use exit_abi::leaf::{Layout, Registers};

use crate::line::Line;
use crate::machine::List;

/// Most questions that `leaves=` lists.
pub const ITEMS_MAX: usize = 16;
/// Most values of ECX in one range.
pub const RANGE_MAX: u32 = 256;

/// Which leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// The one with this number.
    Number(u32),
    /// [`Layout::total_exits`], whichever that is.
    TotalExits,
    /// [`Layout::total_cycles`].
    TotalCycles,
    /// [`Layout::exits_of`].
    ExitsOf,
    /// [`Layout::cycles_of`].
    CyclesOf,
}

impl Leaf {
    /// The leaf of this name.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "total-exits" => Self::TotalExits,
            "total-cycles" => Self::TotalCycles,
            "exits-of" => Self::ExitsOf,
            "cycles-of" => Self::CyclesOf,
            _ => return None,
        })
    }

    /// Its number; `None` where only a layout could tell it, and there is none.
    fn number(self, layout: Option<Layout>) -> Option<u32> {
        Some(match self {
            Self::Number(number) => number,
            Self::TotalExits => layout?.total_exits,
            Self::TotalCycles => layout?.total_cycles,
            Self::ExitsOf => layout?.exits_of,
            Self::CyclesOf => layout?.cycles_of,
        })
    }
}

/// A leaf, asked for each ECX from `first` to `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Which leaf.
    pub leaf: Leaf,
    /// The first ECX.
    pub first: u32,
    /// The last.
    pub last: u32,
}

/// The questions of one boot, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaves(List<Item, ITEMS_MAX>);

impl Default for Leaves {
    fn default() -> Self {
        let (first, last) = (0, 0);
        let leaf = Leaf::Number(0);
        Self(List::new(Item { leaf, first, last }))
    }
}

impl Leaves {
    /// Appends one; `None` if there is no room.
    pub fn push(&mut self, item: Item) -> Option<()> {
        self.0.push(item)
    }

    /// All of them.
    pub fn as_slice(&self) -> &[Item] {
        self.0.as_slice()
    }

    /// Asks everything, and hands a line for each answer to `emit`, without its newline.
    pub fn ask(
        &self,
        layout: Option<Layout>,
        mut ask: impl FnMut(u32, u32) -> Registers,
        mut emit: impl FnMut(&mut Line),
    ) {
        for item in self.as_slice() {
            let Some(leaf) = item.leaf.number(layout) else {
                let mut line = Line::new();
                line.text("[leaves] nobody says which leaf has that name: give its number");
                emit(&mut line);
                continue;
            };
            for ecx in item.first..=item.last {
                let answer = ask(leaf, ecx);
                emit(&mut shown(leaf, ecx, answer));
            }
        }
    }
}

/// `[leaves] CPUID(0x4FFFFFFD, 35): EAX 00000000 EBX 00000000 ECX 00000000 EDX FFFFFFFF`
fn shown(leaf: u32, ecx: u32, answer: Registers) -> Line {
    let mut line = Line::new();
    line.text("[leaves] CPUID(0x").hex32(leaf).text(", ");
    line.number(ecx.into()).text("):");
    for (name, value) in [
        (" EAX ", answer.eax),
        (" EBX ", answer.ebx),
        (" ECX ", answer.ecx),
        (" EDX ", answer.edx),
    ] {
        line.text(name).hex32(value);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(items: &[Item], layout: Option<Layout>) -> Vec<String> {
        let mut leaves = Leaves::default();
        for item in items {
            leaves.push(*item).unwrap();
        }
        let mut lines = Vec::new();
        let answer = |leaf, ecx| Registers {
            eax: leaf,
            ebx: ecx,
            ecx: 0,
            edx: u32::MAX,
        };
        leaves.ask(layout, answer, |line| {
            lines.push(String::from_utf8(line.as_bytes().to_vec()).unwrap());
        });
        lines
    }

    #[test]
    fn names_follow_the_layout() {
        let of = |leaf, first, last| Item { leaf, first, last };
        let items = [
            of(Leaf::ExitsOf, 35, 36),
            of(Leaf::Number(1), u32::MAX, u32::MAX),
        ];
        assert_eq!(
            lines(&items, Some(Layout::REVERSED)),
            [
                "[leaves] CPUID(0x4FFFFFFE, 35): EAX 4FFFFFFE EBX 00000023 ECX 00000000 EDX FFFFFFFF",
                "[leaves] CPUID(0x4FFFFFFE, 36): EAX 4FFFFFFE EBX 00000024 ECX 00000000 EDX FFFFFFFF",
                "[leaves] CPUID(0x00000001, 4294967295): EAX 00000001 EBX FFFFFFFF ECX 00000000 EDX FFFFFFFF",
            ]
        );
        let without = lines(&items, None);
        assert_eq!(without.len(), 2);
        assert!(without[0].contains("nobody says"), "{without:?}");
    }

    #[test]
    fn every_name_is_a_leaf_of_the_layout() {
        let names = ["total-exits", "total-cycles", "exits-of", "cycles-of"];
        let layout = Some(Layout::CLASSIC);
        let numbers = names.map(|name| Leaf::named(name).unwrap().number(layout).unwrap());
        assert_eq!(numbers, Layout::CLASSIC.leaves());
        assert_eq!(Leaf::named("exits"), None);
    }
}
