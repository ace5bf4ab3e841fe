//! A small pool for short parallel loops, made for shared cores.
//!
//! The caller works too, and items are claimed one by one: a worker that never woke costs nothing, and one that lost its
//! core in the middle of a loop holds up the item that it has, no more. Between the loops of a model step everybody lingers, which is cheaper than sleeping and
//! waking; who has waited longer than that parks, so that an idle service burns nothing.
#![allow(
    unsafe_code,
    reason = "workers borrow a loop that lives on the caller's stack"
)]

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Looks before a thread lets others have the core: about a microsecond.
const LOOKS: usize = 64;
/// How often it does that before it parks: some 60 microseconds in all, longer than the pauses within a step and about
/// what parking and waking would take.
const ROUNDS: usize = 50;

/// Threads that help a caller with its loops.
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: usize,
    /// Held by the caller whose loop runs. Others do not wait: they run their loops alone.
    busy: Mutex<()>,
}

struct Shared {
    /// The number of the posted loop (upper half), whether it is open to helpers ([`OPEN`]), and how many are inside.
    state: AtomicU64,
    /// The posted loop. Changes only while nobody is inside.
    work: AtomicPtr<Loop<'static>>,
    /// Workers that are parked, or about to be.
    parked: AtomicUsize,
    /// Whether the caller is parked, or about to be.
    caller_parked: AtomicBool,
    parking: Mutex<()>,
    posted: Condvar,
    left: Condvar,
}

/// The posted loop may be entered.
const OPEN: u64 = 1 << 31;
/// How many are inside the posted loop.
const INSIDE: u64 = OPEN - 1;

/// The number of the loop that a state is about.
fn number(state: u64) -> u64 {
    state >> 32
}

/// A loop that lives on its caller's stack.
struct Loop<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    count: usize,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

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
            // The first counts. Another is not dropped here, where its own drop might panic.
            match &mut *lock(&self.panic) {
                Some(_) => std::mem::forget(panic),
                first => *first = Some(panic),
            }
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
            state: AtomicU64::new(0),
            work: AtomicPtr::new(std::ptr::null_mut()),
            parked: AtomicUsize::new(0),
            caller_parked: AtomicBool::new(false),
            parking: Mutex::new(()),
            posted: Condvar::new(),
            left: Condvar::new(),
        });
        for index in 0..workers {
            let shared = shared.clone();
            // Workers live as long as the process, and are not joined.
            std::thread::Builder::new()
                .name(format!("kernel-{index}"))
                .spawn(move || {
                    super::work_alone();
                    shared.help_forever();
                })?;
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
        self.shared.post(&work);
        work.work();
        self.shared.withdraw();
        if let Some(panic) = lock(&work.panic).take() {
            drop(_busy);
            resume_unwind(panic);
        }
    }
}

impl Shared {
    /// Opens a loop to helpers. Nobody is inside the one before it any more.
    fn post(&self, work: &Loop<'_>) {
        self.work
            .store((&raw const *work).cast_mut().cast(), Ordering::Relaxed);
        let next = number(self.state.load(Ordering::Relaxed)) + 1;
        self.state.store(next << 32 | OPEN, Ordering::Release);
        // Either a worker about to park sees the loop, or this sees the worker.
        fence(Ordering::SeqCst);
        if self.parked.load(Ordering::Relaxed) > 0 {
            let _parking = lock(&self.parking);
            self.posted.notify_all();
        }
    }

    /// Takes the loop back, and waits for those inside it. Nobody enters afterwards.
    fn withdraw(&self) {
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let is_empty = || self.state.load(Ordering::Acquire) & INSIDE == 0;
        if linger(is_empty) {
            return;
        }
        self.caller_parked.store(true, Ordering::Relaxed);
        // As in `post`, with the parts exchanged.
        fence(Ordering::SeqCst);
        let mut parking = lock(&self.parking);
        while !is_empty() {
            parking = self
                .left
                .wait(parking)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_parked.store(false, Ordering::Relaxed);
    }

    fn help_forever(&self) {
        let mut seen = 0;
        loop {
            let is_new = || number(self.state.load(Ordering::Acquire)) != seen;
            if !linger(is_new) {
                self.park(is_new);
            }
            if let Some(work) = self.enter(&mut seen) {
                // SAFETY: `enter` counted this thread in while the loop was open, and its caller does not return
                // before `leave` has counted it out.
                unsafe { &*work }.work();
                self.leave();
            }
        }
    }

    fn park(&self, is_new: impl Fn() -> bool) {
        self.parked.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let mut parking = lock(&self.parking);
        while !is_new() {
            parking = self
                .posted
                .wait(parking)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.parked.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts this worker in, unless the newest loop is closed already.
    fn enter(&self, seen: &mut u64) -> Option<*const Loop<'static>> {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            *seen = number(state);
            if state & OPEN == 0 {
                return None;
            }
            match self.state.compare_exchange_weak(
                state,
                state + 1,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                // It stays the posted loop for as long as somebody is inside.
                Ok(_) => return Some(self.work.load(Ordering::Relaxed)),
                Err(now) => state = now,
            }
        }
    }

    fn leave(&self) {
        let before = self.state.fetch_sub(1, Ordering::AcqRel);
        if before & (OPEN | INSIDE) == 1 {
            fence(Ordering::SeqCst);
            if self.caller_parked.load(Ordering::Relaxed) {
                let _parking = lock(&self.parking);
                self.left.notify_one();
            }
        }
    }
}

/// Waits a little for `ready`; whether it came.
fn linger(ready: impl Fn() -> bool) -> bool {
    for _ in 0..ROUNDS {
        for _ in 0..LOOKS {
            if ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        // Somebody else may need the core, perhaps the one who is waited for.
        std::thread::yield_now();
    }
    false
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

    /// Waits for `ready`, parked threads and all; whether it came. How long is a matter of failing tests alone.
    fn comes(ready: impl Fn() -> bool) -> bool {
        const LOOKS: usize = 10_000;
        #[expect(
            clippy::disallowed_methods,
            reason = "nobody tells when another has parked"
        )]
        let pause = || std::thread::sleep(std::time::Duration::from_millis(2));
        (0..LOOKS).any(|_| {
            let is_ready = ready();
            if !is_ready {
                pause();
            }
            is_ready
        })
    }

    #[test]
    fn who_has_parked_is_woken() {
        const WORKERS: usize = 2;
        let pool = Pool::new(WORKERS).unwrap();
        let caller = std::thread::current().id();
        let is = |counter: &AtomicUsize, wanted| counter.load(Ordering::Relaxed) == wanted;
        for _ in 0..50 {
            assert!(comes(|| is(&pool.shared.parked, WORKERS)), "workers park");
            let begun = AtomicUsize::new(0);
            pool.run(WORKERS + 1, &|_| {
                begun.fetch_add(1, Ordering::Relaxed);
                // Nobody ends an item before all are begun, so each thread must come for one.
                assert!(comes(|| is(&begun, WORKERS + 1)), "workers wake");
                if std::thread::current().id() != caller {
                    let is_parked = || pool.shared.caller_parked.load(Ordering::Relaxed);
                    assert!(comes(is_parked), "the caller parks");
                }
            });
            assert!(is(&begun, WORKERS + 1));
        }
    }
}
