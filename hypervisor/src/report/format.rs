//! Formatting: numbers, bars and strings from a guest, for a terminal. Widths are display widths.

use unicode_width::UnicodeWidthChar;

/// Widest line of a text report, in columns.
pub(crate) const WIDTH: usize = 120;
/// A space at which [`labelled`] does not break a line.
pub(crate) const GLUE: char = '\u{a0}';
/// What stands for "no figure".
pub(crate) const NONE: &str = "–";

/// A string without anything that a terminal would act on: control characters and the ones that
/// change direction or have no shape are escaped.
pub fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if c.is_control() => out.extend(c.escape_default()),
            '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}' => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// Columns that a string takes.
pub(crate) fn width(text: &str) -> usize {
    text.chars().map(|c| c.width().unwrap_or(0)).sum()
}

/// The string, cut to a width; a cut shows as "…".
pub(crate) fn fit(text: &str, most: usize) -> String {
    if width(text) <= most {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used + 1 > most {
            break;
        }
        out.push(c);
    }
    out.truncate(out.trim_end().len());
    out.push('…');
    out
}

/// Breaks words into lines after a label; what follows the first line is indented as far.
/// A no-break space holds two words together and comes out as a space.
pub(crate) fn labelled(label: &str, indent: usize, text: &str) -> String {
    // A command line can be long, but not as long as a file that somebody made up.
    let text = fit(text, 40 * WIDTH);
    let room = WIDTH - indent;
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split(' ').filter(|w| !w.is_empty()) {
        let mut word = word.to_owned();
        loop {
            let line = lines.last().map_or(0, |l| width(l));
            let gap = usize::from(line > 0);
            if line + gap + width(&word) <= room {
                if let Some(l) = lines.last_mut() {
                    l.push_str(&" ".repeat(gap));
                    l.push_str(&word);
                }
                break;
            }
            if line > 0 {
                lines.push(String::new());
                continue;
            }
            // A word longer than a line.
            let mut used = 0;
            let cut = word.char_indices().find(|(_, c)| {
                used += c.width().unwrap_or(0);
                used > room
            });
            let at = cut.map_or(word.len(), |(i, _)| i);
            let rest = word.split_off(at);
            if let Some(l) = lines.last_mut() {
                l.push_str(&word);
            }
            word = rest;
        }
    }
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate() {
        let left = if i == 0 { label } else { "" };
        let row = format!(
            "{left}{}{line}",
            " ".repeat(indent.saturating_sub(width(left)))
        );
        out.push_str(row.replace(GLUE, " ").trim_end());
        out.push('\n');
    }
    out
}

/// A whole number with thousands separators.
pub(crate) fn grouped(number: impl Into<u128>) -> String {
    let digits = number.into().to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A whole number with thousands separators, shortened from a million millions on: "18.4 E".
pub(crate) fn count(number: u64) -> String {
    const FROM: u64 = 1_000_000_000_000;
    if number < FROM {
        return grouped(number);
    }
    let units = [(FROM, 'T'), (FROM * 1_000, 'P'), (FROM * 1_000_000, 'E')];
    let fits = units.iter().rev().find(|(unit, _)| number >= *unit);
    let (unit, letter) = fits.copied().unwrap_or(units[0]);
    format!("{:.2} {letter}", number as f64 / unit as f64)
}

/// A number to three digits with its unit: "4.80 M"; whole below a hundred thousand.
pub(crate) fn si(number: u64) -> String {
    const UNITS: [char; 5] = ['M', 'G', 'T', 'P', 'E'];
    if number < 100_000 {
        return grouped(number);
    }
    let mut value = number as f64 / 1e6;
    let mut unit = UNITS[0];
    for &next in &UNITS[1..] {
        if value < 999.5 {
            break;
        }
        value /= 1e3;
        unit = next;
    }
    let decimals = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {unit}")
}

/// The text as one word for [`labelled`]: not broken into lines.
pub(crate) fn glued(text: &str) -> String {
    text.replace(' ', &GLUE.to_string())
}

/// A bar of the whole width, split by shade. A part that is not nothing shows.
pub(crate) fn shades(parts: &[(char, u64)], width: usize) -> String {
    let all: u128 = parts.iter().map(|&(_, n)| u128::from(n)).sum();
    let mut cells: Vec<usize> = parts
        .iter()
        .map(|&(_, n)| match n {
            0 => 0,
            n => ((u128::from(n) * width as u128 / all) as usize).max(1),
        })
        .collect();
    // What rounding left over, or took too much of, is the largest part's.
    let sum: usize = cells.iter().sum();
    if let Some(most) = cells.iter_mut().max()
        && sum > 0
    {
        *most = (*most + width).saturating_sub(sum);
    }
    let shaded = parts.iter().zip(&cells);
    shaded
        .map(|(&(shade, _), &n)| shade.to_string().repeat(n))
        .collect()
}

/// A count, or "–" for none.
pub(crate) fn count_or_none(number: u64) -> String {
    if number == 0 {
        NONE.to_owned()
    } else {
        count(number)
    }
}

/// A difference with its sign.
pub(crate) fn signed(number: i128) -> String {
    let size = number.unsigned_abs();
    let size = u64::try_from(size).map_or_else(|_| grouped(size), count);
    match number {
        0 => "0".to_owned(),
        n if n > 0 => format!("+{size}"),
        _ => format!("−{size}"),
    }
}

/// A share of a whole.
pub(crate) fn percent(share: Option<f64>) -> String {
    match share {
        None => NONE.to_owned(),
        Some(s) if s > 0.0 && s < 0.000_5 => "< 0.1 %".to_owned(),
        Some(s) => format!("{:.1} %", s * 100.0),
    }
}

/// A relative change with its sign.
pub(crate) fn signed_percent(change: Option<f64>) -> String {
    match change {
        None => NONE.to_owned(),
        Some(c) if c >= 100.0 => format!("×{:.0}", c + 1.0),
        Some(c) if c < 0.0 => format!("−{:.1} %", -c * 100.0),
        Some(c) => format!("+{:.1} %", c * 100.0),
    }
}

/// A bar of eighth blocks. Anything above zero shows.
pub(crate) fn bar(value: u64, most: u64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    if value == 0 || most == 0 {
        return String::new();
    }
    let full = 8 * width as u128;
    let scaled = (u128::from(value) * full + u128::from(most) / 2) / u128::from(most);
    let eighths = scaled.clamp(1, full) as usize;
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

/// A bar for what is not known exactly: a shade, in whole blocks.
pub(crate) fn shade(value: u64, most: u64, width: usize) -> String {
    "░".repeat(self::width(&bar(value, most, width)))
}

/// A size in bytes.
pub(crate) fn bytes(size: u64) -> String {
    let units = [
        (1u64 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ];
    match units.iter().find(|(unit, _)| size >= *unit) {
        Some((unit, name)) if size.is_multiple_of(*unit) => format!("{} {name}", size / unit),
        Some((unit, name)) => format!("{:.1} {name}", size as f64 / *unit as f64),
        None => format!("{size} B"),
    }
}

/// How a column of times is written: one unit for all of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    per_unit: f64,
    unit: &'static str,
    decimals: usize,
}

impl Clock {
    /// For times up to this many nanoseconds.
    pub(crate) fn up_to(nanos: u64) -> Self {
        let (per_unit, unit, decimals) = match nanos {
            0..10_000_000 => (1e6, "ms", 3),
            10_000_000..10_000_000_000 => (1e6, "ms", 1),
            _ => (1e9, "s", 2),
        };
        Self {
            per_unit,
            unit,
            decimals,
        }
    }

    /// A time.
    pub(crate) fn show(self, nanos: u64) -> String {
        let value = nanos as f64 / self.per_unit;
        format!("{value:.*} {}", self.decimals, self.unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers() {
        assert_eq!(
            [0u64, 7, 999, 1_000, 1_234_567].map(grouped).join(" "),
            "0 7 999 1,000 1,234,567"
        );
        assert_eq!(count(999_999_999_999), "999,999,999,999");
        assert_eq!(count(1_000_000_000_000), "1.00 T");
        assert_eq!(count(u64::MAX), "18.45 E");
        assert_eq!([0i128, 5, -1_200].map(signed).join(" "), "0 +5 −1,200");
        assert_eq!(
            [None, Some(0.0), Some(0.000_1), Some(0.375), Some(1.0)]
                .map(percent)
                .join("|"),
            "–|0.0 %|< 0.1 %|37.5 %|100.0 %"
        );
        assert_eq!(
            [512, 1024, 1536, 64 << 20, 3 << 30].map(bytes).join(" "),
            "512 B 1 KiB 1.5 KiB 64 MiB 3 GiB"
        );
        assert_eq!(Clock::up_to(9_800_000).show(1_234_567), "1.235 ms");
        assert_eq!(Clock::up_to(30_000_000_000).show(1_234_567_890), "1.23 s");
    }

    #[test]
    fn bars() {
        assert_eq!(bar(0, 8, 4), "");
        assert_eq!(bar(1, u64::MAX, 4), "▏");
        assert_eq!(bar(u64::MAX, u64::MAX, 4), "████");
        assert_eq!(bar(5, 8, 1), "▋");
        assert_eq!(bar(9, 8, 2), "██");
        assert_eq!(bar(9, 0, 2), "");
    }

    #[test]
    fn three_digits() {
        let shown = [
            0,
            99_999,
            100_000,
            999_994,
            9_994_999,
            9_995_000,
            123_456_789,
        ]
        .map(si);
        assert_eq!(
            shown.join(" "),
            "0 99,999 0.10 M 1.00 M 9.99 M 10.0 M 123 M"
        );
        assert_eq!(
            [999_499_999, 999_500_000, u64::MAX].map(si).join(" "),
            "999 M 1.00 G 18.4 E"
        );
    }

    #[test]
    fn shaded_bars_fill_their_width() {
        assert_eq!(shades(&[('a', 1), ('b', 1), ('c', 2)], 8), "aabbcccc");
        assert_eq!(
            shades(&[('a', 1), ('b', u64::MAX), ('c', 0)], 8),
            "abbbbbbb"
        );
        assert_eq!(shades(&[('a', 1), ('b', 1), ('c', 1)], 8), "aabbcccc");
        assert_eq!(shades(&[('a', 0)], 8), "");
    }

    #[test]
    fn strings_from_a_guest() {
        assert_eq!(clean("\u{1b}[2J\r\n\u{9b}é"), "\\u{1b}[2J\\r\\n\\u{9b}é");
        assert_eq!(clean("a\u{202e}b\u{200b}"), "a\\u{202e}b\\u{200b}");
        assert_eq!(fit("milestone", 9), "milestone");
        assert_eq!(fit("milestone", 5), "mile…");
        assert_eq!(fit("日本語", 5), "日本…");
        assert_eq!(fit("日本語", 4), "日…");
    }

    #[test]
    fn long_lines_are_broken() {
        let text = labelled("host", 10, &"word ".repeat(40));
        assert!(
            text.lines().all(|l| width(l) <= WIDTH) && text.lines().count() == 2,
            "{text}"
        );
        assert!(text.lines().nth(1).unwrap().starts_with("          word"));
        assert_eq!(labelled("x", 10, &"y".repeat(300)).lines().count(), 3);
    }

    proptest! {
        #[test]
        fn nothing_is_wider_than_asked(text in "\\PC{0,60}|.{0,60}", most in 1usize..40) {
            prop_assert!(width(&fit(&clean(&text), most)) <= most);
            let lines = labelled("label", 10, &clean(&text.repeat(5)));
            prop_assert!(lines.lines().all(|l| width(l) <= WIDTH && !l.ends_with(' ')));
            prop_assert!(!clean(&text).contains(char::is_control));
        }
    }
}
