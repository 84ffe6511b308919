//! The four leaves: both layouts, both editions; reasons that are counted, that cannot occur, and
//! that are undefined.

use exit_abi::leaf::{Layout, Question, Registers, UNDEFINED};
use serde_json::json;

use super::super::console::{self, Answer};
use super::super::evidence::Evidence;
use super::super::profile::{Profile, reason};
use super::super::results::{Answered, Table};
use super::{columns, profiled, row, short};
use crate::kvm_module::Paging;

/// A run: its layout, and the edition of the SDM's table.
struct Variant {
    run: &'static str,
    layout: Layout,
    layout_name: &'static str,
    edition: &'static str,
    /// Undefined up to 85, as the coursework and the SDM have it.
    undefined: &'static [u32],
    /// The highest that is defined.
    highest: u32,
}

const CURRENT: &[u32] = &[35, 38, 42, 71, 82, 83];
const OF_2020: &[u32] = &[35, 38, 42, 65];

const VARIANTS: [Variant; 4] = [
    Variant {
        run: "leaves-classic",
        layout: Layout::CLASSIC,
        layout_name: "classic",
        edition: "current",
        undefined: CURRENT,
        highest: 85,
    },
    Variant {
        run: "leaves-classic-2020",
        layout: Layout::CLASSIC,
        layout_name: "classic",
        edition: "2020",
        undefined: OF_2020,
        highest: 68,
    },
    Variant {
        run: "leaves-reversed",
        layout: Layout::REVERSED,
        layout_name: "reversed",
        edition: "current",
        undefined: CURRENT,
        highest: 85,
    },
    Variant {
        run: "leaves-reversed-2020",
        layout: Layout::REVERSED,
        layout_name: "reversed",
        edition: "2020",
        undefined: OF_2020,
        highest: 68,
    },
];

/// What an answer to a question about one reason is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counted,
    /// Zero, although it can occur.
    Zero,
    NotEnabled,
    Undefined,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Counted => "valid, counted",
            Self::Zero => "valid, none so far",
            Self::NotEnabled => "not enabled",
            Self::Undefined => "undefined",
        }
    }
}

impl Variant {
    fn is_undefined(&self, reason: u32) -> bool {
        reason > self.highest || self.undefined.contains(&reason)
    }

    /// What the reason is to this KVM, and under this edition.
    fn kind(&self, profile: &Profile, number: u32, exits: u64) -> Kind {
        let known = profile.reasons.iter().find(|r| r.reason == number);
        if self.is_undefined(number) {
            Kind::Undefined
        } else if exits > 0 {
            Kind::Counted
        } else if known.is_some_and(|known| known.can_occur) {
            Kind::Zero
        } else {
            Kind::NotEnabled
        }
    }

    /// For people.
    fn title(&self) -> String {
        let mut layout = self.layout_name.to_owned();
        if let Some(first) = layout.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        format!("{layout} layout, {} edition", self.edition)
    }
}

/// The answers of one run.
struct Asked<'e> {
    lab: &'e Evidence,
    profile: &'e Profile,
    answers: Vec<Answer>,
}

impl Asked<'_> {
    fn of(&self, leaf: u32) -> impl Iterator<Item = &Answer> {
        self.answers
            .iter()
            .filter(move |answer| answer.leaf == leaf)
    }

    fn one(&self, leaf: u32, ecx: u32) -> Option<Registers> {
        let found = self.of(leaf).find(|answer| answer.ecx == ecx);
        found.map(|answer| answer.registers)
    }
}

pub(super) fn answer(labs: &[Evidence]) -> Answered {
    let mut answered = Answered {
        title: "The four leaves".to_owned(),
        question: "Answer CPUID 0x4FFFFFFC to 0x4FFFFFFF with the exits and cycles of all reasons and of the \
                   reason in ECX; tell reasons that the SDM does not define (EDX all ones) from those that \
                   KVM does not enable (all zero)."
            .to_owned(),
        source: "The guest kernel's word `leaves=` asks at the gate and prints EAX to EDX; `leaves.csv` has \
                 every answer. Which reasons a KVM can raise is in the profile (`reasons[].can_occur`)."
            .to_owned(),
        why: "Which leaf asks what is data, so the layouts differ in numbers alone. 35, 38 and 42 are holes \
              in every edition of the SDM's table; 65 was one in 2020 and is PCONFIG now, and what lies \
              above 68 has come since. A reason can be defined and still never be raised: no KVM sets the \
              control for RDTSC, and VMX's own instructions exit on Intel alone."
            .to_owned(),
        ..Answered::default()
    };
    answered.csv.push(row([
        "lab", "layout", "edition", "leaf", "asks", "reason", "eax", "ebx", "ecx", "edx",
    ]));
    for variant in &VARIANTS {
        let mut asked = Vec::new();
        for lab in labs {
            let found = profiled(&mut answered, lab, Paging::Nested, variant.run);
            let Some((ran, profile)) = found else {
                continue;
            };
            let answers = console::answers(&ran.said.stderr);
            asked.push(Asked {
                lab,
                profile,
                answers,
            });
        }
        for asked in &asked {
            check(&mut answered, variant, asked);
            export(&mut answered, variant, asked);
        }
        if variant.edition == "current" {
            answered.table(totals(variant, &asked));
            answered.table(of_reasons(variant, &asked));
        } else {
            answered.table(of_editions(variant, &asked));
        }
        if variant.run == "leaves-classic" {
            answered.table(kinds(variant, &asked));
        }
    }
    answered
}

/// `00000877 00000000 00000000 00000000`
fn shown(registers: Option<Registers>) -> String {
    registers.map_or_else(
        || "not answered".to_owned(),
        |r| format!("`{:08X} {:08X} {:08X} {:08X}`", r.eax, r.ebx, r.ecx, r.edx),
    )
}

fn titles<'e>(asked: &[Asked<'e>]) -> Vec<&'e str> {
    asked.iter().map(|asked| short(&asked.lab.title)).collect()
}

/// What the two leaves of totals answered first.
fn totals(variant: &Variant, asked: &[Asked<'_>]) -> Table {
    let caption = format!("{}: the totals, as EAX EBX ECX EDX", variant.title());
    let titles = titles(asked);
    let mut table = Table::new(&caption, columns(&["leaf", "asks"], &titles, &[""]));
    for (leaf, asks) in [
        (variant.layout.total_exits, "all exits"),
        (variant.layout.total_cycles, "their cycles"),
    ] {
        let mut cells = vec![format!("`0x{leaf:08X}`"), asks.to_owned()];
        cells.extend(asked.iter().map(|asked| shown(asked.one(leaf, 0))));
        table.row(cells);
    }
    table
}

/// Reasons that are shown with their registers: counted in every boot, holes, and whatever else
/// the first of the labs never enables.
const SHOWN: [u32; 12] = [10, 28, 30, 48, 11, 16, 19, 35, 38, 42, 71, u32::MAX];

fn of_reasons(variant: &Variant, asked: &[Asked<'_>]) -> Table {
    let leaves = variant.layout;
    let caption = format!(
        "{}: single reasons, `0x{:08X}` for exits and `0x{:08X}` for cycles, as EAX EBX ECX EDX",
        variant.title(),
        leaves.exits_of,
        leaves.cycles_of
    );
    let titles = titles(asked);
    let of_lab = ["", "exits", "cycles"];
    let mut table = Table::new(&caption, columns(&["ECX"], &titles, &of_lab));
    for number in SHOWN {
        let mut cells = vec![reason(number)];
        for asked in asked {
            let exits = asked.one(leaves.exits_of, number);
            let count = exits.map_or(0, Registers::exits);
            cells.push(variant.kind(asked.profile, number, count).name().to_owned());
            cells.push(shown(exits));
            cells.push(match asked.one(leaves.cycles_of, number) {
                None => "not asked".to_owned(),
                cycles => shown(cycles),
            });
        }
        if cells.iter().any(|cell| cell.starts_with('`')) {
            table.row(cells);
        }
    }
    table
}

/// Where the editions differ.
fn of_editions(variant: &Variant, asked: &[Asked<'_>]) -> Table {
    let caption = format!(
        "{}: what it leaves undefined, `0x{:08X}`, as EAX EBX ECX EDX",
        variant.title(),
        variant.layout.exits_of
    );
    let mut table = Table::new(&caption, columns(&["ECX"], &titles(asked), &["", "exits"]));
    for number in [35, 65, 68, 69, 71] {
        let mut cells = vec![reason(number)];
        for asked in asked {
            let exits = asked.one(variant.layout.exits_of, number);
            let count = exits.map_or(0, Registers::exits);
            cells.push(variant.kind(asked.profile, number, count).name().to_owned());
            cells.push(shown(exits));
        }
        table.row(cells);
    }
    table
}

/// All reasons, by what they are to each KVM.
fn kinds(variant: &Variant, asked: &[Asked<'_>]) -> Table {
    let mut table = Table::new(
        "All reasons",
        columns(&["to this KVM"], &titles(asked), &[""]),
    );
    let all = [Kind::Counted, Kind::Zero, Kind::NotEnabled, Kind::Undefined];
    for kind in all {
        let mut cells = vec![kind.name().to_owned()];
        for asked in asked {
            let of_kind = |answer: &&Answer| {
                let exits = answer.registers.exits();
                answer.ecx <= 85 && variant.kind(asked.profile, answer.ecx, exits) == kind
            };
            let numbers = asked.of(variant.layout.exits_of).filter(of_kind);
            let numbers: Vec<u32> = numbers.map(|answer| answer.ecx).collect();
            cells.push(format!("{}: {}", numbers.len(), ranges(&numbers)));
        }
        table.row(cells);
    }
    table
}

/// `1, 3–5, 9`
pub(super) fn ranges(numbers: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match parts.last_mut() {
            Some(last) if last.1 + 1 == number => last.1 = number,
            _ => parts.push((number, number)),
        }
    }
    let shown = |&(first, last): &(u32, u32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first}, {last}"),
        _ => format!("{first}–{last}"),
    };
    parts.iter().map(shown).collect::<Vec<_>>().join(", ")
}

fn check(answered: &mut Answered, variant: &Variant, asked: &Asked<'_>) {
    let lab = &asked.lab.title;
    let title = variant.title();
    let leaves = variant.layout;
    let exits: Vec<&Answer> = asked.of(leaves.exits_of).collect();
    let numbers = |wrong: Vec<&Answer>| -> String {
        let first = wrong
            .first()
            .map(|a| format!("; {} answers {}", a.ecx, shown(Some(a.registers))));
        let numbers: Vec<u32> = wrong.iter().map(|answer| answer.ecx).collect();
        format!("{}{}", ranges(&numbers), first.unwrap_or_default())
    };

    let complete = (0..=90).all(|ecx| exits.iter().any(|answer| answer.ecx == ecx));
    answered.expect(
        lab,
        "every reason from 0 to 90 is answered",
        complete,
        format!("{title}: {} answers", exits.len()),
    );

    let of_reasons = || {
        asked
            .answers
            .iter()
            .filter(|a| [leaves.exits_of, leaves.cycles_of].contains(&a.leaf))
    };
    let wrong: Vec<&Answer> = of_reasons()
        .filter(|answer| {
            let is = answer.registers == Registers::undefined();
            let marked = answer.registers.edx == UNDEFINED;
            is != variant.is_undefined(answer.ecx) || marked != is
        })
        .collect();
    answered.expect(
        lab,
        "undefined reasons, and no others, answer 0, 0, 0, FFFFFFFF",
        wrong.is_empty(),
        format!("{title}: otherwise for {}", numbers(wrong)),
    );

    let wrong: Vec<&Answer> = of_reasons()
        .filter(|answer| {
            let kind = variant.kind(asked.profile, answer.ecx, 0);
            kind == Kind::NotEnabled && answer.registers != Registers::default()
        })
        .collect();
    answered.expect(
        lab,
        "reasons that this KVM does not enable answer 0 in all four",
        wrong.is_empty(),
        format!("{title}: otherwise for {}", numbers(wrong)),
    );

    let unnamed = asked.answers.iter().filter(|answer| {
        let r = answer.registers;
        match leaves.question(answer.leaf) {
            Some(Question::TotalExits) => r.ecx != 0 || r.edx != 0,
            Some(Question::TotalCycles) => r.eax != 0 || r.edx != 0,
            Some(Question::ExitsOf) => r.ecx != 0,
            Some(Question::CyclesOf) => r.eax != 0,
            _ => true,
        }
    });
    let wrong: Vec<&Answer> = unnamed.collect();
    answered.expect(
        lab,
        "registers without a meaning are 0",
        wrong.is_empty(),
        format!("{title}: otherwise for {}", numbers(wrong)),
    );

    adds_up(answered, variant, asked);
}

/// All counts grow: what the reasons add up to lies between the totals asked before and after.
fn adds_up(answered: &mut Answered, variant: &Variant, asked: &Asked<'_>) {
    let leaves = variant.layout;
    let mut questions = vec![(leaves.total_exits, leaves.exits_of, "exits")];
    if asked.of(leaves.cycles_of).count() > 85 {
        questions.push((leaves.total_cycles, leaves.cycles_of, "cycles"));
    }
    for (total, single, what) in questions {
        let figure = |answer: &Answer| match what {
            "exits" => answer.registers.exits(),
            _ => answer.registers.cycles(),
        };
        let totals: Vec<u64> = asked.of(total).map(figure).collect();
        let defined = asked.of(single).filter(|a| a.registers.edx != UNDEFINED);
        let sum: u64 = defined.map(figure).sum();
        let (first, last) = (totals.first().copied(), totals.last().copied());
        let holds = totals.len() == 2 && first <= Some(sum) && Some(sum) <= last;
        answered.expect(
            &asked.lab.title,
            format!(
                "the {what} of all reasons add up to the total: they lie between the total asked before \
                 and the total asked after"
            ),
            holds,
            format!("{}: {sum}, totals {totals:?}", variant.title()),
        );
    }
}

/// Every answer, for spreadsheets and programs.
fn export(answered: &mut Answered, variant: &Variant, asked: &Asked<'_>) {
    let lab = short(&asked.lab.title);
    let mut figures = Vec::new();
    for answer in &asked.answers {
        let r = answer.registers;
        let asks = match variant.layout.question(answer.leaf) {
            Some(Question::TotalExits) => "total exits",
            Some(Question::TotalCycles) => "total cycles",
            Some(Question::ExitsOf) => "exits of reason",
            Some(Question::CyclesOf) => "cycles of reason",
            _ => "other",
        };
        let hex = |value: u32| format!("{value:08X}");
        answered.csv.push(row([
            lab,
            variant.layout_name,
            variant.edition,
            &format!("0x{:08X}", answer.leaf),
            asks,
            &answer.ecx.to_string(),
            &hex(r.eax),
            &hex(r.ebx),
            &hex(r.ecx),
            &hex(r.edx),
        ]));
        figures.push(json!({
            "leaf": answer.leaf, "asks": asks, "in_ecx": answer.ecx,
            "eax": r.eax, "ebx": r.ebx, "ecx": r.ecx, "edx": r.edx,
        }));
    }
    let of_lab = answered.figures.entry(asked.lab.title.clone());
    let of_lab = of_lab.or_insert_with(|| json!({}));
    of_lab[variant.run] = figures.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a guest prints that is answered as the interface says: 5 exits of 10 CPUID alone.
    fn console(variant: &Variant, wrong: Option<(u32, u32)>) -> String {
        let leaves = variant.layout;
        let mut text = String::new();
        let mut line = |leaf: u32, ecx: u32, registers: [u32; 4]| {
            let [a, b, c, d] = registers;
            text += &format!("[leaves] CPUID(0x{leaf:08X}, {ecx}): ");
            text += &format!("EAX {a:08X} EBX {b:08X} ECX {c:08X} EDX {d:08X}\n");
        };
        line(leaves.total_exits, 0, [5, 0, 0, 0]);
        for ecx in 0..=90 {
            let edx = match wrong {
                Some((number, edx)) if number == ecx => edx,
                _ if variant.is_undefined(ecx) => UNDEFINED,
                _ => 0,
            };
            line(
                leaves.exits_of,
                ecx,
                [if ecx == 10 { 5 } else { 0 }, 0, 0, edx],
            );
        }
        line(leaves.total_exits, 0, [7, 0, 0, 0]);
        text
    }

    fn failures(wrong: Option<(u32, u32)>) -> Vec<String> {
        use super::super::super::fixtures::{accounts, lab, profile};
        let mut evidence = lab("AMD lab");
        for variant in &VARIANTS {
            let console = console(variant, wrong);
            let profile = profile("nested", &accounts(&[]), &[]);
            evidence = evidence.with(Paging::Nested, variant.run, &console, profile);
        }
        let answered = answer(&[evidence]);
        let failures = answered.failures();
        failures
            .map(|check| check.failed.clone().unwrap())
            .collect()
    }

    #[test]
    fn wrong_answers_are_found() {
        assert_eq!(failures(None), Vec::<String>::new());
        // Defined and answered as undefined, in every layout and edition; undefined and answered as
        // not enabled; neither one nor the other.
        for (wrong, found) in [
            ((10, UNDEFINED), 4),
            ((35, 0), 4),
            ((35, 1), 4),
            ((65, 0), 2),
        ] {
            let undefined = failures(Some(wrong));
            let undefined = undefined.iter().filter(|f| f.contains("otherwise for"));
            assert!(undefined.count() >= found, "{wrong:?}");
        }
    }

    #[test]
    fn numbers_as_ranges() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[0, 1, 3, 4, 5, u32::MAX]), "0, 1, 3–5, 4294967295");
    }

    #[test]
    fn what_is_undefined_is_what_the_interface_says() {
        use exit_abi::reason::{Edition, Reason};
        for variant in VARIANTS {
            let edition = match variant.edition {
                "2020" => Edition::Sdm2020,
                _ => Edition::Current,
            };
            for number in 0..128 {
                let defined = Reason::new(number).is_some_and(|r| r.is_defined(edition));
                assert_eq!(variant.is_undefined(number), !defined, "{number}");
            }
        }
    }
}
