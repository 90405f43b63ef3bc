//! The history as a picture: one line a handover, its phases as bars; on the left the whole of it, on the right the pause alone,
//! which is often a hundredth of it. Plain SVG text, made here; nothing is read and nothing is drawn that is not in the entries.

use std::fmt::Write as _;

use handoff_journal::{HistoryEntry, PhaseSpan};

use super::history::remark;
use super::output;

/// A phase as it is stored, its name for people, and its colour: told apart by those who see fewer colours, too.
const PHASES: [(&str, &str, &str); 6] = [
    ("spawn", "spawn", "#9a9a9a"),
    ("warm", "warm", "#56b4e9"),
    ("drain", "drain", "#e69f00"),
    ("seal", "seal", "#d55e00"),
    ("begin_to_ready", "begin to ready", "#009e73"),
    ("undo", "undo", "#cc79a7"),
];
/// In these nobody serves.
const PAUSE: [&str; 3] = ["drain", "seal", "begin_to_ready"];

const WIDTH: f64 = 1400.0;
const WHOLE: Panel = Panel { title: "the whole handover, in ms", left: 190.0, width: 420.0 };
const PAUSED: Panel = Panel { title: "the pause, in which nobody serves, in ms", left: 650.0, width: 330.0 };
const REMARKS_LEFT: f64 = 1005.0;
const REMARK_CHARS_MAX: usize = 62;
const TOP: f64 = 104.0;
const ROW: f64 = 24.0;
const BAR: f64 = 13.0;
/// A part that is shorter is drawn this wide, so that it can be seen.
const BAR_WIDTH_MIN: f64 = 1.0;
const TICKS_MAX: f64 = 6.0;
/// A bar so many times longer than the median is cut off, so that the others can be told apart.
const LONGEST_TO_MEDIAN: f64 = 4.0;
/// Of a panel's width, so that the number behind the longest bar has room.
const BARS_SHARE: f64 = 0.8;

/// A part of the picture with an axis of its own.
#[derive(Debug, Clone, Copy)]
struct Panel {
    title: &'static str,
    left: f64,
    width: f64,
}

/// How milliseconds become a place in a panel.
#[derive(Debug, Clone, Copy)]
struct Axis {
    panel: Panel,
    max_ms: f64,
}

/// One handover in one panel.
struct Bar<'a> {
    /// Where the panel's time begins, in milliseconds after the order.
    from_ms: f64,
    spans: Vec<&'a PhaseSpan>,
    end_ms: f64,
    /// Where it was given up, if that is in this panel.
    cut_ms: Option<f64>,
}

/// The picture of these handovers, the first one on top.
pub(super) fn svg(entries: &[HistoryEntry]) -> String {
    let height = TOP + ROW * entries.len().max(1) as f64 + 28.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"DejaVu Sans, Helvetica, Arial, sans-serif\" font-size=\"12\" fill=\"#222\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    let committed = entries.iter().filter(|entry| entry.committed).count();
    let title = format!("{} handovers, {committed} committed, {} aborted", entries.len(), entries.len() - committed);
    text(&mut out, 16.0, 26.0, "font-size=\"16\" font-weight=\"bold\"", &title);
    legend(&mut out);
    let whole: Vec<_> = entries.iter().map(whole).collect();
    let paused: Vec<_> = entries.iter().map(paused).collect();
    for (number, entry) in entries.iter().enumerate() {
        row(&mut out, TOP + ROW * number as f64, number, entry);
    }
    panel(&mut out, WHOLE, &whole);
    panel(&mut out, PAUSED, &paused);
    out.push_str("</svg>\n");
    out
}

fn legend(out: &mut String) {
    let mut left = 16.0;
    for (_, name, colour) in PHASES {
        let _ = writeln!(out, "<rect x=\"{left}\" y=\"41\" width=\"12\" height=\"12\" fill=\"{colour}\"/>");
        text(out, left + 17.0, 51.0, "", name);
        left += 34.0 + 7.2 * name.len() as f64;
    }
    cross(out, left + 6.0, 47.0);
    text(out, left + 17.0, 51.0, "", "given up");
    text(out, left + 100.0, 51.0, "", "» longer than the axis");
}

/// What surrounds the bars of one handover: its time, and what came of it.
fn row(out: &mut String, top: f64, number: usize, entry: &HistoryEntry) {
    if number.is_multiple_of(2) {
        let _ = writeln!(out, "<rect x=\"0\" y=\"{top}\" width=\"{WIDTH}\" height=\"{ROW}\" fill=\"#f4f6f8\"/>");
    }
    let baseline = top + ROW / 2.0 + 4.0;
    text(out, 16.0, baseline, "", &output::time(entry.started_at_unix_ms));
    let (style, said) =
        if entry.committed { ("", passed(entry)) } else { ("fill=\"#b00020\"", format!("aborted, {}", remark(entry))) };
    let shown: String = match said.char_indices().nth(REMARK_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &said[..end]),
        None => said.clone(),
    };
    let _ = writeln!(
        out,
        "<text x=\"{REMARKS_LEFT}\" y=\"{baseline}\" font-size=\"11\" {style}><title>{}</title>{}</text>",
        escaped(&said),
        escaped(&shown)
    );
}

/// Of one that is committed.
fn passed(entry: &HistoryEntry) -> String {
    let pid = |pid: Option<u32>| pid.map_or_else(|| "?".to_owned(), |pid| pid.to_string());
    let build = Some(remark(entry)).filter(|build| !build.is_empty());
    let build = build.map(|build| format!(", build {build}")).unwrap_or_default();
    let left = entry.timings_ms.retire.map(|ms| format!(", left after {} ms", number(ms))).unwrap_or_default();
    format!("pid {} → {}{left}{build}", pid(entry.old_pid), pid(entry.new_pid))
}

fn whole(entry: &HistoryEntry) -> Bar<'_> {
    let spans: Vec<_> = entry.phases.iter().collect();
    let end_ms = spans.last().map_or(0.0, |span| span.at_ms + span.ms).max(entry.timings_ms.total);
    Bar { from_ms: 0.0, cut_ms: cut_ms(entry), end_ms, spans }
}

fn paused(entry: &HistoryEntry) -> Bar<'_> {
    let spans: Vec<_> = entry.phases.iter().filter(|span| PAUSE.contains(&span.phase.as_str())).collect();
    let from_ms = spans.first().map_or(0.0, |span| span.at_ms);
    let end_ms = spans.last().map_or(0.0, |span| span.at_ms + span.ms) - from_ms;
    let cut_ms = cut_ms(entry).filter(|_| !spans.is_empty());
    Bar { from_ms, spans, end_ms, cut_ms }
}

/// When it was given up, in milliseconds after the order.
fn cut_ms(entry: &HistoryEntry) -> Option<f64> {
    let end = |span: &PhaseSpan| span.at_ms + span.ms;
    let last = entry.phases.iter().rfind(|span| span.phase != "undo");
    (!entry.committed).then(|| last.map_or(0.0, end))
}

fn panel(out: &mut String, panel: Panel, bars: &[Bar<'_>]) {
    let axis = Axis { panel, max_ms: max_ms(bars.iter().map(|bar| bar.end_ms).filter(|ms| *ms > 0.0).collect()) };
    let bottom = TOP + ROW * bars.len().max(1) as f64;
    text(out, panel.left, 78.0, "font-weight=\"bold\"", panel.title);
    for tick in axis.ticks() {
        let x = axis.x(tick);
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#c4cad0\" stroke-width=\"0.7\"/>"
        );
        let label = number(tick);
        text(out, x, TOP - 7.0, "text-anchor=\"middle\" font-size=\"10\" fill=\"#555\"", &label);
        text(out, x, bottom + 14.0, "text-anchor=\"middle\" font-size=\"10\" fill=\"#555\"", &label);
    }
    for (number, bar) in bars.iter().enumerate() {
        draw(out, axis, TOP + ROW * number as f64 + ROW / 2.0, bar);
    }
}

fn draw(out: &mut String, axis: Axis, middle: f64, bar: &Bar<'_>) {
    if bar.end_ms <= 0.0 {
        if bar.cut_ms.is_some() {
            cross(out, axis.x(0.0), middle);
        }
        return;
    }
    let end = axis.x(bar.end_ms);
    let _ = writeln!(
        out,
        "<line x1=\"{:.1}\" y1=\"{middle}\" x2=\"{end:.1}\" y2=\"{middle}\" stroke=\"#222\" stroke-width=\"1\"/>",
        axis.x(0.0)
    );
    for span in &bar.spans {
        let Some((_, name, colour)) = PHASES.iter().find(|(phase, ..)| *phase == span.phase) else { continue };
        if span.at_ms - bar.from_ms > axis.max_ms {
            break;
        }
        let (left, right) = (axis.x(span.at_ms - bar.from_ms), axis.x(span.at_ms - bar.from_ms + span.ms));
        let _ = writeln!(
            out,
            "<rect x=\"{left:.1}\" y=\"{}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{colour}\"><title>{name} {} ms</title></rect>",
            middle - BAR / 2.0,
            (right - left).max(BAR_WIDTH_MIN),
            span.ms
        );
    }
    if let Some(cut_ms) = bar.cut_ms {
        cross(out, axis.x(cut_ms - bar.from_ms), middle);
    }
    let longer = if bar.end_ms > axis.max_ms { "» " } else { "" };
    let label = format!("{longer}{}", number(bar.end_ms));
    text(out, end + 9.0, middle + 4.0, "font-size=\"11\"", &label);
}

/// What the axis reaches to, so that most bars can be told apart.
fn max_ms(mut ends_ms: Vec<f64>) -> f64 {
    ends_ms.sort_by(f64::total_cmp);
    let (Some(longest), Some(median)) = (ends_ms.last(), ends_ms.get(ends_ms.len() / 2)) else { return 1.0 };
    longest.min(median * LONGEST_TO_MEDIAN).max(0.001)
}

impl Axis {
    fn x(self, ms: f64) -> f64 {
        self.panel.left + (ms / self.max_ms).clamp(0.0, 1.0) * self.panel.width * BARS_SHARE
    }

    /// At round numbers, from nothing to the end.
    fn ticks(self) -> Vec<f64> {
        let least = self.max_ms / TICKS_MAX;
        let power = 10_f64.powf(least.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= least);
        let step = step.unwrap_or(least);
        (0..=TICKS_MAX as u32).map(|number| f64::from(number) * step).take_while(|tick| *tick <= self.max_ms).collect()
    }
}

/// Milliseconds to about three digits.
fn number(ms: f64) -> String {
    let digits = match ms {
        ms if ms >= 100.0 => 0,
        ms if ms >= 10.0 => 1,
        ms if ms >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{ms:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn cross(out: &mut String, x: f64, y: f64) {
    let (left, right, top, bottom) = (x - 4.5, x + 4.5, y - 4.5, y + 4.5);
    let path = format!("M{left:.1} {top:.1}L{right:.1} {bottom:.1}M{left:.1} {bottom:.1}L{right:.1} {top:.1}");
    let _ = writeln!(out, "<path d=\"{path}\" stroke=\"#fff\" stroke-width=\"5\"/>");
    let _ = writeln!(out, "<path d=\"{path}\" stroke=\"#b00020\" stroke-width=\"2.4\"/>");
}

fn text(out: &mut String, x: f64, y: f64, style: &str, said: &str) {
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{}</text>", escaped(said));
}

/// As XML wants it; what may not stand there at all is left out.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            control if control.is_control() || matches!(control, '\u{fffe}' | '\u{ffff}') => out.push(' '),
            plain => out.push(plain),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::history::tests::{aborted, committed};
    use super::*;

    #[test]
    fn every_phase_has_a_bar_and_what_was_aborted_its_reason() {
        let picture = svg(&[committed(), aborted()]);
        assert!(picture.starts_with("<svg xmlns") && picture.ends_with("</svg>\n"));
        for (part, bars) in
            [("spawn 2.3", 2), ("warm 0.5", 2), ("drain 0.25", 4), ("seal 0.3", 4), ("begin to ready 0.6", 2)]
        {
            assert_eq!(picture.matches(&format!("<title>{part} ms")).count(), bars, "{part}");
        }
        assert!(picture.contains("2 handovers, 1 committed, 1 aborted"));
        assert!(picture.contains(">aborted, sealing: seal: no &lt;space&gt; left<"));
        assert_eq!(picture.matches("#b00020\" stroke-width").count(), 3, "in the legend and in both panels");
        assert!(!picture.contains("NaN") && !picture.contains("inf"));
    }

    #[test]
    fn nothing_and_entries_with_nothing_in_them_are_drawn_too() {
        for entries in [vec![], vec![HistoryEntry::default()]] {
            let picture = svg(&entries);
            assert!(picture.ends_with("</svg>\n") && !picture.contains("NaN") && !picture.contains("inf"), "{picture}");
        }
    }

    #[test]
    fn an_axis_has_a_few_round_ticks() {
        let ticks = |max_ms| Axis { panel: WHOLE, max_ms }.ticks();
        assert_eq!(ticks(6.125), [0.0, 2.0, 4.0, 6.0]);
        assert_eq!(ticks(1.0), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(ticks(30_000.0), [0.0, 5000.0, 10_000.0, 15_000.0, 20_000.0, 25_000.0, 30_000.0]);
    }

    #[test]
    fn one_that_takes_far_longer_does_not_shrink_the_others() {
        assert_eq!(max_ms(vec![5.0, 300_000.0, 6.0, 4.0]), 24.0);
        assert_eq!(max_ms(vec![5.0, 6.0]), 6.0);
        assert_eq!(max_ms(vec![]), 1.0);
    }

    #[test]
    fn numbers_are_short() {
        let numbers = [0.25, 1.3, 12.34, 6.0, 300_000.0].map(number);
        assert_eq!(numbers, ["0.25", "1.3", "12.3", "6", "300000"]);
    }
}
