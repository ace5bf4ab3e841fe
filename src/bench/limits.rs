//! What the machine could give at best, measured with the kernels' own threads and instructions.
//!
//! A limit is the best of a few runs, since whatever else the machine does only ever slows it.

use std::time::Duration;

use serde::Serialize;

use super::BenchError;
use crate::kernels::ceilings::{ReadBuffer, multiply_floats, multiply_integers};
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
    let clock = RealClock::start();
    let run = |turns| {
        let start = clock.elapsed();
        let units = work(turns);
        (units, clock.elapsed().saturating_sub(start))
    };
    let mut turns = 1usize;
    while run(turns).1 < MIN_RUN {
        turns = turns.saturating_mul(2);
    }
    let rates = (0..RUNS).map(|_| {
        let (units, took) = run(turns);
        units as f64 / took.as_secs_f64().max(f64::MIN_POSITIVE)
    });
    rates.fold(0.0, f64::max)
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
