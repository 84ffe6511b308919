//! The passes of a run side by side: the first boot, the reboots, and what one of them costs.

use super::format::{
    Clock, GLUE, WIDTH, count, count_or_none, grouped, signed, signed_percent, width,
};
use super::table::{Side, Table};
use super::text::{mostly, plural};
use crate::profile::passes::Boot;
use crate::profile::runs::Spread;
use crate::profile::{End, EndKind, Profile};
use Side::{Left, Right};

/// Most reboots that are shown one by one; of more, this many of the first and of the last.
const MOST: usize = 12;
const FIRST: usize = 6;
const LAST: usize = 4;

/// The table of passes; nothing if there was one boot alone.
pub(super) fn table(profile: &Profile) -> String {
    if !profile.has_reboots() {
        return String::new();
    }
    let boots = profile.boots();
    // The first boot is a row of its own.
    let left_out = match boots.len() - 1 {
        reboots if reboots > MOST => 1 + FIRST..boots.len() - LAST,
        _ => boots.len()..boots.len(),
    };
    let build = |room: usize| {
        let mut table = Table::new(&[
            ("pass", Left),
            ("start", Right),
            ("time", Right),
            ("exits", Right),
            ("change", Right),
            ("fixed", Right),
            ("cycles", Right),
            ("change", Right),
            ("ended by", Left),
            ("mostly", Left),
        ]);
        let starts = Clock::up_to(boots.iter().map(|b| b.start_nanos).max().unwrap_or(0));
        let times = Clock::up_to(boots.iter().map(|b| b.end.nanos).max().unwrap_or(0));
        for (i, boot) in boots.iter().enumerate() {
            if i == left_out.start {
                table.line(&more(&boots[left_out.clone()]));
            }
            if !left_out.contains(&i) {
                table.row(row(profile, boot, &boots[0], starts, times, room));
            }
        }
        if profile.reboots_dropped > 0 {
            let dropped = plural(profile.reboots_dropped, "reboot", "reboots");
            table.line(&format!("… and {dropped} of which nothing was kept"));
        }
        table
    };
    let least = width("mostly");
    let rest = build(1).width();
    build((WIDTH + least).saturating_sub(rest).max(least)).render()
}

fn row(
    profile: &Profile,
    boot: &Boot<'_>,
    first: &Boot<'_>,
    starts: Clock,
    times: Clock,
    room: usize,
) -> Vec<String> {
    let (exits, cycles) = (boot.total.guest_total(), boot.total.guest_cycles());
    let change = |now: u64, then: u64, shown: String| match now == then {
        _ if boot.number == 0 => String::new(),
        true => "=".to_owned(),
        false => shown,
    };
    let (exits_then, cycles_then) = (first.total.guest_total(), first.total.guest_cycles());
    let more = signed(i128::from(exits) - i128::from(exits_then));
    let grown = (cycles_then > 0).then(|| cycles as f64 / cycles_then as f64 - 1.0);
    vec![
        name(boot.number),
        starts.show(boot.start_nanos),
        times.show(boot.end.nanos),
        count(exits),
        change(exits, exits_then, more),
        super::accounts::fixed_or_none(profile, boot.total),
        count_or_none(cycles),
        change(cycles, cycles_then, signed_percent(grown)),
        ended(boot.end),
        mostly(profile, &boot.ranking(), room),
    ]
}

fn name(number: usize) -> String {
    match number {
        0 => "first boot".to_owned(),
        n => format!("reboot {n}"),
    }
}

/// What stands for the reboots that are left out.
fn more(boots: &[Boot<'_>]) -> String {
    let exits = Spread::of(boots.iter().map(|b| b.total.guest_total()).collect());
    format!(
        "… {} more: {} exits",
        count(boots.len() as u64),
        range(&exits)
    )
}

/// "lowest … highest", or the one figure that all have.
fn range(spread: &Spread) -> String {
    match spread.varies() {
        true => format!("{} … {}", count(spread.min), count(spread.max)),
        false => count(spread.median),
    }
}

/// How a pass ended, in a word or two.
fn ended(end: &End) -> String {
    match end.kind {
        EndKind::Exit => format!("exit {}", end.status),
        EndKind::Crash => "crash".to_owned(),
        EndKind::PowerOff => "power-off".to_owned(),
        EndKind::Milestone => "milestone".to_owned(),
        EndKind::Reset | EndKind::ResetLimit => "reset".to_owned(),
        EndKind::TripleFault => "triple fault".to_owned(),
        EndKind::Timeout => "time limit".to_owned(),
        EndKind::Interrupted => "interruption".to_owned(),
        EndKind::KvmError => "KVM error".to_owned(),
        EndKind::Internal => "internal error".to_owned(),
    }
}

/// The answer to "what does a reboot cost?"; none without a reboot.
pub(super) fn cost(profile: &Profile) -> Option<String> {
    let cost = profile.reboot_cost()?;
    let first = profile.total.guest_total();
    let difference = i128::from(cost.exits.median) - i128::from(first);
    let against = match difference {
        0 => "as many as the first boot".to_owned(),
        _ => format!(
            "{} against the first boot's {}",
            signed(difference),
            grouped(first)
        ),
    };
    let glued = |text: String| text.replace(' ', &GLUE.to_string());
    let reboots = plural(cost.reboots as u64, "reboot", "reboots");
    let of = match cost.exits.varies() {
        true => format!("median of {reboots}: {}", glued(range(&cost.exits))),
        false if cost.reboots == 1 => "one reboot".to_owned(),
        false => format!("each of {reboots}"),
    };
    let time = |spread: &Spread| glued(Clock::up_to(spread.max).show(spread.median));
    Some(format!(
        "{} exits, {against} ({of}); {} in the guest, and {} before it to build the machine anew",
        grouped(cost.exits.median),
        time(&cost.nanos),
        time(&cost.between),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixtures;

    #[test]
    fn one_boot_has_no_table() {
        assert_eq!(table(&fixtures::software()), "");
        assert_eq!(cost(&fixtures::software()), None);
    }

    #[test]
    fn with_the_kernel_ledger() {
        let mut profile = fixtures::ledger();
        let mut pass = fixtures::reboots().reboots.remove(0);
        pass.total = profile.total.clone();
        let cpuid = pass.total.reasons.iter_mut().find(|r| r.reason == 10);
        cpuid.unwrap().exits -= 7;
        pass.total.total -= 7;
        profile.reboots = vec![pass];
        insta::assert_snapshot!(table(&profile));
    }

    #[test]
    fn a_storm() {
        let mut profile = fixtures::reboots();
        let pass = profile.reboots[0].clone();
        profile.reboots = (1..=500)
            .map(|n| {
                let mut pass = pass.clone();
                pass.start_nanos *= n;
                pass.total.residual += n / 100;
                pass.total.total += n / 100;
                pass
            })
            .collect();
        profile.reboots_dropped = 1_200;
        let text = format!("{}\n{}", table(&profile), cost(&profile).unwrap());
        insta::assert_snapshot!(text);
    }
}
