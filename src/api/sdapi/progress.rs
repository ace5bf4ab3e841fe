//! How far a caller's task has come, and its end before its time. Which task is meant: see [`super`].

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::{Extension, Json};
use serde_json::{Map, Value, json};

use super::WebUiError;
use super::read::task_id;
use super::tasks::{Standing, Stop, Task, Tasks};
use super::who::Who;
use super::wire::{self, ProgressReply, TaskProgress};
use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::picture_file::{in_base64, preview_encoding};
use crate::api::requests::Request;
use crate::events::{Event, EventKind};
use crate::intake::{Fields, Invalid, shortened};
use crate::picture::Picture;
use crate::time::{Clock, Time};

/// What a log says of how far a request has come.
struct Seen {
    at: Time,
    rows: Vec<Row>,
    started: Option<Time>,
    /// Its place, until it starts: the position, and when it should start.
    queue: Option<(u32, Option<Time>)>,
}

/// One picture of it.
#[derive(Clone, Default)]
struct Row {
    step: u32,
    steps: u32,
    /// When it should be there.
    due: Option<Time>,
    finished: bool,
    /// With the number of its event.
    preview: Option<(u64, Arc<Picture>)>,
}

impl Seen {
    /// What `events` say at the time `at`.
    fn of(request: &Request, events: &[Event], at: Time) -> Self {
        let steps = request
            .picture
            .as_ref()
            .map_or(0, |picture| picture.iterations);
        let row = Row {
            steps,
            ..Row::default()
        };
        let mut seen = Seen {
            at,
            rows: vec![row; request.choices as usize],
            started: None,
            queue: None,
        };
        for event in events {
            seen.add(event);
        }
        seen
    }

    fn add(&mut self, event: &Event) {
        let due = |eta: &Option<Duration>| eta.map(|eta| event.at + eta);
        match &event.kind {
            EventKind::Queued { position, eta, .. } => self.queue = Some((*position, due(eta))),
            EventKind::Started => {
                self.started = Some(event.at);
                self.queue = None;
            }
            EventKind::Progress {
                choice,
                step,
                steps,
                eta,
            } => {
                let due = due(eta);
                if let Some(row) = self.row(*choice) {
                    (row.step, row.steps, row.due) = (*step, *steps, due);
                }
            }
            EventKind::Preview {
                choice, picture, ..
            } => {
                if let Some(row) = self.row(*choice) {
                    row.preview = Some((event.seq, Arc::clone(picture)));
                }
            }
            EventKind::ChoiceFinished { choice, .. } => {
                if let Some(row) = self.row(*choice) {
                    row.finished = true;
                }
            }
            _ => {}
        }
    }

    fn row(&mut self, choice: u32) -> Option<&mut Row> {
        self.rows.get_mut(choice as usize)
    }

    /// Between 0 and 1.
    fn share(&self) -> f64 {
        let share = |row: &Row| match row {
            Row { finished: true, .. } => 1.0,
            Row { steps: 0, .. } => 0.0,
            row => f64::from(row.step) / f64::from(row.steps),
        };
        self.rows.iter().map(share).sum::<f64>() / self.rows.len().max(1) as f64
    }

    /// Seconds until all of it is drawn, as far as that can be told: of a request that waits, until it
    /// starts.
    fn eta(&self) -> Option<f64> {
        let until = |due: Time| due.saturating_since(self.at).as_secs_f64();
        if let Some((_, due)) = self.queue {
            return due.map(until);
        }
        let open = || self.rows.iter().filter(|row| !row.finished);
        if open().all(|row| row.due.is_some()) {
            return open().filter_map(|row| row.due.map(until)).reduce(f64::max);
        }
        // Some pictures wait for others: the rest takes as long as what is done took for its share.
        let (share, began) = (self.share(), self.started?);
        let elapsed = self.at.saturating_since(began).as_secs_f64();
        (share > 0.0).then(|| elapsed * (1.0 - share) / share)
    }

    /// The newest preview of the first picture that is not finished.
    fn preview(&self) -> Option<&(u64, Arc<Picture>)> {
        let open = self.rows.iter().filter(|row| !row.finished);
        open.filter_map(|row| row.preview.as_ref()).next()
    }

    fn textinfo(&self) -> Option<String> {
        match self.queue {
            Some((position, _)) => Some(format!("Queued, {position} ahead")),
            None if self.started.is_none() => Some("Queued".to_owned()),
            None => None,
        }
    }

    fn state(&self, request: &Request, task: &Task) -> wire::State {
        let open = self.rows.iter().filter(|row| !row.finished);
        let current = open.max_by_key(|row| row.step).or(self.rows.last());
        let (step, steps) = current.map_or((0, 0), |row| (row.step, row.steps));
        wire::State {
            skipped: task.stopped() == Some(Stop::Skipped),
            interrupted: task.stopped() == Some(Stop::Interrupted),
            stopping_generation: false,
            job: request.id.to_string(),
            job_count: request.choices,
            job_timestamp: request.created.to_string(),
            job_no: self.rows.iter().filter(|row| row.finished).count() as u32,
            sampling_step: step,
            sampling_steps: steps,
        }
    }
}

async fn png(picture: &Arc<Picture>) -> Result<String, ApiError> {
    in_base64(picture, preview_encoding()).await
}

/// How far the caller's task has come.
#[utoipa::path(get, path = "/sdapi/v1/progress", tag = "web UI",
    params(
        ("skip_current_image" = Option<bool>, Query, description = "leave the preview out"),
        ("id_task" = Option<String>, Query,
            description = "the `force_task_id` of the call that is meant; without, the oldest that gave none"),
    ),
    responses((status = 200, description = "`state.job_count` is 0 if nothing runs", body = ProgressReply)))]
pub(super) async fn show(
    State(state): State<Arc<AppState>>,
    Extension(tasks): Extension<Arc<Tasks>>,
    who: Who,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Json<ProgressReply>, WebUiError> {
    let mut fields = query_fields(query)?;
    let skip = flag(&mut fields, "skip_current_image")?;
    let id = task_id(&mut fields, "id_task")?;
    fields.finish()?;
    let idle = ProgressReply {
        progress: 0.0,
        eta_relative: 0.0,
        state: wire::State::default(),
        current_image: None,
        textinfo: None,
    };
    let Some(task) = tasks.find(&who, id.as_deref()) else {
        return Ok(Json(idle));
    };
    let (request, log) = match task.standing() {
        Standing::Live(request, log) => (request, log),
        Standing::Ended => return Ok(Json(idle)),
        Standing::Arriving => {
            let mut arriving = idle;
            arriving.state.job_count = 1;
            return Ok(Json(arriving));
        }
    };
    let seen = Seen::of(&request, &log.read_from(1), state.clock.now());
    let current_image = match seen.preview() {
        Some((_, picture)) if !skip => Some(png(picture).await?),
        _ => None,
    };
    Ok(Json(ProgressReply {
        progress: seen.share(),
        eta_relative: seen.eta().unwrap_or_default(),
        state: seen.state(&request, &task),
        current_image,
        textinfo: seen.textinfo(),
    }))
}

/// Ends the caller's task within a step; its call is answered with the pictures that are finished.
#[utoipa::path(post, path = "/sdapi/v1/interrupt", tag = "web UI",
    params(("id_task" = Option<String>, Query,
        description = "the `force_task_id` of the call that is meant; without, the oldest that gave none")),
    responses(
        (status = 200, description = "`{}`, also if nothing runs"),
        (status = 400, description = "id_task is missing, and every task that runs has one"),
    ))]
pub(super) async fn interrupt(
    Extension(tasks): Extension<Arc<Tasks>>,
    who: Who,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Json<Value>, WebUiError> {
    stop(&tasks, &who, query, Stop::Interrupted)
}

/// The same as `interrupt`: a call's pictures are drawn together, so there is no next one.
#[utoipa::path(post, path = "/sdapi/v1/skip", tag = "web UI",
    params(("id_task" = Option<String>, Query, description = "as of interrupt")),
    responses(
        (status = 200, description = "`{}`, also if nothing runs"),
        (status = 400, description = "as of interrupt"),
    ))]
pub(super) async fn skip(
    Extension(tasks): Extension<Arc<Tasks>>,
    who: Who,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Json<Value>, WebUiError> {
    stop(&tasks, &who, query, Stop::Skipped)
}

fn stop(
    tasks: &Tasks,
    who: &Who,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
    how: Stop,
) -> Result<Json<Value>, WebUiError> {
    let mut fields = query_fields(query)?;
    let id = task_id(&mut fields, "id_task")?;
    fields.finish()?;
    match tasks.find(who, id.as_deref()) {
        Some(task) => task.stop(how),
        // Not silently nothing: the client believes that it has stopped something.
        None if id.is_none() && tasks.has_named(who) => {
            let message = "id_task is missing: every call that runs gave a force_task_id, so say which is meant";
            return Err(ApiError::invalid("id_task", message).into());
        }
        None => {}
    }
    Ok(Json(json!({})))
}

/// How far the task of this name has come. The web UI's own page polls this.
#[utoipa::path(post, path = "/internal/progress", tag = "web UI",
    responses((status = 200, description = "of `id_task`; a preview only if it is another one than \
        `id_live_preview`", body = TaskProgress)))]
pub(super) async fn internal(
    State(state): State<Arc<AppState>>,
    Extension(tasks): Extension<Arc<Tasks>>,
    who: Who,
    body: Bytes,
) -> Result<Json<TaskProgress>, WebUiError> {
    let mut fields = Fields::parse(&body)?;
    let id = task_id(&mut fields, "id_task")?;
    let known_preview = fields.integer("id_live_preview")?.unwrap_or(-1);
    let with_preview = fields.boolean("live_preview")?.unwrap_or(true);
    fields.finish()?;
    let mut answer = TaskProgress {
        active: false,
        queued: false,
        paused: false,
        completed: false,
        progress: None,
        eta: None,
        live_preview: None,
        id_live_preview: -1,
        textinfo: Some("Waiting...".to_owned()),
    };
    let task = tasks.find(&who, id.as_deref());
    let (request, log) = match task.map(|task| task.standing()) {
        None => return Ok(Json(answer)),
        Some(Standing::Ended) => {
            answer.completed = true;
            return Ok(Json(answer));
        }
        Some(Standing::Arriving) => {
            answer.queued = true;
            return Ok(Json(answer));
        }
        Some(Standing::Live(request, log)) => (request, log),
    };
    let seen = Seen::of(&request, &log.read_from(1), state.clock.now());
    answer.active = seen.started.is_some();
    answer.queued = !answer.active;
    answer.progress = Some(seen.share());
    answer.eta = seen.eta();
    answer.textinfo = seen.textinfo();
    answer.id_live_preview = known_preview;
    if let Some((seq, picture)) = seen.preview().filter(|_| with_preview) {
        let number = i64::try_from(*seq).unwrap_or(i64::MAX);
        if number != known_preview {
            answer.id_live_preview = number;
            answer.live_preview = Some(format!("data:image/png;base64,{}", png(picture).await?));
        }
    }
    Ok(Json(answer))
}

fn query_fields(
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Fields, Invalid> {
    let Ok(Query(pairs)) = query else {
        return Err(Invalid::new(
            crate::intake::InvalidKind::Body,
            "",
            "the query string cannot be read",
        ));
    };
    let mut members = Map::new();
    for (name, value) in pairs {
        if members.insert(name.clone(), value.into()).is_some() {
            return Err(Invalid::value(shortened(&name), "is given twice"));
        }
    }
    Ok(Fields::of(members))
}

/// As pydantic reads it, which these clients are used to.
fn flag(fields: &mut Fields, name: &str) -> Result<bool, Invalid> {
    let text = fields.string(name)?.unwrap_or_default().to_lowercase();
    match text.as_str() {
        "" | "0" | "false" | "f" | "no" | "n" | "off" => Ok(false),
        "1" | "true" | "t" | "yes" | "y" | "on" => Ok(true),
        _ => Err(Invalid::value(name, "must be true or false")),
    }
}
