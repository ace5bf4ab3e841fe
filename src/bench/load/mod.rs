//! What is asked of a server: which requests, and when. Pure: everything follows from a seed, and time comes
//! in as an argument, so that arrivals and loads are tested in virtual time.
//!
//! [`Planner`] says when the next request starts, [`Asks`] what it asks for.

pub mod arrivals;
pub mod asks;
pub mod conversations;
pub mod lengths;
pub mod pictures;
pub mod planner;
pub mod trace;
pub mod words;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

pub use arrivals::Arrivals;
pub use asks::{Ask, Asks, PictureAsk, TextAsk, TextLoad};
pub use lengths::Lengths;
pub use pictures::PictureLoad;
pub use planner::{Pattern, Planned, Planner};

/// A load's file or distribution cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A text that describes a load is wrong.
    #[error("{0}")]
    Wrong(String),
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

impl LoadError {
    pub(super) fn wrong(message: impl Into<String>) -> Self {
        LoadError::Wrong(message.into())
    }

    pub(super) fn read(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |source| LoadError::Read { path, source }
    }
}

/// What random numbers are for: each purpose draws from a stream of its own, so that a change of the arrivals
/// leaves the prompts as they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Arrivals = 1,
    Thinking = 2,
    Asks = 3,
    Prefixes = 4,
}

/// The numbers of the `ordinal`-th thing of a purpose.
pub(super) fn random(seed: u64, purpose: Purpose, ordinal: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    // The purposes lie 2^60 streams apart, further than anybody counts.
    random.set_stream((purpose as u64) << 60 | ordinal);
    random
}
