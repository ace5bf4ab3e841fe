//! A measurement that is to end early: what was measured until then is kept, if there is anything.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::shutdown::Signals;

/// The exit code of a program that a signal has ended, as shells tell it (128 and SIGINT's number).
const STOPPED: i32 = 130;

/// Whether somebody wants it to end. All copies are one.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    wanted: Arc<AtomicBool>,
    has_results: Arc<AtomicBool>,
}

impl Stop {
    /// SIGINT and SIGTERM ask for the end from now on. The first one ends the process at once as long as there are no
    /// results, a second one always does. A server of our own ends with the process: see [`super::own_server`].
    ///
    /// # Errors
    /// The system refuses.
    pub fn on_signals() -> io::Result<Self> {
        let stop = Stop::default();
        let asked = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mut signals = runtime.block_on(async { Signals::catch() })?;
        let wait = move || {
            runtime.block_on(async move {
                loop {
                    signals.next().await;
                    let is_second = asked.wanted.swap(true, Ordering::SeqCst);
                    if is_second || !asked.has_results.load(Ordering::SeqCst) {
                        std::process::exit(STOPPED);
                    }
                }
            });
        };
        std::thread::Builder::new()
            .name("bench-signals".to_owned())
            .spawn(wait)?;
        Ok(stop)
    }

    /// Whether the end is wanted.
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }

    /// From now on there is something to lose.
    pub fn has_results(&self) {
        self.has_results.store(true, Ordering::SeqCst);
    }
}
