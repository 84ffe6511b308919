//! `cargo xtask boot-profile --paging`: the same boots with nested and with shadow paging.
//!
//! Which of the two a KVM does is a parameter of its module, so each is a matter of how the module
//! was loaded: in a lab, of how the lab is started. That is a [`Machine`]; the rest does not care.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{Args, ValueEnum};

use crate::boot_profile::{unused_name, with_suffix};
use crate::build::{self, Built};
use crate::kvm_module::{Paging, Reloaded};
use crate::lab::{self, Host, Job};
use crate::on::On;
use crate::run::{defaults, value_of};
use crate::step::{self, Step};
use crate::{signals, workspace};

/// Which paging the user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Wish {
    /// The processor walks the guest's page tables (EPT, NPT)
    Nested,
    /// KVM shadows them
    Shadow,
    /// One after the other, side by side
    Both,
}

impl Wish {
    fn kinds(self) -> &'static [Paging] {
        match self {
            Self::Nested => &[Paging::Nested],
            Self::Shadow => &[Paging::Shadow],
            Self::Both => &Paging::BOTH,
        }
    }
}

/// A place where exitvisor runs with the paging that one wants.
pub(crate) trait Machine {
    /// Runs exitvisor commands, one after the other, each of which begins with counters at zero; up
    /// to the first that does not end with 0: its status.
    fn run(&self, paging: Paging, commands: &[Vec<OsString>]) -> anyhow::Result<u8>;
}

/// A lab, started anew for each paging: nobody used its KVM before.
struct Lab<'b> {
    host: Host,
    built: &'b Built,
}

impl Machine for Lab<'_> {
    fn run(&self, paging: Paging, commands: &[Vec<OsString>]) -> anyhow::Result<u8> {
        let this = crate::workspace::this_program()?;
        let mut job = Job::new(self.host, this)?;
        job.with_guests(self.built)?;
        job.module_args.push(paging.parameter(self.host));
        job.args.push(SEVERAL.into());
        job.args.extend(commands.join(&OsString::from(THEN)));
        Ok(lab::run(&job)?.status)
    }
}

/// This machine: as it is, with the paging that it has, or with its KVM loaded anew.
struct ThisMachine<'b> {
    built: &'b Built,
    reload: bool,
    modules: &'b Path,
}

impl ThisMachine<'_> {
    /// Why it does not do this; whether its module can be loaded anew is found out by doing so.
    fn refuses(&self, wish: Wish) -> Option<&'static str> {
        match (Paging::of_machine(self.modules), wish.kinds()) {
            (Some(has), [only]) if has == *only => None,
            (Some(_), _) if self.reload => None,
            (Some(_), _) => Some(
                "this machine's KVM would have to be loaded anew, as --reload-kvm does (as root, no \
                 VM alive); --on amd-lab and --on intel-lab leave this machine alone",
            ),
            (None, _) => Some(
                "this machine's KVM has no nested paging to switch off: use --on amd-lab or --on \
                 intel-lab",
            ),
        }
    }
}

impl Machine for ThisMachine<'_> {
    fn run(&self, paging: Paging, commands: &[Vec<OsString>]) -> anyhow::Result<u8> {
        let exitvisor = &self.built.exitvisor;
        let run = || one_by_one(exitvisor, commands.iter().map(Vec::as_slice));
        if self.reload {
            Reloaded::with(paging, run)
        } else {
            run()
        }
    }
}

/// Runs exitvisor commands up to the first that does not end with 0.
fn one_by_one<'c>(
    exitvisor: &Path,
    commands: impl Iterator<Item = &'c [OsString]>,
) -> anyhow::Result<u8> {
    for command in commands {
        let status = Step::new(exitvisor).args(command).status()?;
        if status != 0 {
            return Ok(status);
        }
    }
    Ok(0)
}

/// The hidden command below, and the word between the commands that it runs.
const SEVERAL: &str = "several-in-lab";
const THEN: &str = "--then";

/// Run exitvisor commands one after the other, started in a lab
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct SeveralInLab {
    /// The commands' arguments, `--then` between two commands
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

impl SeveralInLab {
    /// Runs them.
    pub(crate) fn run(self) -> anyhow::Result<u8> {
        // A Ctrl-C is for the exitvisor that runs.
        signals::outlive_interrupts()?;
        let exitvisor = std::env::var_os("EXITVISOR_BIN").context("EXITVISOR_BIN is not set")?;
        let commands = self.arguments.split(|word| word == THEN);
        one_by_one(Path::new(&exitvisor), commands)
    }
}

/// Pages of a sweep, ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sweep(pub(crate) Vec<u64>);

/// Pages that `--sweep usual` stands for.
const USUAL: [u64; 4] = [16, 64, 256, 1024];
/// Most pages that the workload takes, and most points of a sweep.
const PAGES_MAX: u64 = 1 << 18;
const POINTS_MAX: usize = 32;

/// Reads `N,N,…` or `usual`.
pub(crate) fn sweep(text: &str) -> Result<Sweep, String> {
    if text == "usual" {
        return Ok(Sweep(USUAL.to_vec()));
    }
    let wrong = || format!("write numbers of pages from 1 to {PAGES_MAX}, as 16,64,256, or usual");
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let numbers = text.split(',').map(|part| {
        let number = part.parse().ok().filter(|_| digits(part));
        number.filter(|pages| (1..=PAGES_MAX).contains(pages))
    });
    let mut numbers: Vec<u64> = numbers.collect::<Option<_>>().ok_or_else(wrong)?;
    numbers.sort_unstable();
    numbers.dedup();
    match numbers.len() {
        ..=POINTS_MAX => Ok(Sweep(numbers)),
        _ => Err(format!("at most {POINTS_MAX} numbers")),
    }
}

/// What is to be measured.
#[derive(Debug)]
pub(crate) struct Measurement<'a> {
    pub(crate) wish: Wish,
    /// How often the same is booted.
    pub(crate) runs: u32,
    /// What it is called in names of files, if not as the kernel's file.
    pub(crate) name: Option<OsString>,
    /// Pages of the workload `ptes`; empty: one boot, of what the options say.
    pub(crate) sweep: &'a [u64],
    pub(crate) on: On,
    /// Whether this machine's KVM may be loaded anew.
    pub(crate) reload: bool,
    /// Whether everything is built, and the results go where the user stands.
    pub(crate) built: bool,
    /// Options of `exitvisor profile`.
    pub(crate) options: &'a [OsString],
}

impl Measurement<'_> {
    /// What does not go together; each is a line.
    fn check(&self) -> Result<(), &'static str> {
        let value = |name| value_of(self.options, name);
        let cmdline = value("--cmdline").unwrap_or_default();
        if !self.sweep.is_empty() {
            if self.wish != Wish::Both {
                return Err("--sweep compares: it needs --paging both");
            }
            if value("--kernel").is_some() || cmdline.to_string_lossy().contains("workload=") {
                return Err(
                    "--sweep itself says workload=ptes:N to this project's guest kernel: leave out \
                     --kernel and workload=",
                );
            }
        }
        if self.runs > 1 && !self.sweep.is_empty() {
            return Err("--sweep boots each length once: leave out --runs");
        }
        if self.reload && matches!(self.on, On::AmdLab | On::IntelLab) {
            return Err("--reload-kvm is for this machine's KVM: leave it out, or --on");
        }
        Ok(())
    }

    /// Builds, measures, saves and shows.
    pub(crate) fn run(&self) -> anyhow::Result<u8> {
        let usage = |why: &str| clap::Error::raw(ErrorKind::ArgumentConflict, format!("{why}\n"));
        self.check().map_err(usage)?;
        let lab = match self.on {
            On::AmdLab => Some(Host::Amd),
            On::IntelLab => Some(Host::Intel),
            On::Host | On::Auto => None,
        };
        let (built, folder) = match self.built {
            true => (Built::named()?, std::env::current_dir()?),
            false => (build::build()?, workspace::output_folder()?),
        };
        let machine: Box<dyn Machine> = match lab {
            Some(host) => Box::new(Lab {
                host,
                built: &built,
            }),
            None => {
                let machine = ThisMachine {
                    built: &built,
                    reload: self.reload,
                    modules: Path::new("/sys/module"),
                };
                if let Some(why) = machine.refuses(self.wish) {
                    return Err(usage(&format!("--paging: {why}")).into());
                }
                Box::new(machine)
            }
        };
        signals::outlive_interrupts()?;
        self.on_machine(&*machine, &built, &folder)
    }

    fn on_machine(
        &self,
        machine: &dyn Machine,
        built: &Built,
        folder: &Path,
    ) -> anyhow::Result<u8> {
        let kernel = value_of(self.options, "--kernel").map(PathBuf::from);
        let guest = kernel.as_deref().unwrap_or(&built.guest_kernel).file_stem();
        let guest = guest.unwrap_or_default().to_owned();
        let mut name = self.name.clone().unwrap_or(guest);
        name.push(if self.sweep.is_empty() {
            "-paging"
        } else {
            "-paging-sweep"
        });
        let base = unused_name(folder, &name);
        let mut profiles = Vec::new();
        for &paging in self.wish.kinds() {
            let runs = self.runs(built, &base, paging);
            let commands: Vec<_> = runs.iter().map(|(_, args)| args.clone()).collect();
            let status = machine.run(paging, &commands)?;
            let made = runs.into_iter().map(|(profile, _)| profile);
            let made: Vec<_> = made.filter(|profile| profile.exists()).collect();
            if status != 0 {
                // exitvisor or the guest has said why.
                for profile in made {
                    eprintln!("xtask: kept: {}", workspace::shown(&profile).display());
                }
                return Ok(status);
            }
            profiles.extend(made);
        }
        self.show(built, &base, &profiles)
    }

    /// The profile of each run, and the arguments that make it.
    fn runs(&self, built: &Built, base: &Path, paging: Paging) -> Vec<(PathBuf, Vec<OsString>)> {
        let run = |pages: Option<u64>, run: Option<u32>| {
            let suffix = match (pages, run) {
                (None, None) => format!("-{}.json", paging.name()),
                (None, Some(run)) => format!("-{}-run{run}.json", paging.name()),
                (Some(pages), _) => format!("-{}-{pages}.json", paging.name()),
            };
            let profile = with_suffix(base, &suffix);
            let mut args: Vec<OsString> = vec!["profile".into()];
            args.extend(defaults(built, self.options));
            args.extend(["--format", "json", "--output"].map(OsString::from));
            args.push(profile.clone().into());
            match pages {
                None => args.extend_from_slice(self.options),
                Some(pages) => args.extend(with_workload(self.options, pages)),
            }
            (profile, args)
        };
        match self.sweep {
            [] if self.runs == 1 => vec![run(None, None)],
            [] => (1..=self.runs).map(|n| run(None, Some(n))).collect(),
            sweep => sweep.iter().map(|&pages| run(Some(pages), None)).collect(),
        }
    }

    /// Checks that each profile is what it claims, then renders what was asked for.
    fn show(&self, built: &Built, base: &Path, profiles: &[PathBuf]) -> anyhow::Result<u8> {
        let exitvisor = |words: &[&str]| Step::new(&built.exitvisor).args(words);
        // They are named in the report: as one would write them.
        let shown = || profiles.iter().map(workspace::shown);
        let mut check = exitvisor(&["paging", "--check"]).args(shown());
        check.echo();
        let checked = check.output()?;
        if !checked.status.success() {
            std::io::stderr()
                .write_all(&checked.stderr)
                .context("cannot write to stderr")?;
            return Ok(step::number(checked.status));
        }
        for profile in profiles {
            let step = exitvisor(&["report"]).arg(profile);
            let step = step.args(["--format", "csv", "--output"]);
            step.arg(profile.with_extension("csv")).check()?;
        }
        // Several runs with both pagings are put side by side by `report`, which knows of spreads.
        let (command, formats): (_, &[&str]) = match (self.wish, self.runs) {
            (Wish::Both, 1) => ("paging", &["json", "csv"]),
            (_, 1) => ("report", &[]),
            _ => ("report", &["json"]),
        };
        let text = with_suffix(base, ".txt");
        let rendered = exitvisor(&[command]).args(shown()).stdout()?;
        fs::write(&text, &rendered).with_context(|| format!("cannot write {}", text.display()))?;
        let mut kept = ".txt".to_owned();
        for format in formats {
            let file = with_suffix(base, &format!(".{format}"));
            let step = exitvisor(&[command]).args(shown());
            let step = step.args(["--format", format, "--output"]);
            step.arg(file).check()?;
            kept += &format!(", .{format}");
        }
        let shown = Path::new(workspace::shown(base)).display().to_string();
        let saved = format!(
            "saved: {shown}{kept}; the profiles: {shown}-{}.json, .csv\n",
            match (self.sweep, self.runs) {
                ([], 1) => "PAGING",
                ([], _) => "PAGING-runN",
                _ => "PAGING-PAGES",
            }
        );
        let mut out = std::io::stdout().lock();
        out.write_all(&rendered)
            .and_then(|()| out.write_all(saved.as_bytes()))
            .context("cannot write to stdout")?;
        Ok(0)
    }
}

/// The options with the workload `ptes` on the command line.
fn with_workload(options: &[OsString], pages: u64) -> Vec<OsString> {
    let word = format!("workload=ptes:{pages}");
    let before = value_of(options, "--cmdline").unwrap_or_default();
    let mut line = before;
    if !line.is_empty() {
        line.push(" ");
    }
    line.push(word);
    // What was given is left out: an option stands once.
    let skip = Cell::new(false);
    let kept = options.iter().filter(|option| {
        if skip.replace(false) {
            return false;
        }
        let text = option.to_string_lossy();
        skip.set(text == "--cmdline");
        text != "--cmdline" && !text.starts_with("--cmdline=")
    });
    let mut options: Vec<OsString> = kept.cloned().collect();
    options.extend(["--cmdline".into(), line]);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_workload_joins_the_command_line() {
        let joined = with_workload(&words("--memory 128M"), 16);
        assert_eq!(joined, words("--memory 128M --cmdline workload=ptes:16"));
        for given in ["--cmdline log=off --cpus 1", "--cmdline=log=off --cpus 1"] {
            let joined = with_workload(&words(given), 64);
            let mut expected = words("--cpus 1 --cmdline");
            expected.push("log=off workload=ptes:64".into());
            assert_eq!(joined, expected, "{given}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_one_line() {
        let check = |wish, sweep: &[u64], on, options: &str| {
            let options = words(options);
            let measurement = Measurement {
                wish,
                runs: 1,
                name: None,
                sweep,
                on,
                reload: false,
                built: false,
                options: &options,
            };
            measurement.check()
        };
        assert_eq!(check(Wish::Both, &[16], On::AmdLab, ""), Ok(()));
        assert_eq!(check(Wish::Nested, &[], On::AmdLab, "--cpus 2"), Ok(()));
        assert_eq!(check(Wish::Both, &[], On::IntelLab, "--cpus=2"), Ok(()));
        assert_eq!(check(Wish::Both, &[], On::AmdLab, "--cpus 2"), Ok(()));
        for (wish, sweep, options, says) in [
            (Wish::Shadow, &[16][..], "", "--paging both"),
            (Wish::Both, &[16], "--kernel k", "leave out"),
            (Wish::Both, &[16], "--cmdline workload=pio:5", "leave out"),
        ] {
            let why = check(wish, sweep, On::AmdLab, options).unwrap_err();
            assert!(why.contains(says) && !why.contains('\n'), "{why}");
        }
    }

    #[test]
    fn sweeps() {
        assert_eq!(sweep("usual"), Ok(Sweep(USUAL.to_vec())));
        assert_eq!(sweep("64,16,64"), Ok(Sweep(vec![16, 64])));
        for wrong in ["", "0", "16,", "+16", "16;64", "262145", "1e3"] {
            assert!(sweep(wrong).unwrap_err().contains("usual"), "{wrong}");
        }
        let many: Vec<String> = (1..=33).map(|n| n.to_string()).collect();
        assert!(sweep(&many.join(",")).is_err());
    }

    #[test]
    fn parameters_of_modules() {
        assert_eq!(Paging::Shadow.parameter(Host::Amd), "npt=0");
        assert_eq!(Paging::Nested.parameter(Host::Intel), "ept=1");
    }

    #[test]
    fn this_machine_has_one_paging() {
        let folder = tempfile::tempdir().unwrap();
        let modules = folder.path();
        let built = Built {
            exitvisor: "exitvisor".into(),
            firmware: "firmware".into(),
            guest_kernel: "guest-kernel".into(),
        };
        let [machine, anew] = [false, true].map(|reload| ThisMachine {
            built: &built,
            reload,
            modules,
        });
        let why = machine.refuses(Wish::Nested).unwrap();
        assert!(why.contains("--on amd-lab"), "{why}");
        let parameters = modules.join("kvm_amd/parameters");
        fs::create_dir_all(&parameters).unwrap();
        fs::write(parameters.join("npt"), "Y\n").unwrap();
        assert_eq!(machine.refuses(Wish::Nested), None);
        for wish in [Wish::Shadow, Wish::Both] {
            assert!(machine.refuses(wish).unwrap().contains("--reload-kvm"));
            assert_eq!(anew.refuses(wish), None);
        }
        fs::write(parameters.join("npt"), "N\n").unwrap();
        assert_eq!(machine.refuses(Wish::Shadow), None);
    }
}
