//! What became of one request, as its client saw it.

use crate::bench::results::Metric;
use crate::time::Time;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Answered to the end, with a finish reason.
    Completed,
    /// The server would not take it: 429 or 503.
    Refused,
    /// Not there in time.
    TimedOut,
    /// The stream broke off, or ended for its length before it had that length.
    Truncated,
    /// The stream ended in order, and nobody said why.
    NoFinishReason,
    /// Anything else, by its kind.
    Error(ErrorKind),
}

/// What went wrong. Never words of a server: those may hold a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorKind {
    /// No connection.
    Connect,
    /// An HTTP status that is neither success nor refusal.
    Status(u16),
    /// The stream told of an error.
    Told,
    /// What came is not what the interface says.
    Protocol,
}

impl std::fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ErrorKind::Connect => f.write_str("connect"),
            ErrorKind::Status(status) => write!(f, "http {status}"),
            ErrorKind::Told => f.write_str("error in the stream"),
            ErrorKind::Protocol => f.write_str("protocol"),
        }
    }
}

/// What became of one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observation {
    /// Which.
    pub ordinal: u64,
    /// When it should have started.
    pub intended: Time,
    /// When the client began to send.
    pub sent: Time,
    /// When the first text came, or the first step of a picture was told.
    pub first: Option<Time>,
    /// When the first picture came, be it a preview.
    pub first_preview: Option<Time>,
    /// When the last text, or the last step, came.
    pub last: Option<Time>,
    /// When it was over.
    pub end: Time,
    /// The longest gap between two arrivals of text, in microseconds.
    pub longest_gap_micros: u64,
    /// Prompt tokens, as the server counts.
    pub prompt_tokens: Option<u32>,
    /// Of these, found in its cache.
    pub cached_tokens: Option<u32>,
    /// New tokens, as the server counts. None where pictures are drawn.
    pub output_tokens: u32,
    /// Pictures.
    pub images: u32,
    /// How it ended.
    pub ended: End,
}

impl Observation {
    /// A request that has not begun to be answered.
    pub fn new(ordinal: u64, intended: Time, sent: Time) -> Self {
        Observation {
            ordinal,
            intended,
            sent,
            first: None,
            first_preview: None,
            last: None,
            end: sent,
            longest_gap_micros: 0,
            prompt_tokens: None,
            cached_tokens: None,
            output_tokens: 0,
            images: 0,
            ended: End::Completed,
        }
    }

    /// Whether it was answered to its end.
    pub fn completed(&self) -> bool {
        self.ended == End::Completed
    }

    /// One of its latencies, in milliseconds; `None` if it has none. Gaps of steps and frames, and how late the client
    /// reads, are no latency of one request.
    pub fn latency_ms(&self, metric: Metric) -> Option<f64> {
        let since_start = |time: Time| millis(time, self.intended);
        match metric {
            Metric::ClientLag => Some(since_start(self.sent)),
            Metric::TimeToFirstToken => self.first.map(since_start),
            Metric::TimeToFirstPreview => self.first_preview.map(since_start),
            Metric::TimePerOutputToken => {
                let (first, last) = self.first.zip(self.last)?;
                let gaps = self.output_tokens.checked_sub(1).filter(|gaps| *gaps > 0)?;
                Some(millis(last, first) / f64::from(gaps))
            }
            Metric::LongestStall => self.first.map(|_| self.longest_gap_micros as f64 / 1e3),
            Metric::EndToEnd => Some(since_start(self.end)),
            Metric::ReadingLag | Metric::StepGap | Metric::FrameGap => None,
        }
    }
}

/// From `earlier` to `later`.
pub fn millis(later: Time, earlier: Time) -> f64 {
    later.saturating_since(earlier).as_micros() as f64 / 1e3
}
