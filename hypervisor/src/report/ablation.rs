//! The ablation of memory as one table, and as JSON.

use super::format::{Clock, NONE, WIDTH, bar, bytes, clean, count, fit, labelled, si};
use super::json::pretty;
use super::table::{Side, Table};
use crate::profile::ablation::Ablation;
use Side::{Left, Right};

const INDENT: usize = 11;
/// Width of a bar.
const BAR: usize = 14;
/// Widest word of an option.
const WORD: usize = 12;

/// The table.
pub fn text(ablation: &Ablation) -> String {
    let guest = format!("{} · {}", ablation.guest, bytes(ablation.memory));
    let mut out = fit(
        "Guest memory: how it is filled in, and of what pages it is",
        WIDTH,
    ) + "\n";
    out += &labelled("guest", INDENT, &clean(&guest));
    out += &labelled("host", INDENT, &clean(&ablation.host));
    out.push('\n');
    out += &table(ablation).render();
    out.push('\n');
    let meaning = match ablation.reason {
        0 => {
            "exits of reason 0, exception: where KVM shadows page tables, first touches are page \
             faults, among others"
        }
        _ => "exits of reason 48, the first touch of a page (and of a device's address)",
    };
    out += &labelled("touches", INDENT, meaning);
    let meaning = "before the boot, in no other figure; total = filling + boot";
    out += &labelled("filling", INDENT, meaning);
    for skipped in &ablation.skipped {
        out += &labelled("skipped", INDENT, &clean(skipped));
    }
    for doubt in &ablation.doubts {
        out += &labelled("beware", INDENT, &clean(doubt));
    }
    out
}

fn table(ablation: &Ablation) -> Table {
    let mut table = Table::new(&[
        ("prefault", Left),
        ("pages", Left),
        ("touches", Right),
        ("", Left),
        ("cycles", Right),
        ("exits", Right),
        ("fixed", Right),
        ("filling", Right),
        ("boot", Right),
        ("total", Right),
        ("huge", Right),
    ]);
    let most = ablation.rows.iter().filter_map(|r| r.touches).max();
    let longest = ablation.rows.iter().map(|r| r.total_nanos).max();
    let clock = Clock::up_to(longest.unwrap_or(0));
    let known =
        |figure: Option<u64>, show: fn(u64) -> String| figure.map_or_else(|| NONE.to_owned(), show);
    for row in &ablation.rows {
        let short = if row.cut_short { " ▲ cut short" } else { "" };
        table.row(vec![
            fit(&clean(&row.prefault), WORD),
            fit(&clean(&row.pages), WORD),
            known(row.touches, count),
            bar(row.touches.unwrap_or(0), most.unwrap_or(0), BAR) + short,
            known(row.touch_cycles, si),
            count(row.exits),
            known(row.fixed, count),
            match row.prefault_nanos {
                0 => NONE.to_owned(),
                nanos => clock.show(nanos),
            },
            clock.show(row.boot_nanos),
            clock.show(row.total_nanos),
            match row.huge {
                0 => NONE.to_owned(),
                huge => bytes(huge),
            },
        ]);
    }
    table
}

/// The same for programs.
pub fn json(ablation: &Ablation) -> String {
    pretty(ablation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::ablation::tests::boots;
    use crate::report::format::width;

    fn ablation() -> Ablation {
        Ablation::of(&boots(), &["touch × huge: no huge pages".into()]).unwrap()
    }

    #[test]
    fn page() {
        let text = text(&ablation());
        assert!(text.lines().all(|line| width(line) <= WIDTH), "{text}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn schema() {
        let mut ablation = ablation();
        ablation.rows.truncate(1);
        insta::assert_snapshot!(json(&ablation));
    }

    #[test]
    fn whatever_is_in_it_stays_in_its_columns() {
        let mut boots = boots();
        boots[0].memory.as_mut().unwrap().pages = "\u{1b}[31m".repeat(100);
        boots[0].total.total = u64::MAX;
        boots[0].memory.as_mut().unwrap().prefault_nanos = u64::MAX;
        let ablation = Ablation::of(&boots, &["\n".repeat(9)]).unwrap();
        let text = text(&ablation);
        assert!(!text.contains('\u{1b}'));
    }
}
