//! What this machine's devices are doing: processes, GPUs, energy. Where something cannot be read, nothing is said.

use std::path::PathBuf;
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::Clock;

use crate::bench::machine::{Memory, processor_time_of};

/// A process, now.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ProcessSample {
    /// Processor time so far.
    pub(super) time: Option<Duration>,
    /// The most memory so far, in bytes.
    pub(super) peak_memory: Option<u64>,
}

impl ProcessSample {
    /// Of the process with this number, or `self`.
    pub(super) fn of(process: &str) -> Self {
        ProcessSample {
            time: processor_time_of(process),
            peak_memory: Memory::of_process(process).map(|memory| memory.peak_bytes),
        }
    }
}

/// A GPU, now.
#[derive(Clone, Debug, Default)]
pub(super) struct GpuSample {
    pub(super) busy_share: Option<f64>,
    pub(super) memory_bytes: Option<u64>,
    pub(super) watts: Option<f64>,
    pub(super) clock_mhz: Option<f64>,
    pub(super) throttled: Vec<String>,
    /// Since the driver was loaded.
    pub(super) joules: Option<f64>,
}

/// What does not change about a GPU.
#[derive(Clone, Debug)]
pub(super) struct GpuFacts {
    pub(super) name: String,
    pub(super) memory_bytes: Option<u64>,
    pub(super) limit_watts: Option<f64>,
}

/// Where devices are read.
pub(super) struct Devices {
    /// NVIDIA's library, which is looked for when the program runs.
    nvml: Option<Nvml>,
    pub(super) gpus: Vec<GpuFacts>,
    /// Energy counters of processor packages, in microjoules, with the value at which they begin anew.
    packages: Vec<(PathBuf, f64)>,
}

impl Devices {
    /// Those of this machine.
    pub(super) fn find() -> Self {
        let nvml = Nvml::init().ok();
        let gpus = nvml.as_ref().map(facts).unwrap_or_default();
        Devices {
            nvml,
            gpus,
            packages: packages(),
        }
    }

    /// No GPU is looked at: the server is elsewhere.
    pub(super) fn none() -> Self {
        Devices {
            nvml: None,
            gpus: Vec::new(),
            packages: Vec::new(),
        }
    }

    /// All GPUs, now.
    pub(super) fn gpus(&self) -> Vec<GpuSample> {
        let Some(nvml) = &self.nvml else {
            return Vec::new();
        };
        let count = self.gpus.len() as u32;
        (0..count)
            .map(|index| sample(nvml, index).unwrap_or_default())
            .collect()
    }

    /// Joules that each processor package has used, modulo what its counter holds.
    pub(super) fn package_joules(&self) -> Vec<f64> {
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path)
                .ok()?
                .trim()
                .parse::<f64>()
                .ok()
        };
        self.packages
            .iter()
            .filter_map(|(path, _)| read(path))
            .map(|micros| micros / 1e6)
            .collect()
    }

    /// Where each package's counter begins anew, in joules.
    pub(super) fn package_ranges(&self) -> Vec<f64> {
        self.packages.iter().map(|(_, range)| range / 1e6).collect()
    }
}

fn facts(nvml: &Nvml) -> Vec<GpuFacts> {
    let count = nvml.device_count().unwrap_or(0);
    let facts = |index| {
        let device = nvml.device_by_index(index).ok()?;
        Some(GpuFacts {
            name: device.name().unwrap_or_default(),
            memory_bytes: device.memory_info().ok().map(|memory| memory.total),
            limit_watts: device
                .enforced_power_limit()
                .ok()
                .map(|milli| f64::from(milli) / 1e3),
        })
    };
    (0..count).map_while(facts).collect()
}

fn sample(nvml: &Nvml, index: u32) -> Option<GpuSample> {
    let device = nvml.device_by_index(index).ok()?;
    let throttled = device.current_throttle_reasons().ok();
    Some(GpuSample {
        busy_share: device
            .utilization_rates()
            .ok()
            .map(|rates| f64::from(rates.gpu) / 100.0),
        memory_bytes: device.memory_info().ok().map(|memory| memory.used),
        watts: device
            .power_usage()
            .ok()
            .map(|milli| f64::from(milli) / 1e3),
        clock_mhz: device.clock_info(Clock::SM).ok().map(f64::from),
        throttled: throttled.map_or_else(Vec::new, |reasons| {
            let slow =
                |name: &str| !["GPU_IDLE", "APPLICATIONS_CLOCKS_SETTING", "NONE"].contains(&name);
            reasons
                .iter_names()
                .map(|(name, _)| name.to_owned())
                .filter(|name| slow(name))
                .collect()
        }),
        joules: device
            .total_energy_consumption()
            .ok()
            .map(|milli| milli as f64 / 1e3),
    })
}

/// Packages only: their parts are counted in them.
fn packages() -> Vec<(PathBuf, f64)> {
    let Ok(entries) = std::fs::read_dir("/sys/class/powercap") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with("intel-rapl:") && name.matches(':').count() == 1
        })
        .filter_map(|entry| {
            let range = std::fs::read_to_string(entry.path().join("max_energy_range_uj")).ok()?;
            Some((entry.path().join("energy_uj"), range.trim().parse().ok()?))
        })
        .collect()
}
