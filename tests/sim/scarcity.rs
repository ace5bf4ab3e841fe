//! What the model's side knows of passes that memory ran out in.

use std::time::Duration;

use girandole::batch::{Phase, PlannedRow};
use girandole::time::Time;

/// Doublings of what a pass may have, one every ten seconds, after which no limit can be left: rows are few.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(100);

/// Passes that memory ran out in.
#[derive(Default)]
pub(crate) struct Scarcity {
    /// The last pass that failed so, and its turn.
    failed: Option<(u64, Vec<PlannedRow>)>,
    /// The turn of the pass under way.
    turn: u64,
    /// `Iterate` work of the last pass that was tried again and held, and when that was.
    held: Option<(Time, u32)>,
    /// Passes that failed so.
    pub(crate) failures: usize,
    /// Of these, passes of one row that did the least that a row can do.
    pub(crate) hopeless: usize,
}

impl Scarcity {
    pub(crate) fn try_pass(&mut self, turn: u64, rows: &[PlannedRow]) {
        assert!(!rows.is_empty(), "an empty pass");
        self.turn = turn;
    }

    pub(crate) fn pass_failed(&mut self, rows: &[PlannedRow]) {
        self.failures += 1;
        if let [row] = rows
            && row.work <= 1
        {
            self.hopeless += 1;
        }
        self.failed = Some((self.turn, rows.to_vec()));
    }

    pub(crate) fn pass_ran(&mut self, now: Time, rows: &[PlannedRow]) {
        if self.failed_in(self.turn).is_some() {
            let iterating = rows.iter().filter(|row| row.phase == Phase::Iterate);
            let work = iterating.map(|row| row.work).sum::<u32>().max(1);
            let before = self.held(now).unwrap_or(u32::MAX);
            self.held = Some((now, work.min(before)));
        }
    }

    /// The pass that failed in this turn, if one did.
    pub(crate) fn failed_in(&self, turn: u64) -> Option<&[PlannedRow]> {
        match &self.failed {
            Some((failed, rows)) if *failed == turn => Some(rows),
            _ => None,
        }
    }

    /// `Iterate` work that passes may be limited to.
    pub(crate) fn held(&self, now: Time) -> Option<u32> {
        let (since, work) = self.held?;
        (now - since < FORGOTTEN_AFTER).then_some(work)
    }
}

/// Whether a pass does less than another, for some of its rows, and nothing else.
pub(crate) fn is_part(rows: &[PlannedRow], whole: &[PlannedRow]) -> bool {
    let within = rows.iter().all(|row| {
        whole
            .iter()
            .any(|one| one.slot == row.slot && one.phase == row.phase && row.work <= one.work)
    });
    let work = |rows: &[PlannedRow]| -> u32 { rows.iter().map(|row| row.work.max(1)).sum() };
    within && work(rows) < work(whole)
}
