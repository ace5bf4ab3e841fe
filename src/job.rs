//! What a request asks for, once it has been checked.
//!
//! A [`Job`] is built by `intake` only and is valid by construction: deeper layers do not check it
//! again. One request may ask for several answers (`n`, `best_of`); each is one *row* of a batch,
//! named by a [`RowId`].

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::picture::{Mask, Picture};

/// Names one request for as long as anybody may ask about it.
///
/// Written as 32 lowercase hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u128);

impl RequestId {
    /// Wraps a number that the caller knows to be unique (the edge takes a UUID v7).
    pub const fn from_u128(value: u128) -> Self {
        RequestId(value)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The text is not a request id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidRequestId;

impl fmt::Display for InvalidRequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a request id is 32 hexadecimal digits")
    }
}

impl std::error::Error for InvalidRequestId {}

impl FromStr for RequestId {
    type Err = InvalidRequestId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(InvalidRequestId);
        }
        u128::from_str_radix(text, 16)
            .map(RequestId)
            .map_err(|_| InvalidRequestId)
    }
}

/// One answer of one request: one row of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId {
    /// The request that the row answers.
    pub request: RequestId,
    /// Which of the request's answers, from 0.
    pub choice: u32,
}

/// Tells users apart, who take turns: a number that the edge draws from a key's name or a client's address,
/// different in each run of the service, so that neither can be read from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(pub u64);

/// How urgent a request is. The more urgent is the smaller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Somebody sits before it.
    Interactive,
    /// What is not said otherwise.
    #[default]
    Normal,
    /// It can wait.
    Batch,
}

impl Priority {
    /// All, the most urgent first.
    pub const ALL: [Priority; 3] = [Priority::Interactive, Priority::Normal, Priority::Batch];

    /// Its name, in requests and in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Priority::Interactive => "interactive",
            Priority::Normal => "normal",
            Priority::Batch => "batch",
        }
    }

    /// The class of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Priority::ALL.into_iter().find(|class| class.name() == name)
    }

    /// Its place in [`Priority::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Keeps prefix caches apart: a row finds only what rows of jobs with the same salt have left there.
///
/// A digest of who asks and of the salt that they gave, made by `intake`.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheSalt(pub [u8; 32]);

impl fmt::Debug for CacheSalt {
    /// Shows nothing: what it is made of is a secret, and may be short enough to be guessed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CacheSalt(..)")
    }
}

/// What to make.
#[derive(Clone, Debug, PartialEq)]
pub enum Job {
    /// Continue a text.
    Text(TextJob),
    /// Draw pictures.
    Image(ImageJob),
}

impl Job {
    /// How many rows the job takes.
    pub fn rows(&self) -> u32 {
        match self {
            Job::Text(text) => text.rows,
            Job::Image(image) => image.images,
        }
    }

    /// A text model's job.
    ///
    /// # Panics
    /// If it is of another kind: `api::submit` makes a job with the intake of the model it is for.
    pub fn text(&self) -> &TextJob {
        match self {
            Job::Text(text) => text,
            Job::Image(_) => panic!("a text model was given a picture to draw"),
        }
    }

    /// An image model's job.
    ///
    /// # Panics
    /// If it is of another kind: `api::submit` makes a job with the intake of the model it is for.
    pub fn image(&self) -> &ImageJob {
        match self {
            Job::Image(image) => image,
            Job::Text(_) => panic!("an image model was given a text to continue"),
        }
    }
}

/// Continue a tokenized prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct TextJob {
    /// Token ids, at least one. With `max_tokens` they fit the model's context.
    pub prompt: Arc<[u32]>,
    /// Rows to generate: `n`, or `best_of` when that is larger. At least 1.
    pub rows: u32,
    /// At most this many new tokens a row. At least 1, unless only the prompt is to be scored
    /// (`prompt_logprobs` with 0).
    pub max_tokens: u32,
    /// Stop tokens and stop strings are ignored before this many new tokens.
    pub min_tokens: u32,
    /// Go on after the model's own end-of-text tokens.
    pub ignore_eos: bool,
    /// Texts that end a row. None is empty.
    pub stop: Arc<[String]>,
    /// Tokens that end a row, beside the model's own.
    pub stop_token_ids: Arc<[u32]>,
    /// Leave the stop string that ended the row in its text.
    pub include_stop_str_in_output: bool,
    /// Leave special tokens (such as end-of-text) out of the text.
    pub skip_special_tokens: bool,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Report log-probabilities of each new token and this many alternatives.
    pub logprobs: Option<u32>,
    /// Report log-probabilities of each prompt token and this many alternatives.
    pub prompt_logprobs: Option<u32>,
    /// With whom the prompt's cached tokens may be shared.
    pub cache_salt: CacheSalt,
}

/// How one row chooses its tokens. The neutral values switch each part off.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the most probable token; 1 is neutral.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probability reaches this; 1 is neutral.
    pub top_p: f32,
    /// Keep this many most probable tokens; 0 is neutral.
    pub top_k: u32,
    /// Drop tokens below this share of the most probable one's probability; 0 is neutral.
    pub min_p: f32,
    /// Locally typical sampling's mass; 1 is neutral.
    pub typical_p: f32,
    /// Subtracted from the logit of each token generated so far; 0 is neutral.
    pub presence_penalty: f32,
    /// Subtracted once for each time a token was generated so far; 0 is neutral.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in the prompt or the text so far
    /// (CTRL, arXiv 1909.05858); 1 is neutral.
    pub repetition_penalty: f32,
    /// Added to the logits of single tokens.
    pub logit_bias: Arc<[(u32, f32)]>,
    /// Keys the row's random numbers, with the choice and the position.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy, with every other part off.
    fn default() -> Self {
        Sampling {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            typical_p: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Arc::from([]),
            seed: 0,
        }
    }
}

impl TextJob {
    /// A greedy job with everything optional off: the starting point of tests and tools.
    pub fn greedy(prompt: impl Into<Arc<[u32]>>, max_tokens: u32) -> Self {
        TextJob {
            prompt: prompt.into(),
            rows: 1,
            max_tokens,
            min_tokens: 0,
            ignore_eos: false,
            stop: Arc::from([]),
            stop_token_ids: Arc::from([]),
            include_stop_str_in_output: false,
            skip_special_tokens: true,
            sampling: Sampling::default(),
            logprobs: None,
            prompt_logprobs: None,
            cache_salt: CacheSalt::default(),
        }
    }
}

/// Draw pictures of a prompt. Each picture is one row.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageJob {
    /// In pixels; a multiple of the model's factor.
    pub width: u32,
    /// In pixels; a multiple of the model's factor.
    pub height: u32,
    /// Pictures: rows. At least 1.
    pub images: u32,
    /// What to draw: one entry for each text encoder of the model.
    pub prompt: Arc<[PromptTokens]>,
    /// What not to draw, likewise. There exactly when guidance is on (`guidance_scale` above 1) and the model
    /// takes a negative prompt: it costs each row a second one in the forward pass. Others are told the scale.
    pub negative: Option<Arc<[PromptTokens]>>,
    /// Whether the client said what not to draw, if only that it is nothing: some models read nothing said
    /// and nothing meant differently.
    pub negative_given: bool,
    /// How far the prediction is pushed away from `negative`'s; 1 or less switches guidance off.
    pub guidance_scale: f32,
    /// So many layers fewer at the end of the text encoders than the model's own way; 0 is that way.
    pub clip_skip: u32,
    /// Steps of the whole schedule, at least 1; see [`iterations`](Self::iterations).
    pub steps: u32,
    /// How the noise is taken away.
    pub schedule: ScheduleName,
    /// Space the noise levels as in Karras et al. (arXiv 2206.00364).
    pub karras: bool,
    /// The share of fresh noise in DDIM's steps: 0 for none, 1 for as much as DDPM.
    pub eta: f64,
    /// Keys the noise of the first picture; see [`seed_of`](Self::seed_of).
    pub seed: u64,
    /// Begin from a picture instead of noise alone.
    pub source: Option<SourceImage>,
    /// Which steps are shown.
    pub previews: Previews,
}

impl ScheduleName {
    /// Steps that are run of `steps` where a picture is the beginning, so much of which is to become noise (0 to 1).
    pub fn iterations(self, steps: u32, strength: f64) -> u32 {
        let whole = f64::from(steps);
        let run = whole * strength;
        // As diffusers' img2img rounds: the steps down, and for flows the first step's number.
        match self {
            ScheduleName::FlowMatchEuler => steps - ((whole - run) as u32).min(steps),
            _ => (run as u32).min(steps),
        }
    }
}

impl ImageJob {
    /// Denoising steps that a row takes: fewer than `steps` where a picture is the beginning, as in
    /// diffusers' img2img. At least 1, in a job that intake has made.
    pub fn iterations(&self) -> u32 {
        match &self.source {
            None => self.steps,
            Some(source) => self.schedule.iterations(self.steps, source.strength),
        }
    }

    /// Bytes of the picture that it begins from, with its mask.
    pub fn source_bytes(&self) -> u64 {
        let bytes = |source: &SourceImage| {
            let mask = source.mask.as_ref().map_or(0, |mask| mask.values().len());
            (source.picture.rgb().len() + mask) as u64
        };
        self.source.as_ref().map_or(0, bytes)
    }

    /// Chunks of its prompts, the longest one counting: the others are filled up to as many.
    pub fn prompt_chunks(&self) -> usize {
        [Some(&self.prompt), self.negative.as_ref()]
            .into_iter()
            .flatten()
            .flat_map(|prompt| prompt.iter())
            .map(|prompt| prompt.chunks.len())
            .max()
            .unwrap_or(1)
    }

    /// Rows that each of its rows takes in a forward pass.
    pub fn forward_rows(&self) -> u32 {
        1 + u32::from(self.negative.is_some())
    }

    /// The seed of picture number `choice`: picture `i` is what the same request with `seed + i` draws
    /// first, as users of the Stable Diffusion web UI know it.
    pub fn seed_of(&self, choice: u32) -> u64 {
        self.seed.wrapping_add(u64::from(choice))
    }
}

/// A prompt, as one text encoder reads it: chunks of equal length, whose states are put side by side.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromptTokens {
    /// At least one.
    pub chunks: Vec<PromptChunk>,
}

/// One window of a text encoder.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromptChunk {
    /// Token ids, with the beginning, the end and the padding: as many as the encoder has positions.
    pub tokens: Vec<u32>,
    /// What each token's state is multiplied by; as many, 1 being neutral.
    pub weights: Vec<f32>,
}

/// A picture to begin from.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceImage {
    /// Of the job's size.
    pub picture: Arc<Picture>,
    /// How much of the schedule is run: 1 forgets the picture. Above 0, up to 1.
    pub strength: f64,
    /// Where to draw anew; everywhere if there is none. Of the job's size.
    pub mask: Option<Arc<Mask>>,
}

/// Which steps of a picture are shown while it is drawn.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Previews {
    /// None.
    #[default]
    None,
    /// As many as a stream can show: the latest wins.
    Latest,
    /// After these steps, counted from 1, in order; none is left out.
    After(Arc<[u32]>),
}

/// How the noise is taken away: the user's choice. What each does stands in `model::diffusion::schedule`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScheduleName {
    /// Denoising diffusion implicit models (arXiv 2010.02502).
    Ddim,
    /// Denoising diffusion probabilistic models (arXiv 2006.11239).
    Ddpm,
    /// Euler's method over noise levels (arXiv 2206.00364).
    Euler,
    /// Euler's method with fresh noise in each step.
    EulerAncestral,
    /// The multistep solver DPM++ of second order (arXiv 2211.01095).
    DpmPlusPlus2m,
    /// Unified predictor and corrector of second order (arXiv 2302.04867).
    UniPc,
    /// Latent consistency models (arXiv 2310.04378).
    Lcm,
    /// Euler's method along a straight flow (arXiv 2210.02747): for flow-matching models only.
    FlowMatchEuler,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_survives_its_text() {
        let id = RequestId::from_u128(0x0193_5f00_dead_beef);
        assert_eq!(id.to_string().len(), 32);
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in [
            "",
            "12",
            "+0000000000000000000000000000001",
            &"g".repeat(32),
        ] {
            assert_eq!(wrong.parse::<RequestId>(), Err(InvalidRequestId), "{wrong}");
        }
    }
}
