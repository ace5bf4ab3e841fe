//! One check: what a device gives against what it should give, and what is said of the difference.

use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::Device;
use serde::Serialize;

use crate::model::ModelError;
use crate::model::device::DeviceSpec;
use crate::time::RealClock;

/// Where something is computed.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its name.
    pub spec: DeviceSpec,
    /// The device, open.
    pub device: Device,
}

impl Place {
    /// The processor.
    pub fn cpu() -> Self {
        Place {
            spec: DeviceSpec::Cpu,
            device: Device::Cpu,
        }
    }

    /// Opens a device.
    ///
    /// # Errors
    /// It is not there, or support for it is not compiled in.
    pub fn open(spec: DeviceSpec) -> Result<Self, ModelError> {
        Ok(Place {
            spec,
            device: spec.open()?,
        })
    }

    /// Whether this is the processor.
    pub fn is_cpu(&self) -> bool {
        self.spec == DeviceSpec::Cpu
    }
}

/// What a check computes on a place: its numbers, in an order of its own.
pub type Run = Box<dyn Fn(&Place) -> Result<Vec<f32>, ModelError>>;

/// What a check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// A kernel against its twin on the processor.
    Kernel,
    /// A whole model against the same on the processor.
    Model,
    /// A captured graph against the same steps without one.
    Graph,
}

impl Group {
    /// What tables call it.
    pub const fn name(self) -> &'static str {
        match self {
            Group::Kernel => "kernel",
            Group::Model => "model",
            Group::Graph => "graph",
        }
    }
}

/// What the numbers are held against.
pub enum Twin {
    /// The same on the processor.
    Processor,
    /// Something else on the same device.
    OnDevice(Run),
}

/// One check.
pub struct Check {
    /// What it is about.
    pub group: Group,
    /// What is computed, with shapes and number format.
    pub name: String,
    /// The largest difference that is well, as a part of the largest expected number.
    pub allowed: f64,
    /// What is checked.
    pub run: Run,
    /// What it is held against.
    pub twin: Twin,
}

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "verdict")]
pub enum Outcome {
    /// The difference is one that is allowed.
    Well {
        /// The largest difference, in the units of [`Check::allowed`].
        difference: f64,
    },
    /// It is not.
    Differs {
        /// The largest difference; nothing where numbers are not finite.
        difference: Option<f64>,
        /// In words.
        why: String,
    },
    /// Something could not be computed.
    Failed {
        /// In words.
        why: String,
    },
}

/// A check that was made.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Checked {
    /// What it is about.
    pub group: Group,
    /// What was computed.
    pub name: String,
    /// See [`Check::allowed`].
    pub allowed: f64,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Both sides together, in seconds: the first run of a kernel loads it.
    pub seconds: f64,
}

impl Checked {
    /// Whether all is well.
    pub fn is_well(&self) -> bool {
        matches!(self.outcome, Outcome::Well { .. })
    }
}

impl Check {
    /// Computes both sides and compares them. A panic fails the check and nothing else.
    pub fn judge(self, place: &Place) -> Checked {
        let clock = RealClock::start();
        let run =
            |run: &Run, place: &Place, side: &str| match catch_unwind(AssertUnwindSafe(|| {
                run(place)
            })) {
                Ok(result) => result.map_err(|error| format!("{side}: {error}")),
                Err(_) => Err(format!("{side}: panicked")),
            };
        let found = run(&self.run, place, "on the device");
        let expected = match &self.twin {
            Twin::Processor => run(&self.run, &Place::cpu(), "on the processor"),
            Twin::OnDevice(twin) => run(twin, place, "the twin on the device"),
        };
        let outcome = match (found, expected) {
            (Ok(found), Ok(expected)) => compare(&found, &expected, self.allowed),
            (Err(why), _) | (_, Err(why)) => Outcome::Failed { why },
        };
        Checked {
            group: self.group,
            name: self.name,
            allowed: self.allowed,
            outcome,
            seconds: clock.elapsed().as_secs_f64(),
        }
    }
}

/// Numbers against those expected. Numbers that are not finite are never well, wherever they stand: no check
/// computes any.
fn compare(found: &[f32], expected: &[f32], allowed: f64) -> Outcome {
    let differs = |difference, why| Outcome::Differs { difference, why };
    if found.len() != expected.len() || expected.is_empty() {
        let why = format!("{} numbers, expected are {}", found.len(), expected.len());
        return differs(None, why);
    }
    for (side, numbers) in [("found", found), ("expected", expected)] {
        if let Some(at) = numbers.iter().position(|number| !number.is_finite()) {
            return differs(None, format!("{side} is {} at {at}", numbers[at]));
        }
    }
    let scale = expected
        .iter()
        .map(|number| f64::from(number.abs()))
        .fold(f64::from(f32::MIN_POSITIVE), f64::max);
    let (at, largest) = found
        .iter()
        .zip(expected)
        .map(|(found, expected)| (f64::from(*found) - f64::from(*expected)).abs())
        .enumerate()
        .fold((0, 0.0), |worst, here| match here.1 > worst.1 {
            true => here,
            false => worst,
        });
    let difference = largest / scale;
    if difference <= allowed {
        return Outcome::Well { difference };
    }
    let wrong = found
        .iter()
        .zip(expected)
        .filter(|(found, expected)| {
            (f64::from(**found) - f64::from(**expected)).abs() > allowed * scale
        })
        .count();
    let why = format!(
        "{wrong} of {} numbers; the worst at {at}: {}, expected {}",
        found.len(),
        found[at],
        expected[at]
    );
    differs(Some(difference), why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_judged_by_the_largest_number() {
        for (found, expected, allowed, is_well) in [
            (&[1.0, 2.0][..], &[1.0, 2.0][..], 0.0, true),
            (&[0.0, 100.0], &[0.5, 100.0], 0.01, true),
            (&[0.0, 100.0], &[0.5, 100.0], 0.001, false),
            (&[0.001], &[0.002], 0.6, true),
            (&[0.001], &[0.002], 0.01, false),
            (&[0.0], &[0.0], 0.0, true),
            (&[1e-9], &[0.0], 1.0, false),
            (&[f32::NAN], &[f32::NAN], 1.0, false),
            (&[1.0], &[f32::INFINITY], 1.0, false),
            (&[1.0], &[1.0, 1.0], 1.0, false),
            (&[], &[], 1.0, false),
        ] {
            let outcome = compare(found, expected, allowed);
            let well = matches!(outcome, Outcome::Well { .. });
            assert_eq!(well, is_well, "{found:?}, {expected:?}: {outcome:?}");
        }
    }

    #[test]
    fn the_worst_number_is_named() {
        let outcome = compare(&[1.0, 5.0, 3.0], &[1.0, 2.0, 2.5], 0.1);
        let Outcome::Differs {
            difference: Some(difference),
            why,
        } = outcome
        else {
            panic!("it differs");
        };
        assert!((difference - 1.2).abs() < 1e-6);
        assert_eq!(why, "2 of 3 numbers; the worst at 1: 5, expected 2");
    }

    fn check(run: Run, twin: Twin) -> Checked {
        let check = Check {
            group: Group::Kernel,
            name: "planted".to_owned(),
            allowed: 1e-6,
            run,
            twin,
        };
        check.judge(&Place::cpu())
    }

    #[test]
    fn a_broken_twin_an_error_and_a_panic_are_not_well() {
        let one: fn(&Place) -> Result<Vec<f32>, ModelError> = |_| Ok(vec![1.0]);
        assert!(check(Box::new(one), Twin::Processor).is_well());
        let broken = check(
            Box::new(one),
            Twin::OnDevice(Box::new(|_| Ok(vec![1.00001]))),
        );
        assert!(matches!(broken.outcome, Outcome::Differs { .. }));
        let error = || ModelError::Device("planted".to_owned());
        let failed = check(Box::new(move |_| Err(error())), Twin::Processor);
        let why = "on the device: planted".to_owned();
        assert_eq!(failed.outcome, Outcome::Failed { why });
        let panicked = check(Box::new(|_| panic!("planted")), Twin::Processor);
        let why = "on the device: panicked".to_owned();
        assert_eq!(panicked.outcome, Outcome::Failed { why });
    }
}
