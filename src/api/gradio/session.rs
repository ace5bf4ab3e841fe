//! Sessions: which events a client has joined with, and how far they have been told. Nothing of what the
//! events say is here; a session's stream reads their logs.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use tokio::sync::watch;

use super::GradioConfig;
use crate::api::auth::Caller;
use crate::api::error::ApiError;
use crate::job::RequestId;
use crate::time::{Clock, RealClock, Time};

/// The longest `session_hash`; clients draw some ten to forty characters.
const MAX_HASH_BYTES: usize = 128;

/// A session belongs to its caller.
type Key = (Caller, String);

/// All sessions.
pub(super) struct Sessions {
    config: GradioConfig,
    clock: Arc<RealClock>,
    by_key: Mutex<HashMap<Key, Arc<Session>>>,
}

/// One client's events.
pub(super) struct Session {
    clock: Arc<RealClock>,
    state: Mutex<State>,
    /// Wakes streams when an event joins, or is not going to.
    changed: watch::Sender<()>,
}

struct State {
    /// In the order of joining.
    events: VecDeque<Joined>,
    /// Events that are being admitted.
    expected: usize,
    next_number: u64,
    streams: u32,
    last_used: Time,
    /// When a stream was last told to be over.
    closed_at: Option<Time>,
}

/// An event of a session.
#[derive(Clone, Debug)]
pub(super) struct Joined {
    /// Its number in the session, from 0.
    pub(super) number: u64,
    /// Its request.
    pub(super) id: RequestId,
    /// Where its client reaches the service.
    pub(super) address: Arc<str>,
    /// Its end was handed to a connection.
    told: bool,
}

impl Sessions {
    pub(super) fn new(config: GradioConfig, clock: Arc<RealClock>) -> Self {
        Sessions {
            config,
            clock,
            by_key: Mutex::default(),
        }
    }

    /// The session of this name, if anybody has joined with it.
    pub(super) fn get(&self, caller: &Caller, hash: &str) -> Option<Arc<Session>> {
        let key = (caller.clone(), hash.to_owned());
        lock(&self.by_key).get(&key).map(Arc::clone)
    }

    /// Takes a place for an event before it is admitted. A session begins with its first.
    ///
    /// # Errors
    /// 400 for a name that is none, 503 if the session has as many events as it may have, or there are as
    /// many sessions.
    pub(super) fn place(&self, caller: &Caller, hash: &str) -> Result<Place, ApiError> {
        if hash.is_empty() || hash.len() > MAX_HASH_BYTES {
            let message = format!("session_hash must have 1 to {MAX_HASH_BYTES} bytes");
            return Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "invalid_session",
                message,
            ));
        }
        let key = (caller.clone(), hash.to_owned());
        let mut by_key = lock(&self.by_key);
        if !by_key.contains_key(&key) && by_key.len() >= self.config.max_sessions {
            self.make_room(&mut by_key);
            if by_key.len() >= self.config.max_sessions {
                let most = self.config.max_sessions;
                let message = format!("{most} sessions are in use (gradio_max_sessions)");
                return Err(full("sessions_full", message));
            }
        }
        let session = by_key
            .entry(key)
            .or_insert_with(|| Session::new(Arc::clone(&self.clock)));
        let most = self.config.max_session_events;
        let mut state = lock(&session.state);
        let untold = state.events.iter().filter(|event| !event.told).count();
        if untold + state.expected >= most {
            let message =
                format!("{most} events of this session have not ended (gradio_max_session_events)");
            return Err(full("session_full", message));
        }
        state.expected += 1;
        state.last_used = self.clock.now();
        drop(state);
        Ok(Place {
            session: Arc::clone(session),
            most,
        })
    }

    /// Forgets sessions that nobody has used for long.
    pub(super) fn sweep(&self) {
        let now = self.clock.now();
        let ttl = self.config.session_ttl;
        lock(&self.by_key).retain(|_, session| {
            let state = lock(&session.state);
            !state.is_idle() || now.saturating_since(state.last_used) < ttl
        });
    }

    /// Of the sessions with nothing to tell and nobody to tell it to, the older half goes. So many at once that
    /// it seldom has to be done.
    fn make_room(&self, by_key: &mut HashMap<Key, Arc<Session>>) {
        let idle = |session: &Session| {
            let state = lock(&session.state);
            let told = state.events.iter().all(|event| event.told);
            (state.is_idle() && told).then_some(state.last_used)
        };
        let mut used: Vec<Time> = by_key.values().filter_map(|one| idle(one)).collect();
        let middle = used.len() / 2;
        if used.is_empty() {
            return;
        }
        let (_, limit, _) = used.select_nth_unstable(middle);
        let limit = *limit;
        by_key.retain(|_, session| idle(session).is_none_or(|used| used > limit));
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.streams == 0 && self.expected == 0
    }
}

impl Session {
    fn new(clock: Arc<RealClock>) -> Arc<Self> {
        let state = State {
            events: VecDeque::new(),
            expected: 0,
            next_number: 0,
            streams: 0,
            last_used: clock.now(),
            closed_at: None,
        };
        Arc::new(Session {
            clock,
            state: Mutex::new(state),
            changed: watch::Sender::new(()),
        })
    }

    /// Counts as a reader until it is dropped.
    pub(super) fn open(self: &Arc<Self>) -> Open {
        lock(&self.state).streams += 1;
        Open {
            session: Arc::clone(self),
        }
    }

    /// Tells when an event has joined.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Events from this number on, and the number that the next to join will have.
    pub(super) fn from(&self, number: u64) -> (Vec<Joined>, u64) {
        let state = lock(&self.state);
        let events = state.events.iter().filter(|event| event.number >= number);
        (events.cloned().collect(), state.next_number)
    }

    /// The event's end was handed to a connection.
    pub(super) fn tell(&self, number: u64) {
        let mut state = lock(&self.state);
        let events = state.events.iter_mut();
        for event in events.filter(|event| event.number == number) {
            event.told = true;
        }
    }

    /// Whether a stream that has told all events below `next_number` may say that it is over. Joining and
    /// this exclude each other, so no event falls between two streams.
    pub(super) fn close(&self, next_number: u64) -> bool {
        let mut state = lock(&self.state);
        let over = state.expected == 0 && state.next_number == next_number;
        if over {
            state.closed_at = Some(self.clock.now());
        }
        over
    }
}

impl Joined {
    pub(super) fn is_told(&self) -> bool {
        self.told
    }
}

/// A stream of a session.
pub(super) struct Open {
    session: Arc<Session>,
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = lock(&self.session.state);
        state.streams -= 1;
        state.last_used = self.session.clock.now();
    }
}

/// A place in a session. Dropped unused, it is free again.
pub(super) struct Place {
    session: Arc<Session>,
    most: usize,
}

impl Place {
    /// The event has been admitted. Returns when a stream of the session was last told to be over. An event
    /// that has joined before (its key was repeated) does not join again.
    pub(super) fn take(self, id: RequestId, address: Arc<str>) -> Option<Time> {
        let mut state = lock(&self.session.state);
        if !state.events.iter().any(|event| event.id == id) {
            let number = state.next_number;
            state.next_number += 1;
            // What has been told is kept for streams that are resumed, within the bound.
            if state.events.len() >= self.most
                && let Some(oldest) = state.events.iter().position(|event| event.told)
            {
                state.events.remove(oldest);
            }
            state.events.push_back(Joined {
                number,
                id,
                address,
                told: false,
            });
        }
        state.closed_at
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.session.state).expected -= 1;
        self.session.changed.send_replace(());
    }
}

fn full(code: &'static str, message: String) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
        .retry_after(std::time::Duration::from_secs(1))
}

/// What is behind these locks is valid after every statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sessions(config: GradioConfig) -> Sessions {
        Sessions::new(config, Arc::new(RealClock::start()))
    }

    fn join(sessions: &Sessions, hash: &str, id: u128) -> Result<(), &'static str> {
        let place = sessions.place(&Caller::default(), hash);
        let place = place.map_err(|error| error.code)?;
        place.take(RequestId::from_u128(id), "http://here".into());
        Ok(())
    }

    fn get(sessions: &Sessions, hash: &str) -> Arc<Session> {
        let session = sessions.get(&Caller::default(), hash);
        session.expect("somebody has joined")
    }

    #[test]
    fn events_are_numbered_and_join_once() {
        let sessions = sessions(GradioConfig::default());
        for id in [7, 8, 7] {
            join(&sessions, "a", id).unwrap();
        }
        let (events, next) = get(&sessions, "a").from(0);
        let numbers: Vec<_> = events.iter().map(|event| event.number).collect();
        assert_eq!((numbers, next), (vec![0, 1], 2));
        let bob = Caller::new(Some("bob".into()), None);
        assert!(sessions.get(&bob, "a").is_none());
    }

    #[test]
    fn a_session_closes_only_when_nothing_is_expected() {
        let sessions = sessions(GradioConfig::default());
        join(&sessions, "a", 1).unwrap();
        let session = get(&sessions, "a");
        assert!(!session.close(0), "an event has joined meanwhile");
        let place = sessions.place(&Caller::default(), "a").unwrap();
        assert!(!session.close(1), "one is being admitted");
        drop(place);
        assert!(session.close(1));
        join(&sessions, "a", 2).unwrap();
        assert!(!session.close(1));
    }

    #[test]
    fn bounds_are_kept() {
        let config = GradioConfig {
            max_sessions: 2,
            max_session_events: 2,
            ..GradioConfig::default()
        };
        let sessions = sessions(config);
        assert_eq!(join(&sessions, "", 1), Err("invalid_session"));
        assert_eq!(join(&sessions, &"x".repeat(129), 1), Err("invalid_session"));
        join(&sessions, "a", 1).unwrap();
        join(&sessions, "a", 2).unwrap();
        assert_eq!(join(&sessions, "a", 3), Err("session_full"));
        get(&sessions, "a").tell(0);
        join(&sessions, "a", 3).unwrap();
        let (events, _) = get(&sessions, "a").from(0);
        assert_eq!(events.len(), 2, "the one that was told made room");

        join(&sessions, "b", 4).unwrap();
        assert_eq!(join(&sessions, "c", 5), Err("sessions_full"));
        // One that has nothing to tell makes room for another.
        get(&sessions, "b").tell(0);
        join(&sessions, "c", 5).unwrap();
        assert!(sessions.get(&Caller::default(), "b").is_none());
    }

    #[test]
    fn sessions_without_a_reader_are_forgotten() {
        let config = GradioConfig {
            session_ttl: Duration::ZERO,
            ..GradioConfig::default()
        };
        let sessions = sessions(config);
        join(&sessions, "a", 1).unwrap();
        let open = get(&sessions, "a").open();
        sessions.sweep();
        assert!(sessions.get(&Caller::default(), "a").is_some());
        drop(open);
        sessions.sweep();
        assert!(sessions.get(&Caller::default(), "a").is_none());
    }
}
