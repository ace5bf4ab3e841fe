//! Choosing tokens where the logits are: on a CUDA card, so that they need not travel to the host.
//!
//! The choice is that of the host's sampler (`model/text/sampling`) for what it knows: penalties, temperature,
//! `top_k`, `top_p`, `min_p`, and the same random number for the same seed, choice and position. Not here: logit biases,
//! `typical_p`, tokens that may not end a row yet, the most probable tokens, grammars. Rows that ask for those are
//! sampled on the host.

use candle_core::{Result, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::cuda;

/// Words of 32 bits that a row's settings take.
pub const ROW_WORDS: usize = 20;

/// The token of a row whose logits are not finite, or leave nothing to choose.
pub const NO_TOKEN: u32 = u32::MAX;

const WANTS_LOGPROB: u32 = 1;
const HAS_PENALTIES: u32 = 2;

/// How a row's token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowSampling {
    /// The job's seed.
    pub seed: u64,
    /// Which of the job's answers it is.
    pub choice: u32,
    /// 0 takes the best token.
    pub temperature: f32,
    /// 0 for no limit.
    pub top_k: u32,
    /// 1 for no limit.
    pub top_p: f32,
    /// 0 for no limit.
    pub min_p: f32,
    /// 1 for none; for tokens of prompt and output.
    pub repetition_penalty: f32,
    /// 0 for none; for tokens of the output.
    pub frequency_penalty: f32,
    /// 0 for none; for tokens of the output.
    pub presence_penalty: f32,
    /// Whether the log-probability of the token is wanted.
    pub wants_logprob: bool,
    /// The row of the tokens seen that is this row's; read only where there is a penalty.
    pub seen_row: u32,
}

impl RowSampling {
    /// The best token, whatever else: what a padding row takes.
    pub const GREEDY: Self = Self {
        seed: 0,
        choice: 0,
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        wants_logprob: false,
        seen_row: 0,
    };

    /// Whether tokens seen weigh less, or more.
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
    }

    /// As the kernel reads them: `Row` of `sampling.cu`.
    pub fn to_words(self) -> [u32; ROW_WORDS] {
        let mut words = [0; ROW_WORDS];
        let key = ChaCha8Rng::seed_from_u64(self.seed).get_seed();
        for (word, bytes) in words.iter_mut().zip(key.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        let wants = |flag: bool, bit: u32| if flag { bit } else { 0 };
        // The stream's upper half is 0: choices are few.
        words[8] = self.choice;
        words[10] = self.temperature.to_bits();
        words[11] = self.top_p.to_bits();
        words[12] = self.min_p.to_bits();
        words[13] = self.repetition_penalty.to_bits();
        words[14] = self.frequency_penalty.to_bits();
        words[15] = self.presence_penalty.to_bits();
        words[16] = self.top_k;
        words[17] =
            wants(self.wants_logprob, WANTS_LOGPROB) | wants(self.has_penalties(), HAS_PENALTIES);
        words[18] = self.seen_row;
        words
    }
}

/// What a step of sampling reads and writes, all on one card and contiguous.
#[derive(Clone, Copy, Debug)]
pub struct SampleRows<'a> {
    /// (rows, vocab) f32, f16 or bf16: as the model gave them.
    pub logits: &'a Tensor,
    /// (rows, [`ROW_WORDS`]) u32: [`RowSampling::to_words`] of each row.
    pub rows: &'a Tensor,
    /// (rows,) u32: how many tokens each row has chosen, the position of its random number. Grows by one, but where the
    /// logits are not finite.
    pub chosen: &'a Tensor,
    /// (rows of tokens seen, vocab) u32: 0 for a token never seen, `n + 1` for one chosen `n` times, so 1 for one that the
    /// prompt alone has. The row's own token is added. Needed only where a row has penalties; without it there are none.
    pub seen: Option<&'a Tensor>,
    /// (rows,) u32, written: the token of each row, or [`NO_TOKEN`]. May be the next step's input.
    pub tokens: &'a Tensor,
    /// (rows,) f32, written: the token's log-probability before penalties and temperature; 0 where not wanted.
    pub logprobs: &'a Tensor,
}

/// Chooses a token for each row, in one launch that may be replayed: settings, counts and what was seen are read on
/// the card.
///
/// # Errors
/// When shapes or dtypes differ from what [`SampleRows`] says, or the tensors are not on a CUDA card.
pub fn sample_rows(sample: &SampleRows<'_>) -> Result<()> {
    cuda::sampling::sample_rows(sample)
}
