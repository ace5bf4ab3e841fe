//! The threads that kernels may use: one pool for the process, sized once, parked when idle.
//!
//! Work is cut so that the number of threads never changes a result: a task owns whole output elements.

mod pool;

use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

use self::pool::Pool;

/// `None` when kernels run on their caller's thread alone.
static POOL: OnceLock<Option<Pool>> = OnceLock::new();

/// Sets how many threads kernels use, counting the caller; `0` means as many as the process may use (its affinity
/// and its cgroup's quota). The first call wins, and must come before the first kernel runs; returns whether this call
/// decided.
pub fn set_compute_threads(threads: usize) -> bool {
    let mut decided = false;
    POOL.get_or_init(|| {
        decided = true;
        build_pool(threads)
    });
    decided
}

/// How many threads kernels use, counting the caller.
pub fn compute_threads() -> usize {
    1 + pool().as_ref().map_or(0, Pool::workers)
}

fn pool() -> &'static Option<Pool> {
    #[cfg(test)]
    if super::isa::Isa::is_forced() {
        return &None;
    }
    POOL.get_or_init(|| build_pool(0))
}

/// A pool that cannot be had is done without: one thread computes the same.
fn build_pool(threads: usize) -> Option<Pool> {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, |count| count.get()),
        threads => threads,
    };
    if threads == 1 {
        return None;
    }
    Pool::new(threads - 1)
        .inspect_err(|error| tracing::warn!(%error, threads, "kernels run on one thread"))
        .ok()
}

/// Multiply-adds below which handing work to another thread costs more than it saves.
const MIN_TASK_OPERATIONS: usize = 128 * 1024;

/// Several, so that a thread which lost its core does not keep the others waiting for long.
const TASKS_PER_THREAD: usize = 4;

/// Runs `task(range)` over ranges that cover `0..count`, spread over the pool. An item takes about
/// `item_operations` multiply-adds.
pub fn for_each_range(count: usize, item_operations: usize, task: impl Fn(Range<usize>) + Sync) {
    let min_items = MIN_TASK_OPERATIONS.div_ceil(item_operations.max(1));
    let items = count
        .div_ceil(compute_threads() * TASKS_PER_THREAD)
        .max(min_items);
    match pool() {
        Some(pool) if count > items => {
            pool.run(count.div_ceil(items), &|index| {
                task(index * items..count.min((index + 1) * items))
            });
        }
        _ => task(0..count),
    }
}

/// Runs `task(index, chunk)` for every chunk of `output`, spread over the pool. The last chunk may be shorter.
pub fn for_each_chunk<T: Send>(
    output: &mut [T],
    chunk: usize,
    task: impl Fn(usize, &mut [T]) + Sync,
) {
    match pool() {
        Some(pool) if output.len() > chunk => {
            let chunks: Vec<_> = output
                .chunks_mut(chunk)
                .map(|chunk| Mutex::new(Some(chunk)))
                .collect();
            pool.run(chunks.len(), &|index| {
                let chunk = chunks[index]
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take();
                task(index, chunk.expect("an item runs once"));
            });
        }
        _ => output
            .chunks_mut(chunk)
            .enumerate()
            .for_each(|(index, chunk)| task(index, chunk)),
    }
}
