//! How many rows a pass should have: found by timing denoising steps when the model has been loaded.
//!
//! A device is full from some number of rows on; more of them then make each pass longer and no picture sooner.
//! Steps of 1, 2, 4, .. rows of the model's own size are timed until rows a second hardly grow, memory runs out, or the
//! time for it is used up; on a processor that takes seconds for a step that is at once, and nothing is limited.

use std::sync::Arc;
use std::time::Duration;

use super::{DiffusionModel, DiffusionOptions};
use crate::batch::{Phase, PlannedRow, Slot};
use crate::job::{ImageJob, Job, Previews};
use crate::model::image_frontend::ImageFrontend;
use crate::model::{Model, ModelError};
use crate::time::Clock;

/// Twice as many rows must get so much more done in the same time.
const LEAST_GAIN: f64 = 1.05;
/// Steps of each number of rows; the fastest counts.
const SAMPLES: u32 = 2;
/// All of it together; a step that has begun is waited for.
const BUDGET: Duration = Duration::from_secs(3);
/// A pass of several rows should not take more step budgets than this: newcomers and cancels wait for its end.
const MOST_STEP_BUDGETS: u32 = 10;
/// Steps of the rows that are timed, of which one is taken.
const STEPS: u32 = 4;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowCap {
    /// More rows gain nothing, find no memory, or take too long.
    Rows(u32),
    /// No end was found.
    None,
}

/// Times steps of more and more rows. `time`: how long a step of so many rows takes, after whatever goes before it.
///
/// # Errors
/// A step of one row fails; or one of more, and not for lack of memory.
pub fn find_row_cap(
    slots: u32,
    longest_pass: Duration,
    mut time: impl FnMut(u32) -> Result<Duration, ModelError>,
) -> Result<RowCap, ModelError> {
    // The first pass pays for what is set up once.
    let mut used = time(1)?;
    let mut last: Option<(u32, Duration)> = None;
    let levels = std::iter::successors(Some(1u32), |rows| rows.checked_mul(2));
    for rows in levels.take_while(|rows| *rows <= slots) {
        // As long for each row as before, at most.
        let expected = last.map_or(used, |(before, step)| step * (rows / before));
        if used + SAMPLES * expected > BUDGET {
            return Ok(RowCap::None);
        }
        let mut step = Duration::MAX;
        for _ in 0..SAMPLES {
            let sample = match (time(rows), last) {
                (Ok(sample), _) => sample,
                (Err(ModelError::OutOfMemory(_)), Some((before, _))) => {
                    return Ok(RowCap::Rows(before));
                }
                (Err(error), _) => return Err(error),
            };
            used += sample;
            step = step.min(sample);
        }
        tracing::debug!(rows, seconds = step.as_secs_f64(), "a denoising step");
        if let Some((before, step_before)) = last {
            let gain = 2.0 * step_before.as_secs_f64() / step.as_secs_f64().max(f64::MIN_POSITIVE);
            if gain < LEAST_GAIN || step > longest_pass {
                return Ok(RowCap::Rows(before));
            }
        }
        last = Some((rows, step));
    }
    Ok(RowCap::None)
}

/// Limits the rows of a pass: to what the options say, or else to what is measured with pictures of `size`.
///
/// # Errors
/// A step fails: the model cannot draw.
pub fn limit_pass(
    model: &mut DiffusionModel,
    (width, height): (u32, u32),
    options: &DiffusionOptions,
    step_budget: Duration,
    clock: &dyn Clock,
) -> Result<(), ModelError> {
    let job = plain_job(model, width, height)?;
    let cap = match options.max_rows_per_pass {
        Some(rows) => RowCap::Rows(rows),
        None => {
            let job = Arc::new(Job::Image(job.clone()));
            let longest = step_budget * MOST_STEP_BUDGETS;
            let began = clock.now();
            let cap = find_row_cap(options.batch_size, longest, |rows| {
                let time = time_step(model, &job, rows, clock);
                for slot in 0..rows {
                    model.retire(Slot(slot));
                }
                time
            })?;
            let seconds = (clock.now() - began).as_secs_f64();
            tracing::info!(?cap, width, height, seconds, "rows of a pass were measured");
            cap
        }
    };
    model.pass_work = match cap {
        RowCap::Rows(rows) => model.units(&job).saturating_mul(rows),
        RowCap::None => u32::MAX,
    };
    Ok(())
}

/// A picture without guidance, of nothing in particular.
fn plain_job(model: &DiffusionModel, width: u32, height: u32) -> Result<ImageJob, ModelError> {
    let frontend = model.frontend.as_ref();
    let prompt = frontend.tokenize("", 1).map_err(ModelError::Load)?;
    let (schedule, karras) = frontend.schedule(None).map_err(ModelError::Load)?;
    Ok(ImageJob {
        width,
        height,
        images: 1,
        prompt: prompt.into(),
        negative: None,
        negative_given: false,
        guidance_scale: 1.0,
        clip_skip: 0,
        steps: STEPS,
        schedule,
        karras,
        eta: 0.0,
        seed: 0,
        source: None,
        previews: Previews::None,
    })
}

/// How long a step of so many fresh rows takes. They are left in the first slots.
fn time_step(
    model: &mut DiffusionModel,
    job: &Arc<Job>,
    rows: u32,
    clock: &dyn Clock,
) -> Result<Duration, ModelError> {
    let pass = |phase| -> Vec<PlannedRow> {
        let plan = |slot| PlannedRow {
            slot: Slot(slot),
            phase,
            work: 1,
        };
        (0..rows).map(plan).collect()
    };
    for slot in 0..rows {
        model.admit(Slot(slot), job, slot)?;
    }
    model.step(&pass(Phase::Begin))?;
    model.synchronize()?;
    let began = clock.now();
    model.step(&pass(Phase::Iterate))?;
    // A GPU goes on working when its orders have been given.
    model.synchronize()?;
    Ok(clock.now() - began)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_millis(100);

    /// What is found where a step takes so many milliseconds by the number of rows.
    fn check(slots: u32, millis: impl Fn(u32) -> u64, expected: RowCap) {
        let time = |rows| Ok(Duration::from_millis(millis(rows)));
        assert_eq!(
            find_row_cap(slots, LONGEST, time).expect("it runs"),
            expected
        );
    }

    #[test]
    fn rows_are_added_for_as_long_as_they_gain_something() {
        check(16, |rows| 40 * u64::from(rows), RowCap::Rows(1));
        check(16, |rows| 40 * u64::from(rows.div_ceil(4)), RowCap::Rows(4));
        check(16, |_| 40, RowCap::None);
        // No more are tried than there are slots.
        check(3, |_| 40, RowCap::None);
        check(1, |_| 40, RowCap::None);
    }

    #[test]
    fn long_passes_are_not_made_longer_and_slow_machines_are_not_kept() {
        check(16, |rows| 30 + 10 * u64::from(rows), RowCap::Rows(4));
        check(16, |rows| 5_000 * u64::from(rows), RowCap::None);
        let mut passes = 0;
        let slow = |_| {
            passes += 1;
            Ok(Duration::from_secs(5))
        };
        find_row_cap(16, LONGEST, slow).expect("it runs");
        assert_eq!(passes, 1);
    }

    #[test]
    fn memory_is_an_end_and_a_broken_model_an_error() {
        let full = |rows| match rows {
            1..=4 => Ok(Duration::from_millis(40)),
            _ => Err(ModelError::OutOfMemory("full".into())),
        };
        assert_eq!(
            find_row_cap(16, LONGEST, full).expect("4 rows fit"),
            RowCap::Rows(4)
        );
        let none = |_| Err(ModelError::OutOfMemory("full".into()));
        assert!(find_row_cap(16, LONGEST, none).is_err());
        let broken = |rows| match rows {
            1 => Ok(Duration::from_millis(40)),
            _ => Err(ModelError::Device("lost".into())),
        };
        assert!(find_row_cap(16, LONGEST, broken).is_err());
    }
}
