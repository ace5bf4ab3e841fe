//! Looks at both sides once a second, on a thread of its own: a driver that takes long to answer delays nobody's
//! frames.

use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Handle;

use super::RunError;
use super::device::{Devices, GpuFacts, GpuSample, ProcessSample};
use crate::bench::target::Target;
use crate::bench::target::counters::Counters;
use crate::time::{Clock, RealClock, Time};

/// Samples kept of a point; when there are more, every other one goes, and they come half as often.
const MAX_SAMPLES: usize = 256;
const INTERVAL: Duration = Duration::from_secs(1);

/// Both sides, at a time.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) at: Time,
    pub(super) client: ProcessSample,
    pub(super) server: Option<ProcessSample>,
    pub(super) counters: Option<Counters>,
    pub(super) gpus: Vec<GpuSample>,
    pub(super) package_joules: Vec<f64>,
}

/// What is looked at.
#[derive(Clone)]
pub(super) struct Watched {
    pub(super) target: Arc<Target>,
    pub(super) clock: Arc<RealClock>,
    pub(super) client_runtime: Handle,
    /// The server's process, if it is here.
    pub(super) server: Option<u32>,
    pub(super) has_counters: bool,
    pub(super) devices: Arc<Devices>,
}

/// Looks until it is dropped.
pub(super) struct Sampler {
    samples: Arc<Mutex<Vec<Sample>>>,
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    pub(super) fn start(watched: Watched) -> Result<Self, RunError> {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = sync_channel::<()>(1);
        let kept = Arc::clone(&samples);
        let thread = std::thread::Builder::new()
            .name("bench-sampler".to_owned())
            .spawn(move || {
                let mut interval = INTERVAL;
                loop {
                    let sample = watched.look();
                    let mut kept = kept.lock().expect("nobody panics while holding it");
                    kept.push(sample);
                    if kept.len() > MAX_SAMPLES {
                        let mut index = 0;
                        kept.retain(|_| {
                            index += 1;
                            index % 2 == 1
                        });
                        interval *= 2;
                    }
                    drop(kept);
                    if stopped.recv_timeout(interval) != Err(RecvTimeoutError::Timeout) {
                        return;
                    }
                }
            })
            .map_err(|error| RunError::Client(error.to_string()))?;
        Ok(Sampler {
            samples,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Ends it with one last look.
    pub(super) fn finish(mut self, watched: &Watched) -> Vec<Sample> {
        self.end();
        let mut samples = std::mem::take(&mut *self.samples.lock().expect("its thread has ended"));
        samples.push(watched.look());
        samples
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.end();
    }
}

impl Watched {
    fn look(&self) -> Sample {
        let at = self.clock.now();
        Sample {
            at,
            client: ProcessSample::of("self"),
            server: self
                .server
                .map(|process| ProcessSample::of(&process.to_string())),
            counters: self.counters(),
            gpus: self.devices.gpus(),
            package_joules: self.devices.package_joules(),
        }
    }

    fn counters(&self) -> Option<Counters> {
        if !self.has_counters {
            return None;
        }
        let (sender, receiver) = sync_channel(1);
        let target = Arc::clone(&self.target);
        self.client_runtime.spawn(async move {
            let _ = sender.try_send(target.counters().await);
        });
        receiver.recv_timeout(INTERVAL * 5).ok().flatten()
    }

    pub(super) fn gpu_facts(&self) -> &[GpuFacts] {
        &self.devices.gpus
    }
}
