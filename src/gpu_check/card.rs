//! What a card says of itself, by NVIDIA's management library: it comes with the driver and is looked for when the
//! program runs. Without it nothing is said.

use std::collections::BTreeSet;
use std::fs;

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::Clock;
use serde::Serialize;

use crate::model::device::DeviceSpec;

/// A card, now.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Card {
    /// Its name.
    pub name: String,
    /// Its compute capability, such as `9.0`.
    pub compute_capability: Option<String>,
    /// Its memory, in bytes.
    pub memory_bytes: Option<u64>,
    /// Memory that is used by whomever, in bytes.
    pub used_bytes: Option<u64>,
    /// Version of the driver.
    pub driver: Option<String>,
    /// The newest CUDA that the driver knows.
    pub driver_cuda: Option<String>,
    /// Clock of its processors, in megahertz, now and at most.
    pub clock_mhz: Option<(u32, u32)>,
    /// Clock of its memory, in megahertz, now and at most.
    pub memory_clock_mhz: Option<(u32, u32)>,
    /// Power limit, in watts.
    pub limit_watts: Option<f64>,
}

impl Card {
    /// That of a device, if it is one that can be asked.
    pub fn of(device: DeviceSpec) -> Option<Self> {
        match device {
            DeviceSpec::Cuda(ordinal) => Self::find(ordinal),
            DeviceSpec::Cpu | DeviceSpec::Metal(_) => None,
        }
    }

    /// The card that CUDA calls `ordinal`, if it can be asked.
    fn find(ordinal: usize) -> Option<Self> {
        let nvml = Nvml::init().ok()?;
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let device = match named(visible.as_deref(), ordinal)? {
            Name::Index(index) => nvml.device_by_index(index).ok()?,
            Name::Uuid(uuid) => nvml.device_by_uuid(uuid).ok()?,
        };
        let memory = device.memory_info().ok();
        let clocks = |clock: Clock| {
            let now = device.clock_info(clock).ok()?;
            Some((now, device.max_clock_info(clock).ok()?))
        };
        Some(Card {
            name: device.name().unwrap_or_default(),
            compute_capability: device
                .cuda_compute_capability()
                .ok()
                .map(|found| format!("{}.{}", found.major, found.minor)),
            memory_bytes: memory.as_ref().map(|memory| memory.total),
            used_bytes: memory.as_ref().map(|memory| memory.used),
            driver: nvml.sys_driver_version().ok(),
            driver_cuda: nvml.sys_cuda_driver_version().ok().map(version),
            clock_mhz: clocks(Clock::SM),
            memory_clock_mhz: clocks(Clock::Memory),
            limit_watts: device
                .enforced_power_limit()
                .ok()
                .map(|milli| f64::from(milli) / 1e3),
        })
    }

    /// All of it in a line.
    pub fn line(&self) -> String {
        let mut parts = vec![self.name.clone()];
        let mut add = |part: Option<String>| parts.extend(part);
        let capability = self.compute_capability.as_ref();
        add(capability.map(|capability| format!("compute capability {capability}")));
        add(self
            .memory_bytes
            .map(|bytes| format!("{:.1} GiB", gibibytes(bytes))));
        add(self
            .used_bytes
            .map(|bytes| format!("{:.1} GiB used", gibibytes(bytes))));
        add(self
            .driver
            .as_ref()
            .map(|driver| format!("driver {driver}")));
        add(self.driver_cuda.as_ref().map(|cuda| format!("CUDA {cuda}")));
        let clock = |name: &str, (now, most): (u32, u32)| format!("{name} {now} of {most} MHz");
        add(self.clock_mhz.map(|clocks| clock("processors", clocks)));
        add(self.memory_clock_mhz.map(|clocks| clock("memory", clocks)));
        add(self.limit_watts.map(|watts| format!("{watts:.0} W")));
        parts.join(", ")
    }
}

fn gibibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// How a card is found by the library.
#[derive(Debug, PartialEq, Eq)]
enum Name<'a> {
    Index(u32),
    Uuid(&'a str),
}

/// Which of the machine's cards CUDA calls `ordinal`, where `CUDA_VISIBLE_DEVICES` has this value. CUDA takes the list
/// up to the first entry that it does not know.
fn named(visible: Option<&str>, ordinal: usize) -> Option<Name<'_>> {
    let Some(visible) = visible else {
        return u32::try_from(ordinal).ok().map(Name::Index);
    };
    let entry = visible.split(',').nth(ordinal)?.trim();
    match entry.parse() {
        Ok(index) => Some(Name::Index(index)),
        Err(_) if entry.starts_with("GPU-") => Some(Name::Uuid(entry)),
        Err(_) => None,
    }
}

/// `13000` -> `13.0`
fn version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// NVIDIA's libraries that this process has loaded, by their files, where the system tells.
pub(super) fn libraries() -> Vec<String> {
    libraries_in(&fs::read_to_string("/proc/self/maps").unwrap_or_default())
}

/// The sixth column of each line is a file.
fn libraries_in(maps: &str) -> Vec<String> {
    let is_theirs = |path: &&str| {
        let name = path.rsplit('/').next().unwrap_or_default();
        ["libcu", "libnv"]
            .iter()
            .any(|start| name.starts_with(start))
    };
    let paths = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5));
    let found: BTreeSet<&str> = paths.filter(is_theirs).collect();
    found.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visible_cards_are_counted_as_cuda_counts_them() {
        for (visible, ordinal, expected) in [
            (None, 3, Some(Name::Index(3))),
            (Some("2,0"), 0, Some(Name::Index(2))),
            (Some("2, 0"), 1, Some(Name::Index(0))),
            (Some("GPU-abc"), 0, Some(Name::Uuid("GPU-abc"))),
            (Some("2"), 1, None),
            (Some(""), 0, None),
            (Some("MIG-1"), 0, None),
        ] {
            assert_eq!(named(visible, ordinal), expected, "{visible:?} {ordinal}");
        }
    }

    #[test]
    fn versions_and_libraries_are_read() {
        assert_eq!(version(13000), "13.0");
        assert_eq!(version(12080), "12.8");
        let maps = "7f1-7f2 r-xp 00000000 08:01 5 /usr/lib/libcublas.so.13\n\
                    7f2-7f3 r--p 00000000 08:01 5 /usr/lib/libcublas.so.13\n\
                    7f3-7f4 rw-p 00000000 00:00 0\n\
                    7f4-7f5 r-xp 00000000 08:01 6 /usr/lib/libc.so.6\n\
                    7f5-7f6 r-xp 00000000 08:01 7 /drv/libnvidia-ml.so.1\n";
        assert_eq!(
            libraries_in(maps),
            ["/drv/libnvidia-ml.so.1", "/usr/lib/libcublas.so.13"]
        );
    }
}
