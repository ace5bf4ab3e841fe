//! The same update for many rows at once, as tensors on any device.

use candle_core::{DType, Result, Tensor};

use super::coefficients::{Blend, KEPT, StepCoefficients};

/// What rows carry from step to step: the first dimension of every tensor counts rows, the others are the
/// latent's; f32, all of one shape.
#[derive(Clone, Debug)]
pub struct RowState {
    /// The latents.
    pub x: Tensor,
    /// Denoised latents of earlier steps, the latest first; none before the first step. After a step the
    /// first is always there, for previews, whether or not a schedule reads it.
    pub kept: Vec<Tensor>,
    /// The corrected latent of the step before.
    pub anchor: Option<Tensor>,
}

impl RowState {
    /// Rows before their first step. `x`: (rows, ..), f32.
    pub fn new(x: Tensor) -> Self {
        RowState {
            x,
            kept: Vec::new(),
            anchor: None,
        }
    }

    /// Puts rows side by side. What one of them lacks is 0, which is what it takes it for.
    ///
    /// # Errors
    /// Their latents differ in shape, or the device fails.
    pub fn cat(rows: &[RowState]) -> Result<RowState> {
        let zeros: Vec<Tensor> = rows
            .iter()
            .map(|row| row.x.zeros_like())
            .collect::<Result<_>>()?;
        let most = rows.iter().map(|row| row.kept.len()).max().unwrap_or(0);
        let xs: Vec<&Tensor> = rows.iter().map(|row| &row.x).collect();
        let kept = (0..most)
            .map(|slot| {
                let slots: Vec<&Tensor> = rows
                    .iter()
                    .zip(&zeros)
                    .map(|(row, zeros)| row.kept.get(slot).unwrap_or(zeros))
                    .collect();
                Tensor::cat(&slots, 0)
            })
            .collect::<Result<_>>()?;
        let anchor = if rows.iter().any(|row| row.anchor.is_some()) {
            let anchors: Vec<&Tensor> = rows
                .iter()
                .zip(&zeros)
                .map(|(row, zeros)| row.anchor.as_ref().unwrap_or(zeros))
                .collect();
            Some(Tensor::cat(&anchors, 0)?)
        } else {
            None
        };
        Ok(RowState {
            x: Tensor::cat(&xs, 0)?,
            kept,
            anchor,
        })
    }

    /// One row, a view. Of what the rows carry it takes what its schedule reads:
    /// [`NoiseSchedule::kept`](super::NoiseSchedule::kept) and
    /// [`NoiseSchedule::anchored`](super::NoiseSchedule::anchored).
    ///
    /// # Errors
    /// There is no such row.
    pub fn row(&self, index: usize, kept: usize, anchored: bool) -> Result<RowState> {
        Ok(RowState {
            x: self.x.narrow(0, index, 1)?,
            kept: self
                .kept
                .iter()
                .take(kept)
                .map(|slot| slot.narrow(0, index, 1))
                .collect::<Result<_>>()?,
            anchor: match &self.anchor {
                Some(anchor) if anchored => Some(anchor.narrow(0, index, 1)?),
                _ => None,
            },
        })
    }

    /// Takes each row through its own step, bit for bit as [`NoiseSchedule::step`](super::NoiseSchedule::step)
    /// does. `output`, `noise`: like the latents; rows whose step draws none may have anything finite in
    /// `noise`.
    ///
    /// # Errors
    /// There are not as many `steps` as rows, noise is needed and missing, or the device fails.
    pub fn update(
        &self,
        steps: &[StepCoefficients],
        output: &Tensor,
        noise: Option<&Tensor>,
    ) -> Result<RowState> {
        let rows = self.x.dim(0)?;
        if steps.len() != rows {
            candle_core::bail!("{} steps for {rows} rows", steps.len());
        }
        if noise.is_none() && steps.iter().any(StepCoefficients::needs_noise) {
            candle_core::bail!("a step that draws noise was given none");
        }
        let weights = Weights {
            steps,
            like: &self.x,
        };
        let mut denoised = Sum::default();
        denoised.add(weights.of(|step| step.denoised_x)?, &self.x)?;
        denoised.add(weights.of(|step| step.denoised_output)?, output)?;
        let mut denoised = denoised.or_zeros(&self.x)?;
        if steps.iter().any(|step| step.clip.is_some()) {
            let limit = |step: &StepCoefficients| step.clip.unwrap_or(f64::INFINITY);
            let most = weights.column(limit)?;
            denoised = denoised
                .broadcast_minimum(&most)?
                .broadcast_maximum(&most.neg()?)?;
        }
        let blend = |of: fn(&StepCoefficients) -> &Blend| -> Result<Tensor> {
            let mut sum = Sum::default();
            sum.add(weights.of(|step| of(step).x)?, &self.x)?;
            sum.add(weights.of(|step| of(step).output)?, output)?;
            sum.add(weights.of(|step| of(step).denoised)?, &denoised)?;
            for (slot, kept) in self.kept.iter().take(KEPT).enumerate() {
                sum.add(weights.of(|step| of(step).kept[slot])?, kept)?;
            }
            if let Some(anchor) = &self.anchor {
                sum.add(weights.of(|step| of(step).anchor)?, anchor)?;
            }
            if let Some(noise) = noise {
                sum.add(weights.of(|step| of(step).noise)?, noise)?;
            }
            sum.or_zeros(&self.x)
        };
        let anchored = steps.iter().any(|step| step.anchor != Blend::default());
        let mut kept = vec![denoised.clone()];
        kept.extend(self.kept.iter().take(KEPT - 1).cloned());
        Ok(RowState {
            x: blend(|step| &step.next)?,
            kept,
            anchor: anchored.then(|| blend(|step| &step.anchor)).transpose()?,
        })
    }
}

/// One number for each row.
struct Weights<'a> {
    steps: &'a [StepCoefficients],
    like: &'a Tensor,
}

impl Weights<'_> {
    /// (rows, 1, ..), f32; nothing if all are 0.
    fn of(&self, weight: impl Fn(&StepCoefficients) -> f64) -> Result<Option<Tensor>> {
        if self.steps.iter().all(|step| weight(step) == 0.0) {
            return Ok(None);
        }
        self.column(weight).map(Some)
    }

    fn column(&self, weight: impl Fn(&StepCoefficients) -> f64) -> Result<Tensor> {
        let values: Vec<f32> = self.steps.iter().map(|step| weight(step) as f32).collect();
        let mut shape = vec![1; self.like.rank()];
        shape[0] = values.len();
        let column = Tensor::from_vec(values, shape, self.like.device())?;
        column.to_dtype(DType::F32)
    }
}

/// A sum that begins at +0, as that of a single row does, so that terms of weight 0 change no bit.
#[derive(Default)]
struct Sum(Option<Tensor>);

impl Sum {
    fn add(&mut self, weight: Option<Tensor>, values: &Tensor) -> Result<()> {
        let Some(weight) = weight else {
            return Ok(());
        };
        let term = values.broadcast_mul(&weight)?;
        self.0 = Some(match self.0.take() {
            None => (term + 0.0)?,
            Some(sum) => (sum + term)?,
        });
        Ok(())
    }

    fn or_zeros(self, like: &Tensor) -> Result<Tensor> {
        self.0.map_or_else(|| like.zeros_like(), Ok)
    }
}
