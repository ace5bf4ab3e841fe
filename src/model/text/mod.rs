//! Text generation: the decoder, its paged cache, sampling, tokenizing and detokenizing.
//!
//! [`TextModel`] is what the engine drives. Its rows all carry one batch key: prefill chunks and
//! decode rows share a token-flat pass.

pub mod chat_template;
pub mod config;
pub mod decoder;
pub mod detokenize;
pub mod kv_cache;
pub mod names;
pub mod options;
pub mod prefix_cache;
pub mod profile;
pub mod rope;
mod row;
pub mod sampling;
pub mod tokenizer;
pub mod weights;
pub mod work;

use std::sync::Arc;

use crate::batch::{BatchKey, Capacity, Next, PlannedRow, Prefix, RowCost, RowOutcome, Slot};
use crate::job::{Job, TextJob};
use crate::kernels::attention::TokenLayout;
use crate::kernels::threads;
use crate::model::{Admitted, CacheReport, Model, ModelError};

use decoder::{Decoder, KvShape};
use kv_cache::{BlockPool, OutOfBlocks, blocks_for};
use prefix_cache::DigestChain;
use profile::{Part, timed};
use row::{Contribution, Row};
use tokenizer::TextTokenizer;
use work::DecoderWork;

/// Text rows may always share a pass.
const KEY: BatchKey = BatchKey(0);

/// Rows of logits that are held at once. Scoring a long prompt asks for one per token, and each is as
/// wide as the vocabulary.
const LOGIT_ROWS_AT_ONCE: usize = 64;

/// A language model with its running rows.
pub struct TextModel {
    decoder: Decoder,
    tokenizer: Arc<TextTokenizer>,
    pool: BlockPool,
    rows: Vec<Option<Row>>,
    /// By slot: whether its row was in a pass that has not gone well since. Perhaps its blocks are at
    /// fault, those of earlier passes among them.
    suspects: Vec<bool>,
    served_context: usize,
    /// Bytes of a number in the cache.
    kv_bytes: usize,
}

impl TextModel {
    /// A model with room for `slots` rows. `kv` is the shape that the decoder was loaded with;
    /// `prefix_cache_blocks` of its blocks may be kept for prompts to come, 0 for none.
    pub fn new(
        decoder: Decoder,
        tokenizer: Arc<TextTokenizer>,
        slots: u32,
        kv: &KvShape,
        prefix_cache_blocks: usize,
    ) -> Self {
        TextModel {
            decoder,
            tokenizer,
            pool: BlockPool::new(kv.blocks as u32, slots as usize, prefix_cache_blocks),
            rows: (0..slots).map(|_| None).collect(),
            suspects: vec![false; slots as usize],
            served_context: kv.served_context,
            kv_bytes: kv.dtype.size_in_bytes(),
        }
    }

    /// What its passes ask of the machine.
    pub fn work(&self) -> DecoderWork {
        let (every_token, wanted_tokens) = self.decoder.linear_work();
        let config = self.decoder.config();
        DecoderWork::new(config, every_token, wanted_tokens, self.kv_bytes)
    }

    /// Positions that a row of this job may fill.
    fn positions(&self, job: &TextJob) -> usize {
        let wanted = job.prompt.len().saturating_add(job.max_tokens as usize);
        wanted.min(self.served_context.max(job.prompt.len()))
    }

    fn check(&self, slot: Slot, job: &TextJob) -> Result<(), ModelError> {
        let refuse = |message| Err(ModelError::Load(message));
        match self.rows.get(slot.index()) {
            None => return refuse(format!("there is no slot {}", slot.0)),
            Some(Some(_)) => return refuse(format!("slot {} is taken", slot.0)),
            Some(None) => {}
        }
        if job.prompt.is_empty() || job.prompt.len() > self.served_context {
            return refuse(format!(
                "the prompt has {} tokens; it must have 1 to {}",
                job.prompt.len(),
                self.served_context
            ));
        }
        // Found here and not on the device, where it would fail the whole pass.
        let vocab_size = self.decoder.config().vocab_size;
        match job.prompt.iter().find(|&&id| id as usize >= vocab_size) {
            Some(id) => refuse(format!(
                "the prompt holds token {id}; the model has {vocab_size} tokens"
            )),
            None => Ok(()),
        }
    }

    /// Reserves the row's blocks. Returns the chain of those that the prefix cache knew.
    fn reserve(&mut self, slot: Slot, job: &TextJob) -> Result<Option<DigestChain>, OutOfBlocks> {
        let tokens = self.positions(job);
        if !self.pool.prefixes().is_on() {
            self.pool.reserve(slot, tokens)?;
            return Ok(None);
        }
        let mut chain = DigestChain::new(&job.cache_salt);
        match job.prompt_logprobs {
            // The logits of every prompt token are wanted, and they are not kept.
            Some(_) => self.pool.reserve(slot, tokens)?,
            None => self
                .pool
                .reserve_after_prefix(slot, tokens, &job.prompt, &mut chain)?,
        }
        Ok(Some(chain))
    }

    /// Takes the planned rows out of their slots, with what each puts into the pass: all of them, or
    /// none if one stands elsewhere than the plan says.
    fn take_rows(&mut self, plan: &[PlannedRow]) -> Result<Vec<ActiveRow>, ModelError> {
        let mut taken = Vec::with_capacity(plan.len());
        for planned in plan {
            let Some(active) = self.take_row(planned) else {
                self.give_back(taken);
                return Err(ModelError::Device(format!(
                    "slot {} was planned for {:?}, which its row is not in",
                    planned.slot.0, planned.phase
                )));
            };
            taken.push(active);
        }
        Ok(taken)
    }

    fn take_row(&mut self, planned: &PlannedRow) -> Option<ActiveRow> {
        let place = self.rows.get_mut(planned.slot.index())?;
        let contribution = place.as_ref()?.contribute(planned.phase, planned.work)?;
        Some(ActiveRow {
            slot: planned.slot,
            row: place.take()?,
            contribution,
        })
    }

    /// Puts rows back as they are: there was no pass, or it failed.
    fn give_back(&mut self, rows: Vec<ActiveRow>) {
        for active in rows {
            self.rows[active.slot.index()] = Some(active.row);
        }
    }

    /// One forward pass over what the rows contribute, and their logits handed to them.
    fn run(&self, rows: &mut [ActiveRow]) -> Result<(), ModelError> {
        let (tokens, layout, wanted) = self.flatten(rows)?;
        let hidden = self.decoder.forward(&tokens, &layout, &wanted)?;
        let mut uses = uses_of_logits(rows);
        let mut first = 0;
        while first < wanted.len() {
            let count = LOGIT_ROWS_AT_ONCE.min(wanted.len() - first);
            let mut logits = self.decoder.logits(&hidden.narrow(0, first, count)?)?;
            timed(Part::Sampling, || self.hand_out(&mut logits, &mut uses));
            first += count;
        }
        Ok(())
    }

    /// The rows' tokens in one list, where each belongs, and the indices of those whose logits are
    /// wanted.
    fn flatten(&self, rows: &[ActiveRow]) -> Result<(Vec<u32>, TokenLayout, Vec<u32>), ModelError> {
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

    /// The pass went well: puts a row back into its slot, the blocks that it filled into the prefix
    /// cache, and tells what it said.
    fn put_back(&mut self, active: ActiveRow) -> RowOutcome {
        let ActiveRow {
            slot,
            mut row,
            contribution,
        } = active;
        let filled = row.stored(&contribution);
        let (emitted, next) = row.report(KEY);
        self.rows[slot.index()] = Some(row);
        self.suspects[slot.index()] = false;
        if matches!(next, Next::Fail(_)) {
            // Perhaps the fault lies in what it found: then the next row had better compute it.
            self.pool.forget(slot);
        } else {
            for (index, digest) in filled {
                self.pool.enter(slot, index, digest);
            }
        }
        RowOutcome {
            slot,
            emitted,
            next,
        }
    }
}

/// A row during a step.
struct ActiveRow {
    slot: Slot,
    row: Row,
    contribution: Contribution,
}

/// Logits that a row still waits for.
struct LogitUse<'a> {
    row: &'a mut Row,
    /// Position of the first of them.
    first_position: usize,
    count: usize,
}

fn uses_of_logits(rows: &mut [ActiveRow]) -> Vec<LogitUse<'_>> {
    rows.iter_mut()
        .map(|active| LogitUse {
            row: &mut active.row,
            first_position: active.contribution.first_position + active.contribution.wanted.start,
            count: active.contribution.wanted.len(),
        })
        .collect()
}

impl Model for TextModel {
    fn capacity(&self) -> Capacity {
        Capacity {
            slots: self.rows.len() as u32,
            memory_units: self.pool.total() as u32,
        }
    }

    fn key(&self, _job: &Job) -> BatchKey {
        KEY
    }

    fn cost(&self, job: &Job) -> RowCost {
        let job = job.text();
        RowCost {
            iterate_work: 1,
            finish_work: 0,
            begin_work: job.prompt.len().max(1) as u32,
            max_iterations: job.max_tokens,
            memory_units: blocks_for(self.positions(job)) as u32,
        }
    }

    fn prefix(&self, job: &Job) -> Prefix {
        let job = job.text();
        match job.prompt_logprobs.is_none() && self.pool.prefixes().is_on() {
            true => prefix_cache::prompt_digests(&job.cache_salt, &job.prompt),
            false => Prefix::default(),
        }
    }

    fn admit(&mut self, slot: Slot, job: &Arc<Job>, choice: u32) -> Result<Admitted, ModelError> {
        let job = job.text();
        self.check(slot, job)?;
        let chain = self
            .reserve(slot, job)
            .map_err(|error| ModelError::OutOfMemory(error.to_string()))?;
        let found = chain.as_ref().map_or(0, DigestChain::tokens);
        let mut row = Row::new(job, choice, &self.tokenizer, self.served_context, chain);
        row.score_first_token();
        self.rows[slot.index()] = Some(row);
        Ok(Admitted {
            begin_work_done: found as u32,
        })
    }

    /// A pass that fails enters nothing into the prefix cache, and its rows lie in their slots again, as
    /// the engine may spare some. Such a row, planned again, feeds the same tokens to the same positions.
    /// One exception: where logits come in several parts (more than `LOGIT_ROWS_AT_ONCE`) and a later
    /// part fails, the rows of the earlier ones have chosen their tokens. They go on from there, as all
    /// keys and values were stored by then, and enter nothing more. A panic takes the rows with it.
    fn step(&mut self, plan: &[PlannedRow]) -> Result<Vec<RowOutcome>, ModelError> {
        for planned in plan {
            if let Some(suspect) = self.suspects.get_mut(planned.slot.index()) {
                *suspect = true;
            }
        }
        let mut rows = self.take_rows(plan)?;
        if let Err(error) = self.run(&mut rows) {
            self.give_back(rows);
            return Err(error);
        }
        Ok(rows
            .into_iter()
            .map(|active| self.put_back(active))
            .collect())
    }

    fn retire(&mut self, slot: Slot) {
        let Some(row) = self.rows.get_mut(slot.index()) else {
            return;
        };
        *row = None;
        if std::mem::take(&mut self.suspects[slot.index()]) {
            self.pool.forget(slot);
        }
        self.pool.release(slot);
    }

    fn cache_report(&self) -> CacheReport {
        let prefixes = self.pool.prefixes();
        CacheReport {
            memory_units: prefixes.unheld() as u32,
            evicted: prefixes.evicted(),
        }
    }
}

#[cfg(test)]
mod tests;
