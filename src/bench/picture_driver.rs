//! Drives an image model as the engine does, and waits for the device after each pass.

use std::sync::Arc;

use super::BenchError;
use crate::batch::{Next, Phase, PlannedRow, RowOutcome, Slot};
use crate::job::{ImageJob, Job, Previews, SourceImage};
use crate::model::diffusion::DiffusionModel;
use crate::model::diffusion::frontend::DiffusionFrontend;
use crate::model::image_frontend::ImageFrontend;
use crate::model::{Model, ModelError};
use crate::picture::Picture;

/// How much of the schedule a picture to begin from leaves: anything between 0 and 1.
const STRENGTH: f64 = 0.5;

/// An image model with rows that draw.
pub(super) struct PictureDriver {
    model: DiffusionModel,
    frontend: Arc<DiffusionFrontend>,
    seed: u64,
    /// Steps of each row.
    steps: u32,
    /// Prompts asked for so far, so that none comes twice where it shall be read.
    prompts: u32,
}

impl PictureDriver {
    pub(super) fn new(
        model: DiffusionModel,
        frontend: Arc<DiffusionFrontend>,
        seed: u64,
        steps: u32,
    ) -> Self {
        PictureDriver {
            model,
            frontend,
            seed,
            steps,
            prompts: 0,
        }
    }

    /// A job without guidance, whose prompt is always the same.
    ///
    /// # Errors
    /// The model cannot read the prompt, or make its schedule.
    pub(super) fn job(&self, width: u32, height: u32) -> Result<ImageJob, BenchError> {
        self.job_of("a picture", width, height)
    }

    /// The same, whose prompt nobody has read yet.
    ///
    /// # Errors
    /// As [`Self::job`].
    pub(super) fn fresh_job(&mut self, width: u32, height: u32) -> Result<ImageJob, BenchError> {
        self.prompts += 1;
        let prompt = format!("picture {} of a row of pictures", self.prompts);
        self.job_of(&prompt, width, height)
    }

    /// The same, which begins from a picture.
    ///
    /// # Errors
    /// As [`Self::job`].
    pub(super) fn job_from_picture(&self, width: u32, height: u32) -> Result<ImageJob, BenchError> {
        let job = self.job(width, height)?;
        let bytes = 3 * width as usize * height as usize;
        let rgb = (0..bytes).map(|index| (index % 251) as u8).collect();
        let job = ImageJob {
            source: Some(SourceImage {
                picture: Arc::new(Picture::new(width, height, rgb)),
                strength: STRENGTH,
                mask: None,
            }),
            ..job
        };
        self.frontend.check(&job).map_err(BenchError::Job)?;
        Ok(job)
    }

    fn job_of(&self, prompt: &str, width: u32, height: u32) -> Result<ImageJob, BenchError> {
        let prompt = self.frontend.tokenize(prompt, 1).map_err(BenchError::Job)?;
        let (schedule, karras) = self.frontend.schedule(None).map_err(BenchError::Job)?;
        let job = ImageJob {
            width,
            height,
            images: 1,
            prompt: prompt.into(),
            negative: None,
            negative_given: false,
            guidance_scale: 1.0,
            clip_skip: 0,
            steps: self.steps,
            schedule,
            karras,
            eta: 0.0,
            seed: self.seed,
            source: None,
            previews: Previews::None,
        };
        self.frontend.check(&job).map_err(BenchError::Job)?;
        Ok(job)
    }

    /// Puts `rows` rows of a job into the first slots, whatever was there.
    ///
    /// # Errors
    /// What the model says.
    pub(super) fn admit(&mut self, rows: u32, job: &Arc<Job>) -> Result<(), BenchError> {
        self.retire(rows);
        for slot in 0..rows {
            self.model.admit(Slot(slot), job, slot)?;
        }
        Ok(())
    }

    /// Lets the rows in the first slots begin: prompts, noise, and the latent of a picture.
    ///
    /// # Errors
    /// What the model says.
    pub(super) fn begin(&mut self, rows: u32) -> Result<(), BenchError> {
        self.pass(rows, Phase::Begin)
    }

    /// Takes the rows in the first slots through one denoising step.
    ///
    /// # Errors
    /// What the model says.
    pub(super) fn denoise(&mut self, rows: u32) -> Result<(), BenchError> {
        self.pass(rows, Phase::Iterate)
    }

    /// Decodes the row in the first slot, wherever it stands, and leaves it there.
    ///
    /// # Errors
    /// What the model says.
    pub(super) fn decode(&mut self) -> Result<(), BenchError> {
        self.pass(1, Phase::Finish)
    }

    /// Empties the first `rows` slots.
    pub(super) fn retire(&mut self, rows: u32) {
        for slot in 0..rows.min(self.model.capacity().slots) {
            self.model.retire(Slot(slot));
        }
    }

    fn pass(&mut self, rows: u32, phase: Phase) -> Result<(), BenchError> {
        let plan: Vec<PlannedRow> = (0..rows)
            .map(|slot| PlannedRow {
                slot: Slot(slot),
                phase,
                work: 1,
            })
            .collect();
        let outcomes = self.model.step(&plan)?;
        // A GPU goes on working when its orders have been given.
        self.model.synchronize()?;
        match outcomes.iter().find_map(failure) {
            // A row whose beginning does not fit ends alone, with these words.
            Some(why) if why.contains("out of memory") => Err(ModelError::OutOfMemory(why).into()),
            Some(why) => Err(BenchError::EndedEarly(why)),
            None => Ok(()),
        }
    }
}

fn failure(outcome: &RowOutcome) -> Option<String> {
    match &outcome.next {
        Next::Fail(why) => Some(why.clone()),
        Next::Continue(_) | Next::Finish(_) => None,
    }
}
