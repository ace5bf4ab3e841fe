//! The bundled image model, and one with random weights in its shape: what they draw on a device and on the processor.

use std::path::Path;
use std::sync::Arc;

use super::check::{Check, Group, Place, Twin};
use crate::batch::{Emission, Next, Phase, PlannedRow, Slot};
use crate::job::{ImageJob, Job, Previews};
use crate::model::device::FloatType;
use crate::model::diffusion::loader::{self, DiffusionAssets};
use crate::model::diffusion::{DiffusionModel, DiffusionOptions};
use crate::model::image_frontend::ImageFrontend as _;
use crate::model::sources::bundled::BUNDLED;
use crate::model::{Model, ModelError};

/// Of 255: a pixel's byte may be rounded the other way, and what a step changes in f32 is far below one.
const F32: f64 = 2.5 / 255.0;
/// With weights in 16 bits, over the steps.
const HALF: f64 = 40.0 / 255.0;
/// Denoising steps of the rows, which differ.
const STEPS: [u32; 3] = [4, 3, 6];
/// In pixels.
const EDGE: u32 = 64;

/// The checks; the bundled model is unpacked below `folder`.
///
/// # Errors
/// The folder cannot be written to.
pub(super) fn checks(folder: &Path) -> std::io::Result<Vec<Check>> {
    let folder = BUNDLED[0].unpack(folder)?;
    let mut checks = Vec::new();
    for (name, dummy_seed) in [("tiny-sd", None), ("tiny-sd, random weights", Some(1))] {
        for (dtype, allowed) in [
            (FloatType::F32, F32),
            (FloatType::F16, HALF),
            (FloatType::BF16, HALF),
        ] {
            // Random weights draw noise, which 16 bits push about as they like.
            if dummy_seed.is_some() && dtype != FloatType::F32 {
                continue;
            }
            let folder = folder.clone();
            checks.push(Check {
                group: Group::Model,
                name: format!("{name}: three pictures of {STEPS:?} steps in one batch, {dtype}"),
                allowed,
                run: Box::new(move |place| pictures(place, &folder, dummy_seed, dtype, true)),
                twin: Twin::Processor,
            });
        }
    }
    Ok(checks)
}

/// The pixels of all pictures. The processor computes in f32, whatever the weights.
pub(super) fn pictures(
    place: &Place,
    folder: &Path,
    dummy_seed: Option<u64>,
    dtype: FloatType,
    cuda_graphs: bool,
) -> Result<Vec<f32>, ModelError> {
    let assets = loader::load_assets(folder, dummy_seed)?;
    let options = DiffusionOptions {
        batch_size: STEPS.len() as u32,
        dtype: (!place.is_cpu()).then_some(dtype),
        max_image_pixels: EDGE * EDGE,
        cuda_graphs,
        ..DiffusionOptions::default()
    };
    let mut model = loader::build(&assets, place.spec, &options)?;
    draw(&mut model, &assets)
}

/// Rows begin together, go on as long as they have steps, and are decoded.
fn draw(model: &mut DiffusionModel, assets: &DiffusionAssets) -> Result<Vec<f32>, ModelError> {
    for (row, steps) in (0..).zip(STEPS) {
        let job = job(assets, row, steps)?;
        model.admit(Slot(row), &Arc::new(Job::Image(job)), 0)?;
    }
    let mut phases = [Some(Phase::Begin); STEPS.len()];
    let mut done = [0; STEPS.len()];
    let mut pixels = vec![Vec::new(); STEPS.len()];
    while let Some(phase) = phases.iter().flatten().next().copied() {
        let rows = (0..STEPS.len()).filter(|row| phases[*row] == Some(phase));
        // A decoding is a pass of its own.
        let most = if phase == Phase::Finish {
            1
        } else {
            STEPS.len()
        };
        let plan: Vec<PlannedRow> = rows
            .take(most)
            .map(|row| PlannedRow {
                slot: Slot(row as u32),
                phase,
                work: 1,
            })
            .collect();
        let outcomes = model.step(&plan)?;
        for (planned, outcome) in plan.iter().zip(outcomes) {
            let row = planned.slot.index();
            for emission in &outcome.emitted {
                if let Emission::Image { picture, .. } = emission {
                    pixels[row].extend(picture.rgb().iter().map(|byte| f32::from(*byte)));
                }
            }
            if phase == Phase::Iterate {
                done[row] += 1;
            }
            phases[row] = match (&outcome.next, phase) {
                (Next::Fail(why), _) => return Err(ModelError::Device(why.clone())),
                (Next::Finish(_), _) => None,
                (Next::Continue(_), _) if done[row] == STEPS[row] => Some(Phase::Finish),
                (Next::Continue(_), _) => Some(Phase::Iterate),
            };
            if phases[row].is_none() {
                model.retire(planned.slot);
            }
        }
    }
    Ok(pixels.concat())
}

fn job(assets: &DiffusionAssets, row: u32, steps: u32) -> Result<ImageJob, ModelError> {
    let frontend = &assets.frontend;
    let refuse = ModelError::Load;
    let words = ["a red circle", "a blue square on white", "two green stars"];
    let prompt = frontend.tokenize(words[row as usize % words.len()], 1);
    let (schedule, karras) = frontend.schedule(None).map_err(refuse)?;
    let job = ImageJob {
        width: EDGE,
        height: EDGE,
        images: 1,
        prompt: prompt.map_err(refuse)?.into(),
        negative: Some(frontend.tokenize("", 1).map_err(refuse)?.into()),
        negative_given: false,
        guidance_scale: 5.0,
        clip_skip: 0,
        steps,
        schedule,
        karras,
        eta: 0.0,
        seed: u64::from(row),
        source: None,
        previews: Previews::None,
    };
    frontend.check(&job).map_err(refuse)?;
    Ok(job)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_different_pictures_are_drawn() {
        let folder = tempfile::tempdir().unwrap();
        let folder = BUNDLED[0].unpack(folder.path()).unwrap();
        let pixels = pictures(&Place::cpu(), &folder, None, FloatType::F32, true).unwrap();
        let each = 3 * (EDGE * EDGE) as usize;
        assert_eq!(pixels.len(), STEPS.len() * each);
        assert_ne!(pixels[..each], pixels[each..2 * each]);
        let brightest = pixels.iter().copied().fold(0.0, f32::max);
        assert!(brightest > 100.0, "{brightest}");
    }
}
