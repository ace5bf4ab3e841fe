//! What is taken, what is refused, and how it is called.

use girandole::job::ScheduleName;
use girandole::model::diffusion::schedule::{
    History, NoiseSchedule, ScheduleChoice, ScheduleConfig, ScheduleError, ScheduleOptions,
};
use serde_json::{Value, json};

use super::{config, denoises, flow, make, stable, timesteps};

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

#[test]
fn a_flow_of_a_solver_that_is_not_ours_is_eulers_with_its_shift() {
    let solver = config(&json!({
        "_class_name": "UniPCMultistepScheduler", "num_train_timesteps": 1000, "use_flow_sigmas": true,
        "prediction_type": "flow_prediction", "flow_shift": 3.0, "use_karras_sigmas": true,
    }));
    let expected = ScheduleChoice {
        name: ScheduleName::FlowMatchEuler,
        karras: true,
    };
    assert_eq!(solver.default_choice(), expected);
    let euler = config(&json!({
        "_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0,
    }));
    let table = |config| {
        let options = ScheduleOptions::new(ScheduleName::FlowMatchEuler, 8);
        NoiseSchedule::new(config, options).expect("a schedule")
    };
    assert_eq!(table(&solver), table(&euler));
    assert!(timesteps(&table(&solver))[4] > 600.0, "shifted");
}
