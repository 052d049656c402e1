//! For the operator: metrics over HTTP, and the admin socket for commands that write.
//!
//! **Owner thread:** `ops`, with a runtime of its own; each admin connection runs on a blocking
//! thread, at most [`ADMIN_CONNECTIONS_MAX`] of them. **In:** scrapes, admin requests. **Out:**
//! OpenMetrics text, submissions to the writer. Nothing here is on the way of a client's event, and
//! nothing that happens here can hold up a shard.

pub mod admin;
mod histogram;
pub mod http;
pub mod line;
pub mod metrics;
pub mod server;

use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tokio::net::{TcpListener, UnixListener as AsyncUnixListener};
use tokio::sync::{Semaphore, oneshot};

use admin::Running;
use http::Life;
use metrics::Metrics;
use server::{Shared, Writes};

use crate::config::Admin;
use crate::store::Store;

/// Admin connections at once; one more is told so.
pub const ADMIN_CONNECTIONS_MAX: usize = 4;
/// Connections of the metrics listener at once; more wait to be accepted.
pub const HTTP_CONNECTIONS_MAX: usize = 32;

/// The operator's listeners, bound before the relay starts.
#[derive(Debug)]
pub struct Listeners {
    metrics: Option<std::net::TcpListener>,
    admin: UnixListener,
    socket: SocketFile,
}

/// The admin socket's name in the file system; removed with the value.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Why a listener is not there.
#[derive(Debug, thiserror::Error)]
pub enum OpsError {
    /// The metrics address is taken or not ours.
    #[error("admin.listen = {address}: {source}")]
    Metrics {
        /// As configured.
        address: SocketAddr,
        /// The system's words.
        source: io::Error,
    },
    /// The socket in the data directory.
    #[error("{}: {source}", path.display())]
    Admin {
        /// The socket.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// No thread or no runtime.
    #[error("ops thread: {0}")]
    Thread(#[from] io::Error),
}

impl Listeners {
    /// Binds the metrics address, if there is one, and the socket of `data`, whose lock the caller
    /// holds. When the default metrics address is taken, the relay goes without.
    ///
    /// # Errors
    /// When an address cannot be had.
    pub fn bind(config: &Admin, data: &Path) -> Result<Self, OpsError> {
        let metrics = match config.address() {
            None => None,
            Some(address) => match std::net::TcpListener::bind(address) {
                Ok(listener) => Some(listener),
                Err(source)
                    if config.listen == Admin::LISTEN_DEFAULT
                        && source.kind() == io::ErrorKind::AddrInUse =>
                {
                    tracing::warn!(
                        %address,
                        "metrics are not served: the port is taken; set admin.listen to a free one, \
                         or to \"\""
                    );
                    None
                }
                Err(source) => return Err(OpsError::Metrics { address, source }),
            },
        };
        if let Some(listener) = &metrics {
            listener.set_nonblocking(true)?;
        }
        let path = data.join(admin::SOCKET_NAME);
        let admin =
            server::bind(data).map_err(|source| OpsError::Admin { path: path.clone(), source })?;
        Ok(Self { metrics, admin, socket: SocketFile(path) })
    }

    /// Where metrics are served.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// When the system refuses a thread or a runtime.
    pub fn start(
        self,
        running: Running,
        metrics: Metrics,
        store: Store,
        writes: Writes,
    ) -> Result<Ops, OpsError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(ADMIN_CONNECTIONS_MAX)
            .build()?;
        let ready = Arc::new(AtomicBool::new(false));
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::new(Shared { running, writes: Mutex::new(writes), store });
        let state = State { metrics, ready: Arc::clone(&ready), shared };
        let thread = std::thread::Builder::new().name("ops".into()).spawn(move || {
            let outcome = runtime.block_on(async {
                tokio::select! {
                    _ = stopped => Ok(()),
                    outcome = state.accept_admin(self.admin) => outcome,
                    outcome = state.accept_metrics(self.metrics) => outcome,
                }
            });
            if let Err(error) = outcome {
                tracing::error!(%error, "the operator's listeners ended");
            }
            // An admin command may be waiting for its client; it is cut off when the process ends.
            runtime.shutdown_background();
        })?;
        Ok(Ops { ready, stop, thread, socket: Some(self.socket) })
    }
}

/// The running thread.
#[derive(Debug)]
pub struct Ops {
    ready: Arc<AtomicBool>,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
    socket: Option<SocketFile>,
}

impl Ops {
    /// What `/ready` answers from now on.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Relaxed);
    }

    /// Takes the admin socket away: later commands find no relay, those under way go on.
    pub fn close_admin(&mut self) {
        self.socket = None;
    }

    /// Ends the thread.
    pub fn stop(self) {
        // The thread may have ended by itself.
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

struct State {
    metrics: Metrics,
    ready: Arc<AtomicBool>,
    shared: Arc<Shared>,
}

impl State {
    async fn accept_metrics(&self, listener: Option<std::net::TcpListener>) -> io::Result<()> {
        let Some(listener) = listener else { return std::future::pending().await };
        let listener = TcpListener::from_std(listener)?;
        let room = Arc::new(Semaphore::new(HTTP_CONNECTIONS_MAX));
        loop {
            let permit = Arc::clone(&room).acquire_owned().await.map_err(io::Error::other)?;
            let Some((stream, _)) = accepted(listener.accept().await).await else { continue };
            let metrics = self.metrics.clone();
            let life = match (self.ready.load(Relaxed), self.metrics.failing()) {
                (false, _) => Life::NotReady,
                (true, None) => Life::Ready,
                (true, Some(why)) => Life::Failing(why),
            };
            tokio::spawn(async move {
                http::serve(stream, life, || metrics.scrape()).await;
                drop(permit);
            });
        }
    }

    async fn accept_admin(&self, listener: UnixListener) -> io::Result<()> {
        let listener = AsyncUnixListener::from_std(listener)?;
        let room = Arc::new(Semaphore::new(ADMIN_CONNECTIONS_MAX));
        loop {
            let Some((stream, _)) = accepted(listener.accept().await).await else { continue };
            let Ok(stream) = stream.into_std() else { continue };
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                server::refuse(stream);
                continue;
            };
            let shared = Arc::clone(&self.shared);
            tokio::task::spawn_blocking(move || {
                server::serve(stream, &shared);
                drop(permit);
            });
        }
    }
}

/// What was accepted. After an error (out of file descriptors, say) the next attempt waits a little.
async fn accepted<T>(result: io::Result<T>) -> Option<T> {
    match result {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            tracing::warn!(%error, "accept");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            None
        }
    }
}
