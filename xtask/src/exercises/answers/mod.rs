//! One module for each exercise: from the evidence to its answer.

mod boot;
mod capabilities;
mod hypercall;
mod leaves;
mod paging;
mod queries;
mod reasons;

use super::evidence::{Evidence, Ran};
use super::labs::arguments;
use super::plan::{self, Exercise};
use super::profile::Profile;
use super::results::Answered;
use crate::kvm_module::Paging;
use crate::step::Step;

/// The answer to one exercise.
pub(crate) fn answer(exercise: Exercise, labs: &[Evidence]) -> Answered {
    let mut answered = match exercise {
        Exercise::Capabilities => capabilities::answer(labs),
        Exercise::Hypercall => hypercall::answer(labs),
        Exercise::Leaves => leaves::answer(labs),
        Exercise::Boot => boot::answer(labs),
        Exercise::Queries => queries::answer(labs),
        Exercise::Reasons => reasons::answer(labs),
        Exercise::Paging => paging::answer(labs),
    };
    answered.name = exercise.name();
    let runs = plan::RUNS
        .iter()
        .filter(|run| run.serves.contains(&exercise));
    answered.ran = runs
        .map(|run| {
            let args = arguments(run, None, &format!("{}.json", run.name));
            Step::new("exitvisor").args(args).to_string()
        })
        .collect();
    answered
}

/// The run and its profile; where there is none, that is noted. Whether the guest was content is
/// an expectation.
fn profiled<'e>(
    answered: &mut Answered,
    lab: &'e Evidence,
    paging: Paging,
    name: &str,
) -> Option<(Ran<'e>, &'e Profile)> {
    match lab.profiled(paging, name) {
        Err(why) => {
            answered.not_run(
                &lab.title,
                format!("{name}, {} paging: {why}", paging.name()),
            );
            None
        }
        Ok((ran, profile)) => {
            if let Some(why) = profile.incomplete() {
                answered.not_run(
                    &lab.title,
                    format!("{name}: not all exits are counted: {why}"),
                );
            }
            let end = &profile.end;
            answered.expect(
                &lab.title,
                format!("the guest of the run `{name}` ends well"),
                end.status == 0 && ran.said.status == 0,
                format!("status {}: {}", ran.said.status, end.detail),
            );
            Some((ran, profile))
        }
    }
}

/// A column's title for each lab, behind others.
fn columns(first: &[&str], labs: &[&str], of_lab: &[&str]) -> Vec<String> {
    let mut columns: Vec<String> = first.iter().map(|&title| title.to_owned()).collect();
    for lab in labs {
        for title in of_lab {
            let (right, title) = match title.strip_prefix('>') {
                Some(title) => (">", title),
                None => ("", *title),
            };
            columns.push(format!(
                "{right}{lab}{}{title}",
                if title.is_empty() { "" } else { ": " }
            ));
        }
    }
    columns
}

/// `AMD lab` → `AMD`
fn short(title: &str) -> &str {
    title.strip_suffix(" lab").unwrap_or(title)
}

/// A row of a CSV.
fn row(cells: impl IntoIterator<Item = impl ToString>) -> Vec<String> {
    cells.into_iter().map(|cell| cell.to_string()).collect()
}
