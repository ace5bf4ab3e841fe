//! A small pool for short parallel loops, made for shared cores.
//!
//! The caller works too, and items are claimed one by one: a worker that lost its core, or never woke, costs nothing
//! but the item that it holds. Workers linger for some microseconds between the loops of a model step and then
//! park, so that an idle service burns nothing.
#![allow(
    unsafe_code,
    reason = "workers borrow a loop that lives on the caller's stack"
)]

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Turns of waiting before a thread parks: some ten microseconds, the order of a wake-up. The next loop of a step
/// usually comes sooner.
const LINGER_TURNS: usize = 300;

/// Threads that help a caller with its loops.
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: usize,
    /// Held by the caller whose loop runs. Others do not wait: they run their loops alone.
    busy: Mutex<()>,
}

struct Shared {
    board: Mutex<Board>,
    posted: Condvar,
    left: Condvar,
    /// Counts posted loops; read without the lock while lingering.
    generation: AtomicU64,
    /// Workers inside the posted loop; changed under the lock, read without it while lingering.
    inside: AtomicUsize,
}

/// What workers look at when they wake.
struct Board {
    /// The loop to help with, while its caller vouches for it.
    posted: Option<LoopRef>,
}

/// A loop that lives on its caller's stack.
struct Loop<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    count: usize,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A loop without its lifetime.
#[derive(Clone, Copy)]
struct LoopRef(*const Loop<'static>);

// SAFETY: `Loop` is `Sync` (its task is), and the pointer is followed only between entering and leaving under the
// lock of the board, which the caller waits for.
unsafe impl Send for LoopRef {}

impl Loop<'_> {
    /// Claims and runs items until none is left.
    fn work(&self) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let item = self.next.fetch_add(1, Ordering::Relaxed);
                if item >= self.count {
                    break;
                }
                (self.task)(item);
            }
        }));
        if let Err(panic) = outcome {
            self.next.store(self.count, Ordering::Relaxed);
            *lock(&self.panic) = Some(panic);
        }
    }
}

impl Pool {
    /// A pool of `workers` threads beside the caller.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub(super) fn new(workers: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            board: Mutex::new(Board { posted: None }),
            posted: Condvar::new(),
            left: Condvar::new(),
            generation: AtomicU64::new(0),
            inside: AtomicUsize::new(0),
        });
        for index in 0..workers {
            let shared = shared.clone();
            // Workers live as long as the process, and are not joined.
            std::thread::Builder::new()
                .name(format!("kernel-{index}"))
                .spawn(move || shared.help_forever())?;
        }
        Ok(Self {
            shared,
            workers,
            busy: Mutex::new(()),
        })
    }

    /// Threads beside the caller.
    pub(super) fn workers(&self) -> usize {
        self.workers
    }

    /// Calls `task(0)` to `task(count - 1)`, each once, in any order and on any thread; returns when all are done.
    /// Inside another loop, or beside another caller's, runs them on this thread.
    ///
    /// # Panics
    /// When a call panics; the others have then ended or were not begun.
    pub(super) fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        let Ok(_busy) = self.busy.try_lock() else {
            (0..count).for_each(task);
            return;
        };
        let work = Loop {
            task,
            count,
            next: AtomicUsize::new(0),
            panic: Mutex::new(None),
        };
        self.shared.post(
            LoopRef((&raw const work).cast()),
            self.workers.min(count.saturating_sub(1)),
        );
        work.work();
        self.shared.withdraw();
        if let Some(panic) = lock(&work.panic).take() {
            drop(_busy);
            resume_unwind(panic);
        }
    }
}

impl Shared {
    fn post(&self, work: LoopRef, helpers: usize) {
        lock(&self.board).posted = Some(work);
        self.generation.fetch_add(1, Ordering::Release);
        for _ in 0..helpers {
            self.posted.notify_one();
        }
    }

    /// Takes the loop back, and waits for those inside it. Nobody enters afterwards.
    fn withdraw(&self) {
        lock(&self.board).posted = None;
        linger(|| self.inside.load(Ordering::Acquire) == 0);
        let mut board = lock(&self.board);
        while self.inside.load(Ordering::Acquire) > 0 {
            board = self
                .left
                .wait(board)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn help_forever(&self) {
        let mut seen = 0;
        loop {
            linger(|| self.generation.load(Ordering::Acquire) != seen);
            let work = self.enter(&mut seen);
            // SAFETY: `enter` counted this thread in while the loop was posted, and its caller does not return
            // before `leave` has counted it out.
            unsafe { &*work.0 }.work();
            self.leave();
        }
    }

    /// Waits for a loop that this worker has not seen.
    fn enter(&self, seen: &mut u64) -> LoopRef {
        let mut board = lock(&self.board);
        loop {
            let generation = self.generation.load(Ordering::Acquire);
            match board.posted {
                Some(work) if generation != *seen => {
                    *seen = generation;
                    self.inside.fetch_add(1, Ordering::AcqRel);
                    return work;
                }
                _ => {
                    board = self
                        .posted
                        .wait(board)
                        .unwrap_or_else(PoisonError::into_inner)
                }
            }
        }
    }

    fn leave(&self) {
        // Under the lock, so that a caller about to wait cannot miss it.
        let _board = lock(&self.board);
        if self.inside.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.left.notify_one();
        }
    }
}

/// Waits a little for `ready`; whether it came or not.
fn linger(ready: impl Fn() -> bool) {
    for _ in 0..LINGER_TURNS {
        if ready() {
            return;
        }
        std::hint::spin_loop();
    }
}

/// No code that can panic runs while these locks are held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn every_item_runs_once() {
        let pool = Pool::new(3).unwrap();
        for count in [0, 1, 2, 3, 100, 1000] {
            for _ in 0..50 {
                let runs: Vec<AtomicU32> = (0..count).map(|_| AtomicU32::new(0)).collect();
                pool.run(count, &|item| {
                    runs[item].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1),
                    "{count} items"
                );
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2).unwrap();
        for bad in [0, 17, 99] {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(100, &|item| assert!(item != bad, "planted"))
            }));
            assert!(outcome.is_err());
        }
        let done = AtomicU32::new(0);
        pool.run(100, &|_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.load(Ordering::Relaxed), 100);
    }

    #[test]
    fn loops_inside_loops_and_beside_each_other_finish() {
        let pool = Pool::new(2).unwrap();
        let done = AtomicU32::new(0);
        let nested = || {
            pool.run(10, &|_| {
                pool.run(10, &|_| {
                    done.fetch_add(1, Ordering::Relaxed);
                });
            });
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(nested);
            }
        });
        assert_eq!(done.load(Ordering::Relaxed), 400);
    }
}
