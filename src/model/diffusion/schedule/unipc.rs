//! UniPC (arXiv 2302.04867): each step first corrects the latent that it is given, now that the model has
//! seen it, and then predicts the next one from the corrected.

use super::coefficients::{Blend, KEPT, StepCoefficients};
use super::config::{ScheduleConfig, Solver};
use super::levels::{Levels, levels};
use super::multistep::{assemble, coefficients, distinct, lambda, mixture};
use super::training::{Line, Training, denoised};
use super::{Mixture, ScheduleError, ScheduleOptions, Table};

/// UniPC with the configuration's order, 2 where it says nothing.
pub(super) fn table(
    config: &ScheduleConfig,
    options: &ScheduleOptions,
    first: usize,
) -> Result<Table, ScheduleError> {
    let training = Training::new(config, options.name)?;
    let Levels { timesteps, sigmas } = levels(config, options, &training)?;
    let small = config.solver == Some(Solver::Bh1);
    let mut steps: Vec<StepCoefficients> = Vec::with_capacity(options.steps - first);
    // The order of the prediction that led here.
    let mut before = 0;
    for i in first..options.steps {
        let clean = denoised(config.prediction, mixture(sigmas[i]));
        let corrects = i > first && !config.disable_corrector.contains(&(i - 1));
        let anchor = if corrects {
            correction(&sigmas, i, before, small, clean)
        } else {
            Blend {
                x: 1.0,
                ..Blend::default()
            }
        };
        let order = order(config, options.steps, i, first, &sigmas);
        let next = prediction(&sigmas, i, order, small, clean, &anchor);
        let mut step = coefficients(timesteps[i], sigmas[i], clean, next);
        step.anchor = anchor;
        steps.push(step);
        before = order;
    }
    Ok(assemble(
        options,
        first,
        &sigmas,
        steps,
        config.solver_order,
        true,
    ))
}

fn order(config: &ScheduleConfig, steps: usize, i: usize, first: usize, sigmas: &[f64]) -> usize {
    // To no noise at all there is no higher order: the step is infinitely long.
    let mut most = if sigmas[i + 1] == 0.0 {
        1
    } else {
        config.solver_order
    };
    if config.lower_order_final {
        most = most.min(steps - i);
    }
    distinct(sigmas, i, most.min(i - first + 1))
}

/// A step from level `s` to level `t`, as both formulas have it.
struct Stride {
    ratio: f64,
    alpha: f64,
    /// The step in `lambda`, backwards.
    hh: f64,
    gain: f64,
    /// The function of the step that the paper calls B.
    b: f64,
}

impl Stride {
    fn new(from: f64, to: f64, small: bool) -> Self {
        let Mixture { signal, noise } = mixture(to);
        let hh = lambda(from) - lambda(to);
        let gain = hh.exp_m1();
        Stride {
            ratio: noise / mixture(from).noise,
            alpha: signal,
            hh,
            gain,
            b: if small { hh } else { gain },
        }
    }

    /// The right-hand sides of the order conditions.
    fn conditions(&self) -> [f64; KEPT] {
        let mut phi = self.gain / self.hh - 1.0;
        let mut factorial = 1.0;
        let mut sides = [0.0; KEPT];
        for (k, side) in sides.iter_mut().enumerate() {
            *side = phi * factorial / self.b;
            factorial *= (k + 2) as f64;
            phi = phi / self.hh - 1.0 / factorial;
        }
        sides
    }
}

/// The corrected latent at level `i`: from the anchor at level `i - 1`, with the denoised latents of the
/// levels `i` (this step's), `i - 1` (`kept[0]`) and before.
fn correction(sigmas: &[f64], i: usize, order: usize, small: bool, clean: Line) -> Blend {
    let stride = Stride::new(sigmas[i - 1], sigmas[i], small);
    let mut rho = [0.5, 0.0, 0.0];
    let mut nodes = [1.0; KEPT];
    if order > 1 {
        for k in 1..order {
            nodes[k - 1] = node(sigmas, i - 1, i, k);
        }
        rho = solve(&nodes[..order], &stride.conditions());
    }
    let scale = -stride.alpha * stride.b;
    let mut kept = [-stride.alpha * stride.gain, 0.0, 0.0];
    for k in 1..order {
        let weight = scale * rho[k - 1] / nodes[k - 1];
        kept[k] += weight;
        kept[0] -= weight;
    }
    let now = scale * rho[order - 1];
    kept[0] -= now;
    Blend {
        x: now * clean.x,
        output: now * clean.output,
        kept,
        anchor: stride.ratio,
        ..Blend::default()
    }
}

/// The latent at level `i + 1`, from the corrected one at level `i` and the denoised latents of the levels
/// `i` (this step's), `i - 1` (`kept[0]`) and before.
fn prediction(
    sigmas: &[f64],
    i: usize,
    order: usize,
    small: bool,
    clean: Line,
    corrected: &Blend,
) -> Blend {
    let stride = Stride::new(sigmas[i], sigmas[i + 1], small);
    let mut nodes = [1.0; KEPT];
    for k in 1..order {
        nodes[k - 1] = node(sigmas, i, i + 1, k);
    }
    let rho = match order {
        1 => [0.0; KEPT],
        // The paper's simplification, which needs no solving.
        2 => [0.5, 0.0, 0.0],
        _ => solve(&nodes[..order - 1], &stride.conditions()),
    };
    let scale = -stride.alpha * stride.b;
    let mut now = -stride.alpha * stride.gain;
    let mut kept = corrected.kept.map(|weight| weight * stride.ratio);
    for k in 1..order {
        let weight = scale * rho[k - 1] / nodes[k - 1];
        kept[k - 1] += weight;
        now -= weight;
    }
    Blend {
        x: stride.ratio * corrected.x + now * clean.x,
        output: stride.ratio * corrected.output + now * clean.output,
        kept,
        anchor: stride.ratio * corrected.anchor,
        ..Blend::default()
    }
}

/// Where the level `back` before `from` lies, in steps from `from` to `to`.
fn node(sigmas: &[f64], from: usize, to: usize, back: usize) -> f64 {
    let start = lambda(sigmas[from]);
    (lambda(sigmas[from - back]) - start) / (lambda(sigmas[to]) - start)
}

/// Solves for weights whose sums with the nodes' powers 0, 1, 2 are the right-hand sides: at most three,
/// of distinct nodes.
fn solve(nodes: &[f64], sides: &[f64; KEPT]) -> [f64; KEPT] {
    match *nodes {
        [_] => [sides[0], 0.0, 0.0],
        [p, q] => {
            let second = (sides[1] - p * sides[0]) / (q - p);
            [sides[0] - second, second, 0.0]
        }
        [p, q, r] => {
            // Each weight by the polynomial that vanishes at the other two nodes.
            let weight = |at: f64, one: f64, other: f64| {
                (sides[2] - (one + other) * sides[1] + one * other * sides[0])
                    / ((at - one) * (at - other))
            };
            [weight(p, q, r), weight(q, p, r), weight(r, p, q)]
        }
        _ => [f64::NAN; KEPT],
    }
}
