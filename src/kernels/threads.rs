//! The threads that kernels may use: one pool for the process, sized once, parked when idle.
//!
//! Work is cut so that the number of threads never changes a result: a task owns whole output elements.

use std::ops::Range;
use std::sync::OnceLock;

use rayon::prelude::*;

static POOL: OnceLock<Option<rayon::ThreadPool>> = OnceLock::new();

/// Sets how many threads kernels use, counting the caller. The first call wins, and must come before the first
/// kernel runs; returns whether this call decided. `0` means as many as the process may use.
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
    pool().as_ref().map_or(1, |pool| pool.current_num_threads())
}

fn pool() -> &'static Option<rayon::ThreadPool> {
    POOL.get_or_init(|| build_pool(0))
}

fn build_pool(threads: usize) -> Option<rayon::ThreadPool> {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, |count| count.get()),
        threads => threads,
    };
    if threads == 1 {
        return None;
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("kernel-{index}"))
        .build()
        .ok()
}

/// Runs `task(chunk_index, chunk)` for every chunk of `output`, spread over the pool.
pub(super) fn for_each_chunk<T: Send>(
    output: &mut [T],
    chunk: usize,
    task: impl Fn(usize, &mut [T]) + Sync,
) {
    match pool() {
        Some(pool) if output.len() > chunk => {
            pool.install(|| {
                output
                    .par_chunks_mut(chunk)
                    .enumerate()
                    .for_each(|(i, c)| task(i, c))
            });
        }
        _ => output
            .chunks_mut(chunk)
            .enumerate()
            .for_each(|(i, c)| task(i, c)),
    }
}

/// Operations below which handing work to another thread costs more than it saves.
const MIN_TASK_OPERATIONS: usize = 128 * 1024;

/// Runs `task(range)` over ranges that cover `0..count`, spread over the pool. An item takes about
/// `item_operations` multiply-adds.
pub(super) fn for_each_range(
    count: usize,
    item_operations: usize,
    task: impl Fn(Range<usize>) + Sync,
) {
    let threads = compute_threads();
    let min_items = MIN_TASK_OPERATIONS.div_ceil(item_operations.max(1));
    let items = count.div_ceil(threads * TASKS_PER_THREAD).max(min_items);
    match pool() {
        Some(pool) if count > items => pool.install(|| {
            (0..count.div_ceil(items))
                .into_par_iter()
                .for_each(|index| task(index * items..count.min((index + 1) * items)));
        }),
        _ => task(0..count),
    }
}

/// Several, so that a thread which lost its core does not keep the others waiting for long.
const TASKS_PER_THREAD: usize = 4;
