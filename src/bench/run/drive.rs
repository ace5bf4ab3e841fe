//! The lap that keeps a point going: start what is due, take what has ended, look from time to time.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::AbortHandle;

use super::frames::{FrameLog, Running};
use super::judge::{Decision, Judge, LOOK};
use super::recorder::Recorder;
use super::session::Session;
use super::{Judgement, Live, Plan, PointSpec, RunError, Watcher};
use crate::bench::load::asks::Role;
use crate::bench::load::{Ask, Asks, Pattern, Planned, Planner};
use crate::bench::results::Metric;
use crate::bench::target::{Observation, Target};
use crate::time::{Clock, RealClock, Time};

/// From the decision to start to the first moment at which something may be due.
const LEAD: Duration = Duration::from_millis(20);
/// Between two tests of how soon the connections' thread does what there is to do.
const PING: Duration = Duration::from_millis(20);
/// Results of such tests that are kept.
const MAX_PINGS: usize = 200_000;
/// Of a conversation, the turns that are told again.
const MAX_HISTORY: usize = 64;

/// What happened at a point.
pub(super) struct Driven {
    pub(super) start: Time,
    /// The measured window.
    pub(super) window: (Time, Time),
    /// Since when it is steady, if it is.
    pub(super) steady_since: Option<Time>,
    /// When the last request that counts had ended.
    pub(super) drained: Time,
    pub(super) recorder: Recorder,
    pub(super) frames: Arc<FrameLog>,
    /// Requests in flight at the end of each second.
    pub(super) open_streams: Vec<u32>,
    /// Mean requests in flight in the measured window.
    pub(super) in_flight: f64,
    /// How late the connections' thread was each time, in microseconds.
    pub(super) reading_lag: Vec<u32>,
    pub(super) judgement: Option<Judgement>,
    /// The queue only grew.
    pub(super) rising: bool,
    /// There were as many requests in flight as the client may have.
    pub(super) client_full: bool,
}

/// A request has ended.
struct Ended {
    seen: Observation,
    user: Option<u32>,
    text: Option<String>,
}

/// What a point needs while it runs.
struct Drive<'a> {
    session: &'a Session,
    spec: &'a PointSpec,
    target: Arc<Target>,
    clock: Arc<RealClock>,
    asks: Asks,
    planner: Planner,
    recorder: Recorder,
    frames: Arc<FrameLog>,
    sender: SyncSender<Ended>,
    receiver: Receiver<Ended>,
    running: BTreeMap<u64, AbortHandle>,
    /// Conversations so far, where there is more than one turn.
    histories: HashMap<u32, Vec<(Role, String)>>,
    keeps_text: bool,
    pings: Arc<Mutex<Vec<u32>>>,
    start: Time,
    judge: Judge,
    /// Requests in flight times seconds, at each look.
    integral: Vec<(Time, f64)>,
    open_streams: Vec<u32>,
    /// There is no room for another request now.
    is_full: bool,
    /// There was none at some time.
    was_full: bool,
}

pub(super) fn drive(
    session: &Session,
    spec: &PointSpec,
    watcher: &mut dyn Watcher,
) -> Result<Driven, RunError> {
    let clock = Arc::clone(session.clock());
    let start = clock.now() + LEAD;
    let max_open = session.config().max_open_requests;
    let (sender, receiver) = sync_channel(max_open + 1);
    let drive = Drive {
        session,
        spec,
        target: Arc::clone(session.target()),
        asks: session.asks(spec.seed),
        planner: Planner::new(&spec.pattern, start, spec.ramp, spec.seed),
        recorder: Recorder::new(start),
        frames: Arc::new(FrameLog::new(start, session.stall_limit())),
        sender,
        receiver,
        running: BTreeMap::new(),
        histories: HashMap::new(),
        keeps_text: matches!(spec.pattern, Pattern::Closed { turns, .. } if turns > 1),
        pings: Arc::default(),
        start,
        judge: Judge::new(
            spec,
            session.objectives().clone(),
            session.config().timeout,
            start,
        ),
        integral: Vec::new(),
        open_streams: Vec::new(),
        is_full: false,
        was_full: false,
        clock,
    };
    drive.run(watcher)
}

impl Drive<'_> {
    fn run(mut self, watcher: &mut dyn Watcher) -> Result<Driven, RunError> {
        let (mut next_look, mut next_ping) = (self.start + LOOK, self.start);
        let decision = loop {
            let now = self.clock.now();
            self.start_due(now);
            if now >= next_ping {
                self.ping();
                next_ping = now + PING;
            }
            if now >= next_look {
                next_look = now + LOOK;
                self.note(now);
                if let Some(decision) = self.look(now) {
                    break decision;
                }
                if watcher.is_stopped() {
                    self.abort();
                    return Err(RunError::Stopped);
                }
                watcher.goes_on(&self.live(now));
            }
            let due = match self.is_full {
                true => Time::FAR_FUTURE,
                false => self.planner.next_due().unwrap_or(Time::FAR_FUTURE),
            };
            let wake = due.min(next_look).min(next_ping);
            let wait = wake.saturating_since(self.clock.now());
            match self.receiver.recv_timeout(wait) {
                Ok(ended) => self.end(ended),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(RunError::Client("its thread has ended".to_owned()));
                }
            }
        };
        Ok(self.finish(decision))
    }

    /// Starts what is due, unless the client has as many requests as it may.
    fn start_due(&mut self, now: Time) {
        while self.planner.next_due().is_some_and(|due| due <= now) {
            self.is_full = self.recorder.in_flight() >= self.session.config().max_open_requests
                || self.recorder.is_full();
            self.was_full |= self.is_full;
            if self.is_full {
                return;
            }
            let Some(planned) = self.planner.take() else {
                return;
            };
            self.begin(planned, now);
        }
    }

    fn begin(&mut self, planned: Planned, now: Time) {
        let ask = self.ask(&planned);
        let output_tokens = match &ask {
            Ask::Text(text) => text.output_tokens,
            Ask::Picture(_) => 0,
        };
        let first = Arc::new(AtomicU64::new(0));
        let Planned {
            ordinal,
            user,
            intended,
            ..
        } = planned;
        self.recorder
            .started(ordinal, intended, Arc::clone(&first), output_tokens, now);
        let (target, clock) = (Arc::clone(&self.target), Arc::clone(&self.clock));
        let (frames, sender, keeps_text) = (
            Arc::clone(&self.frames),
            self.sender.clone(),
            self.keeps_text,
        );
        let task = self.session.runtime().spawn(async move {
            let watch = Running {
                first: &first,
                frames: &frames,
            };
            let (seen, text) = target
                .perform(&ask, (ordinal, intended), keeps_text, &clock, &watch)
                .await;
            // There is a place for each request in flight.
            let _ = sender.try_send(Ended { seen, user, text });
        });
        self.running.insert(ordinal, task.abort_handle());
    }

    fn ask(&mut self, planned: &Planned) -> Ask {
        let Some(user) = planned.user.filter(|_| self.keeps_text) else {
            return self.asks.ask(planned, &[]);
        };
        let history = self.histories.entry(user).or_default();
        if planned.turn == 0 {
            history.clear();
        }
        let ask = self.asks.ask(planned, history);
        if let Ask::Text(text) = &ask
            && history.len() < 2 * MAX_HISTORY
        {
            history.extend(text.messages.last().cloned());
        }
        ask
    }

    fn end(&mut self, ended: Ended) {
        let Ended { seen, user, text } = ended;
        self.running.remove(&seen.ordinal);
        self.planner.ended(user, seen.completed(), seen.end);
        if let Some((user, text)) = user.zip(text) {
            self.histories
                .entry(user)
                .or_default()
                .push((Role::Assistant, text));
        }
        self.recorder.ended(seen, self.clock.now());
    }

    /// How long the connections' thread takes to look at all connections and to read what has come: so late may it
    /// read a frame.
    fn ping(&self) {
        let (pings, clock, sent) = (
            Arc::clone(&self.pings),
            Arc::clone(&self.clock),
            self.clock.now(),
        );
        self.session.runtime().spawn(async move {
            // Goes behind all that the thread finds when it looks at its connections next.
            tokio::task::yield_now().await;
            let late = clock.now().saturating_since(sent).as_micros();
            let mut pings = pings.lock().expect("nobody panics while holding it");
            if pings.len() < MAX_PINGS {
                pings.push(u32::try_from(late).unwrap_or(u32::MAX));
            }
        });
    }

    /// Keeps what the timeline and Little's law need.
    fn note(&mut self, now: Time) {
        let integral = self.recorder.in_flight_seconds(now);
        self.integral.push((now, integral));
        let second = now.saturating_since(self.start).as_secs() as usize;
        self.open_streams
            .resize(second + 1, self.recorder.in_flight() as u32);
    }

    /// Whether there is more to learn.
    fn look(&mut self, now: Time) -> Option<Decision> {
        let is_over = self.was_full || self.has_nothing_left();
        self.judge.look(now, &self.recorder, is_over)
    }

    /// A trace has come to its end.
    fn has_nothing_left(&self) -> bool {
        matches!(self.spec.pattern, Pattern::Trace(_))
            && self.planner.next_due().is_none()
            && self.recorder.in_flight() == 0
    }

    fn live(&self, now: Time) -> Live {
        let ended = self.recorder.all_ended();
        let completed = ended.iter().filter(|seen| seen.completed()).count();
        let longest = match self.spec.plan {
            Plan::Fixed { measured } => measured,
            Plan::Test { max, .. } => max,
        };
        let mut firsts: Vec<f64> = ended
            .iter()
            .rev()
            .take(500)
            .filter_map(|seen| seen.latency_ms(Metric::TimeToFirstToken))
            .collect();
        firsts.sort_by(f64::total_cmp);
        let at = |share: f64| {
            firsts.get(((firsts.len() as f64 * share) as usize).min(firsts.len().max(1) - 1))
        };
        let recent = Duration::from_secs(5);
        let tokens: u64 = ended
            .iter()
            .rev()
            .take(5_000)
            .filter(|seen| now.saturating_since(seen.end) <= recent)
            .map(|seen| u64::from(seen.output_tokens))
            .sum();
        let tally = self.judge.so_far(now, &self.recorder);
        let passed = now.saturating_since(self.start).as_secs_f64();
        Live {
            seconds: passed,
            seconds_left: (self.judge.base() + longest)
                .saturating_since(now)
                .as_secs_f64(),
            in_flight: self.recorder.in_flight() as u64,
            completed: completed as u64,
            bad: (ended.len() - completed) as u64,
            good_share: (tally.total() > 0).then(|| 1.0 - tally.bad_share()),
            first_ms: at(0.5).zip(at(0.99)).map(|(half, most)| (*half, *most)),
            output_tokens_per_second: tokens as f64 / recent.as_secs_f64().min(passed.max(0.1)),
        }
    }

    fn abort(&mut self) {
        for task in self.running.values() {
            task.abort();
        }
    }

    /// Ends what is still in flight; nobody counts it.
    fn finish(mut self, decision: Decision) -> Driven {
        let drained = self.clock.now();
        self.abort();
        let (from, to) = decision.window;
        // Looks are a quarter of a second apart, a window is seconds long: the nearest will do.
        let at = |time: Time| {
            let index = self.integral.partition_point(|(at, _)| *at < time);
            self.integral
                .get(index.min(self.integral.len().max(1) - 1))
                .copied()
                .unwrap_or((time, 0.0))
        };
        let ((first, before), (last, after)) = (at(from), at(to));
        let seconds = last.saturating_since(first).as_secs_f64();
        let reading_lag =
            std::mem::take(&mut *self.pings.lock().expect("nobody panics while holding it"));
        Driven {
            start: self.start,
            window: decision.window,
            steady_since: decision.steady_since,
            drained,
            recorder: self.recorder,
            frames: self.frames,
            open_streams: self.open_streams,
            in_flight: if seconds > 0.0 {
                (after - before) / seconds
            } else {
                0.0
            },
            reading_lag,
            judgement: decision.judgement,
            rising: decision.rising,
            client_full: self.was_full,
        }
    }
}
