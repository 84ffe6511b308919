//! The profile as CSV (RFC 4180, but lines end in LF): one row per milestone and reason, for
//! spreadsheets and data frames.
//!
//! `pass` is 0 for the first boot and counts the reboots from 1 on; times count from its start.
//! `exits` and `cycles` are the guest's, cumulative; `new_*` are what the step added; `own` are
//! the profiler's own exits, contained in neither. Rows without a reason are what no reason shows
//! (`residual`, `other`) and the sum (`total`); `excess` stands where the sources disagree, `fixed`
//! (the total without what time drives) and `failed` (entries, among the exits of their reason)
//! where the kernel ledger served, `emulated: …` where software KVM tells of events, no exits.

use crate::profile::figures::{Delta, EMULATED_EVENTS, Step};
use crate::profile::passes::Boot;
use crate::profile::{Accounts, EventAccount, Profile};
use std::fmt::Write;

const HEAD: &str = "pass,milestone_index,milestone,number,vcpu,time_ns,reason,reason_name,exits,\
                    new_exits,own,cycles,new_cycles,source\n";

/// The profile as CSV.
pub fn render(profile: &Profile) -> String {
    let mut out = HEAD.to_owned();
    profile_rows(&mut out, profile, "");
    out
}

/// Several profiles as one CSV, in long form: the same rows, with the number of the run, from 1 on, in front.
pub fn several(profiles: &[Profile]) -> String {
    let mut out = format!("run,{HEAD}");
    for (run, profile) in (1..).zip(profiles) {
        profile_rows(&mut out, profile, &format!("{run},"));
    }
    out
}

/// All rows of a profile, with this in front of each.
fn profile_rows(out: &mut String, profile: &Profile, front: &str) {
    let none = Default::default();
    for boot in profile.boots() {
        let mut before = &none;
        for step in boot.steps() {
            rows(out, profile, (front, &boot), &step, before);
            before = step.accounts;
        }
    }
}

fn rows(
    out: &mut String,
    profile: &Profile,
    (front, boot): (&str, &Boot<'_>),
    step: &Step<'_>,
    before: &Accounts,
) {
    let pass = boot.number;
    let Step {
        index,
        name,
        milestone,
        accounts,
        delta,
    } = step;
    let place = match milestone {
        Some(m) => format!(
            "{front}{pass},{index},{},{},{},{}",
            quoted(name),
            m.number,
            m.vcpu,
            m.nanos
        ),
        None => format!(
            "{front}{pass},{index},{},,,{}",
            quoted(name),
            boot.end.nanos
        ),
    };
    for r in &accounts.reasons {
        let new = delta.reasons.iter().find(|d| d.reason == r.reason);
        let (new, new_cycles) = new.map_or((0, 0), |d| (d.exits, d.cycles));
        let (exits, cycles, own) = (r.guest_exits(), r.guest_cycles(), r.own);
        let (number, source) = (r.reason, quoted(&r.source));
        let name = quoted(profile.reason_name(number));
        let _ = writeln!(
            out,
            "{place},{number},{name},{exits},{new},{own},{cycles},{new_cycles},{source}"
        );
    }
    let Delta {
        exits: new,
        cycles: new_cycles,
        residual: new_residual,
        other: new_other,
        ..
    } = delta;
    let (residual, other) = (accounts.residual, accounts.other);
    let _ = writeln!(out, "{place},,residual,{residual},{new_residual},0,,,");
    let _ = writeln!(out, "{place},,other,{other},{new_other},0,,,");
    if accounts.excess > 0 {
        let (excess, was) = (accounts.excess, before.excess);
        let new_excess = excess.saturating_sub(was);
        let _ = writeln!(out, "{place},,excess,{excess},{new_excess},0,,,");
    }
    if let Some(fixed) = profile.fixed(accounts).map(|f| f.count()) {
        let then = profile.fixed(before).map_or(0, |f| f.count());
        let new_fixed = fixed.saturating_sub(then);
        let _ = writeln!(out, "{place},,fixed,{fixed},{new_fixed},0,,,");
        let (failed, new_failed) = (
            accounts.failed,
            accounts.failed.saturating_sub(before.failed),
        );
        let _ = writeln!(out, "{place},,failed,{failed},{new_failed},0,,,");
    }
    let new_events = accounts.new_events(before);
    for event in &accounts.emulated {
        let new = new_events.iter().find(|e| e.reason == event.reason);
        let (events, own) = (event.guest_events(), event.own);
        let new = new.map_or(0, EventAccount::guest_events);
        let number = event.reason;
        let name = quoted(&format!(
            "emulated: {number} {}",
            profile.reason_name(number)
        ));
        let _ = writeln!(
            out,
            "{place},,{name},{events},{new},{own},,,{EMULATED_EVENTS}"
        );
    }
    let (exits, own, cycles) = (
        accounts.guest_total(),
        accounts.own(),
        accounts.guest_cycles(),
    );
    let _ = writeln!(
        out,
        "{place},,total,{exits},{new},{own},{cycles},{new_cycles},"
    );
}

/// A field with text that may come from a guest: quoted where needed, never a formula, and
/// without control characters that a terminal would act on.
pub(super) fn quoted(text: &str) -> String {
    let mut field = String::with_capacity(text.len() + 2);
    if text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        field.push('\'');
    }
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => field.push(c),
            c if c.is_control() => field.extend(c.escape_default()),
            c => field.push(c),
        }
    }
    if field.contains([',', '"', '\n', '\r', '\t', ';', '\'']) {
        return format!("\"{}\"", field.replace('"', "\"\""));
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixtures;
    use proptest::prelude::*;

    /// A reader as RFC 4180 has it.
    fn read(text: &str) -> Vec<Vec<String>> {
        let mut rows = vec![vec![String::new()]];
        let mut inside = false;
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            let row = rows.last_mut().unwrap();
            match c {
                '"' if inside && chars.peek() == Some(&'"') => {
                    chars.next();
                    row.last_mut().unwrap().push('"');
                }
                '"' => inside = !inside,
                ',' if !inside => row.push(String::new()),
                '\n' if !inside => rows.push(vec![String::new()]),
                c => row.last_mut().unwrap().push(c),
            }
        }
        rows.pop();
        rows
    }

    #[test]
    fn table() {
        let mut profile = fixtures::software();
        profile.milestones.truncate(4);
        profile.milestones[2].name = "=1+\"1\"\nx".to_owned();
        insta::assert_snapshot!(render(&profile));
    }

    #[test]
    fn with_the_kernel_ledger() {
        let mut profile = fixtures::histograms();
        profile.milestones.drain(3..);
        insta::assert_snapshot!(render(&profile));
    }

    #[test]
    fn with_emulated_events() {
        let mut profile = fixtures::emulated();
        profile.milestones.drain(2..);
        insta::assert_snapshot!(render(&profile));
    }

    #[test]
    fn every_pass_has_its_rows() {
        let mut profile = fixtures::reboots();
        profile.milestones.truncate(1);
        for pass in &mut profile.reboots {
            pass.milestones.truncate(1);
        }
        let rows = read(&render(&profile));
        let total = |r: &&Vec<String>| r[7] == "total" && r[2] == "(end)";
        let totals: Vec<_> = rows.iter().filter(total).collect();
        let shown: Vec<_> = totals
            .iter()
            .map(|r| format!("{} {}", r[0], r[8]))
            .collect();
        assert_eq!(shown, ["0 895", "1 886", "2 895", "3 899"]);
    }

    #[test]
    fn sums_agree() {
        for profile in [
            fixtures::software(),
            fixtures::ledger(),
            fixtures::cut_short(),
            fixtures::histograms(),
            fixtures::intel(),
            fixtures::emulated(),
        ] {
            let rows = read(&render(&profile));
            let last = rows.last().unwrap()[1].clone();
            let number = |row: &[String], i: usize| row[i].parse::<u64>().unwrap_or(0);
            // What is no part of the sum says so by its name.
            let beside =
                |name: &str| ["fixed", "failed"].contains(&name) || name.starts_with("emulated: ");
            let (totals, parts): (Vec<_>, Vec<_>) = rows[1..]
                .iter()
                .filter(|r| !beside(&r[7]))
                .partition(|r| r[6].is_empty() && r[7] == "total");
            let total = totals.last().unwrap();
            let at_end = parts.iter().filter(|r| r[1] == last);
            assert_eq!(at_end.map(|r| number(r, 8)).sum::<u64>(), number(total, 8));
            let new = parts.iter().map(|r| number(r, 9)).sum::<u64>();
            assert_eq!(new, profile.total.guest_total());
        }
    }

    proptest! {
        #[test]
        fn every_row_has_every_column(profile in fixtures::any_profile()) {
            let rows = read(&render(&profile));
            prop_assert!(rows.iter().all(|r| r.len() == 14));
        }

        #[test]
        fn no_field_is_a_formula(text in "[=+@\\-\t\r\",a]{0,4}") {
            let field = read(&(quoted(&text) + "\n")).remove(0).remove(0);
            prop_assert!(!field.starts_with(['=', '+', '-', '@', '\t', '\r']), "{field:?}");
            prop_assert!(field == text || field[1..] == text);
        }
    }
}
