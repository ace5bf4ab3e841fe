//! A pass of decoding rows alone, one token of each, from tensors that stay where they are.
//!
//! What changes from step to step (tokens, positions, slots, block tables, how each row samples) is written into the
//! same memory before each pass, and logits and chosen tokens are found in the same memory after it. So a card can
//! record the pass once for each bucket of rows and be told of all of it in one call. Rows up to the bucket are padding:
//! they read and write a block that belongs to nobody.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor};

use super::buckets::bucket_of;
use super::decoder::Decoder;
use super::kv_cache::blocks_for;
use super::sampling::DeviceSampling;
use crate::batch::Slot;
use crate::kernels::attention::{DeviceLayout, TokenLayout};
use crate::kernels::refill::refill;
use crate::kernels::sampling::{ROW_WORDS, RowSampling, SampleRows, sample_rows};
use crate::model::device::graph::{GraphSwitch, StepGraph};

/// Words of a row beside those that say how it samples: its token, slot and position, and how many it has chosen.
const OWN_WORDS: usize = 4;

/// A row's part.
#[derive(Clone, Copy, Debug)]
pub(super) struct DecodeRow {
    pub(super) slot: Slot,
    pub(super) token: u32,
    pub(super) position: u32,
    /// `None`: the host chooses from the logits.
    pub(super) sampling: Option<DeviceSampling>,
}

/// What a device chose for a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct DeviceChoice {
    /// [`NO_TOKEN`](crate::kernels::sampling::NO_TOKEN) where the logits are not finite.
    pub(super) token: u32,
    /// The model's own; 0 where it was not asked for.
    pub(super) logprob: f32,
}

/// The pass, and what it works on.
pub(super) struct DecodePass {
    device: Device,
    samples: bool,
    /// (words of all rows,) u32: of a bucket of n rows tokens, slots, positions, tokens chosen so far, and n times
    /// [`ROW_WORDS`].
    words: Tensor,
    /// (slots + 1, blocks of a row) u32. The last belongs to padding.
    tables: Tensor,
    /// What `tables` holds.
    written_tables: Vec<Vec<u32>>,
    /// (rows, vocab) f32
    logits: Tensor,
    /// (rows,) f32
    logprobs: Tensor,
    /// Positions that a row may reach.
    max_context: usize,
    /// The block of padding rows.
    spare_block: u32,
    /// By bucket; as many as [`bucket_of`] has up to the number of slots.
    graphs: BTreeMap<usize, StepGraph>,
    switch: GraphSwitch,
}

impl DecodePass {
    /// For so many slots of a decoder, whose rows reach `max_context` positions. `record`: as CUDA graphs, where the device
    /// can.
    ///
    /// # Errors
    /// The device is out of memory.
    pub(super) fn new(
        decoder: &Decoder,
        slots: usize,
        max_context: usize,
        record: bool,
    ) -> Result<Self> {
        let device = decoder.device().clone();
        let rows = bucket_of(slots);
        let row_blocks = blocks_for(max_context).max(1);
        let zeros = |shape: (usize, usize), dtype| Tensor::zeros(shape, dtype, &device);
        let pass = DecodePass {
            words: Tensor::zeros(rows * (OWN_WORDS + ROW_WORDS), DType::U32, &device)?,
            tables: zeros((slots + 1, row_blocks), DType::U32)?,
            written_tables: vec![Vec::new(); slots],
            logits: zeros((rows, decoder.config().vocab_size), DType::F32)?,
            logprobs: Tensor::zeros(rows, DType::F32, &device)?,
            max_context,
            spare_block: decoder.spare_block(),
            graphs: BTreeMap::new(),
            switch: GraphSwitch::new(record, &device),
            samples: device.is_cuda(),
            device,
        };
        let padding_table = slots * row_blocks;
        refill(&pass.tables, padding_table, &[pass.spare_block])?;
        Ok(pass)
    }

    /// Whether the device chooses tokens: where it does not, every row is the host's.
    pub(super) fn samples(&self) -> bool {
        self.samples
    }

    /// The same pass, whose kernel for that is emulated.
    #[cfg(test)]
    pub(super) fn sampling(mut self) -> Self {
        self.samples = true;
        self
    }

    /// Has the device run the rows, of different slots, whose blocks are in `tables`. It may still be at it when this
    /// returns.
    ///
    /// # Errors
    /// What the device reports, memory above all; the rows' keys and values may then be stored or not.
    pub(super) fn launch(
        &mut self,
        decoder: &Decoder,
        tables: &[Vec<u32>],
        rows: &[DecodeRow],
    ) -> Result<()> {
        let bucket = bucket_of(rows.len());
        refill(&self.words, 0, &words(rows, bucket, self.padding_slot()))?;
        self.write_tables(tables, rows)?;
        let places = Places::of(&self.words, bucket)?;
        let in_place = decoder.takes_device_layout();
        let layout = match in_place {
            true => self.layout_in_place(&places)?,
            false => self.layout_of(tables, rows, bucket)?,
        };
        let samples = self.samples();
        let (logits, logprobs) = (&self.logits, self.logprobs.narrow(0, 0, bucket)?);
        let body = || {
            let hidden = decoder.forward_all(&places.tokens, &layout)?;
            let found = decoder.logits_on_device(&hidden)?;
            logits.slice_set(&found.to_dtype(DType::F32)?.contiguous()?, 0, 0)?;
            if samples {
                sample_rows(&SampleRows {
                    logits: &found,
                    rows: &places.rows,
                    chosen: &places.chosen,
                    seen: None,
                    tokens: &places.tokens,
                    logprobs: &logprobs,
                })?;
            }
            Ok(())
        };
        if !in_place {
            // What the host put into the layout is of this pass alone.
            return body();
        }
        let graph = self.graphs.entry(bucket).or_default();
        graph.run(&self.switch, &self.device, &body)
    }

    /// What the device chose for each of the last pass' rows: waits for it.
    ///
    /// # Errors
    /// What the device reports, also of the pass.
    pub(super) fn choices(&self, rows: usize) -> Result<Vec<DeviceChoice>> {
        let tokens = self.words.narrow(0, 0, rows)?.to_vec1::<u32>()?;
        let logprobs = self.logprobs.narrow(0, 0, rows)?.to_vec1::<f32>()?;
        let choices = tokens.into_iter().zip(logprobs);
        Ok(choices
            .map(|(token, logprob)| DeviceChoice { token, logprob })
            .collect())
    }

    /// The logits of one of the last pass' rows: `(vocab,)`.
    ///
    /// # Errors
    /// What the device reports, also of the pass.
    pub(super) fn logits(&self, row: usize) -> Result<Vec<f32>> {
        self.logits.get(row)?.to_vec1()
    }

    fn padding_slot(&self) -> u32 {
        self.written_tables.len() as u32
    }

    /// Brings the tables of these rows up to date.
    fn write_tables(&mut self, tables: &[Vec<u32>], rows: &[DecodeRow]) -> Result<()> {
        let stride = self.tables.dim(1)?;
        for row in rows {
            let slot = row.slot.index();
            let (table, written) = (&tables[slot], &mut self.written_tables[slot]);
            if table != written {
                // If it fails, it is not known what is there.
                written.clear();
                refill(&self.tables, slot * stride, table)?;
                written.clone_from(table);
            }
        }
        Ok(())
    }

    /// Where the rows' keys and values are, as the device reads it in each pass.
    fn layout_in_place(&self, places: &Places) -> Result<TokenLayout> {
        Ok(TokenLayout::on_device(DeviceLayout::of_tensors(
            places.slots.clone(),
            places.positions.clone(),
            self.tables.clone(),
            self.max_context,
        )?))
    }

    /// The same for one pass, where kernels take it from the host: on the CPU, and stock ones everywhere.
    fn layout_of(
        &self,
        tables: &[Vec<u32>],
        rows: &[DecodeRow],
        bucket: usize,
    ) -> Result<TokenLayout> {
        let padding = bucket - rows.len();
        let slots = rows.iter().map(|row| row.slot.0);
        let positions = rows.iter().map(|row| row.position);
        let padded = |padding_value| std::iter::repeat_n(padding_value, padding);
        let mut tables = tables.to_vec();
        tables.push(vec![self.spare_block]);
        TokenLayout::new(
            slots.chain(padded(self.padding_slot())).collect(),
            positions.chain(padded(0)).collect(),
            tables,
        )
    }
}

/// Views of the words of a bucket.
struct Places {
    /// (n,) u32: what goes in, and on a device that samples, what comes out.
    tokens: Tensor,
    /// (n,) u32
    slots: Tensor,
    /// (n,) u32
    positions: Tensor,
    /// (n,) u32
    chosen: Tensor,
    /// (n, [`ROW_WORDS`]) u32
    rows: Tensor,
}

impl Places {
    fn of(words: &Tensor, bucket: usize) -> Result<Self> {
        let own = |index: usize| words.narrow(0, index * bucket, bucket);
        Ok(Places {
            tokens: own(0)?,
            slots: own(1)?,
            positions: own(2)?,
            chosen: own(3)?,
            rows: words
                .narrow(0, OWN_WORDS * bucket, ROW_WORDS * bucket)?
                .reshape((bucket, ROW_WORDS))?,
        })
    }
}

/// The words of a bucket, in the order of [`Places`].
fn words(rows: &[DecodeRow], bucket: usize, padding_slot: u32) -> Vec<u32> {
    let mut words = Vec::with_capacity(bucket * (OWN_WORDS + ROW_WORDS));
    let mut column = |of_row: &dyn Fn(&DecodeRow) -> u32, of_padding: u32| {
        words.extend(rows.iter().map(of_row));
        words.extend(std::iter::repeat_n(of_padding, bucket - rows.len()));
    };
    column(&|row| row.token, 0);
    column(&|row| row.slot.0, padding_slot);
    column(&|row| row.position, 0);
    column(&|row| row.sampling.map_or(0, |sampling| sampling.chosen), 0);
    // What nobody asked for is chosen greedily, which is the quickest, and not read.
    let greedy = RowSampling::GREEDY;
    for row in rows {
        let sampling = row.sampling.map_or(greedy, |sampling| sampling.row);
        words.extend(sampling.to_words());
    }
    for _ in rows.len()..bucket {
        words.extend(greedy.to_words());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_lie_where_the_views_look_for_them() {
        let row = |slot: u32, sampling| DecodeRow {
            slot: Slot(slot),
            token: 100 + slot,
            position: 200 + slot,
            sampling,
        };
        let sampling = DeviceSampling {
            chosen: 7,
            row: RowSampling {
                seed: 0xaaaa_bbbb_cccc_dddd,
                temperature: 0.5,
                ..RowSampling::GREEDY
            },
        };
        let rows = [row(3, None), row(0, Some(sampling)), row(2, None)];
        let bucket = bucket_of(rows.len());
        let all = Tensor::zeros(
            bucket * (OWN_WORDS + ROW_WORDS) + 5,
            DType::U32,
            &Device::Cpu,
        );
        let all = all.expect("memory");
        refill(&all, 0, &words(&rows, bucket, 9)).expect("room");
        let places = Places::of(&all, bucket).expect("views");
        let read = |view: &Tensor| view.to_vec1::<u32>().expect("numbers");
        assert_eq!(read(&places.tokens), [103, 100, 102, 0]);
        assert_eq!(read(&places.slots), [3, 0, 2, 9]);
        assert_eq!(read(&places.positions), [203, 200, 202, 0]);
        assert_eq!(read(&places.chosen), [0, 7, 0, 0]);
        let rows = places.rows.to_vec2::<u32>().expect("numbers");
        let greedy = RowSampling::GREEDY.to_words();
        assert_eq!(rows[0], greedy);
        assert_eq!(rows[1], sampling.row.to_words());
        assert_ne!(rows[1], greedy);
        assert_eq!(rows[3], greedy);
    }
}
