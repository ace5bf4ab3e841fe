//! The next step, begun before anybody has asked for it.
//!
//! When a step has been told, it is known which rows go on, and with which tokens. So the card is given their next step
//! at once, and computes it while the host detokenizes, writes logs, answers clients and plans. When the step is
//! planned, it is there or under way. Nothing depends on the plan coming true: a row's token is kept until a step asks for
//! it, and forgotten when the row retires. Keys and values went to where they belong in any case; a retired row's
//! blocks may be another's by then, who writes them later, as everything on a device is done in order.

use std::collections::HashMap;

use super::decode_pass::{DecodePass, DecodeRow, DeviceChoice};
use super::decoder::Decoder;
use crate::batch::Slot;
use crate::model::ModelError;

/// What a row's next step came to.
#[derive(Debug)]
pub(super) enum Computed {
    /// A token, chosen by the device.
    Chosen(DeviceChoice),
    /// Logits, from which the host chooses: `(vocab,)`.
    Logits(Vec<f32>),
}

/// The pass under way, and what came of earlier ones.
pub(super) struct Ahead {
    pass: DecodePass,
    /// The rows of the pass that was launched last and not read yet; those that retired since are gone.
    under_way: Vec<Option<DecodeRow>>,
    /// What was read and not asked for yet. At most one entry for each slot.
    computed: HashMap<Slot, Computed>,
}

impl Ahead {
    pub(super) fn new(pass: DecodePass) -> Self {
        Ahead {
            pass,
            under_way: Vec::new(),
            computed: HashMap::new(),
        }
    }

    /// Whether the device chooses tokens.
    pub(super) fn samples(&self) -> bool {
        self.pass.samples()
    }

    /// Whether the next step of this row has been computed, or is being computed.
    pub(super) fn has(&self, slot: Slot) -> bool {
        let under_way = self.under_way.iter().flatten();
        self.computed.contains_key(&slot) || under_way.into_iter().any(|row| row.slot == slot)
    }

    /// Begins the next step of these rows, whose last one has been taken.
    ///
    /// # Errors
    /// What the device reports, memory above all; then nothing is under way.
    pub(super) fn begin(
        &mut self,
        decoder: &Decoder,
        tables: &[Vec<u32>],
        rows: Vec<DecodeRow>,
    ) -> Result<(), ModelError> {
        // The pass before would be written over.
        self.wait()?;
        if rows.is_empty() {
            return Ok(());
        }
        self.pass.launch(decoder, tables, &rows)?;
        self.under_way = rows.into_iter().map(Some).collect();
        Ok(())
    }

    /// Waits for the pass under way, and keeps what came of it.
    ///
    /// # Errors
    /// What the device reports. The pass is lost, and its rows can be run again.
    pub(super) fn wait(&mut self) -> Result<(), ModelError> {
        let rows = std::mem::take(&mut self.under_way);
        let chosen = |row: &DecodeRow| row.sampling.is_some();
        let choices = match rows.iter().flatten().any(chosen) {
            true => self.pass.choices(rows.len())?,
            false => Vec::new(),
        };
        for (index, row) in rows.into_iter().enumerate() {
            let Some(row) = row else { continue };
            let computed = match row.sampling {
                Some(_) => Computed::Chosen(choices[index]),
                None => Computed::Logits(self.pass.logits(index)?),
            };
            self.computed.insert(row.slot, computed);
        }
        Ok(())
    }

    /// What the row's next step came to, if that has been [waited](Self::wait) for.
    pub(super) fn take(&mut self, slot: Slot) -> Option<Computed> {
        self.computed.remove(&slot)
    }

    /// The row is gone, or begins anew.
    pub(super) fn forget(&mut self, slot: Slot) {
        self.computed.remove(&slot);
        for row in &mut self.under_way {
            if row.is_some_and(|row| row.slot == slot) {
                *row = None;
            }
        }
    }
}
