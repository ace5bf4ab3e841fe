//! What a model's makers advise, told from the files of its folder: how many steps, how much guidance.
//!
//! No file says either. What tells a few-step model is how it samples (its schedule, an input for the guidance), and as a
//! last resort the name that its index keeps. The figures are those of diffusers' pipelines and of the
//! makers' model cards.

use super::config::{Generation, StableDiffusionConfig};
use super::flow::{FlowConfig, FlowKind};
use super::schedule::ScheduleConfig;

/// Words in the name of a model that needs few steps and no guidance.
const FEW_STEP_NAMES: [&str; 3] = ["turbo", "lightning", "hyper-sd"];

/// Settings of a request that does not give its own. `None` leaves them to the service.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Advice {
    /// Denoising steps.
    pub steps: Option<u32>,
    /// See [`ImageJob::guidance_scale`](crate::job::ImageJob::guidance_scale).
    pub guidance_scale: Option<f32>,
}

impl Advice {
    const fn new(steps: u32, guidance_scale: f32) -> Self {
        Advice {
            steps: Some(steps),
            guidance_scale: Some(guidance_scale),
        }
    }

    /// Of a UNet. `name`: what the index calls the model, if anything.
    pub(super) fn for_unet(
        config: &StableDiffusionConfig,
        schedule: &ScheduleConfig,
        name: &str,
    ) -> Self {
        // Latent consistency: the scale is an input; or it was merged in from a LoRA, which needs none.
        if config.unet.time_cond_proj_dim.is_some() {
            return Advice::new(4, 8.5);
        }
        if schedule.is_consistency() {
            return Advice::new(4, 1.0);
        }
        // One step is enough for these, as their cards say; four are better, and leave some to run on a picture
        // to begin from.
        if schedule.is_turbo() || is_few_step_name(name) {
            return Advice::new(4, 0.0);
        }
        match config.generation {
            Generation::Classic => Advice::default(),
            Generation::Xl => Advice {
                steps: None,
                guidance_scale: Some(5.0),
            },
        }
    }

    /// Of a flow.
    pub(super) fn for_flow(config: &FlowConfig, name: &str) -> Self {
        match config.kind() {
            FlowKind::FluxSchnell => Advice::new(4, 0.0),
            FlowKind::FluxDev => Advice::new(28, 3.5),
            FlowKind::Sd3 | FlowKind::Sd35 if is_few_step_name(name) => Advice::new(4, 0.0),
            FlowKind::Sd3 => Advice::new(28, 7.0),
            FlowKind::Sd35 => Advice::new(28, 4.5),
        }
    }
}

fn is_few_step_name(name: &str) -> bool {
    let name = name.to_lowercase();
    FEW_STEP_NAMES.iter().any(|word| name.contains(word))
}
