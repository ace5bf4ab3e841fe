//! The noise that a noise-predicting model was trained with.

use super::config::{BetaSchedule, Prediction, ScheduleConfig};
use super::{Mixture, ScheduleError};
use crate::job::ScheduleName;

/// What stands for no signal at all where a ratio to the signal is needed: diffusers' least.
const LEAST_SIGNAL: f64 = 1.0 / (1 << 24) as f64;

/// The share of the signal's variance that is left at each training step, falling from nearly 1.
pub(super) struct Training {
    cumulative: Vec<f64>,
}

impl Training {
    /// `name` has its defaults where the configuration says nothing.
    pub(super) fn new(config: &ScheduleConfig, name: ScheduleName) -> Result<Self, ScheduleError> {
        let latent = name == ScheduleName::Lcm;
        let start = config
            .beta_start
            .unwrap_or(if latent { 0.00085 } else { 0.0001 });
        let end = config.beta_end.unwrap_or(if latent { 0.012 } else { 0.02 });
        let schedule = config.beta_schedule.unwrap_or(if latent {
            BetaSchedule::ScaledLinear
        } else {
            BetaSchedule::Linear
        });
        let count = config.train_steps;
        let betas = match (&config.trained_betas, schedule) {
            (Some(betas), _) => betas.clone(),
            (None, BetaSchedule::Linear) => linspace(start, end, count),
            (None, BetaSchedule::ScaledLinear) => linspace(start.sqrt(), end.sqrt(), count)
                .into_iter()
                .map(|root| root * root)
                .collect(),
            (None, BetaSchedule::Cosine) => cosine_betas(count),
        };
        let mut product = 1.0;
        let mut cumulative: Vec<f64> = betas
            .into_iter()
            .map(|beta| {
                product *= 1.0 - beta;
                product
            })
            .collect();
        if config.zero_snr {
            if count < 2 {
                return Err(ScheduleError::Config {
                    field: "rescale_betas_zero_snr".to_owned(),
                    reason: "needs two training steps".to_owned(),
                });
            }
            rescale_to_zero_snr(&mut cumulative);
            // Those that divide by the signal cannot take none.
            if matches!(
                name,
                ScheduleName::Euler
                    | ScheduleName::EulerAncestral
                    | ScheduleName::DpmPlusPlus2m
                    | ScheduleName::UniPc
            ) {
                cumulative[count - 1] = LEAST_SIGNAL;
            }
        }
        Ok(Training { cumulative })
    }

    /// Share of the signal's variance at training step `t`.
    pub(super) fn signal(&self, t: usize) -> f64 {
        self.cumulative[t]
    }

    /// How a clean latent is noised to training step `t`, keeping the variance.
    pub(super) fn mixture(&self, t: usize) -> Mixture {
        Mixture {
            signal: self.signal(t).sqrt(),
            noise: (1.0 - self.signal(t)).sqrt(),
        }
    }

    /// Noise relative to signal at each training step, rising.
    pub(super) fn sigmas(&self) -> Vec<f64> {
        self.cumulative
            .iter()
            .map(|signal| ((1.0 - signal) / signal).sqrt())
            .collect()
    }
}

/// `count` numbers from `start` to `end`, as numpy computes them.
pub(super) fn linspace(start: f64, end: f64, count: usize) -> Vec<f64> {
    let step = (end - start) / (count.max(2) - 1) as f64;
    let mut values: Vec<f64> = (0..count).map(|i| start + i as f64 * step).collect();
    if count > 1 {
        values[count - 1] = end;
    }
    values
}

/// Nichol and Dhariwal (arXiv 2102.09672, eq. 17), with their cap.
fn cosine_betas(count: usize) -> Vec<f64> {
    let signal = |t: f64| {
        ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2)
            .cos()
            .powi(2)
    };
    (0..count)
        .map(|i| {
            let from = signal(i as f64 / count as f64);
            let to = signal((i + 1) as f64 / count as f64);
            (1.0 - to / from).min(0.999)
        })
        .collect()
}

/// Moves and stretches the signal so that none is left at the last step (arXiv 2305.08891, algorithm 1).
fn rescale_to_zero_snr(cumulative: &mut [f64]) {
    let first = cumulative[0].sqrt();
    let last = cumulative[cumulative.len() - 1].sqrt();
    for signal in cumulative {
        let root = (signal.sqrt() - last) * (first / (first - last));
        *signal = root * root;
    }
}

/// A weighted sum of the latent and the model's output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    pub(super) x: f64,
    pub(super) output: f64,
}

impl Line {
    pub(super) fn scaled(self, by: f64) -> Line {
        Line {
            x: self.x * by,
            output: self.output * by,
        }
    }
}

/// The denoised latent, of a latent that is `mixture` of it and noise.
///
/// In schedules that add noise and leave the signal as it is, `mixture.signal` is 1; the model sees and
/// predicts at unit variance all the same, hence the division by `square` for the velocity.
pub(super) fn denoised(prediction: Prediction, mixture: Mixture) -> Line {
    let Mixture { signal, noise } = mixture;
    match prediction {
        Prediction::Epsilon => Line {
            x: 1.0 / signal,
            output: -noise / signal,
        },
        Prediction::Sample => Line {
            x: 0.0,
            output: 1.0,
        },
        Prediction::Velocity => {
            let square = signal * signal + noise * noise;
            Line {
                x: signal / square,
                output: -noise / square.sqrt(),
            }
        }
        Prediction::Flow => Line {
            x: 1.0,
            output: -noise,
        },
    }
}
