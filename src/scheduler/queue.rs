//! The waiting queue: requests found by their turn, by id, by age and by deadline.
//!
//! The more urgent class goes first, but a class in which somebody has waited for the ageing time takes turns
//! with those above it. Within a class users take turns ([`fairness`](super::fairness)); of one user's
//! requests, the first to come goes first. It has no limit of its own: the engine's permits bound what
//! is ever added.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::batch::{BatchKey, Prefix, RowCost};
use crate::job::{Priority, RequestId, RowId, UserId};
use crate::time::Time;

use super::Entry;
use super::fairness::{FairOrder, RowInTurn, RowsAndWork};

/// A request some of whose rows have no slot yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) request: RequestId,
    pub(crate) user: UserId,
    /// What was asked for.
    pub(crate) priority: Priority,
    /// Rows that wait are the last `rows` of the request; the next to be admitted is `next_choice`.
    pub(crate) next_choice: u32,
    pub(crate) rows: u32,
    pub(crate) key: BatchKey,
    /// Of each row.
    pub(crate) cost: RowCost,
    /// What their prompt begins with.
    pub(crate) prefix: Prefix,
    pub(crate) since: Time,
    pub(crate) deadline: Option<Time>,
}

impl Waiting {
    /// All rows of a request that comes at `since`.
    pub(crate) fn new(since: Time, entry: &Entry, prefix: Prefix) -> Self {
        Waiting {
            request: entry.request,
            user: entry.user,
            priority: entry.priority,
            next_choice: 0,
            rows: entry.rows,
            key: entry.key,
            cost: entry.cost,
            prefix,
            since,
            deadline: entry.deadline,
        }
    }

    /// The rows that still wait.
    pub(crate) fn row_ids(&self) -> impl Iterator<Item = RowId> + use<> {
        let request = self.request;
        (self.next_choice..self.next_choice + self.rows)
            .map(move |choice| RowId { request, choice })
    }

    fn rows_and_work(&self) -> RowsAndWork {
        (self.rows, work(&self.cost))
    }
}

/// What a row counts for in its user's turns: all the work that it may come to. A prompt's token counts like
/// a new one, whatever it takes here: it holds as much memory.
fn work(cost: &RowCost) -> u64 {
    let iterations = u64::from(cost.max_iterations) * u64::from(cost.iterate_work);
    u64::from(cost.begin_work) + iterations + u64::from(cost.finish_work)
}

/// What waits under one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Group {
    rows: u32,
    memory_units: u64,
}

/// Names a place in the order of arrival: smaller is earlier.
pub(crate) type Ticket = u64;

/// Requests that wait. A copy plays them forward: [`overtakers`](super::overtakers).
#[derive(Clone, Debug)]
pub(crate) struct WaitingQueue {
    priority_ageing: Duration,
    max_remembered_users: usize,
    next_ticket: Ticket,
    rows: u32,
    /// First come first.
    line: BTreeMap<Ticket, Waiting>,
    tickets: HashMap<RequestId, Ticket>,
    deadlines: BTreeSet<(Time, Ticket)>,
    groups: BTreeMap<BatchKey, Group>,
    /// The most urgent first.
    classes: [FairOrder; Priority::ALL.len()],
    /// The requests of each class, first come first.
    arrivals: [BTreeSet<Ticket>; Priority::ALL.len()],
    /// Rows admitted so far, and how many that were when a class last had one.
    admitted: u64,
    last_served: [u64; Priority::ALL.len()],
}

impl WaitingQueue {
    /// Nobody waits. Users who wait no more are remembered in each class, so many at most.
    pub(crate) fn new(priority_ageing: Duration, max_remembered_users: usize) -> Self {
        WaitingQueue {
            priority_ageing,
            max_remembered_users,
            next_ticket: 0,
            rows: 0,
            line: BTreeMap::new(),
            tickets: HashMap::new(),
            deadlines: BTreeSet::new(),
            groups: BTreeMap::new(),
            classes: Default::default(),
            arrivals: Default::default(),
            admitted: 0,
            last_served: Default::default(),
        }
    }

    /// Adds a request at the end of its user's.
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
        let class = waiting.priority.index();
        self.arrivals[class].insert(ticket);
        self.classes[class].push(waiting.user, ticket, waiting.rows_and_work());
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
        let class = waiting.priority.index();
        self.arrivals[class].remove(&ticket);
        self.classes[class].remove(waiting.user, ticket, waiting.rows_and_work());
        self.discount(waiting.key, waiting.rows, waiting.cost.memory_units);
        Some(waiting)
    }

    /// Takes the next row of a request out; the last one takes the request with it. Its user's turn is over.
    pub(crate) fn take_row(&mut self, ticket: Ticket) -> RowId {
        self.admitted += 1;
        let waiting = self.line.get_mut(&ticket).expect("the ticket is in line");
        let row = RowId {
            request: waiting.request,
            choice: waiting.next_choice,
        };
        waiting.next_choice += 1;
        waiting.rows -= 1;
        let (key, memory_units) = (waiting.key, waiting.cost.memory_units);
        let (_, work) = waiting.rows_and_work();
        let is_last = waiting.rows == 0;
        let class = waiting.priority.index();
        self.last_served[class] = self.admitted;
        self.classes[class].serve(waiting.user, work, self.max_remembered_users);
        self.discount(key, 1, memory_units);
        if is_last {
            self.remove(row.request);
        }
        row
    }

    /// The request at this place, which is taken.
    pub(crate) fn at(&self, ticket: Ticket) -> &Waiting {
        &self.line[&ticket]
    }

    /// Requests whose rows need more than so many memory units.
    pub(crate) fn larger_than(&self, memory_units: u32) -> impl Iterator<Item = RequestId> {
        let waiting = self.line.values();
        waiting
            .filter(move |waiting| waiting.cost.memory_units > memory_units)
            .map(|waiting| waiting.request)
    }

    /// Whether somebody in this class has waited so long that it takes turns with more urgent ones.
    fn is_due(&self, class: Priority, now: Time) -> bool {
        let oldest = self.arrivals[class.index()].first();
        oldest.is_some_and(|ticket| self.line[ticket].since + self.priority_ageing <= now)
    }

    /// Of classes that have somebody to be admitted, whose turn it is: that of the most urgent, or of those
    /// that are due if they have gone without for longer.
    fn class_in_turn(
        &self,
        now: Time,
        has_somebody: impl Fn(Priority) -> bool,
        last_served: &[u64; Priority::ALL.len()],
    ) -> Option<Priority> {
        let mut present = Priority::ALL
            .into_iter()
            .filter(|class| has_somebody(*class));
        let most_urgent = present.next()?;
        let due = present.filter(|class| self.is_due(*class, now));
        let eligible = std::iter::once(most_urgent).chain(due);
        eligible.min_by_key(|class| last_served[class.index()])
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
        let Some(group) = self.groups.get_mut(&key) else {
            return;
        };
        group.rows -= rows;
        group.memory_units -= u64::from(rows) * u64::from(memory_units);
        if group.rows == 0 {
            self.groups.remove(&key);
        }
    }

    /// Who has waited longest.
    pub(crate) fn oldest(&self) -> Option<&Waiting> {
        self.line.values().next()
    }

    /// How many different keys there are among those who wait.
    pub(crate) fn keys(&self) -> usize {
        self.groups.len()
    }

    /// Whose turn it is, among those with this key if one is given and of users that may have one.
    pub(crate) fn first(
        &self,
        now: Time,
        key: Option<BatchKey>,
        user_may: impl Fn(UserId) -> bool,
    ) -> Option<(Ticket, &Waiting)> {
        let has_key = |ticket: Ticket| key.is_none_or(|key| self.line[&ticket].key == key);
        let firsts = self.classes.each_ref();
        let firsts = firsts.map(|class| class.first(&user_may, has_key));
        let has_somebody = |class: Priority| firsts[class.index()].is_some();
        let class = self.class_in_turn(now, has_somebody, &self.last_served)?;
        let ticket = firsts[class.index()]?;
        Some((ticket, &self.line[&ticket]))
    }

    /// Every waiting row in the order in which they will be admitted if nobody else comes and no more
    /// classes are due than now.
    pub(crate) fn in_turn(&self, now: Time) -> impl Iterator<Item = (RowInTurn, &Waiting)> {
        self.in_turn_of(now, |_| true)
    }

    /// The same, of users that may have one: who may not is left out from then on.
    pub(crate) fn in_turn_of(
        &self,
        now: Time,
        user_may: impl Fn(UserId) -> bool + Copy,
    ) -> impl Iterator<Item = (RowInTurn, &Waiting)> {
        let classes = self.classes.each_ref();
        let of = |ticket: Ticket| self.line[&ticket].rows_and_work();
        let mut rows = classes.map(|class| class.rows(of, user_may).peekable());
        let (mut admitted, mut last_served) = (self.admitted, self.last_served);
        std::iter::from_fn(move || {
            let present = rows.each_mut().map(|rows| rows.peek().is_some());
            let has_somebody = |class: Priority| present[class.index()];
            let class = self.class_in_turn(now, has_somebody, &last_served)?;
            let row = rows[class.index()].next()?;
            admitted += 1;
            last_served[class.index()] = admitted;
            Some((row, &self.line[&row.ticket]))
        })
    }

    /// Whether a request that a user who has none here made now, as normal as most, would go before this row.
    pub(crate) fn newcomer_precedes(&self, row: &RowInTurn) -> bool {
        let normal = Priority::Normal;
        match self.line[&row.ticket].priority {
            class if class == normal => self.classes[normal.index()].newcomer_precedes(row.claim),
            class => class > normal,
        }
    }

    /// The user of this request, the last of that user's to have come, if others who come later may go before it.
    pub(crate) fn newest_may_be_overtaken(&self, now: Time, request: RequestId) -> Option<UserId> {
        let waiting = self
            .tickets
            .get(&request)
            .map(|ticket| &self.line[ticket])?;
        let class = &self.classes[waiting.priority.index()];
        let claim = class.last_claim(waiting.user, waiting.rows_and_work())?;
        let may_be = self.is_behind_classes(now, waiting) || class.newcomer_precedes(claim);
        may_be.then_some(waiting.user)
    }

    /// Whether requests in more urgent classes may go before this one for as long as they come.
    fn is_behind_classes(&self, now: Time, waiting: &Waiting) -> bool {
        waiting.priority > Priority::ALL[0] && !self.is_due(waiting.priority, now)
    }

    /// Whether others who come later may go before this row.
    pub(crate) fn may_be_overtaken(&self, now: Time, row: &RowInTurn) -> bool {
        let waiting = &self.line[&row.ticket];
        let class = &self.classes[waiting.priority.index()];
        self.is_behind_classes(now, waiting) || class.newcomer_precedes(row.claim)
    }

    /// Whether this request waits.
    pub(crate) fn contains(&self, request: RequestId) -> bool {
        self.tickets.contains_key(&request)
    }

    /// Whether such a request would go after all others.
    pub(crate) fn newcomer_is_last(&self) -> bool {
        let [.., normal, _] = &self.classes;
        let [.., later] = &self.arrivals;
        later.is_empty() && normal.newcomer_is_last(|ticket| self.line[&ticket].rows_and_work())
    }

    /// Whether this one is where the next such request would follow.
    pub(crate) fn is_newcomers(&self, request: RequestId) -> bool {
        let Some(ticket) = self.tickets.get(&request) else {
            return false;
        };
        let normal = &self.classes[Priority::Normal.index()];
        normal.is_newcomers(self.line[ticket].user, *ticket)
    }

    /// Whether this request, the last to have come, goes after all others. It may say no where that is a
    /// close thing.
    pub(crate) fn is_last(&self, now: Time, request: RequestId) -> bool {
        let Some(waiting) = self.tickets.get(&request).map(|ticket| &self.line[ticket]) else {
            return false;
        };
        let class = waiting.priority;
        let (earlier, later) = self.arrivals.split_at(class.index());
        let nobody = |classes: &[BTreeSet<Ticket>]| classes.iter().all(BTreeSet::is_empty);
        let takes_turns = self.is_due(class, now) && !nobody(earlier);
        let of = |ticket: Ticket| self.line[&ticket].rows_and_work();
        let is_last_of_class = || self.classes[class.index()].is_last(waiting.user, of);
        nobody(&later[1..]) && !takes_turns && is_last_of_class()
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

    /// How many requests wait.
    pub(crate) fn requests(&self) -> usize {
        self.line.len()
    }

    /// How many requests wait, by what they asked for.
    pub(crate) fn requests_by_priority(&self) -> [u32; Priority::ALL.len()] {
        self.arrivals.each_ref().map(|class| class.len() as u32)
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
            user: UserId::default(),
            priority: Priority::Normal,
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
            prefix: Prefix::default(),
            since: Time::ZERO,
            deadline: deadline.map(Time::from_millis),
        }
    }

    fn queue() -> WaitingQueue {
        let mut queue = WaitingQueue::new(Duration::from_secs(1), 10);
        queue.push(waiting(1, 2, 7, Some(50)));
        queue.push(waiting(2, 1, 8, None));
        queue.push(waiting(3, 3, 7, Some(20)));
        queue
    }

    #[test]
    fn rows_leave_in_order_and_the_last_takes_the_request_along() {
        let mut queue = queue();
        let mut left = Vec::new();
        while let Some((ticket, _)) = queue.first(Time::ZERO, None, |_| true) {
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
            .first(Time::ZERO, Some(BatchKey(8)), |_| true)
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
