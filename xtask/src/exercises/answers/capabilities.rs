//! The VMX capability report.

use super::super::evidence::Evidence;
use super::super::plan::Paging;
use super::super::results::Answered;

pub(super) fn answer(labs: &[Evidence]) -> Answered {
    let mut answered = Answered {
        title: "What can KVM intercept and control?".to_owned(),
        question:
            "Read the VMX capability MSRs, and say of each pin-based, primary, secondary, exit and \
                   entry control whether it can be set and whether it can be cleared."
                .to_owned(),
        ..Answered::default()
    };
    for lab in labs {
        match lab.run(Paging::Nested, "capabilities") {
            Err(why) => answered.not_run(&lab.title, why),
            Ok(ran) if ran.said.status != 0 => answered.not_run(&lab.title, ran.said.complaint()),
            Ok(_) => {}
        }
    }
    answered
}
