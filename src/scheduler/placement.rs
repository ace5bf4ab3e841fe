//! Which of several devices should have a waiting row.
//!
//! Nothing is bound before it can run: a row waits in the one queue until a device that has room for it takes it.
//! When a device looks, the rows in turn are dealt out among all that could take them now, and it takes its own; what
//! falls to another is left for that one, which has a place free and looks soon.
//!
//! A row should go where its prompt's beginning has been computed, unless that device has clearly more to do; else to
//! whoever has least to do, a device in the midst of a pass only if it has clearly less. So no device idles while a
//! row waits, but for the pass of a device that it would find its prompt on.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use crate::batch::{Admission, BatchKey, Prefix, RowCost};
use crate::job::UserId;
use crate::time::Time;

use super::device::Device;
use super::queue::{Ticket, Waiting};
use super::{Batching, Scheduler};

/// A device has clearly more to do than another if that is more than this part of a full batch of such rows.
const CLEARLY_MORE: u64 = 4;
/// Loads are counted in so many parts of a slot.
const SCALE: u64 = 1_024;

/// Digests of the blocks that a device's prompts began with lately. What its model really keeps is its own affair: to
/// be wrong here costs time and nothing else.
#[derive(Debug)]
pub(super) struct KnownPrefixes {
    /// So many blocks are remembered.
    limit: usize,
    /// When each was last seen; the first is forgotten first.
    moments: HashMap<u64, u64>,
    by_moment: BTreeMap<u64, u64>,
    next_moment: u64,
}

impl KnownPrefixes {
    pub(super) fn new(limit: usize) -> Self {
        KnownPrefixes {
            limit,
            moments: HashMap::new(),
            by_moment: BTreeMap::new(),
            next_moment: 0,
        }
    }

    /// A row that begins so is computed here.
    pub(super) fn note(&mut self, prefix: &Prefix) {
        // The last block is forgotten first: what is left is still found from the beginning.
        for &block in prefix.0.iter().take(self.limit).rev() {
            let moment = self.next_moment;
            self.next_moment += 1;
            if let Some(old) = self.moments.insert(block, moment) {
                self.by_moment.remove(&old);
            }
            self.by_moment.insert(moment, block);
            if self.moments.len() > self.limit
                && let Some((_, oldest)) = self.by_moment.pop_first()
            {
                self.moments.remove(&oldest);
            }
        }
    }

    /// How many blocks of a beginning are known.
    pub(super) fn matched(&self, prefix: &Prefix) -> usize {
        let known = |block: &&u64| self.moments.contains_key(block);
        prefix.0.iter().take_while(known).count()
    }
}

/// What a device could still take, and how much it has to do then.
#[derive(Clone, Copy, Debug)]
struct Share {
    device: usize,
    slots: u32,
    free_slots: u32,
    free_memory_units: u32,
    /// Of all its rows, in an iteration.
    iterate_work: u64,
    /// It takes nothing before its pass has ended.
    is_in_pass: bool,
}

impl Share {
    fn of(number: usize, device: &Device, looks: usize) -> Self {
        let total = device.ledger.total();
        Share {
            device: number,
            slots: total.slots,
            free_slots: total.slots - device.slots_used(),
            free_memory_units: total.memory_units - device.ledger.memory_units_used(),
            iterate_work: device.iterate_work,
            is_in_pass: number != looks && device.busy_since().is_some(),
        }
    }

    fn has_room(&self, cost: &RowCost) -> bool {
        self.free_slots > 0 && self.free_memory_units >= cost.memory_units
    }

    fn take(&mut self, cost: &RowCost) {
        self.free_slots -= 1;
        self.free_memory_units -= cost.memory_units;
        self.iterate_work += u64::from(cost.iterate_work);
    }

    /// Work for each slot that there is: a device of twice the size has half the load with the same rows.
    fn load(&self) -> u64 {
        self.iterate_work * SCALE / u64::from(self.slots.max(1))
    }
}

impl Scheduler {
    /// What falls to a device of the rows that may be taken now. Of several only: one takes all that it has room for.
    pub(super) fn admit_share(
        &mut self,
        now: Time,
        device: usize,
        key: Option<BatchKey>,
    ) -> Vec<Admission> {
        let own = self.deal(now, device, key);
        let mut admitted = Vec::new();
        for place in own {
            let Some(admission) = self.give_slot(device, place) else {
                break;
            };
            admitted.push(admission);
        }
        admitted
    }

    /// Deals the rows in turn out, until one fits nowhere or the device that looks is full. Returns the places of its
    /// own.
    fn deal(&self, now: Time, looks: usize, key: Option<BatchKey>) -> Vec<Ticket> {
        let mut shares = self.shares(now, looks);
        let dealt: RefCell<HashMap<UserId, u32>> = RefCell::default();
        let may = |user| {
            let more = dealt.borrow().get(&user).copied().unwrap_or(0);
            self.may_run_beside(user, more)
        };
        let mut own = Vec::new();
        for (row, waiting) in self.waiting.in_turn_of(now, &may) {
            // A row may have been looked at before its user's last one was dealt.
            if key.is_some_and(|key| waiting.key != key) || !may(waiting.user) {
                continue;
            }
            let Some(chosen) = self.choose(&shares, looks, waiting) else {
                break;
            };
            shares[chosen].take(&waiting.cost);
            *dealt.borrow_mut().entry(waiting.user).or_default() += 1;
            if shares[chosen].device == looks {
                own.push(row.ticket);
                if shares[chosen].free_slots == 0 {
                    break;
                }
            }
        }
        own
    }

    /// The device that looks, and those that could take rows about now: one whose pass has gone on for longer than a step
    /// should is not waited for.
    fn shares(&self, now: Time, looks: usize) -> Vec<Share> {
        let takes_soon = |device: &Device| match (self.config.batching, device.busy_since()) {
            (Batching::Dynamic, _) => device.is_idle(),
            (Batching::Continuous, None) => true,
            (Batching::Continuous, Some(since)) => since + self.config.step_budget > now,
        };
        self.open_devices()
            .filter(|(number, device)| *number == looks || takes_soon(device))
            .map(|(number, device)| Share::of(number, device, looks))
            .collect()
    }

    /// The place in `shares` of the device that should have a row.
    fn choose(&self, shares: &[Share], looks: usize, waiting: &Waiting) -> Option<usize> {
        let roomy = || {
            let shares = shares.iter().enumerate();
            shares.filter(|(_, share)| share.has_room(&waiting.cost))
        };
        let least = roomy().map(|(_, share)| share.load()).min()?;
        let margin = u64::from(waiting.cost.iterate_work) * SCALE / CLEARLY_MORE;
        let best = roomy().min_by_key(|(_, share)| {
            let has_clearly_more = share.load() > least + margin;
            let known = &self.devices[share.device].known;
            (
                has_clearly_more,
                Reverse(known.matched(&waiting.prefix)),
                share.is_in_pass,
                share.load(),
                share.device != looks,
            )
        });
        best.map(|(place, _)| place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(blocks: &[u64]) -> Prefix {
        Prefix(blocks.into())
    }

    #[test]
    fn what_came_last_is_known_from_its_beginning() {
        let mut known = KnownPrefixes::new(4);
        known.note(&prefix(&[1, 2, 3]));
        for (blocks, matched) in [
            (&[1, 2, 3, 4][..], 3),
            (&[1, 2], 2),
            (&[1, 9, 3], 1),
            (&[2, 3], 2),
            (&[9, 1], 0),
            (&[], 0),
        ] {
            assert_eq!(known.matched(&prefix(blocks)), matched, "{blocks:?}");
        }
        // Two of the four places go to others: the end of the first is forgotten.
        known.note(&prefix(&[7, 8]));
        assert_eq!(known.matched(&prefix(&[1, 2, 3])), 2);
        assert_eq!(known.matched(&prefix(&[7, 8])), 2);
        // Who is seen again stays.
        known.note(&prefix(&[1, 2]));
        known.note(&prefix(&[5, 6]));
        assert_eq!(known.matched(&prefix(&[1, 2])), 2);
        assert_eq!(known.matched(&prefix(&[7])), 0);
        assert!(known.moments.len() <= 4 && known.by_moment.len() == known.moments.len());
        // Of one that is too long, as much as there is room for.
        known.note(&prefix(&[11, 12, 13, 14, 15, 16]));
        assert_eq!(known.matched(&prefix(&[11, 12, 13, 14, 15, 16])), 4);
    }
}
