//! From the first signal to the end: refuse new work, let what runs end, stop by a deadline.
//!
//! The engines do the refusing and the ending; this only tells them when. A second signal ends the
//! waiting at once.

use std::io;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::oneshot;

use crate::engine::EngineHandle;
use crate::time::Clock;

/// The signals that ask a service to end.
pub struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    /// Catches them from now on.
    ///
    /// # Errors
    /// The system refuses.
    pub fn catch() -> io::Result<Self> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            Ok(Signals {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
            })
        }
        #[cfg(not(unix))]
        Ok(Signals {})
    }

    /// Waits for the next one.
    async fn next(&mut self) -> &'static str {
        #[cfg(unix)]
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
        #[cfg(not(unix))]
        {
            // Without a handler the default one ends the process, which is as good an end.
            let _ = tokio::signal::ctrl_c().await;
            "Ctrl-C"
        }
    }
}

/// Waits for a signal, drains the engines, and says through `drained` when all have stopped, and how
/// much of the drain's time is left for readers.
/// Returns only on a second signal: then there is no more waiting for anything.
pub async fn on_signals(
    mut signals: Signals,
    engines: &[EngineHandle],
    clock: &dyn Clock,
    drain_timeout: Duration,
    drained: oneshot::Sender<Duration>,
) {
    let signal = signals.next().await;
    let running: u32 = engines
        .iter()
        .map(|engine| engine.snapshot().running_rows)
        .sum();
    tracing::info!(
        signal,
        running_rows = running,
        drain_timeout_ms = drain_timeout.as_millis() as u64,
        "draining: new requests are refused; a second signal stops at once"
    );
    let deadline = clock.now() + drain_timeout;
    for engine in engines {
        engine.drain(deadline);
    }
    let stopped = async {
        join_all(engines.iter().map(EngineHandle::until_stopped)).await;
        tracing::info!("every engine has stopped");
        // Nobody listens only if the service has already ended.
        let _ = drained.send(deadline - clock.now());
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = stopped => {}
        signal = signals.next() => tracing::warn!(signal, "stopping at once"),
    }
}
