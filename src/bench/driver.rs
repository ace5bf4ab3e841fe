//! Drives a model as the engine does: admit, step, retire.

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::BenchError;
use crate::batch::{BatchKey, Next, Phase, PlannedRow, RowOutcome, Slot};
use crate::job::{Job, TextJob};
use crate::model::{Model, ModelError};

/// Prompt tokens in a pass while rows are filled and nobody looks at the time.
const FILLING_CHUNK: u32 = 1024;

/// A model with rows that say random things.
pub(super) struct Driver<'a> {
    model: &'a mut dyn Model,
    /// Prompts are drawn from tokens below this.
    vocabulary: u32,
    /// Positions that a row may reach.
    served_context: u32,
    random: ChaCha8Rng,
}

/// A row whose prompt has not been read yet.
pub(super) struct FreshRow {
    slot: Slot,
    /// Prompt tokens to be read.
    work: u32,
}

impl<'a> Driver<'a> {
    pub(super) fn new(
        model: &'a mut dyn Model,
        vocabulary: u32,
        served_context: u32,
        seed: u64,
    ) -> Self {
        Driver {
            model,
            vocabulary,
            served_context,
            random: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// Why so many rows, each of a prompt and new tokens, cannot run at once; `None` if they can.
    pub(super) fn refusal(&self, rows: u32, prompt: u32, new_tokens: u32) -> Option<String> {
        let positions = prompt.saturating_add(new_tokens);
        if positions > self.served_context {
            return Some(format!(
                "a row needs {positions} positions and has {} (max_context)",
                self.served_context
            ));
        }
        let capacity = self.model.capacity();
        if rows > capacity.slots {
            return Some(format!("the model has {} slots", capacity.slots));
        }
        let cost = self.model.cost(&job(vec![0; prompt as usize], new_tokens));
        let needed = u64::from(rows) * u64::from(cost.memory_units);
        (needed > u64::from(capacity.memory_units)).then(|| {
            format!(
                "the rows need {needed} K/V blocks and there are {} (kv_cache_tokens)",
                capacity.memory_units
            )
        })
    }

    /// Admits a row with a random prompt. Short ones may come twice; the model has no prefix cache that
    /// would tell.
    ///
    /// # Errors
    /// What the model says.
    pub(super) fn admit(
        &mut self,
        slot: u32,
        prompt: u32,
        new_tokens: u32,
    ) -> Result<FreshRow, BenchError> {
        let tokens = (0..prompt)
            .map(|_| self.random.next_u32() % self.vocabulary)
            .collect();
        let job = Arc::new(job(tokens, new_tokens));
        let admitted = self.model.admit(Slot(slot), &job, 0)?;
        Ok(FreshRow {
            slot: Slot(slot),
            work: prompt.saturating_sub(admitted.begin_work_done),
        })
    }

    /// Reads a whole prompt in one pass, which ends with its first token.
    ///
    /// # Errors
    /// The pass failed, or the row did.
    pub(super) fn prefill(&mut self, row: &FreshRow) -> Result<(), BenchError> {
        let outcomes = self.step_fresh(row.slot, row.work)?;
        check(&outcomes, |next| !matches!(next, Next::Fail(_)))
    }

    /// Fills the first `rows` slots with rows that are ready to decode.
    ///
    /// # Errors
    /// As [`Self::prefill`].
    pub(super) fn fill(
        &mut self,
        rows: u32,
        prompt: u32,
        new_tokens: u32,
    ) -> Result<(), BenchError> {
        for slot in 0..rows {
            let row = self.admit(slot, prompt, new_tokens)?;
            let mut left = row.work;
            while left > 0 {
                let work = left.min(FILLING_CHUNK);
                let outcomes = self.step_fresh(row.slot, work)?;
                check(&outcomes, goes_on)?;
                left -= work;
            }
        }
        Ok(())
    }

    fn step_fresh(&mut self, slot: Slot, work: u32) -> Result<Vec<RowOutcome>, ModelError> {
        self.model.step(&[PlannedRow {
            slot,
            phase: Phase::Begin,
            work,
        }])
    }

    /// Lets the rows in the first `rows` slots decode, all in each pass.
    ///
    /// # Errors
    /// A pass failed, or a row did not go on.
    pub(super) fn decode(&mut self, rows: u32, steps: u32) -> Result<(), BenchError> {
        let plan: Vec<PlannedRow> = (0..rows)
            .map(|slot| PlannedRow {
                slot: Slot(slot),
                phase: Phase::Iterate,
                work: 1,
            })
            .collect();
        for _ in 0..steps {
            check(&self.model.step(&plan)?, goes_on)?;
        }
        Ok(())
    }

    /// Empties the first `rows` slots, whatever is in them.
    pub(super) fn retire(&mut self, rows: u32) {
        for slot in 0..rows.min(self.model.capacity().slots) {
            self.model.retire(Slot(slot));
        }
    }
}

/// A greedy row that goes on to its last token.
fn job(prompt: Vec<u32>, new_tokens: u32) -> Job {
    Job::Text(TextJob {
        ignore_eos: true,
        ..TextJob::greedy(prompt, new_tokens)
    })
}

fn goes_on(next: &Next) -> bool {
    matches!(next, Next::Continue(BatchKey(_)))
}

fn check(outcomes: &[RowOutcome], is_expected: impl Fn(&Next) -> bool) -> Result<(), BenchError> {
    match outcomes.iter().find(|outcome| !is_expected(&outcome.next)) {
        None => Ok(()),
        Some(outcome) => Err(BenchError::EndedEarly(match &outcome.next {
            Next::Fail(why) => why.clone(),
            next => format!("{next:?}"),
        })),
    }
}
