//! What a measurement is doing, for whoever waits for it: bars on a terminal, a line now and then elsewhere.
//! Goes to stderr; stdout is for the answer.

use std::io::{IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::render::words;
use super::results::{Offered, Outcome, Point};
use super::table::number;

/// Seconds between two lines where there is no terminal, unless the phase changes.
const LINE_SECONDS: f64 = 15.0;
/// How finely a bar shows what is done.
const BAR_STEPS: u64 = 1000;

/// What a point is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The load builds up; nothing counts yet.
    WarmUp,
    /// What is due now counts.
    Measure,
    /// Nothing more counts; what is under way ends.
    Drain,
}

impl Phase {
    fn words(self) -> &'static str {
        match self {
            Phase::WarmUp => "warming up",
            Phase::Measure => "measuring",
            Phase::Drain => "draining",
        }
    }
}

/// Where a measurement stands. Told some times a second.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// How much is offered.
    pub offered: Offered,
    /// Why: the point's `purpose`.
    pub purpose: String,
    /// What the point is doing.
    pub phase: Phase,
    /// For how long, in seconds.
    pub phase_seconds: f64,
    /// How long that takes, in seconds, if it is known.
    pub phase_total_seconds: Option<f64>,
    /// Requests of the point that were due so far.
    pub due: u64,
    /// Of these, completed.
    pub completed: u64,
    /// Of these, ended badly.
    pub bad: u64,
    /// Streams that are open.
    pub open_streams: u64,
    /// Median time to the first token, or to the first preview, of late, in milliseconds.
    pub first_p50_ms: Option<f64>,
    /// 99th percentile of the same, in milliseconds.
    pub first_p99_ms: Option<f64>,
    /// What comes out of late, per second.
    pub output_per_second: f64,
    /// What that counts: `tokens/s`, `images/s`.
    pub output_unit: &'static str,
    /// Since the start of the whole measurement, in seconds.
    pub elapsed_seconds: f64,
    /// Until its end, in seconds, as far as can be said.
    pub remaining_seconds: Option<f64>,
}

impl Status {
    /// `32 users (search), measuring 14 of 60 s`
    fn doing(&self) -> String {
        let offered = words::offered(&self.offered);
        let seconds = match self.phase_total_seconds {
            Some(total) => format!("{:.0} of {total:.0} s", self.phase_seconds),
            None => format!("{:.0} s", self.phase_seconds),
        };
        let (purpose, phase) = (&self.purpose, self.phase.words());
        format!("{offered} ({purpose}), {phase} {seconds}")
    }

    /// `412 done, 3 bad, 31 open · first p50 180 ms, p99 420 ms · 1240 tokens/s`
    fn figures(&self) -> String {
        let time =
            |ms: Option<f64>| ms.map_or_else(|| words::UNKNOWN.to_owned(), words::milliseconds);
        format!(
            "{} done, {} bad, {} open · first p50 {}, p99 {} · {} {}",
            self.completed,
            self.bad,
            self.open_streams,
            time(self.first_p50_ms),
            time(self.first_p99_ms),
            number(self.output_per_second),
            self.output_unit
        )
    }

    fn left(&self) -> String {
        match self.remaining_seconds {
            Some(seconds) => format!("{} left", words::seconds(seconds.max(0.0).round())),
            None => format!("{} so far", words::seconds(self.elapsed_seconds.round())),
        }
    }

    /// Of the whole measurement, 0 to 1, as far as can be said.
    fn share(&self) -> Option<f64> {
        let left = self.remaining_seconds?.max(0.0);
        let all = self.elapsed_seconds + left;
        (all > 0.0).then(|| (self.elapsed_seconds / all).clamp(0.0, 1.0))
    }
}

/// `● 32 users: pass, 99.7 % good, 1240 tokens/s`
fn result(point: &Point) -> String {
    let mark = match point.verdict.outcome {
        Outcome::Pass => '●',
        Outcome::Fail => '✗',
        Outcome::Undecided => '◇',
        Outcome::Void => '□',
    };
    let (out, unit) = words::output(point);
    let mut line = format!(
        "{mark} {}: {}, {} good, {} {unit}",
        words::offered(&point.offered),
        words::outcome(point.verdict.outcome),
        words::percent(point.goodput.share.value),
        number(out.value),
    );
    if !point.verdict.reasons.is_empty() {
        line.push_str(": ");
        line.push_str(&point.verdict.reasons.join("; "));
    }
    // Reasons may quote a server, and a terminal obeys control characters.
    line.replace(char::is_control, " ")
}

/// Shows how a measurement goes on.
pub struct LiveView {
    shown: Shown,
}

enum Shown {
    Terminal(ProgressBar),
    Lines(Lines),
}

struct Lines {
    out: Box<dyn Write + Send>,
    told: Option<(Offered, Phase, f64)>,
}

impl LiveView {
    /// On stderr: a bar if it is a terminal, else lines.
    pub fn start() -> Self {
        match std::io::stderr().is_terminal() {
            true => Self::on_terminal(ProgressDrawTarget::stderr()),
            false => Self::in_lines(Box::new(std::io::stderr())),
        }
    }

    fn on_terminal(target: ProgressDrawTarget) -> Self {
        let bar = ProgressBar::with_draw_target(Some(BAR_STEPS), target);
        let style = ProgressStyle::with_template("{prefix}\n{bar:40.yellow/black.bright} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("━━─");
        bar.set_style(style);
        LiveView {
            shown: Shown::Terminal(bar),
        }
    }

    fn in_lines(out: Box<dyn Write + Send>) -> Self {
        LiveView {
            shown: Shown::Lines(Lines { out, told: None }),
        }
    }

    /// How it stands now.
    pub fn update(&mut self, status: &Status) {
        match &mut self.shown {
            Shown::Terminal(bar) => {
                let purpose = format!("{}\n{}", status.doing(), status.figures());
                bar.set_prefix(purpose.replace(|c: char| c.is_control() && c != '\n', " "));
                let share = status.share().unwrap_or(0.0);
                bar.set_position((share * BAR_STEPS as f64) as u64);
                bar.set_message(status.left());
            }
            Shown::Lines(lines) => {
                let is_due = lines.told.is_none_or(|(offered, phase, at)| {
                    offered != status.offered
                        || phase != status.phase
                        || status.elapsed_seconds >= at + LINE_SECONDS
                });
                if is_due {
                    lines.told = Some((status.offered, status.phase, status.elapsed_seconds));
                    let (doing, figures, left) = (status.doing(), status.figures(), status.left());
                    lines.tell(&format!("{doing}: {figures} · {left}"));
                }
            }
        }
    }

    /// A point is over; its line stays.
    pub fn point_done(&mut self, point: &Point) {
        match &mut self.shown {
            Shown::Terminal(bar) => bar.println(result(point)),
            Shown::Lines(lines) => lines.tell(&result(point)),
        }
    }

    /// Nothing more comes.
    pub fn finish(self) {
        if let Shown::Terminal(bar) = self.shown {
            bar.finish_and_clear();
        }
    }
}

impl Lines {
    /// With stderr closed there is nobody left to tell.
    fn tell(&mut self, line: &str) {
        let line = line.replace(char::is_control, " ");
        let _ = writeln!(self.out, "{line}");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn status(phase: Phase, elapsed_seconds: f64) -> Status {
        Status {
            offered: Offered::Users { users: 32 },
            purpose: "search\u{1b}[2J".to_owned(),
            phase,
            phase_seconds: 14.4,
            phase_total_seconds: Some(60.0),
            due: 430,
            completed: 412,
            bad: 3,
            open_streams: 31,
            first_p50_ms: Some(180.0),
            first_p99_ms: None,
            output_per_second: 1240.0,
            output_unit: "tokens/s",
            elapsed_seconds,
            remaining_seconds: Some(90.0),
        }
    }

    #[test]
    fn without_a_terminal_a_line_is_told_now_and_then() {
        let written = Written::default();
        let mut view = LiveView::in_lines(Box::new(written.clone()));
        for (phase, at) in [
            (Phase::WarmUp, 0.0),
            (Phase::WarmUp, 14.0),
            (Phase::WarmUp, 15.0),
            (Phase::WarmUp, 29.0),
            (Phase::Measure, 29.5),
        ] {
            view.update(&status(phase, at));
        }
        view.finish();
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(
            lines[2],
            "32 users (search [2J), measuring 14 of 60 s: 412 done, 3 bad, 31 open · first p50 180 ms, p99 – · \
             1240 tokens/s · 90 s left"
        );
    }

    #[test]
    fn a_bar_shows_the_share_that_is_done() {
        let mut view = LiveView::on_terminal(ProgressDrawTarget::hidden());
        view.update(&status(Phase::Measure, 30.0));
        let Shown::Terminal(bar) = &view.shown else {
            panic!("it is a terminal");
        };
        assert_eq!(bar.position(), BAR_STEPS / 4);
        assert_eq!(bar.message(), "90 s left");
        assert!(!bar.prefix().contains('\u{1b}'), "{}", bar.prefix());
        view.finish();
    }
}
