//! Request id -> shared log: wakes readers, keeps finished logs for a while, forgets them in order.
//!
//! The one place in the core that knows an async runtime, and only to wake readers with. Appending
//! never waits for a reader: readers copy a few events at a time and keep nothing locked meanwhile.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use super::log::EventLog;
use super::{Event, EventKind, EventSink};
use crate::job::RequestId;
use crate::time::{Clock, Time};

/// How long finished logs are kept, and how much of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Finished logs are kept this long.
    pub max_age: Duration,
    /// All logs together hold at most this many bytes; the oldest finished go first.
    pub max_bytes: u64,
    /// At most this many finished logs.
    pub max_logs: usize,
    /// Ids of forgotten logs that are remembered, to answer 410 and not 404.
    pub max_expired_ids: usize,
}

impl Default for Retention {
    fn default() -> Self {
        Retention {
            max_age: Duration::from_secs(600),
            max_bytes: 512 << 20,
            max_logs: 10_000,
            max_expired_ids: 100_000,
        }
    }
}

/// Events copied under one lock: few enough that the engine is not held up by a long replay.
const EVENTS_PER_LOCK: usize = 64;

/// One request's log, shared by the engine, which appends, and any number of readers.
pub struct SharedLog {
    id: RequestId,
    log: Mutex<EventLog>,
    last_seq: AtomicU64,
    closed: AtomicBool,
    news: Notify,
    end: Notify,
    store: Weak<Shared>,
}

impl SharedLog {
    /// Every event from number `seq` on, in order.
    pub fn read_from(&self, seq: u64) -> Vec<Event> {
        let mut events = lock(&self.log).read_from(seq, EVENTS_PER_LOCK);
        while let Some(last) = events.last()
            && last.seq < self.last_seq()
        {
            let next = last.seq + 1;
            events.append(&mut lock(&self.log).read_from(next, EVENTS_PER_LOCK));
        }
        events
    }

    /// The number of the newest event; 0 for none.
    pub fn last_seq(&self) -> u64 {
        self.last_seq.load(Ordering::Acquire)
    }

    /// Whether the terminal event is in.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Returns when an event numbered above `seq` is in, or the log is closed.
    pub async fn wait_beyond(&self, seq: u64) {
        wait_until(&self.news, || self.last_seq() > seq || self.is_closed()).await;
    }

    /// Returns when the terminal event is in.
    pub async fn until_closed(&self) {
        wait_until(&self.end, || self.is_closed()).await;
    }

    fn bytes(&self) -> u64 {
        lock(&self.log).bytes()
    }
}

/// Waits for `done`, which becomes true before `signal` is given.
async fn wait_until(signal: &Notify, done: impl Fn() -> bool) {
    loop {
        // Listen before looking, so that a signal between the two is not lost.
        let mut signalled = std::pin::pin!(signal.notified());
        signalled.as_mut().enable();
        if done() {
            return;
        }
        signalled.await;
    }
}

impl EventSink for SharedLog {
    fn append(&self, at: Time, kind: EventKind) {
        let (appended, closed) = {
            let mut log = lock(&self.log);
            let appended = log.append(at, kind);
            self.last_seq.store(log.last_seq(), Ordering::Release);
            (appended, log.is_closed())
        };
        if appended.bytes == 0 {
            return;
        }
        if let Some(store) = self.store.upgrade() {
            store.bytes.fetch_add(appended.bytes, Ordering::Relaxed);
            store.bytes.fetch_sub(appended.freed, Ordering::Relaxed);
            if closed {
                lock(&store.logs).finished.push_back((at, self.id));
            }
        }
        if closed {
            self.closed.store(true, Ordering::Release);
            self.end.notify_waiters();
        }
        self.news.notify_waiters();
    }
}

/// What the store knows of an id.
pub enum Lookup {
    /// Here it is.
    Found(Arc<SharedLog>),
    /// There was one; it has been forgotten (410).
    Expired,
    /// There never was one, as far as is known (404).
    Unknown,
}

/// All logs of the service.
pub struct EventStore {
    retention: Retention,
    clock: Arc<dyn Clock>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    logs: Mutex<Logs>,
    bytes: AtomicU64,
}

#[derive(Default)]
struct Logs {
    by_id: HashMap<RequestId, Arc<SharedLog>>,
    /// Oldest first.
    finished: VecDeque<(Time, RequestId)>,
    expired: ExpiredIds,
}

/// Ids of forgotten logs, in order and for look-up.
#[derive(Default)]
struct ExpiredIds {
    order: VecDeque<RequestId>,
    known: HashSet<RequestId>,
}

impl ExpiredIds {
    fn remember(&mut self, id: RequestId, limit: usize) {
        self.order.push_back(id);
        self.known.insert(id);
        while self.order.len() > limit {
            let Some(oldest) = self.order.pop_front() else {
                return;
            };
            self.known.remove(&oldest);
        }
    }
}

impl EventStore {
    /// An empty store.
    pub fn new(retention: Retention, clock: Arc<dyn Clock>) -> Self {
        EventStore {
            retention,
            clock,
            shared: Arc::default(),
        }
    }

    /// A fresh log for a request that is about to be submitted.
    pub fn open(&self, id: RequestId) -> Arc<SharedLog> {
        self.sweep();
        let log = Arc::new(SharedLog {
            id,
            log: Mutex::default(),
            last_seq: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            news: Notify::new(),
            end: Notify::new(),
            store: Arc::downgrade(&self.shared),
        });
        lock(&self.shared.logs).by_id.insert(id, Arc::clone(&log));
        log
    }

    /// Forgets a log whose request was refused after all.
    pub fn discard(&self, id: RequestId) {
        let discarded = lock(&self.shared.logs).by_id.remove(&id);
        if let Some(log) = discarded {
            self.shared.bytes.fetch_sub(log.bytes(), Ordering::Relaxed);
        }
    }

    /// The log of a request.
    pub fn get(&self, id: RequestId) -> Lookup {
        self.sweep();
        let logs = lock(&self.shared.logs);
        if let Some(log) = logs.by_id.get(&id) {
            Lookup::Found(Arc::clone(log))
        } else if logs.expired.known.contains(&id) {
            Lookup::Expired
        } else {
            Lookup::Unknown
        }
    }

    /// Bytes of all logs.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Forgets finished logs that are too old or too many. Done on every look-up; to be called now
    /// and then besides, so that an idle service gives its memory back.
    pub fn sweep(&self) {
        let now = self.clock.now();
        let mut forgotten = Vec::new();
        let mut logs = lock(&self.shared.logs);
        while let Some((finished_at, id)) = logs.finished.front().copied() {
            let due = now.saturating_since(finished_at) >= self.retention.max_age
                || logs.finished.len() > self.retention.max_logs
                || self.bytes() > self.retention.max_bytes;
            if !due {
                break;
            }
            logs.finished.pop_front();
            if let Some(log) = logs.by_id.remove(&id) {
                self.shared.bytes.fetch_sub(log.bytes(), Ordering::Relaxed);
                logs.expired.remember(id, self.retention.max_expired_ids);
                forgotten.push(log);
            }
        }
        drop(logs);
        // Their memory is given back here, after the lock, which the engine may be waiting for.
        drop(forgotten);
    }
}

/// A panic elsewhere must not take the logs down: what is behind these locks is valid after every
/// statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Usage;
    use crate::time::ManualClock;

    const RETENTION: Retention = Retention {
        max_age: Duration::from_secs(60),
        max_bytes: 1 << 20,
        max_logs: 3,
        max_expired_ids: 2,
    };

    struct Fixture {
        store: EventStore,
        clock: Arc<ManualClock>,
    }

    impl Fixture {
        fn new(retention: Retention) -> Self {
            let clock = Arc::new(ManualClock::default());
            let store = EventStore::new(retention, Arc::clone(&clock) as Arc<dyn Clock>);
            Fixture { store, clock }
        }

        fn id(number: u128) -> RequestId {
            RequestId::from_u128(number)
        }

        fn finish(&self, number: u128) {
            let log = self.store.open(Self::id(number));
            log.append(self.clock.now(), EventKind::Started);
            log.append(self.clock.now(), finished());
        }

        /// One letter per id 1, 2, ..: found, expired, unknown.
        fn check(&self, expected: &str) {
            let mut found = String::new();
            for number in 1..=expected.len() as u128 {
                found.push(match self.store.get(Self::id(number)) {
                    Lookup::Found(_) => 'f',
                    Lookup::Expired => 'e',
                    Lookup::Unknown => 'u',
                });
            }
            assert_eq!(found, expected);
        }
    }

    fn finished() -> EventKind {
        EventKind::Finished {
            usage: Usage::default(),
        }
    }

    #[test]
    fn finished_logs_go_by_age() {
        let fixture = Fixture::new(RETENTION);
        fixture.finish(1);
        fixture.clock.advance(Duration::from_secs(30));
        fixture.finish(2);
        fixture.check("ffu");
        fixture.clock.advance(Duration::from_secs(30));
        fixture.check("efu");
        fixture.clock.advance(Duration::from_secs(30));
        fixture.check("eeu");
        assert_eq!(fixture.store.bytes(), 0);
    }

    #[test]
    fn finished_logs_go_by_number_and_their_ids_in_turn() {
        let fixture = Fixture::new(RETENTION);
        for number in 1..=6 {
            fixture.finish(number);
        }
        fixture.check("ueefff");
    }

    #[test]
    fn finished_logs_go_by_bytes_but_running_ones_stay() {
        let fixture = Fixture::new(Retention {
            max_bytes: 1_000,
            ..RETENTION
        });
        let running = fixture.store.open(Fixture::id(1));
        for _ in 0..100 {
            running.append(Time::ZERO, EventKind::Started);
        }
        fixture.finish(2);
        fixture.check("fe");
        fixture.clock.advance(Duration::from_secs(3_600));
        fixture.check("fe");
    }

    #[test]
    fn a_discarded_log_was_never_there() {
        let fixture = Fixture::new(RETENTION);
        let log = fixture.store.open(Fixture::id(1));
        log.append(Time::ZERO, EventKind::Started);
        fixture.store.discard(Fixture::id(1));
        fixture.check("u");
        assert_eq!(fixture.store.bytes(), 0);
    }

    #[test]
    fn a_long_log_is_read_whole() {
        let fixture = Fixture::new(RETENTION);
        let log = fixture.store.open(Fixture::id(1));
        for _ in 0..3 * EVENTS_PER_LOCK {
            log.append(Time::ZERO, EventKind::Started);
        }
        let numbers: Vec<u64> = log.read_from(2).iter().map(|event| event.seq).collect();
        assert_eq!(
            numbers,
            (2..=3 * EVENTS_PER_LOCK as u64).collect::<Vec<_>>()
        );
    }

    #[tokio::test]
    async fn readers_are_woken_by_news_and_by_the_end() {
        let fixture = Fixture::new(RETENTION);
        let log = fixture.store.open(Fixture::id(1));
        let reader = tokio::spawn({
            let log = Arc::clone(&log);
            async move {
                log.wait_beyond(0).await;
                let first = log.last_seq();
                log.until_closed().await;
                log.wait_beyond(u64::MAX).await;
                (first, log.last_seq())
            }
        });
        tokio::task::yield_now().await;
        log.append(Time::ZERO, EventKind::Started);
        while !reader.is_finished() && log.last_seq() < 2 {
            tokio::task::yield_now().await;
            log.append(Time::ZERO, finished());
        }
        let (first, last) = reader.await.unwrap();
        assert_eq!((first, last), (1, 2));
    }
}
