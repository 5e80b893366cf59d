//! The chart: two panels of bars, one above the other, one bar for each act and baseline.

use std::fmt::Write as _;

use super::{Act, Baseline, Cost, Report};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 680.0;
const LEFT: f64 = 40.0;
const PANEL_WIDTH: f64 = 890.0;
const PANEL_HEIGHT: f64 = 180.0;
/// From the top of one panel's title to that of the next.
const PANEL_STEP: f64 = 285.0;
const TOP: f64 = 110.0;
/// The widest that a bar may be, with its gap.
const BAR: f64 = 24.0;
/// Letters in a line under the bars.
const LINE: usize = 13;

/// One panel.
struct Panel<'a> {
    top: f64,
    title: &'static str,
    acts: &'a [Act],
    most: f64,
    /// Height of a bar in the unit of `most`, and what is written above it; `None` where nothing was measured.
    value: &'a dyn Fn(Act, Baseline) -> Option<(f64, String)>,
}

const fn colour(baseline: Baseline) -> &'static str {
    match baseline {
        Baseline::NoCookies => "#b23a48",
        Baseline::Debian => "#8d99ae",
        Baseline::Observe => "#7fb7be",
        Baseline::Enforce => "#2a6f97",
    }
}

/// The report as an SVG image.
pub fn svg(report: &Report, machine: &str) -> String {
    let played = |act: &Act| report.rows.iter().any(|row| row.act == *act);
    let acts: Vec<Act> = Act::ALL.into_iter().filter(played).collect();
    let attacks: Vec<Act> = acts.iter().copied().filter(|act| *act != Act::Quiet).collect();
    let success = |act, baseline| {
        let part = report.row(act, baseline)?.visits.success()?;
        Some((100.0 * part, format!("{:.0}", 100.0 * part)))
    };
    let cost = |act, baseline| match report.cost(act, baseline)? {
        Cost::Measured { milliseconds, .. } => Some((milliseconds, format!("{milliseconds:.0}"))),
        Cost::NotSeparable => Some((0.0, "≈0".to_owned())),
    };
    let costs = attacks.iter().flat_map(|act| Baseline::ALL.map(|baseline| cost(*act, baseline)));
    let most = costs.flatten().map(|(value, _)| value).fold(1.0, f64::max);

    let mut image = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\" fill=\"#222\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n"
    );
    label(&mut image, (40.0, 30.0), "start", 18.0, "A host under attack, with and without Tunica");
    label(&mut image, (40.0, 50.0), "start", 11.0, machine);
    let mut left = 40.0;
    for baseline in Baseline::ALL {
        if report.rows.iter().any(|row| row.baseline == baseline) {
            bar(&mut image, (left, 66.0), (12.0, 12.0), colour(baseline));
            label(&mut image, (left + 18.0, 76.0), "start", 12.0, baseline.title());
            left += 180.0;
        }
    }
    let panels = [
        Panel {
            top: TOP,
            title: "legitimate visits that succeed, %",
            acts: &acts,
            most: 100.0,
            value: &success,
        },
        Panel {
            top: TOP + PANEL_STEP,
            title: "softirq time for 100 000 attack packets, ms",
            acts: &attacks,
            most,
            value: &cost,
        },
    ];
    for panel in &panels {
        panel.draw(&mut image);
    }
    image.push_str("</svg>\n");
    image
}

impl Panel<'_> {
    fn draw(&self, image: &mut String) {
        let bottom = self.top + 20.0 + PANEL_HEIGHT;
        label(image, (LEFT, self.top), "start", 13.0, self.title);
        let _ = writeln!(image, "<path d=\"M{LEFT} {bottom}H{}\" stroke=\"#222\"/>", LEFT + PANEL_WIDTH);
        let step = PANEL_WIDTH / self.acts.len().max(1) as f64;
        let width = BAR.min(step / (Baseline::ALL.len() as f64 + 0.5));
        for (place, act) in self.acts.iter().enumerate() {
            let middle = LEFT + step * (place as f64 + 0.5);
            for (line, words) in lines(act.title()).iter().enumerate() {
                label(image, (middle, bottom + 16.0 + 13.0 * line as f64), "middle", 11.0, words);
            }
            let mut left = middle - width * Baseline::ALL.len() as f64 / 2.0;
            for baseline in Baseline::ALL {
                if let Some((value, text)) = (self.value)(*act, baseline) {
                    let height = (PANEL_HEIGHT - 14.0) * value / self.most;
                    // Where there is nothing to show, the number says so.
                    if height > 0.0 {
                        bar(image, (left, bottom - height), (width - 3.0, height), colour(baseline));
                    }
                    label(image, (left + (width - 3.0) / 2.0, bottom - height - 4.0), "middle", 9.0, &text);
                }
                left += width;
            }
        }
    }
}

/// A title in lines of at most [`LINE`] letters, unless a word is longer.
pub(crate) fn lines(title: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in title.split(' ') {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= LINE => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) | None => lines.push(word.to_owned()),
        }
    }
    lines
}

pub(crate) fn bar(image: &mut String, (left, top): (f64, f64), (width, height): (f64, f64), colour: &str) {
    let _ = writeln!(
        image,
        "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>"
    );
}

pub(crate) fn label(image: &mut String, (left, base): (f64, f64), anchor: &str, size: f64, text: &str) {
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        image,
        "<text x=\"{left:.1}\" y=\"{base:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{escaped}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_break_between_words() {
        assert_eq!(lines("forged-source SYN flood, IPv6"), ["forged-source", "SYN flood,", "IPv6"]);
        assert_eq!(lines("scan"), ["scan"]);
    }

    #[test]
    fn an_empty_report_is_still_an_image() {
        let image = svg(&Report::default(), "2 cores <&>");
        assert!(image.starts_with("<svg ") && image.ends_with("</svg>\n"));
        assert!(image.contains("2 cores &lt;&amp;>"));
        assert!(!image.contains("NaN"));
    }
}
