//! Nested against shadow paging, for people and for programs: both side by side, and a sweep over
//! the pages of the workload `ptes` drawn as a curve.

use super::format::{
    NONE, WIDTH, bar, bytes, clean, count, count_or_none, fit, labelled, signed, width,
};
use super::table::{Side, Table};
use super::{csv, json};
use crate::profile::compare::Trend;
use crate::profile::figures::END;
use crate::profile::paging::{Pair, Pairing, Sides, StepPair};
use exit_abi::milestone;
use std::fmt::Write;

const INDENT: usize = 8;
/// Columns of each half of a picture.
const HALF: usize = 12;
/// Reasons that only shadow paging has (or has more of), and those that only nested paging has.
const SHADOWS: [(u8, &str); 3] = [(0, "0 exc."), (14, "14 INVLPG"), (28, "28 CR")];
const NESTEDS: [(u8, &str); 2] = [(48, "48 EPT v."), (49, "49 EPT m.")];

/// All as JSON.
pub fn json(pairing: &Pairing) -> String {
    json::pretty(pairing)
}

/// All as a page of text.
pub fn text(pairing: &Pairing) -> String {
    let mut out = head(pairing);
    let pairs = pairing.pairs.as_slice();
    if pairs.len() > 1 {
        out.push('\n');
        out += &sweep(pairs);
        out += "\nThe largest of them\n";
    }
    if let Some(pair) = pairs.last() {
        out.push('\n');
        out += &pair_text(pair);
    }
    out
}

fn head(pairing: &Pairing) -> String {
    let host = format!(
        "{}, Linux {}, {}",
        clean(&pairing.kvm),
        clean(&pairing.kernel),
        clean(&pairing.cpu)
    );
    let cpus = match pairing.cpus {
        1 => "1 vCPU".to_owned(),
        n => format!("{n} vCPUs"),
    };
    labelled("host", INDENT, &host)
        + &labelled(
            "guest",
            INDENT,
            &format!("{cpus}, {}", bytes(pairing.memory)),
        )
}

/// How many times as much: "×10.0"; nothing where one of the sides is nothing.
fn times(sides: Sides) -> String {
    match sides.ratio().filter(|_| sides.shadow > 0) {
        None => NONE.to_owned(),
        Some(ratio) => format!("×{}", decimal(ratio)),
    }
}

/// Three digits, or as many as it takes.
fn decimal(number: f64) -> String {
    match number {
        n if n < 9.995 => format!("{n:.2}"),
        n if n < 99.95 => format!("{n:.1}"),
        n if n < 1e15 => count(n as u64),
        n => format!("{n:.1e}"),
    }
}

fn pair_text(pair: &Pair) -> String {
    let mut out = String::new();
    out += &labelled("nested", INDENT, &clean(&pair.nested));
    out += &labelled("shadow", INDENT, &clean(&pair.shadow));
    if !pair.cmdline.is_empty() {
        out += &labelled("cmdline", INDENT, &clean(&pair.cmdline));
    }
    out.push('\n');
    out += &labelled("", 0, &verdict(pair));
    out.push('\n');
    out += &reasons(pair);
    out.push('\n');
    out += &steps(pair);
    out
}

fn verdict(pair: &Pair) -> String {
    let mut what = format!(
        "With shadow paging the boot takes {} exits, with nested paging {} ({}",
        count(pair.total.shadow),
        count(pair.total.nested),
        signed(pair.total.difference()),
    );
    if pair.total.ratio().is_some() {
        let _ = write!(what, ", {}", times(pair.total));
    }
    what += ").";
    if let Some(cycles) = pair.cycles {
        let _ = write!(
            what,
            " Cycles in exits: {} instead of {}.",
            count(cycles.shadow),
            count(cycles.nested)
        );
    }
    for (trends, says) in [
        (&[Trend::Grew, Trend::Appeared][..], "Grow:"),
        (&[Trend::Vanished], "Vanish:"),
    ] {
        let reasons = pair.reasons.iter();
        let of = reasons.filter(|r| trends.contains(&r.trend) && !r.time_driven);
        let numbers: Vec<String> = of.map(|r| r.reason.to_string()).collect();
        if !numbers.is_empty() {
            let _ = write!(what, " {says} {}.", numbers.join(", "));
        }
    }
    what
}

fn mark(trend: Trend) -> &'static str {
    match trend {
        Trend::Same => "=",
        Trend::Grew => "▲",
        Trend::Shrank => "▼",
        Trend::Appeared => "▲ new",
        Trend::Vanished => "▼ gone",
    }
}

/// A bar to the left and one to the right of an axis, on one scale: nested, and shadow.
fn picture(sides: Sides, most: u64) -> String {
    format!(
        "{}│{}",
        leftward(sides.nested, most, HALF),
        bar(sides.shadow, most, HALF)
    )
}

/// A bar that grows to the left, in half blocks. Anything above zero shows.
fn leftward(value: u64, most: u64, room: usize) -> String {
    if value == 0 || most == 0 {
        return " ".repeat(room);
    }
    let full = 2 * room as u128;
    let scaled = (u128::from(value) * full + u128::from(most) / 2) / u128::from(most);
    let halves = scaled.clamp(1, full) as usize;
    let text = "▐".repeat(halves % 2) + &"█".repeat(halves / 2);
    " ".repeat(room - width(&text)) + &text
}

fn reasons(pair: &Pair) -> String {
    use Side::{Left, Right};
    let axis = format!("{:>HALF$}│{}", "nested", "shadow");
    let mut table = Table::new(&[
        ("", Right),
        ("reason", Left),
        ("nested", Right),
        ("shadow", Right),
        ("change", Right),
        ("", Right),
        ("cycles", Right),
        ("shadow", Right),
        ("", Left),
        (&axis, Left),
    ]);
    let most = pair.reasons.iter().map(|r| r.exits.most()).max();
    let most = most.unwrap_or(0);
    let row = |number: String, name: &str, exits: Sides, cycles: Option<Sides>| {
        let cycle = |of: fn(Sides) -> u64| cycles.map_or(String::new(), |c| count_or_none(of(c)));
        vec![
            number,
            name.to_owned(),
            count_or_none(exits.nested),
            count_or_none(exits.shadow),
            signed(exits.difference()),
            times(exits),
            cycle(|c| c.nested),
            cycle(|c| c.shadow),
        ]
    };
    let mut driven = false;
    for r in &pair.reasons {
        let cycles = pair.cycles.map(|_| r.cycles);
        let name = fit(&clean(&r.name), 20) + if r.time_driven { " ~" } else { "" };
        driven |= r.time_driven;
        let mut cells = row(r.reason.to_string(), &name, r.exits, cycles);
        cells.extend([mark(r.trend).to_owned(), picture(r.exits, most)]);
        table.row(cells);
    }
    table.rule();
    table.row(row(String::new(), "total", pair.total, pair.cycles));
    if driven && pair.fixed != pair.total {
        let name = "not time-driven";
        table.row(row(String::new(), name, pair.fixed, None));
    }
    if pair.own != Sides::default() {
        let name = "the profiler's (apart)";
        table.row(row(String::new(), name, pair.own, None));
    }
    let mut out = table.render();
    if driven {
        out += "~ time drives these: a run that takes longer has more of them\n";
    }
    out
}

fn steps(pair: &Pair) -> String {
    use Side::{Left, Right};
    let mut head = vec![("milestone", Left), ("nested", Right)];
    head.extend(NESTEDS.map(|(_, name)| (name, Right)));
    head.push(("shadow", Right));
    head.extend(SHADOWS.map(|(_, name)| (name, Right)));
    let axis = format!("{:>HALF$}│{}", "nested", "shadow");
    head.push((&axis, Left));
    let mut table = Table::new(&head);
    let most = pair.steps.iter().map(|s| s.exits.most()).max().unwrap_or(0);
    for step in &pair.steps {
        let of = |reason| step.reasons.get(&reason).copied().unwrap_or_default();
        let mut cells = vec![step_name(step), count_or_none(step.exits.nested)];
        cells.extend(NESTEDS.map(|(reason, _)| count_or_none(of(reason).nested)));
        cells.push(count_or_none(step.exits.shadow));
        cells.extend(SHADOWS.map(|(reason, _)| count_or_none(of(reason).shadow)));
        cells.push(picture(step.exits, most));
        table.row(cells);
    }
    "What each step added; of it, by reason\n".to_owned() + &table.render()
}

fn step_name(step: &StepPair) -> String {
    let name = clean(&step.name);
    match step.nth {
        0 => fit(&name, 24),
        nth => {
            let time = format!(" ({})", nth + 1);
            fit(&name, 24 - width(&time).min(23)) + &time
        }
    }
}

/// Whether a step is that of the workloads.
fn is_work(step: &StepPair) -> bool {
    Some(step.name.as_str()) == milestone::name(milestone::WORKLOAD)
}

/// What a pair is judged by in a sweep: the workload's exits, or where there is no such step, the
/// boot's.
fn swept(pair: &Pair) -> Sides {
    pair.work.unwrap_or(pair.fixed)
}

fn sweep(pairs: &[Pair]) -> String {
    use Side::Right;
    let mut table = Table::new(&[
        ("pages", Right),
        ("nested", Right),
        ("shadow", Right),
        (SHADOWS[0].1, Right),
        (SHADOWS[1].1, Right),
        (SHADOWS[2].1, Right),
        ("per page", Right),
        ("each further", Right),
        ("ratio", Right),
        ("whole boot: nested", Right),
        ("shadow", Right),
    ]);
    let mut before: Option<&Pair> = None;
    for pair in pairs {
        let sides = swept(pair);
        let pages = pair.pages.unwrap_or(0);
        let per = |exits: u64| match pages {
            0 => NONE.to_owned(),
            n => decimal(exits as f64 / n as f64),
        };
        let further = before.and_then(|before| {
            let more = pages.checked_sub(before.pages?).filter(|&n| n > 0)?;
            let grown = i128::from(sides.shadow) - i128::from(swept(before).shadow);
            (grown >= 0).then(|| decimal(grown as f64 / more as f64))
        });
        let of = |reason| {
            let work = pair.steps.iter().find(|step| is_work(step));
            let exits = work.and_then(|step| step.reasons.get(&reason));
            count_or_none(exits.map_or(0, |exits| exits.shadow))
        };
        let mut cells = vec![count(pages), count(sides.nested), count(sides.shadow)];
        cells.extend(SHADOWS.map(|(reason, _)| of(reason)));
        cells.extend([
            per(sides.shadow),
            further.unwrap_or_else(|| NONE.to_owned()),
            times(sides),
            count(pair.total.nested),
            count(pair.total.shadow),
        ]);
        table.row(cells);
        before = Some(pair);
    }
    let what =
        "Page-table work (workload=ptes:N): exits of that step, without those that time drives";
    let points: Vec<(u64, Sides)> = pairs
        .iter()
        .map(|pair| (pair.pages.unwrap_or(0), swept(pair)))
        .collect();
    format!("{what}\n\n{}\n{}", table.render(), curve(&points))
}

/// The decimal logarithm. By hand, since nothing else here needs the mathematical library, which would take
/// a third of a MiB in every run.
fn decimal_log(n: u64) -> f64 {
    use std::f64::consts::{LN_2, LN_10};
    let twos = n.max(1).ilog2();
    let rest = n.max(1) as f64 / (1_u64 << twos) as f64;
    // ln x = 2 artanh y, where y is at most a third.
    let y = (rest - 1.0) / (rest + 1.0);
    let (mut power, mut sum) = (y, 0.0);
    for k in 0..20 {
        sum += power / f64::from(2 * k + 1);
        power *= y * y;
    }
    (f64::from(twos) * LN_2 + 2.0 * sum) / LN_10
}

/// Columns and most rows of the drawing.
const COLUMNS: usize = 88;
const ROWS: usize = 18;

/// Both sides as points over the pages, both scales logarithmic; what is nothing lies on the
/// axis.
fn curve(points: &[(u64, Sides)]) -> String {
    let most = points.iter().map(|(_, s)| s.most()).max().unwrap_or(0);
    let decades = most.max(1).ilog10() as usize + 1;
    let per_decade = (ROWS / decades).clamp(1, 5);
    let rows = decades * per_decade;
    let log = |n: u64| decimal_log(n.max(1));
    let pages = points.iter().map(|&(pages, _)| pages);
    let (first, last) = (pages.clone().min().unwrap_or(1), pages.max().unwrap_or(1));
    let (left, right) = (log(first), log(last));
    let span = if right > left { right - left } else { 1.0 };
    // What lies in the middle between two places goes to the further one, whatever the last bit says.
    let place = |at: f64| (at + 1e-9).round() as usize;
    let column = |pages| place((log(pages) - left) / span * (COLUMNS - 1) as f64);
    let row = |exits: u64| match exits {
        0 => 0,
        n => 1 + place(log(n) * per_decade as f64),
    };
    let mut grid = vec![vec![' '; COLUMNS]; rows + 2];
    let mut draw = |pages, exits, sign: char| {
        let place = grid
            .get_mut(row(exits))
            .and_then(|r| r.get_mut(column(pages)));
        if let Some(place) = place {
            *place = if *place == ' ' { sign } else { '◉' };
        }
    };
    for &(pages, sides) in points {
        draw(pages, sides.nested, '○');
        draw(pages, sides.shadow, '●');
    }
    let mut out =
        String::from("exits (both scales are logarithmic)   ● shadow   ○ nested   ◉ both\n");
    for (height, cells) in grid.iter().enumerate().rev() {
        let label = match height {
            0 => "0".to_owned(),
            n if (n - 1) % per_decade == 0 => {
                count(10_u64.saturating_pow(((n - 1) / per_decade) as u32))
            }
            _ => String::new(),
        };
        let tick = if label.is_empty() { '│' } else { '┤' };
        let cells: String = cells.iter().collect();
        let line = format!("{label:>12} {tick}{cells}");
        out += line.trim_end();
        out.push('\n');
    }
    out += &axis(points, column);
    out
}

/// The axis of pages, as many numbers on it as there is room for.
fn axis(points: &[(u64, Sides)], column: impl Fn(u64) -> usize) -> String {
    let mut ticks = vec!['─'; COLUMNS];
    let mut labels = String::new();
    for &(pages, _) in points {
        let at = column(pages);
        if let Some(tick) = ticks.get_mut(at) {
            *tick = '┬';
        }
        let label = count(pages);
        let start = at.saturating_sub(width(&label) / 2);
        let used = width(&labels);
        if used == 0 || start > used {
            labels += &" ".repeat(start.saturating_sub(used));
            labels += &label;
        }
    }
    let ticks: String = ticks.iter().collect();
    let line = format!("{:>12}  {labels}", "pages");
    format!("{:>12} └{ticks}\n{}\n", "", fit(&line, WIDTH))
}

const CSV_HEAD: &str =
    "pages,step,reason,name,nested,shadow,nested_cycles,shadow_cycles,time_driven\n";

/// All as CSV (as the profile's): a row per pair and reason for the boot as a whole (no step), and for
/// each step one per reason and its sum (`total`).
pub fn csv(pairing: &Pairing) -> String {
    let mut out = CSV_HEAD.to_owned();
    for pair in &pairing.pairs {
        let pages = pair.pages.map_or(String::new(), |n| n.to_string());
        let mut row = |step: &str, reason: String, name: &str, exits: Sides, rest: &str| {
            let (step, name) = (csv::quoted(step), csv::quoted(name));
            let Sides { nested, shadow } = exits;
            let _ = writeln!(
                out,
                "{pages},{step},{reason},{name},{nested},{shadow},{rest}"
            );
        };
        for r in &pair.reasons {
            let cycles = match pair.cycles {
                Some(_) => format!("{},{}", r.cycles.nested, r.cycles.shadow),
                None => ",".to_owned(),
            };
            let driven = u8::from(r.time_driven);
            let rest = format!("{cycles},{driven}");
            row("", r.reason.to_string(), &r.name, r.exits, &rest);
        }
        let cycles = match pair.cycles {
            Some(cycles) => format!("{},{},", cycles.nested, cycles.shadow),
            None => ",,".to_owned(),
        };
        row("", String::new(), "total", pair.total, &cycles);
        row("", String::new(), "fixed", pair.fixed, ",,");
        row("", String::new(), "own", pair.own, ",,");
        for step in &pair.steps {
            let name = match step.name.as_str() {
                END => END.to_owned(),
                name if step.nth == 0 => name.to_owned(),
                name => format!("{name} ({})", step.nth + 1),
            };
            for (reason, &exits) in &step.reasons {
                let found = pair.reasons.iter().find(|r| r.reason == *reason);
                let title = found.map_or("", |r| &r.name);
                let driven = found.map_or("", |r| if r.time_driven { "1" } else { "0" });
                let rest = format!(",,{driven}");
                row(&name, reason.to_string(), title, exits, &rest);
            }
            row(&name, String::new(), "total", step.exits, ",,");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Profile, fixtures};

    fn paired(profiles: Vec<Profile>) -> Pairing {
        let named: Vec<(String, Profile)> = profiles
            .into_iter()
            .enumerate()
            .map(|(i, profile)| (format!("boot-{i}.json"), profile))
            .collect();
        Pairing::of(&named).unwrap()
    }

    /// A sweep: the work of the fixture, as if it grew by so much.
    fn swept() -> Pairing {
        let mut pairing = paired(fixtures::paging().into());
        let pair = pairing.pairs[0].clone();
        for (pages, factor) in [(256, 4), (1024, 16)] {
            let mut larger = pair.clone();
            larger.pages = Some(pages);
            larger.work = larger.work.map(|work| Sides {
                nested: 0,
                shadow: work.shadow * factor,
            });
            pairing.pairs.push(larger);
        }
        pairing
    }

    #[test]
    fn logarithms() {
        for n in [1, 2, 7, 10, 999, 1000, 123_456_789, u64::MAX] {
            let off = decimal_log(n) - (n as f64).log10();
            assert!(off.abs() < 1e-12, "{n}: {off}");
        }
    }

    #[test]
    fn page() {
        let page = text(&paired(fixtures::paging().into()));
        assert!(page.lines().all(|line| width(line) <= WIDTH), "{page}");
        insta::assert_snapshot!(page);
    }

    #[test]
    fn sweep_page() {
        let page = sweep(&swept().pairs);
        assert!(page.lines().all(|line| width(line) <= WIDTH), "{page}");
        insta::assert_snapshot!(page);
    }

    #[test]
    fn curves_of_extremes() {
        for points in [
            &[][..],
            &[(0, 0, 0)],
            &[(1, u64::MAX, u64::MAX)],
            &[(1, 0, u64::MAX), (u64::MAX, u64::MAX, 1)],
            &[(5, 1, 1), (5, 2, 2)],
        ] {
            let points: Vec<(u64, Sides)> = points
                .iter()
                .map(|&(pages, nested, shadow)| (pages, Sides { nested, shadow }))
                .collect();
            let drawn = curve(&points);
            assert!(drawn.lines().all(|line| width(line) <= WIDTH), "{drawn}");
        }
    }

    #[test]
    fn for_programs() {
        let pairing = swept();
        let value: serde_json::Value = serde_json::from_str(&json(&pairing)).unwrap();
        assert_eq!(value["schema"], "exitvisor-paging");
        assert_eq!(value["pairs"][0]["pages"], 64);
        assert_eq!(value["pairs"][0]["work"]["shadow"], 603);
        let table = csv(&pairing);
        let columns = CSV_HEAD.matches(',').count();
        for line in table.lines() {
            assert_eq!(line.matches(',').count(), columns, "{line}");
        }
        assert!(
            table.contains("\n64,workload,14,INVLPG,0,256,,,0\n"),
            "{table}"
        );
    }

    #[test]
    fn bars_to_the_left() {
        assert_eq!(leftward(0, 10, 4), "    ");
        assert_eq!(leftward(1, 1_000, 4), "   ▐");
        assert_eq!(leftward(5, 10, 4), "  ██");
        assert_eq!(leftward(u64::MAX, u64::MAX, 4), "████");
    }
}
