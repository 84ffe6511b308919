//! Lines about the accounts as a whole: whether they close, what is fixed, where the time goes,
//! and the processor's codes behind the reasons.

use super::format::{GLUE, clean, count, count_or_none, fit, glued, labelled, percent, shades, si};
use super::text::plural;
use crate::profile::figures::{KVM_RUN, share};
use crate::profile::fixed::Fixed;
use crate::profile::{Accounts, CodeAccount, KvmKind, Profile};

/// What stands for each part of the time.
const KVM: char = '█';
const VMM: char = '▒';
const BLOCKED: char = '░';
/// Width of the bar of all three.
const BAR: usize = 60;

/// Whether the accounts close, in one sentence.
pub(super) fn closing(profile: &Profile) -> String {
    let total = &profile.total;
    let mut parts = vec![format!(
        "{} of {} attributed",
        count(total.attributed()),
        plural(total.total, "exit", "exits")
    )];
    let residual = total.residual.saturating_add(total.own_residual);
    if residual > 0 {
        let mut meaning = profile.residual_meaning().to_owned();
        if profile.has_kernel_ledger() && profile.host.kvm == KvmKind::Intel {
            meaning += " (without unrestricted guest, KVM counts each pass of its emulator while \
                        the guest's state is invalid)";
        }
        parts.push(format!("{} residual: {meaning}", count(residual)));
    } else if profile.counts_everything() {
        parts.push("no residual".to_owned());
    } else {
        parts.push("what the kernel handled was not counted".to_owned());
    }
    if total.other > 0 {
        let codes = total.codes_of(None);
        let what = match codes.is_empty() {
            true => "KVM exits without a basic exit reason".to_owned(),
            false => codes
                .iter()
                .map(|c| glued(&times(c)))
                .collect::<Vec<_>>()
                .join(", "),
        };
        parts.push(format!("{} other: {what}", count(total.other)));
    }
    if total.failed > 0 {
        parts.push(format!(
            "{} (bit 31 of the exit reason; among the exits of their reason)",
            plural(total.failed, "entry failed", "entries failed")
        ));
    }
    if total.own() > 0 {
        parts.push(format!(
            "{} of them the profiler's own (shown apart)",
            count(total.own())
        ));
    }
    if profile.has_kernel_ledger() {
        let reached = total.userspace.saturating_sub(total.own_userspace);
        parts.push(format!(
            "{} of the guest's reached userspace",
            count(reached)
        ));
    }
    parts.join(" · ")
}

/// The fixed count and how it comes about: "1,605 = 2,614 − 1,009 time-driven (…)".
pub(super) fn fixed(profile: &Profile) -> String {
    let Some(fixed) = profile.fixed(&profile.total) else {
        return unknown_fixed(profile).to_owned();
    };
    let mut text = sum(&fixed);
    if fixed.unknown > 0 {
        text += &format!(
            " · {} WRMSR of unknown index count as fixed",
            count(fixed.unknown)
        );
    }
    text
}

/// Why there is no fixed count.
pub(super) fn unknown_fixed(profile: &Profile) -> &'static str {
    match profile.host.kvm {
        KvmKind::Software => "unknown: needs the kernel ledger, and software KVM traces no exits",
        _ => "unknown: needs the kernel ledger",
    }
}

fn sum(fixed: &Fixed) -> String {
    if fixed.driven.is_empty() {
        return format!("{}: none is time-driven", count(fixed.count()));
    }
    let driven = fixed
        .driven
        .iter()
        .map(|(driver, exits)| glued(&format!("{} {}", driver.name(), count(*exits))));
    let driven: Vec<String> = driven.collect();
    format!(
        "{} time-driven ({})",
        glued(&format!(
            "{} = {} − {}",
            count(fixed.count()),
            count(fixed.total),
            count(fixed.time_driven())
        )),
        driven.join(", ")
    )
}

/// Where the time of exits goes, with a bar; nothing if nothing is known.
pub(super) fn time(profile: &Profile, indent: usize) -> String {
    let Some(split) = profile.time_split(&profile.total) else {
        return String::new();
    };
    let own = match split.own {
        0 => String::new(),
        own => format!(" · {} own, apart", glued(&si(own))),
    };
    let blocked = |sign: &str| match split.blocked {
        0 => String::new(),
        _ => format!("{sign}{} blocked in HLT", glued(&si(split.blocked))),
    };
    let Some(kvm) = split.kvm else {
        let why = match profile.has_kernel_ledger() {
            true => "KVM's part needs times: --ledger cycles",
            false => "KVM's part needs the kernel ledger",
        };
        let text = format!(
            "{} cycles in the VMM{} · {why}{own}",
            glued(&si(split.vmm)),
            blocked(" · ")
        );
        return labelled("time", indent, &text);
    };
    let parts = [
        (KVM, kvm, "in KVM", "KVM"),
        (VMM, split.vmm, "in the VMM", "VMM"),
        (BLOCKED, split.blocked, "blocked in HLT", "HLT"),
    ];
    let all = split.all();
    let shown = parts.map(|(_, cycles, place, _)| glued(&format!("{} {place}", si(cycles))));
    let text = format!(
        "{} cycles in exits = {}{own}",
        glued(&si(all)),
        shown.join(&format!(" +{GLUE}"))
    );
    let bar = shades(&parts.map(|(shade, cycles, ..)| (shade, cycles)), BAR);
    let legend = parts.map(|(shade, cycles, _, place)| {
        glued(&format!(
            "{shade} {place} {}",
            percent(share(cycles, all.into()))
        ))
    });
    let picture = format!(
        "{bar}{GLUE}{GLUE}{}",
        legend.join(&GLUE.to_string().repeat(2))
    );
    labelled("time", indent, &text) + &labelled("", indent, &picture)
}

/// What a code is called: its name, and its number where that is not said by then.
fn named(code: &CodeAccount) -> String {
    match code.code {
        Some(number) => format!("{} {number:#x}", fit(&clean(&code.name), 40)),
        None => "codes not in our tables".to_owned(),
    }
}

fn times(code: &CodeAccount) -> String {
    format!("{} ×{}", named(code), count(code.exits))
}

/// The processor's codes behind each reason; nothing where the reasons are the codes (Intel).
pub(super) fn codes(total: &Accounts) -> String {
    let mut reasons: Vec<_> = total.reasons.iter().collect();
    reasons.sort_by_key(|r| (std::cmp::Reverse(r.exits), r.reason));
    let mut counted = false;
    let shown = reasons.iter().filter_map(|r| {
        let codes = total.codes_of(Some(r.reason));
        let says_more = codes.iter().any(|c| c.code != Some(r.reason.into()));
        if !says_more {
            return None;
        }
        counted |= codes.len() > 1 && r.own > 0;
        let list = match codes.as_slice() {
            [one] => named(one),
            all => all.iter().map(|c| times(c)).collect::<Vec<_>>().join(", "),
        };
        let list: Vec<String> = list.split(", ").map(glued).collect();
        Some(format!("{}{GLUE}←{GLUE}{}", r.reason, list.join(", ")))
    });
    let mut text = shown.collect::<Vec<_>>().join(" · ");
    if counted {
        text += " (the profiler's own included)";
    }
    text
}

/// What the VMM saw of the exits, where the kernel ledger saw all.
pub(super) fn span(profile: &Profile) -> String {
    match profile.times_every_exit() {
        true => "from the exit to the next entry (kernel ledger: nanoseconds at the TSC's rate)"
            .to_owned(),
        false => format!("TSC, from {KVM_RUN}'s return to the next entry"),
    }
}

/// A fixed count where there is one, for a column.
pub(super) fn fixed_or_none(profile: &Profile, accounts: &Accounts) -> String {
    let fixed = profile.fixed(accounts);
    fixed.map_or(String::new(), |f| count_or_none(f.count()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixtures;

    fn rich() -> Profile {
        fixtures::histograms()
    }

    #[test]
    fn accounts_that_close() {
        let text = closing(&fixtures::ledger());
        assert!(text.starts_with("798 of 798 exits attributed · no residual · 86 of them"));
        let text = closing(&rich()).replace(GLUE, " ");
        assert!(
            text.contains("4 other: VMLOAD 0x82 ×3, codes not in our tables ×1"),
            "{text}"
        );
        assert!(text.contains("1 entry failed (bit 31"), "{text}");
    }

    #[test]
    fn a_residual_has_a_meaning() {
        let mut profile = fixtures::intel();
        assert!(closing(&profile).contains("13 residual: emulated by KVM without an exit ("));
        profile.host.kvm = KvmKind::Amd;
        assert!(closing(&profile).contains("13 residual: not attributed by the kernel ledger · "));
        let text = closing(&fixtures::software());
        assert!(text.contains("192 residual: handled in the kernel, reason not visible"));
    }

    #[test]
    fn the_fixed_count_says_how_it_comes_about() {
        let text = fixed(&fixtures::ledger()).replace(GLUE, " ");
        assert_eq!(
            text,
            "566 = 712 − 146 time-driven (HLT 60, ext. interrupt 58, interrupt window 9, 8259 8, \
             TSC deadline 4, EOI 4, 8254 3)"
        );
        let mut profile = fixtures::ledger();
        profile.total.asks.retain(|a| a.index != 0x830);
        let text = fixed(&profile);
        assert!(
            text.ends_with(" · 2 WRMSR of unknown index count as fixed"),
            "{text}"
        );
    }

    #[test]
    fn codes_that_are_the_reasons_are_not_repeated() {
        assert_eq!(codes(&fixtures::intel().total), "");
        let text = codes(&fixtures::ledger().total).replace(GLUE, " ");
        assert!(text.contains("30 ← IOIO 0x7b · 48 ← NPF 0x400"), "{text}");
        let many = "28 ← CR0_WRITE 0x10 ×3, CR4_WRITE 0x14 ×2, CR0_READ 0x0 ×1";
        assert!(text.contains(many), "{text}");
    }
}
