//! A step's arithmetic: the rows' tokens through the decoder, and the logits to the rows.

use super::ahead::{Ahead, Computed};
use super::decode_pass::DecodeRow;
use super::decoder::Decoder;
use super::kv_cache::BlockPool;
use super::profile::{Part, timed};
use super::row::{Contribution, Row};
use crate::batch::Slot;
use crate::kernels::attention::TokenLayout;
use crate::kernels::threads;
use crate::model::ModelError;

/// Rows of logits that are held at once. Scoring a long prompt asks for one per token, and each is as
/// wide as the vocabulary.
const LOGIT_ROWS_AT_ONCE: usize = 64;

/// What a pass needs beside its rows.
pub(super) struct Forward<'a> {
    pub(super) decoder: &'a Decoder,
    pub(super) pool: &'a BlockPool,
}

/// A row during a step.
pub(super) struct ActiveRow {
    pub(super) slot: Slot,
    pub(super) row: Row,
    pub(super) contribution: Contribution,
}

impl Forward<'_> {
    /// Rows change only when nothing can fail any more.
    pub(super) fn run_beside(
        &self,
        ahead: &mut Ahead,
        rows: &mut [ActiveRow],
    ) -> Result<(), ModelError> {
        ahead.wait()?;
        let (mut left, mut computed): (Vec<_>, Vec<_>) =
            rows.iter_mut().partition(|active| !ahead.has(active.slot));
        let samples = ahead.samples();
        let decoding: Option<Vec<DecodeRow>> = left
            .iter()
            .map(|active| active.row.decode_row(active.slot, samples))
            .collect();
        match decoding {
            Some(decoding) => {
                ahead.begin(self.decoder, self.pool.tables(), decoding)?;
                ahead.wait()?;
                computed.append(&mut left);
            }
            // Prompts are read: a pass of all kinds.
            None => self.run(&mut left)?,
        }
        for active in computed {
            match ahead.take(active.slot) {
                Some(Computed::Chosen(choice)) => active.row.take_choice(choice),
                Some(Computed::Logits(mut logits)) => {
                    let position = active.contribution.first_position;
                    let vocab_size = logits.len();
                    let logits = logits.chunks_exact_mut(vocab_size);
                    active.row.take_logits(position, logits);
                }
                None => {
                    let slot = active.slot.0;
                    return Err(ModelError::Device(format!("slot {slot} was not computed")));
                }
            }
        }
        Ok(())
    }

    /// One forward pass over what the rows contribute, and their logits handed to them.
    pub(super) fn run(&self, rows: &mut [&mut ActiveRow]) -> Result<(), ModelError> {
        let (tokens, layout, wanted) = self.flatten(rows)?;
        let hidden = self.decoder.forward(&tokens, &layout, &wanted)?;
        let mut uses = uses_of_logits(rows);
        let (mut first, mut at_once) = (0, LOGIT_ROWS_AT_ONCE);
        while first < wanted.len() {
            let count = at_once.min(wanted.len() - first);
            let part = hidden.narrow(0, first, count)?;
            let logits = self.decoder.logits(&part).map_err(ModelError::from);
            if matches!(logits, Err(ModelError::OutOfMemory(_))) && count > 1 {
                // Rows that have chosen already cannot go back.
                at_once = count / 2;
                continue;
            }
            let mut logits = logits?;
            timed(Part::Sampling, || self.hand_out(&mut logits, &mut uses));
            first += count;
        }
        Ok(())
    }

    /// The rows' tokens in one list, where each belongs, and the indices of those whose logits are
    /// wanted.
    fn flatten(
        &self,
        rows: &[&mut ActiveRow],
    ) -> Result<(Vec<u32>, TokenLayout, Vec<u32>), ModelError> {
        let (mut tokens, mut slots) = (Vec::new(), Vec::new());
        let (mut positions, mut wanted) = (Vec::new(), Vec::new());
        for active in rows {
            let part = &active.contribution;
            let first = tokens.len();
            wanted.extend(part.wanted.clone().map(|index| (first + index) as u32));
            slots.extend(std::iter::repeat_n(active.slot.0, part.tokens.len()));
            positions.extend((0..part.tokens.len()).map(|i| (part.first_position + i) as u32));
            tokens.extend_from_slice(&part.tokens);
        }
        let layout = TokenLayout::new(slots, positions, self.pool.tables().to_vec())?;
        Ok((tokens, layout, wanted))
    }

    /// Gives each row its part of `logits`, which continue where the last call ended.
    fn hand_out(&self, logits: &mut [f32], uses: &mut Vec<LogitUse<'_>>) {
        let vocab_size = self.decoder.config().vocab_size;
        let mut parts = Vec::new();
        let mut rest = logits;
        for pending in uses.iter_mut() {
            let count = pending.count.min(rest.len() / vocab_size);
            if count == 0 {
                continue;
            }
            let (part, after) = rest.split_at_mut(count * vocab_size);
            rest = after;
            let position = pending.first_position;
            pending.first_position += count;
            pending.count -= count;
            parts.push((&mut *pending.row, position, part));
        }
        threads::for_each_chunk(&mut parts, 1, |_, part| {
            for (row, position, logits) in part {
                row.take_logits(*position, logits.chunks_exact_mut(vocab_size));
            }
        });
        uses.retain(|pending| pending.count > 0);
    }
}

/// Logits that a row still waits for.
struct LogitUse<'a> {
    row: &'a mut Row,
    /// Position of the first of them.
    first_position: usize,
    count: usize,
}

fn uses_of_logits<'a>(rows: &'a mut [&mut ActiveRow]) -> Vec<LogitUse<'a>> {
    rows.iter_mut()
        .map(|active| LogitUse {
            row: &mut active.row,
            first_position: active.contribution.first_position + active.contribution.wanted.start,
            count: active.contribution.wanted.len(),
        })
        .collect()
}
