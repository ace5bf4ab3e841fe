//! The scripted model that draws: plain areas whose colour depends on the prompt, the seed and the step.
//!
//! It spends time as its script says and distrusts its scheduler, as the one for texts does.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use super::{Pause, Script, fingerprint, unexpected};
use crate::batch::{
    BatchKey, Capacity, Emission, FinishReason, Next, Phase, PlannedRow, RowCost, RowOutcome, Slot,
};
use crate::job::{ImageJob, Job, Previews, PromptChunk, PromptTokens, ScheduleName};
use crate::model::image_frontend::ImageFrontend;
use crate::model::{Admitted, Model, ModelError};
use crate::picture::Picture;

/// Width and height are multiples of this; a preview has a pixel for each square of so many.
pub const SIZE_FACTOR: u32 = 8;

/// The model.
pub struct ScriptedImageModel {
    script: Script,
    pause: Pause,
    rows: Vec<Option<Row>>,
}

struct Row {
    job: Arc<Job>,
    choice: u32,
    key: BatchKey,
    begun: bool,
    step: u32,
}

impl ScriptedImageModel {
    /// A model that follows `script` and spends time by `pause`.
    ///
    /// # Errors
    /// Whatever the script plants as `fail_load`.
    pub fn new(script: Script, pause: Pause) -> Result<Self, ModelError> {
        if let Some(reason) = &script.model.fail_load {
            return Err(super::load_error(reason));
        }
        Ok(ScriptedImageModel {
            rows: (0..script.model.slots).map(|_| None).collect(),
            script,
            pause,
        })
    }

    fn check(&self, rows: &[PlannedRow]) -> Result<(), ModelError> {
        let mut keys = Vec::new();
        for planned in rows {
            let row = self.rows[planned.slot.index()]
                .as_ref()
                .ok_or_else(|| unexpected(planned, "the slot is empty"))?;
            keys.push(row.key);
            let phase = match row.left() {
                _ if !row.begun => Phase::Begin,
                0 => Phase::Finish,
                _ => Phase::Iterate,
            };
            let cost = self.cost(&row.job);
            let work = match phase {
                Phase::Begin => cost.begin_work,
                Phase::Iterate => cost.iterate_work,
                Phase::Finish => cost.finish_work.max(1),
            };
            if (planned.phase, planned.work) != (phase, work) {
                let left = format!("{work} units of {phase:?} come next");
                return Err(unexpected(planned, &left));
            }
            if phase == Phase::Finish && rows.len() > 1 {
                return Err(unexpected(
                    planned,
                    "a picture is decoded in a pass of its own",
                ));
            }
        }
        match keys.iter().all(|key| *key == keys[0]) {
            true => Ok(()),
            false => Err(ModelError::Device("keys are mixed in a pass".to_owned())),
        }
    }

    fn duration(&self, rows: &[PlannedRow]) -> Duration {
        let cost = &self.script.cost;
        let (mut units, mut begin_units) = (0, 0);
        for row in rows {
            match row.phase {
                Phase::Begin => begin_units += u64::from(row.work),
                Phase::Iterate | Phase::Finish => units += u64::from(row.work),
            }
        }
        let computed = Duration::from_micros(
            cost.step_micros
                + units * cost.iterate_row_micros
                + begin_units * cost.begin_token_micros,
        );
        match cost.tokens_per_second {
            Some(rate) if units > 0 => computed.max(Duration::from_secs_f64(1.0 / rate)),
            _ => computed,
        }
    }
}

impl Model for ScriptedImageModel {
    fn capacity(&self) -> Capacity {
        Capacity {
            slots: self.script.model.slots,
            memory_units: self.script.model.memory_units,
        }
    }

    fn pass_work(&self) -> u32 {
        let script = self.script.image.as_ref();
        script
            .and_then(|script| script.pass_work)
            .unwrap_or(u32::MAX)
    }

    fn key(&self, job: &Job) -> BatchKey {
        let image = job.image();
        BatchKey(u64::from(image.width) << 32 | u64::from(image.height) << 1)
    }

    fn cost(&self, job: &Job) -> RowCost {
        let image = job.image();
        let script = self.script.image.clone().unwrap_or_default();
        RowCost {
            begin_work: image.forward_rows(),
            max_iterations: image.iterations(),
            iterate_work: script.iterate_work * image.forward_rows(),
            finish_work: script.finish_work,
            memory_units: image.forward_rows(),
        }
    }

    fn admit(&mut self, slot: Slot, job: &Arc<Job>, choice: u32) -> Result<Admitted, ModelError> {
        let key = self.key(job);
        let place = &mut self.rows[slot.index()];
        if place.is_some() {
            return Err(ModelError::Device(format!("{slot:?} is taken")));
        }
        *place = Some(Row {
            job: Arc::clone(job),
            choice,
            key,
            begun: false,
            step: 0,
        });
        Ok(Admitted::default())
    }

    fn step(&mut self, rows: &[PlannedRow]) -> Result<Vec<RowOutcome>, ModelError> {
        self.check(rows)?;
        let drawn = rows.iter().filter(|row| row.phase == Phase::Iterate);
        let most = self
            .script
            .image
            .as_ref()
            .and_then(|image| image.out_of_memory_above);
        if most.is_some_and(|most| drawn.count() > most as usize) {
            return Err(ModelError::OutOfMemory(
                "too many pictures, as the script says".to_owned(),
            ));
        }
        let duration = self.duration(rows);
        (self.pause)(duration);
        Ok(rows
            .iter()
            .filter_map(|planned| {
                let row = self.rows[planned.slot.index()].as_mut()?;
                Some(row.move_on(planned))
            })
            .collect())
    }

    fn retire(&mut self, slot: Slot) {
        self.rows[slot.index()] = None;
    }
}

impl Row {
    fn image(&self) -> &ImageJob {
        self.job.image()
    }

    fn left(&self) -> u32 {
        self.image().iterations() - self.step
    }

    fn move_on(&mut self, planned: &PlannedRow) -> RowOutcome {
        let mut emitted = Vec::new();
        match planned.phase {
            Phase::Begin => self.begun = true,
            Phase::Iterate => {
                self.step += 1;
                emitted.push(Emission::Progress {
                    step: self.step,
                    steps: self.image().iterations(),
                });
                if self.is_shown() {
                    let image = self.image();
                    emitted.push(Emission::Preview {
                        step: self.step,
                        picture: self.draw(image.width / SIZE_FACTOR, image.height / SIZE_FACTOR),
                    });
                }
            }
            Phase::Finish => {
                let image = self.image();
                emitted.push(Emission::Image {
                    picture: self.draw(image.width, image.height),
                    seed: image.seed_of(self.choice),
                });
                return RowOutcome {
                    slot: planned.slot,
                    emitted,
                    next: Next::Finish(FinishReason::Stop),
                };
            }
        }
        if self.left() == 0 {
            // Decodings share no pass with denoising.
            self.key.0 |= 1;
        }
        RowOutcome {
            slot: planned.slot,
            emitted,
            next: Next::Continue(self.key),
        }
    }

    fn is_shown(&self) -> bool {
        match &self.image().previews {
            Previews::None => false,
            Previews::Latest => true,
            Previews::After(steps) => steps.contains(&self.step),
        }
    }

    /// One colour for what was asked, with a bar that grows from step to step.
    fn draw(&self, width: u32, height: u32) -> Arc<Picture> {
        let image = self.image();
        let mut hasher = DefaultHasher::new();
        for chunk in image.prompt.iter().flat_map(|prompt| &prompt.chunks) {
            chunk.tokens.hash(&mut hasher);
        }
        let colour = fingerprint(&(hasher.finish(), image.seed_of(self.choice), image.steps));
        let [red, green, blue, ..] = colour.to_le_bytes();
        let done = width * self.step / image.iterations().max(1);
        let mut rgb = Vec::with_capacity((3 * width * height) as usize);
        for index in 0..width * height {
            match index % width < done {
                true => rgb.extend([red, green, blue]),
                false => rgb.extend([128; 3]),
            }
        }
        Arc::new(Picture::new(width, height, rgb))
    }
}

/// Its prompts are bytes, in windows of 75.
pub struct ScriptedFrontend;

const WINDOW: usize = 75;
const SCHEDULES: [(&str, &str, ScheduleName); 4] = [
    ("DDIM", "ddim", ScheduleName::Ddim),
    ("Euler", "euler", ScheduleName::Euler),
    ("Euler a", "euler-ancestral", ScheduleName::EulerAncestral),
    ("DPM++ 2M", "dpm++-2m", ScheduleName::DpmPlusPlus2m),
];

impl ImageFrontend for ScriptedFrontend {
    fn tokenize(&self, prompt: &str, max_chunks: usize) -> Result<Vec<PromptTokens>, String> {
        let bytes = prompt.as_bytes();
        let chunks = bytes.len().div_ceil(WINDOW).max(1);
        if chunks > max_chunks {
            let most = max_chunks * WINDOW;
            return Err(format!("takes {} tokens; the limit is {most}", bytes.len()));
        }
        let chunk = |index: usize| {
            let mut tokens: Vec<u32> = bytes
                .iter()
                .skip(index * WINDOW)
                .take(WINDOW)
                .map(|&byte| u32::from(byte))
                .collect();
            tokens.resize(WINDOW, 256);
            PromptChunk {
                weights: vec![1.0; tokens.len()],
                tokens,
            }
        };
        Ok(vec![PromptTokens {
            chunks: (0..chunks).map(chunk).collect(),
        }])
    }

    fn schedule(&self, name: Option<&str>) -> Result<(ScheduleName, bool), String> {
        let name = name.unwrap_or("ddim");
        SCHEDULES
            .iter()
            .find(|(title, short, _)| *title == name || *short == name)
            .map(|(_, _, schedule)| (*schedule, false))
            .ok_or_else(|| "is no schedule of this model".to_owned())
    }

    fn schedule_names(&self) -> Vec<(&'static str, &'static str)> {
        SCHEDULES.map(|(title, short, _)| (title, short)).to_vec()
    }

    fn check(&self, _job: &ImageJob) -> Result<(), String> {
        Ok(())
    }
}
