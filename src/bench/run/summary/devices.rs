//! What a run took of processors, memory, cards and power, and what that costs.

use super::{Summary, mean};
use crate::bench::results::{Cost, Counts, Devices, Energy, Goodput, GpuUse, ProcessUse};
use crate::bench::run::device::{GpuFacts, ProcessSample};
use crate::bench::run::sampler::Sample;

impl Summary<'_> {
    pub(super) fn devices(&self) -> Devices {
        let process = |of: &dyn Fn(&Sample) -> Option<ProcessSample>| {
            let (first, last) = (self.samples.first()?, self.samples.last()?);
            let cores = |first: &Sample, last: &Sample| {
                let passed = last.at.saturating_since(first.at).as_secs_f64();
                let used = of(last)?
                    .time?
                    .saturating_sub(of(first)?.time?)
                    .as_secs_f64();
                (passed > 0.0).then_some(used / passed)
            };
            let pairs = self
                .samples
                .windows(2)
                .filter_map(|pair| cores(&pair[0], &pair[1]));
            Some(ProcessUse {
                cores: cores(first, last)?,
                peak_cores: pairs.max_by(f64::total_cmp),
                peak_memory_bytes: of(last)?.peak_memory?,
            })
        };
        Devices {
            client: process(&|sample| Some(sample.client)),
            server: process(&|sample| sample.server),
            gpus: self.gpus(),
        }
    }

    fn gpus(&self) -> Vec<GpuUse> {
        let of = |(index, facts): (usize, &GpuFacts)| {
            let samples = || {
                self.samples
                    .iter()
                    .filter_map(move |sample| sample.gpus.get(index))
            };
            let mut throttled: Vec<String> =
                samples().flat_map(|gpu| gpu.throttled.clone()).collect();
            throttled.sort();
            throttled.dedup();
            GpuUse {
                index: index as u32,
                name: facts.name.clone(),
                busy_share: mean(samples().filter_map(|gpu| gpu.busy_share)),
                peak_memory_bytes: samples().filter_map(|gpu| gpu.memory_bytes).max(),
                memory_bytes: facts.memory_bytes,
                watts: mean(samples().filter_map(|gpu| gpu.watts)),
                limit_watts: facts.limit_watts,
                clock_mhz: mean(samples().filter_map(|gpu| gpu.clock_mhz)),
                throttled,
            }
        };
        self.around.gpus.iter().enumerate().map(of).collect()
    }

    /// GPUs where there are any, else processor packages. Scaled from the samples' time to the window's.
    pub(super) fn energy(&self, counts: &Counts) -> Option<Energy> {
        let (first, last) = (self.samples.first()?, self.samples.last()?);
        let passed = last.at.saturating_since(first.at).as_secs_f64();
        let gpus: Vec<f64> = first
            .gpus
            .iter()
            .zip(&last.gpus)
            .filter_map(|(first, last)| Some(last.joules? - first.joules?))
            .collect();
        let packages = || {
            let pairs = first.package_joules.iter().zip(&last.package_joules);
            let ranges = self.around.package_ranges.iter();
            let used = pairs
                .zip(ranges)
                .map(|((first, last), range)| (last - first).rem_euclid(*range));
            used.sum::<f64>()
        };
        let (source, joules) = match (gpus.is_empty(), first.package_joules.is_empty()) {
            (false, _) => ("nvml", gpus.iter().sum()),
            (true, false) => ("rapl", packages()),
            (true, true) => return None,
        };
        if passed <= 0.0 {
            return None;
        }
        let joules = joules * self.seconds() / passed;
        let by = |count: u64| (count > 0).then(|| joules / count as f64);
        Some(Energy {
            source: source.to_owned(),
            joules,
            joules_per_output_token: by(counts.output_tokens),
            joules_per_image: by(counts.images),
        })
    }

    pub(super) fn cost(&self, counts: &Counts, goodput: &Goodput) -> Option<Cost> {
        let (per_hour, currency) = self.config.price_per_hour.clone()?;
        let spent = per_hour * self.seconds() / 3600.0;
        let by = |count: u64, unit: f64| (count > 0).then(|| spent / count as f64 * unit);
        Some(Cost {
            currency,
            per_hour,
            per_million_output_tokens: by(counts.output_tokens, 1e6),
            per_thousand_images: by(counts.images, 1e3),
            per_million_good_requests: by(goodput.good, 1e6),
        })
    }
}
