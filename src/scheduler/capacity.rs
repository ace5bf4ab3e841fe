//! What the running rows may hold at once: slots and units of the model's memory.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::batch::{Capacity, Slot};

/// Slots and memory, reserved when a row is admitted and released when it has ended.
#[derive(Debug)]
pub(crate) struct Ledger {
    total: Capacity,
    /// The lowest slot is given out first, so that a half-empty batch stays at the front of caches.
    free_slots: BinaryHeap<Reverse<u32>>,
    memory_units_used: u32,
}

impl Ledger {
    pub(crate) fn new(total: Capacity) -> Self {
        Ledger {
            total,
            free_slots: (0..total.slots).map(Reverse).collect(),
            memory_units_used: 0,
        }
    }

    /// A slot and `memory_units`, or nothing if either is short.
    pub(crate) fn reserve(&mut self, memory_units: u32) -> Option<Slot> {
        if memory_units > self.total.memory_units - self.memory_units_used {
            return None;
        }
        let Reverse(slot) = self.free_slots.pop()?;
        self.memory_units_used += memory_units;
        Some(Slot(slot))
    }

    /// Gives back what [`reserve`](Self::reserve) gave.
    pub(crate) fn release(&mut self, slot: Slot, memory_units: u32) {
        self.free_slots.push(Reverse(slot.0));
        self.memory_units_used -= memory_units;
    }

    pub(crate) fn total(&self) -> Capacity {
        self.total
    }

    pub(crate) fn memory_units_used(&self) -> u32 {
        self.memory_units_used
    }

    /// Whether not even the smallest row finds room.
    pub(crate) fn is_full(&self) -> bool {
        self.free_slots.is_empty() || self.memory_units_used == self.total.memory_units
    }

    pub(crate) fn slots_used(&self) -> u32 {
        self.total.slots - self.free_slots.len() as u32
    }
}
