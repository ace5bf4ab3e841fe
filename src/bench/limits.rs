//! What the machine could give at best, measured with the kernels' own threads and instructions; or on a card with its
//! own copy and its makers' products.
//!
//! A limit is the best of a few runs, since whatever else the machine does only ever slows it.

use std::convert::Infallible;
use std::time::Duration;

use serde::Serialize;

use super::BenchError;
use crate::kernels::ceilings::device::{DeviceCopy, DeviceProduct, Multiplication};
use crate::kernels::ceilings::{ReadBuffer, multiply_floats, multiply_integers};
use crate::model::ModelError;
use crate::model::device::{DeviceSpec, FloatType};
use crate::model::text::work::PassWork;
use crate::time::RealClock;

/// A run takes this long at least, so that neither the clock nor a thread that wakes late counts.
const MIN_RUN: Duration = Duration::from_millis(20);
/// Runs of which the best counts.
const RUNS: usize = 5;
/// How far beyond the last-level cache memory is read.
const CACHES: u64 = 4;
/// The least and the most memory that is read, whatever the caches.
const MIN_BUFFER_BYTES: u64 = 256 << 20;
const MAX_BUFFER_BYTES: u64 = 2 << 30;
/// What a card copies at a time, beyond any cache of one.
const COPY_BYTES: u64 = 1 << 30;
/// Rows and columns of the matrices that a card multiplies: large enough to fill it.
const EDGE: usize = 8192;

/// The machine's limits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Limits {
    /// Reading memory that no cache holds.
    pub memory: ReadLimit,
    /// Reading as much as the weights take, over and over: what a step does.
    pub weights: ReadLimit,
    /// Operations on f32 a second, two for each multiply-add.
    pub float_operations_per_second: f64,
    /// Operations on 8-bit integers a second, two for each multiply-add.
    pub integer_operations_per_second: f64,
}

/// How fast a buffer is read.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ReadLimit {
    /// Its size.
    pub buffer_bytes: u64,
    /// How fast.
    pub bytes_per_second: f64,
}

/// How much of the machine's limits a pass uses: the time that it would take at a limit, by the time
/// that it took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Shares {
    /// Of the rate at which weights can be read.
    pub memory: f64,
    /// Of the rate at which numbers can be multiplied.
    pub arithmetic: f64,
    /// Which of them is nearer.
    pub nearer: Limit,
}

/// A limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// Reading weights, keys and values.
    Memory,
    /// Multiplying.
    Arithmetic,
}

impl Limits {
    /// Measures them. `cache_bytes` are the last-level caches, `weight_bytes` what a pass reads.
    ///
    /// # Errors
    /// There is no memory for the buffers: 2 GiB at most.
    pub fn measure(cache_bytes: Option<u64>, weight_bytes: u64) -> Result<Self, BenchError> {
        let beyond_caches = cache_bytes
            .unwrap_or(0)
            .saturating_mul(CACHES)
            .clamp(MIN_BUFFER_BYTES, MAX_BUFFER_BYTES);
        let memory = read_limit(beyond_caches)?;
        // Larger weights are read as memory is.
        let weights = match weight_bytes.clamp(1, beyond_caches) {
            bytes if bytes == beyond_caches => memory,
            bytes => read_limit(bytes)?,
        };
        Ok(Limits {
            memory,
            weights,
            float_operations_per_second: float_operations_per_second(),
            integer_operations_per_second: best_rate(multiply_integers),
        })
    }

    /// Those of a card, for weights in this format; weights in fewer bits are multiplied in f16. For reading stands
    /// copying, of which every byte counts twice: once read, once written.
    ///
    /// # Errors
    /// The card is not there, or has no 3 GiB left.
    pub fn of_device(device: DeviceSpec, dtype: Option<FloatType>) -> Result<Self, ModelError> {
        let copy = ReadLimit {
            buffer_bytes: COPY_BYTES,
            bytes_per_second: copy_bytes_per_second(device, COPY_BYTES)?,
        };
        let multiplication = match dtype {
            Some(dtype) => Multiplication::of(dtype.into()),
            None => Multiplication::F16,
        };
        let operations = operations_per_second(device, EDGE, multiplication)?;
        Ok(Limits {
            memory: copy,
            weights: copy,
            float_operations_per_second: operations,
            integer_operations_per_second: operations,
        })
    }

    /// How much of the limits a pass uses that took `seconds`. Integers and floating-point numbers share
    /// the same units, so their times add up.
    pub fn shares(&self, pass: &PassWork, seconds: f64) -> Shares {
        let bytes = (pass.weight_bytes + pass.kv_bytes) as f64;
        let memory = bytes / self.weights.bytes_per_second / seconds;
        let arithmetic = (pass.integer_operations as f64 / self.integer_operations_per_second
            + pass.float_operations as f64 / self.float_operations_per_second)
            / seconds;
        Shares {
            memory,
            arithmetic,
            nearer: if memory > arithmetic {
                Limit::Memory
            } else {
                Limit::Arithmetic
            },
        }
    }
}

/// Operations on f32 a second, two for each multiply-add: the processor's limit alone, without the buffers
/// that the limits of memory take.
pub fn float_operations_per_second() -> f64 {
    best_rate(multiply_floats)
}

/// How fast a device copies a buffer of `bytes` bytes: bytes read or written a second.
///
/// # Errors
/// The device is not there, or has no room for two such buffers.
pub fn copy_bytes_per_second(device: DeviceSpec, bytes: u64) -> Result<f64, ModelError> {
    let copy = DeviceCopy::new(&device.open()?, bytes)?;
    try_best_rate(|turns| Ok(copy.run(turns)?))
}

/// How fast a device multiplies matrices of `edge` rows and columns: operations a second, two for each multiply-add.
///
/// # Errors
/// The device is not there, does not know the format, or has no room for three such matrices.
pub fn operations_per_second(
    device: DeviceSpec,
    edge: usize,
    multiplication: Multiplication,
) -> Result<f64, ModelError> {
    let product = DeviceProduct::new(&device.open()?, edge, multiplication)?;
    try_best_rate(|turns| Ok(product.run(turns)?))
}

fn read_limit(bytes: u64) -> Result<ReadLimit, BenchError> {
    let size = usize::try_from(bytes).unwrap_or(usize::MAX);
    let buffer = ReadBuffer::new(size).map_err(|_| BenchError::NoMemory(size))?;
    Ok(ReadLimit {
        buffer_bytes: bytes,
        bytes_per_second: best_rate(|turns| (0..turns).map(|_| buffer.read()).sum()),
    })
}

/// Units a second of work that takes a number of turns and returns its units.
fn best_rate(work: impl Fn(usize) -> u64) -> f64 {
    let certain = |turns| Ok::<_, Infallible>(work(turns));
    match try_best_rate(certain) {
        Ok(rate) => rate,
        Err(never) => match never {},
    }
}

/// The same for work that may fail.
fn try_best_rate<E>(work: impl Fn(usize) -> Result<u64, E>) -> Result<f64, E> {
    let clock = RealClock::start();
    let run = |turns| {
        let start = clock.elapsed();
        let units = work(turns)?;
        Ok((units, clock.elapsed().saturating_sub(start)))
    };
    let mut turns = 1usize;
    while run(turns)?.1 < MIN_RUN {
        turns = turns.saturating_mul(2);
    }
    let mut best = 0.0f64;
    for _ in 0..RUNS {
        let (units, took) = run(turns)?;
        best = best.max(units as f64 / took.as_secs_f64().max(f64::MIN_POSITIVE));
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_positive_and_finite() {
        let limits = Limits::measure(None, 1 << 20).unwrap();
        for limit in [
            limits.memory.bytes_per_second,
            limits.weights.bytes_per_second,
            limits.float_operations_per_second,
            limits.integer_operations_per_second,
        ] {
            assert!(limit.is_finite() && limit > 1e6, "{limits:?}");
        }
        assert_eq!(limits.memory.buffer_bytes, MIN_BUFFER_BYTES);
        assert_eq!(limits.weights.buffer_bytes, 1 << 20);
    }

    #[test]
    fn a_device_is_measured_and_a_failure_is_told() {
        let cpu = DeviceSpec::Cpu;
        assert!(copy_bytes_per_second(cpu, 1 << 16).unwrap() > 1e6);
        assert!(operations_per_second(cpu, 32, Multiplication::F32).unwrap() > 1e6);
        let failing = try_best_rate(|turns| if turns < 4 { Ok(1) } else { Err("planted") });
        assert_eq!(failing, Err("planted"));
    }

    #[test]
    fn shares_are_times_at_the_limits() {
        let reading = |bytes_per_second| ReadLimit {
            buffer_bytes: 1,
            bytes_per_second,
        };
        let limits = Limits {
            memory: reading(50.0),
            weights: reading(100.0),
            float_operations_per_second: 10.0,
            integer_operations_per_second: 40.0,
        };
        let pass = PassWork {
            weight_bytes: 40,
            kv_bytes: 10,
            integer_operations: 40,
            float_operations: 5,
        };
        let shares = limits.shares(&pass, 2.0);
        assert_eq!((shares.memory, shares.arithmetic), (0.25, 0.75));
        assert_eq!(shares.nearer, Limit::Arithmetic);
        let decoding = PassWork {
            integer_operations: 1,
            float_operations: 0,
            ..pass
        };
        assert_eq!(limits.shares(&decoding, 2.0).nearer, Limit::Memory);
    }
}
