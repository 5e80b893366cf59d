//! The chart: page loads that succeed, and how long they take, one bar for each act and way.

use std::fmt::Write as _;

use super::{Act, Report, Row, Way};
use crate::report::{
    chart::{bar, label},
    grouped,
};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 40.0;
const PANEL_WIDTH: f64 = 420.0;
const PANEL_HEIGHT: f64 = 200.0;
/// From one panel's left edge to that of the next.
const PANEL_STEP: f64 = 470.0;
const TOP: f64 = 110.0;
const BAR: f64 = 56.0;

/// One panel.
struct Panel<'a> {
    left: f64,
    title: &'static str,
    acts: &'a [Act],
    most: f64,
    /// Height of a bar in the unit of `most`, and what is written above it; `None` where nothing was measured.
    value: &'a dyn Fn(&Row) -> Option<(f64, String)>,
}

const fn colour(way: Way) -> &'static str {
    match way {
        Way::Bare => "#8d99ae",
        Way::Profile => "#7fb7be",
        Way::Sized => "#2a6f97",
    }
}

/// The report as an SVG image.
pub fn svg(report: &Report, machine: &str) -> String {
    let success = |row: &Row| {
        let part = row.loads.success()?;
        Some((100.0 * part, format!("{:.0}", 100.0 * part)))
    };
    let times = report.rows.iter().filter_map(|row| row.loads.percentile(50));
    let most = f64::from(times.max().unwrap_or(1).max(1));
    let time = |row: &Row| {
        Some(match row.loads.percentile(50) {
            Some(time) => (f64::from(time), grouped(time.into())),
            None => (0.0, "none".to_owned()),
        })
    };
    let mut image = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\" fill=\"#222\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n"
    );
    let title = "An onion service under attack through tor, with and without Tunica";
    label(&mut image, (40.0, 30.0), "start", 18.0, title);
    label(&mut image, (40.0, 50.0), "start", 11.0, machine);
    let mut left = LEFT;
    for way in Way::ALL {
        bar(&mut image, (left, 66.0), (12.0, 12.0), colour(way));
        label(&mut image, (left + 18.0, 76.0), "start", 12.0, &way.title().replace('`', ""));
        left += 200.0;
    }
    let panels = [
        Panel {
            left: LEFT,
            title: "legitimate page loads that succeed, %",
            acts: &Act::ALL,
            most: 100.0,
            value: &success,
        },
        Panel {
            left: LEFT + PANEL_STEP,
            title: "half of those that succeed are there within, ms",
            acts: &Act::ALL,
            most,
            value: &time,
        },
    ];
    for panel in &panels {
        panel.draw(&mut image, report);
    }
    image.push_str("</svg>\n");
    image
}

impl Panel<'_> {
    fn draw(&self, image: &mut String, report: &Report) {
        let bottom = TOP + 20.0 + PANEL_HEIGHT;
        label(image, (self.left, TOP), "start", 13.0, self.title);
        let _ = writeln!(
            image,
            "<path d=\"M{} {bottom}H{}\" stroke=\"#222\"/>",
            self.left,
            self.left + PANEL_WIDTH
        );
        let step = PANEL_WIDTH / self.acts.len().max(1) as f64;
        for (place, act) in self.acts.iter().enumerate() {
            let middle = self.left + step * (place as f64 + 0.5);
            label(image, (middle, bottom + 16.0), "middle", 11.0, act.title());
            let rows: Vec<&Row> = Way::ALL.iter().filter_map(|way| report.row(*act, *way)).collect();
            let mut left = middle - BAR * rows.len() as f64 / 2.0;
            for row in rows {
                if let Some((value, text)) = (self.value)(row) {
                    let height = (PANEL_HEIGHT - 14.0) * value / self.most;
                    // Where there is nothing to show, the number says so.
                    if height > 0.0 {
                        bar(image, (left, bottom - height), (BAR - 6.0, height), colour(row.way));
                    }
                    label(image, (left + (BAR - 6.0) / 2.0, bottom - height - 4.0), "middle", 10.0, &text);
                }
                left += BAR;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_report_is_still_an_image() {
        let image = svg(&Report::default(), "2 cores <&>");
        assert!(image.starts_with("<svg ") && image.ends_with("</svg>\n"));
        assert!(image.contains("2 cores &lt;&amp;>"));
        assert!(!image.contains("NaN"));
    }
}
