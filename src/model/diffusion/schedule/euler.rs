//! Euler's method over noise levels, plain and ancestral. The latent is the clean one plus `sigma` times
//! noise, so its variance grows with the level; the model sees it scaled back.

use super::coefficients::{Blend, StepCoefficients};
use super::config::{Prediction, ScheduleConfig, Spacing};
use super::levels::{Levels, levels};
use super::training::{Training, denoised};
use super::{Mixture, ScheduleError, ScheduleOptions, Table};

/// Euler's method (arXiv 2206.00364, algorithm 2 without churn).
pub(super) fn euler(
    config: &ScheduleConfig,
    options: &ScheduleOptions,
    first: usize,
) -> Result<Table, ScheduleError> {
    table(config, options, first, false)
}

/// Euler's method to a level below the next, and noise up to that.
pub(super) fn ancestral(
    config: &ScheduleConfig,
    options: &ScheduleOptions,
    first: usize,
) -> Result<Table, ScheduleError> {
    if config.prediction == Prediction::Sample {
        return Err(ScheduleError::Unsuitable {
            name: options.name,
            reason: "not for models that predict the sample".to_owned(),
        });
    }
    table(config, options, first, true)
}

fn table(
    config: &ScheduleConfig,
    options: &ScheduleOptions,
    first: usize,
    ancestral: bool,
) -> Result<Table, ScheduleError> {
    let training = Training::new(config, options.name)?;
    let Levels { timesteps, sigmas } = levels(config, options, &training)?;
    let steps = (first..options.steps)
        .map(|i| {
            let (from, to) = (sigmas[i], sigmas[i + 1]);
            let noise = if ancestral {
                let square = to * to * (from * from - to * to) / (from * from);
                square.max(0.0).sqrt()
            } else {
                0.0
            };
            let down = (to * to - noise * noise).max(0.0).sqrt();
            let down = if ancestral { down } else { to };
            let clean = denoised(config.prediction, added(from));
            // Along the line from the denoised latent through this one.
            let share = (down - from) / from;
            StepCoefficients {
                timestep: timesteps[i],
                sigma: from,
                input_scale: 1.0 / (from * from + 1.0).sqrt(),
                denoised_x: clean.x,
                denoised_output: clean.output,
                clip: None,
                next: Blend {
                    x: 1.0 + share * (1.0 - clean.x),
                    output: -share * clean.output,
                    noise,
                    ..Blend::default()
                },
                anchor: Blend::default(),
            }
        })
        .collect();
    let noised: Vec<Mixture> = sigmas[first..options.steps]
        .iter()
        .map(|&sigma| added(sigma))
        .collect();
    let most = sigmas.iter().copied().fold(0.0, f64::max);
    // Spacings that begin at the last training step begin with noise alone; the others leave a little
    // signal there, whose variance the noise makes up for.
    let noise = match config.spacing.unwrap_or(Spacing::Linspace) {
        Spacing::Linspace | Spacing::Trailing => most,
        Spacing::Leading => (most * most + 1.0).sqrt(),
    };
    let from_noise = Mixture { signal: 0.0, noise };
    Ok(Table {
        steps,
        begin: options.strength.map_or(from_noise, |_| noised[0]),
        noised,
        kept: 0,
        anchored: false,
    })
}

fn added(sigma: f64) -> Mixture {
    Mixture {
        signal: 1.0,
        noise: sigma,
    }
}
