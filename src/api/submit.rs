//! The one way in: every dialect's requests are admitted here.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::auth::Caller;
use super::blocking::on_blocking_pool;
use super::error::{ApiError, FullQueue};
use super::openai::ReplyShape;
use super::picture_parameters::PictureParameters;
use super::requests::{Claim, KeyClaim, Reader, Readers, Request, abandon_when_unread};
use super::{AppState, ServedModel};
use crate::engine::{Permit, Reject, Submission};
use crate::events::EventSink;
use crate::events::store::{Lookup, SharedLog};
use crate::intake::Draft;
use crate::job::{Job, Priority, RequestId, UserId};
use crate::time::Clock;

/// What becomes of a request that nobody reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDisconnect {
    /// It is given up when nobody has read it for this long.
    AbandonAfter(Duration),
    /// It runs to its end.
    Detach,
}

/// A key under which a client may repeat a request without making another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// The `Idempotency-Key` header.
    pub key: String,
    /// Digest of the route and the body, to tell a repetition from a mistake.
    pub fingerprint: [u8; 32],
}

/// The longest `Idempotency-Key`.
const MAX_KEY_BYTES: usize = 255;

impl Idempotency {
    /// Reads the `Idempotency-Key` header of a request to `route`.
    ///
    /// # Errors
    /// 400 for a key that is empty, too long or not visible ASCII.
    pub fn from_headers(
        headers: &HeaderMap,
        route: &str,
        body: &[u8],
    ) -> Result<Option<Self>, ApiError> {
        let Some(value) = headers.get("idempotency-key") else {
            return Ok(None);
        };
        let key = value
            .to_str()
            .ok()
            .filter(|key| !key.is_empty() && key.len() <= MAX_KEY_BYTES)
            .ok_or_else(|| {
                ApiError::invalid(
                    "Idempotency-Key",
                    format!(
                        "Idempotency-Key must be 1 to {MAX_KEY_BYTES} visible ASCII characters"
                    ),
                )
            })?;
        let fingerprint = Sha256::new()
            .chain_update(route)
            .chain_update([0])
            .chain_update(body)
            .finalize();
        Ok(Some(Idempotency {
            key: key.to_owned(),
            fingerprint: fingerprint.into(),
        }))
    }
}

/// What goes with a draft.
#[derive(Clone, Debug)]
pub struct SubmitOptions {
    /// Whose request it is.
    pub caller: Caller,
    /// It is given up when it has not ended by then.
    pub deadline: Option<Duration>,
    /// How urgent it asks to be.
    pub priority: Option<Priority>,
    /// For clients that repeat themselves.
    pub idempotency: Option<Idempotency>,
    /// What becomes of it when nobody reads it.
    pub on_disconnect: OnDisconnect,
    /// How its stream looks in OpenAI's dialect, if that is spoken.
    pub openai: Option<ReplyShape>,
    /// The dialect's name, for the trace.
    pub dialect: &'static str,
}

/// A request that the engine has taken.
pub struct Accepted {
    /// What the edge knows of it, `id` first.
    pub request: Arc<Request>,
    /// Its events.
    pub log: Arc<SharedLog>,
    /// What it asks for; `None` if this is an earlier request with the same idempotency key.
    pub job: Option<Arc<Job>>,
    /// Whoever was told of the acceptance reads it, from before anybody could find it unread.
    pub reader: Reader,
}

/// Admits a draft: takes a place in the engine before the prompt is tokenized, so that a full
/// queue answers at once and tokenizing is bounded by the queue.
///
/// # Errors
/// 400 for a field that is wrong, 403 for a priority that is not the caller's to ask for, 429 and 503 with a time to come back, 409 and 422 for an
/// idempotency key in use.
pub async fn submit(
    state: &Arc<AppState>,
    model: &Arc<ServedModel>,
    mut draft: Draft,
    mut options: SubmitOptions,
) -> Result<Accepted, ApiError> {
    if let Draft::Text(draft) = &mut draft {
        draft.tenant = options.caller.key().cloned();
    }
    let (user, priority) = (
        options.caller.user(),
        options.caller.priority(options.priority)?,
    );
    let claim = match options.idempotency.take() {
        None => None,
        Some(idempotency) => match claim(state, &options.caller, idempotency)? {
            Claimed::New(claim) => Some(claim),
            Claimed::Known(accepted) => return Ok(accepted),
        },
    };
    let accepted_at = state.clock.now();
    let (wanted, logprobs) = match &draft {
        Draft::Text(draft) => (draft.n.unwrap_or(1), draft.logprobs.is_some()),
        Draft::Image(draft) => (draft.n.unwrap_or(1), false),
    };
    let texts = image_texts(&draft);
    let (job, permit) = admit(model, user, draft).await?;

    let uuid = Uuid::now_v7();
    let id = RequestId::from_u128(uuid.as_u128());
    let request = Arc::new(Request {
        id,
        model: Arc::clone(model),
        owner: options.caller,
        created: unix_seconds(uuid),
        accepted_at,
        // Within the job's rows, which intake has checked.
        choices: u32::try_from(wanted).unwrap_or(job.rows()).min(job.rows()),
        logprobs,
        openai: options.openai,
        picture: match (&job, texts) {
            (Job::Image(job), Some([prompt, negative])) => {
                let parameters = PictureParameters::of(model, prompt, negative, job);
                Some(Arc::new(parameters))
            }
            _ => None,
        },
        readers: Readers::none_yet(Arc::clone(&state.clock)),
        given_up: AtomicBool::new(false),
    });
    let job = Arc::new(job);
    let log = state.store.open(id);
    let submission = Submission {
        id,
        job: Arc::clone(&job),
        log: Arc::clone(&log) as Arc<dyn EventSink>,
        deadline: options.deadline.map(|deadline| accepted_at + deadline),
        priority,
    };
    if let Err(reject) = model.engine.submit(permit, submission) {
        state.store.discard(id);
        return Err(reject.into());
    }
    state.requests.insert(Arc::clone(&request), &log);
    if let Some(claim) = claim {
        claim.bind(id);
    }
    let reader = request.reader();
    if let OnDisconnect::AbandonAfter(grace) = options.on_disconnect {
        tokio::spawn(abandon_when_unread(
            Arc::clone(&request),
            Arc::clone(&log),
            grace,
        ));
    }
    tracing::Span::current()
        .record("id", tracing::field::display(id))
        .record("model", &model.name)
        .record("dialect", options.dialect);
    tracing::info!(rows = job.rows(), "accepted");
    Ok(Accepted {
        request,
        log,
        job: Some(job),
        reader,
    })
}

/// What an image request says in words: its prompt and its negative prompt.
fn image_texts(draft: &Draft) -> Option<[Arc<str>; 2]> {
    match draft {
        Draft::Text(_) => None,
        Draft::Image(draft) => Some([
            Arc::from(draft.prompt.as_str()),
            Arc::from(draft.negative_prompt.as_deref().unwrap_or_default()),
        ]),
    }
}

/// Takes a place, then makes the job. The place goes with the work to the blocking pool, so a
/// client that leaves meanwhile cannot pile up work there beyond the queue's bound.
async fn admit(
    model: &Arc<ServedModel>,
    user: UserId,
    draft: Draft,
) -> Result<(Job, Permit), ApiError> {
    let rows = model.intake.rows(&draft)?;
    let estimate = model.intake.estimated_prompt_tokens(&draft);
    let permit = model.engine.reserve(user, rows, estimate);
    let mut permit = permit.map_err(|reject| refused(model, reject))?;
    let model = Arc::clone(model);
    on_blocking_pool(move || {
        let job = model.intake.job(draft)?;
        match &job {
            Job::Text(text) => permit.settle(text.prompt.len() as u64),
            Job::Image(image) => model
                .engine
                .hold_source(&mut permit, image.source_bytes())?,
        }
        Ok::<_, ApiError>((job, permit))
    })
    .await
}

/// A refusal, with how the queue stands if it is that which had no place.
fn refused(model: &ServedModel, reject: Reject) -> ApiError {
    let is_full = matches!(
        reject,
        Reject::QueueFull { .. } | Reject::UserQueueFull { .. }
    );
    let queue = is_full.then(|| {
        let snapshot = model.engine.snapshot();
        FullQueue {
            waiting: snapshot.waiting_requests,
            eta: snapshot.eta,
        }
    });
    ApiError {
        queue,
        ..ApiError::from(reject)
    }
}

enum Claimed {
    New(KeyClaim),
    Known(Accepted),
}

/// Looks an idempotency key up, and takes it if it is new.
fn claim(
    state: &Arc<AppState>,
    caller: &Caller,
    idempotency: Idempotency,
) -> Result<Claimed, ApiError> {
    let log_of = |id| match state.store.get(id) {
        Lookup::Found(log) => Some(log),
        Lookup::Expired | Lookup::Unknown => None,
    };
    let Idempotency { key, fingerprint } = idempotency;
    match state.requests.claim(caller, key, fingerprint, log_of) {
        Claim::New(claim) => Ok(Claimed::New(claim)),
        Claim::Known(request, log) => Ok(Claimed::Known(Accepted {
            reader: request.reader(),
            request,
            log,
            job: None,
        })),
        Claim::InProgress => Err(ApiError::new(
            StatusCode::CONFLICT,
            "idempotency_key_in_progress",
            "a request with this Idempotency-Key is being admitted",
        )
        .retry_after(Duration::from_secs(1))),
        Claim::Mismatch => Err(ApiError {
            field: Some("Idempotency-Key".into()),
            ..ApiError::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency_key_reused",
                "this Idempotency-Key was used with another body",
            )
        }),
    }
}

/// The caller's request of this id, with its log.
///
/// # Errors
/// 404 for an unknown id or somebody else's, 410 for one that has been forgotten.
pub fn find(
    state: &AppState,
    id: RequestId,
    caller: &Caller,
) -> Result<(Arc<Request>, Arc<SharedLog>), ApiError> {
    match state.store.get(id) {
        Lookup::Unknown => Err(ApiError::unknown_request()),
        Lookup::Expired => Err(ApiError::expired_request()),
        Lookup::Found(log) => {
            let request = state.requests.get(id, caller);
            Ok((request.ok_or_else(ApiError::unknown_request)?, log))
        }
    }
}

/// When an id was drawn: a UUID v7 begins with the milliseconds since the Unix epoch.
fn unix_seconds(uuid: Uuid) -> u64 {
    uuid.get_timestamp()
        .map_or(0, |timestamp| timestamp.to_unix().0)
}
