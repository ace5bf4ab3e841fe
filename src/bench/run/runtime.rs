//! The thread that has the connections.

use std::future::Future;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use super::RunError;

/// What another thread has handed over goes before all else. By default 31 frames go before each of these: ten users
/// who ask at once would be sent late by the time that three hundred frames take.
const SPAWNED_FIRST: u32 = 1;

/// An async runtime of one thread. Ends when it is dropped.
#[derive(Debug)]
pub(super) struct Runtime {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Runtime {
    pub(super) fn start() -> Result<Self, RunError> {
        let client = |error: std::io::Error| RunError::Client(error.to_string());
        let runtime = Builder::new_current_thread()
            .enable_all()
            .global_queue_interval(SPAWNED_FIRST)
            .build()
            .map_err(client)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("bench-client".to_owned())
            .spawn(move || {
                // Either end of the channel ends the thread.
                let _ = runtime.block_on(stopped);
            })
            .map_err(client)?;
        Ok(Runtime {
            handle,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Runs something there and waits for it. Not to be called on the thread itself.
    pub(super) fn wait_for<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, RunError> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.handle.spawn(async move {
            // The receiver waits below.
            let _ = sender.try_send(future.await);
        });
        receiver
            .recv()
            .map_err(|_| RunError::Client("its thread has ended".to_owned()))
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
