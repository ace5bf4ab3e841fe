//! One server, one client, one set of objectives: everything that the points of a measurement share.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::device::Devices;
use super::drive::drive;
use super::runtime::Runtime;
use super::sampler::{Sampler, Watched};
use super::summary::{Surroundings, summarise};
use super::{Measured, PointSpec, RunError, Watcher};
use crate::bench::load::asks::{Load, Role, TokenScale};
use crate::bench::load::{Ask, Asks, Planned, TextAsk, words};
use crate::bench::results::{Metric, Objectives};
use crate::bench::target::observation::millis;
use crate::bench::target::probe::Told;
use crate::bench::target::{Observation, Target, TargetConfig, Watch};
use crate::time::{Clock, RealClock, Time};

/// Bytes of the prompts that tell how the server counts tokens.
const SCALE_BYTES: (usize, usize) = (100, 900);
/// Requests that tell how long one takes when nothing else runs.
const IDLE_REQUESTS: u64 = 2;
/// Ordinals of requests before the first point, far from any other.
const BEFORE: u64 = 1 << 50;
/// A server is given so long to become idle between points.
const MAX_SETTLING: Duration = Duration::from_secs(15);
/// And one whose idleness cannot be seen gets this.
const BLIND_SETTLING: Duration = Duration::from_millis(500);
const SETTLING_INTERVAL: Duration = Duration::from_millis(50);
/// A gap that a user sees as standing still, where no objective says otherwise.
const STALL: Duration = Duration::from_millis(500);

/// What a measurement is made of.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// The server.
    pub target: TargetConfig,
    /// What it is asked for.
    pub load: Load,
    /// See [`Asks`].
    pub salt: String,
    /// What a good answer is.
    pub objectives: Objectives,
    /// A request that takes longer is given up.
    pub timeout: Duration,
    /// Requests in flight at most.
    pub max_open_requests: usize,
    /// The server's process, if it is here.
    pub server_process: Option<u32>,
    /// Price of the server for an hour, and its currency.
    pub price_per_hour: Option<(f64, String)>,
}

/// See the module.
pub struct Session {
    config: SessionConfig,
    runtime: Runtime,
    target: Arc<Target>,
    clock: Arc<RealClock>,
    told: Told,
    scale: TokenScale,
    idle: Duration,
    devices: Arc<Devices>,
    started: Time,
}

struct Nobody;

impl Watch for Nobody {
    fn first(&self, _at: Time) {}
    fn gap(&self, _at: Time, _micros: u64) {}
}

impl Session {
    /// Asks the server about itself, how it counts tokens, and how long a request takes alone.
    ///
    /// # Errors
    /// It does not answer, or not as it should.
    pub fn open(config: SessionConfig) -> Result<Self, RunError> {
        let clock = Arc::new(RealClock::start());
        let runtime = Runtime::start()?;
        let target = Target::new(config.target.clone())
            .map_err(|error| RunError::Client(error.to_string()))?;
        let target = Arc::new(target);
        let probed = Arc::clone(&target);
        let told = runtime.wait_for(async move { probed.probe().await })?;
        let devices = match config.target.is_local() {
            true => Devices::find(),
            false => Devices::none(),
        };
        let mut session = Session {
            started: clock.now(),
            config,
            runtime,
            target,
            clock,
            told,
            scale: TokenScale::default(),
            idle: Duration::ZERO,
            devices: Arc::new(devices),
        };
        if matches!(session.config.load, Load::Text(_)) {
            session.fit_scale()?;
        }
        session.time_idle()?;
        Ok(session)
    }

    /// What it was made of.
    pub fn config(&self) -> &SessionConfig {
        &self.config
    }

    /// What a good answer is.
    pub fn objectives(&self) -> &Objectives {
        &self.config.objectives
    }

    /// What the server told of itself.
    pub fn told(&self) -> &Told {
        &self.told
    }

    /// How long a request takes alone.
    pub fn idle(&self) -> Duration {
        self.idle
    }

    /// The time since the session began.
    pub fn elapsed(&self) -> Duration {
        self.clock.now().saturating_since(self.started)
    }

    pub(super) fn clock(&self) -> &Arc<RealClock> {
        &self.clock
    }

    pub(super) fn target(&self) -> &Arc<Target> {
        &self.target
    }

    pub(super) fn runtime(&self) -> &Handle {
        self.runtime.handle()
    }

    /// Requests of a point with this seed. The seed is in the salt, too: no point is to find what another left
    /// in a cache.
    pub(super) fn asks(&self, seed: u64) -> Asks {
        let salt = format!("{}{:x}", self.config.salt, seed & 0xffff);
        Asks::new(self.config.load.clone(), seed, salt, self.scale)
    }

    pub(super) fn stall_limit(&self) -> Duration {
        let mut limits = self.config.objectives.limits.iter();
        let limit = limits.find(|limit| limit.metric == Metric::LongestStall);
        limit.map_or(STALL, |limit| Duration::from_secs_f64(limit.limit_ms / 1e3))
    }

    /// Offers a load and says what became of it.
    ///
    /// # Errors
    /// The client fails, or is stopped. What the server does wrong is a result.
    pub fn measure(
        &self,
        spec: &PointSpec,
        watcher: &mut dyn Watcher,
    ) -> Result<Measured, RunError> {
        self.settle();
        watcher.begins(spec);
        let watched = Watched {
            target: Arc::clone(&self.target),
            clock: Arc::clone(&self.clock),
            client_runtime: self.runtime.handle().clone(),
            server: self.config.server_process,
            has_counters: !self.told.counters.is_empty(),
            devices: Arc::clone(&self.devices),
        };
        let sampler = Sampler::start(watched.clone())?;
        let driven = drive(self, spec, watcher)?;
        let samples = sampler.finish(&watched);
        let surroundings = Surroundings {
            samples: &samples,
            gpus: watched.gpu_facts(),
            package_ranges: self.devices.package_ranges(),
            model: &self.config.target.model,
            since_start: driven.start.saturating_since(self.started),
        };
        let measured = summarise(spec, driven, &self.config, &surroundings);
        watcher.ended(&measured.point);
        Ok(measured)
    }

    /// Waits until nothing of the point before runs any more.
    fn settle(&self) {
        let deadline = self.clock.now() + MAX_SETTLING;
        let model = &self.config.target.model;
        loop {
            let target = Arc::clone(&self.target);
            let counters = self
                .runtime
                .wait_for(async move { target.counters().await })
                .ok()
                .flatten();
            let busy = counters.and_then(|counters| {
                let running = counters.sum("girandole_rows_running", model)?;
                Some(running + counters.sum("girandole_requests_waiting", model)?)
            });
            let wait = match busy {
                Some(0.0) => return,
                Some(_) if self.clock.now() < deadline => SETTLING_INTERVAL,
                Some(_) => return,
                None => BLIND_SETTLING,
            };
            let slept = self.runtime.wait_for(tokio_sleep(wait));
            if busy.is_none() || slept.is_err() {
                return;
            }
        }
    }

    fn request(&self, ask: Ask, ordinal: u64) -> Result<Observation, RunError> {
        let (target, clock) = (Arc::clone(&self.target), Arc::clone(&self.clock));
        let (seen, _) = self.runtime.wait_for(async move {
            let now = clock.now();
            target
                .perform(&ask, (ordinal, now), false, &clock, &Nobody)
                .await
        })?;
        match seen.completed() {
            true => Ok(seen),
            false => Err(RunError::Server(format!(
                "a first request to {} did not succeed: {}",
                self.config.target.shown_url(),
                described(&seen)
            ))),
        }
    }

    fn fit_scale(&mut self) -> Result<(), RunError> {
        let count = |bytes: usize, ordinal: u64| -> Result<(usize, Option<u32>), RunError> {
            let mut numbers =
                crate::bench::load::random(ordinal, crate::bench::load::Purpose::Asks, ordinal);
            let mut text = format!("{}{ordinal:x} ", self.config.salt);
            words::append(&mut text, bytes, &mut numbers);
            let sent = text.len();
            let ask = TextAsk {
                messages: vec![(Role::User, text)],
                output_tokens: 2,
                seed: 1,
            };
            Ok((sent, self.request(Ask::Text(ask), ordinal)?.prompt_tokens))
        };
        let short = count(SCALE_BYTES.0, BEFORE)?;
        let long = count(SCALE_BYTES.1, BEFORE + 1)?;
        if let ((short_bytes, Some(short)), (long_bytes, Some(long))) = (short, long)
            && let Some(scale) = TokenScale::fitted((short_bytes, short), (long_bytes, long))
        {
            self.scale = scale;
        }
        Ok(())
    }

    fn time_idle(&mut self) -> Result<(), RunError> {
        let asks = self.asks(self.clock.now().as_micros());
        let mut total = Duration::ZERO;
        for index in 0..IDLE_REQUESTS {
            let planned = Planned {
                ordinal: BEFORE + 2 + index,
                user: None,
                turn: 0,
                intended: self.clock.now(),
                input_tokens: None,
                output_tokens: None,
            };
            let seen = self.request(asks.ask(&planned, &[]), planned.ordinal)?;
            total += Duration::from_secs_f64(millis(seen.end, seen.intended) / 1e3);
        }
        self.idle = total / IDLE_REQUESTS as u32;
        Ok(())
    }
}

/// Waits until a server is ready and asks it about itself. `is_alive` tells whether waiting makes sense.
///
/// # Errors
/// It is not ready in time, or nobody answers.
pub fn probe(
    config: &TargetConfig,
    patience: Duration,
    is_alive: &mut dyn FnMut() -> bool,
) -> Result<Told, RunError> {
    let clock = RealClock::start();
    let runtime = Runtime::start()?;
    let target =
        Target::new(config.clone()).map_err(|error| RunError::Client(error.to_string()))?;
    let target = Arc::new(target);
    let deadline = clock.now() + patience;
    loop {
        let asked = Arc::clone(&target);
        if runtime.wait_for(async move { asked.is_ready().await })? {
            return runtime.wait_for(async move { target.probe().await });
        }
        if clock.now() >= deadline || !is_alive() {
            return Err(RunError::Server(format!(
                "{} is not ready",
                config.shown_url()
            )));
        }
        runtime.wait_for(tokio_sleep(SETTLING_INTERVAL * 4))?;
    }
}

/// A timer is made on the thread that has a runtime.
async fn tokio_sleep(wait: Duration) {
    tokio::time::sleep(wait).await;
}

fn described(seen: &Observation) -> String {
    use crate::bench::target::End;
    match seen.ended {
        End::Completed => "it completed".to_owned(),
        End::Refused => "it was refused".to_owned(),
        End::TimedOut => "it timed out".to_owned(),
        End::Truncated => "its stream broke off".to_owned(),
        End::NoFinishReason => "its stream ended without a finish reason".to_owned(),
        End::Error(kind) => kind.to_string(),
    }
}
