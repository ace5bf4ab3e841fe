//! A run second by second.

use std::time::Duration;

use super::{Summary, mean};
use crate::bench::results::{Metric, Second, Timeline};
use crate::bench::run::sampler::Sample;
use crate::time::Time;

impl Summary<'_> {
    pub(super) fn timeline(&self) -> Timeline {
        let start = self.driven.start;
        let second_of = |time: Time| time.saturating_since(start).as_secs() as usize;
        let frames = self.driven.frames.seconds();
        let count = second_of(self.driven.drained) + 1;
        let mut seconds: Vec<Second> = (0..count)
            .map(|index| Second {
                at_seconds: (index + 1) as f64,
                open_streams: self.driven.open_streams.get(index).copied().unwrap_or(0),
                stalls: frames.get(index).map_or(0, |second| second.stalls),
                longest_stall_ms: frames
                    .get(index)
                    .filter(|second| second.count > 0)
                    .map(|second| second.longest_micros as f64 / 1e3),
                ..Second::default()
            })
            .collect();
        let mut firsts: Vec<Vec<f64>> = vec![Vec::new(); count];
        let mut tokens = vec![0.0; count];
        for seen in self.driven.recorder.all_ended() {
            if let Some(second) = seconds.get_mut(second_of(seen.intended)) {
                second.due += 1;
            }
            if let Some(second) = seconds.get_mut(second_of(seen.end)) {
                match seen.completed() {
                    true => second.completed += 1,
                    false => second.bad += 1,
                }
            }
            let Some((first, last)) = seen.first.zip(seen.last) else {
                continue;
            };
            if let Some((firsts, ms)) = firsts
                .get_mut(second_of(first))
                .zip(seen.latency_ms(Metric::TimeToFirstToken))
            {
                firsts.push(ms);
            }
            let (begin, end) = (
                second_of(first).min(count - 1),
                second_of(last).min(count - 1),
            );
            for tokens in &mut tokens[begin..=end] {
                *tokens += f64::from(seen.output_tokens) / (end - begin + 1) as f64;
            }
        }
        for ((second, firsts), tokens) in seconds.iter_mut().zip(&mut firsts).zip(tokens) {
            firsts.sort_by(f64::total_cmp);
            second.time_to_first_token_ms = firsts.get(firsts.len() / 2).copied();
            second.output_tokens = tokens.round() as u32;
        }
        for pair in self.around.samples.windows(2) {
            if let Some(second) = seconds.get_mut(second_of(pair[1].at).saturating_sub(1)) {
                self.server_second(second, &pair[0], &pair[1]);
            }
        }
        Timeline {
            measured_from_seconds: self.from.saturating_since(start).as_secs_f64(),
            measured_to_seconds: self.to.saturating_since(start).as_secs_f64(),
            seconds,
        }
    }

    fn server_second(&self, second: &mut Second, before: &Sample, after: &Sample) {
        let model = self.around.model;
        let passed = after.at.saturating_since(before.at).as_secs_f64();
        let cores = |before: Option<Duration>, after: Option<Duration>| {
            let (before, after) = before.zip(after)?;
            (passed > 0.0).then(|| after.saturating_sub(before).as_secs_f64() / passed)
        };
        second.client_cores = cores(before.client.time, after.client.time);
        let server = |sample: &Sample| sample.server.and_then(|server| server.time);
        second.server_cores = cores(server(before), server(after));
        if let Some((old, new)) = before.counters.as_ref().zip(after.counters.as_ref()) {
            second.queued_requests = new.sum("girandole_requests_waiting", model);
            second.running_rows = new.sum("girandole_rows_running", model);
            second.batch_fill_rows = new.mean_since(old, "girandole_batch_fill_rows", model);
            second.step_ms = new
                .mean_since(old, "girandole_step_seconds", model)
                .map(|mean| mean * 1e3);
            let used = new.sum("girandole_kv_blocks_used", model);
            let total = new
                .sum("girandole_kv_blocks_total", model)
                .filter(|total| *total > 0.0);
            second.kv_share = used.zip(total).map(|(used, total)| used / total);
        }
        second.gpu_share = mean(after.gpus.iter().filter_map(|gpu| gpu.busy_share));
        let watts: Vec<f64> = after.gpus.iter().filter_map(|gpu| gpu.watts).collect();
        second.gpu_watts = (!watts.is_empty()).then(|| watts.iter().sum());
    }
}
