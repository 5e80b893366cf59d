//! Plain text in 80 columns: wrapping, tables, durations, counts.

/// No line of ours is longer, unless a single word is.
pub(crate) const COLUMNS: usize = 80;
/// Between two columns of a table.
const GAP: &str = "  ";

/// `text` with control characters replaced, so that no answer can steer the terminal it is shown on.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// `text` broken into lines of at most [`COLUMNS`]; the first begins with `first`, the others with `rest`.
/// Ends with a newline.
pub(crate) fn wrap(first: &str, rest: &str, text: &str) -> String {
    let mut lines = String::new();
    let mut line = first.to_owned();
    let mut is_empty = true;
    for word in clean(text).split_whitespace() {
        let width = line.chars().count() + usize::from(!is_empty) + word.chars().count();
        if !is_empty && width > COLUMNS {
            lines.push_str(&line);
            lines.push('\n');
            line.clear();
            line.push_str(rest);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    lines.push_str(line.trim_end());
    lines.push('\n');
    lines
}

/// How a column stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows under headings, each column as wide as its widest cell. A last cell that does not fit in the line goes below
/// it, indented, so that long reasons do not widen the table; a last heading that does not fit is left out.
pub(crate) fn table<const N: usize>(columns: [(&str, Align); N], rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> =
        rows.iter().map(|row| row.each_ref().map(|cell| clean(cell.trim()))).collect();
    let mut headings = columns.map(|(heading, _)| heading);
    let mut widths = headings.map(|heading| heading.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row).take(N.saturating_sub(1)) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let before: usize = widths.iter().take(N.saturating_sub(1)).map(|width| width + GAP.len()).sum();
    let room = COLUMNS.saturating_sub(before);
    if let (Some(heading), Some(width)) = (headings.last_mut(), widths.last_mut()) {
        if *width > room {
            *heading = "";
            *width = 0;
        }
        // Only among the cells that fit do those of the last column stand right.
        let cells = rows.iter().filter_map(|row| row.last()).map(|cell| cell.chars().count());
        *width = cells.filter(|cell| *cell <= room).fold(*width, usize::max);
    }

    let mut text = String::new();
    line(&mut text, &columns, &widths, &headings);
    for row in &rows {
        let mut cells = row.each_ref().map(String::as_str);
        let below = match cells.last_mut() {
            Some(last) if last.chars().count() > room => std::mem::take(last),
            Some(_) | None => "",
        };
        line(&mut text, &columns, &widths, &cells);
        if !below.is_empty() {
            text.push_str(&wrap("    ", "    ", below));
        }
    }
    text
}

fn line<const N: usize>(
    text: &mut String,
    columns: &[(&str, Align); N],
    widths: &[usize; N],
    cells: &[&str; N],
) {
    let mut line = String::new();
    for ((cell, width), (_, align)) in cells.iter().zip(widths).zip(columns) {
        match align {
            Align::Left => line.push_str(&format!("{cell:<width$}{GAP}")),
            Align::Right => line.push_str(&format!("{cell:>width$}{GAP}")),
        }
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

/// A span in its two largest units: `4 m 12 s`, `2 d`, `0 s`. What is smaller is cut off.
pub(crate) fn duration(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let Some(first) = UNITS.iter().position(|(length, _)| seconds >= *length) else {
        return "0 s".to_owned();
    };
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (length, name) in UNITS.iter().skip(first).take(2) {
        if rest >= *length {
            parts.push(format!("{} {name}", rest / length));
        }
        rest %= length;
    }
    parts.join(" ")
}

/// A count, its digits in groups of three; from 100 million on in three digits or four, as `1.234 G`.
pub(crate) fn count(number: u64) -> String {
    const SCALES: [(u64, &str); 4] =
        [(1_000_000_000_000_000, "P"), (1_000_000_000_000, "T"), (1_000_000_000, "G"), (1_000_000, "M")];
    if number >= 100_000_000
        && let Some((scale, name)) = SCALES.iter().find(|(scale, _)| number >= *scale)
    {
        let thousandths = number / (scale / 1_000);
        return format!("{}.{:03} {name}", thousandths / 1_000, thousandths % 1_000);
    }
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (252, "4 m 12 s"),
            (300, "5 m"),
            (3_605, "1 h"),
            (14_400, "4 h"),
            (90_061, "1 d 1 h"),
            (31_536_000, "365 d"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn counts_read_well() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1 000"),
            (99_999_999, "99 999 999"),
            (123_456_789, "123.456 M"),
            (1_234_000_000, "1.234 G"),
            (u64::MAX, "18446.744 P"),
        ] {
            assert_eq!(count(number), text);
        }
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(wrap("", "", "a\u{1b}[2Jb\u{9b}c"), "a?[2Jb?c\n");
        assert_eq!(table([("X", Align::Left)], &[["\u{7}bell".to_owned()]]), "X\n?bell\n");
    }

    #[test]
    fn a_long_last_cell_goes_below() {
        let long = "word ".repeat(30);
        let text = table([("A", Align::Right), ("B", Align::Left)], &[["1".to_owned(), long]]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], ["A  B", "1"]);
        assert!(lines.iter().all(|line| line.chars().count() <= COLUMNS));
        assert!(lines[2].starts_with("    word"));
    }
}
