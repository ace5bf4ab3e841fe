//! The words that the scheduler, the engine and the models share: what a step is asked to do and
//! what came of it.

use std::sync::Arc;

use crate::job::RowId;
use crate::picture::Picture;

/// A place in the running set, `0..batch_size`: the name of a row in every cache of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

impl Slot {
    /// The slot as an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Which of the devices that serve a model, from 0 in the order of the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber(pub u32);

impl DeviceNumber {
    /// The number as an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a prompt begins with: a digest for each of its full blocks that a prefix cache could keep, which stands for
/// all blocks before it, too. Empty where nothing is ever kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefix(pub Arc<[u64]>);

/// Where a row stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Prefill of the prompt; prompt encoding.
    Begin,
    /// One token; one denoising step.
    Iterate,
    /// What is left when iterating is over (an image's decoding): one row in a pass of its own. Text
    /// has none.
    Finish,
}

/// Rows with equal keys may share a forward pass. Only the model gives the number a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchKey(pub u64);

/// What the model says a row will need, before it is admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowCost {
    /// Units of work in `Begin` (prompt tokens). At least 1. A row that has a `Finish` (a picture) does
    /// them all in one pass.
    pub begin_work: u32,
    /// `Iterate` steps at most (new tokens, denoising steps).
    pub max_iterations: u32,
    /// Units of work in each of them: 1 for a token; for a picture, its share of the forward pass. At
    /// least 1.
    pub iterate_work: u32,
    /// Units of work in `Finish`, on the scale of `iterate_work` (by which its time is guessed until one
    /// has been measured); 0 for a row that has no such phase.
    pub finish_work: u32,
    /// Units of the model's memory, reserved from admission to retirement (KV blocks).
    pub memory_units: u32,
}

/// What a model can hold at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Rows.
    pub slots: u32,
    /// Units of memory (KV blocks), shared by all rows.
    pub memory_units: u32,
}

/// A waiting row that gets a slot in this step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// The row.
    pub row: RowId,
    /// Its slot until it is retired.
    pub slot: Slot,
}

/// One row's part in a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedRow {
    /// The row's slot.
    pub slot: Slot,
    /// What is done for it.
    pub phase: Phase,
    /// How much: in `Begin` the number of prompt tokens to process now (less than the rest of the
    /// prompt makes it a chunk); in `Iterate` and `Finish` the row's cost.
    pub work: u32,
}

/// Why a waiting row was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired {
    /// The row.
    pub row: RowId,
}

/// What the scheduler decided: at most one forward pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepPlan {
    /// Rows to admit before the pass.
    pub admit: Vec<Admission>,
    /// The pass: all of one [`BatchKey`]. Empty if there is nothing to run.
    pub run: Vec<PlannedRow>,
    /// Rows, waiting or running, whose deadline has passed.
    pub expired: Vec<Expired>,
}

/// Why a row ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// A stop token, a stop string, or the last timestep.
    Stop,
    /// `max_tokens` or the end of the context.
    Length,
    /// Somebody cancelled it.
    Cancelled,
}

/// One token's log-probability beside its strongest rivals'.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token chosen (or, in a prompt, given).
    pub token: u32,
    /// Its own text, as bytes: a token may end within a character.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability, before temperature and filters. NaN stands for the
    /// first prompt token, which has none.
    pub logprob: f32,
    /// The most probable tokens: id, bytes, log-probability; best first.
    pub top: Vec<(u32, Vec<u8>, f32)>,
}

/// What a row says during a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Emission {
    /// More text. It may be empty while a character or a stop string is incomplete: the tokens
    /// count all the same.
    Text {
        /// Whole characters, to be appended.
        text: String,
        /// New token ids behind this emission.
        tokens: Vec<u32>,
        /// One entry per token in `tokens`, if asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// Log-probabilities of prompt tokens, in order; several emissions continue each other.
    PromptLogprobs(Vec<TokenLogprob>),
    /// So many denoising steps are done.
    Progress {
        /// Done.
        step: u32,
        /// To be done in all.
        steps: u32,
    },
    /// What the picture looks like so far.
    Preview {
        /// After so many steps.
        step: u32,
        /// Small: a pixel for each place of the latent.
        picture: Arc<Picture>,
    },
    /// The picture.
    Image {
        /// What was drawn.
        picture: Arc<Picture>,
        /// Its own seed.
        seed: u64,
    },
}

/// What a row has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of these, tokens that were found in the prefix cache.
    pub cached_tokens: u32,
    /// New tokens, over all rows of the request.
    pub completion_tokens: u32,
    /// Denoising steps, over all rows of the request.
    pub denoising_steps: u32,
    /// Pictures drawn.
    pub images: u32,
}

/// What becomes of a row after a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// It goes on, in company of rows with this key.
    Continue(BatchKey),
    /// It is done.
    Finish(FinishReason),
    /// It alone failed, with a message for its owner; the others go on.
    Fail(String),
}

/// One row's result of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct RowOutcome {
    /// The row's slot.
    pub slot: Slot,
    /// What it said, in order.
    pub emitted: Vec<Emission>,
    /// What becomes of it.
    pub next: Next,
}
