//! Loading: a profile from JSON, or one clear line that says why not.
//!
//! Schema and version are looked at before anything else is believed, so that a profile of a
//! future version is called that, and not "unknown field". Input is bounded and never trusted.

use super::durations::PLACES;
use super::figures::KERNEL_LEDGER;
use super::{Accounts, Ask, Culprit, Histogram, Profile, SCHEMA, VERSION};
use crate::status;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Largest profile that is read, bytes. A boot with a thousand milestones needs a tenth of it.
pub const MAX_BYTES: u64 = 64 << 20;

/// Why a profile could not be loaded. `name` is the file, ready to be printed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be opened or read.
    #[error("cannot read profile {name}: {}", reason(source))]
    Read {
        /// The file.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// It is larger than [`MAX_BYTES`].
    #[error(
        "{name} is larger than {} MiB: not a profile; name a file written with --format json",
        MAX_BYTES >> 20
    )]
    TooLarge {
        /// The file.
        name: String,
    },
    /// It has no content.
    #[error("profile {name} is empty: record it again")]
    Empty {
        /// The file.
        name: String,
    },
    /// It ends too early.
    #[error(
        "profile {name} is truncated: it ends at line {line}, column {column}; record it again"
    )]
    Truncated {
        /// The file.
        name: String,
        /// Line, from 1.
        line: usize,
        /// Column.
        column: usize,
    },
    /// It is not JSON.
    #[error(
        "{name} is not JSON (line {line}, column {column}): name a file written with --format json"
    )]
    NotJson {
        /// The file.
        name: String,
        /// Line, from 1.
        line: usize,
        /// Column.
        column: usize,
    },
    /// It is JSON of another kind.
    #[error("{name} is not an Exitvisor profile ({found}): name a file written with --format json")]
    Schema {
        /// The file.
        name: String,
        /// What its schema is instead.
        found: String,
    },
    /// A newer Exitvisor wrote it.
    #[error(
        "profile {name} was written by a newer Exitvisor (version {found}; this one reads up to \
         {VERSION}): update Exitvisor, or record it again"
    )]
    Newer {
        /// The file.
        name: String,
        /// Its version.
        found: u64,
    },
    /// It is a profile by name, not by content.
    #[error("profile {name} is corrupt (line {line}, column {column}): {detail}; record it again")]
    Corrupt {
        /// The file.
        name: String,
        /// Line, from 1.
        line: usize,
        /// Column.
        column: usize,
        /// What is wrong.
        detail: String,
    },
    /// Its figures contradict each other.
    #[error("profile {name} contradicts itself: {detail}; record it again")]
    Inconsistent {
        /// The file.
        name: String,
        /// Where, and which figures.
        detail: String,
    },
}

impl LoadError {
    /// The exit status that it calls for.
    pub fn status(&self) -> u8 {
        match self {
            Self::Read { .. } => status::INPUT,
            _ => status::DATA,
        }
    }
}

/// The system's reason, in the middle of a sentence. An error that wraps another one (with the
/// name of a temporary file, say) is looked through.
pub(super) fn reason(error: &io::Error) -> String {
    if error.raw_os_error().is_none() {
        let inner = error.get_ref().and_then(|e| std::error::Error::source(e));
        if let Some(inner) = inner.and_then(|e| e.downcast_ref::<io::Error>()) {
            return reason(inner);
        }
    }
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => line(&first.to_lowercase().chain(chars).collect::<String>()),
        None => String::new(),
    }
}

/// One line for people, whatever was in it: bounded, and without control characters.
pub(super) fn line(text: &str) -> String {
    const LONGEST: usize = 300;
    let mut line: String = crate::report::clean(&text.chars().take(LONGEST).collect::<String>());
    if text.chars().nth(LONGEST).is_some() {
        line.push('…');
    }
    line
}

/// Loads a profile; `-` is standard input.
pub fn load(path: &Path) -> Result<Profile, LoadError> {
    let name = || match path.as_os_str().to_str() {
        Some("-") => "standard input".to_owned(),
        _ => line(&path.display().to_string()),
    };
    let mut bytes = Vec::new();
    let read = if path.as_os_str() == "-" {
        io::stdin()
            .lock()
            .take(MAX_BYTES + 1)
            .read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
    };
    read.map_err(|source| LoadError::Read {
        name: name(),
        source,
    })?;
    parse(&bytes, &name())
}

/// Reads a profile from bytes; `name` is what errors call it.
pub fn parse(bytes: &[u8], name: &str) -> Result<Profile, LoadError> {
    let name = line(name);
    if bytes.len() as u64 > MAX_BYTES {
        return Err(LoadError::TooLarge { name });
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(LoadError::Empty { name });
    }
    check_header(bytes, &name)?;
    let profile: Profile = serde_json::from_slice(bytes).map_err(|e| refused(&e, &name))?;
    match contradiction(&profile) {
        Some(detail) => Err(LoadError::Inconsistent {
            name,
            detail: line(&detail),
        }),
        None => Ok(profile),
    }
}

/// What is read before anything else. Other fields may be of any shape.
#[derive(Deserialize)]
struct Header {
    #[serde(default)]
    schema: serde_json::Value,
    #[serde(default)]
    version: serde_json::Value,
}

fn check_header(bytes: &[u8], name: &str) -> Result<(), LoadError> {
    let name = name.to_owned();
    let header: Header = match serde_json::from_slice(bytes) {
        Ok(header) => header,
        Err(e) if e.is_data() => {
            return Err(LoadError::Schema {
                name,
                found: "no object with a schema".to_owned(),
            });
        }
        Err(e) => return Err(refused(&e, &name)),
    };
    match header.schema.as_str() {
        Some(SCHEMA) => {}
        Some(other) => {
            return Err(LoadError::Schema {
                name,
                found: line(&format!("schema {other:?}")),
            });
        }
        None => {
            return Err(LoadError::Schema {
                name,
                found: "it names no schema".to_owned(),
            });
        }
    }
    match header.version.as_u64() {
        Some(found) if found > u64::from(VERSION) => Err(LoadError::Newer { name, found }),
        Some(found) if found > 0 => Ok(()),
        _ => Err(LoadError::Schema {
            name,
            found: "it names no valid version".to_owned(),
        }),
    }
}

fn refused(error: &serde_json::Error, name: &str) -> LoadError {
    let (name, line, column) = (name.to_owned(), error.line(), error.column());
    match error.classify() {
        serde_json::error::Category::Eof => LoadError::Truncated { name, line, column },
        serde_json::error::Category::Data => {
            let text = error.to_string();
            let detail = text
                .rsplit_once(" at line ")
                .map_or(text.as_str(), |(what, _)| what);
            let detail = detail.split(", expected one of").next().unwrap_or_default();
            LoadError::Corrupt {
                name,
                line,
                column,
                detail: self::line(detail),
            }
        }
        _ => LoadError::NotJson { name, line, column },
    }
}

/// The first contradiction in a profile's figures. That milestones grow is not asked for: a
/// profile whose count shrinks can be shown, with a warning.
fn contradiction(profile: &Profile) -> Option<String> {
    let named = profile
        .milestones
        .iter()
        .map(|m| (format!("milestone {:?}", m.name), &m.accounts));
    let vcpus = profile
        .vcpus
        .iter()
        .enumerate()
        .map(|(i, v)| (format!("vCPU {i}"), v));
    let total = std::iter::once(("the total".to_owned(), &profile.total));
    let reboots = profile.reboots.iter().zip(1..).flat_map(|(pass, n)| {
        let milestones = pass.milestones.iter().map(|m| &m.accounts);
        let all = std::iter::once(&pass.total).chain(&pass.vcpus);
        all.chain(milestones)
            .map(move |accounts| (format!("reboot {n}"), accounts))
    });
    let boots = std::iter::once((&profile.culprits, &profile.total, "the total".to_owned()));
    let passes = profile.reboots.iter().zip(1..);
    let passes = passes.map(|(pass, n)| (&pass.culprits, &pass.total, format!("reboot {n}")));
    for (list, total, place) in boots.chain(passes) {
        if let Some(what) = wrong_culprits(list, total) {
            return Some(format!("{place}: {what}"));
        }
    }
    for (place, accounts) in total.chain(vcpus).chain(named).chain(reboots) {
        if let Some(what) = wrong(accounts) {
            return Some(format!("{place}: {what}"));
        }
    }
    let numbers: Vec<u8> = profile.reasons.iter().map(|r| r.reason).collect();
    if let Some(what) = out_of_order(&numbers) {
        return Some(format!("the table of reasons: {what}"));
    }
    let reboots = profile
        .reboots
        .iter()
        .filter_map(|pass| pass.memory.as_ref());
    for memory in profile.memory.iter().chain(reboots) {
        let (huge, resident) = (memory.huge, memory.resident);
        if huge > resident {
            return Some(format!("memory: huge {huge} > resident {resident}"));
        }
    }
    let reboots = profile.reboots.iter().zip(1..);
    let reboots = reboots.map(|(pass, n)| (format!("reboot {n}: "), &pass.histograms));
    std::iter::once((String::new(), &profile.histograms))
        .chain(reboots)
        .find_map(|(place, histograms)| {
            wrong_histograms(histograms).map(|what| format!("{place}the histograms: {what}"))
        })
}

/// Where a boot says who caused its exits, each is named once and counted, and those of a reason are not
/// more than its exits.
fn wrong_culprits(list: &[Culprit], total: &Accounts) -> Option<String> {
    let (counts, names) = (total.culprits.len(), list.len());
    if counts > names {
        return Some(format!("{counts} culprits are counted, and {names} named"));
    }
    if total.culprit_cycles.len() > counts {
        let cycles = total.culprit_cycles.len();
        return Some(format!("{cycles} culprits have cycles, and {counts} exits"));
    }
    if let Some(half) = list.iter().find(|c| c.kind.is_some() != c.index.is_some()) {
        return Some(format!("a culprit has half a key: {half:?}"));
    }
    let mut sums = BTreeMap::<Option<u8>, u128>::new();
    for (culprit, &count) in list.iter().zip(&total.culprits) {
        *sums.entry(culprit.reason).or_default() += u128::from(count);
    }
    sums.into_iter().find_map(|(reason, sum)| {
        let exits = super::culprits::exits(total, reason);
        let whose = reason.map_or("other".to_owned(), |n| format!("reason {n}"));
        (sum > exits.into()).then(|| format!("{whose}: {sum} exits by culprit > {exits}"))
    })
}

fn wrong_histograms(histograms: &[Histogram]) -> Option<String> {
    let numbers: Vec<u8> = histograms.iter().map(|h| h.reason).collect();
    if let Some(what) = out_of_order(&numbers) {
        return Some(what);
    }
    let long = histograms.iter().find(|h| h.buckets.len() > PLACES)?;
    let (reason, places) = (long.reason, long.buckets.len());
    Some(format!(
        "reason {reason} has {places} places, not up to {PLACES}"
    ))
}

fn out_of_order(numbers: &[u8]) -> Option<String> {
    let limit = exit_abi::reason::COUNT;
    if let Some(pair) = numbers.windows(2).find(|w| w[0] >= w[1]) {
        return Some(format!("reason {} stands before {}", pair[0], pair[1]));
    }
    let beyond = numbers.iter().find(|&&n| usize::from(n) >= limit)?;
    Some(format!("reason {beyond} is not below {limit}"))
}

fn wrong(accounts: &Accounts) -> Option<String> {
    let numbers: Vec<u8> = accounts.reasons.iter().map(|r| r.reason).collect();
    if let Some(what) = out_of_order(&numbers) {
        return Some(what);
    }
    for r in &accounts.reasons {
        let pairs = [
            ("own exits", r.own, "exits", r.exits),
            ("timed exits", r.timed, "exits", r.exits),
            ("own timed exits", r.own_timed, "timed exits", r.timed),
            ("own timed exits", r.own_timed, "own exits", r.own),
            ("own cycles", r.own_cycles, "cycles", r.cycles),
            ("shortest exit", r.min, "longest", r.max),
        ];
        if let Some((part, a, whole, b)) = pairs.into_iter().find(|(_, a, _, b)| a > b) {
            return Some(format!("reason {}: {part} {a} > {whole} {b}", r.reason));
        }
    }
    if let Some(what) = wrong_codes(accounts).or_else(|| wrong_details(accounts)) {
        return Some(what);
    }
    let sum: u128 = accounts.reasons.iter().map(|r| u128::from(r.exits)).sum();
    let (total, excess) = (u128::from(accounts.total), u128::from(accounts.excess));
    let other = u128::from(accounts.other);
    let residual = u128::from(accounts.residual) + u128::from(accounts.own_residual);
    (total + excess != sum + other + residual).then(|| {
        format!(
            "{total} exits are not the sum of {sum} by reason + {other} other + {residual} \
             residual - {excess} excess"
        )
    })
}

/// Where there are codes, they add up: to the exits of each reason that the kernel ledger counted,
/// and to those without a reason.
fn wrong_codes(accounts: &Accounts) -> Option<String> {
    if accounts.codes.is_empty() {
        return None;
    }
    let mut sums = BTreeMap::<Option<u8>, u128>::from([(None, 0)]);
    for code in &accounts.codes {
        *sums.entry(code.reason).or_default() += u128::from(code.exits);
    }
    sums.into_iter().find_map(|(reason, sum)| {
        let (whose, exits, exact) = match reason {
            None => ("other".to_owned(), accounts.other, true),
            Some(n) => {
                let account = accounts.reason(n);
                let exact = account.is_none_or(|r| r.source == KERNEL_LEDGER);
                (format!("reason {n}"), account.map_or(0, |r| r.exits), exact)
            }
        };
        let exits = u128::from(exits);
        let fits = if exact { sum == exits } else { sum <= exits };
        (!fits).then(|| format!("{whose}: {exits} exits are not the sum of {sum} by code"))
    })
}

/// Orders, and parts that exceed their whole, among what is kept beside the exits.
fn wrong_details(accounts: &Accounts) -> Option<String> {
    let (own, all) = (accounts.own_vmm_cycles, accounts.vmm_cycles);
    if own > all {
        return Some(format!(
            "own cycles in the VMM {own} > cycles in the VMM {all}"
        ));
    }
    let (own, all) = (accounts.own_userspace, accounts.userspace);
    if own > all {
        return Some(format!(
            "own exits to userspace {own} > exits to userspace {all}"
        ));
    }
    let key = |ask: &Ask| (ask.kind, ask.index);
    if let Some(pair) = accounts.asks.windows(2).find(|w| key(&w[0]) >= key(&w[1])) {
        let shown = |ask: &Ask| format!("{:?} {:#x}", ask.kind, ask.index);
        return Some(format!(
            "what is asked for: {} stands before {}",
            shown(&pair[0]),
            shown(&pair[1])
        ));
    }
    let numbers: Vec<u8> = accounts.emulated.iter().map(|e| e.reason).collect();
    if let Some(what) = out_of_order(&numbers) {
        return Some(format!("emulated events: {what}"));
    }
    let wrong = accounts.emulated.iter().find(|e| e.own > e.events)?;
    Some(format!(
        "emulated events of reason {}: own {} > all {}",
        wrong.reason, wrong.own, wrong.events
    ))
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;
    use crate::report::json;
    use proptest::prelude::*;

    fn refusal(bytes: &[u8]) -> String {
        let Err(error) = parse(bytes, "a.json") else {
            panic!("it was accepted");
        };
        assert_eq!(error.status(), status::DATA);
        let text = error.to_string();
        assert!(!text.contains('\n'), "{text}");
        text
    }

    fn changed(change: impl Fn(&mut Profile)) -> String {
        changed_from(fixtures::software(), change)
    }

    fn changed_from(mut profile: Profile, change: impl Fn(&mut Profile)) -> String {
        change(&mut profile);
        refusal(json::render(&profile).as_bytes())
    }

    #[test]
    fn every_fixture_comes_back() {
        for profile in fixtures::all() {
            assert_eq!(
                parse(json::render(&profile).as_bytes(), "x").unwrap(),
                profile
            );
        }
    }

    #[test]
    fn refusals() {
        let whole = json::render(&fixtures::software());
        let newer = r#"{"schema":"exitvisor-profile","version":5,"shape":{"new":[]}}"#;
        let all = [
            refusal(b""),
            refusal(b" \n"),
            refusal(b"{\n  \"schema\": oops"),
            refusal(b"\x7fELF"),
            refusal(&whole.as_bytes()[..whole.len() / 2]),
            refusal(b"[]"),
            refusal(b"42"),
            refusal(b"{}"),
            refusal(br#"{"schema":"other\u001b[31m\n"}"#),
            refusal(br#"{"schema":"exitvisor-profile"}"#),
            refusal(br#"{"schema":"exitvisor-profile","version":0}"#),
            refusal(br#"{"schema":"exitvisor-profile","version":1}"#),
            refusal(newer.as_bytes()),
            refusal(br#"{"schema":"exitvisor-profile","version":1,"\n\u001b":1}"#),
            changed(|p| p.total.residual += 1),
            changed(|p| p.total.reasons[0].own = 10_000),
            changed(|p| p.total.reasons[0].timed = 10_000),
            changed(|p| p.total.reasons[0].own_cycles = 10_000_000),
            changed(|p| p.total.reasons[0].min = 10_000_000),
            changed(|p| p.vcpus[0].reasons.swap(0, 1)),
            changed(|p| p.total.reasons.last_mut().unwrap().reason = 200),
            changed(|p| p.milestones[1].accounts.total = 99_999),
            changed(|p| {
                p.milestones[1].name = "\u{1b}[2J".repeat(200);
                p.milestones[1].accounts.other = 7;
            }),
            changed(|p| p.reasons[3].reason = 1),
            changed(|p| {
                p.reboots = fixtures::reboots().reboots;
                p.reboots[1].total.residual += 1;
            }),
        ];
        insta::assert_snapshot!(all.join("\n"));
    }

    #[test]
    fn refusals_of_what_the_kernel_ledger_adds() {
        let traced = |change: fn(&mut Profile)| changed_from(fixtures::histograms(), change);
        let emulated = |change: fn(&mut Profile)| changed_from(fixtures::emulated(), change);
        let culprits = |change: fn(&mut Profile)| changed_from(fixtures::culprits(), change);
        let all = [
            traced(|p| p.total.codes[0].exits += 1),
            traced(|p| p.total.codes[0].reason = Some(77)),
            traced(|p| p.total.codes.retain(|c| c.name != "VMLOAD")),
            traced(|p| p.vcpus[0].codes[0].exits -= 1),
            traced(|p| p.total.own_vmm_cycles = p.total.vmm_cycles + 1),
            traced(|p| p.milestones[8].accounts.asks.swap(0, 1)),
            traced(|p| p.total.asks.push(p.total.asks[0])),
            traced(|p| p.histograms[1].buckets.resize(33, 1)),
            traced(|p| p.histograms.swap(0, 1)),
            traced(|p| p.histograms[0].reason = 128),
            traced(|p| {
                p.reboots = fixtures::reboots().reboots;
                p.reboots[1].histograms = vec![p.histograms[0].clone(); 2];
            }),
            emulated(|p| p.total.emulated[0].own = 10_000),
            emulated(|p| p.total.emulated.swap(0, 1)),
            emulated(|p| p.total.emulated[0].reason = 255),
            culprits(|p| p.total.culprits.resize(99, 0)),
            culprits(|p| p.total.culprit_cycles.push(1)),
            culprits(|p| p.culprits[0].index = None),
            culprits(|p| p.total.culprits[0] += 1),
        ];
        insta::assert_snapshot!(all.join("\n"));
    }

    #[test]
    fn codes_of_a_reason_that_another_source_counts_need_not_be_all() {
        let mut profile = fixtures::ledger();
        let io = profile.total.reasons.iter_mut().find(|r| r.reason == 30);
        let io = io.unwrap();
        (io.exits, io.source) = (io.exits + 1, "KVM_RUN".to_owned());
        profile.total.total += 1;
        assert!(parse(json::render(&profile).as_bytes(), "x").is_ok());
    }

    /// A file that version 1 wrote, as it wrote it.
    #[test]
    fn version_1_still_loads() {
        let profile = parse(include_bytes!("version-1.json"), "x").unwrap();
        assert_eq!(profile.version, 1);
        let again = json::render(&profile);
        assert_eq!(again, include_str!("version-1.json"));
        let text = crate::report::text::render(&profile);
        assert!(text.contains("unknown: needs the kernel ledger"), "{text}");
    }

    #[test]
    fn what_cannot_be_read() {
        let error = load(Path::new("/nowhere/a\nb.json")).unwrap_err();
        assert_eq!(error.status(), status::INPUT);
        assert_eq!(
            error.to_string(),
            "cannot read profile /nowhere/a\\nb.json: no such file or directory"
        );
        let folder = tempfile::tempdir().unwrap();
        let error = load(folder.path()).unwrap_err();
        assert!(error.to_string().ends_with(": is a directory"), "{error}");
        let error = load(Path::new("/dev/zero")).unwrap_err();
        assert!(error.to_string().contains("larger than 64 MiB"), "{error}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&bytes, "x");
        }

        #[test]
        fn mutated_profiles_never_panic(
            at in any::<proptest::sample::Index>(),
            with in proptest::collection::vec(any::<u8>(), 0..4),
            cut in 0usize..8,
            rich in any::<bool>(),
        ) {
            let profile = match rich {
                true => fixtures::histograms(),
                false => fixtures::cut_short(),
            };
            let mut bytes = json::render(&profile).into_bytes();
            let at = at.index(bytes.len());
            let end = (at + cut).min(bytes.len());
            bytes.splice(at..end, with);
            match parse(&bytes, "x") {
                // Whatever is accepted can be shown, too.
                Ok(profile) => prop_assert!(!crate::report::text::render(&profile).is_empty()),
                Err(e) => prop_assert!(!e.to_string().contains(char::is_control)),
            }
        }

        #[test]
        fn a_beginning_is_never_a_profile(share in 0.0f64..0.999) {
            let whole = json::render(&fixtures::ledger());
            let whole = whole.trim_end().as_bytes();
            let cut = (whole.len() as f64 * share) as usize;
            let error = parse(&whole[..cut], "x").unwrap_err();
            let told = matches!(error, LoadError::Empty { .. } | LoadError::Truncated { .. });
            prop_assert!(told, "{error}");
        }
    }
}
