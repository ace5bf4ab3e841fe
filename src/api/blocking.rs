//! Work that would hold up the async threads: rendering, tokenizing, detokenizing; decoding and encoding
//! pictures.

use std::sync::OnceLock;

use axum::body::Bytes;
use tokio::sync::Semaphore;

use super::EdgeConfig;
use super::error::ApiError;

/// Places for work. A prompt of megabytes, or a large picture, takes a core for long: few at a time, so that
/// the models keep theirs. The two kinds do not wait for each other.
struct Places {
    /// Of [`EdgeConfig::max_concurrent_intake`].
    intake: Semaphore,
    /// Of [`EdgeConfig::max_concurrent_encodings`].
    encoding: Semaphore,
}

impl Places {
    fn of(config: &EdgeConfig) -> Self {
        Places {
            intake: Semaphore::new(config.max_concurrent_intake),
            encoding: Semaphore::new(config.max_concurrent_encodings),
        }
    }
}

/// The process's, as its cores are.
static PLACES: OnceLock<Places> = OnceLock::new();

/// Says how much may be done at once. The first service of a process decides.
pub(super) fn set_places(config: &EdgeConfig) {
    PLACES.get_or_init(|| Places::of(config));
}

fn places() -> &'static Places {
    PLACES.get_or_init(|| Places::of(&EdgeConfig::default()))
}

/// Does `work` for a request that comes in on the blocking pool, when its turn has come.
///
/// Its place goes with it: a client that leaves meanwhile cannot start more than the bound, and one
/// that leaves while it waits leaves nothing behind.
///
/// # Errors
/// The work's own; 500 if it panicked.
pub(super) async fn on_blocking_pool<T, E>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, ApiError>
where
    T: Send + 'static,
    E: Into<ApiError> + Send + 'static,
{
    in_place_of(&places().intake, work).await
}

/// A body up to this size is read where it arrives: that takes less than going elsewhere.
const SMALL_BODY_BYTES: usize = 64 << 10;

/// Reads a body; a large one, as pictures make it, on the blocking pool.
///
/// # Errors
/// As [`on_blocking_pool`].
pub(super) async fn read_body<T, E>(
    body: Bytes,
    read: impl FnOnce(&Bytes) -> Result<T, E> + Send + 'static,
) -> Result<T, ApiError>
where
    T: Send + 'static,
    E: Into<ApiError> + Send + 'static,
{
    match body.len() > SMALL_BODY_BYTES {
        true => on_blocking_pool(move || read(&body)).await,
        false => read(&body).map_err(Into::into),
    }
}

/// Does `work` for a picture that goes out as a file on the blocking pool, likewise.
///
/// # Errors
/// The work's own; 500 if it panicked.
pub(super) async fn encode_on_blocking_pool<T>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError>
where
    T: Send + 'static,
{
    in_place_of(&places().encoding, work).await
}

async fn in_place_of<T, E>(
    places: &'static Semaphore,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, ApiError>
where
    T: Send + 'static,
    E: Into<ApiError> + Send + 'static,
{
    let place = places
        .acquire()
        .await
        .expect("the semaphore is never closed");
    let done = tokio::task::spawn_blocking(move || {
        let _place = place;
        work()
    });
    match done.await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(ApiError::internal()),
    }
}
