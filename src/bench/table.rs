//! A report for people.

use std::fmt::{Display, Write as _};

use super::limits::{Limit, Limits, Shares};
use super::machine::Machine;
use super::report::{EngineReport, Measured, PartShare, Setup};
use super::statistics::Spread;
use crate::model::device::DeviceSpec;

/// Columns of the table of parts that stand side by side.
const LEVELS_ABREAST: usize = 7;

impl EngineReport {
    /// The report as tables.
    pub fn table(&self) -> String {
        let mut text = titled(self.girandole, &self.head());
        let repeats = match self.setup.repeats {
            1 => "measured once".to_owned(),
            repeats => format!("median (min .. max) of {repeats}"),
        };
        let _ = writeln!(
            text,
            "\nPrefill: one row, its whole prompt in a pass; {repeats}"
        );
        text.push_str(&self.prefill());
        let _ = writeln!(
            text,
            "\nDecode: each row from {} tokens on, {} steps; {repeats}",
            self.setup.context, self.setup.steps
        );
        text.push_str(&self.decode());
        text.push_str(&self.parts());
        text
    }

    fn head(&self) -> Vec<(&'static str, String)> {
        let (setup, demand) = (&self.setup, &self.demand);
        let mut lines = vec![
            ("machine", machine_line(&self.machine)),
            ("model", model(setup)),
            (
                "threads",
                format!("{}, {}", setup.compute_threads, setup.instructions),
            ),
            (
                "a pass",
                format!(
                    "reads {} of weights; {} operations a token, {:.0} % of them in 8 bits",
                    decimal(demand.weight_bytes_per_pass as f64, "B"),
                    decimal(demand.operations_per_token as f64, ""),
                    percent(
                        demand.integer_operations_per_token as f64
                            / demand.operations_per_token as f64
                    ),
                ),
            ),
        ];
        let limits = match &self.limits {
            Some(limits) if setup.device == DeviceSpec::Cpu.to_string() => limit_lines(limits),
            Some(limits) => card_limit_lines(limits),
            None => "not measured".to_owned(),
        };
        lines.push(("limits", limits));
        if let Some(card) = &self.card {
            lines.push(("card", card.line()));
        }
        if let Some(tokens) = setup.serve_chunk_tokens {
            let budget = setup.serve_step_budget_ms;
            lines.push((
                "serve",
                format!(
                    "cuts prompts to keep a step within {budget:.0} ms: here about {tokens} tokens"
                ),
            ));
        }
        lines
    }

    fn prefill(&self) -> String {
        let mut grid = vec![head("tokens", "ms")];
        let mut skipped = String::new();
        for level in &self.prefill {
            match &level.measured {
                Measured::Figures(figures) => grid.push(line(
                    level.tokens,
                    &figures.tokens_per_second,
                    &figures.pass_ms,
                    figures.tokens_per_cpu_second.as_ref(),
                    figures.shares.as_ref(),
                )),
                Measured::Skipped { skipped: why } => note(&mut skipped, level.tokens, why),
            }
        }
        right_aligned(&grid) + &skipped
    }

    fn decode(&self) -> String {
        let mut grid = vec![head("rows", "ms/step")];
        let mut skipped = String::new();
        for level in &self.decode {
            match &level.measured {
                Measured::Figures(figures) => grid.push(line(
                    level.rows,
                    &figures.tokens_per_second,
                    &figures.step_ms,
                    figures.tokens_per_cpu_second.as_ref(),
                    figures.shares.as_ref(),
                )),
                Measured::Skipped { skipped: why } => note(&mut skipped, level.rows, why),
            }
        }
        right_aligned(&grid) + &skipped
    }

    /// The parts of all levels that have them.
    fn parts(&self) -> String {
        let decode = self
            .decode
            .iter()
            .filter_map(|level| match &level.measured {
                Measured::Figures(figures) => Some((level.rows, figures.parts.as_deref()?)),
                Measured::Skipped { .. } => None,
            });
        let prefill = self
            .prefill
            .iter()
            .filter_map(|level| match &level.measured {
                Measured::Figures(figures) => Some((level.tokens, figures.parts.as_deref()?)),
                Measured::Skipped { .. } => None,
            });
        let prefill: Vec<_> = prefill.collect();
        let decode: Vec<_> = decode.collect();
        part_tables("Parts of a pass over a prompt", "tokens", &prefill)
            + &part_tables("Parts of a decode step", "rows", &decode)
    }
}

/// What was run, and a line for each of these names.
pub(super) fn titled(version: &str, head: &[(&str, String)]) -> String {
    let mut text = format!("girandole {version}, bench engine\n\n");
    for (name, value) in head {
        // Long values go on below each other.
        let value = value.replace('\n', &format!("\n{:12}", ""));
        let _ = writeln!(text, "{name:<12}{value}");
    }
    text
}

/// Where it was run.
pub(super) fn machine_line(machine: &Machine) -> String {
    let mut here = format!("{}, {}", machine.processor, counted(machine.cores, "core"));
    if let Some(bytes) = machine.last_level_cache_bytes {
        let _ = write!(here, ", {} of last-level cache", binary_bytes(bytes));
    }
    if let Some(load) = machine.load_average {
        let _ = write!(here, ", load {load:.2} before");
    }
    here
}

fn model(setup: &Setup) -> String {
    let mut text = format!("{} on {}", setup.model, setup.device);
    if setup.load_format == "dummy" {
        text.push_str(", random weights");
    }
    let _ = write!(
        text,
        ", K/V in {}, {} positions a row",
        setup.kv_dtype, setup.served_context
    );
    text
}

fn card_limit_lines(limits: &Limits) -> String {
    format!(
        "memory {}/s copying {}, read and written\narithmetic {}/s in products of the weights' format",
        decimal(limits.memory.bytes_per_second, "B"),
        binary_bytes(limits.memory.buffer_bytes),
        decimal(limits.float_operations_per_second, "FLOP"),
    )
}

fn limit_lines(limits: &Limits) -> String {
    let mut text = format!(
        "memory {}/s reading {}",
        decimal(limits.memory.bytes_per_second, "B"),
        binary_bytes(limits.memory.buffer_bytes)
    );
    if limits.weights != limits.memory {
        let _ = write!(
            text,
            ", {}/s reading as much as the weights take",
            decimal(limits.weights.bytes_per_second, "B")
        );
    }
    let _ = write!(
        text,
        "\narithmetic {}/s in f32, {}/s in 8-bit integers",
        decimal(limits.float_operations_per_second, "FLOP"),
        decimal(limits.integer_operations_per_second, "OP")
    );
    text
}

fn head(level: &str, time: &str) -> Vec<String> {
    let head = [
        level,
        "tok/s",
        "min .. max",
        time,
        "tok/cpu-s",
        "memory",
        "arithmetic",
        "nearer limit",
    ];
    head.map(str::to_owned).to_vec()
}

fn line(
    level: u32,
    rate: &Spread,
    time: &Spread,
    processor_rate: Option<&Spread>,
    shares: Option<&Shares>,
) -> Vec<String> {
    let unknown = || "-".to_owned();
    let share =
        |share: Option<f64>| share.map_or_else(unknown, |share| format!("{:.0} %", percent(share)));
    vec![
        level.to_string(),
        number(rate.median),
        format!("{} .. {}", number(rate.min), number(rate.max)),
        number(time.median),
        processor_rate.map_or_else(unknown, |rate| number(rate.median)),
        share(shares.map(|shares| shares.memory)),
        share(shares.map(|shares| shares.arithmetic)),
        shares.map_or_else(unknown, |shares| {
            match shares.nearer {
                Limit::Memory => "memory",
                Limit::Arithmetic => "arithmetic",
            }
            .to_owned()
        }),
    ]
}

pub(super) fn note(notes: &mut String, level: impl Display, why: &str) {
    let _ = writeln!(notes, "  {level} is skipped: {why}");
}

/// One column of milliseconds and share per level, a few levels abreast.
fn part_tables(title: &str, unit: &str, levels: &[(u32, &[PartShare])]) -> String {
    let mut text = String::new();
    for levels in levels.chunks(LEVELS_ABREAST) {
        let [(_, first), ..] = levels else {
            continue;
        };
        let mut head = vec![unit.to_owned()];
        head.extend(levels.iter().map(|(level, _)| format!("{level}   ")));
        let mut grid = vec![head];
        for (index, part) in first.iter().enumerate() {
            let mut line = vec![part.part.to_owned()];
            line.extend(levels.iter().map(|(_, parts)| {
                let PartShare { ms, share, .. } = &parts[index];
                format!("{} {:>3.0}%", number(*ms), percent(*share))
            }));
            grid.push(line);
        }
        let _ = writeln!(text, "\n{title}: ms and share");
        text.push_str(&aligned(&grid, true));
    }
    text
}

pub(super) fn right_aligned(grid: &[Vec<String>]) -> String {
    aligned(grid, false)
}

/// Every column as wide as its widest cell; the first to the left if `names` stand there.
pub(super) fn aligned(grid: &[Vec<String>], names: bool) -> String {
    let columns = grid.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = grid.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in grid {
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let _ = match names && column == 0 {
                true => write!(text, "  {cell:<width$}"),
                false => write!(text, "  {cell:>width$}"),
            };
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

fn counted(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        count => format!("{count} {noun}s"),
    }
}

pub(super) fn percent(share: f64) -> f64 {
    share * 100.0
}

/// No more decimals than three digits that count need.
pub(super) fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value >= 1.0 => format!("{value:.2}"),
        0.0 => "0".to_owned(),
        value => format!("{value:.3}"),
    }
}

/// `84.1 MB`
pub(super) fn decimal(value: f64, unit: &str) -> String {
    let prefixes = ["", "k", "M", "G", "T", "P"];
    let mut scaled = value;
    let mut index = 0;
    while scaled >= 1000.0 && index + 1 < prefixes.len() {
        scaled /= 1000.0;
        index += 1;
    }
    format!("{} {}{unit}", number(scaled), prefixes[index])
        .trim_end()
        .to_owned()
}

/// `256 MiB`
fn binary_bytes(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 1 << 30 => format!("{:.0} GiB", bytes as f64 / f64::from(1 << 30)),
        bytes if bytes >= 1 << 20 => format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20)),
        bytes => format!("{:.0} KiB", bytes as f64 / 1024.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_a_number_the_fewer_its_decimals() {
        for (value, text) in [
            (1234.5, "1234"),
            (99.96, "100.0"),
            (12.34, "12.3"),
            (1.234, "1.23"),
            (0.1234, "0.123"),
            (0.0, "0"),
        ] {
            assert_eq!(number(value), text);
        }
        assert_eq!(decimal(84.1e6, "B"), "84.1 MB");
        assert_eq!(decimal(269e6, ""), "269 M");
        assert_eq!(decimal(12.0, "B"), "12.0 B");
        assert_eq!(binary_bytes(256 << 20), "256 MiB");
        assert_eq!(binary_bytes(2 << 30), "2 GiB");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let cells = |line: [&str; 2]| line.map(str::to_owned).to_vec();
        let grid = [cells(["a", "long"]), cells(["wide", "1"])];
        assert_eq!(aligned(&grid, false), "     a  long\n  wide     1\n");
        assert_eq!(aligned(&grid, true), "  a     long\n  wide     1\n");
    }
}
