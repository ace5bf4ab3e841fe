//! Models: what turns planned rows into outcomes.
//!
//! A [`Model`] is built inside its engine's thread and never leaves it, so nothing in it has to be
//! `Send` and there is no lock around it.

pub mod device;
pub mod diffusion;
pub mod image_frontend;
pub mod loader;
pub mod manifest;
pub mod scripted;
pub mod sources;
pub mod text;

use std::sync::Arc;

use crate::batch::{BatchKey, Capacity, PlannedRow, Prefix, RowCost, RowOutcome, Slot};
use crate::job::Job;

/// A model, as the engine sees it.
///
/// `admit` only reserves; every device operation happens inside `step`, so there is one place to
/// time it and one place where memory can run out.
pub trait Model {
    /// How many rows, and how much memory, it can hold at once.
    fn capacity(&self) -> Capacity;

    /// Units of `Iterate` work that a pass should have at most; rows beyond take turns.
    fn pass_work(&self) -> u32 {
        u32::MAX
    }

    /// With which rows a fresh row of this job may share its first pass.
    fn key(&self, job: &Job) -> BatchKey;

    /// What one row of this job needs.
    fn cost(&self, job: &Job) -> RowCost;

    /// What the prompt of this job's rows begins with, as far as the prefix cache keeps such beginnings. Asked only
    /// where several devices serve the model.
    fn prefix(&self, _job: &Job) -> Prefix {
        Prefix::default()
    }

    /// Reserves `slot` for answer number `choice` of `job`.
    ///
    /// # Errors
    /// The row cannot be taken; the engine fails it and goes on.
    fn admit(&mut self, slot: Slot, job: &Arc<Job>, choice: u32) -> Result<Admitted, ModelError>;

    /// Runs one forward pass. Returns one outcome per row, in the order of `rows`.
    ///
    /// # Errors
    /// The pass failed as a whole. After [`ModelError::OutOfMemory`] its rows must be as they were before it: the
    /// engine runs some of them again, at once and in a smaller pass, and fails one only that is too much alone.
    /// After any other error it fails all of them, and retires them.
    fn step(&mut self, rows: &[PlannedRow]) -> Result<Vec<RowOutcome>, ModelError>;

    /// Frees `slot`, whatever state its row is in, also after a failed or panicked step.
    fn retire(&mut self, slot: Slot);

    /// How its prefix cache stands. A model without one keeps nothing.
    fn cache_report(&self) -> CacheReport {
        CacheReport::default()
    }
}

/// How a model's prefix cache stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheReport {
    /// Units of memory that no row holds and that are kept for rows to come.
    pub memory_units: u32,
    /// Units that were given up since the beginning, for lack of room.
    pub evicted: u64,
}

/// What [`Model::admit`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admitted {
    /// Units of `Begin` work already done (prompt tokens found in a prefix cache).
    pub begin_work_done: u32,
}

/// What can go wrong in a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file or a setting cannot be used.
    #[error("{0}")]
    Load(String),
    /// The device ran out of memory.
    #[error("out of memory on the device: {0}")]
    OutOfMemory(String),
    /// Anything else that a tensor operation reports.
    #[error("{0}")]
    Device(String),
}

impl From<candle_core::Error> for ModelError {
    fn from(error: candle_core::Error) -> Self {
        let text = error.to_string();
        if device::advice::is_out_of_memory(&text) {
            ModelError::OutOfMemory(text)
        } else if device::advice::advice(&text).is_some() {
            ModelError::Device(device::advice::explained(&text))
        } else {
            ModelError::Device(text)
        }
    }
}
