//! Running a guest to its end, over resets if it may: the profile of every boot.

mod end;
mod images;
mod names;
mod session;
mod watch;

use std::mem;

use exit_abi::reason::Reason;

use crate::config::{Config, OnReset, edition_name};
use crate::devices::control::Cause;
use crate::error::{Error, host as host_error};
use crate::exits::books::Books;
use crate::held::Held;
use crate::profile::passes::Reboots;
use crate::profile::{KvmKind, Machine, Pass, Profile, ReasonInfo, SCHEMA, Tool, VERSION};
use crate::vm::{self, Vm};
use crate::{host, privileges, status};

use session::{Outcome, Session};

/// Runs a guest to its end and says what it cost. What a person must know beforehand goes to
/// `tell`, a line at a time.
pub fn run(config: &Config, tell: impl Fn(&str)) -> Result<Profile, Error> {
    let created = jiff::Timestamp::now().to_string();
    let mut session = Session::open()?;
    let mut held = Held::default();
    let mut vm = vm::build(config, &mut held, 0, &|| session.is_to_end())?;
    if let Some(notice) = held.notice() {
        tell(notice);
    }
    // Everything is open, and no thread has been started yet.
    privileges::drop_all().map_err(host_error("drop its capabilities"))?;
    let (kvm, tsc_khz, hypercalls) = (vm.kvm, vm.tsc_khz, vm.shared.hypercalls);
    let mut sources = mem::take(&mut vm.sources);
    let images = mem::take(&mut vm.images);
    let boot = mem::take(&mut vm.boot);
    let exit_page = vm.shared.exit_page.as_ref().map(|page| page.kind());
    let reasons = reasons(config, kvm, &vm.shared.books);

    session.limit(config.timeout)?;
    let Outcome {
        mut cause,
        mut standings,
        mut at,
        pass: mut first,
        notes,
        startup_cpu_nanos,
    } = session.pass(config, vm);
    let mut reboots = Reboots::default();
    for resets in 1.. {
        let vm = match again(config, &mut held, &session, &cause, resets) {
            Next::Boot(vm) => vm,
            Next::End(why) => {
                cause = why;
                break;
            }
        };
        if let Err(changed) = images::same(&images, &vm.images) {
            cause = changed;
            break;
        }
        let outcome = session.pass(config, *vm);
        (cause, standings, at) = (outcome.cause, outcome.standings, outcome.at);
        reboots.push(outcome.pass);
    }
    let images_of = [Some(&config.kernel), config.firmware.as_ref()];
    for path in images_of.into_iter().flatten() {
        names::of_image(&mut first.culprits, &mut held.files, path);
        for pass in &mut reboots.kept {
            names::of_image(&mut pass.culprits, &mut held.files, path);
        }
    }
    // Gives the terminal and the signals back.
    drop(session);
    held.admit_gaps(&mut sources);

    let Pass {
        end: first_end,
        milestones,
        milestones_dropped,
        milestones_missed,
        total,
        vcpus,
        gates,
        memory,
        devices,
        histograms: first_histograms,
        culprits,
        ..
    } = first;
    let mut end = end::end(&cause, config, &standings, at);
    notes.iter().for_each(|note| tell(note));
    let passes = reboots.kept.iter().map(|pass| &pass.milestones_missed);
    let passes = passes.collect::<Vec<_>>();
    for missed in &milestones_missed {
        let asked = config.milestones.asks_for(&missed.name);
        if asked
            && passes
                .iter()
                .all(|pass| pass.iter().any(|m| m.name == missed.name))
        {
            tell(&format!("milestone {:?}: {}", missed.name, missed.why));
            if end.status == 0 {
                end.status = status::MISSED;
            }
        }
    }
    let rebooted = !reboots.kept.is_empty() || reboots.dropped > 0;
    let differs = rebooted || first_end.kind != end.kind;
    Ok(Profile {
        schema: SCHEMA.into(),
        version: VERSION,
        tool: Tool {
            name: "exitvisor".into(),
            version: env!("CARGO_PKG_VERSION").into(),
        },
        created,
        host: host::describe(kvm, tsc_khz),
        machine: Machine {
            boot,
            images: images.into_iter().map(images::hash).collect(),
            hypercall: Some(hypercalls.name().into()),
            exit_page: exit_page.map(|kind| kind.name().to_owned()),
            ..machine(config)
        },
        sources,
        end,
        milestones,
        milestones_dropped,
        milestones_missed,
        total,
        vcpus,
        gates,
        memory,
        devices,
        histograms: first_histograms,
        culprits,
        first_end: differs.then_some(first_end),
        reboots: reboots.kept,
        reboots_dropped: reboots.dropped,
        startup_cpu_nanos,
        reasons,
    })
}

/// What follows a pass.
enum Next {
    /// The machine boots again.
    Boot(Box<Vm>),
    /// The run ends, for this cause.
    End(Cause),
}

/// After a pass that ended so: builds the machine anew if the guest has reset itself and may.
fn again(config: &Config, held: &mut Held, session: &Session, cause: &Cause, resets: u32) -> Next {
    let (Cause::Reset, OnReset::Continue(most)) = (cause, config.on_reset) else {
        return Next::End(cause.clone());
    };
    if let Some(outside) = session.ending() {
        return Next::End(outside);
    }
    if resets > most {
        return Next::End(Cause::ResetLimit);
    }
    match vm::build(config, held, resets, &|| session.is_to_end()) {
        Ok(vm) => Next::Boot(Box::new(vm)),
        Err(error) => Next::End(images::not_again(&error)),
    }
}

/// What is known of each reason that is defined.
fn reasons(config: &Config, kvm: KvmKind, books: &Books) -> Vec<ReasonInfo> {
    Reason::all()
        .filter(|r| r.is_defined(config.edition))
        .map(|r| ReasonInfo {
            reason: r.number(),
            name: r.name().unwrap_or("unnamed").to_owned(),
            can_occur: crate::exits::reason::can_occur(kvm, r),
            exact: books.is_exact(r),
        })
        .collect()
}

/// The machine, as far as the configuration tells.
fn machine(config: &Config) -> Machine {
    Machine {
        cpus: config.cpus.get(),
        memory: config.memory.bytes(),
        cmdline: config.cmdline.clone(),
        layout: config.leaves.name.into(),
        leaves: config.leaves.layout.leaves(),
        sdm: edition_name(config.edition).into(),
        boot: String::new(),
        hypercall: None,
        images: Vec::new(),
        exit_page: None,
    }
}
