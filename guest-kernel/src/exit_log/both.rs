//! Page and leaves together: whether they agree, and what it costs to ask and to read.
//!
//! At each record the page is read, the leaves are asked, and the page is read twice more. What the
//! leaves say was true between the first reading and the second; what grew between these is what
//! asking cost, between the second and the third what reading did.

use exit_abi::page::{Head, PageKind};
use exit_abi::reason::Reason;

use super::reading::Reading;
use crate::line::Line;

/// Which figure page and leaves do not agree about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// All exits.
    Total,
    /// Exits of a reason.
    Exits(Reason),
    /// Cycles of a reason.
    Cycles(Reason),
}

/// What the leaves said, and what the page did before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contradiction {
    /// Of which figure.
    pub figure: Figure,
    /// The leaves' answer.
    pub leaves: u64,
    /// The page's, before.
    pub before: u64,
    /// The page's, after.
    pub after: u64,
}

impl Contradiction {
    /// Appends it in words.
    pub fn describe(&self, line: &mut Line) {
        match self.figure {
            Figure::Total => line.text("all exits"),
            Figure::Exits(reason) => line.text("exits of reason ").number(reason.number().into()),
            Figure::Cycles(reason) => line
                .text("cycles of reason ")
                .number(reason.number().into()),
        };
        line.text(": the leaves say ").number(self.leaves);
        line.text(", the exit page ").number(self.before);
        line.text(" before and ").number(self.after);
        line.text(" after");
    }
}

/// Whether what the leaves said can have been true between two readings of the page.
///
/// The leaves' total may be larger: it is KVM's own, and has exits of which nobody knows the reason.
/// A page that the VMM fills has another vCPU's exits only as of that one's last milestone.
pub fn compare(
    head: &Head,
    before: &Reading,
    leaves: &Reading,
    after: &Reading,
) -> Result<(), Contradiction> {
    let at_once = head.kind == PageKind::Kernel || head.vcpus == 1;
    let check = |figure, leaves, before, after| {
        if before <= leaves && (leaves <= after || !at_once) {
            return Ok(());
        }
        Err(Contradiction {
            figure,
            leaves,
            before,
            after,
        })
    };
    if leaves.exits < before.exits {
        check(Figure::Total, leaves.exits, before.exits, after.exits)?;
    }
    // Reasons of the page, then those that only the leaves have: these were not there before.
    let news = leaves.reasons().iter();
    let news = news.filter(|l| before.of(l.reason).exits == 0);
    for line in before.reasons().iter().chain(news) {
        let reason = line.reason;
        let [said, first, last] = [leaves, before, after].map(|reading| reading.of(reason));
        check(Figure::Exits(reason), said.exits, first.exits, last.exits)?;
        if head.timed {
            let figure = Figure::Cycles(reason);
            check(figure, said.cycles, first.cycles, last.cycles)?;
        }
    }
    Ok(())
}

/// What something cost, all records together.
#[derive(Clone, Debug)]
pub struct Cost {
    growth: Reading,
    /// TSC cycles, as the guest sees them pass.
    cycles: u64,
}

impl Cost {
    const fn new() -> Self {
        Self {
            growth: Reading::new(),
            cycles: 0,
        }
    }

    /// Appends exits, their reasons and cycles.
    fn describe(&self, line: &mut Line) {
        line.number(self.growth.exits).text(" exits");
        let mut separator = " (reason ";
        for grown in self.growth.reasons() {
            line.text(separator).number(grown.reason.number().into());
            line.text(": ").number(grown.exits);
            separator = ", ";
        }
        if !self.growth.reasons().is_empty() {
            line.text(")");
        }
        line.text(", ").number(self.cycles).text(" cycles");
    }
}

/// The readings of one record, and the costs of all.
#[derive(Clone, Debug)]
pub struct Both {
    /// By the leaves.
    pub leaves: Reading,
    /// The page, after that.
    pub after: Reading,
    /// And once more.
    pub again: Reading,
    asking: Cost,
    reading: Cost,
    records: u32,
}

impl Both {
    /// Nothing compared, in a form that needs no bytes in the image.
    pub const fn new() -> Self {
        Self {
            leaves: Reading::new(),
            after: Reading::new(),
            again: Reading::new(),
            asking: Cost::new(),
            reading: Cost::new(),
            records: 0,
        }
    }

    /// Takes a record to account: cycles are what asking the leaves and what reading the page took.
    pub fn account(
        &mut self,
        head: &Head,
        before: &Reading,
        cycles: [u64; 2],
    ) -> Result<(), Contradiction> {
        self.asking.growth.add_growth(before, &self.after);
        self.reading.growth.add_growth(&self.after, &self.again);
        self.asking.cycles = self.asking.cycles.saturating_add(cycles[0]);
        self.reading.cycles = self.reading.cycles.saturating_add(cycles[1]);
        compare(head, before, &self.leaves, &self.after)?;
        self.records += 1;
        Ok(())
    }

    /// Hands the lines on agreement and costs to `emit`, without their newlines.
    pub fn lines(&self, mut emit: impl FnMut(&mut Line)) {
        let mut line = Line::new();
        line.text("[exit-log] exit page and leaves agree in ")
            .number(self.records.into());
        line.text(" records");
        emit(&mut line);
        line = Line::new();
        line.text("[exit-log] asking the leaves cost ");
        self.asking.describe(&mut line);
        line.text("; reading the page ");
        self.reading.describe(&mut line);
        emit(&mut line);
    }
}

impl Default for Both {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::super::reading::tests::{asked, page};
    use super::*;
    use exit_abi::leaf::Layout;

    fn reading(reasons: &[(u32, u64, u64)]) -> Reading {
        asked(Layout::CLASSIC, reasons)
    }

    fn head(kind: PageKind, vcpus: usize) -> Head {
        let words = page(kind, &[0], &vec![&[][..]; vcpus]);
        Head::read(8 * words.len() as u64, |at| words[at as usize / 8]).unwrap()
    }

    fn outcome(head: &Head, leaves: &[(u32, u64, u64)]) -> Result<(), Figure> {
        let before = reading(&[(30, 10, 100), (0, 5, 50)]);
        let after = reading(&[(30, 12, 130), (0, 9, 90), (1, 1, 1)]);
        compare(head, &before, &reading(leaves), &after).map_err(|c| c.figure)
    }

    #[test]
    fn leaves_lie_between_two_readings() {
        let kernel = &head(PageKind::Kernel, 2);
        assert_eq!(outcome(kernel, &[(30, 10, 100), (0, 5, 50)]), Ok(()));
        assert_eq!(
            outcome(kernel, &[(30, 12, 130), (0, 9, 90), (1, 1, 1)]),
            Ok(())
        );
        let exits = |n| Err(Figure::Exits(Reason::new(n).unwrap()));
        let cycles = |n| Err(Figure::Cycles(Reason::new(n).unwrap()));
        for (leaves, expected) in [
            (&[(30, 9, 100), (0, 6, 50)][..], exits(30)),
            (&[(30, 13, 100), (0, 5, 50)], exits(30)),
            (&[(30, 15, 100)], exits(0)),
            (&[(30, 11, 99), (0, 5, 50)], cycles(30)),
            (&[(30, 11, 131), (0, 5, 50)], cycles(30)),
            (&[(30, 11, 110), (0, 5, 50), (1, 2, 1)], exits(1)),
            (&[(30, 11, 110), (0, 5, 50), (12, 1, 0)], exits(12)),
            (&[(30, 10, 110), (0, 4, 50)], Err(Figure::Total)),
            (&[], Err(Figure::Total)),
        ] {
            assert_eq!(outcome(kernel, leaves), expected, "{leaves:?}");
        }
    }

    #[test]
    fn a_page_of_the_vmm_may_lag_for_other_vcpus() {
        let more = [(30, 13, 100), (0, 5, 50), (12, 4, 9)];
        assert!(outcome(&head(PageKind::Vmm, 1), &more).is_err());
        assert_eq!(outcome(&head(PageKind::Vmm, 2), &more), Ok(()));
        let fewer = [(30, 9, 100), (0, 9, 50)];
        assert!(outcome(&head(PageKind::Vmm, 2), &fewer).is_err());
    }

    #[test]
    fn the_costs_are_added_up() {
        let mut both = Both::new();
        let head = head(PageKind::Kernel, 1);
        let before = reading(&[(30, 10, 100)]);
        both.leaves = reading(&[(30, 11, 100), (0, 1, 0)]);
        both.after = reading(&[(30, 12, 130), (0, 9, 90)]);
        both.again = reading(&[(30, 12, 130), (0, 9, 90), (1, 1, 5)]);
        assert_eq!(both.account(&head, &before, [1000, 10]), Ok(()));
        both.again = both.after.clone();
        assert_eq!(both.account(&head, &before, [500, 10]), Ok(()));
        both.leaves = reading(&[]);
        let wrong = both.account(&head, &before, [0, 0]).unwrap_err();
        let mut lines = Vec::new();
        both.lines(|l| lines.push(String::from_utf8_lossy(l.as_bytes()).into_owned()));
        assert_eq!(
            lines,
            [
                "[exit-log] exit page and leaves agree in 2 records",
                "[exit-log] asking the leaves cost 33 exits (reason 0: 27, 30: 6), 1500 cycles; \
                 reading the page 1 exits (reason 1: 1), 20 cycles",
            ]
        );
        let mut line = Line::new();
        wrong.describe(&mut line);
        assert_eq!(
            String::from_utf8_lossy(line.as_bytes()),
            "all exits: the leaves say 0, the exit page 10 before and 21 after"
        );
    }
}
