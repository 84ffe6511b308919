//! What the labs brought: for each of them, what every run said, and its profile.

use std::collections::BTreeMap;

use super::inside::{Said, Told};
use super::profile::Profile;
use super::survey::Survey;
use crate::kvm_module::Paging;

/// One lab's.
#[derive(Clone, Debug)]
pub(crate) struct Evidence {
    /// `AMD lab`
    pub(crate) title: String,
    /// By paging: what it said, or why it was not run.
    pub(crate) boots: BTreeMap<Paging, Result<Boot, String>>,
    /// exitvisor's own comparison of pagings: what it is of, and its text, or why it refused.
    pub(crate) comparisons: Vec<(&'static str, Result<String, String>)>,
}

/// One boot of a lab.
#[derive(Clone, Debug, Default)]
pub(crate) struct Boot {
    pub(crate) told: Told,
    /// By the run's name; a run without one is not there.
    pub(crate) profiles: BTreeMap<String, Profile>,
    /// What `exitvisor caps` said.
    pub(crate) survey: Option<Survey>,
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ran<'e> {
    pub(crate) said: &'e Said,
    profile: Option<&'e Profile>,
}

impl Evidence {
    /// A run, or why there is none.
    pub(crate) fn run(&self, paging: Paging, name: &str) -> Result<Ran<'_>, String> {
        let boot = match self.boots.get(&paging) {
            None => return Err("not asked for".to_owned()),
            Some(boot) => boot.as_ref().map_err(Clone::clone)?,
        };
        let said = boot.told.runs.get(name);
        let said = said.ok_or("the lab ended before it")?;
        let profile = boot.profiles.get(name);
        Ok(Ran { said, profile })
    }

    /// A run and its profile, or why there is none.
    pub(crate) fn profiled(
        &self,
        paging: Paging,
        name: &str,
    ) -> Result<(Ran<'_>, &Profile), String> {
        let ran = self.run(paging, name)?;
        let profile = ran.profile.ok_or_else(|| ran.said.complaint())?;
        Ok((ran, profile))
    }

    /// What `exitvisor caps` said with nested paging, or why it did not.
    pub(crate) fn survey(&self, name: &str) -> Result<&Survey, String> {
        let ran = self.run(Paging::Nested, name)?;
        let boot = self.boots.get(&Paging::Nested);
        let boot = boot.and_then(|boot| boot.as_ref().ok());
        let survey = boot.and_then(|boot| boot.survey.as_ref());
        survey.ok_or_else(|| ran.said.complaint())
    }

    /// Any profile: they all tell of the same host.
    pub(crate) fn any_profile(&self) -> Option<&Profile> {
        let boots = self.boots.values().filter_map(|boot| boot.as_ref().ok());
        boots.flat_map(|boot| boot.profiles.values()).next()
    }
}
