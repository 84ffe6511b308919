//! The profile as JSON: the model as it is, for other programs and for `compare`.

use crate::profile::Profile;

/// The profile as indented JSON, ending in a newline.
pub fn render(profile: &Profile) -> String {
    pretty(profile)
}

/// Any value of ours as indented JSON. Our types have string keys only, so it cannot fail.
pub(super) fn pretty(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixtures;

    /// Whoever changes this snapshot changes the schema.
    #[test]
    fn schema() {
        let mut profile = fixtures::reboots();
        profile.milestones.truncate(2);
        profile.reboots.truncate(1);
        profile.reboots_dropped = 2;
        let pass = &mut profile.reboots[0];
        pass.milestones.truncate(1);
        pass.total.reasons.truncate(1);
        pass.vcpus[0].reasons.truncate(1);
        profile.reasons.truncate(2);
        insta::assert_snapshot!(render(&profile));
    }

    /// What the kernel ledger adds to it.
    #[test]
    fn schema_with_the_kernel_ledger() {
        let mut profile = fixtures::histograms();
        profile.milestones.truncate(1);
        profile.vcpus.clear();
        profile.reasons.truncate(2);
        profile.histograms.truncate(2);
        let total = &mut profile.total;
        total.reasons.truncate(1);
        total.codes.drain(1..total.codes.len() - 2);
        total.asks.truncate(2);
        total.emulated = fixtures::emulated().total.emulated;
        total.emulated.truncate(1);
        insta::assert_snapshot!(render(&profile));
    }
}
