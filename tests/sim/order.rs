//! The order of admission, from outside: what users and classes of priority may expect of it.

use std::collections::{BTreeMap, BTreeSet};

use girandole::batch::{BatchKey, RowCost};
use girandole::events::EventKind;
use girandole::job::{Priority, UserId};
use girandole::scheduler::Batching;
use girandole::time::Time;

use crate::world::{Book, Sent};

/// Who asks, and how urgently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) user: UserId,
    pub(crate) priority: Priority,
}

/// What users got while others waited.
#[derive(Default)]
pub(crate) struct Shares {
    /// Work of a user's rows that were admitted.
    admitted: BTreeMap<(Priority, UserId), u64>,
    /// The same of everybody, when somebody who still waits began to.
    since: BTreeMap<(Priority, UserId), BTreeMap<(Priority, UserId), u64>>,
    /// Work of the largest row that ever came.
    largest: u64,
}

fn work(cost: &RowCost) -> u64 {
    u64::from(cost.begin_work)
        + u64::from(cost.max_iterations) * u64::from(cost.iterate_work)
        + u64::from(cost.finish_work)
}

/// Since when the engine has known it.
fn since(sent: &Sent) -> Option<Time> {
    sent.log
        .time_of(|kind| matches!(kind, EventKind::Queued { .. }))
}

impl Book {
    /// A row of request number `index` is admitted: were others to come before?
    pub(crate) fn check_order(&mut self, now: Time, index: usize) {
        let own = self.sent[index].1.who;
        let key = self.twin.key(&self.sent[index].1.job);
        let batch_of = (self.batching() == Batching::Dynamic).then_some(key);
        let rivals: Vec<(usize, Who)> = self
            .rivals(batch_of)
            .filter(|(rival, _)| *rival != index)
            .collect();
        let first = rivals
            .iter()
            .all(|(rival, who)| *who != own || *rival > index);
        self.insist(first, "an earlier request of the same user still waits");
        let ageing = self.fairness().priority_ageing;
        let of_class =
            |class: Priority| move |sent: &&Sent| sent.who.priority == class && sent.waits();
        let oldest = self
            .live()
            .filter(of_class(own.priority))
            .filter_map(since)
            .min();
        let is_due = oldest.is_some_and(|oldest| oldest + ageing <= now);
        let passed_over = rivals.iter().any(|(_, who)| who.priority < own.priority);
        self.insist(is_due || !passed_over, "a more urgent request still waits");
        if batch_of.is_none() {
            self.count_share(own, index);
        }
    }

    /// Requests that wait and could be admitted, if there were room.
    fn rivals(&self, key: Option<BatchKey>) -> impl Iterator<Item = (usize, Who)> {
        let waiting = self.sent.iter().map(|(_, sent)| sent).enumerate();
        waiting
            .filter(|(_, sent)| sent.waits() && since(sent).is_some())
            .filter(move |(_, sent)| key.is_none_or(|key| self.twin.key(&sent.job) == key))
            .filter(|(_, sent)| self.may_run_more(sent.who.user))
            .map(|(index, sent)| (index, sent.who))
    }

    pub(crate) fn may_run_more(&self, user: UserId) -> bool {
        let running = self.slots.values().filter(|held| held.user == user).count();
        let limit = self.fairness().max_running_per_user;
        limit.is_none_or(|limit| running < limit as usize)
    }

    /// No user gets more than a few turns ahead of one who waits all the while.
    fn count_share(&mut self, own: Who, index: usize) {
        let waiting: BTreeSet<(Priority, UserId)> = self
            .rivals(None)
            .map(|(_, who)| (who.priority, who.user))
            .collect();
        let row = work(&self.twin.cost(&self.sent[index].1.job));
        let more_rows = self.sent[index].1.rows_admitted + 1 < self.sent[index].1.job.rows();
        let own = (own.priority, own.user);
        let shares = &mut self.shares;
        shares.largest = shares.largest.max(row);
        shares.since.retain(|user, _| waiting.contains(user));
        for user in &waiting {
            let begun = || shares.admitted.clone();
            shares.since.entry(*user).or_insert_with(begun);
        }
        *shares.admitted.entry(own).or_default() += row;
        let (admitted, largest) = (&shares.admitted, shares.largest);
        let gained = |user, since: &BTreeMap<_, u64>| {
            let now = admitted.get(user).copied().unwrap_or(0);
            now - since.get(user).copied().unwrap_or(0)
        };
        let overtaken = shares.since.iter().any(|(other, since)| {
            let same_class = other.0 == own.0 && *other != own;
            same_class && gained(&own, since) > gained(other, since) + 3 * largest
        });
        // Who waits no more has to begin anew.
        let still_waits = more_rows
            || self
                .rivals(None)
                .any(|(rival, who)| rival != index && (who.priority, who.user) == own);
        if !still_waits {
            self.shares.since.remove(&own);
        }
        self.insist(!overtaken, "a user got much more than one who waits");
    }
}
