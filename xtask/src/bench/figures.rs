//! Figures beside what we aim at, as people and programs read them.

use serde::Serialize;

/// All that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    /// In the order in which they are shown.
    pub(crate) sections: Vec<Section>,
}

/// Figures of one source, found by one method.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Section {
    /// What they are about, and the machine that they are from.
    pub(crate) title: String,
    /// How they were found; lines for people.
    pub(crate) method: String,
    /// The figures.
    pub(crate) figures: Vec<Figure>,
    /// What could not be measured here, and why; a line each.
    pub(crate) unmeasured: Vec<String>,
}

/// One figure: what was measured, and what we aim at.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    /// `s`, `MiB`, `instructions`, or nothing for a count.
    pub(crate) unit: &'static str,
    /// `None` if this machine cannot show it.
    pub(crate) measured: Option<Spread>,
    /// At most this much is what we aim at; `None` if nothing is said.
    pub(crate) aim: Option<f64>,
    /// Median over aim.
    pub(crate) ratio: Option<f64>,
}

impl Figure {
    /// With its ratio.
    pub(crate) fn new(
        name: &'static str,
        unit: &'static str,
        aim: Option<f64>,
        measured: Option<Spread>,
    ) -> Self {
        let ratio = measured
            .zip(aim)
            .map(|(measured, aim)| measured.median / aim);
        Self {
            name,
            unit,
            measured,
            aim,
            ratio,
        }
    }

    /// A value in its unit. The instruction is that of a whole section, so its title names it.
    fn shown(&self, value: Option<f64>) -> String {
        match value {
            None => "–".to_owned(),
            Some(value) if self.unit == INSTRUCTIONS => format!("{value:.0}"),
            Some(value) if self.unit.is_empty() && value.fract() == 0.0 => format!("{value}"),
            Some(value) if self.unit == "s" => format!("{value:.3} s"),
            Some(value) if self.unit.is_empty() => format!("{value:.2}"),
            Some(value) => format!("{value:.2} {}", self.unit),
        }
    }
}

/// The unit of what an emulator counts.
pub(crate) const INSTRUCTIONS: &str = "instructions";

/// Of all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` if a round lacks the figure, or there was no round.
    pub(crate) fn of(values: impl Iterator<Item = Option<f64>>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect::<Option<_>>()?;
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let (upper, lower) = (values.len() / 2, (values.len() - 1) / 2);
        Some(Self {
            median: f64::midpoint(values[lower], values[upper]),
            min,
            max,
        })
    }
}

/// The figures as aligned tables.
pub(crate) fn text(results: &Results) -> String {
    let sections = results.sections.iter().map(section);
    sections.collect::<Vec<_>>().join("\n")
}

fn section(section: &Section) -> String {
    let mut text = format!("{}\n", section.title);
    let figures = if section
        .figures
        .iter()
        .all(|figure| figure.measured.is_none())
    {
        &[]
    } else {
        &section.figures[..]
    };
    if !figures.is_empty() {
        text += &format!(
            "{:<36} {:>10} {:>10} {:>10} {:>10} {:>7}\n",
            "", "median", "min", "max", "aim ≤", "ratio"
        );
    }
    for figure in figures {
        let number = |value| figure.shown(value);
        let ratio = figure
            .ratio
            .map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let measured = figure.measured;
        text += format!(
            "{:<36} {:>10} {:>10} {:>10} {:>10} {:>7}",
            figure.name,
            number(measured.map(|spread| spread.median)),
            number(measured.map(|spread| spread.min)),
            number(measured.map(|spread| spread.max)),
            figure.aim.map_or(String::new(), |aim| number(Some(aim))),
            ratio,
        )
        .trim_end();
        text.push('\n');
    }
    for line in &section.unmeasured {
        text += &format!("not measured: {line}\n");
    }
    for line in section.method.lines() {
        text += &format!("  {line}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let of = |values: &[f64]| Spread::of(values.iter().copied().map(Some)).map(|s| s.median);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[3.0]), Some(3.0));
        assert_eq!(of(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(of(&[9.0, 1.0, 2.0, 4.0]), Some(3.0));
        assert_eq!(Spread::of([Some(1.0), None].into_iter()), None);
    }

    #[test]
    fn sections_are_aligned() {
        let spread = Spread::of([360.2, 361.8].map(Some).into_iter());
        let results = Results {
            sections: vec![
                Section {
                    title: "one: instructions".into(),
                    method: "a method\nof two lines".into(),
                    figures: vec![
                        Figure::new("… --ledger counts adds", INSTRUCTIONS, Some(380.0), spread),
                        Figure::new("… a witness adds", INSTRUCTIONS, None, None),
                    ],
                    unmeasured: vec!["a witness: it is not there".into()],
                },
                Section {
                    title: "another".into(),
                    figures: vec![Figure::new("a witness", INSTRUCTIONS, None, None)],
                    unmeasured: vec!["all of it: no emulator".into()],
                    ..Section::default()
                },
            ],
        };
        insta::assert_snapshot!(text(&results));
    }
}
