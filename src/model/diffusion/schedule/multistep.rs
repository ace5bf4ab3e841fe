//! DPM-Solver++ (arXiv 2211.01095), multistep, of order 1 to 3, and its stochastic variant.
//!
//! Noise levels are counted by the logarithm of signal to noise, `lambda`; a step goes by `h` of it.

use super::coefficients::{Blend, StepCoefficients};
use super::config::{ScheduleConfig, Solver};
use super::levels::{Levels, levels};
use super::training::{Line, Training, denoised};
use super::{Mixture, ScheduleError, ScheduleOptions, Table};

/// With fewer steps than this the last ones are taken at lower order, which keeps them stable.
const FEW_STEPS: usize = 15;

/// DPM++ with the configuration's order, 2 where it says nothing.
pub(super) fn table(
    config: &ScheduleConfig,
    options: &ScheduleOptions,
    first: usize,
) -> Result<Table, ScheduleError> {
    let training = Training::new(config, options.name)?;
    let Levels { timesteps, sigmas } = levels(config, options, &training)?;
    let steps = (first..options.steps)
        .map(|i| {
            let clean = denoised(config.prediction, mixture(sigmas[i]));
            let order = order(config, options.steps, i, first, &sigmas);
            let weights = weights(config, order, &sigmas, i);
            coefficients(timesteps[i], sigmas[i], clean, weights.blend(clean))
        })
        .collect();
    Ok(assemble(
        options,
        first,
        &sigmas,
        steps,
        config.solver_order - 1,
        false,
    ))
}

fn order(config: &ScheduleConfig, steps: usize, i: usize, first: usize, sigmas: &[f64]) -> usize {
    let few = config.lower_order_final && steps < FEW_STEPS;
    let left = steps - i;
    let most = if left == 1 && (config.euler_at_final || few || config.final_sigma_zero) {
        1
    } else if left == 2 && few {
        config.solver_order.min(2)
    } else {
        config.solver_order
    };
    distinct(sigmas, i, most.min(i - first + 1))
}

/// The order, or less where noise levels coincide, between which nothing can be interpolated.
pub(super) fn distinct(sigmas: &[f64], i: usize, order: usize) -> usize {
    let apart = (0..order)
        .take_while(|back| sigmas[i - back] != sigmas[i + 1 - back])
        .count();
    apart.max(1)
}

/// How much of the latent, the denoised latents and noise goes into the next latent.
struct Weights {
    x: f64,
    denoised: [f64; 3],
    noise: f64,
}

impl Weights {
    /// With this step's denoised latent spelled out.
    fn blend(&self, clean: Line) -> Blend {
        let [now, before, earlier] = self.denoised;
        Blend {
            x: self.x + now * clean.x,
            output: now * clean.output,
            kept: [before, earlier, 0.0],
            noise: self.noise,
            ..Blend::default()
        }
    }
}

fn weights(config: &ScheduleConfig, order: usize, sigmas: &[f64], i: usize) -> Weights {
    let Mixture {
        signal: alpha,
        noise: sigma,
    } = mixture(sigmas[i + 1]);
    let h = lambda(sigmas[i + 1]) - lambda(sigmas[i]);
    let ratio = sigma / mixture(sigmas[i]).noise;
    // Weights of the denoised latent and of its first and second derivative.
    let heun = order == 3 || config.solver == Some(Solver::Heun);
    let (x, noise, zeroth, first, second);
    if config.stochastic_solver {
        let gain = -(-2.0 * h).exp_m1();
        x = ratio * (-h).exp();
        noise = sigma * gain.max(0.0).sqrt();
        zeroth = alpha * gain;
        first = if heun {
            alpha * (gain / (-2.0 * h) + 1.0)
        } else {
            0.5 * alpha * gain
        };
        second = alpha * ((gain - 2.0 * h) / (4.0 * h * h) - 0.5);
    } else {
        let gain = (-h).exp_m1();
        x = ratio;
        noise = 0.0;
        zeroth = -alpha * gain;
        first = if heun {
            alpha * (gain / h + 1.0)
        } else {
            -0.5 * alpha * gain
        };
        second = -alpha * ((gain + h) / (h * h) - 0.5);
    }
    let mut denoised = [zeroth, 0.0, 0.0];
    if order >= 2 {
        let back = lambda(sigmas[i]) - lambda(sigmas[i - 1]);
        // Differences of the latest two, and of those before.
        let latest = h / back;
        let mut of_latest = first;
        let mut of_earlier = 0.0;
        if order == 3 {
            let far = lambda(sigmas[i - 1]) - lambda(sigmas[i - 2]);
            let share = back / (back + far);
            let curvature = second * h / (back + far);
            of_latest = first * (1.0 + share) + curvature;
            of_earlier = -(first * share + curvature) * h / far;
        }
        denoised[0] += of_latest * latest;
        denoised[1] += of_earlier - of_latest * latest;
        denoised[2] -= of_earlier;
    }
    Weights { x, denoised, noise }
}

/// Signal and noise of a latent of unit variance.
pub(super) fn mixture(sigma: f64) -> Mixture {
    let signal = 1.0 / (sigma * sigma + 1.0).sqrt();
    Mixture {
        signal,
        noise: sigma * signal,
    }
}

/// Logarithm of signal to noise.
pub(super) fn lambda(sigma: f64) -> f64 {
    -sigma.ln()
}

pub(super) fn coefficients(
    timestep: f64,
    sigma: f64,
    clean: Line,
    next: Blend,
) -> StepCoefficients {
    StepCoefficients {
        timestep,
        sigma,
        input_scale: 1.0,
        denoised_x: clean.x,
        denoised_output: clean.output,
        clip: None,
        next,
        anchor: Blend::default(),
    }
}

pub(super) fn assemble(
    options: &ScheduleOptions,
    first: usize,
    sigmas: &[f64],
    steps: Vec<StepCoefficients>,
    kept: usize,
    anchored: bool,
) -> Table {
    let noised: Vec<Mixture> = sigmas[first..options.steps]
        .iter()
        .map(|&sigma| mixture(sigma))
        .collect();
    let from_noise = Mixture {
        signal: 0.0,
        noise: 1.0,
    };
    Table {
        steps,
        begin: options.strength.map_or(from_noise, |_| noised[0]),
        noised,
        kept,
        anchored,
    }
}
