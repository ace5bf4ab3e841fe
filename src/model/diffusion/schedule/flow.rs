//! Euler's method for flow-matching models, whose latent at level `s` is `(1 - s) * clean + s * noise`.

use super::coefficients::{Blend, StepCoefficients};
use super::config::{Prediction, ScheduleConfig, TimeShift};
use super::levels::{exponentials, karras_levels};
use super::training::{denoised, linspace};
use super::{FlowLevels, Mixture, ScheduleError, ScheduleOptions, Table};

/// Euler's method (arXiv 2210.02747; levels of arXiv 2403.03206).
pub(super) fn table(
    config: &ScheduleConfig,
    options: &ScheduleOptions,
    first: usize,
) -> Result<Table, ScheduleError> {
    let sigmas = levels(config, options)?;
    let steps = (first..options.steps)
        .map(|i| {
            let (from, to) = (sigmas[i], sigmas[i + 1]);
            let clean = denoised(Prediction::Flow, mixture(from));
            let next = if config.stochastic_flow {
                // To the clean latent, and back to the next level with other noise.
                Blend {
                    x: (1.0 - to) * clean.x,
                    output: (1.0 - to) * clean.output,
                    noise: to,
                    ..Blend::default()
                }
            } else {
                Blend {
                    x: 1.0,
                    output: to - from,
                    ..Blend::default()
                }
            };
            StepCoefficients {
                timestep: from * config.train_steps as f64,
                sigma: from,
                input_scale: 1.0,
                denoised_x: clean.x,
                denoised_output: clean.output,
                clip: None,
                next,
                anchor: Blend::default(),
            }
        })
        .collect();
    let noised: Vec<Mixture> = sigmas[first..options.steps]
        .iter()
        .map(|&sigma| mixture(sigma))
        .collect();
    let from_noise = Mixture {
        signal: 0.0,
        noise: 1.0,
    };
    Ok(Table {
        steps,
        begin: options.strength.map_or(from_noise, |_| noised[0]),
        noised,
        kept: 0,
        anchored: false,
    })
}

fn mixture(sigma: f64) -> Mixture {
    Mixture {
        signal: 1.0 - sigma,
        noise: sigma,
    }
}

/// One level more than steps.
fn levels(config: &ScheduleConfig, options: &ScheduleOptions) -> Result<Vec<f64>, ScheduleError> {
    let steps = options.steps;
    let trained = config.train_steps as f64;
    let shifted = |sigma: f64| config.shift * sigma / (1.0 + (config.shift - 1.0) * sigma);
    let mut sigmas = match options.flow_levels {
        FlowLevels::Even => linspace(1.0, 1.0 / steps as f64, steps),
        FlowLevels::Trained => {
            // The ends of training are shifted already, and are shifted again below: diffusers' habit.
            let end = |sigma: f64| {
                if config.dynamic {
                    sigma
                } else {
                    shifted(sigma)
                }
            };
            linspace(end(1.0) * trained, end(1.0 / trained) * trained, steps)
                .into_iter()
                .map(|t| t / trained)
                .collect()
        }
    };
    if config.dynamic {
        let mu = options
            .dynamic_shift
            .filter(|mu| mu.is_finite())
            .ok_or_else(|| ScheduleError::Unsuitable {
                name: options.name,
                reason: "the model's shift depends on the picture's size, which is not given"
                    .to_owned(),
            })?;
        let shift = match config.time_shift {
            TimeShift::Exponential => mu.exp(),
            TimeShift::Linear => mu,
        };
        for sigma in &mut sigmas {
            *sigma = shift / (shift + (1.0 / *sigma - 1.0));
        }
    } else {
        for sigma in &mut sigmas {
            *sigma = shifted(*sigma);
        }
    }
    if let Some(terminal) = config.shift_terminal {
        let scale = (1.0 - sigmas[steps - 1]) / (1.0 - terminal);
        for sigma in &mut sigmas {
            *sigma = 1.0 - (1.0 - *sigma) / scale;
        }
    }
    let (most, least) = (sigmas[0], sigmas[steps - 1]);
    if options.karras {
        sigmas = karras_levels(most, least, steps);
    } else if config.exponential {
        sigmas = exponentials(most.ln(), least.ln(), steps);
    }
    sigmas.push(0.0);
    Ok(sigmas)
}
