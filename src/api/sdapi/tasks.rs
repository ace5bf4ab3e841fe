//! The requests of this dialect by who sent them, so that each caller sees and stops its own alone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::who::Who;
use crate::api::requests::Request;
use crate::events::store::SharedLog;

/// Tasks that have ended are remembered so long: `/internal/progress` tells that they are complete.
const MAX_ENDED: usize = 256;

/// All tasks that run, and the last ones that did.
#[derive(Default)]
pub(super) struct Tasks {
    /// In the order of their arrival.
    entries: Mutex<Vec<Arc<Task>>>,
}

/// One call of `txt2img` or `img2img`.
pub(super) struct Task {
    who: Who,
    /// `force_task_id`.
    id: Option<String>,
    progress: Mutex<Progress>,
}

/// How a task was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// By `interrupt`.
    Interrupted,
    /// By `skip`.
    Skipped,
}

struct Progress {
    stage: Stage,
    stop: Option<Stop>,
}

#[derive(Clone)]
enum Stage {
    /// It is being admitted.
    Arriving,
    /// It has become a request. What that asks for is kept no longer than its log.
    Accepted(Weak<Request>, Weak<SharedLog>),
    /// It was refused, or its client left before it was accepted.
    Gone,
}

/// Where a task is.
pub(super) enum Standing {
    /// It is being admitted.
    Arriving,
    /// It waits or runs.
    Live(Arc<Request>, Arc<SharedLog>),
    /// It has come to its end.
    Ended,
}

impl Tasks {
    /// A task arrives. If the guard is dropped before the task is accepted, it never was.
    pub(super) fn arrive(&self, who: Who, id: Option<String>) -> Arrival {
        let task = Arc::new(Task {
            who,
            id,
            progress: Mutex::new(Progress {
                stage: Stage::Arriving,
                stop: None,
            }),
        });
        let mut entries = lock(&self.entries);
        forget_oldest(&mut entries);
        entries.push(Arc::clone(&task));
        Arrival { task }
    }

    /// The caller's task that is meant by `id`; see [`super`].
    pub(super) fn find(&self, who: &Who, id: Option<&str>) -> Option<Arc<Task>> {
        let entries = lock(&self.entries);
        let mut meant = entries
            .iter()
            .filter(|task| task.who == *who && task.id.as_deref() == id);
        match id {
            None => meant.find(|task| task.is_live()).cloned(),
            Some(_) => {
                let last = meant.clone().next_back();
                meant.rfind(|task| task.is_live()).or(last).cloned()
            }
        }
    }

    /// Whether the caller has a task that runs and has a name.
    pub(super) fn has_named(&self, who: &Who) -> bool {
        lock(&self.entries)
            .iter()
            .any(|task| task.who == *who && task.id.is_some() && task.is_live())
    }
}

/// Keeps what runs, and of the rest the youngest.
fn forget_oldest(entries: &mut Vec<Arc<Task>>) {
    entries.retain(|task| !task.is_gone());
    let ended = entries.iter().filter(|task| !task.is_live()).count();
    let mut surplus = ended.saturating_sub(MAX_ENDED);
    entries.retain(|task| {
        let goes = surplus > 0 && !task.is_live();
        surplus -= usize::from(goes);
        !goes
    });
}

/// A task whose call is being answered.
pub(super) struct Arrival {
    task: Arc<Task>,
}

impl Arrival {
    /// It has become this request. One that was stopped meanwhile is cancelled.
    pub(super) fn accept(&self, request: &Arc<Request>, log: &Arc<SharedLog>) {
        let mut progress = lock(&self.task.progress);
        progress.stage = Stage::Accepted(Arc::downgrade(request), Arc::downgrade(log));
        if progress.stop.is_some() {
            request.model.engine.cancel(request.id);
        }
    }

    /// How it was stopped, if it was.
    pub(super) fn stopped(&self) -> Option<Stop> {
        lock(&self.task.progress).stop
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let mut progress = lock(&self.task.progress);
        if matches!(progress.stage, Stage::Arriving) {
            progress.stage = Stage::Gone;
        }
    }
}

impl Task {
    /// Ends it within a step. One that has ended stays as it is.
    pub(super) fn stop(&self, stop: Stop) {
        let mut progress = lock(&self.progress);
        match &progress.stage {
            Stage::Gone => return,
            Stage::Arriving => {}
            Stage::Accepted(_, log) => {
                if log.upgrade().is_none_or(|log| log.is_closed()) {
                    return;
                }
            }
        }
        if let Stage::Accepted(request, _) = &progress.stage
            && let Some(request) = request.upgrade()
        {
            request.model.engine.cancel(request.id);
        }
        progress.stop.get_or_insert(stop);
    }

    /// How it was stopped, if it was.
    pub(super) fn stopped(&self) -> Option<Stop> {
        lock(&self.progress).stop
    }

    /// Where it is.
    pub(super) fn standing(&self) -> Standing {
        match lock(&self.progress).stage.clone() {
            Stage::Arriving => Standing::Arriving,
            Stage::Gone => Standing::Ended,
            Stage::Accepted(request, log) => match (request.upgrade(), log.upgrade()) {
                (Some(request), Some(log)) if !log.is_closed() => Standing::Live(request, log),
                _ => Standing::Ended,
            },
        }
    }

    fn is_live(&self) -> bool {
        !matches!(self.standing(), Standing::Ended)
    }

    fn is_gone(&self) -> bool {
        matches!(lock(&self.progress).stage, Stage::Gone)
    }
}

/// What is behind these locks is valid after every statement, so a panic elsewhere does no harm.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::api::auth::Caller;

    fn key(name: &str) -> Who {
        Who::new(Caller::new(Some(name.into()), None))
    }

    fn address(last: u8) -> Who {
        let address = IpAddr::from([127, 0, 0, last]);
        Who::new(Caller::new(None, Some(address)))
    }

    fn is(found: Option<Arc<Task>>, arrival: &Arrival) -> bool {
        found.is_some_and(|task| Arc::ptr_eq(&task, &arrival.task))
    }

    #[test]
    fn a_caller_finds_its_own() {
        let tasks = Tasks::default();
        let alices = tasks.arrive(key("alice"), None);
        let bobs = tasks.arrive(key("bob"), None);
        let near = tasks.arrive(address(1), None);
        let far = tasks.arrive(address(2), None);
        assert!(is(tasks.find(&key("alice"), None), &alices));
        assert!(is(tasks.find(&key("bob"), None), &bobs));
        assert!(is(tasks.find(&address(1), None), &near));
        assert!(is(tasks.find(&address(2), None), &far));
        assert!(tasks.find(&key("carol"), None).is_none());
        // A key's owner is known wherever it calls from.
        let address = IpAddr::from([10, 0, 0, 9]);
        let elsewhere = Who::new(Caller::new(Some("bob".into()), Some(address)));
        assert!(is(tasks.find(&elsewhere, None), &bobs));
    }

    #[test]
    fn a_name_tells_tasks_of_one_caller_apart() {
        let tasks = Tasks::default();
        let who = address(1);
        assert!(!tasks.has_named(&who));
        let one = tasks.arrive(who.clone(), Some("one".to_owned()));
        let other = tasks.arrive(who.clone(), Some("other".to_owned()));
        assert!(tasks.find(&who, None).is_none());
        assert!(tasks.has_named(&who));
        assert!(!tasks.has_named(&address(2)));
        let first = tasks.arrive(who.clone(), None);
        let second = tasks.arrive(who.clone(), None);
        assert!(is(tasks.find(&who, Some("one")), &one));
        assert!(is(tasks.find(&who, Some("other")), &other));
        assert!(tasks.find(&who, Some("third")).is_none());
        assert!(tasks.find(&address(2), Some("one")).is_none());
        // Without a name, the oldest that has none.
        assert!(is(tasks.find(&who, None), &first));
        drop(first);
        assert!(is(tasks.find(&who, None), &second));
        // Of several with one name, the youngest that runs.
        let again = tasks.arrive(who.clone(), Some("one".to_owned()));
        assert!(is(tasks.find(&who, Some("one")), &again));
        drop(again);
        assert!(is(tasks.find(&who, Some("one")), &one));
    }

    #[test]
    fn what_has_ended_is_not_kept_for_ever() {
        let tasks = Tasks::default();
        let kept = tasks.arrive(address(1), Some("kept".to_owned()));
        for _ in 0..3 * MAX_ENDED {
            drop(tasks.arrive(address(1), Some("gone".to_owned())));
        }
        assert!(lock(&tasks.entries).len() <= 2);
        assert!(is(tasks.find(&address(1), Some("kept")), &kept));
    }

    #[test]
    fn a_stop_before_the_acceptance_is_remembered() {
        let tasks = Tasks::default();
        let arrival = tasks.arrive(address(1), None);
        let task = tasks.find(&address(1), None).unwrap();
        assert_eq!(arrival.stopped(), None);
        task.stop(Stop::Skipped);
        task.stop(Stop::Interrupted);
        assert_eq!(arrival.stopped(), Some(Stop::Skipped));
        drop(arrival);
        assert!(matches!(task.standing(), Standing::Ended));
    }
}
