//! Which timesteps are visited, and the noise levels of the schedules that are written in those.

use super::config::{Interpolation, ScheduleConfig, Spacing};
use super::training::{Training, linspace};
use super::{ScheduleError, ScheduleOptions};
use crate::job::ScheduleName;

/// How a family of schedules lays its timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Whole numbers.
    Whole,
    /// As they fall.
    Fractional,
    /// Whole numbers of one step more, the last of which is left out: the multistep solvers, which go on
    /// to a noise level of 0 by themselves.
    OneMore,
}

/// The training steps to visit, falling; as many as steps are asked for.
///
/// `end` is the number of training steps, or less where the noisiest are not to be visited.
pub(super) fn timesteps(
    config: &ScheduleConfig,
    spacing: Spacing,
    layout: Layout,
    steps: usize,
    end: usize,
) -> Vec<f64> {
    let points = steps + usize::from(layout == Layout::OneMore);
    let falling: Vec<f64> = match spacing {
        Spacing::Linspace => {
            let mut all = linspace(0.0, (end - 1) as f64, points);
            if layout != Layout::Fractional {
                for t in &mut all {
                    *t = t.round_ties_even();
                }
            }
            all.into_iter().rev().collect()
        }
        Spacing::Leading => {
            // At least 1: there is one point more than steps when all of the training steps are visited.
            let ratio = (end / points).max(1);
            (0..points)
                .rev()
                .map(|i| (i * ratio + config.steps_offset) as f64)
                .collect()
        }
        Spacing::Trailing => {
            // The difference of the first two, as numpy's arange has it: it decides the halves.
            let end = end as f64;
            let ratio = end / steps as f64;
            let difference = (end - ratio) - end;
            (0..points)
                .map(|i| (end + i as f64 * difference).round_ties_even() - 1.0)
                .collect()
        }
    };
    let last = (config.train_steps - 1) as f64;
    falling
        .into_iter()
        .take(steps)
        .map(|t| t.clamp(0.0, last))
        .collect()
}

/// Timesteps and the noise levels (noise relative to signal) before each step and after the last.
pub(super) struct Levels {
    /// One for each step.
    pub(super) timesteps: Vec<f64>,
    /// One more.
    pub(super) sigmas: Vec<f64>,
}

/// The levels of Euler, Euler ancestral, DPM++ and UniPC.
pub(super) fn levels(
    config: &ScheduleConfig,
    options: &ScheduleOptions,
    training: &Training,
) -> Result<Levels, ScheduleError> {
    let trained = training.sigmas();
    let ScheduleOptions {
        name,
        karras,
        steps,
        ..
    } = *options;
    let multistep = matches!(name, ScheduleName::DpmPlusPlus2m | ScheduleName::UniPc);
    let mut end = trained.len();
    if name == ScheduleName::DpmPlusPlus2m {
        // The logarithm of signal to noise falls with the training step.
        let beyond = |sigma: &&f64| -sigma.ln() < config.lambda_min;
        end -= trained.iter().rev().take_while(beyond).count();
        if end < steps {
            return Err(ScheduleError::Steps {
                given: steps,
                limit: end,
                why: "the training steps that lambda_min_clipped leaves",
            });
        }
    }
    let layout = if multistep {
        Layout::OneMore
    } else {
        Layout::Fractional
    };
    let spacing = config.spacing.unwrap_or(Spacing::Linspace);
    let mut timesteps = timesteps(config, spacing, layout, steps, end);
    let mut sigmas: Vec<f64> = timesteps.iter().map(|&t| between(&trained, t)).collect();

    // Only some families know these spacings; the others pass them by, as in diffusers.
    let ancestral = name == ScheduleName::EulerAncestral;
    if config.interpolation == Interpolation::LogLinear && name == ScheduleName::Euler {
        // One level more than steps: the last step goes to the least level, and none to 0.
        let least = trained[0].ln();
        let most = trained[trained.len() - 1].ln();
        sigmas = exponentials(most, least, steps + 1);
    }
    let respaced = if ancestral || !(karras || config.exponential) {
        None
    } else {
        // Euler stretches what its timesteps gave, the solvers all that was trained.
        let (mut most, mut least) = if multistep {
            (trained[trained.len() - 1], trained[0])
        } else {
            (sigmas[0], sigmas[sigmas.len() - 1])
        };
        if name != ScheduleName::DpmPlusPlus2m {
            most = config.sigma_max.unwrap_or(most);
            least = config.sigma_min.unwrap_or(least);
        }
        Some(if karras {
            karras_levels(most, least, steps)
        } else {
            exponentials(most.ln(), least.ln(), steps)
        })
    };
    if let Some(respaced) = respaced {
        sigmas = respaced;
        let logarithms: Vec<f64> = trained.iter().map(|sigma| sigma.ln()).collect();
        timesteps = sigmas
            .iter()
            .map(|sigma| {
                let t = position(&logarithms, sigma.max(1e-10).ln());
                let cosine = config.beta_schedule == Some(super::config::BetaSchedule::Cosine);
                match name {
                    // Solvers' timesteps are whole: to the nearest, or cut off.
                    ScheduleName::UniPc if karras => t.round_ties_even(),
                    ScheduleName::DpmPlusPlus2m if karras && !cosine => t.round_ties_even(),
                    ScheduleName::UniPc | ScheduleName::DpmPlusPlus2m => t.trunc(),
                    _ => t,
                }
            })
            .collect();
    }
    let zero = config.final_sigma_zero || ancestral;
    let least = match name {
        ScheduleName::UniPc if karras || config.exponential => sigmas[steps - 1],
        _ => trained[0],
    };
    if sigmas.len() == steps {
        sigmas.push(if zero { 0.0 } else { least });
    }
    Ok(Levels { timesteps, sigmas })
}

/// Karras et al. (arXiv 2206.00364, eq. 5) with their exponent 7, without the 0 at the end.
pub(super) fn karras_levels(most: f64, least: f64, steps: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (most, least) = (most.powf(1.0 / RHO), least.powf(1.0 / RHO));
    linspace(0.0, 1.0, steps)
        .into_iter()
        .map(|share| (most + share * (least - most)).powf(RHO))
        .collect()
}

/// Evenly spaced logarithms.
pub(super) fn exponentials(most_ln: f64, least_ln: f64, steps: usize) -> Vec<f64> {
    linspace(most_ln, least_ln, steps)
        .into_iter()
        .map(f64::exp)
        .collect()
}

/// A table's value between its entries.
fn between(table: &[f64], at: f64) -> f64 {
    let low = (at as usize).min(table.len() - 1);
    let high = (low + 1).min(table.len() - 1);
    let share = at - low as f64;
    if share == 0.0 {
        table[low]
    } else {
        table[low] + (table[high] - table[low]) * share
    }
}

/// Where in a rising table a value lies: the inverse of [`between`].
fn position(table: &[f64], value: f64) -> f64 {
    let above = table.partition_point(|&entry| entry <= value);
    let low = above.saturating_sub(1).min(table.len().saturating_sub(2));
    let (Some(&from), Some(&to)) = (table.get(low), table.get(low + 1)) else {
        return 0.0;
    };
    let share = ((from - value) / (from - to)).clamp(0.0, 1.0);
    (1.0 - share) * low as f64 + share * (low + 1) as f64
}
