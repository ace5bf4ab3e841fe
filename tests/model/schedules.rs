//! Noise schedules against diffusers' schedulers (made by `tests/goldens/diffusion/schedules.py`), and
//! against the faults of Candle's stock ones.

use candle_core::{Device, Tensor};
use girandole::job::ScheduleName;
use girandole::model::diffusion::random::{self, NoiseUse};
use girandole::model::diffusion::schedule::rows::RowState;
use girandole::model::diffusion::schedule::{
    FlowLevels, History, NoiseSchedule, Real, ScheduleChoice, ScheduleConfig, ScheduleError,
    ScheduleOptions,
};
use serde_json::{Value, json};

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

fn config(json: &Value) -> ScheduleConfig {
    ScheduleConfig::from_json(json).unwrap_or_else(|error| panic!("{error}"))
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
    assert!(compared > 900, "only {compared} runs were compared");
}

/// Stable Diffusion 1.5's, with changes.
fn stable(changes: &[(&str, Value)]) -> Value {
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

fn flow() -> Value {
    json!({ "_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0 })
}

fn timesteps(table: &NoiseSchedule) -> Vec<f64> {
    table.steps().iter().map(|step| step.timestep).collect()
}

fn make(json: &Value, name: ScheduleName, steps: usize) -> Result<NoiseSchedule, ScheduleError> {
    NoiseSchedule::new(&config(json), ScheduleOptions::new(name, steps))
}

/// Candle's "trailing" gives 31 steps to who asks for 30, and truncates where it should round.
#[test]
fn stock_fault_8_trailing_gives_as_many_steps_as_asked() {
    for name in [ScheduleName::Ddim, ScheduleName::EulerAncestral] {
        let table = make(
            &stable(&[("timestep_spacing", json!("trailing"))]),
            name,
            30,
        )
        .unwrap();
        assert_eq!(table.len(), 30);
        let steps = timesteps(&table);
        // Every 33.3 from 999 down, each to the nearest: 999, 966 (965.67), 932 (932.33), ...
        assert_eq!(&steps[..4], [999.0, 966.0, 932.0, 899.0]);
        assert_eq!(steps[29], 32.0);
    }
}

/// Candle's "linspace" truncates.
#[test]
fn stock_fault_8_linspace_is_rounded() {
    let json = stable(&[("timestep_spacing", json!("linspace"))]);
    let steps = timesteps(&make(&json, ScheduleName::Ddim, 7).unwrap());
    // Six times 166.5; halves go to the even number.
    assert_eq!(steps, [999.0, 832.0, 666.0, 500.0, 333.0, 166.0, 0.0]);
    // Euler's may lie between the training steps.
    let steps = timesteps(&make(&json, ScheduleName::Euler, 7).unwrap());
    assert_eq!(steps, [999.0, 832.5, 666.0, 499.5, 333.0, 166.5, 0.0]);
}

/// Candle divides whole numbers and gets betas of 0 but for the last.
#[test]
fn stock_fault_8_cosine_betas_are_not_zero() {
    let json = stable(&[("beta_schedule", json!("squaredcos_cap_v2"))]);
    let table = make(&json, ScheduleName::Ddim, 1000).unwrap();
    let signal = |index: usize| table.noised(index).signal;
    // Step 499 is at timestep 501: half way, where the curve is at its steepest.
    let expected = f64::cos((502.0 / 1000.0 + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2)
        / f64::cos(0.008 / 1.008 * std::f64::consts::FRAC_PI_2);
    assert_eq!(table.steps()[499].timestep, 501.0);
    assert!((signal(499) - expected).abs() < 1e-12, "{}", signal(499));
    for index in 2..1000 {
        assert!(signal(index) > signal(index - 1));
    }
}

/// Candle divides by zero and panics.
#[test]
fn stock_fault_8_zero_steps_are_refused() {
    for name in ScheduleName::ALL {
        let json = match name {
            ScheduleName::FlowMatchEuler => flow(),
            _ => stable(&[]),
        };
        for steps in [0, 1001, usize::MAX] {
            let error = make(&json, name, steps).unwrap_err();
            let limit = 1000;
            assert!(
                matches!(error, ScheduleError::Steps { given, limit: l, .. } if given == steps && l == limit),
                "{name}: {error}"
            );
        }
    }
}

/// Candle looks steps up by their timestep, and divides by the distance of two. With Karras spacing, or
/// as many steps as the model was trained with, timesteps repeat.
#[test]
fn stock_fault_8_repeated_timesteps_are_steps_of_their_own() {
    let model = config(&stable(&[]));
    let options = ScheduleOptions {
        karras: true,
        ..ScheduleOptions::new(ScheduleName::DpmPlusPlus2m, 200)
    };
    let table = NoiseSchedule::new(&model, options).unwrap();
    let steps = timesteps(&table);
    let repeated = steps.windows(2).filter(|pair| pair[0] == pair[1]).count();
    assert!(repeated > 10, "{repeated}");
    for pair in table.steps().windows(2) {
        assert_ne!(pair[0].next, pair[1].next, "at {}", pair[0].timestep);
    }

    let json = stable(&[("timestep_spacing", json!("linspace"))]);
    for name in [ScheduleName::DpmPlusPlus2m, ScheduleName::UniPc] {
        let table = make(&json, name, 1000).unwrap();
        let steps = timesteps(&table);
        assert!(steps.windows(2).any(|pair| pair[0] == pair[1]), "{name}");
        assert!(denoises(&table), "{name}");
    }
}

/// Whether a model that knows the clean latent (0.5 everywhere) leads to it.
fn denoises(table: &NoiseSchedule) -> bool {
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

#[test]
fn any_step_count_works_with_any_spacing() {
    for name in ScheduleName::ALL {
        for spacing in ["leading", "trailing", "linspace"] {
            let json = match name {
                ScheduleName::FlowMatchEuler => flow(),
                _ => stable(&[
                    ("timestep_spacing", json!(spacing)),
                    ("original_inference_steps", json!(1000)),
                    ("set_alpha_to_one", json!(true)),
                ]),
            };
            let model = config(&json);
            for karras in [false, name.takes_karras()] {
                for steps in (1..=64).chain([103, 333, 499, 500, 501, 999, 1000]) {
                    let options = ScheduleOptions {
                        karras,
                        eta: 0.5,
                        ..ScheduleOptions::new(name, steps)
                    };
                    let table = NoiseSchedule::new(&model, options)
                        .unwrap_or_else(|error| panic!("{name} {spacing} {steps}: {error}"));
                    assert_eq!(table.len(), steps);
                    let times = timesteps(&table);
                    let falls = times.windows(2).all(|pair| pair[0] >= pair[1]);
                    let inside = times.iter().all(|t| (0.0..=1000.0).contains(t));
                    assert!(falls && inside, "{name} {spacing} {steps}: {times:?}");
                    // DDIM's goal is a whole stride below, as diffusers has it: with hundreds of steps
                    // that is not where the next step begins.
                    let strays = name == ScheduleName::Ddim && steps > 100;
                    assert!(
                        strays || denoises(&table),
                        "{name} {spacing} {steps} {karras}"
                    );
                }
            }
        }
    }
}

#[test]
fn strength_starts_where_diffusers_does() {
    let model = config(&stable(&[]));
    let with = |steps, strength| {
        let options = ScheduleOptions {
            strength: Some(strength),
            ..ScheduleOptions::new(ScheduleName::Ddim, steps)
        };
        NoiseSchedule::new(&model, options)
    };
    for (steps, strength, run) in [
        (10, 0.7, 7),
        (50, 0.75, 37),
        (7, 0.6, 4),
        (4, 1.0, 4),
        (1000, 0.001, 1),
    ] {
        let table = with(steps, strength).unwrap();
        assert_eq!((table.len(), table.first()), (run, steps - run));
        // It begins with the picture, noised to where the first step is.
        assert_eq!(table.begin(), table.noised(0));
        assert!(table.begin().signal > 0.0);
    }
    for wrong in [0.0, -0.1, 1.000_001, f64::NAN, f64::INFINITY] {
        let error = with(20, wrong).unwrap_err();
        assert!(matches!(error, ScheduleError::Strength(_)), "{error}");
    }
    let nothing = with(4, 0.2).unwrap_err();
    assert_eq!(
        nothing.to_string(),
        "strength: 0.2 of 4 steps is less than one step"
    );
}

#[test]
fn behind_the_last_step_nothing_is_noised() {
    for name in [ScheduleName::Ddim, ScheduleName::Euler, ScheduleName::UniPc] {
        let table = make(&stable(&[]), name, 5).unwrap();
        let noise: Vec<f64> = (0..=5)
            .map(|i| table.noised(i).noise / table.noised(i).signal)
            .collect();
        assert!(
            noise.windows(2).all(|pair| pair[0] > pair[1]),
            "{name}: {noise:?}"
        );
        assert_eq!(noise[5], 0.0);
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let unsuitable = |json: &Value, name, karras| {
        let options = ScheduleOptions {
            karras,
            ..ScheduleOptions::new(name, 4)
        };
        let error = NoiseSchedule::new(&config(json), options).unwrap_err();
        assert!(matches!(error, ScheduleError::Unsuitable { .. }), "{error}");
    };
    unsuitable(&stable(&[]), ScheduleName::FlowMatchEuler, false);
    for name in ScheduleName::ALL {
        if name != ScheduleName::FlowMatchEuler {
            unsuitable(&flow(), name, false);
        }
        if !name.takes_karras() {
            unsuitable(&stable(&[]), name, true);
        }
    }
    unsuitable(
        &stable(&[("prediction_type", json!("sample"))]),
        ScheduleName::EulerAncestral,
        false,
    );
    // A shift by size without a size.
    let dynamic =
        json!({ "_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": true });
    unsuitable(&dynamic, ScheduleName::FlowMatchEuler, false);
    let mu = config(&dynamic).dynamic_shift(4096).unwrap();
    assert!((mu - 1.15).abs() < 1e-12);
    // Noise alone, and a model that is to tell it apart from a signal that is not there.
    let blind = stable(&[
        ("rescale_betas_zero_snr", json!(true)),
        ("timestep_spacing", json!("trailing")),
    ]);
    for name in [ScheduleName::Ddim, ScheduleName::Ddpm] {
        let error = make(&blind, name, 4).unwrap_err();
        assert_eq!(error, ScheduleError::NotFinite { name, index: 0 });
    }
    let error = make(&stable(&[]), ScheduleName::Lcm, 51).unwrap_err();
    assert!(
        matches!(
            error,
            ScheduleError::Steps {
                given: 51,
                limit: 50,
                ..
            }
        ),
        "{error}"
    );
    let eta = ScheduleOptions {
        eta: 1.5,
        ..ScheduleOptions::new(ScheduleName::Ddim, 4)
    };
    let error = NoiseSchedule::new(&config(&stable(&[])), eta).unwrap_err();
    assert_eq!(error, ScheduleError::Eta(1.5));
}

#[test]
fn a_configuration_is_refused_by_field() {
    for (field, value) in [
        ("_class_name", json!("HeunDiscreteScheduler")),
        ("_class_name", Value::Null),
        ("beta_schedule", json!("sigmoid")),
        ("beta_start", json!(0)),
        ("beta_end", json!("0.012")),
        ("num_train_timesteps", json!(0)),
        ("num_train_timesteps", json!(1e12)),
        ("prediction_type", json!("noise")),
        ("timestep_spacing", json!("log")),
        ("steps_offset", json!(-1)),
        ("clip_sample", json!("yes")),
        ("thresholding", json!(true)),
        ("use_beta_sigmas", json!(true)),
        ("trained_betas", json!([0.1, 0.2])),
        ("solver_order", json!(4)),
        ("algorithm_type", json!("dpmsolver")),
        ("final_sigmas_type", json!("one")),
        ("variance_type", json!("learned")),
        ("predict_x0", json!(false)),
        ("original_inference_steps", json!(1001)),
        ("use_flow_sigmas", json!(true)),
    ] {
        let error = ScheduleConfig::from_json(&stable(&[(field, value.clone())])).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("scheduler_config.json: {field}: ")),
            "{text}"
        );
    }
    let unknown = stable(&[("skip_prk_steps", json!([1])), ("of_tomorrow", json!({}))]);
    assert!(ScheduleConfig::from_json(&unknown).is_ok());
    // As Python writes it, which is no JSON.
    let python = r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity, "x": "\"-Infinity"}"#;
    let choice = ScheduleConfig::from_text(python).unwrap().default_choice();
    assert_eq!(choice.name, ScheduleName::DpmPlusPlus2m);
    assert!(ScheduleConfig::from_text("{").is_err());
}

#[test]
fn a_step_with_the_wrong_slices_is_an_error() {
    let table = make(&stable(&[]), ScheduleName::EulerAncestral, 3).unwrap();
    let mut x = [1.0f32; 4];
    let mut history = table.history(4);
    let step = |index, x: &mut [f32], output: &[f32], noise, history: &mut History| {
        table.step(index, x, output, history, noise).unwrap_err()
    };
    let noise = [0.0f32; 4];
    assert_eq!(
        step(3, &mut x, &[0.0; 4], Some(&noise[..]), &mut history),
        ScheduleError::Index { index: 3, len: 3 }
    );
    assert_eq!(
        step(0, &mut x, &[0.0; 4], None, &mut history),
        ScheduleError::NoiseMissing
    );
    assert!(matches!(
        step(0, &mut x, &[0.0; 3], Some(&noise[..]), &mut history),
        ScheduleError::Length {
            given: 3,
            expected: 4,
            ..
        }
    ));
    let unipc = make(&stable(&[]), ScheduleName::UniPc, 3).unwrap();
    assert!(
        unipc
            .step(0, &mut x, &[0.0; 4], &mut unipc.history(5), None)
            .is_err()
    );
    assert_eq!(x, [1.0; 4], "a refused step changes nothing");
}

/// Rows of every kind, at different steps, as one tensor: the same bits as each alone.
#[test]
fn rows_in_company_are_the_rows_alone() {
    let device = Device::Cpu;
    let json = stable(&[
        ("clip_sample", json!(true)),
        ("prediction_type", json!("v_prediction")),
    ]);
    let mut tables = Vec::new();
    for (name, steps) in [
        (ScheduleName::Ddim, 9),
        (ScheduleName::UniPc, 11),
        (ScheduleName::Euler, 4),
        (ScheduleName::DpmPlusPlus2m, 7),
        (ScheduleName::Ddpm, 6),
        (ScheduleName::EulerAncestral, 5),
        (ScheduleName::Lcm, 4),
        (ScheduleName::UniPc, 3),
    ] {
        let options = ScheduleOptions {
            eta: 0.3,
            ..ScheduleOptions::new(name, steps)
        };
        tables.push(NoiseSchedule::new(&config(&json), options).unwrap());
    }
    // More than one chunk, and not a whole number of them.
    let shape = (1, 3, 21, 4);
    let len = 3 * 21 * 4;
    let draw = |row: usize, purpose| {
        let mut values = vec![0.0f32; len];
        random::fill(row as u64, purpose, &mut values);
        values
    };
    let tensor = |values: Vec<f32>| Tensor::from_vec(values, shape, &device).unwrap();
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();

    let mut alone = Vec::new();
    let mut company = Vec::new();
    for (row, table) in tables.iter().enumerate() {
        let x: Vec<f32> = draw(row, NoiseUse::Initial)
            .into_iter()
            .map(|noise| noise * table.begin().noise as f32)
            .collect();
        company.push(Some(RowState::new(tensor(x.clone()))));
        alone.push((x, table.history::<f32>(len)));
    }
    for tick in 0..14usize {
        // Row r joins at tick r / 2 and leaves when it is done.
        let present: Vec<usize> = (0..tables.len())
            .filter(|&row| tick >= row / 2 && tick - row / 2 < tables[row].len())
            .collect();
        if present.is_empty() {
            continue;
        }
        let mut states = Vec::new();
        let mut steps = Vec::new();
        let mut outputs = Vec::new();
        let mut noises = Vec::new();
        for &row in &present {
            let index = tick - row / 2;
            let step = *tables[row].coefficients(index).unwrap();
            let output = draw(1000 + row, NoiseUse::Step(tick as u32));
            let noise = draw(row, NoiseUse::Step(index as u32));
            let (x, history) = &mut alone[row];
            tables[row]
                .step(index, x, &output, history, Some(&noise))
                .unwrap();
            states.push(company[row].take().unwrap());
            steps.push(step);
            outputs.push(tensor(output));
            noises.push(tensor(noise));
        }
        let together = RowState::cat(&states)
            .unwrap()
            .update(
                &steps,
                &Tensor::cat(&outputs, 0).unwrap(),
                Some(&Tensor::cat(&noises, 0).unwrap()),
            )
            .unwrap();
        for (position, &row) in present.iter().enumerate() {
            let table = &tables[row];
            let state = together
                .row(position, table.kept(), table.anchored())
                .unwrap();
            let x: Vec<f32> = state.x.flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(bits(&x), bits(&alone[row].0), "row {row} at tick {tick}");
            company[row] = Some(state);
        }
    }
}

#[test]
fn names_lead_to_schedules() {
    let karras: ScheduleChoice = "DPM++ 2M Karras".parse().unwrap();
    let plain: ScheduleChoice = "dpm++-2m".parse().unwrap();
    assert_eq!(
        (karras.name, karras.karras, plain.karras),
        (plain.name, true, false)
    );
    let model = config(&stable(&[]));
    assert_eq!(model.default_choice().name, ScheduleName::Ddim);
    let xl = json!({ "_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": true });
    let choice = config(&xl).default_choice();
    assert_eq!(choice.to_string(), "Euler Karras");
}
