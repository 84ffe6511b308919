//! Who caused the exits: for which port, MSR, leaf or page, and from which function of the guest. A
//! table of the whole boot, of one of its steps, or of each.

use super::csv::quoted;
use super::format::{WIDTH, bar, clean, count, fit, percent, si, width};
use super::names;
use super::table::{Side, Table};
use crate::profile::culprits::{By, Culprits, Group, Object, Place, Row};
use crate::profile::figures::share;
use crate::profile::{Ask, AskKind, Profile};
use Side::{Left, Right};
use serde::Serialize;
use std::fmt::Write;
use thiserror::Error;

/// Rows of a table of text when nothing else is said.
const MOST: usize = 16;
/// Width of a bar.
const BAR: usize = 10;
/// Widest name of what exits were for, and of a function.
const NAME: usize = 28;
/// What stands for all steps.
const EACH: &str = "each";

/// What is to be shown.
#[derive(Clone, Debug)]
pub struct View {
    /// By what.
    pub by: By,
    /// Most rows of a table: of text 16, else all.
    pub top: Option<usize>,
    /// Which step, by the milestone that ends it; `each`: all of them; the whole boot if not said.
    pub at: Option<String>,
}

/// There is no such step.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("no step of this boot ends at {wanted:?}: give --at {EACH}, or one of {names}")]
pub struct NoSuchStep {
    wanted: String,
    names: String,
}

/// A part of the boot: its name, `None` for the whole, and who caused its exits.
type Part<'a> = (Option<String>, Option<Culprits<'a>>);

fn parts<'a>(profile: &'a Profile, view: &View) -> Result<Vec<Part<'a>>, NoSuchStep> {
    let steps = || profile.culprits_by_step().into_iter();
    let named = |(name, culprits)| (Some(name), culprits);
    match view.at.as_deref() {
        None => Ok(vec![(None, profile.culprits())]),
        Some(EACH) => Ok(steps().map(named).collect()),
        Some(wanted) => {
            let found: Vec<Part<'_>> = steps().filter(|(n, _)| n == wanted).map(named).collect();
            if found.is_empty() {
                let names: Vec<String> = steps().map(|(name, _)| clean(&name)).collect();
                return Err(NoSuchStep {
                    wanted: wanted.to_owned(),
                    names: fit(&names.join(", "), 4 * WIDTH),
                });
            }
            Ok(found)
        }
    }
}

/// As text, at most 120 columns wide.
pub fn text(profile: &Profile, view: &View) -> Result<String, NoSuchStep> {
    let top = view.top.unwrap_or(MOST);
    let mut sections = Vec::new();
    for (name, culprits) in parts(profile, view)? {
        let title = match &name {
            None => "the boot".to_owned(),
            Some(name) => format!("on the way to {}", fit(&clean(name), NAME)),
        };
        let Some(culprits) = culprits else {
            let why = "not known: it takes the kernel ledger, and a profile of version 4 or later";
            sections.push(fit(&format!("{title}: {why}"), WIDTH) + "\n");
            continue;
        };
        let all = culprits.total();
        let tables: Vec<String> = match view.by {
            By::Symbol => vec![by_place(profile, &culprits, top)],
            by => {
                let groups = culprits.groups(by);
                groups.iter().map(|g| by_object(profile, g, top)).collect()
            }
        };
        let tables: Vec<String> = tables.into_iter().filter(|t| !t.is_empty()).collect();
        // Of many steps, those in which there is nothing to see are left out.
        if tables.is_empty() && view.at.as_deref() == Some(EACH) {
            continue;
        }
        let what = if is_emulated(profile) {
            "events"
        } else {
            "exits"
        };
        let by = view.by.name();
        let none = if tables.is_empty() {
            "none of them\n"
        } else {
            ""
        };
        let head = format!("{title}: {} {what}, by {by}\n", count(all));
        sections.push(format!("{head}\n{none}{}", tables.join("\n")));
    }
    if sections.is_empty() {
        return Ok(format!(
            "nothing to show by {} in any step\n",
            view.by.name()
        ));
    }
    Ok(sections.join("\n"))
}

fn is_emulated(profile: &Profile) -> bool {
    !profile.total.emulated.is_empty()
}

fn reason_name(profile: &Profile, reason: Option<u8>) -> String {
    match reason {
        Some(number) => format!("{number} {}", clean(profile.reason_name(number))),
        None => "codes without a reason".to_owned(),
    }
}

fn place(place: &Place) -> String {
    match place {
        Place::Function(name) => clean(name),
        Place::Address(address) => format!("{address:#x}"),
        Place::Unknown => String::new(),
    }
}

/// Where exits came from: the callers of functions that are called for their instruction, and all other
/// functions.
fn origins(row: &Row<Object, Place>) -> Vec<(String, u64)> {
    let mut origins: Vec<(String, u64)> = Vec::new();
    let mut add = |name: String, exits: u64| match origins.iter_mut().find(|(n, _)| *n == name) {
        Some((_, sum)) => *sum = sum.saturating_add(exits),
        None => origins.push((name, exits)),
    };
    for (from, exits) in row.of.iter().filter(|(p, _)| *p != Place::Unknown) {
        let from = place(from);
        let mut rest = *exits;
        for caller in &row.callers {
            if let (Some(function), Some(via)) = (caller.function(), &caller.via)
                && clean(via) == from
            {
                let name = match row.of.len() {
                    1 => format!("{} via {from}", clean(function)),
                    _ => clean(function),
                };
                add(name, caller.count);
                rest = rest.saturating_sub(caller.count);
            }
        }
        if rest > 0 {
            add(from, rest);
        }
    }
    origins.sort_by_key(|(_, exits)| std::cmp::Reverse(*exits));
    origins
}

/// In running text: "WRMSR IA32_TSC_DEADLINE", "HLT".
fn object(profile: &Profile, object: &Object) -> String {
    match object.ask(1) {
        Some(ask) => {
            let name = names::full_name(&ask);
            let what = if name.is_empty() || ask.kind == AskKind::Cpuid {
                names::number(&ask)
            } else {
                name
            };
            format!("{} {what}", names::verb(ask.kind))
        }
        None => match object.reason {
            Some(number) => clean(profile.reason_name(number)),
            None => "another code".to_owned(),
        },
    }
}

/// "a ×3, b ×2, 7 more": as many as fit. One that is all there is stands alone.
fn mostly(of: &[(String, u64)], room: usize) -> String {
    if let [(only, _)] = of {
        return fit(only, room);
    }
    let mut out = String::new();
    for (n, (what, exits)) in of.iter().enumerate() {
        let gap = if n == 0 { "" } else { ", " };
        let next = format!("{gap}{what} ×{}", count(*exits));
        let rest = of.len() - n;
        if n > 0 && width(&out) + width(&next) + 10 > room {
            let _ = write!(out, ", {rest} more");
            break;
        }
        out += &next;
    }
    fit(&out, room)
}

/// One reason's exits by what they were for.
fn by_object(profile: &Profile, group: &Group, top: usize) -> String {
    let most = group.rows.first().map_or(0, |row| row.tally.exits);
    let shown = group.rows.iter().take(top);
    let build = |room: usize| {
        let mut table = Table::new(&[
            ("exits", Right),
            ("", Left),
            ("", Right),
            ("for", Left),
            ("", Left),
            ("", Left),
            ("cycles", Right),
            ("from", Left),
        ]);
        for row in shown.clone() {
            let ask = row.key.ask(row.tally.exits);
            let cell = |of: fn(&Ask) -> String| ask.as_ref().map(of).unwrap_or_default();
            let of = origins(row);
            table.row(vec![
                count(row.tally.exits),
                bar(row.tally.exits, most, BAR),
                percent(share(row.tally.exits, group.exits.into())),
                cell(|ask| names::verb(ask.kind).to_owned()),
                cell(names::number),
                fit(&cell(names::full_name), NAME),
                cycles(row),
                if room == 0 {
                    String::new()
                } else {
                    mostly(&of, room)
                },
            ]);
        }
        table
    };
    // What is left of a line is for where they came from.
    let room = WIDTH.saturating_sub(build(0).width() + 2).max(24);
    let mut table = build(room);
    let rest = group.rows.get(top..).unwrap_or_default();
    if !rest.is_empty() {
        let sum: u128 = rest.iter().map(|r| u128::from(r.tally.exits)).sum();
        let sum = count(u64::try_from(sum).unwrap_or(u64::MAX));
        let rest = count(rest.len() as u64);
        table.line(&format!("… and {rest} more, {sum} exits together"));
    }
    for (exits, what) in [
        (
            group.no_room,
            "found no room in the table: what they were for is not known",
        ),
        (group.not_told, "were for what KVM does not trace"),
        (group.residual, "are in no table"),
    ] {
        if exits > 0 {
            table.line(&format!("{} {what}", count(exits)));
        }
    }
    let name = reason_name(profile, group.reason);
    format!("{name}: {}\n{}", count(group.exits), table.render())
}

/// Cycles of one exit, on average; nothing where they are not known.
fn cycles<K, D>(row: &Row<K, D>) -> String {
    match row.tally.cycles.checked_div(row.tally.exits) {
        Some(each) if each > 0 => si(each),
        _ => String::new(),
    }
}

/// All exits by function.
fn by_place(profile: &Profile, culprits: &Culprits<'_>, top: usize) -> String {
    let rows = culprits.places();
    let Some(most) = rows.first().map(|row| row.tally.exits) else {
        return String::new();
    };
    let all = culprits.total();
    let mut table = Table::new(&[
        ("exits", Right),
        ("", Left),
        ("", Right),
        ("from", Left),
        ("cycles", Right),
        ("for", Left),
    ]);
    let widest = rows.iter().take(top).map(|r| width(&place(&r.key)));
    let widest = widest.max().unwrap_or(0).min(NAME + 12);
    let room = WIDTH - 42 - widest;
    for row in rows.iter().take(top) {
        let of: Vec<(String, u64)> = row
            .of
            .iter()
            .map(|(o, n)| (object(profile, o), *n))
            .collect();
        table.row(vec![
            count(row.tally.exits),
            bar(row.tally.exits, most, BAR),
            percent(share(row.tally.exits, all.into())),
            fit(&place(&row.key), widest),
            cycles(row),
            mostly(&of, room),
        ]);
    }
    let rest = rows.get(top..).unwrap_or_default();
    if !rest.is_empty() {
        let sum: u128 = rest.iter().map(|r| u128::from(r.tally.exits)).sum();
        let sum = count(u64::try_from(sum).unwrap_or(u64::MAX));
        let rest = count(rest.len() as u64);
        table.line(&format!("… and {rest} more, {sum} exits together"));
    }
    let known = rows
        .iter()
        .fold(0, |sum, r| r.tally.exits.saturating_add(sum));
    let nowhere = all.saturating_sub(known);
    if nowhere > 0 {
        let why = "from nowhere that is kept: time drives them, or there was no room";
        table.line(&format!("{} {why}", count(nowhere)));
    }
    table.render()
}

/// What JSON says of a part of the boot.
#[derive(Serialize)]
struct Shown {
    /// The milestone that ends the step; absent for the whole boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<String>,
    /// Its exits; absent if nothing is known of who caused them.
    #[serde(skip_serializing_if = "Option::is_none")]
    exits: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasons: Option<Vec<Group>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    places: Option<Vec<Row<Place, Object>>>,
}

/// A report in JSON.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    version: u32,
    by: By,
    parts: Vec<Shown>,
}

/// As JSON: the reasons, or for symbols the places.
pub fn json(profile: &Profile, view: &View) -> Result<String, NoSuchStep> {
    let top = view.top.unwrap_or(usize::MAX);
    let parts = parts(profile, view)?;
    let shown = |(step, culprits): Part<'_>| {
        let (mut reasons, mut places) = (None, None);
        if let Some(culprits) = &culprits {
            if view.by == By::Symbol {
                let mut rows = culprits.places();
                rows.truncate(top);
                places = Some(rows);
            } else {
                let mut groups = culprits.groups(view.by);
                groups.iter_mut().for_each(|g| g.rows.truncate(top));
                reasons = Some(groups);
            }
        }
        Shown {
            step,
            exits: culprits.map(|c| c.total()),
            reasons,
            places,
        }
    };
    Ok(super::json::pretty(&Report {
        schema: "exitvisor-culprits",
        version: 1,
        by: view.by,
        parts: parts.into_iter().map(shown).collect(),
    }))
}

/// As CSV: a row per step and culprit, most frequent first.
pub fn csv(profile: &Profile, view: &View) -> Result<String, NoSuchStep> {
    let mut out =
        "step,reason,reason_name,kind,index,name,rip,symbol,caller,called_from,exits,cycles,lost\n"
            .to_owned();
    for (step, culprits) in parts(profile, view)? {
        let Some(culprits) = culprits else { continue };
        let mut rows: Vec<_> = culprits
            .each()
            .filter(|(c, _)| view.by.shows(c.reason))
            .collect();
        rows.sort_by_key(|(_, tally)| std::cmp::Reverse(tally.exits));
        for (culprit, tally) in rows.into_iter().take(view.top.unwrap_or(usize::MAX)) {
            let ask = culprit.object().ask(1);
            let number = culprit.reason.map(|n| n.to_string()).unwrap_or_default();
            let reason = culprit.reason.map_or("", |n| profile.reason_name(n));
            let _ = writeln!(
                out,
                "{},{number},{},{},{},{},{},{},{},{},{},{},{}",
                quoted(step.as_deref().unwrap_or_default()),
                quoted(reason),
                culprit.kind.map(word).unwrap_or_default(),
                ask.as_ref().map(names::number).unwrap_or_default(),
                quoted(&ask.as_ref().map(names::full_name).unwrap_or_default()),
                culprit
                    .rip
                    .map(|rip| format!("{rip:#x}"))
                    .unwrap_or_default(),
                quoted(culprit.symbol.as_deref().unwrap_or_default()),
                culprit
                    .caller
                    .map(|caller| format!("{caller:#x}"))
                    .unwrap_or_default(),
                quoted(culprit.called_from.as_deref().unwrap_or_default()),
                tally.exits,
                tally.cycles,
                culprit.lost.map(word).unwrap_or_default(),
            );
        }
    }
    Ok(out)
}

/// The name that JSON has for it.
fn word(value: impl Serialize) -> String {
    let text = serde_json::to_string(&value).unwrap_or_default();
    text.trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixtures;
    use proptest::prelude::*;

    fn view(by: By, at: Option<&str>) -> View {
        View {
            by,
            top: None,
            at: at.map(str::to_owned),
        }
    }

    #[test]
    fn pages_of_text() {
        let profile = fixtures::culprits();
        for by in By::ALL {
            let text = text(&profile, &view(by, None)).unwrap();
            assert!(text.lines().all(|l| width(l) <= WIDTH), "{text}");
            insta::assert_snapshot!(format!("by_{}", by.name()), text);
        }
    }

    #[test]
    fn one_step_each_step_and_none() {
        let profile = fixtures::culprits();
        let each = text(&profile, &view(By::Port, Some(EACH))).unwrap();
        insta::assert_snapshot!("each_step", each);
        let name = profile.milestones[8].name.as_str();
        let one = text(&profile, &view(By::Port, Some(name))).unwrap();
        assert!(each.contains(&one), "{one}");
        let error = text(&profile, &view(By::Port, Some("x\n"))).unwrap_err();
        let error = error.to_string();
        assert!(
            error.starts_with("no step of this boot ends at \"x\\n\": give --at each, or one of")
        );
        assert!(error.contains(name));
        let none = text(&fixtures::software(), &view(By::Msr, None)).unwrap();
        assert!(none.starts_with("the boot: not known: it takes"));
    }

    #[test]
    fn few_rows_and_the_rest_is_summed() {
        let top = View {
            top: Some(1),
            ..view(By::Msr, None)
        };
        let text = text(&fixtures::culprits(), &top).unwrap();
        assert!(text.contains("… and "), "{text}");
    }

    #[test]
    fn as_json() {
        let profile = fixtures::culprits();
        let top = View {
            top: Some(2),
            ..view(By::Msr, None)
        };
        insta::assert_snapshot!("json_by_msr", json(&profile, &top).unwrap());
        let top = View {
            by: By::Symbol,
            ..top
        };
        insta::assert_snapshot!("json_by_symbol", json(&profile, &top).unwrap());
    }

    #[test]
    fn as_csv() {
        let profile = fixtures::culprits();
        insta::assert_snapshot!("csv_by_page", csv(&profile, &view(By::Page, None)).unwrap());
        let each = csv(&profile, &view(By::Reason, Some(EACH))).unwrap();
        let exits = each.lines().skip(1).map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            fields[fields.len() - 3].parse::<u64>().unwrap()
        });
        assert_eq!(exits.sum::<u64>(), profile.total.total);
    }

    proptest! {
        #[test]
        fn nothing_is_wider_than_a_page(
            profile in fixtures::any_profile(),
            by in proptest::sample::select(&By::ALL),
            top in 0usize..20,
        ) {
            for at in [None, Some(EACH.to_owned())] {
                let view = View { by, top: Some(top), at };
                let text = text(&profile, &view).unwrap();
                prop_assert!(text.lines().all(|l| width(l) <= WIDTH), "{}", text);
                json(&profile, &view).unwrap();
                csv(&profile, &view).unwrap();
            }
        }
    }
}
