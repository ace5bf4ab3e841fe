//! How much memory a card has, and how much of it a model may take.

use std::fmt;
use std::str::FromStr;

use candle_core::Device;

use crate::model::ModelError;

/// What a card says of its memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// In nobody's use: neither ours nor another process's.
    pub free: u64,
    /// In all.
    pub total: u64,
}

impl DeviceMemory {
    /// What a device has now, when all that it was told is done. `None` where it shares the machine's memory: on the CPU and on
    /// Metal.
    ///
    /// # Errors
    /// The device does not answer.
    pub fn of(device: &Device) -> Result<Option<Self>, ModelError> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = device {
            return super::cuda::memory(device).map(Some);
        }
        let _ = device;
        Ok(None)
    }

    /// Bytes that are left below `share` of all, whoever uses the rest, when `reserve` bytes more are put aside.
    pub fn left_of(self, share: MemoryShare, reserve: u64) -> u64 {
        let used = self.total.saturating_sub(self.free);
        let allowed = share.of(self.total);
        allowed.saturating_sub(used).saturating_sub(reserve)
    }
}

impl fmt::Display for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        write!(f, "{:.1} of {:.1} GiB", gib(self.free), gib(self.total))
    }
}

/// A part of a card's memory, in thousandths: at least 0.01, at most 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemoryShare {
    thousandths: u16,
}

impl MemoryShare {
    /// What [`FromStr`] takes.
    pub const WANTED: &str = "a number from 0.01 to 1";

    fn of(self, bytes: u64) -> u64 {
        let part = u128::from(bytes) * u128::from(self.thousandths) / 1000;
        part as u64
    }
}

impl Default for MemoryShare {
    /// Nine tenths: the rest is for the driver, for libraries that load late, and for what nobody reckoned with.
    fn default() -> Self {
        MemoryShare { thousandths: 900 }
    }
}

/// The text is no share of a memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not {wanted}", wanted = MemoryShare::WANTED)]
pub struct InvalidShare(String);

impl FromStr for MemoryShare {
    type Err = InvalidShare;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let share = text.parse::<f64>().ok();
        let share = share.filter(|share| (0.01..=1.0).contains(share));
        match share {
            Some(share) => Ok(MemoryShare {
                thousandths: (share * 1000.0).round() as u16,
            }),
            None => Err(InvalidShare(text.to_owned())),
        }
    }
}

impl fmt::Display for MemoryShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(self.thousandths) / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn shares_are_read_as_they_are_written() {
        for (text, share) in [
            ("0.9", Some(900)),
            ("1", Some(1000)),
            ("1.0", Some(1000)),
            ("0.01", Some(10)),
            ("0.0125", Some(13)),
            ("0", None),
            ("1.01", None),
            ("-0.5", None),
            ("NaN", None),
            ("90%", None),
        ] {
            let found = text.parse::<MemoryShare>().ok();
            assert_eq!(found.map(|share| share.thousandths), share, "{text}");
        }
        assert_eq!(MemoryShare::default().to_string(), "0.9");
        assert_eq!("0.9".parse(), Ok(MemoryShare::default()));
    }

    #[test]
    fn what_is_left_counts_everybodys_use_and_the_reserve() {
        let share = |text: &str| text.parse::<MemoryShare>().expect("a share");
        for (free, total, part, reserve, left) in [
            (100 * GIB, 100 * GIB, "0.9", 0, 90 * GIB),
            (84 * GIB, 100 * GIB, "0.9", 4 * GIB, 70 * GIB),
            // Another process, or another model, has taken its part before.
            (20 * GIB, 100 * GIB, "0.9", 4 * GIB, 6 * GIB),
            (5 * GIB, 100 * GIB, "0.9", 0, 0),
            (20 * GIB, 100 * GIB, "1", 30 * GIB, 0),
            (0, 0, "1", 0, 0),
        ] {
            let memory = DeviceMemory { free, total };
            assert_eq!(
                memory.left_of(share(part), reserve),
                left,
                "{memory}, {part}"
            );
        }
    }

    #[test]
    fn the_cpu_has_no_memory_of_its_own() {
        assert_eq!(DeviceMemory::of(&Device::Cpu).expect("it answers"), None);
    }
}
