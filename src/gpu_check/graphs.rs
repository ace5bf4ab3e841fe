//! Captured graphs against single launches on the same device: equal results, and the time of both.
//!
//! Where nothing is captured the switch changes nothing, and so do these checks.

use std::path::Path;
use std::sync::Arc;

use super::check::{Check, Group, Place, Twin};
use super::picture_models::pictures;
use super::report::GraphTimes;
use super::text_models::{build_with, plain_shape, prompt, say, write};
use crate::batch::{Phase, PlannedRow, Slot};
use crate::bench::statistics::Spread;
use crate::job::{Job, TextJob};
use crate::model::device::FloatType;
use crate::model::sources::bundled::BUNDLED;
use crate::model::{Model, ModelError};
use crate::time::RealClock;

/// A replay does what was captured, number for number.
const SAME: f64 = 0.0;
/// Rows of the timed passes.
const ROWS: u32 = 8;
/// Passes before the timed ones: graphs are captured at the second use of a size.
const WARM_UP: u32 = 4;
/// Timed passes.
const PASSES: u32 = 40;

/// The checks; the model's shape is written below `folder`.
///
/// # Errors
/// The folder cannot be written to.
pub(super) fn checks(folder: &Path) -> std::io::Result<Vec<Check>> {
    let shape = write(folder, "graphs", &plain_shape())?;
    let mut checks = Vec::new();
    for dtype in [FloatType::F32, FloatType::BF16] {
        let text = |cuda_graphs| {
            let shape = shape.clone();
            move |place: &Place| -> Result<Vec<f32>, ModelError> {
                let mut model = build_with(place, &shape, dtype, 3, cuda_graphs)?;
                let (tokens, logprobs) = say(&mut model)?;
                Ok([tokens, logprobs].concat())
            }
        };
        checks.push(Check {
            group: Group::Graph,
            name: format!("decoding, three rows in mixed passes, {dtype}"),
            allowed: SAME,
            run: Box::new(text(true)),
            twin: Twin::OnDevice(Box::new(text(false))),
        });
    }
    let model = BUNDLED[0].unpack(folder)?;
    let picture = |cuda_graphs| {
        let model = model.clone();
        move |place: &Place| pictures(place, &model, None, FloatType::F16, cuda_graphs)
    };
    checks.push(Check {
        group: Group::Graph,
        name: "denoising, three rows that end one after another, f16".to_owned(),
        allowed: SAME,
        run: Box::new(picture(true)),
        twin: Twin::OnDevice(Box::new(picture(false))),
    });
    Ok(checks)
}

/// What a decode pass takes with a graph and without. The model is small: what is seen is what launches cost.
///
/// # Errors
/// The model cannot be built or run.
pub(super) fn times(place: &Place, folder: &Path) -> Result<GraphTimes, ModelError> {
    let shape = folder.join("graphs").join("config.json");
    let median = |cuda_graphs| -> Result<f64, ModelError> {
        let mut model = build_with(place, &shape, FloatType::F16, ROWS, cuda_graphs)?;
        let plan = |phase, work| -> Vec<PlannedRow> {
            (0..ROWS)
                .map(|row| PlannedRow {
                    slot: Slot(row),
                    phase,
                    work,
                })
                .collect()
        };
        for row in 0..ROWS {
            let job = TextJob {
                ignore_eos: true,
                ..TextJob::greedy(prompt(row, 16), WARM_UP + PASSES + 2)
            };
            model.admit(Slot(row), &Arc::new(Job::Text(job)), 0)?;
        }
        model.step(&plan(Phase::Begin, 16))?;
        let clock = RealClock::start();
        let mut passes = Vec::new();
        for pass in 0..WARM_UP + PASSES {
            let start = clock.elapsed();
            model.step(&plan(Phase::Iterate, 1))?;
            if pass >= WARM_UP {
                passes.push(clock.elapsed().saturating_sub(start).as_secs_f64() * 1e3);
            }
        }
        Ok(Spread::of(passes).map_or(0.0, |spread| spread.median))
    };
    Ok(GraphTimes {
        name: format!("decoding, {ROWS} rows of a small model"),
        plain_ms: median(false)?,
        graph_ms: median(true)?,
    })
}
