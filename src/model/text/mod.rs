//! Text generation: the decoder, its paged cache, sampling, tokenizing and detokenizing.
//!
//! [`TextModel`] is what the engine drives. Its rows all carry one batch key: prefill chunks and
//! decode rows share a token-flat pass.

mod ahead;
mod buckets;
pub mod chat_template;
pub mod config;
mod decode_pass;
pub mod decoder;
pub mod detokenize;
mod forward;
pub mod kv_cache;
pub mod names;
pub mod options;
pub mod prefix_cache;
pub mod profile;
mod room;
pub mod rope;
mod row;
pub mod sampling;
pub mod tokenizer;
pub mod weights;
pub mod work;

use std::sync::Arc;

use crate::batch::{BatchKey, Capacity, Next, PlannedRow, Prefix, RowCost, RowOutcome, Slot};
use crate::job::{Job, TextJob};
use crate::model::{Admitted, CacheReport, Model, ModelError};

use ahead::Ahead;
use decode_pass::DecodePass;
use decoder::{Decoder, KvShape};
use forward::{ActiveRow, Forward};
use kv_cache::{BlockPool, OutOfBlocks, blocks_for};
use prefix_cache::DigestChain;
use row::Row;
use tokenizer::TextTokenizer;
use work::DecoderWork;

/// Text rows may always share a pass.
const KEY: BatchKey = BatchKey(0);

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
    /// Decoding steps are begun before they are asked for.
    ahead: Option<Ahead>,
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
            ahead: None,
        }
    }

    /// The same, whose decoding steps are begun as soon as their tokens are known, and computed while the host is about
    /// other things; with `record` as CUDA graphs, where the device can. Worth it on devices that the host does not
    /// wait for.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn with_steps_ahead(mut self, record: bool) -> Result<Self, ModelError> {
        let (slots, context) = (self.rows.len(), self.served_context);
        let pass = DecodePass::new(&self.decoder, slots, context, record)?;
        self.ahead = Some(Ahead::new(pass));
        Ok(self)
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

    /// The rows' step: what has been computed ahead is taken, the rest is computed now.
    fn run(&mut self, rows: &mut [ActiveRow]) -> Result<(), ModelError> {
        let forward = Forward {
            decoder: &self.decoder,
            pool: &self.pool,
        };
        match &mut self.ahead {
            None => forward.run(&mut rows.iter_mut().collect::<Vec<_>>()),
            Some(ahead) => forward.run_beside(ahead, rows),
        }
    }

    /// Begins the next step of the rows in these slots that go on.
    fn begin_next_step(&mut self, slots: &[Slot]) {
        let Some(ahead) = &mut self.ahead else {
            return;
        };
        let samples = ahead.samples();
        let rows = slots.iter().filter_map(|slot| {
            let row = self.rows[slot.index()].as_ref()?;
            row.decode_row(*slot, samples)
        });
        if let Err(error) = ahead.begin(&self.decoder, self.pool.tables(), rows.collect()) {
            // The step itself will say so, if that goes on.
            tracing::debug!(%error, "a step could not be begun ahead");
        }
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
    /// One exception: where logits come in several parts (more than `forward::LOGIT_ROWS_AT_ONCE`) and a later
    /// part fails otherwise than for lack of memory (which makes the parts smaller), the rows of the earlier ones have chosen their tokens. They go on from there, as all
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
        let outcomes = rows.into_iter().map(|active| self.put_back(active));
        let outcomes: Vec<RowOutcome> = outcomes.collect();
        let slots: Vec<Slot> = outcomes.iter().map(|outcome| outcome.slot).collect();
        self.begin_next_step(&slots);
        Ok(outcomes)
    }

    fn retire(&mut self, slot: Slot) {
        let Some(row) = self.rows.get_mut(slot.index()) else {
            return;
        };
        *row = None;
        if let Some(ahead) = &mut self.ahead {
            ahead.forget(slot);
        }
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
