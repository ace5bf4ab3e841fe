//! One picture in the making.

use std::sync::Arc;

use candle_core::Tensor;

use super::NoiseSource;
use super::denoiser::{Conditioning, PromptSide};
use super::random::NoiseUse;
use super::schedule::rows::RowState;
use super::schedule::{Mixture, NoiseSchedule, StepCoefficients};
use super::vae::{Moments, Vae};
use crate::batch::BatchKey;
use crate::job::{ImageJob, Job, Previews};
use crate::model::ModelError;
use crate::picture::Mask;

/// Set in the key of a row whose steps are done: decodings share no pass with denoising.
pub(super) const FINISHING: u64 = 1;

/// A picture that has a slot.
pub(super) struct Row {
    pub(super) job: Arc<Job>,
    pub(super) choice: u32,
    schedule: NoiseSchedule,
    key: BatchKey,
    /// Steps done.
    step: usize,
    /// There once it has begun.
    drawing: Option<Drawing>,
}

/// What a row carries from step to step.
struct Drawing {
    state: RowState,
    positive: Arc<Conditioning>,
    negative: Option<Arc<Conditioning>>,
    kept: Option<Kept>,
}

/// What inpainting puts back after each step.
struct Kept {
    /// (1, h, w, 1) f32: 1 where it is drawn anew.
    mask: Tensor,
    /// (1, h, w, c) f32, scaled.
    latent: Tensor,
    /// (1, h, w, c) f32: the noise that the row began with.
    noise: Tensor,
}

impl Row {
    /// A row that has not begun. `key`: of its job.
    pub(super) fn new(job: Arc<Job>, choice: u32, schedule: NoiseSchedule, key: BatchKey) -> Self {
        Row {
            job,
            choice,
            schedule,
            key,
            step: 0,
            drawing: None,
        }
    }

    fn image(&self) -> &ImageJob {
        self.job.image()
    }

    /// With which rows its next pass may be shared.
    pub(super) fn key(&self) -> BatchKey {
        match self.step == self.schedule.len() {
            true => BatchKey(self.key.0 | FINISHING),
            false => self.key,
        }
    }

    /// Steps done.
    pub(super) fn step(&self) -> u32 {
        self.step as u32
    }

    /// Steps in all.
    pub(super) fn steps(&self) -> u32 {
        self.schedule.len() as u32
    }

    /// The numbers of the step to come.
    pub(super) fn coefficients(&self) -> StepCoefficients {
        *self
            .schedule
            .coefficients(self.step)
            .expect("a row whose steps are done is finishing")
    }

    /// Its latent, with what its schedule remembers.
    pub(super) fn state(&self) -> Result<&RowState, ModelError> {
        Ok(&self.drawing()?.state)
    }

    /// What its prompt became; `None` for the negative one of a row without guidance.
    pub(super) fn conditioning(
        &self,
        side: PromptSide,
    ) -> Result<Option<&Conditioning>, ModelError> {
        let drawing = self.drawing()?;
        Ok(match side {
            PromptSide::Positive => Some(&drawing.positive),
            PromptSide::Negative => drawing.negative.as_deref(),
        })
    }

    fn drawing(&self) -> Result<&Drawing, ModelError> {
        self.drawing
            .as_ref()
            .ok_or_else(|| ModelError::Device("a row was run that has not begun".to_owned()))
    }

    /// What names the fresh noise of the step to come.
    pub(super) fn step_noise(&self) -> (u64, NoiseUse) {
        let step = (self.schedule.first() + self.step) as u32;
        (self.image().seed_of(self.choice), NoiseUse::Step(step))
    }

    /// Puts the latent where the first step begins: at noise, or at the source under noise, whose moments are `encoded`.
    pub(super) fn begin(
        &mut self,
        vae: &Vae,
        noise: &NoiseSource,
        (height, width, channels): (usize, usize, usize),
        positive: Arc<Conditioning>,
        negative: Option<Arc<Conditioning>>,
        encoded: Option<Moments>,
    ) -> Result<(), ModelError> {
        let shape = (1, height, width, channels);
        let seed = self.image().seed_of(self.choice);
        let draw = |purpose| {
            let mut values = vec![0f32; height * width * channels];
            noise(seed, purpose, &mut values);
            Tensor::from_vec(values, shape, vae.device())
        };
        let noise = draw(NoiseUse::Initial)?;
        let (x, kept) = match self.image().source.as_ref().zip(encoded) {
            None => {
                let scale = self.schedule.begin().noise;
                (noise.affine(scale, 0.0)?, None)
            }
            Some((source, moments)) => {
                let deviation = (moments.log_variance / 2.0)?.exp()?;
                let sampled = (moments.mean + (deviation * draw(NoiseUse::Encode)?)?)?;
                let latent = vae.scale(&sampled)?;
                let x = mixed(self.schedule.begin(), &latent, &noise)?;
                let kept = match &source.mask {
                    None => None,
                    Some(mask) => Some(Kept {
                        mask: latent_mask(mask, (height, width), vae)?,
                        latent,
                        noise,
                    }),
                };
                (x, kept)
            }
        };
        self.drawing = Some(Drawing {
            state: RowState::new(x),
            positive,
            negative,
            kept,
        });
        Ok(())
    }

    /// What row `index` of a step's result makes of it. Nothing has changed yet: memory may run out on the way.
    pub(super) fn advanced(&self, next: &RowState, index: usize) -> Result<Advanced, ModelError> {
        let drawing = self.drawing()?;
        let step = self.step + 1;
        let mut state = next.row(index, self.schedule.kept(), self.schedule.anchored())?;
        let denoised = match next.kept.first() {
            Some(denoised) => Some(denoised.narrow(0, index, 1)?),
            None => None,
        };
        if let Some(kept) = &drawing.kept {
            // diffusers: (1 - mask) * original, noised for the next step, + mask * latent.
            let original = mixed(self.schedule.noised(step), &kept.latent, &kept.noise)?;
            let old = original.broadcast_mul(&kept.mask.affine(-1.0, 1.0)?)?;
            let new = state.x.broadcast_mul(&kept.mask)?;
            state.x = (old + new)?;
        }
        let is_shown = match &self.image().previews {
            Previews::None => false,
            Previews::Latest => true,
            Previews::After(steps) => steps.contains(&(step as u32)),
        };
        Ok(Advanced {
            state,
            denoised,
            is_shown,
        })
    }

    /// Takes the step.
    pub(super) fn take(&mut self, advanced: Advanced) {
        if let Some(drawing) = &mut self.drawing {
            self.step += 1;
            drawing.state = advanced.state;
        }
    }
}

/// A row after a step that has been computed and not been taken.
pub(super) struct Advanced {
    state: RowState,
    /// What the step takes the finished latent to be, (1, h, w, c).
    denoised: Option<Tensor>,
    /// Whether the state after it is to be shown.
    pub(super) is_shown: bool,
}

impl Advanced {
    /// (h, w, c) f32: what it looks like it will become.
    pub(super) fn denoised(&self) -> Result<Tensor, ModelError> {
        let latent = self.denoised.as_ref().unwrap_or(&self.state.x);
        Ok(latent.squeeze(0)?.contiguous()?)
    }
}

fn mixed(mixture: Mixture, latent: &Tensor, noise: &Tensor) -> Result<Tensor, ModelError> {
    let signal = latent.affine(mixture.signal, 0.0)?;
    if mixture.noise == 0.0 {
        return Ok(signal);
    }
    Ok((signal + noise.affine(mixture.noise, 0.0)?)?)
}

/// A mask at the size of the latent: of each square the pixel at its upper left, as diffusers has it.
fn latent_mask(
    mask: &Mask,
    (height, width): (usize, usize),
    vae: &Vae,
) -> Result<Tensor, ModelError> {
    let factor = vae.config().factor();
    let columns = mask.width() as usize;
    let mut values = Vec::with_capacity(height * width);
    for line in 0..height {
        for column in 0..width {
            let pixel = mask.values()[line * factor * columns + column * factor];
            values.push(if pixel >= 128 { 1f32 } else { 0.0 });
        }
    }
    Ok(Tensor::from_vec(
        values,
        (1, height, width, 1),
        vae.device(),
    )?)
}
