//! Every step of diffusers' schedulers, recorded by `tests/goldens/diffusion/schedules.py`.

use girandole::model::diffusion::schedule::{
    FlowLevels, History, NoiseSchedule, Real, ScheduleChoice, ScheduleConfig, ScheduleError,
    ScheduleOptions,
};
use serde_json::Value;

use super::config;

/// Variants whose configuration is refused, as no published latent model has it.
const REFUSED: [&str; 2] = ["dpmsolver", "noise_space"];

struct Golden {
    start: Vec<f64>,
    image: Vec<f64>,
    noise: Vec<Vec<f64>>,
    schedules: Vec<Value>,
}

fn golden() -> Golden {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/diffusion/schedules.json"
    );
    let text = std::fs::read_to_string(path).expect("the fixture is there");
    let json: Value = serde_json::from_str(&text).expect("the fixture is JSON");
    Golden {
        start: numbers(&json["start"]),
        image: numbers(&json["image"]),
        noise: list(&json["noise"]).iter().map(numbers).collect(),
        schedules: list(&json["schedules"]).clone(),
    }
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().expect("a list")
}

fn numbers(value: &Value) -> Vec<f64> {
    list(value)
        .iter()
        .map(|number| number.as_f64().expect("a number"))
        .collect()
}

/// The schedule of one recorded run.
fn schedule(schedule: &Value, run: &Value) -> NoiseSchedule {
    let config = config(&schedule["config"]);
    let ScheduleChoice { name, karras } = config.default_choice();
    let options = ScheduleOptions {
        karras,
        strength: run["strength"].as_f64(),
        eta: schedule["eta"].as_f64().unwrap_or(0.0),
        flow_levels: if schedule["sigmas_argument"] == true {
            FlowLevels::Even
        } else {
            FlowLevels::Trained
        },
        dynamic_shift: schedule["mu"].as_f64(),
        ..ScheduleOptions::new(name, run["steps"].as_u64().expect("a count") as usize)
    };
    NoiseSchedule::new(&config, options)
        .unwrap_or_else(|error| panic!("{} {}: {error}", schedule["name"], run["steps"]))
}

/// The stub that stands for the model.
fn stub<T: Real + Into<f64>>(x: &[T], input_scale: f64, timestep: f64) -> Vec<T> {
    x.iter()
        .map(|&x| T::nearest(0.1 * input_scale * x.into() + timestep.sin()))
        .collect()
}

/// Walks through one run and returns the largest difference from the record, relative to the largest
/// number of the latent it occurs in.
fn deviation<T: Real + Into<f64>>(golden: &Golden, table: &NoiseSchedule, run: &Value) -> f64 {
    let begin = table.begin();
    let mut x: Vec<T> = golden
        .image
        .iter()
        .zip(&golden.start)
        .map(|(image, noise)| T::nearest(begin.signal * image + begin.noise * noise))
        .collect();
    let mut worst = difference(&x, &numbers(&run["begin"]));
    let mut history: History<T> = table.history(x.len());
    let mut recorded = list(&run["x"]).iter().peekable();
    for (index, step) in table.steps().iter().enumerate() {
        let output = stub(&x, step.input_scale, step.timestep);
        let whole = table.first() + index;
        let noise: Vec<T> = golden.noise[whole].iter().map(|&n| T::nearest(n)).collect();
        table
            .step(index, &mut x, &output, &mut history, Some(&noise))
            .expect("the lengths agree");
        if let Some(record) = recorded.next_if(|record| record[0].as_u64() == Some(whole as u64)) {
            worst = worst.max(difference(&x, &numbers(&record[1])));
        }
    }
    assert!(recorded.next().is_none(), "a recorded step was not run");
    worst
}

fn difference<T: Real + Into<f64>>(ours: &[T], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let size = theirs
        .iter()
        .fold(0.0, |size: f64, value| size.max(value.abs()));
    let worst = ours.iter().zip(theirs).fold(0.0, |worst: f64, (&a, b)| {
        let error = (a.into() - b).abs();
        // A NaN is the worst there is, and `max` would hide it.
        if error.is_nan() {
            f64::INFINITY
        } else {
            worst.max(error)
        }
    });
    worst / size
}

#[test]
fn every_trajectory_is_that_of_diffusers() {
    let golden = golden();
    let mut compared = 0;
    for variant in &golden.schedules {
        let name = variant["name"].as_str().expect("a name");
        if REFUSED.iter().any(|refused| name.ends_with(refused)) {
            let refusal = ScheduleConfig::from_json(&variant["config"]);
            assert!(
                matches!(refusal, Err(ScheduleError::Config { .. })),
                "{name}"
            );
            continue;
        }
        for run in list(&variant["runs"]) {
            let table = schedule(variant, run);
            let what = format!(
                "{name}, {} steps, strength {}",
                run["steps"], run["strength"]
            );
            assert_eq!(
                table.first() as u64,
                run["first"].as_u64().unwrap(),
                "{what}"
            );
            let first = table.first();
            let timesteps = &numbers(&run["timesteps"])[first..];
            assert_eq!(table.len(), timesteps.len(), "{what}");
            for (step, timestep) in table.steps().iter().zip(timesteps) {
                assert!(
                    (step.timestep - timestep).abs() < 1e-8,
                    "{what}: {timestep}"
                );
            }
            if let Some(scales) = run.get("input_scale") {
                for (step, scale) in table.steps().iter().zip(numbers(scales)) {
                    assert!((step.input_scale / scale - 1.0).abs() < 1e-10, "{what}");
                }
            }
            if let (Some(sigmas), true) = (run.get("sigmas"), table.len() > 1) {
                for (step, sigma) in table.steps().iter().zip(&numbers(sigmas)[first..]) {
                    assert!(
                        (step.sigma - sigma).abs() <= 1e-10 * sigma,
                        "{what}: {sigma}"
                    );
                }
            }
            let exact = deviation::<f64>(&golden, &table, run);
            let rounded = deviation::<f32>(&golden, &table, run);
            // The record has 12 digits. In f32 diffusers itself is further off than this.
            let bound = if name == "DDIMScheduler clip" {
                5e-5
            } else {
                2e-6
            };
            assert!(exact < 1e-11, "{what}: off by {exact:e} in f64");
            assert!(rounded < bound, "{what}: off by {rounded:e} in f32");
            compared += 1;
        }
    }
    assert!(compared > 880, "only {compared} runs were compared");
}
