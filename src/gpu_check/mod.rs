//! `gpu-check`: whether a card computes what it should, and how fast it copies and multiplies.
//!
//! Every kernel that runs on the device is held against its twin on the processor, small models of every family say and
//! draw the same as there, and a captured graph gives what single launches give. The checks are the same code on all
//! devices, so that on the processor they are tested themselves. Speed of models is `bench engine`'s.
//!
//! This is the one part of the shell that handles tensors: what it compares is what the layers below exchange.

pub mod card;
pub mod check;
mod fused_kernels;
mod graphs;
mod inputs;
mod picture_kernels;
mod picture_models;
pub mod report;
mod sampling;
mod text_kernels;
mod text_models;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::bench::limits::{copy_bytes_per_second, operations_per_second};
use crate::kernels::ceilings::device::Multiplication;
use crate::model::ModelError;
use crate::model::device::{DeviceSpec, built_for};
use crate::time::RealClock;

use card::{Card, libraries};
use check::{Check, Checked, Place};
use report::{Ceiling, GpuReport, SCHEMA, SCHEMA_VERSION};

/// What a card copies at a time, beyond any cache of one; and the processor, where nobody wants to wait.
const COPY_BYTES: (u64, u64) = (1 << 30, 1 << 24);
/// Rows and columns of the matrices that are multiplied, likewise.
const EDGE: (usize, usize) = (8192, 256);

/// What `gpu-check` is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuCheck {
    /// The device.
    pub device: DeviceSpec,
    /// Where the JSON goes.
    pub json: Option<PathBuf>,
}

/// Nothing could be checked.
#[derive(Debug, thiserror::Error)]
pub enum GpuCheckError {
    /// The device is not there, or this build cannot use it.
    #[error(transparent)]
    Device(#[from] ModelError),
    /// Shapes of small models are written to files, as loaders want them.
    #[error("cannot write to a folder for temporary files: {0}")]
    Folder(#[from] std::io::Error),
}

/// Checks a device.
///
/// # Errors
/// Nothing could be checked. What differs or fails is in the report.
pub fn run(options: &GpuCheck) -> Result<GpuReport, GpuCheckError> {
    let clock = RealClock::start();
    let place = Place::open(options.device)?;
    let folder = Folder::new()?;
    let card = Card::of(options.device);
    tracing::info!(device = %options.device, "measuring its limits");
    let ceilings = ceilings(options.device);
    let checks = checks(&folder.0)?;
    tracing::info!(checks = checks.len(), "comparing");
    let checks: Vec<Checked> = checks
        .into_iter()
        .map(|check| judge(check, &place))
        .collect();
    let graphs = match graphs::times(&place, &folder.0) {
        Ok(times) => vec![times],
        Err(error) => {
            // What is wrong with it stands among the checks.
            tracing::warn!(%error, "a pass with and without a graph could not be timed");
            Vec::new()
        }
    };
    Ok(GpuReport {
        schema: SCHEMA,
        schema_version: SCHEMA_VERSION,
        girandole: env!("CARGO_PKG_VERSION"),
        built_for: built_for(),
        device: options.device.to_string(),
        card,
        libraries: libraries(),
        ceilings,
        checks,
        graphs,
        seconds: clock.elapsed().as_secs_f64(),
    })
}

/// All checks, kernels first: a model that differs because of one is then explained already.
fn checks(folder: &Path) -> std::io::Result<Vec<Check>> {
    let mut checks = text_kernels::checks();
    checks.extend(fused_kernels::checks());
    checks.extend(sampling::checks());
    checks.extend(picture_kernels::checks());
    checks.extend(text_models::checks(folder)?);
    checks.extend(picture_models::checks(folder)?);
    checks.extend(graphs::checks(folder)?);
    Ok(checks)
}

fn judge(check: Check, place: &Place) -> Checked {
    let checked = check.judge(place);
    if !checked.is_well() {
        tracing::warn!(check = checked.name, outcome = ?checked.outcome, "not as it should be");
    }
    checked
}

fn ceilings(device: DeviceSpec) -> Vec<Ceiling> {
    let is_card = device != DeviceSpec::Cpu;
    let ceiling = |name, measured: Result<f64, ModelError>| Ceiling {
        name,
        per_second: measured.as_ref().ok().copied(),
        error: measured.err().map(|error| error.to_string()),
    };
    let bytes = if is_card { COPY_BYTES.0 } else { COPY_BYTES.1 };
    let edge = if is_card { EDGE.0 } else { EDGE.1 };
    let mut ceilings = vec![ceiling("copy", copy_bytes_per_second(device, bytes))];
    // Candle on the processor does not know the others, or knows no other way.
    let is_known = |product: &Multiplication| is_card || *product == Multiplication::F32;
    for product in Multiplication::ALL.into_iter().filter(is_known) {
        let rate = operations_per_second(device, edge, product);
        ceilings.push(ceiling(product.name(), rate));
    }
    ceilings
}

/// A folder for files that nobody wants afterwards.
struct Folder(PathBuf);

impl Folder {
    /// # Errors
    /// It cannot be made, or somebody else has made it.
    fn new() -> std::io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("girandole-gpu-check-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path)?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::debug!(%error, "a folder for temporary files stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::check::{Outcome, Twin};
    use super::*;

    #[test]
    fn the_processor_is_its_own_twin() {
        let options = GpuCheck {
            device: DeviceSpec::Cpu,
            json: None,
        };
        let report = run(&options).unwrap();
        let wrong: Vec<&Checked> = report
            .checks
            .iter()
            .filter(|check| !check.is_well())
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert!(report.is_well());
        for check in &report.checks {
            let Outcome::Well { difference } = check.outcome else {
                panic!("{check:?}");
            };
            assert_eq!(difference, 0.0, "{}: the same code twice", check.name);
        }
        let mut names: Vec<&str> = report.checks.iter().map(|check| &*check.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "names are told apart");
        assert!(count > 200, "{count}");
    }

    /// A twin that is off by a little more than is allowed, in one number, is found in every check.
    #[test]
    fn a_twin_that_is_broken_in_one_number_is_found() {
        let folder = Folder::new().unwrap();
        for mut check in checks(&folder.0).unwrap() {
            let (name, allowed) = (check.name.clone(), check.allowed);
            let right = (check.run)(&Place::cpu()).unwrap();
            let largest = right
                .iter()
                .fold(0f32, |most, number| most.max(number.abs()));
            let off = (2.0 * allowed as f32).max(1e-6) * largest;
            let smallest = (0..right.len()).min_by(|a, b| right[*a].total_cmp(&right[*b]));
            let smallest = smallest.expect("there are numbers");
            check.twin = Twin::OnDevice(Box::new(move |_| {
                let mut wrong = right.clone();
                wrong[smallest] -= off;
                Ok(wrong)
            }));
            let checked = check.judge(&Place::cpu());
            assert!(
                matches!(
                    checked.outcome,
                    Outcome::Differs {
                        difference: Some(_),
                        ..
                    }
                ),
                "{name}: {checked:?}"
            );
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_said() {
        let options = GpuCheck {
            device: DeviceSpec::Metal(0),
            json: None,
        };
        let error = run(&options).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("metal:0"), "{error}");
    }
}
