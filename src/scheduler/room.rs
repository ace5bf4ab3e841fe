//! What a pass may have after memory ran out in one.
//!
//! When a pass has failed for lack of memory, a smaller one is tried at once, in the same turn. If later passes
//! were planned as large as before, each of them would fail first and cost its time again. So what went well is
//! the limit of those that follow, and twice as much every [`RELAXED_AFTER`], up to what had failed: perhaps
//! somebody else took the memory for a while.

use std::time::Duration;

use crate::batch::{Phase, PlannedRow};
use crate::time::Time;

/// After so long without running out of memory a pass may have twice as much.
const RELAXED_AFTER: Duration = Duration::from_secs(10);

/// The limits in force.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Room {
    iterate: Option<Limit>,
    begin: Option<Limit>,
    /// When `Begin` work found memory only in a pass without iterating rows.
    apart_since: Option<Time>,
}

/// A limit on one kind of work in a pass.
#[derive(Clone, Copy, Debug)]
struct Limit {
    /// So much found no memory.
    failed: u32,
    /// So much did.
    held: u32,
    since: Time,
}

impl Limit {
    fn at(&self, now: Time) -> Option<u32> {
        let doublings = (now - self.since).as_secs() / RELAXED_AFTER.as_secs();
        let factor = u32::try_from(doublings).map_or(u32::MAX, |n| 2u32.saturating_pow(n));
        // One unit is always tried: without, nothing would ever move on.
        let limit = self.held.max(1).saturating_mul(factor);
        (limit < self.failed).then_some(limit)
    }
}

impl Room {
    /// Memory ran out in a pass of `planned`, and not in one of `ran`.
    pub(crate) fn learn(&mut self, now: Time, planned: Work, ran: Work) {
        let learnt = |failed, held, before: Option<Limit>| match failed > held {
            true => Some(Limit {
                failed,
                held,
                since: now,
            }),
            false => before,
        };
        self.begin = learnt(planned.begin, ran.begin, self.begin);
        match ran.iterate == 0 && planned.iterate > 0 {
            // It says nothing of how many iterating rows fit by themselves.
            true => self.apart_since = Some(now),
            false => self.iterate = learnt(planned.iterate, ran.iterate, self.iterate),
        }
    }

    /// Whether `Begin` work and iterating rows had better not share a pass.
    pub(crate) fn is_apart(&self, now: Time) -> bool {
        self.apart_since
            .is_some_and(|since| now - since < RELAXED_AFTER)
    }

    /// Units of `Iterate` work that a pass may have; any number for `u32::MAX`.
    pub(crate) fn iterate_work(&self, now: Time) -> u32 {
        let limit = self.iterate.and_then(|limit| limit.at(now));
        limit.unwrap_or(u32::MAX)
    }

    /// Units of `Begin` work that a pass may have; any number for `u32::MAX`.
    pub(crate) fn begin_work(&self, now: Time) -> u32 {
        let limit = self.begin.and_then(|limit| limit.at(now));
        limit.unwrap_or(u32::MAX)
    }
}

/// The work of a pass, by its kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) iterate: u32,
    pub(crate) begin: u32,
}

impl Work {
    pub(crate) fn of(run: &[PlannedRow]) -> Self {
        let mut work = Work::default();
        for planned in run {
            let sum = match planned.phase {
                Phase::Begin => &mut work.begin,
                Phase::Iterate => &mut work.iterate,
                Phase::Finish => continue,
            };
            *sum = sum.saturating_add(planned.work);
        }
        work
    }
}

/// A row of a pass that memory ran out in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    pub(crate) planned: PlannedRow,
    /// Its `Begin` work cannot be done in parts.
    pub(crate) begins_whole: bool,
}

/// About half of a pass; `None` if it cannot be less. `members`: in the order in which they have a claim to be served.
///
/// `Begin` work is halved first: whoever came last asked for more than there was. When it is down to one unit, or to
/// one row that begins whole, half of the iterating rows stay out, and in the end all of them: then it has a pass to
/// itself, so that it is seen whether it fits at all.
pub(crate) fn smaller(members: &[Member]) -> Option<Vec<PlannedRow>> {
    let begins = |member: &&Member| member.planned.phase == Phase::Begin;
    let (beginners, others): (Vec<&Member>, Vec<&Member>) = members.iter().partition(begins);
    let kept_beginners = match fewer_beginners(&beginners) {
        Some(kept) => {
            let others = others.iter().map(|member| member.planned);
            return Some(others.chain(kept).collect());
        }
        None => beginners.iter().map(|member| member.planned),
    };
    let kept = others.len() / 2;
    if others.is_empty() || (kept == 0 && beginners.is_empty()) {
        return None;
    }
    let others = others[..kept].iter().map(|member| member.planned);
    Some(others.chain(kept_beginners).collect())
}

/// Half of the `Begin` work; `None` if it cannot be less.
fn fewer_beginners(beginners: &[&Member]) -> Option<Vec<PlannedRow>> {
    let all: u32 = beginners.iter().map(|member| member.planned.work).sum();
    let mut left = (all / 2).max(1);
    let mut kept = Vec::new();
    for member in beginners {
        let planned = member.planned;
        let work = match member.begins_whole {
            true if kept.is_empty() || planned.work <= left => planned.work,
            true => 0,
            false => planned.work.min(left),
        };
        if work == 0 {
            break;
        }
        left = left.saturating_sub(work);
        kept.push(PlannedRow { work, ..planned });
    }
    let less = kept.iter().map(|planned| planned.work).sum::<u32>() < all;
    less.then_some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Slot;

    /// `i3` iterates with three units, `b3` begins with three that can be cut, `w3` with three that cannot.
    fn members(text: &str) -> Vec<Member> {
        let member = |(slot, word): (u32, &str)| {
            let (phase, work) = word.split_at(1);
            Member {
                planned: PlannedRow {
                    slot: Slot(slot),
                    phase: match phase {
                        "i" => Phase::Iterate,
                        "f" => Phase::Finish,
                        _ => Phase::Begin,
                    },
                    work: work.parse().expect("a number"),
                },
                begins_whole: phase == "w",
            }
        };
        (0..).zip(text.split_whitespace()).map(member).collect()
    }

    /// What is tried after each failure: slot and work of each row.
    fn check(text: &str, wanted: &[&str]) {
        let mut all = members(text);
        for (attempt, wanted) in wanted.iter().enumerate() {
            let found = smaller(&all);
            let told: Vec<String> = found
                .iter()
                .flatten()
                .map(|planned| format!("{}:{}", planned.slot.0, planned.work))
                .collect();
            assert_eq!(told.join(" "), *wanted, "{text}, attempt {attempt}");
            let Some(found) = found else { return };
            let whole = all.iter().any(|member| member.begins_whole);
            all = found
                .into_iter()
                .map(|planned| Member {
                    planned,
                    begins_whole: whole && planned.phase == Phase::Begin,
                })
                .collect();
        }
    }

    #[test]
    fn rows_are_halved_down_to_one() {
        check("i1 i1 i1 i1 i1", &["0:1 1:1", "0:1", ""]);
        check("i4 i2", &["0:4", ""]);
        check("f3", &[""]);
        check("", &[""]);
    }

    #[test]
    fn begin_work_goes_first_and_has_a_pass_to_itself_in_the_end() {
        check(
            "i1 i1 b5 b3",
            &[
                "0:1 1:1 2:4",
                "0:1 1:1 2:2",
                "0:1 1:1 2:1",
                "0:1 2:1",
                "2:1",
                "",
            ],
        );
        check("b9", &["0:4", "0:2", "0:1", ""]);
        check("b3 b9", &["0:3 1:3", "0:3", "0:1", ""]);
    }

    #[test]
    fn what_begins_whole_is_left_out_whole() {
        check("i2 w2 w2 w2", &["0:2 1:2", "1:2", ""]);
        check("w8 w1", &["0:8", ""]);
    }

    #[test]
    fn limits_are_relaxed_and_in_the_end_forgotten() {
        let at = |seconds: u64| Time::from_millis(seconds * 1_000);
        let mut room = Room::default();
        assert_eq!(
            (room.iterate_work(at(0)), room.begin_work(at(0))),
            (u32::MAX, u32::MAX)
        );
        let work = |iterate, begin| Work { iterate, begin };
        room.learn(at(5), work(10, 100), work(3, 0));
        for (seconds, iterate, begin) in [
            (5, 3, 1),
            (14, 3, 1),
            (15, 6, 2),
            (25, u32::MAX, 4),
            (75, u32::MAX, u32::MAX),
            (100_000_000, u32::MAX, u32::MAX),
        ] {
            let found = (room.iterate_work(at(seconds)), room.begin_work(at(seconds)));
            assert_eq!(found, (iterate, begin), "{seconds} s");
        }
        assert!(!room.is_apart(at(5)));
        // Alone in the end: what iterates may be as much as before.
        room.learn(at(14), work(3, 4), work(0, 1));
        assert_eq!((room.iterate_work(at(14)), room.begin_work(at(14))), (3, 1));
        assert!(room.is_apart(at(23)) && !room.is_apart(at(24)));
        // What was tried in full says nothing of the other kind.
        room.learn(at(15), work(6, 2), work(6, 1));
        assert_eq!((room.iterate_work(at(24)), room.begin_work(at(24))), (6, 1));
    }
}
