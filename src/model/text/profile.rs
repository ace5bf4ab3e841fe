//! Where the time of a step goes: totals per part of the pass.
//!
//! Recording is per thread and off by default; a part then costs one look at a thread's own cell.
//! The times are those of the thread that runs the pass, which takes part in every loop of the
//! kernels and waits for its end, so on the CPU they add up to the step. On other devices a part ends
//! when its work has been handed over, and the times say nothing.

use std::cell::RefCell;
use std::time::Duration;

use crate::time::RealClock;

/// A part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Token ids to vectors.
    Embedding,
    /// Every norm, those of the heads included.
    Norm,
    /// The products that give query, key and value.
    QueryKeyValue,
    /// Turning queries and keys.
    Rope,
    /// Storing keys and values.
    KvWrite,
    /// Attention over what is stored.
    Attention,
    /// The product after attention, added to the residual stream.
    AttentionOutput,
    /// The feed-forward layer's first products.
    GateUp,
    /// The gate's function, times the other half.
    Activation,
    /// The feed-forward layer's last product, added to the residual stream.
    Down,
    /// Adding to the residual stream, where a norm comes before it. Elsewhere the product does it.
    Residual,
    /// The product that gives logits.
    Head,
    /// Choosing tokens and turning them into text.
    Sampling,
}

impl Part {
    /// All, in the order of a pass.
    pub const ALL: [Part; 13] = [
        Part::Embedding,
        Part::Norm,
        Part::QueryKeyValue,
        Part::Rope,
        Part::KvWrite,
        Part::Attention,
        Part::AttentionOutput,
        Part::GateUp,
        Part::Activation,
        Part::Down,
        Part::Residual,
        Part::Head,
        Part::Sampling,
    ];

    /// What reports call it.
    pub const fn name(self) -> &'static str {
        match self {
            Part::Embedding => "embedding",
            Part::Norm => "norm",
            Part::QueryKeyValue => "query, key, value",
            Part::Rope => "rope",
            Part::KvWrite => "kv write",
            Part::Attention => "attention",
            Part::AttentionOutput => "attention output",
            Part::GateUp => "gate, up",
            Part::Activation => "activation",
            Part::Down => "down",
            Part::Residual => "residual",
            Part::Head => "head",
            Part::Sampling => "sampling",
        }
    }
}

/// How long the parts took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartTimes([Duration; Part::ALL.len()]);

impl PartTimes {
    /// How long a part took.
    pub fn get(&self, part: Part) -> Duration {
        self.0[part as usize]
    }

    /// All parts together.
    pub fn total(&self) -> Duration {
        self.0.iter().sum()
    }
}

struct Recorder {
    clock: RealClock,
    times: PartTimes,
}

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// Runs `body` as `part` of a step. Parts follow each other and do not nest: time in a part within a
/// part would count twice.
pub fn timed<T>(part: Part, body: impl FnOnce() -> T) -> T {
    let Some(start) = elapsed() else {
        return body();
    };
    let result = body();
    RECORDER.with_borrow_mut(|recorder| {
        if let Some(recorder) = recorder {
            let took = recorder.clock.elapsed().saturating_sub(start);
            recorder.times.0[part as usize] += took;
        }
    });
    result
}

fn elapsed() -> Option<Duration> {
    RECORDER.with_borrow(|recorder| recorder.as_ref().map(|recorder| recorder.clock.elapsed()))
}

/// Runs `body` and adds up the parts that it runs on this thread.
pub fn record<T>(body: impl FnOnce() -> T) -> (T, PartTimes) {
    let _off_again = Recording::start();
    let result = body();
    let times = RECORDER.with_borrow(|recorder| recorder.as_ref().map(|recorder| recorder.times));
    (result, times.unwrap_or_default())
}

/// Ends with the recording, also when the recorded code panics.
struct Recording;

impl Recording {
    fn start() -> Self {
        RECORDER.set(Some(Recorder {
            clock: RealClock::start(),
            times: PartTimes::default(),
        }));
        Recording
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        RECORDER.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns until the clock has moved, so that any part takes some time.
    fn work() {
        let clock = RealClock::start();
        while clock.elapsed().is_zero() {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn parts_add_up_and_others_stay_zero() {
        let clock = RealClock::start();
        let ((), times) = record(|| {
            for _ in 0..3 {
                timed(Part::Norm, work);
                timed(Part::Head, work);
            }
        });
        for part in Part::ALL {
            let ran = [Part::Norm, Part::Head].contains(&part);
            assert_eq!(!times.get(part).is_zero(), ran, "{}", part.name());
        }
        assert_eq!(times.total(), times.get(Part::Norm) + times.get(Part::Head));
        assert!(times.total() <= clock.elapsed());
    }

    #[test]
    fn nothing_is_recorded_unasked_or_on_another_thread() {
        assert_eq!(timed(Part::Norm, || 5), 5);
        let ((), times) = record(|| {
            std::thread::scope(|scope| {
                scope.spawn(|| timed(Part::Norm, work));
            });
        });
        assert_eq!(times, PartTimes::default());
        assert!(elapsed().is_none(), "off again");
    }

    #[test]
    fn a_panic_ends_the_recording() {
        let outcome = std::panic::catch_unwind(|| record(|| panic!("planted")));
        assert!(outcome.is_err());
        assert!(elapsed().is_none());
    }

    #[test]
    fn every_part_has_a_place_and_a_name_of_its_own() {
        for (index, part) in Part::ALL.into_iter().enumerate() {
            assert_eq!(part as usize, index);
            let same = |other: &Part| other.name() == part.name();
            assert_eq!(Part::ALL.iter().filter(|other| same(other)).count(), 1);
        }
    }
}
