//! What the edge knows of each request whose log is kept: its model, its owner, who reads it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use super::ServedModel;
use super::auth::Caller;
use super::openai::ReplyShape;
use super::picture_parameters::PictureParameters;
use crate::events::store::SharedLog;
use crate::job::RequestId;
use crate::time::{Clock, RealClock, Time};

/// One accepted request.
pub struct Request {
    /// Its id.
    pub id: RequestId,
    /// The model it was sent to.
    pub model: Arc<ServedModel>,
    /// Whose it is; nobody else can see it.
    pub owner: Caller,
    /// When it was accepted: seconds since the Unix epoch.
    pub created: u64,
    /// When it was accepted, by the service's clock.
    pub accepted_at: Time,
    /// Answers wanted (`n`; its rows may be more, see `best_of`).
    pub choices: u32,
    /// Whether its client asked for log-probabilities of new tokens. They are also made, unasked,
    /// to rank the answers of `best_of`.
    pub logprobs: bool,
    /// How its stream looks in OpenAI's dialect, if it came in by that.
    pub openai: Option<ReplyShape>,
    /// What it draws, if it is for an image model.
    pub picture: Option<Arc<PictureParameters>>,
    /// Who reads it.
    pub(super) readers: Readers,
    /// The service ended it before its client had the answer: nobody read it, or it was one of
    /// several prompts of which another was refused. Its idempotency key is free again.
    pub(super) given_up: AtomicBool,
}

impl Request {
    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
    }

    fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }

    /// Says that somebody reads this request, until the guard is dropped. Held by streams, by long
    /// polls and by handlers that wait for the end.
    pub fn reader(self: &Arc<Self>) -> Reader {
        self.readers.join();
        Reader {
            request: Arc::clone(self),
        }
    }
}

/// Somebody reads a request.
pub struct Reader {
    request: Arc<Request>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.request.readers.leave();
    }
}

/// Counts a request's readers and remembers when the last one left.
pub(super) struct Readers {
    clock: Arc<RealClock>,
    count: Mutex<Count>,
    all_left: Notify,
}

struct Count {
    present: u32,
    last_left: Time,
}

impl Readers {
    /// Nobody has come yet, which counts from now.
    pub(super) fn none_yet(clock: Arc<RealClock>) -> Self {
        let last_left = clock.now();
        Readers {
            clock,
            count: Mutex::new(Count {
                present: 0,
                last_left,
            }),
            all_left: Notify::new(),
        }
    }

    fn join(&self) {
        lock(&self.count).present += 1;
    }

    fn leave(&self) {
        let mut count = lock(&self.count);
        count.present -= 1;
        count.last_left = self.clock.now();
        if count.present == 0 {
            self.all_left.notify_one();
        }
    }

    /// Since when nobody reads; `None` while somebody does.
    fn unread_since(&self) -> Option<Time> {
        let count = lock(&self.count);
        (count.present == 0).then_some(count.last_left)
    }
}

/// Gives a request up when nobody has read it for `grace`. Ends with the request.
pub(super) async fn abandon_when_unread(
    request: Arc<Request>,
    log: Arc<SharedLog>,
    grace: Duration,
) {
    let wait = async {
        loop {
            let Some(since) = request.readers.unread_since() else {
                request.readers.all_left.notified().await;
                continue;
            };
            let due = since + grace;
            if request.readers.clock.now() >= due {
                return;
            }
            let due = request.readers.clock.instant(due);
            tokio::time::sleep_until(tokio::time::Instant::from_std(due)).await;
        }
    };
    tokio::select! {
        // One that has just ended has not been given up.
        biased;
        () = log.until_closed() => {}
        () = wait => {
            tracing::info!(id = %request.id, "abandoned: nobody has read it for the grace time");
            request.give_up();
            request.model.engine.abandon(request.id);
        }
    }
}

/// All requests whose logs are kept, and the idempotency keys that lead to them.
///
/// Bounded by the store's retention: an entry goes when its log is gone.
#[derive(Default)]
pub struct Requests {
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    by_id: HashMap<RequestId, Entry>,
    by_key: HashMap<ScopedKey, KeyUse>,
    prune_at: usize,
}

struct Entry {
    request: Arc<Request>,
    log: Weak<SharedLog>,
}

/// An idempotency key belongs to its caller.
type ScopedKey = (Caller, String);

struct KeyUse {
    fingerprint: [u8; 32],
    /// `None` while the request is being admitted.
    id: Option<RequestId>,
}

/// What an idempotency key leads to.
pub(super) enum Claim {
    /// The key is new: a request may be made of it.
    New(KeyClaim),
    /// It stands for this request.
    Known(Arc<Request>, Arc<SharedLog>),
    /// It stands for a request that is being admitted right now.
    InProgress,
    /// It was used with another body.
    Mismatch,
}

impl Requests {
    /// Drops what is kept for logs that are gone. The service calls it now and then; insertions do
    /// when there is a lot of it.
    pub(super) fn sweep(&self) {
        lock(&self.entries).prune();
    }

    /// The request of this id, if it is the caller's.
    pub fn get(&self, id: RequestId, caller: &Caller) -> Option<Arc<Request>> {
        let entries = lock(&self.entries);
        let entry = entries.by_id.get(&id)?;
        (entry.request.owner == *caller).then(|| Arc::clone(&entry.request))
    }

    /// Everybody's requests that have not ended, for the operator.
    pub(super) fn open(&self) -> Vec<(Arc<Request>, Arc<SharedLog>)> {
        let entries = lock(&self.entries);
        let open = entries.by_id.values().filter_map(|entry| {
            let log = entry.log.upgrade().filter(|log| !log.is_closed())?;
            Some((Arc::clone(&entry.request), log))
        });
        open.collect()
    }

    pub(super) fn insert(&self, request: Arc<Request>, log: &Arc<SharedLog>) {
        let mut entries = lock(&self.entries);
        if entries.by_id.len() >= entries.prune_at {
            entries.prune();
        }
        let entry = Entry {
            log: Arc::downgrade(log),
            request,
        };
        entries.by_id.insert(entry.request.id, entry);
    }

    /// Takes an idempotency key for a new request, or tells what it already stands for. `log_of`: the log
    /// of a request, unless it has been forgotten, and the key with it (a slow reader may hold it still).
    pub(super) fn claim(
        self: &Arc<Self>,
        caller: &Caller,
        key: String,
        fingerprint: [u8; 32],
        log_of: impl Fn(RequestId) -> Option<Arc<SharedLog>>,
    ) -> Claim {
        let scoped = (caller.clone(), key);
        let mut entries = lock(&self.entries);
        if let Some(known) = entries.by_key.get(&scoped) {
            let is_same = known.fingerprint == fingerprint;
            match known.id {
                None if is_same => return Claim::InProgress,
                None => return Claim::Mismatch,
                Some(id) => {
                    let entry = entries.by_id.get(&id);
                    let request = entry.map(|entry| &entry.request);
                    let request = request.filter(|request| !request.is_given_up());
                    if let (Some(request), Some(log)) = (request, log_of(id)) {
                        return match is_same {
                            true => Claim::Known(Arc::clone(request), log),
                            false => Claim::Mismatch,
                        };
                    }
                }
            }
        }
        let key_use = KeyUse {
            fingerprint,
            id: None,
        };
        entries.by_key.insert(scoped.clone(), key_use);
        Claim::New(KeyClaim {
            requests: Arc::clone(self),
            scoped: Some(scoped),
        })
    }
}

impl Entries {
    /// Drops what is kept for logs that are gone. Costs the number of entries, and is done when
    /// that has doubled, so it adds a constant to each insertion.
    fn prune(&mut self) {
        const LEAST: usize = 64;
        self.by_id.retain(|_, entry| entry.is_kept());
        let by_id = &self.by_id;
        self.by_key
            .retain(|_, key| key.id.is_none_or(|id| by_id.contains_key(&id)));
        self.prune_at = 2 * self.by_id.len() + LEAST;
    }
}

impl Entry {
    fn is_kept(&self) -> bool {
        self.log.strong_count() > 0
    }
}

/// An idempotency key taken for a request that is being admitted. Dropped unused, it is free again.
pub(super) struct KeyClaim {
    requests: Arc<Requests>,
    scoped: Option<ScopedKey>,
}

impl KeyClaim {
    /// The key stands for this request from now on.
    pub(super) fn bind(mut self, id: RequestId) {
        if let Some(scoped) = self.scoped.take()
            && let Some(key_use) = lock(&self.requests.entries).by_key.get_mut(&scoped)
        {
            key_use.id = Some(id);
        }
    }
}

impl Drop for KeyClaim {
    fn drop(&mut self) {
        if let Some(scoped) = self.scoped.take() {
            lock(&self.requests.entries).by_key.remove(&scoped);
        }
    }
}

/// What is behind these locks is valid after every statement, so a panic elsewhere does no harm.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
