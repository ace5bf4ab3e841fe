//! Whose row comes next: users take turns, measured by the work that they have had.
//!
//! Start-time fair queueing (Goyal, Vin and Cheng, 1996): each user has a start tag, the point in virtual
//! time at which its next row is due; the smallest is next, and each row moves its user's tag on by the
//! row's work. Virtual time moves on by the work done, divided among all who have a share in it. A user
//! that comes anew starts at the present: before whoever has had more than that, behind nobody for longer than a turn,
//! and never again and again before somebody else.
//!
//! What is known of users lives as long as somebody waits; a user that does not wait is remembered only while it
//! has had more than its share, and only so many are.

use std::cmp::Reverse;
use std::collections::btree_set;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use crate::job::UserId;

use super::queue::Ticket;

/// Virtual time is counted in so many parts of a unit of work: it moves by fractions of them.
const SCALE: u64 = 1 << 10;

/// Of a waiting request: rows that wait, and the work of each.
pub(crate) type RowsAndWork = (u32, u64);

/// When a user's next row is due. The smaller goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Claim {
    start: u64,
    /// It has had a row since it came: of two with equal tags, who has had none goes first.
    served: bool,
    /// Of two with all the rest equal, the first to have made its claim.
    number: u64,
}

/// One user's waiting requests.
#[derive(Clone, Debug)]
struct Line {
    claim: Claim,
    /// First come first.
    requests: BTreeSet<Ticket>,
    /// Work of all rows in it.
    work: u64,
}

/// The users of one class of priority.
#[derive(Clone, Debug, Default)]
pub(crate) struct FairOrder {
    virtual_time: u64,
    next_number: u64,
    /// Users who wait, and those remembered.
    lines: BTreeMap<UserId, Line>,
    /// Those who wait, in the order of their turns.
    turns: BTreeSet<(Claim, UserId)>,
    /// Those who do not, and are ahead of virtual time.
    remembered: BTreeSet<(u64, UserId)>,
}

impl Line {
    /// The line with its last request; `None` if it does not wait.
    fn with_last(&self) -> Option<(&Line, Ticket)> {
        Some((self, *self.requests.last()?))
    }

    /// Its claim when so much of its work has been admitted.
    fn claim_after(&self, work: u64) -> Claim {
        Claim {
            start: self.claim.start.saturating_add(work * SCALE),
            served: self.claim.served || work > 0,
            ..self.claim
        }
    }
}

impl FairOrder {
    /// A request with so many rows of so much work each comes to wait.
    pub(crate) fn push(&mut self, user: UserId, ticket: Ticket, (rows, work): RowsAndWork) {
        let claim = Claim {
            start: self.virtual_time,
            served: false,
            number: self.next_number,
        };
        self.next_number += 1;
        let line = self.lines.entry(user).or_insert(Line {
            claim,
            requests: BTreeSet::new(),
            work: 0,
        });
        if line.requests.is_empty() {
            self.remembered.remove(&(line.claim.start, user));
            line.claim = Claim {
                start: line.claim.start.max(claim.start),
                ..claim
            };
            self.turns.insert((line.claim, user));
        }
        line.requests.insert(ticket);
        line.work += u64::from(rows) * work;
    }

    /// A request leaves, with so many rows that still waited.
    pub(crate) fn remove(&mut self, user: UserId, ticket: Ticket, (rows, work): RowsAndWork) {
        let Some(line) = self.lines.get_mut(&user) else {
            return;
        };
        if !line.requests.remove(&ticket) {
            return;
        }
        line.work -= u64::from(rows) * work;
        if line.requests.is_empty() {
            self.turns.remove(&(line.claim, user));
            self.remembered.insert((line.claim.start, user));
        }
        self.forget_those_behind();
    }

    /// A row of this user is admitted: its turn is over. Of those remembered, at most `max_remembered` stay.
    pub(crate) fn serve(&mut self, user: UserId, work: u64, max_remembered: usize) {
        let sharers = self.lines.len() as u64;
        let Some(line) = self.lines.get_mut(&user) else {
            return;
        };
        line.work -= work;
        self.turns.remove(&(line.claim, user));
        line.claim = Claim {
            start: line.claim.start.saturating_add(work * SCALE),
            served: true,
            number: self.next_number,
        };
        self.turns.insert((line.claim, user));
        self.next_number += 1;
        self.virtual_time = self.virtual_time.saturating_add(work * SCALE / sharers);
        // Newcomers do not go before the past.
        if let Some((first, _)) = self.turns.first() {
            self.virtual_time = self.virtual_time.max(first.start);
        }
        while self.remembered.len() > max_remembered {
            // The one that would be forgotten soonest loses least by it.
            let Some((_, user)) = self.remembered.pop_first() else {
                break;
            };
            self.lines.remove(&user);
        }
        self.forget_those_behind();
    }

    /// Who is not ahead of virtual time is like somebody who never came; and when nobody waits, nobody
    /// is.
    fn forget_those_behind(&mut self) {
        if self.turns.is_empty() {
            *self = FairOrder::default();
            return;
        }
        while let Some(&(start, user)) = self.remembered.first()
            && start <= self.virtual_time
        {
            self.remembered.pop_first();
            self.lines.remove(&user);
        }
    }

    /// The first waiting request, in the order of turns, of a user and of a kind that may be taken.
    pub(crate) fn first(
        &self,
        user_may: impl Fn(UserId) -> bool,
        may: impl Fn(Ticket) -> bool,
    ) -> Option<Ticket> {
        self.turns
            .iter()
            .filter(|(_, user)| user_may(*user))
            .find_map(|(_, user)| {
                let mut requests = self.lines[user].requests.iter();
                requests.find(|ticket| may(**ticket)).copied()
            })
    }

    /// Users of whom something is known.
    #[cfg(test)]
    fn known_users(&self) -> usize {
        self.lines.len()
    }

    /// Whether a row of a user that came now would go before one with this claim.
    pub(crate) fn newcomer_precedes(&self, claim: Claim) -> bool {
        (claim.start, claim.served) > (self.virtual_time, false)
    }

    /// What the first row of this user's last request will go by; of that request, so many rows wait.
    pub(crate) fn last_claim(&self, user: UserId, (rows, work): RowsAndWork) -> Option<Claim> {
        let line = self.lines.get(&user)?;
        Some(line.claim_after(line.work - u64::from(rows) * work))
    }

    /// Whether the last request of this user comes after all other rows that wait. It may say no where
    /// that is a close thing.
    pub(crate) fn is_last(&self, user: UserId, of: impl Fn(Ticket) -> RowsAndWork) -> bool {
        let Some((own, own_ticket)) = self.lines.get(&user).and_then(Line::with_last) else {
            return false;
        };
        let (rows, work) = of(own_ticket);
        let first = own.claim_after(own.work - u64::from(rows) * work);
        self.lines
            .iter()
            .all(|(other, line)| match line.with_last() {
                Some((line, ticket)) if *other != user => {
                    let (_, work) = of(ticket);
                    let last = line.claim_after(line.work - work);
                    let key = |claim: Claim| (claim.start, claim.served);
                    key(last) < key(first) || (!last.served && last < first)
                }
                _ => true,
            })
    }

    /// Whether a user that came now would go after all rows that wait.
    pub(crate) fn newcomer_is_last(&self, of: impl Fn(Ticket) -> RowsAndWork) -> bool {
        let mut lines = self.lines.values().filter_map(Line::with_last);
        lines.all(|(line, ticket)| {
            let (_, work) = of(ticket);
            !self.newcomer_precedes(line.claim_after(line.work - work))
        })
    }

    /// Whether this request, of a user that has just come, is where the next such user's would follow.
    pub(crate) fn is_newcomers(&self, user: UserId, ticket: Ticket) -> bool {
        self.lines.get(&user).is_some_and(|line| {
            let is_now = line.claim.start == self.virtual_time && !line.claim.served;
            is_now && line.requests.first() == Some(&ticket)
        })
    }

    /// Every waiting row in the order in which they would be admitted if nobody else came: its request, its claim,
    /// and whether it is the request's first. A user that may not have the row is left out from then on.
    pub(crate) fn rows<'a, F, M>(&'a self, of: F, user_may: M) -> RowsInTurn<'a, F, M>
    where
        F: Fn(Ticket) -> RowsAndWork,
        M: Fn(UserId) -> bool,
    {
        let mut lines = Vec::with_capacity(self.turns.len());
        let mut heap = BinaryHeap::with_capacity(self.turns.len());
        for (claim, user) in &self.turns {
            heap.push(Reverse((*claim, lines.len())));
            lines.push(LineInTurn {
                user: *user,
                requests: self.lines[user].requests.iter(),
                current: None,
            });
        }
        RowsInTurn {
            of,
            user_may,
            lines,
            heap,
            next_number: self.next_number,
        }
    }
}

struct LineInTurn<'a> {
    user: UserId,
    requests: btree_set::Iter<'a, Ticket>,
    /// The request that it is at, with what is left of it.
    current: Option<(Ticket, RowsAndWork)>,
}

/// See [`FairOrder::rows`].
pub(crate) struct RowsInTurn<'a, F, M> {
    of: F,
    user_may: M,
    lines: Vec<LineInTurn<'a>>,
    heap: BinaryHeap<Reverse<(Claim, usize)>>,
    next_number: u64,
}

/// A waiting row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowInTurn {
    pub(crate) ticket: Ticket,
    /// It is the first of its request's waiting rows.
    pub(crate) is_first: bool,
    pub(crate) claim: Claim,
}

impl<F, M> Iterator for RowsInTurn<'_, F, M>
where
    F: Fn(Ticket) -> RowsAndWork,
    M: Fn(UserId) -> bool,
{
    type Item = RowInTurn;

    fn next(&mut self) -> Option<RowInTurn> {
        let (claim, index) = loop {
            let Reverse((claim, index)) = self.heap.pop()?;
            if (self.user_may)(self.lines[index].user) {
                break (claim, index);
            }
        };
        let line = &mut self.lines[index];
        let mut is_first = false;
        let (ticket, (rows, work)) = match line.current.take() {
            Some(current) => current,
            None => {
                is_first = true;
                let ticket = *line.requests.next().expect("lines in turn have requests");
                (ticket, (self.of)(ticket))
            }
        };
        if rows > 1 {
            line.current = Some((ticket, (rows - 1, work)));
        }
        if rows > 1 || line.requests.len() > 0 {
            let next = Claim {
                start: claim.start.saturating_add(work * SCALE),
                served: true,
                number: self.next_number,
            };
            self.next_number += 1;
            self.heap.push(Reverse((next, index)));
        }
        Some(RowInTurn {
            ticket,
            is_first,
            claim,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request of one row, named by its ticket.
    #[derive(Clone, Copy)]
    struct Asked {
        user: u64,
        ticket: Ticket,
        work: u64,
    }

    /// An order, and what waits in it.
    #[derive(Default)]
    struct Case {
        order: FairOrder,
        waiting: BTreeMap<Ticket, Asked>,
        max_remembered: usize,
    }

    impl Case {
        fn new() -> Self {
            Case {
                max_remembered: 100,
                ..Case::default()
            }
        }

        fn push(&mut self, user: u64, ticket: Ticket, work: u64) {
            self.order.push(UserId(user), ticket, (1, work));
            let asked = Asked { user, ticket, work };
            self.waiting.insert(ticket, asked);
        }

        fn take(&mut self) -> Option<Asked> {
            let ticket = self.order.first(|_| true, |_| true)?;
            let asked = self.waiting.remove(&ticket).expect("it waits");
            let user = UserId(asked.user);
            self.order.serve(user, asked.work, self.max_remembered);
            self.order.remove(user, asked.ticket, (0, asked.work));
            Some(asked)
        }

        /// Users in the order of their turns.
        fn turns(&mut self, count: usize) -> Vec<u64> {
            std::iter::from_fn(|| self.take())
                .take(count)
                .map(|asked| asked.user)
                .collect()
        }
    }

    #[test]
    fn users_take_turns_by_the_work_they_had() {
        let mut case = Case::new();
        for ticket in 0..6 {
            case.push(1, ticket, 10);
        }
        case.push(2, 6, 30);
        case.push(2, 7, 30);
        // Three times the work, a third of the turns.
        assert_eq!(case.turns(8), [1, 2, 1, 1, 2, 1, 1, 1]);
    }

    #[test]
    fn a_newcomer_goes_before_who_had_a_turn_and_after_who_came_before_it() {
        let mut case = Case::new();
        for ticket in 0..10 {
            case.push(1, ticket, 10);
        }
        assert_eq!(case.turns(3), [1, 1, 1]);
        for (ticket, user) in (10..).zip([2, 3, 4]) {
            case.push(user, ticket, 10);
        }
        assert_eq!(case.turns(4), [2, 3, 4, 1]);
    }

    #[test]
    fn who_comes_back_is_still_ahead_by_what_it_had() {
        let mut case = Case::new();
        case.push(1, 0, 100);
        case.push(2, 1, 10);
        case.push(2, 2, 10);
        case.push(2, 3, 10);
        assert_eq!(case.turns(2), [1, 2]);
        case.push(1, 4, 100);
        assert_eq!(case.turns(3), [2, 2, 1]);
    }

    #[test]
    fn what_was_told_of_the_order_comes_true() {
        let mut case = Case::new();
        for ticket in 0..40 {
            let (user, work) = (ticket * 7 % 5, 1 + ticket * 3 % 11);
            case.push(user, ticket, work);
            let of = |ticket: Ticket| (1, case.waiting[&ticket].work);
            let rows: Vec<Ticket> = case
                .order
                .rows(of, |_| true)
                .map(|row| row.ticket)
                .collect();
            let is_last = case.order.is_last(UserId(user), of);
            assert!(
                !is_last || rows.last() == Some(&ticket),
                "{ticket} of {rows:?}"
            );
            if ticket % 4 == 3 {
                case.take();
            }
        }
        let of = |ticket: Ticket| (1, case.waiting[&ticket].work);
        let told: Vec<Ticket> = case
            .order
            .rows(of, |_| true)
            .map(|row| row.ticket)
            .collect();
        let came: Vec<Ticket> = std::iter::from_fn(|| case.take())
            .map(|asked| asked.ticket)
            .collect();
        assert_eq!(told, came);
    }

    #[test]
    fn rows_of_one_request_are_so_many_turns() {
        let mut order = FairOrder::default();
        order.push(UserId(1), 0, (3, 10));
        order.push(UserId(2), 1, (1, 10));
        let rows = order.rows(|ticket| (if ticket == 0 { 3 } else { 1 }, 10), |_| true);
        let rows: Vec<(Ticket, bool)> = rows.map(|row| (row.ticket, row.is_first)).collect();
        assert_eq!(rows, [(0, true), (1, true), (0, false), (0, false)]);
    }

    #[test]
    fn no_more_are_remembered_than_may_be() {
        let mut case = Case::new();
        case.max_remembered = 5;
        // Somebody always waits, and everybody else comes once.
        for ticket in 0..1_000 {
            case.push(ticket, ticket, 10);
            case.push(10_000 + ticket, 1_000 + ticket, 10);
            case.take();
        }
        let waiting = case.waiting.len();
        assert!(case.order.known_users() <= waiting + 6);
        while case.take().is_some() {}
        assert_eq!(
            case.order.known_users(),
            0,
            "nobody waits: nobody is remembered"
        );
    }

    #[test]
    fn who_leaves_owes_nothing_for_what_it_did_not_have() {
        let mut case = Case::new();
        case.push(1, 0, 1_000);
        case.push(2, 1, 10);
        case.order.remove(UserId(1), 0, (1, 1_000));
        case.waiting.remove(&0);
        case.push(1, 2, 10);
        case.push(2, 3, 10);
        assert_eq!(case.turns(3), [2, 1, 2]);
    }
}
