//! A report of an image model for people.

use std::fmt::Write as _;

use super::machine::Memory;
use super::picture_report::{PictureReport, SizeLevel, Timed};
use super::report::Measured;
use super::table::{decimal, machine_line, note, number, percent, right_aligned, titled};
use crate::model::device::DeviceSpec;

impl PictureReport {
    /// The report as tables.
    pub fn table(&self) -> String {
        let mut text = titled(self.girandole, &self.head());
        let setup = &self.setup;
        for size in &self.sizes {
            let _ = writeln!(
                text,
                "\n{} x {}: rows of a denoising step without guidance; median (min .. max) of up to {} steps in \
                 {} s",
                size.width, size.height, setup.most_samples, setup.point_seconds
            );
            text.push_str(&steps(size));
            let _ = writeln!(text, "\n{} x {}: one picture", size.width, size.height);
            text.push_str(&self.single(size));
        }
        let _ = writeln!(
            text,
            "\npictures/min: reckoned from the medians, for guided pictures, {} steps each: half as many as rows, or as many where \
             guidance is part of the network,",
            setup.steps
        );
        text.push_str("with one decoding and one prompt for each\n");
        text
    }

    fn head(&self) -> Vec<(&'static str, String)> {
        let setup = &self.setup;
        let mut model = format!("{} on {}", setup.model, setup.device);
        if let Some(dtype) = &setup.dtype {
            let _ = write!(model, " in {dtype}");
        }
        if setup.load_format == "dummy" {
            model.push_str(", random weights");
        }
        let mut lines = vec![
            ("machine", machine_line(&self.machine)),
            ("model", model),
            (
                "threads",
                format!("{}, {}", setup.compute_threads, setup.instructions),
            ),
            ("load", format!("{} s", number(self.load.seconds))),
        ];
        if let (Some(loaded), Some(end)) = (self.load.memory, self.memory) {
            lines.push(("memory", memory(loaded, end)));
        }
        let limit = match self.float_operations_per_second {
            Some(rate) if setup.device == DeviceSpec::Cpu.to_string() => {
                format!("arithmetic {}/s in f32", decimal(rate, "FLOP"))
            }
            Some(rate) => format!("arithmetic {}/s in products", decimal(rate, "FLOP")),
            None => "not measured".to_owned(),
        };
        lines.push(("limits", limit));
        if let Some(card) = &self.card {
            lines.push(("card", card.line()));
        }
        lines
    }

    fn single(&self, size: &SizeLevel) -> String {
        let titles = ["", "ms", "min .. max", "arithmetic"];
        let mut grid = vec![titles.map(str::to_owned).to_vec()];
        let mut skipped = String::new();
        for (name, measured) in [
            ("decode", &size.decode),
            ("encode", &size.encode),
            ("prompt", &self.text),
        ] {
            match measured {
                Measured::Figures(timed) => grid.push(vec![
                    name.to_owned(),
                    milliseconds(timed.seconds.median),
                    ends(timed),
                    share(timed),
                ]),
                Measured::Skipped { skipped: why } => note(&mut skipped, name, why),
            }
        }
        right_aligned(&grid) + &skipped
    }
}

fn memory(loaded: Memory, end: Memory) -> String {
    format!(
        "{} resident once loaded, {} at most till then; {} at most in the end",
        decimal(loaded.resident_bytes as f64, "B"),
        decimal(loaded.peak_bytes as f64, "B"),
        decimal(end.peak_bytes as f64, "B"),
    )
}

fn steps(size: &SizeLevel) -> String {
    let titles = [
        "rows",
        "ms/step",
        "min .. max",
        "rows/s",
        "arithmetic",
        "pictures/min",
    ];
    let mut grid = vec![titles.map(str::to_owned).to_vec()];
    let mut skipped = String::new();
    for level in &size.steps {
        match &level.measured {
            Measured::Figures(figures) => grid.push(vec![
                level.rows.to_string(),
                milliseconds(figures.step.seconds.median),
                ends(&figures.step),
                number(figures.row_steps_per_second),
                share(&figures.step),
                figures
                    .pictures_per_minute
                    .map_or_else(|| "-".to_owned(), number),
            ]),
            Measured::Skipped { skipped: why } => note(&mut skipped, level.rows, why),
        }
    }
    right_aligned(&grid) + &skipped
}

fn milliseconds(seconds: f64) -> String {
    number(seconds * 1e3)
}

fn ends(timed: &Timed) -> String {
    match timed.samples {
        1 => "once".to_owned(),
        _ => format!(
            "{} .. {}",
            milliseconds(timed.seconds.min),
            milliseconds(timed.seconds.max)
        ),
    }
}

fn share(timed: &Timed) -> String {
    timed.arithmetic.map_or_else(
        || "-".to_owned(),
        |share| format!("{:.0} %", percent(share)),
    )
}
