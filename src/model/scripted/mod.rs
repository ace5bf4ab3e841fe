//! A model that follows a script instead of thinking: for tests, simulation and benchmarks of
//! everything around a model (`--model scripted:PATH`).
//!
//! Its tokens are bytes ([`TextTokenizer::bytes`]), stop strings and stop tokens end its rows, its
//! time is what the script says, and it fails where it is told to. It also distrusts its scheduler:
//! a pass that does not follow from the passes before it is refused. It computes nothing, so it says
//! nothing about a real model's speed.
//!
//! # The script
//!
//! Every key is optional, unknown ones are refused; an empty file is a script.
//!
//! ```toml
//! [model]
//! slots = 256              # rows at once; the service's batch_size may be less
//! context_tokens = 8192    # prompt and new tokens of one request
//! memory_units = 65536     # blocks of 32 tokens, for all rows together
//! cached_prompt_tokens = 0 # so much of each prompt is "found in a prefix cache"
//! keys = 1                 # rows fall into so many groups that cannot share a pass
//! out_of_memory_above_rows = 8     # a pass of texts with more rows than this runs out of memory,
//! out_of_memory_above_tokens = 512 # and so does one with more prompt tokens; without: none does
//! fail_load = "no weights" # the model cannot be loaded, for this reason
//!
//! [cost]                   # how long a pass takes, in microseconds
//! step_micros = 0          # each pass
//! iterate_row_micros = 0   # and for each row that decodes; each unit, where it draws
//! begin_token_micros = 0   # and for each prompt token; each prompt, where it draws
//! tokens_per_second = 50.0 # a pass that decodes lasts at least 1/50 s
//!
//! [output]
//! kind = "varied"          # letters that depend on prompt, seed and choice; or "echo", "text"
//! text = "To be said. "    # for kind "text": said again and again
//! at_least = 10            # a row ends by itself after so many tokens, or more, ...
//! at_most = 200            # ... up to this; without, at max_tokens ("echo": when all is said)
//!
//! [image]                  # with this table, which may be empty, it draws pictures instead
//! iterate_work = 1         # units of a row without guidance in a denoising step; with, twice as many
//! finish_work = 3          # units of a picture's decoding, in a pass of its own; both 1 to 1048576
//! out_of_memory_above = 8  # a denoising step with more pictures than this runs out of memory
//!
//! [[fault]]                # as many as wanted; each has one of the keys below
//! prompt_contains = "X"    # only rows whose prompt contains this; steps are then counted in
//!                          # passes of that row, otherwise in passes of the model; from 1
//! nan_at_token = 3         # the row's logits turn NaN: the row fails
//! panic_at_step = 5
//! fail_step_at = 5         # the pass reports a device error
//! fail_steps_from = 5      # and so do all after it
//! out_of_memory_at_step = 5
//! out_of_memory_from_step = 5  # and at all that follow
//! stall_at_step = { step = 5, millis = 2000 }
//! device = 1               # of several devices only this one, from 0
//! ```

mod image;
mod script;

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use super::text::detokenize::{Detokenizer, Piece};
use super::text::tokenizer::TextTokenizer;
use super::{Admitted, Model, ModelError};
use crate::batch::{
    BatchKey, Capacity, DeviceNumber, Emission, FinishReason, Next, Phase, PlannedRow, Prefix,
    RowCost, RowOutcome, Slot, TokenLogprob,
};
use crate::job::{Job, TextJob};
use crate::time::RealClock;

pub use image::{SIZE_FACTOR, ScriptedFrontend, ScriptedImageModel};
use script::load_error;
pub use script::{
    CostScript, FaultScript, ImageScript, ModelScript, OutputKind, OutputScript, Script, Stall,
};

/// Tokens in one memory unit, as in the paged cache of the real text models.
const BLOCK_TOKENS: u32 = 32;
/// The bytes and an end-of-text token.
const VOCABULARY: u32 = 257;

/// How the model spends time: it sleeps in the service, and moves a clock in a simulation.
pub type Pause = Box<dyn FnMut(Duration)>;

/// What a sleep that was too long is made up for by the next ones, at most. A machine whose threads wake later than
/// this was stopped, and the time is lost.
const MAX_OVERSLEPT: Duration = Duration::from_millis(100);

/// Spends time by sleeping. A thread that wakes late on a busy machine sleeps less the next time: the script says
/// how long its passes take, and all together take that long.
#[expect(
    clippy::disallowed_methods,
    reason = "stands in for a computation, which cannot be woken either"
)]
pub fn sleep() -> Pause {
    let clock = RealClock::start();
    let mut overslept = Duration::ZERO;
    Box::new(move |wanted| {
        let began = clock.elapsed();
        std::thread::sleep(wanted.saturating_sub(overslept));
        overslept = still_overslept(overslept, wanted, clock.elapsed() - began);
    })
}

/// What is still to be made up for after a sleep that should have made up for `before` and `took` so long.
fn still_overslept(before: Duration, wanted: Duration, took: Duration) -> Duration {
    (before + took).saturating_sub(wanted).min(MAX_OVERSLEPT)
}

/// The model.
pub struct ScriptedModel {
    script: Script,
    pause: Pause,
    tokenizer: Arc<TextTokenizer>,
    steps: u64,
    rows: Vec<Option<Row>>,
}

struct Row {
    job: Arc<Job>,
    key: BatchKey,
    prompt_done: usize,
    passes: u64,
    /// Indices of the faults that are meant for it.
    faults: Vec<usize>,
    /// What it will say, as far as it differs from row to row.
    fingerprint: u64,
    /// After so many tokens it ends by itself.
    natural_length: Option<u32>,
    said: u32,
    detokenizer: Detokenizer,
}

impl ScriptedModel {
    /// A model that follows `script` and spends time by `pause`.
    ///
    /// # Errors
    /// Whatever the script plants as `fail_load`.
    pub fn new(script: Script, pause: Pause) -> Result<Self, ModelError> {
        if let Some(reason) = &script.model.fail_load {
            return Err(load_error(reason));
        }
        Ok(ScriptedModel {
            rows: (0..script.model.slots).map(|_| None).collect(),
            script,
            pause,
            tokenizer: Arc::new(TextTokenizer::bytes(VOCABULARY)),
            steps: 0,
        })
    }

    /// The same on one of several devices: faults of the others are none of its own.
    #[must_use]
    pub fn on_device(mut self, device: DeviceNumber) -> Self {
        let faults = &mut self.script.faults;
        faults.retain(|fault| fault.device.is_none_or(|number| number == device.0));
        self
    }

    fn duration(&self, rows: &[PlannedRow]) -> Duration {
        let cost = &self.script.cost;
        let decoding = rows.iter().filter(|row| row.phase != Phase::Begin).count() as u64;
        let begin_tokens: u64 = rows
            .iter()
            .filter(|row| row.phase == Phase::Begin)
            .map(|row| u64::from(row.work))
            .sum();
        let computed = Duration::from_micros(
            cost.step_micros
                + decoding * cost.iterate_row_micros
                + begin_tokens * cost.begin_token_micros,
        );
        match cost.tokens_per_second {
            Some(rate) if decoding > 0 => computed.max(Duration::from_secs_f64(1.0 / rate)),
            _ => computed,
        }
    }

    /// What goes wrong in this pass, if anything does.
    fn trip(&mut self, rows: &[PlannedRow]) -> Result<(), ModelError> {
        for (index, fault) in self.script.faults.iter().enumerate() {
            let now = |is_meant: &dyn Fn(u64) -> bool| match fault.prompt_contains {
                None => is_meant(self.steps),
                Some(_) => rows
                    .iter()
                    .filter_map(|planned| self.rows[planned.slot.index()].as_ref())
                    .any(|row| row.faults.contains(&index) && is_meant(row.passes)),
            };
            let at = |step: Option<u64>| step.is_some_and(|step| now(&|pass| pass == step));
            let from = |step: Option<u64>| step.is_some_and(|step| now(&|pass| pass >= step));
            if let Some(stall) = fault.stall_at_step
                && at(Some(stall.step))
            {
                (self.pause)(Duration::from_millis(stall.millis));
            }
            assert!(!at(fault.panic_at_step), "a planted panic");
            if at(fault.fail_step_at) || from(fault.fail_steps_from) {
                return Err(ModelError::Device("a planted device error".to_owned()));
            }
            if at(fault.out_of_memory_at_step) || from(fault.out_of_memory_from_step) {
                return Err(ModelError::OutOfMemory("planted".to_owned()));
            }
        }
        Ok(())
    }

    /// Whether the pass is larger than memory.
    fn is_too_large(&self, rows: &[PlannedRow]) -> bool {
        let model = &self.script.model;
        let begins = rows.iter().filter(|row| row.phase == Phase::Begin);
        let tokens: u32 = begins.map(|row| row.work).sum();
        let above = |limit: Option<u32>, size: u32| limit.is_some_and(|limit| size > limit);
        above(model.out_of_memory_above_rows, rows.len() as u32)
            || above(model.out_of_memory_above_tokens, tokens)
    }

    /// Whether the planned pass follows from those before.
    fn check(&self, rows: &[PlannedRow]) -> Result<(), ModelError> {
        let mut keys = Vec::new();
        for planned in rows {
            let row = self.rows[planned.slot.index()]
                .as_ref()
                .ok_or_else(|| unexpected(planned, "the slot is empty"))?;
            keys.push(row.key);
            let left = row.prompt().len() - row.prompt_done;
            let fits = match planned.phase {
                Phase::Begin => planned.work >= 1 && planned.work as usize <= left,
                Phase::Iterate => planned.work == 1 && left == 0,
                Phase::Finish => false,
            };
            if !fits {
                return Err(unexpected(
                    planned,
                    &format!("{left} prompt tokens are left"),
                ));
            }
        }
        match keys.iter().all(|key| *key == keys[0]) {
            true => Ok(()),
            false => Err(ModelError::Device("keys are mixed in a pass".to_owned())),
        }
    }
}

fn unexpected(planned: &PlannedRow, why: &str) -> ModelError {
    ModelError::Device(format!("unexpected {planned:?}: {why}"))
}

impl Model for ScriptedModel {
    fn capacity(&self) -> Capacity {
        Capacity {
            slots: self.script.model.slots,
            memory_units: self.script.model.memory_units,
        }
    }

    fn key(&self, job: &Job) -> BatchKey {
        let text = job.text();
        BatchKey(fingerprint(&text.prompt) % self.script.model.keys)
    }

    fn cost(&self, job: &Job) -> RowCost {
        let text = job.text();
        let prompt = text.prompt.len() as u32;
        RowCost {
            iterate_work: 1,
            finish_work: 0,
            begin_work: prompt.max(1),
            max_iterations: text.max_tokens,
            memory_units: prompt
                .saturating_add(text.max_tokens)
                .div_ceil(BLOCK_TOKENS),
        }
    }

    /// It keeps nothing, but is placed like a model that does.
    fn prefix(&self, job: &Job) -> Prefix {
        let blocks = job.text().prompt.chunks_exact(BLOCK_TOKENS as usize);
        let mut before = 0;
        let blocks = blocks.map(|tokens| {
            before = fingerprint(&(before, tokens));
            before
        });
        Prefix(blocks.collect())
    }

    fn admit(&mut self, slot: Slot, job: &Arc<Job>, choice: u32) -> Result<Admitted, ModelError> {
        let key = self.key(job);
        let place = &mut self.rows[slot.index()];
        if place.is_some() {
            return Err(ModelError::Device(format!("{slot:?} is taken")));
        }
        let text = job.text();
        let cached = (self.script.model.cached_prompt_tokens as usize)
            .min(text.prompt.len().saturating_sub(1));
        let fingerprint = fingerprint(&(&text.prompt, text.sampling.seed, choice));
        *place = Some(Row {
            job: Arc::clone(job),
            key,
            prompt_done: cached,
            passes: 0,
            faults: matching_faults(&self.script, text),
            fingerprint,
            natural_length: natural_length(&self.script.output, text, fingerprint),
            said: 0,
            detokenizer: Detokenizer::new(Arc::clone(&self.tokenizer), text),
        });
        Ok(Admitted {
            begin_work_done: cached as u32,
        })
    }

    fn step(&mut self, rows: &[PlannedRow]) -> Result<Vec<RowOutcome>, ModelError> {
        self.steps += 1;
        self.check(rows)?;
        for planned in rows {
            if let Some(row) = &mut self.rows[planned.slot.index()] {
                row.passes += 1;
            }
        }
        self.trip(rows)?;
        if self.is_too_large(rows) {
            return Err(ModelError::OutOfMemory(
                "too much at once, as the script says".to_owned(),
            ));
        }
        let duration = self.duration(rows);
        (self.pause)(duration);
        let script = &self.script;
        Ok(rows
            .iter()
            .filter_map(|planned| {
                let row = self.rows[planned.slot.index()].as_mut()?;
                Some(row.step(script, planned))
            })
            .collect())
    }

    fn retire(&mut self, slot: Slot) {
        self.rows[slot.index()] = None;
    }
}

impl Row {
    fn text_job(&self) -> &TextJob {
        self.job.text()
    }

    fn prompt(&self) -> &[u32] {
        &self.text_job().prompt
    }

    fn step(&mut self, script: &Script, planned: &PlannedRow) -> RowOutcome {
        let mut emitted = Vec::new();
        let mut next = Next::Continue(self.key);
        if planned.phase == Phase::Begin {
            emitted.extend(self.begin(planned.work as usize));
        }
        if self.prompt_done == self.prompt().len() {
            next = self.speak(script, &mut emitted);
        }
        RowOutcome {
            slot: planned.slot,
            emitted,
            next,
        }
    }

    /// Takes in some of the prompt.
    fn begin(&mut self, work: usize) -> Option<Emission> {
        let chunk = self.prompt_done..self.prompt_done + work;
        self.prompt_done = chunk.end;
        let alternatives = self.text_job().prompt_logprobs?;
        let logprobs = chunk
            .map(|index| {
                let mut entry = logprob(self.prompt()[index], alternatives, self.fingerprint);
                if index == 0 {
                    entry.logprob = f32::NAN;
                }
                entry
            })
            .collect();
        Some(Emission::PromptLogprobs(logprobs))
    }

    /// Says the next token, or ends.
    fn speak(&mut self, script: &Script, emitted: &mut Vec<Emission>) -> Next {
        let max_tokens = self.text_job().max_tokens;
        if max_tokens == 0 {
            return Next::Finish(FinishReason::Length);
        }
        if self.turns_nan(script) {
            return Next::Fail("the model's logits are not finite".to_owned());
        }
        let token = self.token(&script.output);
        self.said += 1;
        let (text, next) = self.read(token);
        let alternatives = self.text_job().logprobs;
        emitted.push(Emission::Text {
            text,
            tokens: vec![token],
            logprobs: alternatives
                .map(|top| logprob(token, top, self.fingerprint ^ u64::from(self.said)))
                .into_iter()
                .collect(),
        });
        next
    }

    /// The text that a new token makes certain, and whether the row ends with it.
    fn read(&mut self, token: u32) -> (String, Next) {
        let job = self.text_job();
        let may_stop = self.said >= job.min_tokens;
        let stop_token = may_stop && job.stop_token_ids.contains(&token);
        let natural = self
            .natural_length
            .is_some_and(|length| self.said >= length);
        let used_up = self.said >= job.max_tokens;
        let Piece { mut text, stopped } = self.detokenizer.push(token, may_stop);
        let next = match () {
            () if stopped || stop_token || natural => Next::Finish(FinishReason::Stop),
            () if used_up => Next::Finish(FinishReason::Length),
            () => Next::Continue(self.key),
        };
        if !stopped && !matches!(next, Next::Continue(_)) {
            text += &self.detokenizer.finish();
        }
        (text, next)
    }

    fn turns_nan(&self, script: &Script) -> bool {
        self.faults
            .iter()
            .any(|&index| script.faults[index].nan_at_token == Some(self.said + 1))
    }

    fn token(&self, output: &OutputScript) -> u32 {
        let index = self.said as usize;
        match (output.kind, &output.text) {
            (OutputKind::Echo, _) => byte_token(self.prompt()[index % self.prompt().len()]),
            (OutputKind::Text, Some(text)) => u32::from(text.as_bytes()[index % text.len()]),
            _ => {
                let letters = b"abcdefghijklmnopqrstuvwxyz     ";
                let draw = fingerprint(&(self.fingerprint, self.said)) as usize;
                u32::from(letters[draw % letters.len()])
            }
        }
    }
}

/// Faults that are meant for a row: those that name its prompt, and NaN for all.
fn matching_faults(script: &Script, text: &TextJob) -> Vec<usize> {
    let prompt: Vec<u8> = text.prompt.iter().map(|&id| byte_token(id) as u8).collect();
    let named = |marker: &String| {
        prompt
            .windows(marker.len().max(1))
            .any(|window| window == marker.as_bytes())
    };
    (0..script.faults.len())
        .filter(|&index| {
            script.faults[index]
                .prompt_contains
                .as_ref()
                .is_none_or(named)
        })
        .collect()
}

fn natural_length(output: &OutputScript, text: &TextJob, fingerprint: u64) -> Option<u32> {
    if text.ignore_eos {
        return None;
    }
    let drawn = output.at_most.map(|at_most| {
        let at_least = output.at_least.unwrap_or(1).max(1);
        at_least + (fingerprint % u64::from(at_most - at_least + 1)) as u32
    });
    let length = match output.kind {
        OutputKind::Echo => drawn.or(Some(text.prompt.len() as u32)),
        OutputKind::Varied | OutputKind::Text => drawn,
    };
    length.map(|length| length.max(text.min_tokens))
}

/// Tokens above 255 have no byte: a blank stands for them.
fn byte_token(id: u32) -> u32 {
    if id < 256 { id } else { u32::from(b' ') }
}

/// A made-up log-probability, the same for the same row and position.
fn logprob(token: u32, alternatives: u32, seed: u64) -> TokenLogprob {
    let logprob = -((fingerprint(&seed) % 1000) as f32) / 1000.0;
    TokenLogprob {
        token,
        bytes: vec![byte_token(token) as u8],
        logprob,
        top: (0..alternatives)
            .map(|rank| {
                let other = byte_token(token).wrapping_add(rank) % 256;
                (other, vec![other as u8], logprob - rank as f32)
            })
            .collect(),
    }
}

fn fingerprint(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_late_wake_up_is_made_up_for() {
        for (before, wanted, took, after) in [
            (0, 40, 40, 0),
            (0, 40, 43, 3),
            (3, 40, 37, 0),
            (3, 40, 39, 2),
            // More than a whole pass late.
            (30, 20, 0, 10),
            // Stopped: that time is lost.
            (0, 40, 9_000, 100),
        ] {
            let millis = Duration::from_millis;
            let found = still_overslept(millis(before), millis(wanted), millis(took));
            assert_eq!(found, millis(after), "{before} {wanted} {took}");
        }
    }

    fn model(toml: &str) -> ScriptedModel {
        let script = Script::parse(toml).expect("a sound script");
        ScriptedModel::new(script, Box::new(|_| ())).expect("a model that loads")
    }

    /// What one row says, and why it ends.
    fn check(toml: &str, job: TextJob, wanted: &str, reason: FinishReason) {
        let mut model = model(toml);
        let begin_work = job.prompt.len() as u32;
        model.admit(Slot(3), &Arc::new(Job::Text(job)), 0).unwrap();
        let mut planned = PlannedRow {
            slot: Slot(3),
            phase: Phase::Begin,
            work: begin_work,
        };
        let mut said = String::new();
        loop {
            let outcome = model.step(&[planned]).unwrap().remove(0);
            for emission in outcome.emitted {
                let Emission::Text { text, .. } = emission else {
                    continue;
                };
                said += &text;
            }
            match outcome.next {
                Next::Finish(found) => {
                    assert_eq!((said.as_str(), found), (wanted, reason), "{toml}");
                    return;
                }
                Next::Continue(_) => (planned.phase, planned.work) = (Phase::Iterate, 1),
                Next::Fail(message) => panic!("{message}"),
            }
        }
    }

    fn job(prompt: &str, max_tokens: u32) -> TextJob {
        let tokens: Vec<u32> = prompt.bytes().map(u32::from).collect();
        TextJob::greedy(tokens, max_tokens)
    }

    #[test]
    fn it_says_what_the_script_says() {
        let echo = "output.kind = 'echo'";
        check(echo, job("grüße", 99), "grüße", FinishReason::Stop);
        check(echo, job("hello", 3), "hel", FinishReason::Length);
        let stop = TextJob {
            stop: Arc::from(["lo".to_owned()]),
            ..job("hello", 99)
        };
        check(echo, stop, "hel", FinishReason::Stop);
        let text = "output = { kind = 'text', text = 'ab', at_most = 5, at_least = 5 }";
        check(text, job("x", 99), "ababa", FinishReason::Stop);
        let on = TextJob {
            ignore_eos: true,
            ..job("x", 7)
        };
        check(text, on, "abababa", FinishReason::Length);
    }

    #[test]
    fn a_script_that_makes_no_sense_is_refused_by_name() {
        for (toml, named) in [
            ("model.slot = 3", "slot"),
            ("model.slots = 0", "model.slots"),
            ("cost.tokens_per_second = 0.0", "tokens_per_second"),
            ("output.kind = 'text'", "output.text"),
            ("output = { at_least = 5, at_most = 4 }", "at_least"),
            ("output.at_least = 5", "at_most"),
            ("[[fault]]\nprompt_contains = 'x'", "each fault"),
            (
                "[[fault]]\nnan_at_token = 1\npanic_at_step = 1",
                "each fault",
            ),
            ("model.fail_load = 3", "fail_load"),
        ] {
            let error = Script::parse(toml).expect_err(toml).to_string();
            assert!(error.contains(named), "{toml}: {error}");
        }
    }

    #[test]
    fn the_example_is_a_script() {
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/scripted.toml");
        let script = Script::read(Path::new(example)).expect("the example");
        assert_eq!(script.faults.len(), 1);
        let missing = Script::read(Path::new("no/such/script.toml")).expect_err("no such file");
        assert!(missing.to_string().contains("no/such/script.toml"));
    }

    #[test]
    fn a_pass_that_cannot_be_is_refused() {
        let mut model = model("");
        let planned = |slot, phase, work| PlannedRow {
            slot: Slot(slot),
            phase,
            work,
        };
        let job = Arc::new(Job::Text(job("hello", 5)));
        model.admit(Slot(0), &job, 0).unwrap();
        assert!(model.admit(Slot(0), &job, 0).is_err(), "the slot is taken");
        assert!(model.step(&[planned(1, Phase::Begin, 1)]).is_err());
        assert!(model.step(&[planned(0, Phase::Iterate, 1)]).is_err());
        assert!(model.step(&[planned(0, Phase::Begin, 6)]).is_err());
        assert!(model.step(&[planned(0, Phase::Begin, 5)]).is_ok());
    }
}
