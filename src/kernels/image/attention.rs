//! Attention of every query to every key of its row, block after block of keys, so that no matrix of all scores is made.
//!
//! Scores and weighted sums are products as convolutions are ([`super::panel`]). After each block, what was summed before
//! is made relative to the largest score so far. Blocks begin at the first key and have a length of the head's size alone:
//! what a query computes does not depend on the other queries.

use std::cell::RefCell;
use std::ops::Range;

use candle_core::{Device, Result, Tensor, bail};

use super::finish::with_optional;
use super::panel::{Begin, COLUMNS, PIXEL_STRIDE, SEGMENT_INPUTS, Segment, multiply};
use super::softmax::{Seen, rescale, weigh};
use super::stock;
use crate::kernels::pages::{wish_large, zeroed};
use crate::kernels::shared_output::SharedOutput;
use crate::kernels::tensor_data::{is_on_cpu, with_slice};
use crate::kernels::threads;

/// What else a score depends on.
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a> {
    /// The last query sees all keys, each before it one less.
    Causal,
    /// Added to the scores of every row: (heads, queries, keys) f32, finite.
    Bias(&'a Tensor),
}

/// q: (rows, queries, heads * d), k, v: (rows, keys, heads * d) -> (rows, queries, heads * d),
/// `softmax(scale * q kᵀ + bias) v` per head.
///
/// # Errors
/// When the shapes do not fit, there is nothing to attend with or to, or a mask hides all keys of a query.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    scale: f32,
    mask: Option<Mask<'_>>,
) -> Result<Tensor> {
    let (rows, queries, width) = q.dims3()?;
    let keys = k.dim(1)?;
    if heads == 0 || width == 0 || !width.is_multiple_of(heads) {
        bail!("{width} channels cannot be cut into {heads} heads");
    }
    let is_empty = rows == 0 || queries == 0 || keys == 0;
    if k.dims() != [rows, keys, width] || v.dims() != k.dims() || is_empty {
        bail!(
            "queries of shape {:?} do not fit keys {:?} and values {:?}",
            q.dims(),
            k.dims(),
            v.dims()
        );
    }
    match mask {
        Some(Mask::Causal) if queries > keys => {
            bail!("{queries} causal queries have only {keys} keys")
        }
        Some(Mask::Bias(bias)) if bias.dims() != [heads, queries, keys] => {
            bail!(
                "a bias of shape {:?} does not fit {heads} heads of {queries} queries and {keys} keys",
                bias.dims()
            )
        }
        _ => {}
    }
    if !is_on_cpu(q) {
        return stock::attention(q, k, v, heads, scale, mask);
    }
    let shape = Shape {
        queries,
        keys,
        heads,
        head_dim: width / heads,
        scale,
        causal: matches!(mask, Some(Mask::Causal)),
    };
    let bias = match mask {
        Some(Mask::Bias(bias)) => Some(bias),
        Some(Mask::Causal) | None => None,
    };
    let output = with_slice::<f32, _>(q, |q| {
        with_slice::<f32, _>(k, |k| {
            with_slice::<f32, _>(v, |v| {
                with_optional(bias, |bias| Ok(shape.attend(q, k, v, bias)))
            })
        })
    })?;
    Tensor::from_vec(output, (rows, queries, width), &Device::Cpu)
}

/// Queries of a task: some panels, which share the keys and values of a block.
const TASK_QUERIES: usize = 56;
/// Queries that kernels take at once: their scores and weights for a block lie in the first-level cache.
const PANEL_QUERIES: usize = 14;
/// The most keys of a block.
const MAX_BLOCK_KEYS: usize = 256;
/// Elements of the keys of a block: with its values they lie in the second-level cache.
const BLOCK_ELEMENTS: usize = 32 * 1024;
/// Elements of the packed keys and values of the rows that are worked on at a time.
const PACKED_ELEMENTS: usize = 4 << 20;

#[derive(Clone, Copy)]
struct Shape {
    queries: usize,
    keys: usize,
    heads: usize,
    head_dim: usize,
    scale: f32,
    causal: bool,
}

/// What a thread works in, kept between tasks.
#[derive(Default)]
struct Scratch {
    /// Per segment of the head (queries, [`PIXEL_STRIDE`]), scaled.
    queries: Vec<f32>,
    /// Of a panel, (tiles of keys, queries, 16).
    scores: Vec<[f32; COLUMNS]>,
    /// Of a panel, per segment of keys (queries, [`PIXEL_STRIDE`]).
    weights: Vec<f32>,
    /// Per panel (tiles of the head, queries, 16).
    values: Vec<[f32; COLUMNS]>,
    /// Of each query.
    seen: Vec<Seen>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Shape {
    fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Keys of a block: whole segments; of the head's size alone, so that sums have one order.
    fn block_keys(&self) -> usize {
        let segments = BLOCK_ELEMENTS / self.head_dim / SEGMENT_INPUTS;
        SEGMENT_INPUTS * segments.clamp(1, MAX_BLOCK_KEYS / SEGMENT_INPUTS)
    }

    /// Lines of sixteen of a packed head: keys (tiles of keys, head dim), then per block of keys values (tiles of the
    /// head, keys).
    fn packed_lines(&self) -> (usize, usize) {
        (
            self.keys.div_ceil(COLUMNS) * self.head_dim,
            self.head_dim.div_ceil(COLUMNS) * self.keys,
        )
    }

    fn attend(&self, q: &[f32], k: &[f32], v: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let rows = q.len() / (self.queries * self.width());
        let (key_lines, value_lines) = self.packed_lines();
        let head_lines = key_lines + value_lines;
        let row_lines = self.heads * head_lines;
        let rows_at_once = (PACKED_ELEMENTS / COLUMNS / row_lines).clamp(1, rows.max(1));
        let mut packed = vec![[0f32; COLUMNS]; rows_at_once * row_lines];
        wish_large(packed.as_ptr().cast(), packed.len() * COLUMNS);
        let panels = self.queries.div_ceil(TASK_QUERIES);
        let mut output = zeroed(q.len());
        let shared = SharedOutput::new(&mut output);
        for first_row in (0..rows).step_by(rows_at_once) {
            let rows = rows_at_once.min(rows - first_row);
            let packed = &mut packed[..rows * row_lines];
            threads::for_each_chunk(packed, head_lines, |index, packed| {
                let (row, head) = (first_row + index / self.heads, index % self.heads);
                let from = row * self.keys * self.width() + head * self.head_dim;
                let (keys, values) = packed.split_at_mut(key_lines);
                self.pack_keys(&k[from..], keys);
                self.pack_values(&v[from..], values);
            });
            let packed = &*packed;
            let operations = 2 * TASK_QUERIES * self.keys * self.head_dim;
            threads::for_each_range(rows * self.heads * panels, operations, |tasks| {
                SCRATCH.with_borrow_mut(|scratch| {
                    for task in tasks {
                        let (index, panel) = (task / panels, task % panels);
                        let (row, head) = (first_row + index / self.heads, index % self.heads);
                        let place = Place {
                            row,
                            head,
                            first: panel * self.queries / panels,
                            end: (panel + 1) * self.queries / panels,
                        };
                        let packed = &packed[index * head_lines..(index + 1) * head_lines];
                        self.task(&place, q, packed, bias, scratch, &shared);
                    }
                });
            });
        }
        output
    }

    /// k: the head's keys, a token each `width` -> (tiles, head dim, 16)
    fn pack_keys(&self, k: &[f32], packed: &mut [[f32; COLUMNS]]) {
        for (tile, packed) in packed.chunks_exact_mut(self.head_dim).enumerate() {
            let keys = COLUMNS.min(self.keys - tile * COLUMNS);
            for lane in 0..COLUMNS {
                if lane < keys {
                    let at = (tile * COLUMNS + lane) * self.width();
                    for (packed, k) in packed.iter_mut().zip(&k[at..at + self.head_dim]) {
                        packed[lane] = *k;
                    }
                } else {
                    for packed in packed.iter_mut() {
                        packed[lane] = 0.0;
                    }
                }
            }
        }
    }

    /// v: the head's values, a token each `width` -> per block (tiles of the head, keys, 16)
    fn pack_values(&self, v: &[f32], packed: &mut [[f32; COLUMNS]]) {
        let mut packed = packed.iter_mut();
        for first in (0..self.keys).step_by(self.block_keys()) {
            let keys = first..self.keys.min(first + self.block_keys());
            for column in (0..self.head_dim).step_by(COLUMNS) {
                let columns = COLUMNS.min(self.head_dim - column);
                for (key, packed) in keys.clone().zip(&mut packed) {
                    let v = &v[key * self.width() + column..][..columns];
                    match v.first_chunk() {
                        Some(v) => *packed = *v,
                        None => {
                            *packed = [0.0; COLUMNS];
                            packed[..columns].copy_from_slice(v);
                        }
                    }
                }
            }
        }
    }

    /// One head of a few queries of one row.
    fn task(
        &self,
        place: &Place,
        q: &[f32],
        packed: &[[f32; COLUMNS]],
        bias: Option<&[f32]>,
        scratch: &mut Scratch,
        output: &SharedOutput<'_>,
    ) {
        let count = place.end - place.first;
        let (packed_keys, packed_values) = packed.split_at(self.packed_lines().0);
        let block_keys = self.block_keys();
        let head_tiles = self.head_dim.div_ceil(COLUMNS);
        scratch.prepare(count, self.head_dim, block_keys);
        let head_segments = self.gather_queries(place, q, &mut scratch.queries);
        let seen = |query: usize| match self.causal {
            false => self.keys,
            true => (place.first + query + 1 + self.keys - self.queries).min(self.keys),
        };
        // Of the task's queries.
        let bias = bias.map(|bias| {
            let first = (place.head * self.queries + place.first) * self.keys;
            &bias[first..first + count * self.keys]
        });
        // The last query sees most.
        let end = seen(count - 1);
        // Block after block, so that its keys and values stay in the second-level cache for all panels.
        for first_key in (0..end).step_by(block_keys) {
            let keys = block_keys.min(end - first_key);
            let held = block_keys.min(self.keys - first_key);
            let block = Block {
                keys: &packed_keys[first_key / COLUMNS * self.head_dim..]
                    [..keys.div_ceil(COLUMNS) * self.head_dim],
                values: &packed_values[first_key * head_tiles..][..held * head_tiles],
                count: keys,
                held,
                bias: bias.map(|bias| &bias[first_key..]),
            };
            for panel in panels(count) {
                let visible = |query: usize| {
                    let seen = seen(panel.start + query);
                    seen.saturating_sub(first_key).min(keys)
                };
                self.attend_block(&block, panel.clone(), &head_segments, visible, scratch);
            }
        }
        for panel in panels(count) {
            let values = &scratch.values[panel.start * head_tiles..panel.end * head_tiles];
            for (index, query) in panel.clone().enumerate() {
                let factor = 1.0 / scratch.seen[query].total;
                let token = place.row * self.queries + place.first + query;
                let at = token * self.width() + place.head * self.head_dim;
                for tile in 0..head_tiles {
                    let mut values = values[tile * panel.len() + index];
                    for value in &mut values {
                        *value *= factor;
                    }
                    let columns = COLUMNS.min(self.head_dim - tile * COLUMNS);
                    output.write(at + tile * COLUMNS, &values[..columns]);
                }
            }
        }
    }

    /// One block of keys for one panel of queries.
    fn attend_block(
        &self,
        block: &Block<'_>,
        panel: Range<usize>,
        head_segments: &[Segment],
        visible: impl Fn(usize) -> usize,
        scratch: &mut Scratch,
    ) {
        let count = panel.len();
        let head_tiles = self.head_dim.div_ceil(COLUMNS);
        let scores = &mut scratch.scores[..block.count.div_ceil(COLUMNS) * count];
        multiply(
            &scratch.queries[panel.start * PIXEL_STRIDE..],
            head_segments,
            block.keys,
            count,
            Begin::Fresh,
            scores,
        );
        if let Some(bias) = block.bias {
            self.add_bias(bias, block.count, panel.clone(), scores);
        }
        let seen = &mut scratch.seen[panel.clone()];
        for (query, seen) in seen.iter_mut().enumerate() {
            weigh(
                scores,
                query,
                count,
                visible(query),
                &mut scratch.weights,
                seen,
            );
        }
        let mut segments = [Segment { start: 0, len: 0 }; MAX_BLOCK_KEYS / SEGMENT_INPUTS];
        let used = block.count.div_ceil(SEGMENT_INPUTS);
        for (index, segment) in segments[..used].iter_mut().enumerate() {
            *segment = Segment {
                start: index * count * PIXEL_STRIDE,
                len: SEGMENT_INPUTS.min(block.count - index * SEGMENT_INPUTS),
            };
        }
        let values = &mut scratch.values[panel.start * head_tiles..panel.end * head_tiles];
        rescale(values, seen);
        // Of a block that the mask cuts, the tiles do not lie side by side.
        let (tiles_at_once, calls) = match block.held == block.count {
            true => (head_tiles, 1),
            false => (1, head_tiles),
        };
        for call in 0..calls {
            let from = &block.values[call * block.held..][..tiles_at_once * block.count];
            let sums = &mut values[call * count..][..tiles_at_once * count];
            multiply(
                &scratch.weights,
                &segments[..used],
                from,
                count,
                Begin::Add,
                sums,
            );
        }
    }

    /// bias: from a block's first key on, (queries of the task, keys), scores: of a panel and the `keys` of the block
    fn add_bias(
        &self,
        bias: &[f32],
        keys: usize,
        panel: Range<usize>,
        scores: &mut [[f32; COLUMNS]],
    ) {
        let count = panel.len();
        for (index, query) in panel.enumerate() {
            let bias = &bias[query * self.keys..][..keys];
            for (tile, bias) in bias.chunks(COLUMNS).enumerate() {
                for (score, bias) in scores[tile * count + index].iter_mut().zip(bias) {
                    *score += bias * std::f32::consts::LOG2_E;
                }
            }
        }
    }

    /// The head of each query, scaled, in segments.
    fn gather_queries(&self, place: &Place, q: &[f32], to: &mut [f32]) -> Vec<Segment> {
        let count = place.end - place.first;
        // The softmax takes powers of two.
        let scale = self.scale * std::f32::consts::LOG2_E;
        let mut segments = Vec::with_capacity(self.head_dim.div_ceil(SEGMENT_INPUTS));
        for column in (0..self.head_dim).step_by(SEGMENT_INPUTS) {
            let start = segments.len() * count * PIXEL_STRIDE;
            let len = SEGMENT_INPUTS.min(self.head_dim - column);
            segments.push(Segment { start, len });
            for (index, to) in to[start..start + count * PIXEL_STRIDE]
                .chunks_exact_mut(PIXEL_STRIDE)
                .enumerate()
            {
                let token = place.row * self.queries + place.first + index;
                let from = token * self.width() + place.head * self.head_dim + column;
                for (to, q) in to.iter_mut().zip(&q[from..from + len]) {
                    *to = q * scale;
                }
            }
        }
        segments
    }
}

/// Which queries a task is about.
struct Place {
    row: usize,
    head: usize,
    first: usize,
    end: usize,
}

impl Scratch {
    /// Room for a task, and nothing seen.
    fn prepare(&mut self, count: usize, head_dim: usize, block_keys: usize) {
        let segments = |inputs: usize| inputs.div_ceil(SEGMENT_INPUTS) * PIXEL_STRIDE;
        grow(&mut self.queries, segments(head_dim) * count, 0.0);
        grow(&mut self.weights, segments(block_keys) * PANEL_QUERIES, 0.0);
        let lines = block_keys.div_ceil(COLUMNS) * PANEL_QUERIES;
        grow(&mut self.scores, lines, [0.0; COLUMNS]);
        self.values.clear();
        let lines = head_dim.div_ceil(COLUMNS) * count;
        self.values.resize(lines, [0.0; COLUMNS]);
        self.seen.clear();
        self.seen.resize(count, Seen::NOTHING);
    }
}

/// Some keys with their values.
struct Block<'a> {
    /// (tiles of keys, head dim, 16)
    keys: &'a [[f32; COLUMNS]],
    /// (tiles of the head, held, 16)
    values: &'a [[f32; COLUMNS]],
    /// Keys that any query sees.
    count: usize,
    /// Keys.
    held: usize,
    /// From the first key on, (queries of the task, keys of the row).
    bias: Option<&'a [f32]>,
}

/// `0..count` in parts of like size.
fn panels(count: usize) -> impl Iterator<Item = Range<usize>> {
    let panels = count.div_ceil(PANEL_QUERIES);
    (0..panels).map(move |panel| panel * count / panels..(panel + 1) * count / panels)
}

fn grow<T: Copy>(scratch: &mut Vec<T>, len: usize, value: T) {
    if scratch.len() < len {
        scratch.resize(len, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::image::test_tensors::{tensor, values};
    use crate::kernels::isa::Isa;
    use crate::kernels::test_numbers::{bits, largest};

    #[test]
    fn attention_equals_stock_on_every_instruction_set_and_alone() {
        for (heads, head_dim, queries, keys) in [
            (1, 1, 1, 1),
            (2, 40, 33, 77),
            (3, 7, 5, 5),
            (1, 64, 70, 131),
        ] {
            let width = heads * head_dim;
            let (q, k, v) = (
                (tensor(&[3, queries, width], 1) * 3.0).unwrap(),
                tensor(&[3, keys, width], 2),
                tensor(&[3, keys, width], 3),
            );
            let scale = (head_dim as f32).powf(-0.5);
            let bias = (tensor(&[heads, queries, keys], 4) * 2.0).unwrap();
            for mask in [None, Some(Mask::Causal), Some(Mask::Bias(&bias))] {
                let expected = values(&stock::attention(&q, &k, &v, heads, scale, mask).unwrap());
                let all = || values(&attention(&q, &k, &v, heads, scale, mask).unwrap());
                let output = all();
                let difference: Vec<f32> =
                    output.iter().zip(&expected).map(|(a, b)| a - b).collect();
                assert!(largest(&difference) < 3e-6, "{}", largest(&difference));
                for forced in Isa::for_each(|| bits(&all())) {
                    assert_eq!(forced, bits(&output));
                }
                for row in 0..3 {
                    let [q, k, v] = [&q, &k, &v].map(|x| x.narrow(0, row, 1).unwrap());
                    let alone = values(&attention(&q, &k, &v, heads, scale, mask).unwrap());
                    assert_eq!(alone, output[row * alone.len()..(row + 1) * alone.len()]);
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (q, k) = (tensor(&[2, 3, 8], 1), tensor(&[2, 5, 8], 2));
        assert!(attention(&q, &k, &k, 3, 1.0, None).is_err());
        assert!(attention(&q, &k, &q, 2, 1.0, None).is_err());
        assert!(attention(&k, &q, &q, 2, 1.0, Some(Mask::Causal)).is_err());
        let bias = tensor(&[2, 5, 3], 1);
        assert!(attention(&q, &k, &k, 2, 1.0, Some(Mask::Bias(&bias))).is_err());
        // Not a division by no queries, nor an answer from no keys.
        let [none, no_row] = [(1, 0), (0, 0)].map(|(axis, len)| q.narrow(axis, 0, len).unwrap());
        assert!(attention(&none, &k, &k, 2, 1.0, None).is_err());
        assert!(attention(&q, &none, &none, 2, 1.0, None).is_err());
        assert!(attention(&no_row, &no_row, &no_row, 2, 1.0, None).is_err());
    }
}
