//! The accept loop: connections within a number, heads within a size and a time, and an end that
//! lets answers be finished.
//!
//! Our own instead of `axum::serve`, which gives no access to hyper's limits. HTTP/1.1 without TLS:
//! a proxy in front brings the rest.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use super::socket::PatientSocket;
use super::{AppState, EdgeConfig, router};

/// hyper's buffer for one connection, each way: what a client that does not read costs us beside
/// its socket's buffers.
const CONNECTION_BUFFER_BYTES: usize = 64 << 10;

/// A client that takes nothing for this long is let go. It can come back and go on where it was.
const MAX_WRITE_STALL: Duration = Duration::from_secs(300);

/// Where a connection comes from: an extension of each of its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PeerAddress(pub(super) IpAddr);

/// How often finished logs are looked through when nobody comes by.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How long to wait after a failed `accept` (for want of file descriptors, as a rule).
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Connections that the system may take for us before we do. With fewer, a crowd that comes at once
/// overflows them, and who is left out tries again after a second at the earliest. The system has a
/// limit of its own (`net.core.somaxconn`).
const BACKLOG: u32 = 4_096;

/// Listens on `address`.
///
/// # Errors
/// The system's own.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // As `TcpListener::bind` does: a port that was in use a moment ago can be had again.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves `listener` until `stop` is done; then takes no new connection, lets open ones finish the
/// answer they are at, and closes what is left after the time that `stop` said.
///
/// Draining comes before: while the engines drain, new submissions are answered with 503 and open
/// streams go on, so `stop` should be done only when the engines have stopped.
pub async fn serve(
    listener: TcpListener,
    state: Arc<AppState>,
    stop: impl Future<Output = Duration>,
) {
    let room = Arc::new(Semaphore::new(state.config.max_connections));
    let (stopping, stop_seen) = watch::channel(false);
    let http = http(&state.config);
    let service = TowerToHyperService::new(router(Arc::clone(&state)));
    let mut connections = JoinSet::new();
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    let mut stop = std::pin::pin!(stop);
    let linger = loop {
        let (socket, peer, place) = tokio::select! {
            linger = &mut stop => break linger,
            next = accept(&listener, &room) => next,
            // Ended tasks are collected as they end, so the set is no larger than the room.
            Some(_) = connections.join_next() => continue,
            _ = sweep.tick() => {
                state.store.sweep();
                state.requests.sweep();
                state.gradio.sweep();
                continue;
            }
        };
        let socket = TokioIo::new(PatientSocket::new(socket, MAX_WRITE_STALL));
        let service = Connected {
            routes: service.clone(),
            peer,
        };
        let connection = http.serve_connection(socket, service);
        connections.spawn(run(connection, stop_seen.clone(), place));
    };
    drop(listener);
    stopping.send_replace(true);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(linger, all_ended).await.is_err() {
        tracing::warn!(open = connections.len(), "connections were cut at the end");
    }
}

fn http(config: &EdgeConfig) -> http1::Builder {
    let mut http = http1::Builder::new();
    // Without a timer hyper silently ignores the timeout.
    http.timer(TokioTimer::new())
        .header_read_timeout(config.header_read_timeout)
        .max_headers(config.max_headers)
        .max_header_size(config.max_header_bytes)
        .max_buf_size(CONNECTION_BUFFER_BYTES.max(config.max_header_bytes));
    http
}

/// The next connection, once there is room for it.
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> (TcpStream, PeerAddress, OwnedSemaphorePermit) {
    let place = Arc::clone(room)
        .acquire_owned()
        .await
        .expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((socket, peer)) => {
                // A frame is to leave when it is written, not when the next one joins it.
                if let Err(error) = socket.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY was refused");
                }
                return (socket, PeerAddress(peer.ip().to_canonical()), place);
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

type Routes = TowerToHyperService<axum::Router>;
type Connection = http1::Connection<TokioIo<PatientSocket<TcpStream>>, Connected>;

/// The routes, as one connection calls them.
struct Connected {
    routes: Routes,
    peer: PeerAddress,
}

impl Service<hyper::Request<Incoming>> for Connected {
    type Response = <Routes as Service<hyper::Request<Incoming>>>::Response;
    type Error = <Routes as Service<hyper::Request<Incoming>>>::Error;
    type Future = <Routes as Service<hyper::Request<Incoming>>>::Future;

    fn call(&self, mut request: hyper::Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.peer);
        self.routes.call(request)
    }
}

/// Runs one connection to its end. When the service stops, it finishes the answer it is at.
async fn run(connection: Connection, mut stop: watch::Receiver<bool>, place: OwnedSemaphorePermit) {
    let mut connection = std::pin::pin!(connection);
    let told_to_stop = async {
        // The sender outlives every connection, or has told them to stop.
        let _ = stop.wait_for(|stopping| *stopping).await;
    };
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = told_to_stop => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
    drop(place);
}
