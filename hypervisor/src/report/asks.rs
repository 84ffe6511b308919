//! What exits ask for: which MSRs, ports and CPUID leaves, and on the way to which milestone.

use super::format::{WIDTH, bar, count, fit, width};
use super::names;
use super::table::{Side, Table};
use super::text::step_name;
use crate::profile::fixed::driver;
use crate::profile::{Accounts, Ask, AskKind, Profile};
use Side::{Left, Right};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Most rows that are shown.
const MOST: usize = 16;
/// Width of a bar.
const BAR: usize = 14;

/// The table of what the first boot asks for, most frequent first; nothing if nothing is known.
pub(super) fn table(profile: &Profile) -> String {
    let asks = profile.total.top_asks();
    let dropped = profile.total.asks_dropped;
    let lost = format!(
        "{} more accesses found no room: what they asked for is not known",
        count(dropped)
    );
    let Some(most) = asks.first().map(|a| a.count) else {
        return if dropped > 0 {
            lost + "\n"
        } else {
            String::new()
        };
    };
    let shown = if asks.len() > MOST + 1 {
        MOST
    } else {
        asks.len()
    };
    let mut places = busiest(profile);
    let mut table = Table::new(&[
        ("asked for", Left),
        ("", Left),
        ("name", Left),
        ("accesses", Right),
        ("", Left),
        ("most on the way to", Left),
        ("", Left),
    ]);
    for ask in &asks[..shown] {
        table.row(vec![
            names::verb(ask.kind).to_owned(),
            names::number(ask),
            names::full_name(ask),
            count(ask.count),
            bar(ask.count, most, BAR),
            places.remove(&(ask.kind, ask.index)).unwrap_or_default(),
            match driver(ask) {
                Some(_) => "time-driven",
                None if names::is_own(ask) => "the profiler's own",
                None => "",
            }
            .to_owned(),
        ]);
    }
    let rest = &asks[shown..];
    if !rest.is_empty() {
        let sum: u128 = rest.iter().map(|a| u128::from(a.count)).sum();
        let sum = count(u64::try_from(sum).unwrap_or(u64::MAX));
        let rest = count(rest.len() as u64);
        table.line(&format!("… and {rest} more, {sum} accesses together"));
    }
    if dropped > 0 {
        table.line(&lost);
    }
    if profile.total.own() > 0 {
        table.line("accesses of the profiler's own are among them");
    }
    table.render()
}

/// For each thing asked for, the step that adds the most: "workload ×150".
fn busiest(profile: &Profile) -> BTreeMap<(AskKind, u64), String> {
    let mut most = BTreeMap::<(AskKind, u64), (u64, usize)>::new();
    let steps = profile.steps();
    let none = Accounts::default();
    let mut before = &none;
    for (place, step) in steps.iter().enumerate() {
        for ask in step.accounts.new_asks(before) {
            let entry = most.entry((ask.kind, ask.index)).or_default();
            if ask.count > entry.0 {
                *entry = (ask.count, place);
            }
        }
        before = step.accounts;
    }
    let text = |(key, (exits, place)): (_, (u64, usize))| {
        let name = step_name(profile, &steps[place]);
        (key, format!("{name} ×{}", count(exits)))
    };
    most.into_iter().map(text).collect()
}

/// As many as fit, most frequent first, those of one device together: "OUT COM1 ×22, …". Without
/// what is the profiler's own for certain.
pub(super) fn mostly(asks: &[Ask], room: usize) -> String {
    let mut sums = BTreeMap::<String, u64>::new();
    for ask in asks.iter().filter(|a| !names::is_own(a)) {
        let sum = sums.entry(names::short(ask)).or_default();
        *sum = sum.saturating_add(ask.count);
    }
    let mut sums: Vec<(String, u64)> = sums.into_iter().collect();
    sums.sort_by_key(|s| Reverse(s.1));
    let mut out = String::new();
    for (what, exits) in sums {
        let gap = if out.is_empty() { "" } else { ", " };
        let next = format!("{gap}{what} ×{}", count(exits));
        if !out.is_empty() && width(&out) + width(&next) > room {
            break;
        }
        out += &next;
    }
    fit(&out, room.min(WIDTH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixtures;

    #[test]
    fn the_most_frequent_stand_first_and_the_rest_is_summed() {
        let text = table(&fixtures::histograms());
        let rows: Vec<&str> = text.lines().collect();
        assert!(
            rows[2].starts_with("OUT        0xE1C       Exitvisor: scratch"),
            "{text}"
        );
        assert!(
            rows[2].contains("150") && rows[2].contains("workload ×150"),
            "{text}"
        );
        assert_eq!(rows.len(), 2 + MOST + 3, "{text}");
        assert!(rows[2 + MOST].starts_with("… and "), "{text}");
        assert!(rows[3 + MOST].starts_with("3 more accesses found no room"));
        assert_eq!(text.matches("time-driven").count(), 5, "{text}");
    }

    #[test]
    fn registers_of_a_device_are_one_item() {
        let ask = |kind, index, count| Ask { kind, index, count };
        let asks = [
            ask(AskKind::PortOut, 0x3F8, 20),
            ask(AskKind::PortIn, 0x3FD, 21),
            ask(AskKind::PortOut, 0x3F9, 2),
            ask(AskKind::Cpuid, 0xD, 1),
            ask(AskKind::PortOut, 0xE00, 99),
        ];
        assert_eq!(mostly(&asks, 80), "OUT COM1 ×22, IN COM1 ×21, CPUID 0xD ×1");
        assert_eq!(mostly(&asks, 20), "OUT COM1 ×22");
        assert_eq!(mostly(&[], 20), "");
    }

    #[test]
    fn nothing_asked_is_no_table() {
        assert_eq!(table(&fixtures::software()), "");
    }
}
