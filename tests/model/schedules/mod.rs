//! Noise schedules against diffusers' schedulers, against the faults of Candle's stock ones, and against
//! their own promises.

mod company;
mod rules;
mod stock_faults;
mod trajectories;

use girandole::job::ScheduleName;
use girandole::model::diffusion::schedule::{
    NoiseSchedule, ScheduleConfig, ScheduleError, ScheduleOptions,
};
use serde_json::{Value, json};

pub(super) fn config(json: &Value) -> ScheduleConfig {
    ScheduleConfig::from_json(json).unwrap_or_else(|error| panic!("{error}"))
}

/// Stable Diffusion 1.5's, with changes.
pub(super) fn stable(changes: &[(&str, Value)]) -> Value {
    let mut json = json!({
        "_class_name": "PNDMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "set_alpha_to_one": false,
        "skip_prk_steps": true,
        "steps_offset": 1,
        "trained_betas": null,
        "clip_sample": false,
    });
    for (key, value) in changes {
        json[*key] = value.clone();
    }
    json
}

pub(super) fn flow() -> Value {
    json!({ "_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0 })
}

pub(super) fn timesteps(table: &NoiseSchedule) -> Vec<f64> {
    table.steps().iter().map(|step| step.timestep).collect()
}

pub(super) fn make(
    json: &Value,
    name: ScheduleName,
    steps: usize,
) -> Result<NoiseSchedule, ScheduleError> {
    NoiseSchedule::new(&config(json), ScheduleOptions::new(name, steps))
}

/// Whether a model that knows the clean latent (0.5 everywhere) leads to it.
pub(super) fn denoises(table: &NoiseSchedule) -> bool {
    let clean = 0.5;
    let mut x = [-0.7, 1.3].map(|noise| {
        let begin = table.begin();
        begin.signal * clean + begin.noise * noise
    });
    let mut history = table.history(2);
    for (index, step) in table.steps().iter().enumerate() {
        // The noise that it would have to find for the denoised latent to be the clean one.
        let output = x.map(|x| (clean - step.denoised_x * x) / step.denoised_output);
        table
            .step(index, &mut x, &output, &mut history, Some(&[0.0; 2]))
            .unwrap();
    }
    x.iter().all(|x: &f64| (x - clean).abs() < 0.06)
}
