//! One step of a schedule as numbers, and the update of one row by them.

use super::ScheduleError;

/// How many earlier denoised latents a step can use: the third-order correctors need three.
pub const KEPT: usize = 3;

/// A weighted sum of what a step knows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Blend {
    /// Weight of the latent.
    pub x: f64,
    /// Weight of the model's output.
    pub output: f64,
    /// Weight of the denoised latent of this step. Not 0 only where that one is clipped: without
    /// clipping it is itself a sum of `x` and `output`, and is written as such.
    pub denoised: f64,
    /// Weights of the denoised latents of earlier steps, the latest first.
    pub kept: [f64; KEPT],
    /// Weight of the anchor: the corrected latent of the step before.
    pub anchor: f64,
    /// Weight of fresh normal noise.
    pub noise: f64,
}

/// One step: see the module's documentation for the form.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepCoefficients {
    /// What the model is told, in training steps; whole for some schedules only. Flow models of the
    /// Flux kind take a thousandth of it.
    pub timestep: f64,
    /// How much noise there is before the step, relative to the signal (for flows, to both together).
    pub sigma: f64,
    /// The latent is multiplied by this before the model sees it.
    pub input_scale: f64,
    /// Weight of the latent in the denoised latent.
    pub denoised_x: f64,
    /// Weight of the model's output in the denoised latent.
    pub denoised_output: f64,
    /// The denoised latent is brought into -clip..=clip.
    pub clip: Option<f64>,
    /// The latent after the step.
    pub next: Blend,
    /// The anchor after the step.
    pub anchor: Blend,
}

impl StepCoefficients {
    /// Whether the step draws fresh noise.
    pub fn needs_noise(&self) -> bool {
        self.next.noise != 0.0
    }

    pub(super) fn is_finite(&self) -> bool {
        let blends = [self.next, self.anchor].into_iter().all(|blend| {
            [
                blend.x,
                blend.output,
                blend.denoised,
                blend.anchor,
                blend.noise,
            ]
            .iter()
            .chain(&blend.kept)
            .all(|weight| weight.is_finite())
        });
        let others = [
            self.timestep,
            self.sigma,
            self.input_scale,
            self.denoised_x,
            self.denoised_output,
        ];
        blends && others.iter().all(|value| value.is_finite())
    }
}

/// The numbers of a row: f32 in service; f64 to compare tables with a reference.
pub trait Real: Copy + PartialOrd + std::ops::Neg<Output = Self> + sealed::Sealed {
    /// Nothing.
    const ZERO: Self;
    /// The nearest such number.
    fn nearest(value: f64) -> Self;
    /// `sum + weight * value`, rounded twice, so that it is the same on every processor.
    fn add_product(sum: Self, weight: Self, value: Self) -> Self;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    fn nearest(value: f64) -> f32 {
        value as f32
    }
    fn add_product(sum: f32, weight: f32, value: f32) -> f32 {
        sum + weight * value
    }
}

impl Real for f64 {
    const ZERO: f64 = 0.0;
    fn nearest(value: f64) -> f64 {
        value
    }
    fn add_product(sum: f64, weight: f64, value: f64) -> f64 {
        sum + weight * value
    }
}

/// What a row carries from step to step beside its latent.
#[derive(Clone, Debug, PartialEq)]
pub struct History<T = f32> {
    /// Denoised latents of earlier steps, the latest first. Zeros before there were any.
    pub(super) kept: Vec<Vec<T>>,
    /// The corrected latent of the step before; empty for schedules that correct nothing.
    pub(super) anchor: Vec<T>,
}

impl<T: Real> History<T> {
    pub(super) fn new(kept: usize, anchored: bool, len: usize) -> Self {
        History {
            kept: vec![vec![T::ZERO; len]; kept],
            anchor: vec![T::ZERO; if anchored { len } else { 0 }],
        }
    }
}

/// Elements handled together: few enough for the sums to stay in registers and first-level cache.
const CHUNK: usize = 128;

/// Takes one row one step on. All slices are of equal length.
pub(super) fn update<T: Real>(
    step: &StepCoefficients,
    x: &mut [T],
    output: &[T],
    history: &mut History<T>,
    noise: Option<&[T]>,
) -> Result<(), ScheduleError> {
    let len = x.len();
    let anchored = !history.anchor.is_empty();
    let wrong = [
        ("model output", output.len()),
        ("noise", noise.map_or(len, <[T]>::len)),
    ]
    .into_iter()
    .chain(history.kept.iter().map(|kept| ("history", kept.len())))
    .chain(anchored.then_some(("history", history.anchor.len())))
    .find(|&(_, other)| other != len);
    if let Some((what, given)) = wrong {
        return Err(ScheduleError::Length {
            what,
            given,
            expected: len,
        });
    }
    if step.needs_noise() && noise.is_none() {
        return Err(ScheduleError::NoiseMissing);
    }
    let noise = noise.filter(|_| step.needs_noise());

    let mut start = 0;
    while start < len {
        let size = CHUNK.min(len - start);
        let range = start..start + size;
        let mut denoised = [T::ZERO; CHUNK];
        let denoised = &mut denoised[..size];
        add(denoised, step.denoised_x, &x[range.clone()]);
        add(denoised, step.denoised_output, &output[range.clone()]);
        if let Some(clip) = step.clip {
            clamp(denoised, T::nearest(clip));
        }
        let mut next = [T::ZERO; CHUNK];
        let mut anchor = [T::ZERO; CHUNK];
        for (sum, blend) in [
            (&mut next[..size], &step.next),
            (&mut anchor[..size], &step.anchor),
        ] {
            add(sum, blend.x, &x[range.clone()]);
            add(sum, blend.output, &output[range.clone()]);
            add(sum, blend.denoised, denoised);
            for (weight, kept) in blend.kept.iter().zip(&history.kept) {
                add(sum, *weight, &kept[range.clone()]);
            }
            if anchored {
                add(sum, blend.anchor, &history.anchor[range.clone()]);
            }
            if let Some(noise) = noise {
                add(sum, blend.noise, &noise[range.clone()]);
            }
        }
        x[range.clone()].copy_from_slice(&next[..size]);
        if anchored {
            history.anchor[range.clone()].copy_from_slice(&anchor[..size]);
        }
        // The oldest is read by now; its place takes the newest.
        if let Some(oldest) = history.kept.last_mut() {
            oldest[range].copy_from_slice(denoised);
        }
        start += size;
    }
    if !history.kept.is_empty() {
        history.kept.rotate_right(1);
    }
    Ok(())
}

/// Adds a weighted slice.
///
/// Every sum begins at +0, so it never is -0, and a term of weight 0 changes no bit of it: to leave one
/// out here and to add it in a batch with other rows is the same.
#[inline(always)]
fn add<T: Real>(sums: &mut [T], weight: f64, values: &[T]) {
    if weight == 0.0 {
        return;
    }
    let weight = T::nearest(weight);
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum = T::add_product(*sum, weight, *value);
    }
}

/// Leaves what is not a number as it is, so that a failing model does not go unnoticed.
fn clamp<T: Real>(values: &mut [T], limit: T) {
    for value in values {
        if *value > limit {
            *value = limit;
        } else if *value < -limit {
            *value = -limit;
        }
    }
}
