//! The summary in one line, for the end of a run that nobody asked a report of.

use super::format::{clean, count};
use crate::profile::Profile;

/// What the boot cost, in one line.
pub fn render(profile: &Profile) -> String {
    let total = &profile.total;
    let most = profile
        .frequencies()
        .first()
        .map_or_else(String::new, |part| {
            format!(", mostly {}", super::text::times(profile, part))
        });
    let boot = match profile.all_reboots() {
        0 => String::new(),
        1 => " in the first of 2 boots".to_owned(),
        n => format!(" in the first of {} boots", count(n.saturating_add(1))),
    };
    let fixed = profile.fixed(total).map_or_else(String::new, |fixed| {
        format!(" (fixed {})", count(fixed.count()))
    });
    clean(&format!(
        "{}: {} exits{fixed}{boot}{most}; {} of the profiler's own. `exitvisor profile` shows where.",
        profile.end.detail,
        count(total.guest_total()),
        count(total.own()),
    ))
}
