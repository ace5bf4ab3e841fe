//! Shows a measurement while it goes on.

use super::live::{LiveView, Phase, Status};
use super::results::{Offered, Point, Task};
use super::run::{Live, Plan, PointSpec, Watcher};
use super::stop::Stop;
use crate::bench::load::Pattern;
use crate::time::{Clock, RealClock};

/// Tells the live view.
pub struct LiveWatcher {
    view: LiveView,
    stop: Stop,
    clock: RealClock,
    task: Task,
    /// The point that runs.
    offered: Offered,
    purpose: String,
    warm_up_seconds: f64,
    measured_seconds: f64,
}

impl LiveWatcher {
    /// On stderr.
    pub fn start(task: Task, stop: Stop) -> Self {
        LiveWatcher {
            view: LiveView::start(),
            stop,
            clock: RealClock::start(),
            task,
            offered: Offered::Users { users: 0 },
            purpose: String::new(),
            warm_up_seconds: 0.0,
            measured_seconds: 0.0,
        }
    }

    /// Nothing more comes.
    pub fn finish(self) {
        self.view.finish();
    }
}

impl Watcher for LiveWatcher {
    fn begins(&mut self, spec: &PointSpec) {
        self.offered = match &spec.pattern {
            Pattern::Open { rate, .. } => Offered::Rate {
                requests_per_second: *rate,
            },
            Pattern::Trace(trace) => Offered::Rate {
                requests_per_second: trace.requests.len() as f64
                    / trace.length().as_secs_f64().max(1.0),
            },
            Pattern::Closed { users, .. } => Offered::Users { users: *users },
        };
        spec.purpose.clone_into(&mut self.purpose);
        self.warm_up_seconds = (spec.ramp + spec.warm_up).as_secs_f64();
        self.measured_seconds = match spec.plan {
            Plan::Fixed { measured } => measured.as_secs_f64(),
            Plan::Test { max, .. } => max.as_secs_f64(),
        };
    }

    fn goes_on(&mut self, live: &Live) {
        let measured_for = live.seconds - self.warm_up_seconds;
        let (phase, phase_seconds, total) = match measured_for {
            time if time < 0.0 => (Phase::WarmUp, live.seconds, Some(self.warm_up_seconds)),
            time if time < self.measured_seconds => {
                (Phase::Measure, time, Some(self.measured_seconds))
            }
            time => (Phase::Drain, time - self.measured_seconds, None),
        };
        let (output_per_second, output_unit) = match self.task {
            Task::Text => (live.output_tokens_per_second, "tokens/s"),
            Task::Image => (live.completed as f64 / live.seconds.max(0.1), "images/s"),
        };
        self.view.update(&Status {
            offered: self.offered,
            purpose: self.purpose.clone(),
            phase,
            phase_seconds,
            phase_total_seconds: total,
            due: live.completed + live.bad + live.in_flight,
            completed: live.completed,
            bad: live.bad,
            open_streams: live.in_flight,
            first_p50_ms: live.first_ms.map(|(half, _)| half),
            first_p99_ms: live.first_ms.map(|(_, most)| most),
            output_per_second,
            output_unit,
            elapsed_seconds: self.clock.now().as_secs_f64(),
            remaining_seconds: None,
        });
    }

    fn ended(&mut self, point: &Point) {
        self.stop.has_results();
        self.view.point_done(point);
    }

    fn is_stopped(&self) -> bool {
        self.stop.is_wanted()
    }
}
