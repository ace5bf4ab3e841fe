//! What predicts the noise: the part in which families of image models differ.

use candle_core::Tensor;

use crate::job::{ImageJob, PromptTokens};
use crate::model::ModelError;

/// What the text encoders made of a prompt. Computed once for a request, kept while its rows run.
#[derive(Clone, Debug)]
pub struct Conditioning {
    /// (1, tokens, c) f32: what every step attends to.
    pub context: Tensor,
    /// (1, p) f32: the prompt as a whole, for models that take it.
    pub pooled: Option<Tensor>,
}

impl Conditioning {
    /// Bytes of its tensors.
    pub fn bytes(&self) -> usize {
        let tensors = [Some(&self.context), self.pooled.as_ref()];
        let bytes = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        tensors.into_iter().flatten().map(bytes).sum()
    }
}

/// Which of a job's two prompts is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptSide {
    /// What to draw.
    Positive,
    /// What not to draw.
    Negative,
}

/// One row of a pass.
#[derive(Clone, Copy, Debug)]
pub struct DenoiserRow<'a> {
    /// What it draws.
    pub job: &'a ImageJob,
    /// As the schedule has it: 0 to 1000, also for flows.
    pub timestep: f64,
    /// Its prompt.
    pub conditioning: &'a Conditioning,
}

/// A network with its text encoders.
///
/// On the CPU a row's prediction is bit for bit the same whatever its company.
pub trait Denoiser {
    /// Channels of a latent.
    fn latent_channels(&self) -> usize;

    /// Reads one of a job's prompts. Both of a job's come out equally long.
    ///
    /// # Errors
    /// The device fails, or a token is unknown.
    fn read(
        &self,
        job: &ImageJob,
        prompt: &[PromptTokens],
        side: PromptSide,
    ) -> Result<Conditioning, ModelError>;

    /// x: (rows, h, w, channels) f32, scaled as the schedule says -> the same shape, f32: the prediction.
    /// Contexts of all rows are equally long.
    ///
    /// # Errors
    /// The device fails.
    fn predict(&self, x: &Tensor, rows: &[DenoiserRow<'_>]) -> Result<Tensor, ModelError>;
}
