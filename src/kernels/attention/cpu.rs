//! Paged attention on the CPU: the store's layout, and cutting a pass into tasks.
//!
//! On the CPU a block keeps its keys transposed, so that the scores of its 32 keys are 32 lanes of one sum:
//! keys are (blocks, kv_heads, head_dim, 32), values (blocks, kv_heads, 32, head_dim).

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Storage, Tensor, bail};

use super::segment::{
    KvBlock, KvElement, MAX_PANEL, Query, SEGMENT_TOKENS, Scratch, Seen, attend_f16, attend_f32,
    panel_queries,
};
use super::{AttentionOptions, BLOCK_TOKENS, PagedKv, TokenLayout};
use crate::kernels::shared_output::SharedOutput;
use crate::kernels::threads;

/// Queries of one slot that share each block read.
const TASK_TOKENS: usize = 16;

/// Which of the two stores is written.
#[derive(Clone, Copy)]
enum Part {
    Keys,
    Values,
}

/// Writes rows of (T, kv_heads, head_dim) f32 to their places in one of the stores.
struct WriteRows<'a> {
    layout: &'a TokenLayout,
    part: Part,
    kv_heads: usize,
    head_dim: usize,
}

impl WriteRows<'_> {
    fn write<E: KvElement>(&self, store: &mut [E], new: &[f32]) {
        let head_elements = BLOCK_TOKENS * self.head_dim;
        let row_elements = self.kv_heads * self.head_dim;
        let mut scratch = Vec::new();
        let new = E::narrow(&new[..self.layout.tokens() * row_elements], &mut scratch);
        for (token, row) in new.chunks_exact(row_elements).enumerate() {
            let place = self.layout.row_of_token(token);
            let (block, offset) = (place / BLOCK_TOKENS, place % BLOCK_TOKENS);
            for (head, row) in row.chunks_exact(self.head_dim).enumerate() {
                let head =
                    &mut store[(block * self.kv_heads + head) * head_elements..][..head_elements];
                match self.part {
                    Part::Keys => {
                        let column = head[offset..].iter_mut().step_by(BLOCK_TOKENS);
                        column.zip(row).for_each(|(out, value)| *out = *value);
                    }
                    Part::Values => {
                        head[offset * self.head_dim..][..self.head_dim].copy_from_slice(row)
                    }
                }
            }
        }
    }
}

impl InplaceOp2 for WriteRows<'_> {
    fn name(&self) -> &'static str {
        "write-kv"
    }

    fn cpu_fwd(
        &self,
        store: &mut CpuStorage,
        store_at: &Layout,
        new: &CpuStorage,
        new_at: &Layout,
    ) -> Result<()> {
        if !store_at.is_contiguous() || store_at.start_offset() != 0 || !new_at.is_contiguous() {
            bail!("the K/V store and what is written to it must be contiguous");
        }
        let new = &new.as_slice::<f32>()?[new_at.start_offset()..];
        match store {
            CpuStorage::F32(store) => self.write(store, new),
            CpuStorage::F16(store) => self.write(store, new),
            _ => bail!("K/V on the cpu is f32 or f16"),
        }
        Ok(())
    }
}

/// See [`super::write_kv`].
pub(super) fn write_kv(kv: &PagedKv, k: &Tensor, v: &Tensor, layout: &TokenLayout) -> Result<()> {
    let (_, kv_heads, head_dim) = k.dims3()?;
    for (store, new, part) in [(&kv.k, k, Part::Keys), (&kv.v, v, Part::Values)] {
        store.inplace_op2(
            &new.contiguous()?,
            &WriteRows {
                layout,
                part,
                kv_heads,
                head_dim,
            },
        )?;
    }
    Ok(())
}

/// Queries of one slot, against one K/V head, over some segments of the slot.
struct Task<'a> {
    slot: usize,
    /// Indices of the pass's tokens.
    tokens: &'a [u32],
    kv_head: usize,
    segments: Range<usize>,
}

/// A pass: what all tasks read.
pub(super) struct Pass<'a> {
    pub q: &'a [f32],
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub layout: &'a TokenLayout,
    pub options: &'a AttentionOptions,
}

impl Pass<'_> {
    /// output: (T, heads, head_dim)
    ///
    /// # Errors
    /// When the store's dtypes are not both f32 or both f16.
    pub(super) fn run(&self, kv: &PagedKv, output: &mut [f32]) -> Result<()> {
        let ((k, _), (v, _)) = (kv.k.storage_and_layout(), kv.v.storage_and_layout());
        match (&*k, &*v) {
            (Storage::Cpu(CpuStorage::F32(k)), Storage::Cpu(CpuStorage::F32(v))) => self.run_tasks(
                &Store {
                    k,
                    v,
                    attend: attend_f32,
                },
                output,
            ),
            (Storage::Cpu(CpuStorage::F16(k)), Storage::Cpu(CpuStorage::F16(v))) => self.run_tasks(
                &Store {
                    k,
                    v,
                    attend: attend_f16,
                },
                output,
            ),
            _ => bail!("K and V on the cpu are both f32 or both f16"),
        }
        Ok(())
    }

    fn run_tasks<E: KvElement>(&self, store: &Store<'_, E>, output: &mut [f32]) {
        let by_slot = self.layout.tokens_by_slot();
        let tasks = self.tasks(&by_slot);
        if tasks.len() < threads::compute_threads()
            && tasks.iter().any(|task| task.segments.len() > 1)
        {
            return self.run_split(&tasks, store, output);
        }
        let output = SharedOutput::new(output);
        self.for_each(&tasks, |task| {
            self.attend(task, store, |row, seen| {
                output.write(row * self.head_dim, seen.finish())
            });
        });
    }

    /// Few queries with much to see: segments are spread over threads, and merged in order afterwards. The sums are those
    /// of a task that walks through them.
    fn run_split<E: KvElement>(
        &self,
        tasks: &[Task<'_>],
        store: &Store<'_, E>,
        output: &mut [f32],
    ) {
        let segments = tasks
            .iter()
            .map(|task| task.segments.end)
            .max()
            .unwrap_or(0);
        // Of each output row and segment: values, largest score, total.
        let entry = self.head_dim + 2;
        let mut partial = vec![0f32; output.len() / self.head_dim * segments * entry];
        let shared = SharedOutput::new(&mut partial);
        let parts: Vec<_> = tasks
            .iter()
            .flat_map(|task| {
                task.segments.clone().map(|segment| Task {
                    segments: segment..segment + 1,
                    ..*task
                })
            })
            .collect();
        self.for_each(&parts, |part| {
            self.attend(part, store, |row, seen| {
                let at = (row * segments + part.segments.start) * entry;
                shared.write(at, &seen.values);
                shared.write(at + self.head_dim, &[seen.largest, seen.total]);
            });
        });
        for task in tasks {
            for row in self.rows(task) {
                let mut seen = Seen::nothing(self.head_dim);
                for segment in task.segments.clone() {
                    let entry = &partial[(row * segments + segment) * entry..][..entry];
                    let (values, sums) = entry.split_at(self.head_dim);
                    if sums[1] != 0.0 {
                        seen.merge(sums[0], sums[1], values);
                    }
                }
                output[row * self.head_dim..][..self.head_dim].copy_from_slice(seen.finish());
            }
        }
    }

    fn for_each(&self, tasks: &[Task<'_>], run: impl Fn(&Task<'_>) + Sync) {
        threads::for_each_range(tasks.len(), self.task_operations(tasks.len()), |range| {
            tasks[range].iter().for_each(&run);
        });
    }

    fn tasks<'a>(&self, by_slot: &'a BTreeMap<usize, Vec<u32>>) -> Vec<Task<'a>> {
        let mut tasks = Vec::new();
        for (&slot, tokens) in by_slot {
            for tokens in tokens.chunks(TASK_TOKENS) {
                let positions = || tokens.iter().map(|&token| self.position(token));
                let first = positions()
                    .min()
                    .map_or(0, |position| self.options.first_visible(position));
                let end = positions().max().map_or(0, |position| position + 1);
                let segments = first / SEGMENT_TOKENS..end.div_ceil(SEGMENT_TOKENS);
                tasks.extend((0..self.kv_heads).map(|kv_head| Task {
                    slot,
                    tokens,
                    kv_head,
                    segments: segments.clone(),
                }));
            }
        }
        tasks
    }

    /// Multiply-adds of a task, on average.
    fn task_operations(&self, tasks: usize) -> usize {
        let seen: usize = self
            .layout
            .positions()
            .iter()
            .map(|&position| position as usize + 1)
            .sum();
        2 * seen * self.heads * self.head_dim / tasks.max(1)
    }

    /// Walks through a task's segments and hands out what each of its rows has seen.
    fn attend<E: KvElement>(
        &self,
        task: &Task<'_>,
        store: &Store<'_, E>,
        mut done: impl FnMut(usize, &mut Seen),
    ) {
        let width = self.head_dim;
        let rows: Vec<usize> = self.rows(task).collect();
        let mut seen: Vec<Seen> = rows.iter().map(|_| Seen::nothing(width)).collect();
        let mut scratch = Scratch::new(width);
        let mut queries = Vec::with_capacity(rows.len());
        for segment in task.segments.clone() {
            queries.clear();
            // Which of `rows` see the segment, and what of it.
            queries.extend(rows.iter().enumerate().filter_map(|(index, &row)| {
                let position = self.position((row / self.heads) as u32);
                let first = self
                    .options
                    .first_visible(position)
                    .max(segment * SEGMENT_TOKENS);
                let end = (position + 1).min((segment + 1) * SEGMENT_TOKENS);
                (first < end).then(|| {
                    (
                        index,
                        Query {
                            q: &self.q[row * width..][..width],
                            first,
                            end,
                        },
                    )
                })
            }));
            for panel in queries.chunks_mut(panel_queries()) {
                let first_block = panel
                    .iter()
                    .map(|(_, query)| query.first)
                    .min()
                    .unwrap_or(0)
                    / BLOCK_TOKENS;
                let end_block = panel
                    .iter()
                    .map(|(_, query)| query.end)
                    .max()
                    .unwrap_or(0)
                    .div_ceil(BLOCK_TOKENS);
                let blocks = store.blocks(self, task, first_block..end_block);
                let mut relative = [panel[0].1; MAX_PANEL];
                for (relative, (_, query)) in relative.iter_mut().zip(panel.iter()) {
                    *relative = Query {
                        first: query.first - first_block * BLOCK_TOKENS,
                        end: query.end - first_block * BLOCK_TOKENS,
                        ..*query
                    };
                }
                (store.attend)(
                    &blocks,
                    &relative[..panel.len()],
                    self.options,
                    &mut scratch,
                );
                for (place, (index, _)) in panel.iter().enumerate() {
                    let (largest, total, values) = scratch.result(place, width);
                    // As in `run_split`: what weighs nothing adds nothing, not even a NaN.
                    if total != 0.0 {
                        seen[*index].merge(largest, total, values);
                    }
                }
            }
        }
        for (row, seen) in rows.into_iter().zip(&mut seen) {
            done(row, seen);
        }
    }

    /// The rows of (T * heads) that belong to a task.
    fn rows(&self, task: &Task<'_>) -> impl Iterator<Item = usize> + use<'_> {
        let group = self.heads / self.kv_heads;
        let (tokens, kv_head) = (task.tokens.to_vec(), task.kv_head);
        tokens.into_iter().flat_map(move |token| {
            let first = token as usize * self.heads + kv_head * group;
            first..first + group
        })
    }

    fn position(&self, token: u32) -> usize {
        self.layout.positions()[token as usize] as usize
    }
}

/// Both stores of a layer, and the kernel for their number type.
struct Store<'a, E> {
    k: &'a [E],
    v: &'a [E],
    attend: fn(&[KvBlock<'_, E>], &[Query<'_>], &AttentionOptions, &mut Scratch),
}

impl<'a, E> Store<'a, E> {
    /// Blocks of a task's slot and head.
    fn blocks(
        &self,
        pass: &Pass<'_>,
        task: &Task<'_>,
        blocks: Range<usize>,
    ) -> Vec<KvBlock<'a, E>> {
        let head_elements = BLOCK_TOKENS * pass.head_dim;
        blocks
            .map(|index| {
                let block = pass.layout.block(task.slot, index) * pass.kv_heads + task.kv_head;
                let elements = block * head_elements..(block + 1) * head_elements;
                KvBlock {
                    keys: &self.k[elements.clone()],
                    values: &self.v[elements],
                }
            })
            .collect()
    }
}
