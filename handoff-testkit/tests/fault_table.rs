//! The fault table of `docs/protocol.md` and the rows of the matrix say the same: every row stands under a fault, every pattern means
//! rows, and the times that are printed are those that the rows are held to.

use std::collections::BTreeSet;

use handoff_testkit::Matrix;
use handoff_testkit::matrix::Row;

/// One line of the table: the fault, its patterns, and the times of its rows as they are printed.
struct Line {
    fault: String,
    patterns: Vec<String>,
    times: String,
}

fn table() -> Vec<Line> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol.md");
    let page = std::fs::read_to_string(path).expect("the page is there");
    let (_, section) = page.split_once("\n## 7.").expect("section 7");
    let section = section.split("\n## 8.").next().expect("its end");
    let lines = section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| fault"));
    let line = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [fault, _, _, shown_by, times] = cells[..] else { panic!("not five columns: {line}") };
        let quoted = shown_by.split('`').skip(1).step_by(2);
        let patterns = quoted.filter(|text| text.contains('/')).flat_map(expand).collect();
        Line { fault: fault.to_owned(), patterns, times: times.to_owned() }
    };
    lines.map(line).collect()
}

/// `a-{b,c}/{d,e}` as `a-b/d`, `a-b/e`, `a-c/d`, `a-c/e`.
fn expand(pattern: &str) -> Vec<String> {
    let Some((before, rest)) = pattern.split_once('{') else { return vec![pattern.to_owned()] };
    let (choices, after) = rest.split_once('}').expect("a brace is closed");
    choices.split(',').flat_map(|choice| expand(&format!("{before}{choice}{after}"))).collect()
}

fn rows_of<'a>(line: &Line, rows: &'a [Row]) -> Vec<&'a Row> {
    rows.iter().filter(|row| line.patterns.iter().any(|pattern| row.is_meant_by(pattern))).collect()
}

#[test]
fn every_row_stands_under_a_fault() {
    let matrix = Matrix::built_in();
    let table = table();
    let stands = |row: &&Row| table.iter().any(|line| rows_of(line, std::slice::from_ref(row)).len() == 1);
    let missing: Vec<_> = matrix.rows().iter().filter(|row| !stands(row)).map(Row::name).collect();
    assert!(missing.is_empty(), "no line of the fault table shows {missing:#?}");
}

#[test]
fn every_pattern_means_rows() {
    let matrix = Matrix::built_in();
    for line in table() {
        for pattern in &line.patterns {
            let meant = matrix.rows().iter().any(|row| row.is_meant_by(pattern));
            assert!(meant, "{}: there is no row {pattern}", line.fault);
        }
    }
}

#[test]
fn the_printed_times_are_those_of_the_rows() {
    let matrix = Matrix::built_in();
    for line in table().iter().filter(|line| !line.times.is_empty()) {
        let rows = rows_of(line, matrix.rows());
        let times: BTreeSet<u128> =
            rows.iter().filter(|row| row.second.is_none()).map(|row| row.expected.bound.time().as_millis()).collect();
        let printed = times.iter().map(|time| format!("{time} ms")).collect::<Vec<_>>().join(", ");
        assert_eq!(line.times, printed, "{}", line.fault);
    }
}
