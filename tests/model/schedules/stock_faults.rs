//! What Candle's stock schedulers get wrong, so that ours are proved free of it.

use girandole::job::ScheduleName;
use girandole::model::diffusion::schedule::{NoiseSchedule, ScheduleError, ScheduleOptions};
use serde_json::json;

use super::{config, denoises, flow, make, stable, timesteps};

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
