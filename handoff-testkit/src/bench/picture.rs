//! Where the time of a handover goes, as an SVG drawing. Pure.
//!
//! One panel for each directory; in it one row for each side: the supervisor's phases one after the other, and below them how
//! long the clients heard nothing. All lengths in a panel have the same scale. Medians, so the parts need not add up exactly.

use std::fmt::Write;

use super::report::{Report, phases};
use super::rounds::Measured;
use super::sides::{PHASES, Side};
use super::stats::Summary;

const WIDTH: f64 = 1060.0;
/// Where the bars begin and how long the longest is.
const LEFT: f64 = 110.0;
const SPAN: f64 = 820.0;
const ROW: f64 = 58.0;
const HEAD: f64 = 64.0;
const FOOT: f64 = 40.0;
/// A part that is narrower than its number is drawn without it.
const NARROW: f64 = 40.0;

/// In the order of the phases; told apart in grey too.
const COLOURS: [&str; PHASES.len()] = ["#b15928", "#9ecae1", "#fdae6b", "#e6550d", "#756bb1", "#d9d9d9", "#bdbdbd"];
const PAUSE: &str = "#202020";

/// Draws all directories, one below the other.
pub(super) fn draw(report: &Report) -> String {
    let panel = HEAD + ROW * Side::ALL.len() as f64 + FOOT;
    let key = 34.0 + 20.0 * COLOURS.len().div_ceil(2) as f64;
    let height = panel * report.dirs.len() as f64 + key + 20.0;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>"
    );
    for (number, measured) in report.dirs.iter().enumerate() {
        draw_panel(&mut out, panel * number as f64, &report.title(measured), measured);
    }
    draw_key(&mut out, panel * report.dirs.len() as f64 + 24.0);
    out.push_str("</svg>\n");
    out
}

fn draw_panel(out: &mut String, top: f64, title: &str, measured: &Measured) {
    let rows: Vec<_> = measured.sides.iter().map(|samples| phases(samples).collect::<Vec<_>>()).collect();
    let totals = rows.iter().map(|row| row.iter().map(|(_, it)| it.p50).sum::<f64>());
    let pauses: Vec<f64> = measured.sides.iter().map(|samples| Summary::of(&samples.pause).p50).collect();
    let pauses_end = rows.iter().zip(&pauses).map(|(row, pause)| offset_of_pause(row) + pause);
    let longest = totals.chain(pauses_end).fold(1.0, f64::max);
    let scale = SPAN / longest;
    text(out, 16.0, top + 28.0, "font-size=\"16\" font-weight=\"bold\"", title);
    let bottom = top + HEAD + ROW * rows.len() as f64;
    draw_axis(out, top + HEAD - 10.0, bottom, longest, scale);
    for (number, (side, row)) in Side::ALL.iter().zip(&rows).enumerate() {
        let y = top + HEAD + ROW * number as f64;
        text(out, LEFT - 12.0, y + 20.0, "text-anchor=\"end\" font-weight=\"bold\"", side.name());
        let mut x = LEFT;
        for (name, it) in row {
            let width = it.p50.max(0.0) * scale;
            draw_part(out, (x, y, width), colour_of(name), it.p50);
            x += width;
        }
        let width = pauses[number] * scale;
        rectangle(out, (LEFT + offset_of_pause(row) * scale, y + 31.0, width, 7.0), PAUSE);
        let x = LEFT + offset_of_pause(row) * scale + width + 6.0;
        text(out, x, y + 39.0, "font-size=\"12\"", &format!("pause {:.0}", pauses[number]));
    }
}

/// The clients' pause begins when the old process is told to drain or to stop.
fn offset_of_pause(row: &[(&str, Summary)]) -> f64 {
    let before = row.iter().take_while(|(name, _)| *name == "start");
    before.map(|(_, it)| it.p50).sum()
}

fn draw_part(out: &mut String, (x, y, width): (f64, f64, f64), colour: &str, time: f64) {
    rectangle(out, (x, y, width, 28.0), colour);
    if width >= NARROW {
        text(out, x + width / 2.0, y + 19.0, "text-anchor=\"middle\"", &format!("{time:.0}"));
    }
}

fn draw_axis(out: &mut String, top: f64, bottom: f64, longest: f64, scale: f64) {
    let step = step_of(longest);
    let mut at = 0.0;
    while at <= longest {
        let x = LEFT + at * scale;
        let _ =
            writeln!(out, "<line x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" stroke=\"#e8e8e8\"/>");
        text(out, x, bottom + 16.0, "text-anchor=\"middle\" font-size=\"12\" fill=\"#555\"", &format!("{at:.0}"));
        at += step;
    }
    text(out, LEFT + SPAN + 26.0, bottom + 16.0, "font-size=\"12\" fill=\"#555\"", "microseconds");
}

/// Five to ten steps of a round number.
fn step_of(longest: f64) -> f64 {
    let magnitude = 10_f64.powf((longest / 5.0).log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|digit| digit * magnitude);
    steps.into_iter().rev().find(|step| longest / step >= 5.0).unwrap_or(magnitude)
}

fn draw_key(out: &mut String, top: f64) {
    let entries = PHASES.iter().zip(COLOURS).map(|((name, what), colour)| (format!("{name}: {what}"), colour));
    let pause = ("pause: the longest gap between replies, over all clients".to_owned(), PAUSE);
    for (number, (text_of, colour)) in entries.chain([pause]).enumerate() {
        let x = 16.0 + (number % 2) as f64 * WIDTH / 2.0;
        let y = top + (number / 2) as f64 * 20.0;
        rectangle(out, (x, y, 14.0, 14.0), colour);
        text(out, x + 22.0, y + 12.0, "", &text_of);
    }
}

fn colour_of(phase: &str) -> &'static str {
    let place = PHASES.iter().position(|(name, _)| *name == phase);
    place.map_or("#ffffff", |place| COLOURS[place])
}

fn rectangle(out: &mut String, (x, y, width, height): (f64, f64, f64, f64), colour: &str) {
    let _ = writeln!(
        out,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\" \
         stroke=\"white\" stroke-width=\"0.5\"/>"
    );
}

fn text(out: &mut String, x: f64, y: f64, attributes: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{content}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_and_few() {
        assert_eq!(step_of(1_000.0), 200.0);
        assert_eq!(step_of(4_900.0), 500.0);
        assert_eq!(step_of(30_000.0), 5_000.0);
        for longest in [1.0, 7.0, 33.0, 999.0, 123_456.0] {
            let steps = longest / step_of(longest);
            assert!((5.0..=13.0).contains(&steps), "{longest}: {steps}");
        }
    }

    #[test]
    fn a_text_can_say_anything() {
        let mut out = String::new();
        text(&mut out, 0.0, 0.0, "", "a < b & c");
        assert!(out.contains("a &lt; b &amp; c"));
    }
}
