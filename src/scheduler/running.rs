//! A row that has a slot: where it stands.

use crate::batch::{BatchKey, Phase, PlannedRow, RowCost};
use crate::job::{RowId, UserId};
use crate::time::Time;

use super::turns::{Group, Stepper};

/// A row that has a slot.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) row: RowId,
    pub(crate) user: UserId,
    /// Order of admission.
    pub(crate) ticket: u64,
    pub(crate) key: BatchKey,
    pub(crate) cost: RowCost,
    pub(crate) deadline: Option<Time>,
    pub(crate) phase: Phase,
    pub(crate) begin_done: u32,
    pub(crate) iterations: u32,
    /// Number of its last part in a pass, counted over all rows in the order in which passes took them.
    pub(crate) last_part: u64,
}

impl Running {
    /// With whom it waits for its next pass.
    pub(crate) fn group(&self) -> Group {
        match self.phase {
            Phase::Begin | Phase::Iterate => Group::Stepping(self.key),
            Phase::Finish => Group::Finishing,
        }
    }

    /// Its claim to a place in its group's pass.
    pub(crate) fn stepper(&self) -> Stepper {
        Stepper {
            last_part: self.last_part,
            ticket: self.ticket,
            work: self.work(),
        }
    }

    pub(crate) fn begin_left(&self) -> u32 {
        self.cost.begin_work - self.begin_done
    }

    /// Whether its `Begin` work can't be done in parts: a text's prompt can be cut anywhere, what a picture
    /// begins with (its prompt's states, the picture to start from) can not.
    pub(crate) fn begins_whole(&self) -> bool {
        self.cost.finish_work > 0
    }

    /// Positions computed so far, which the next one attends to. A picture's steps have none behind them.
    pub(crate) fn position(&self) -> u32 {
        match self.begins_whole() {
            true => 0,
            false => self.begin_done + self.iterations,
        }
    }

    /// Units of work of its next pass, unless it is in `Begin`.
    pub(crate) fn work(&self) -> u32 {
        match self.phase {
            Phase::Begin | Phase::Iterate => self.cost.iterate_work,
            Phase::Finish => self.cost.finish_work.max(1),
        }
    }

    /// Counts what a pass did for the row, its part number `part`, and moves it to its next phase.
    pub(crate) fn advance(&mut self, planned: &PlannedRow, part: u64) {
        self.last_part = part;
        match planned.phase {
            Phase::Begin => {
                self.begin_done += planned.work;
                if self.begin_done >= self.cost.begin_work {
                    self.phase = match self.cost.max_iterations {
                        // A text that is only scored says so by ending.
                        0 if self.cost.finish_work > 0 => Phase::Finish,
                        _ => Phase::Iterate,
                    };
                }
            }
            Phase::Iterate => {
                self.iterations += 1;
                if self.iterations >= self.cost.max_iterations {
                    self.phase = Phase::Finish;
                }
            }
            Phase::Finish => {}
        }
    }
}
