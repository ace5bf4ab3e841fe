//! The scripted model under observation: what it is told must follow the rules.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use girandole::batch::{BatchKey, Capacity, Next, Phase, PlannedRow, RowCost, RowOutcome, Slot};
use girandole::job::Job;
use girandole::model::{Admitted, Model, ModelError};
use girandole::scheduler::Batching;
use girandole::time::{Clock, ManualClock};

use crate::scarcity::is_part;
use crate::world::{Book, Group, Held, PassSeen};

/// The scripted model, with somebody who takes notes.
pub(crate) struct Watched {
    pub(crate) inner: Box<dyn Model>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) book: Rc<RefCell<Book>>,
}

impl Model for Watched {
    fn capacity(&self) -> Capacity {
        self.inner.capacity()
    }

    fn pass_work(&self) -> u32 {
        self.inner.pass_work()
    }

    fn key(&self, job: &Job) -> BatchKey {
        self.inner.key(job)
    }

    fn cost(&self, job: &Job) -> RowCost {
        self.inner.cost(job)
    }

    fn admit(&mut self, slot: Slot, job: &Arc<Job>, choice: u32) -> Result<Admitted, ModelError> {
        let (key, cost) = (self.inner.key(job), self.inner.cost(job));
        let book = &mut *self.book.borrow_mut();
        book.insist(book.fits(cost), "admitted without room");
        let index = book
            .sent
            .iter()
            .position(|(_, sent)| Arc::ptr_eq(&sent.job, job))
            .expect("a request that was sent");
        let dynamic = book.batching() == Batching::Dynamic;
        if dynamic {
            let mut held = book.slots.values();
            let joins = held.all(|held| held.turn == book.turn && held.key == key);
            book.insist(joins, "joined a running batch");
        }
        book.check_order(self.clock.now(), index);
        let user = book.sent[index].1.who.user;
        let may = book.may_run_more(user);
        book.insist(may, "a user has more rows than may run");
        let next_choice = book.sent[index].1.rows_admitted;
        book.sent[index].1.rows_admitted += 1;
        book.insist(choice == next_choice, "rows out of order");
        let held = Held {
            user,
            key,
            cost,
            turn: book.turn,
            begin_done: 0,
            iterations: 0,
            last_pass: 0,
        };
        let free = book.slots.insert(slot, held).is_none();
        book.insist(free, "the slot is taken");
        let admitted = self.inner.admit(slot, job, choice)?;
        if let Some(held) = book.slots.get_mut(&slot) {
            held.begin_done = admitted.begin_work_done;
        }
        Ok(admitted)
    }

    fn step(&mut self, rows: &[PlannedRow]) -> Result<Vec<RowOutcome>, ModelError> {
        let at = self.clock.now();
        self.check_pass(rows);
        {
            let book = &mut *self.book.borrow_mut();
            book.scarcity.try_pass(book.turn, rows);
            book.passes.push(PassSeen {
                turn: book.turn,
                took: Duration::ZERO,
                rows: rows.to_vec(),
            });
        }
        let outcome = self.inner.step(rows);
        let took = self.clock.now() - at;
        let book = &mut *self.book.borrow_mut();
        if let Some(pass) = book.passes.last_mut() {
            pass.took = took;
        }
        if outcome.is_ok() {
            Self::note_work(book, rows);
            book.scarcity.pass_ran(at, rows);
        }
        if let Err(ModelError::OutOfMemory(_)) = &outcome {
            book.scarcity.pass_failed(rows);
        }
        for outcome in outcome.iter().flatten() {
            if let (Next::Continue(key), Some(held)) =
                (&outcome.next, book.slots.get_mut(&outcome.slot))
            {
                held.key = *key;
            }
        }
        outcome
    }

    fn retire(&mut self, slot: Slot) {
        let book = &mut *self.book.borrow_mut();
        let held = book.slots.remove(&slot).is_some();
        book.insist(held, "retired an empty slot");
        self.inner.retire(slot);
    }
}

impl Watched {
    fn check_pass(&self, rows: &[PlannedRow]) {
        let book = &mut *self.book.borrow_mut();
        let slots: BTreeSet<Slot> = rows.iter().map(|row| row.slot).collect();
        book.insist(slots.len() == rows.len(), "a row twice in a pass");
        let held = slots.iter().filter_map(|slot| book.slots.get(slot));
        let keys: Vec<BatchKey> = held.map(|held| held.key).collect();
        book.insist(keys.len() == rows.len(), "a row without a slot in a pass");
        let same = keys.iter().all(|key| *key == keys[0]);
        book.insist(same, "keys are mixed in a pass");
        self.check_turn(book, rows);
        let mut waiting = book
            .live()
            .filter(|sent| sent.waits() && book.may_run_more(sent.who.user))
            .map(|sent| self.inner.cost(&sent.job))
            .peekable();
        // Whose turn it is does not fit, at least.
        let could_join = waiting.peek().is_some() && waiting.all(|cost| book.fits(cost));
        drop(waiting);
        let joins = book.batching() == Batching::Continuous;
        book.insist(!(joins && could_join), "there is room, and somebody waits");
    }

    /// Who takes part follows from whose turn it is.
    fn check_turn(&self, book: &mut Book, rows: &[PlannedRow]) {
        let Some(group) = rows.first().and_then(|row| book.slots.get(&row.slot)) else {
            return;
        };
        let group = group.group();
        let failed = book.scarcity.failed_in(book.turn);
        let again = failed.map(|failed| is_part(rows, failed));
        match again {
            None => book.count_turn(group),
            Some(fits) => book.insist(fits, "what is tried again is no part of what failed"),
        }
        let retried = again.is_some();
        match group {
            Group::Finishing => {
                let alone = rows.len() == 1 && rows[0].phase == Phase::Finish;
                book.insist(alone, "a row that finishes has company");
            }
            Group::Stepping(key) => {
                let takes_part = |slot: &Slot| rows.iter().any(|row| row.slot == *slot);
                let (taken, left_out): (Vec<_>, Vec<_>) = book
                    .slots
                    .iter()
                    .filter(|(_, held)| held.group() == Group::Stepping(key) && held.has_begun())
                    .partition(|(slot, _)| takes_part(slot));
                let work = |held: &Held| held.cost.iterate_work;
                let sum: u32 = taken.iter().map(|(_, held)| work(held)).sum();
                let limit = self.inner.pass_work();
                // When memory has run out, rows may be left out that did not fit.
                let held = book.scarcity.held(self.clock.now()).unwrap_or(u32::MAX);
                let oldest = left_out.iter().map(|(_, held)| held.last_pass).min();
                // Of those who have waited as long as the one that did not fit, it may be any.
                let fits = left_out
                    .iter()
                    .filter(|(_, held)| Some(held.last_pass) == oldest)
                    .all(|(_, left)| sum + work(left) <= limit.min(held));
                let latest = taken.iter().map(|(_, held)| held.last_pass).max();
                let in_turn = oldest.is_none_or(|oldest| latest <= Some(oldest));
                let within = sum <= limit || taken.len() == 1;
                let begins_apart = taken.is_empty() && held < u32::MAX;
                book.insist(
                    retried || begins_apart || left_out.is_empty() || !fits,
                    "a row was left out of its group's pass",
                );
                book.insist(in_turn, "a row was left out before its turn");
                book.insist(within, "a pass has more work than it may have");
            }
        }
    }

    /// What a pass that has not failed has done.
    fn note_work(book: &mut Book, rows: &[PlannedRow]) {
        let pass = book.passes.len();
        for planned in rows {
            let Some(held) = book.slots.get_mut(&planned.slot) else {
                continue;
            };
            held.last_pass = pass;
            match planned.phase {
                Phase::Begin => {
                    held.begin_done += planned.work;
                    let whole = held.cost.finish_work == 0 || held.has_begun();
                    book.insist(whole, "a picture was begun in parts");
                }
                Phase::Iterate => held.iterations += 1,
                Phase::Finish => {}
            }
        }
    }
}
