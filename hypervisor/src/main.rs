//! The `exitvisor` command: parse → validated configuration → run → render.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use exitvisor::cli::{
    self, AblationArgs, CapsArgs, CapsFormat, Command, CompareArgs, CompareFormat,
};
use exitvisor::cli::{Format, LayoutArgs, LayoutFormat, PagingArgs, ReportArgs, Stop};
use exitvisor::config::{Config, Console, TimeLimit};
use exitvisor::error::Error;
use exitvisor::marks::spec::Sequence;
use exitvisor::profile::ablation::Ablation;
use exitvisor::profile::compare::Comparison;
use exitvisor::profile::deputy::Place;
use exitvisor::profile::limit::Limits;
use exitvisor::profile::paging::{Pairing, Refused};
use exitvisor::profile::{Profile, load, save};
use exitvisor::report::culprits::{NoSuchStep, View};
use exitvisor::survey::Survey;
use exitvisor::{layout, report, run, status};

/// How long `profile` waits for a guest when nothing else is said.
const PROFILE_TIMEOUT: TimeLimit = TimeLimit(Some(Duration::from_secs(30)));

fn main() -> ExitCode {
    let level = std::env::var("EXITVISOR_LOG")
        .ok()
        .and_then(|l| l.parse().ok());
    tracing_subscriber::fmt()
        .with_max_level(level.unwrap_or(tracing::Level::WARN))
        .with_writer(io::stderr)
        .init();
    let status = match cli::parse() {
        Ok(cli) => command(cli.command).unwrap_or_else(|error| {
            say(&error.to_string());
            error.status()
        }),
        Err(Stop::Print(text)) => write_out(None, &text).unwrap_or_else(|error| {
            say(&error.to_string());
            error.status()
        }),
        Err(Stop::Error(error)) => {
            say(&error.to_string());
            error.status()
        }
    };
    ExitCode::from(status)
}

/// One line on standard error, whatever names and values it quotes.
fn say(line: &str) {
    let line = report::clean(&shortened(line));
    let _ = writeln!(io::stderr(), "exitvisor: {line}");
}

/// Cuts the middle out of a text that is too long for a line: what is wrong stands at its start,
/// what to do at its end.
fn shortened(text: &str) -> String {
    const KEPT: usize = 400;
    let length = text.chars().count();
    if length <= 2 * KEPT {
        return text.to_owned();
    }
    let start: String = text.chars().take(KEPT).collect();
    let end: String = text.chars().skip(length - KEPT).collect();
    format!("{start} … {end}")
}

fn command(command: Command) -> Result<u8, Error> {
    match command {
        Command::Run(args) => {
            let wanted = args.format.is_some() || args.output.is_some();
            let output = args.output.unwrap_or_else(|| "-".into());
            let to_stdout = wanted && output.as_os_str() == "-";
            let console = if to_stdout {
                Console::Stderr
            } else {
                Console::Stdout
            };
            let config = args.vm.config(console, TimeLimit(None), Sequence::None)?;
            let format = args.format.unwrap_or(Format::Text);
            run_guest(&config, wanted.then_some((format, output)), None, true)
        }
        Command::Profile(args) => {
            let vm = args.vm;
            // Of a kernel that is not Linux there is no sequence: nobody has asked for it.
            let config = vm.config(Console::Stderr, PROFILE_TIMEOUT, Sequence::Linux)?;
            let output = args.output.unwrap_or_else(|| "-".into());
            let view = args.culprits.view();
            run_guest(&config, Some((args.format, output)), view.as_ref(), false)
        }
        Command::Report(args) => show(args),
        Command::Compare(args) => compare(args),
        Command::Paging(args) => paging(&args),
        Command::Ablation(args) => ablation(&args),
        Command::Layout(args) => show_layout(&args),
        Command::Caps(args) => show_caps(&args),
    }
}

/// Boots the guest; writes the profile where it is wanted, and says how the run ended.
fn run_guest(
    config: &Config,
    output: Option<(Format, PathBuf)>,
    view: Option<&View>,
    summary: bool,
) -> Result<u8, Error> {
    if let Some((_, path)) = &output {
        let inputs = [
            Some(&config.kernel),
            config.firmware.as_ref(),
            config.initrd.as_ref(),
        ];
        if inputs
            .into_iter()
            .flatten()
            .any(|input| is_same_file(input, path))
        {
            let what = format!("--output {} would overwrite what is booted", path.display());
            return Err(Error::Usage(what));
        }
    }
    config.dump.check()?;
    let place = output
        .as_ref()
        .map(|(format, path)| Place::new(path).map(|place| (*format, place)));
    let place = place.transpose()?;
    let profile = run::run(config, say)?;
    // Saved before anything is said: whoever reads standard error may let us wait.
    let saved = match place {
        Some((format, place)) => place.save(&render(&profile, format, view)?),
        None => Ok(()),
    };
    if profile.end.cut_short {
        say(&format!("cut short: {}", profile.end.detail));
    }
    saved?;
    if profile.end.cut_short && output.is_none() {
        // What led to a run's untimely end is worth a whole report.
        let _ = io::stderr().write_all(report::text::render(&profile).as_bytes());
    }
    if summary && !profile.end.cut_short {
        say(&report::summary::render(&profile));
    }
    Ok(profile.end.status)
}

/// Whether two paths lead to one regular file.
fn is_same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let file = |path| {
        std::fs::metadata(path)
            .ok()
            .filter(std::fs::Metadata::is_file)
    };
    let same =
        |a: std::fs::Metadata, b: std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    file(a).zip(file(b)).is_some_and(|(a, b)| same(a, b))
}

fn render(profile: &Profile, format: Format, view: Option<&View>) -> Result<String, Error> {
    let text = match (format, view) {
        (Format::Text, None) => report::text::render(profile),
        (Format::Json, None) => report::json::render(profile),
        (Format::Csv, None) => report::csv::render(profile),
        (Format::Text, Some(view)) => usage(report::culprits::text(profile, view))?,
        (Format::Json, Some(view)) => usage(report::culprits::json(profile, view))?,
        (Format::Csv, Some(view)) => usage(report::culprits::csv(profile, view))?,
    };
    Ok(text)
}

fn usage<T>(result: Result<T, NoSuchStep>) -> Result<T, Error> {
    result.map_err(|error| Error::Usage(error.to_string()))
}

fn show(args: ReportArgs) -> Result<u8, Error> {
    let profiles = args
        .files
        .iter()
        .map(|f| load::load(f))
        .collect::<Result<Vec<Profile>, _>>()?;
    let view = args.culprits.view();
    let text = match profiles.as_slice() {
        [profile] => render(profile, args.format, view.as_ref())?,
        _ if view.is_some() => {
            let what = "--by shows one profile: give one";
            return Err(Error::Usage(what.into()));
        }
        profiles => match args.format {
            Format::Text => report::questions::text(profiles),
            Format::Json => report::questions::json(profiles),
            Format::Csv => report::csv::several(profiles),
        },
    };
    write_out(args.output.as_deref(), &text)
}

fn compare(args: CompareArgs) -> Result<u8, Error> {
    let (before, after) = (load::load(&args.before)?, load::load(&args.after)?);
    let names = (
        args.before.display().to_string(),
        args.after.display().to_string(),
    );
    let comparison = Comparison::of((&names.0, &before), (&names.1, &after));
    let mut limits = Limits::default();
    args.max_growth.into_iter().for_each(|l| limits.extend(l));
    let violations = (!limits.is_empty()).then(|| comparison.violations(&limits));
    let text = match args.format {
        CompareFormat::Text => report::compare::text(&comparison, violations.as_deref()),
        CompareFormat::Json => report::compare::json(&comparison, violations.as_deref()),
    };
    write_out(args.output.as_deref(), &text)?;
    let grown = violations.is_some_and(|v| !v.is_empty());
    Ok(if grown { status::GROWTH } else { 0 })
}

fn paging(args: &PagingArgs) -> Result<u8, Error> {
    let mut profiles = Vec::new();
    for file in &args.files {
        profiles.push((file.display().to_string(), load::load(file)?));
    }
    if !args.check {
        let pairing = Pairing::of(&profiles)?;
        let text = match args.format {
            Format::Text => report::paging::text(&pairing),
            Format::Json => report::paging::json(&pairing),
            Format::Csv => report::paging::csv(&pairing),
        };
        return write_out(args.output.as_deref(), &text);
    }
    let mut text = String::new();
    for (name, profile) in profiles {
        let checked = profile.checked_paging();
        let paging = checked.map_err(|why| Refused::Void {
            name: name.clone(),
            why,
        })?;
        text += &format!("{}: {} paging\n", report::clean(&name), paging.name());
    }
    write_out(None, &text)
}

fn ablation(args: &AblationArgs) -> Result<u8, Error> {
    let profiles = args
        .files
        .iter()
        .map(|f| load::load(f))
        .collect::<Result<Vec<Profile>, _>>()?;
    let ablation = Ablation::of(&profiles, &args.skipped).map_err(|place| {
        let name = args.files.get(place).map(|f| f.display().to_string());
        Error::Usage(format!(
            "profile {} does not say what its guest memory was made of: record it again",
            name.unwrap_or_default()
        ))
    })?;
    let text = match args.format {
        CompareFormat::Text => report::ablation::text(&ablation),
        CompareFormat::Json => report::ablation::json(&ablation),
    };
    write_out(args.output.as_deref(), &text)
}

fn show_layout(args: &LayoutArgs) -> Result<u8, Error> {
    let ranges = layout::ranges(args.memory.bytes());
    let text = match args.format {
        LayoutFormat::Text => report::layout::text(&ranges),
        LayoutFormat::Json => report::layout::json(&ranges),
    };
    write_out(args.output.as_deref(), &text)
}

fn show_caps(args: &CapsArgs) -> Result<u8, Error> {
    let survey = Survey::take();
    let text = match args.format {
        CapsFormat::Text => report::survey::text(&survey),
        CapsFormat::Json => report::survey::json(&survey),
    };
    write_out(args.output.as_deref(), &text)
}

/// Writes to a file or standard output; a reader that has gone is no error.
fn write_out(path: Option<&Path>, text: &str) -> Result<u8, Error> {
    match save::save(path.unwrap_or(Path::new("-")), text) {
        Err(error) if error.is_broken_pipe() => Ok(0),
        result => result.map(|()| 0).map_err(Error::from),
    }
}
