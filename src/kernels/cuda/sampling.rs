//! Launches of `sampling.cu`.

use candle_core::{DType, Result};

use super::launch::{
    Grid, SAMPLING, address, address_or_null, expect, launch, number_type, parameters, word,
};
use crate::kernels::sampling::{ROW_WORDS, SampleRows};

parameters! {
    struct SampleParameters {
        logits: u64,
        rows: u64,
        chosen: u64,
        seen: u64,
        tokens: u64,
        logprobs: u64,
        vocab: u32,
        number_type: u32,
        seen_rows: u32,
        padding: u32,
    }
}

/// As the kernel's SAMPLE_THREADS.
const MOST_THREADS: usize = 1024;

/// See [`crate::kernels::sampling::sample_rows`].
pub(in crate::kernels) fn sample_rows(sample: &SampleRows<'_>) -> Result<()> {
    let (rows, vocab) = sample.logits.dims2()?;
    expect(
        "the logits",
        sample.logits,
        sample.logits.dtype(),
        &[rows, vocab],
    )?;
    expect(
        "the rows' settings",
        sample.rows,
        DType::U32,
        &[rows, ROW_WORDS],
    )?;
    expect(
        "the counts of tokens chosen",
        sample.chosen,
        DType::U32,
        &[rows],
    )?;
    expect("the tokens", sample.tokens, DType::U32, &[rows])?;
    expect(
        "the log-probabilities",
        sample.logprobs,
        DType::F32,
        &[rows],
    )?;
    let seen_rows = match sample.seen {
        None => 0,
        Some(seen) => {
            let seen_rows = seen.dim(0)?;
            expect("the tokens seen", seen, DType::U32, &[seen_rows, vocab])?;
            seen_rows
        }
    };
    let parameters = SampleParameters {
        logits: address(sample.logits)?,
        rows: address(sample.rows)?,
        chosen: address(sample.chosen)?,
        seen: address_or_null(sample.seen)?,
        tokens: address(sample.tokens)?,
        logprobs: address(sample.logprobs)?,
        vocab: word(vocab)?,
        number_type: number_type(sample.logits.dtype())?,
        seen_rows: word(seen_rows)?,
        padding: 0,
    };
    let grid = Grid {
        blocks: [rows, 1, 1],
        // Some tokens for each thread; the emulation's small vocabularies have small blocks.
        threads: (vocab / 16).next_multiple_of(32).clamp(32, MOST_THREADS),
    };
    launch(
        sample.logits.device(),
        SAMPLING,
        "sample_rows",
        grid,
        &parameters,
    )
}
