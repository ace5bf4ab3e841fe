//! DDIM, DDPM and latent consistency models: schedules that walk from one training step to another and
//! keep the latent's variance.

use super::coefficients::{Blend, StepCoefficients};
use super::config::{Prediction, ScheduleConfig, Spacing, Variance};
use super::levels::{self, Layout};
use super::training::{Line, Training, denoised};
use super::{Mixture, ScheduleError, ScheduleOptions, Table};

/// The signal's share of the variance on both sides of a step, and the fresh noise in it.
struct Walk {
    t: usize,
    from: f64,
    to: f64,
}

/// DDIM (arXiv 2010.02502). The step's goal is the training step a fixed stride below, whatever the
/// spacing: with "trailing" and a step count that does not divide the training steps it may lie one beside
/// the next timestep. This is what diffusers does.
pub(super) fn ddim(
    config: &ScheduleConfig,
    options: &ScheduleOptions,
    first: usize,
) -> Result<Table, ScheduleError> {
    let training = Training::new(config, options.name)?;
    let timesteps = whole_timesteps(config, options);
    let stride = config.train_steps / options.steps;
    let last = if config.set_alpha_to_one {
        1.0
    } else {
        training.signal(0)
    };
    let steps = timesteps[first..]
        .iter()
        .map(|&t| {
            let walk = Walk {
                t,
                from: training.signal(t),
                to: t.checked_sub(stride).map_or(last, |t| training.signal(t)),
            };
            let Walk { from, to, .. } = walk;
            let variance = (1.0 - to) / (1.0 - from) * (1.0 - from / to);
            let noise = options.eta * variance.max(0.0).sqrt();
            // Rounding may take the difference below 0 where there is nothing left.
            let direction = (1.0 - to - noise * noise).max(0.0).sqrt();
            let epsilon = epsilon(config.prediction, training.mixture(t)).scaled(direction);
            step(config, &walk, &training, to.sqrt(), epsilon, noise)
        })
        .collect();
    Ok(table(&training, &timesteps[first..], options, steps))
}

/// DDPM (arXiv 2006.11239), over the timesteps that are visited.
pub(super) fn ddpm(
    config: &ScheduleConfig,
    options: &ScheduleOptions,
    first: usize,
) -> Result<Table, ScheduleError> {
    let training = Training::new(config, options.name)?;
    let timesteps = whole_timesteps(config, options);
    let steps = (first..timesteps.len())
        .map(|i| {
            let t = timesteps[i];
            let from = training.signal(t);
            let to = timesteps.get(i + 1).map_or(1.0, |&t| training.signal(t));
            let beta = 1.0 - from / to;
            let variance = match config.variance {
                _ if t == 0 => 0.0,
                Variance::Small => ((1.0 - to) / (1.0 - from) * beta).max(1e-20),
                Variance::Large => beta,
            };
            let x = Line {
                x: (from / to).sqrt() * (1.0 - to) / (1.0 - from),
                output: 0.0,
            };
            let weight = to.sqrt() * beta / (1.0 - from);
            step(
                config,
                &Walk { t, from, to },
                &training,
                weight,
                x,
                variance.sqrt(),
            )
        })
        .collect();
    Ok(table(&training, &timesteps[first..], options, steps))
}

/// Latent consistency models (arXiv 2310.04378, algorithm 3): a jump to the clean latent, then back to the
/// next timestep with fresh noise.
pub(super) fn lcm(
    config: &ScheduleConfig,
    options: &ScheduleOptions,
    first: usize,
) -> Result<Table, ScheduleError> {
    let original = config.original_steps;
    if options.steps > original {
        return Err(ScheduleError::Steps {
            given: options.steps,
            limit: original,
            why: "the model's original_inference_steps",
        });
    }
    let training = Training::new(config, options.name)?;
    // The training steps of the distillation, the noisiest first; of those, evenly many.
    let stride = config.train_steps / original;
    let apart = original as f64 / options.steps as f64;
    let timesteps: Vec<usize> = (0..options.steps)
        .map(|i| (original - (i as f64 * apart) as usize) * stride - 1)
        .collect();
    let steps = (first..timesteps.len())
        .map(|i| {
            let t = timesteps[i];
            let from = training.signal(t);
            // The standard deviation of the data, as the models were trained.
            let data = 0.5 * 0.5;
            let scaled = t as f64 * config.timestep_scaling;
            let skip = data / (scaled * scaled + data);
            let out = scaled / (scaled * scaled + data).sqrt();
            let next = timesteps.get(i + 1).map(|&t| training.signal(t));
            let to = next.unwrap_or(1.0);
            let x = Line {
                x: to.sqrt() * skip,
                output: 0.0,
            };
            let noise = (1.0 - to).sqrt();
            step(
                config,
                &Walk { t, from, to },
                &training,
                to.sqrt() * out,
                x,
                noise,
            )
        })
        .collect();
    Ok(table(&training, &timesteps[first..], options, steps))
}

fn whole_timesteps(config: &ScheduleConfig, options: &ScheduleOptions) -> Vec<usize> {
    let spacing = config.spacing.unwrap_or(Spacing::Leading);
    let end = config.train_steps;
    levels::timesteps(config, spacing, Layout::Whole, options.steps, end)
        .into_iter()
        .map(|t| t as usize)
        .collect()
}

/// The noise that the model found.
fn epsilon(prediction: Prediction, mixture: Mixture) -> Line {
    let Mixture { signal, noise } = mixture;
    match prediction {
        Prediction::Sample => Line {
            x: 1.0 / noise,
            output: -signal / noise,
        },
        Prediction::Velocity => Line {
            x: noise,
            output: signal,
        },
        Prediction::Epsilon | Prediction::Flow => Line {
            x: 0.0,
            output: 1.0,
        },
    }
}

/// `x' = weight * denoised + rest + noise`.
fn step(
    config: &ScheduleConfig,
    walk: &Walk,
    training: &Training,
    weight: f64,
    rest: Line,
    noise: f64,
) -> StepCoefficients {
    let mixture = training.mixture(walk.t);
    let clean = denoised(config.prediction, mixture);
    // Unless it is clipped, the denoised latent is spelled out.
    let (clipped, spelled) = match config.clip {
        Some(_) => (weight, 0.0),
        None => (0.0, weight),
    };
    StepCoefficients {
        timestep: walk.t as f64,
        sigma: mixture.noise / mixture.signal.max(f64::MIN_POSITIVE),
        input_scale: 1.0,
        denoised_x: clean.x,
        denoised_output: clean.output,
        clip: config.clip,
        next: Blend {
            x: rest.x + spelled * clean.x,
            output: rest.output + spelled * clean.output,
            denoised: clipped,
            noise,
            ..Blend::default()
        },
        anchor: Blend::default(),
    }
}

fn table(
    training: &Training,
    timesteps: &[usize],
    options: &ScheduleOptions,
    steps: Vec<StepCoefficients>,
) -> Table {
    let noised: Vec<Mixture> = timesteps.iter().map(|&t| training.mixture(t)).collect();
    let from_noise = Mixture {
        signal: 0.0,
        noise: 1.0,
    };
    Table {
        steps,
        begin: options.strength.map_or(from_noise, |_| noised[0]),
        noised,
        kept: 0,
        anchored: false,
    }
}
