//! The waiting queue: requests in the order of their arrival, found by id, by age and by deadline.
//!
//! It has no limit of its own: the engine's permits bound what is ever added.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::batch::{BatchKey, RowCost};
use crate::job::{RequestId, RowId};
use crate::time::Time;

/// A request some of whose rows have no slot yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) request: RequestId,
    /// Rows that wait are the last `rows` of the request; the next to be admitted is `next_choice`.
    pub(crate) next_choice: u32,
    pub(crate) rows: u32,
    pub(crate) key: BatchKey,
    /// Of each row.
    pub(crate) cost: RowCost,
    pub(crate) since: Time,
    pub(crate) deadline: Option<Time>,
}

impl Waiting {
    /// The rows that still wait.
    pub(crate) fn row_ids(&self) -> impl Iterator<Item = RowId> + use<> {
        let request = self.request;
        (self.next_choice..self.next_choice + self.rows)
            .map(move |choice| RowId { request, choice })
    }
}

/// What waits under one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Group {
    rows: u32,
    memory_units: u64,
}

/// Names a place in the queue: smaller is earlier.
pub(crate) type Ticket = u64;

/// Requests that wait, first come first.
#[derive(Debug, Default)]
pub(crate) struct WaitingQueue {
    next_ticket: Ticket,
    rows: u32,
    line: BTreeMap<Ticket, Waiting>,
    tickets: HashMap<RequestId, Ticket>,
    deadlines: BTreeSet<(Time, Ticket)>,
    groups: BTreeMap<BatchKey, Group>,
}

impl WaitingQueue {
    /// Adds a request at the end.
    pub(crate) fn push(&mut self, waiting: Waiting) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.rows += waiting.rows;
        let group = self.groups.entry(waiting.key).or_default();
        group.rows += waiting.rows;
        group.memory_units += u64::from(waiting.rows) * u64::from(waiting.cost.memory_units);
        if let Some(deadline) = waiting.deadline {
            self.deadlines.insert((deadline, ticket));
        }
        self.tickets.insert(waiting.request, ticket);
        self.line.insert(ticket, waiting);
    }

    /// Takes a request out, with all its rows that still wait.
    pub(crate) fn remove(&mut self, request: RequestId) -> Option<Waiting> {
        let ticket = self.tickets.remove(&request)?;
        let waiting = self.line.remove(&ticket)?;
        if let Some(deadline) = waiting.deadline {
            self.deadlines.remove(&(deadline, ticket));
        }
        self.discount(waiting.key, waiting.rows, waiting.cost.memory_units);
        Some(waiting)
    }

    /// Takes the next row of a request out; the last one takes the request with it.
    pub(crate) fn take_row(&mut self, ticket: Ticket) -> RowId {
        let waiting = self.line.get_mut(&ticket).expect("the ticket is in line");
        let row = RowId {
            request: waiting.request,
            choice: waiting.next_choice,
        };
        if waiting.rows == 1 {
            self.remove(row.request);
        } else {
            waiting.next_choice += 1;
            waiting.rows -= 1;
            let (key, memory_units) = (waiting.key, waiting.cost.memory_units);
            self.discount(key, 1, memory_units);
        }
        row
    }

    /// Takes out every request whose deadline is not after `now`.
    pub(crate) fn expire(&mut self, now: Time) -> Vec<Waiting> {
        let mut expired = Vec::new();
        while let Some(&(deadline, ticket)) = self.deadlines.first()
            && deadline <= now
        {
            let request = self.line[&ticket].request;
            expired.extend(self.remove(request));
        }
        expired
    }

    fn discount(&mut self, key: BatchKey, rows: u32, memory_units: u32) {
        self.rows -= rows;
        let group = self.groups.get_mut(&key).expect("a waiting row's group");
        group.rows -= rows;
        group.memory_units -= u64::from(rows) * u64::from(memory_units);
        if group.rows == 0 {
            self.groups.remove(&key);
        }
    }

    /// Who has waited longest.
    pub(crate) fn front(&self) -> Option<&Waiting> {
        self.line.values().next()
    }

    /// How many different keys there are among those who wait.
    pub(crate) fn keys(&self) -> usize {
        self.groups.len()
    }

    /// Who has waited longest, among those with this key if one is given.
    pub(crate) fn first(&self, key: Option<BatchKey>) -> Option<(Ticket, &Waiting)> {
        self.line
            .iter()
            .find(|(_, waiting)| key.is_none_or(|key| waiting.key == key))
            .map(|(&ticket, waiting)| (ticket, waiting))
    }

    /// The key of a group that could fill a batch of `slots` rows or `memory_units`, if there is one.
    pub(crate) fn full_group(&self, slots: u32, memory_units: u32) -> Option<BatchKey> {
        self.groups
            .iter()
            .find(|(_, group)| {
                group.rows >= slots || group.memory_units >= u64::from(memory_units.max(1))
            })
            .map(|(&key, _)| key)
    }

    /// The earliest deadline.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// Everybody, first come first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Waiting> {
        self.line.values()
    }

    /// How many requests wait.
    pub(crate) fn requests(&self) -> usize {
        self.line.len()
    }

    /// How many rows wait.
    pub(crate) fn rows(&self) -> u32 {
        self.rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(number: u128, rows: u32, key: u64, deadline: Option<u64>) -> Waiting {
        Waiting {
            request: RequestId::from_u128(number),
            next_choice: 0,
            rows,
            key: BatchKey(key),
            cost: RowCost {
                iterate_work: 1,
                finish_work: 0,
                begin_work: 1,
                max_iterations: 1,
                memory_units: 10,
            },
            since: Time::ZERO,
            deadline: deadline.map(Time::from_millis),
        }
    }

    fn queue() -> WaitingQueue {
        let mut queue = WaitingQueue::default();
        queue.push(waiting(1, 2, 7, Some(50)));
        queue.push(waiting(2, 1, 8, None));
        queue.push(waiting(3, 3, 7, Some(20)));
        queue
    }

    #[test]
    fn rows_leave_in_order_and_the_last_takes_the_request_along() {
        let mut queue = queue();
        let mut left = Vec::new();
        while let Some((ticket, _)) = queue.first(None) {
            let row = queue.take_row(ticket);
            left.push((row.request, row.choice));
        }
        let wanted = [(1, 0), (1, 1), (2, 0), (3, 0), (3, 1), (3, 2)];
        let wanted = wanted.map(|(number, choice)| (RequestId::from_u128(number), choice));
        assert_eq!(left, wanted);
        assert_eq!((queue.rows(), queue.requests()), (0, 0));
        assert_eq!(queue.next_deadline(), None);
    }

    #[test]
    fn groups_are_full_by_rows_or_by_memory() {
        let mut queue = queue();
        assert_eq!(queue.full_group(5, 1_000), Some(BatchKey(7)));
        assert_eq!(queue.full_group(6, 1_000), None);
        assert_eq!(queue.full_group(6, 50), Some(BatchKey(7)));
        queue.remove(RequestId::from_u128(3));
        assert_eq!(queue.full_group(5, 1_000), None);
        let first = queue
            .first(Some(BatchKey(8)))
            .map(|(_, first)| first.request);
        assert_eq!(first, Some(RequestId::from_u128(2)));
    }

    #[test]
    fn the_late_leave_and_nobody_else() {
        let mut queue = queue();
        assert_eq!(queue.next_deadline(), Some(Time::from_millis(20)));
        assert_eq!(queue.expire(Time::from_millis(19)), []);
        let late = queue.expire(Time::from_millis(20));
        assert_eq!(late, [waiting(3, 3, 7, Some(20))]);
        assert_eq!(late[0].row_ids().count(), 3);
        assert_eq!((queue.rows(), queue.requests()), (3, 2));
        assert_eq!(queue.expire(Time::from_millis(60)).len(), 1);
    }
}
