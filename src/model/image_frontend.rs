//! What the edge asks of an image model before a job is made: pure functions of its small files, which
//! any thread may call.

use crate::job::{ImageJob, PromptTokens, ScheduleName};

/// What a model makes of `guidance_scale`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guidance {
    /// It predicts twice, with and without the prompt; a negative prompt stands in for none.
    Classifier,
    /// It takes the scale as an input and predicts once.
    Embedded,
    /// Nothing: it was distilled with its guidance inside.
    None,
}

/// See the module. Errors are lines for the client, without the name of the field.
pub trait ImageFrontend: Send + Sync {
    /// A prompt as the model's text encoders read it, one entry for each. Weights such as `(word:1.3)`
    /// are taken out of the text; a long prompt becomes several chunks.
    ///
    /// # Errors
    /// It takes more chunks than `max_chunks`.
    fn tokenize(&self, prompt: &str, max_chunks: usize) -> Result<Vec<PromptTokens>, String>;

    /// What the model makes of `guidance_scale`.
    fn guidance(&self) -> Guidance {
        Guidance::Classifier
    }

    /// The most layers that may be left out at the end of the text encoders; see
    /// [`ImageJob::clip_skip`].
    fn max_clip_skip(&self) -> u32 {
        0
    }

    /// The noise schedule of this name, with whether its levels are spaced as Karras et al. do where the
    /// name says so; the model's own for `None`.
    ///
    /// # Errors
    /// No such schedule, or none that this model can use.
    fn schedule(&self, name: Option<&str>) -> Result<(ScheduleName, bool), String>;

    /// Pixels of the longest edge that a picture may have, whatever its other one.
    fn max_edge(&self) -> u32 {
        u32::MAX
    }

    /// The names that [`schedule`](Self::schedule) knows, as the web UI writes them, with ours.
    fn schedule_names(&self) -> Vec<(&'static str, &'static str)>;

    /// Whether the job's schedule can be made: for its steps, its spacing and its strength.
    ///
    /// # Errors
    /// What is wrong with the combination.
    fn check(&self, job: &ImageJob) -> Result<(), String>;
}
