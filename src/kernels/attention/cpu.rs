//! Paged attention on the CPU: the store's layout, and cutting a pass into tasks.
//!
//! On the CPU a block keeps its keys transposed, so that the scores of its 32 keys are 32 lanes of one sum:
//! keys are (blocks, kv_heads, head_dim, 32), values (blocks, kv_heads, 32, head_dim).

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Storage, Tensor, WithDType, bail};
use half::f16;

use super::softmax::{KvBlock, RunningSoftmax, Span, attend, narrow, widen};
use super::{AttentionOptions, BLOCK_TOKENS, PagedKv, TokenLayout};
use crate::kernels::shared_output::SharedOutput;
use crate::kernels::threads;

/// Queries of one slot that share each block read.
const TASK_TOKENS: usize = 16;

/// A number type that the store may have.
trait KvElement: WithDType {
    /// `values` in this type, themselves or narrowed into `scratch`.
    fn narrow<'a>(values: &'a [f32], scratch: &'a mut Vec<Self>) -> &'a [Self];
    /// `elements` as f32: themselves, or widened into `scratch`.
    fn widen<'a>(elements: &'a [Self], scratch: &'a mut Vec<f32>) -> &'a [f32];
}

impl KvElement for f32 {
    fn narrow<'a>(values: &'a [f32], _: &'a mut Vec<Self>) -> &'a [Self] {
        values
    }
    fn widen<'a>(elements: &'a [Self], _: &'a mut Vec<f32>) -> &'a [f32] {
        elements
    }
}

impl KvElement for f16 {
    fn narrow<'a>(values: &'a [f32], scratch: &'a mut Vec<Self>) -> &'a [Self] {
        scratch.resize(values.len(), f16::ZERO);
        narrow(values, scratch);
        scratch
    }
    fn widen<'a>(elements: &'a [Self], scratch: &'a mut Vec<f32>) -> &'a [f32] {
        scratch.resize(elements.len(), 0.0);
        widen(elements, scratch);
        scratch
    }
}

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

/// Queries of one slot, against one K/V head.
struct Task {
    slot: usize,
    /// Indices of the pass's tokens.
    tokens: Vec<u32>,
    kv_head: usize,
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
            (Storage::Cpu(CpuStorage::F32(k)), Storage::Cpu(CpuStorage::F32(v))) => {
                self.run_tasks(k, v, output)
            }
            (Storage::Cpu(CpuStorage::F16(k)), Storage::Cpu(CpuStorage::F16(v))) => {
                self.run_tasks(k, v, output)
            }
            _ => bail!("K and V on the cpu are both f32 or both f16"),
        }
        Ok(())
    }

    fn run_tasks<E: KvElement>(&self, k: &[E], v: &[E], output: &mut [f32]) {
        let tasks = self.tasks();
        let output = SharedOutput::new(output);
        threads::for_each_range(tasks.len(), self.task_operations(tasks.len()), |range| {
            for task in &tasks[range] {
                self.run_task(task, k, v, &output);
            }
        });
    }

    fn tasks(&self) -> Vec<Task> {
        let mut tasks = Vec::new();
        for (slot, tokens) in self.layout.tokens_by_slot() {
            for tokens in tokens.chunks(TASK_TOKENS) {
                tasks.extend((0..self.kv_heads).map(|kv_head| Task {
                    slot,
                    tokens: tokens.to_vec(),
                    kv_head,
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

    fn run_task<E: KvElement>(&self, task: &Task, k: &[E], v: &[E], output: &SharedOutput<'_>) {
        let (width, group) = (self.head_dim, self.heads / self.kv_heads);
        let mut state = RunningSoftmax::new(task.tokens.len() * group, width);
        let (mut key_scratch, mut value_scratch) = (Vec::new(), Vec::new());
        let head_elements = BLOCK_TOKENS * width;
        for index in self.visible_blocks(task) {
            let block = self.layout.block(task.slot, index) * self.kv_heads + task.kv_head;
            let elements = block * head_elements..(block + 1) * head_elements;
            let block = KvBlock {
                keys: E::widen(&k[elements.clone()], &mut key_scratch),
                values: E::widen(&v[elements], &mut value_scratch),
            };
            for (query, &token) in task.tokens.iter().enumerate() {
                if let Some(span) = self.span(token, index) {
                    for head in 0..group {
                        let q = &self.q[self.row_of(token, task.kv_head * group + head)..][..width];
                        attend(
                            q,
                            query * group + head,
                            &block,
                            span,
                            self.options,
                            &mut state,
                        );
                    }
                }
            }
        }
        for (query, &token) in task.tokens.iter().enumerate() {
            for head in 0..group {
                let row = self.row_of(token, task.kv_head * group + head);
                output.write(row, state.finish(query * group + head, width));
            }
        }
    }

    /// Where a head of a token starts in q and in the output.
    fn row_of(&self, token: u32, head: usize) -> usize {
        (token as usize * self.heads + head) * self.head_dim
    }

    /// The blocks that any query of a task sees.
    fn visible_blocks(&self, task: &Task) -> std::ops::Range<usize> {
        let positions = || {
            task.tokens
                .iter()
                .map(|&token| self.layout.positions()[token as usize] as usize)
        };
        let first = positions()
            .min()
            .map_or(0, |position| self.options.first_visible(position));
        let end = positions().max().map_or(0, |position| position + 1);
        first / BLOCK_TOKENS..end.div_ceil(BLOCK_TOKENS)
    }

    /// What a token sees of block `index` of its slot.
    fn span(&self, token: u32, index: usize) -> Option<Span> {
        let position = self.layout.positions()[token as usize] as usize;
        let start = index * BLOCK_TOKENS;
        let first = self.options.first_visible(position).saturating_sub(start);
        let end = (position + 1).saturating_sub(start).min(BLOCK_TOKENS);
        (first < end).then_some(Span { first, end })
    }
}
