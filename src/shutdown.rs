//! From the first signal to the end: refuse new work, let what runs end, stop by a deadline.
//!
//! The engines do the refusing and the ending; this only tells them when. A second signal ends the
//! waiting at once, and so does the end of stdin where a program that started the service holds its other end:
//! however that program ended, nobody wants the service any more.

use std::io::{self, Read};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::oneshot;

use crate::engine::EngineHandle;
use crate::time::Clock;

/// The signals that ask a service to end.
pub struct Signals {
    /// Told when stdin ends, if that counts.
    stdin_ended: Option<oneshot::Receiver<()>>,
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
                stdin_ended: None,
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
            })
        }
        #[cfg(not(unix))]
        Ok(Signals { stdin_ended: None })
    }

    /// The end of stdin counts, too. Its thread waits for as long as the process runs.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn with_stdin(mut self) -> io::Result<Self> {
        let (ended, stdin_ended) = oneshot::channel();
        let wait = move || {
            let mut ignored = [0; 256];
            // What cannot be read has ended, too.
            while io::stdin().read(&mut ignored).is_ok_and(|count| count > 0) {}
            // Nobody listens only if the service has already ended.
            let _ = ended.send(());
        };
        std::thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(wait)?;
        self.stdin_ended = Some(stdin_ended);
        Ok(self)
    }

    /// Waits for the next one; also tells which it was.
    pub async fn next(&mut self) -> &'static str {
        let stdin_ended = async {
            match &mut self.stdin_ended {
                Some(ended) => _ = ended.await,
                None => std::future::pending().await,
            }
        };
        #[cfg(unix)]
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            () = stdin_ended => STDIN,
        }
        #[cfg(not(unix))]
        tokio::select! {
            // Without a handler the default one ends the process, which is as good an end.
            _ = tokio::signal::ctrl_c() => "Ctrl-C",
            () = stdin_ended => STDIN,
        }
    }
}

/// Stands for a signal where stdin has ended.
const STDIN: &str = "the end of stdin";

/// Waits for a signal, drains the engines, and says through `drained` when all have stopped, and how
/// much of the drain's time is left for readers.
/// Returns only on a second signal, or at the end of stdin: then there is no more waiting for anything.
pub async fn on_signals(
    mut signals: Signals,
    engines: &[EngineHandle],
    clock: &dyn Clock,
    drain_timeout: Duration,
    drained: oneshot::Sender<Duration>,
) {
    let signal = signals.next().await;
    if signal == STDIN {
        return tracing::info!("stdin has ended: stopping at once");
    }
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
