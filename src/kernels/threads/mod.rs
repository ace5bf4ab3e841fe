//! The threads that kernels may use: one pool for the process, sized once, parked when idle; or, for a thread that
//! has been given a share of its own ([`use_own_threads`]), that one.
//!
//! Work is cut so that the number of threads never changes a result: a task owns whole output elements.

mod pool;

use std::cell::Cell;
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

thread_local! {
    /// The share of this thread, if it has one.
    static OWN: Cell<Option<&'static Option<Pool>>> = const { Cell::new(None) };
}

/// Gives the calling thread, and nobody else, so many threads for its kernels, counting itself; `0` counts as 1.
/// For several engines on one processor: in the common pool one of them would have all threads and the others none,
/// pass by pass. To be called once in a thread that lives as long as the process, as its helpers do.
pub fn use_own_threads(threads: usize) {
    let pool = Box::leak(Box::new(build_pool(threads.max(1))));
    OWN.set(Some(pool));
}

/// This thread helps others: a loop within theirs runs on it alone.
fn work_alone() {
    OWN.set(Some(&None));
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
    if let Some(own) = OWN.get() {
        return own;
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_share_is_its_threads_own() {
        let others = compute_threads();
        let of_share = |threads| {
            std::thread::scope(|scope| {
                let share = scope.spawn(move || {
                    use_own_threads(threads);
                    let done = AtomicUsize::new(0);
                    for_each_range(1_000, MIN_TASK_OPERATIONS, |range| {
                        // A helper has no helpers.
                        let is_helper = compute_threads() == 1;
                        assert!(is_helper || compute_threads() == threads);
                        done.fetch_add(range.len(), Ordering::Relaxed);
                    });
                    assert_eq!(done.load(Ordering::Relaxed), 1_000);
                    compute_threads()
                });
                share.join().expect("no panic")
            })
        };
        assert_eq!([of_share(0), of_share(1), of_share(3)], [1, 1, 3]);
        assert_eq!(compute_threads(), others);
    }
}
