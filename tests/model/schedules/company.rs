//! Rows of many schedules at once, against each alone.

use candle_core::{Device, Tensor};
use girandole::job::ScheduleName;
use girandole::model::diffusion::random::{self, NoiseUse};
use girandole::model::diffusion::schedule::rows::RowState;
use girandole::model::diffusion::schedule::{NoiseSchedule, ScheduleOptions};
use serde_json::json;

use super::{config, stable};

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
