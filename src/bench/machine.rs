//! What the machine says of itself, and how much processor time this process has used. Read from Linux's
//! `proc` and `sys`; elsewhere less is known.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where the figures come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Bytes of all last-level caches together, if known.
    pub last_level_cache_bytes: Option<u64>,
    /// Processes that ran or waited to run in the last minute, before the measurement: above
    /// `cores - threads`, others were in the way.
    pub load_average: Option<f64>,
}

/// Memory of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Bytes in memory now, mapped files included.
    pub resident_bytes: u64,
    /// The most that they have been.
    pub peak_bytes: u64,
}

impl Memory {
    /// Now, where the system tells.
    pub fn now() -> Option<Self> {
        Self::of_process("self")
    }

    /// That of the process with this number.
    pub fn of_process(process: &str) -> Option<Self> {
        memory_in(&fs::read_to_string(format!("/proc/{process}/status")).ok()?)
    }
}

/// Of the lines of `status`, such as `VmRSS: 1234 kB`.
fn memory_in(status: &str) -> Option<Memory> {
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kibibytes = line.trim().strip_suffix("kB")?.trim();
        kibibytes.parse::<u64>().ok()?.checked_mul(1 << 10)
    };
    Some(Memory {
        resident_bytes: bytes("VmRSS:")?,
        peak_bytes: bytes("VmHWM:")?,
    })
}

impl Machine {
    /// This one, now.
    pub fn here() -> Self {
        Machine {
            processor: processor().unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            last_level_cache_bytes: last_level_caches(Path::new("/sys/devices/system/cpu")),
            load_average: load_average(),
        }
    }
}

fn processor() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    let (_, name) = line.split_once(':')?;
    Some(name.trim().to_owned())
}

fn load_average() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// Every core lists its caches; those that share one say so in the same words.
fn last_level_caches(cores: &Path) -> Option<u64> {
    let mut caches = BTreeMap::new();
    for core in fs::read_dir(cores).ok()?.flatten() {
        let Ok(indices) = fs::read_dir(core.path().join("cache")) else {
            continue;
        };
        for index in indices.flatten() {
            let read = |name: &str| fs::read_to_string(index.path().join(name)).ok();
            let cache = || {
                let level: u32 = read("level")?.trim().parse().ok()?;
                let bytes = size_in_bytes(read("size")?.trim())?;
                Some(((level, read("shared_cpu_list")?), bytes))
            };
            caches.extend(cache());
        }
    }
    let (last_level, _) = caches.keys().next_back()?;
    let of_last_level = caches.iter().filter(|((level, _), _)| level == last_level);
    Some(of_last_level.map(|(_, bytes)| bytes).sum())
}

/// `32768K` -> bytes.
fn size_in_bytes(text: &str) -> Option<u64> {
    let (number, factor) = match text.strip_suffix('K') {
        Some(number) => (number, 1 << 10),
        None => match text.strip_suffix('M') {
            Some(number) => (number, 1 << 20),
            None => (text, 1),
        },
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// Processor time of all threads of this process that still run: user and system, within a tick of the
/// kernel. `None` where the system does not say.
pub fn processor_time() -> Option<Duration> {
    processor_time_of("self")
}

/// That of the process with this number.
pub fn processor_time_of(process: &str) -> Option<Duration> {
    time_of_threads(Path::new(&format!("/proc/{process}/task")))
}

/// Each thread has a folder, whose `schedstat` begins with its nanoseconds on a processor.
fn time_of_threads(threads: &Path) -> Option<Duration> {
    let mut nanos = 0u64;
    for thread in fs::read_dir(threads).ok()?.flatten() {
        // A thread may have ended meanwhile.
        let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) else {
            continue;
        };
        nanos += text.split_whitespace().next()?.parse::<u64>().ok()?;
    }
    (nanos > 0).then(|| Duration::from_nanos(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_caches_count_once() {
        let folder = tempfile::tempdir().unwrap();
        let cache = |core: usize, index: usize, level: &str, size: &str, shared: &str| {
            let path = folder.path().join(format!("cpu{core}/cache/index{index}"));
            fs::create_dir_all(&path).unwrap();
            for (name, text) in [
                ("level", level),
                ("size", size),
                ("shared_cpu_list", shared),
            ] {
                fs::write(path.join(name), format!("{text}\n")).unwrap();
            }
        };
        assert_eq!(last_level_caches(folder.path()), None);
        for core in 0..4 {
            let pair = ["0-1", "2-3"][core / 2];
            cache(core, 0, "1", "32K", &core.to_string());
            cache(core, 1, "3", "2M", pair);
        }
        assert_eq!(last_level_caches(folder.path()), Some(4 << 20));
    }

    #[test]
    fn sizes_are_read_in_their_units() {
        for (text, bytes) in [
            ("32768K", Some(32 << 20)),
            ("2M", Some(2 << 20)),
            ("64", Some(64)),
            ("x", None),
            ("99999999999999999999K", None),
        ] {
            assert_eq!(size_in_bytes(text), bytes, "{text}");
        }
    }

    #[test]
    fn this_machine_can_be_described() {
        let machine = Machine::here();
        assert!(!machine.processor.is_empty() && machine.cores > 0);
    }

    #[test]
    fn memory_is_read_from_the_lines_of_the_status() {
        let status = "VmPeak:\t 9 kB\nVmHWM:\t    2048 kB\nVmRSS:\t  1024 kB\n";
        let expected = Memory {
            resident_bytes: 1 << 20,
            peak_bytes: 2 << 20,
        };
        assert_eq!(memory_in(status), Some(expected));
        assert_eq!(memory_in("VmRSS: 1 kB\n"), None);
        assert_eq!(memory_in("VmRSS: 1 kB\nVmHWM: 1 pages\n"), None);
    }

    #[test]
    fn processor_time_is_that_of_all_threads() {
        let folder = tempfile::tempdir().unwrap();
        let thread = |name: &str, schedstat: &str| {
            fs::create_dir_all(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("schedstat"), schedstat).unwrap();
        };
        let time = || time_of_threads(folder.path());
        assert_eq!(time(), None);
        thread("1", "0 0 0\n");
        assert_eq!(time(), None, "the kernel does not count");
        thread("1", "1500 20 3\n");
        thread("2", "2000000000 10 4\n");
        // One that has just ended.
        fs::create_dir(folder.path().join("3")).unwrap();
        assert_eq!(time(), Some(Duration::from_nanos(2_000_001_500)));
        thread("2", "x\n");
        assert_eq!(time(), None);
        assert_eq!(time_of_threads(&folder.path().join("none")), None);
    }
}
