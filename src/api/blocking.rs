//! Work that would hold up the async threads: rendering, tokenizing, detokenizing.

use tokio::sync::Semaphore;

use super::error::ApiError;

/// A prompt of megabytes takes seconds of a core. Two at a time, so that the models keep theirs.
static MAX_CONCURRENT_WORK: Semaphore = Semaphore::const_new(2);

/// Does `work` on the blocking pool, when its turn has come.
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
    let place = MAX_CONCURRENT_WORK
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
