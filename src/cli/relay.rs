//! `relay`: starts every thread in order, waits for a signal, and stops them in order.
//!
//! ```text
//! configure ─▶ store (lock) ─▶ writer, readers ─▶ shards ─▶ ops ─▶ ready
//!                                                                   │ SIGTERM, SIGINT
//! exit 0 ◀─ ops, readers, writer end ◀─ shards drain, close 1001 ◀──┘ (a second one exits at once)
//! ```

use std::io::{self, Write};
use std::path::Path;
use std::process;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::arguments::RelayArguments;
use super::failure::Failure;
use super::import::terms;
use super::logging;
use super::read::{store_options, unix_now};
use super::search::Searching;
use super::tend::{kept_ages, retention_rules};
use crate::config::memory::memory_bound;
use crate::config::{self, Backend, Config};
use crate::driver::backend::Choice;
use crate::driver::file_thread::FileThread;
use crate::driver::places::Places;
use crate::driver::record::Recording;
use crate::driver::{self, Mesh, Observe};
use crate::nostr::nip11;
use crate::ops::admin::Running;
use crate::ops::metrics::{
    CommitMetrics, Metrics, RetentionMetrics, ShardMetrics, ShardTimes, Sources,
};
use crate::ops::server::{Writes, verdict_channel};
use crate::ops::{Listeners, Ops};
use crate::relay::shard::SUBMISSIONS_MAX;
use crate::relay::{Limits, Pages};
use crate::store::{self, Options, Readers, Retention, SliceBudget, Store, Writer, WriterOptions};

/// Slices waiting for a reader; a shard waits for room.
const READER_QUEUE_JOBS_MAX: usize = 1_024;
/// Stages of a connection's end that `limits.drain_ms_max` bounds, each anew: what is owed to it, its close
/// frame, and its peer's own end.
const DRAIN_STAGES: u32 = 3;
/// How long after those deadlines the shards may take to end.
const STOP_WAIT: Duration = Duration::from_secs(10);
/// How often the shards are looked after.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// The exit code of a process that SIGINT ended.
const EXIT_INTERRUPTED: i32 = 130;

/// Runs the command.
pub fn run(arguments: &RelayArguments) -> Result<(), Failure> {
    let config = arguments.read()?;
    logging::start(&config.log);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _context = runtime.enter();
    // From here on a signal is an orderly end, however far the start has come.
    let mut signals = Signals::new()?;
    let relay = Relay::start(&config, arguments)?;
    relay.announce(&config);
    runtime.block_on(async {
        tokio::select! {
            name = signals.next() => tracing::info!(signal = name, "shutting down"),
            () = relay.failure() => tracing::error!(
                "{}: shutting down",
                relay.store.damage().unwrap_or("a thread has ended")
            ),
        }
    });
    runtime.block_on(relay.stop(&config, &mut signals))
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Everything that runs.
struct Relay {
    shards: driver::Running,
    writer: Writer,
    readers: Readers,
    ops: Ops,
    store: Store,
    searching: Option<Searching>,
    /// Those that write a trace, a capture.
    files: Vec<FileThread>,
    /// Where there are rules.
    retention: Option<Retention>,
}

impl Relay {
    fn start(config: &Config, arguments: &RelayArguments) -> Result<Self, Failure> {
        let count = config.shard_count();
        let connections = connections(config);
        tracing::info!("{}", memory_bound(config, connections as u64));
        let tuning = told_tuning(config);
        let store = Store::open(&config.data, &durable_options(config))?;
        let listeners = Listeners::bind(&config.admin, &config.data)
            .map_err(|error| Failure::Failed(error.to_string()))?;

        let origins = u16::try_from(count).expect("the configuration allows 1024");
        let mesh = Mesh::new(origins);
        let addresses = mesh.addresses();
        let (admin_sink, verdicts) = verdict_channel(origins);
        let mut sinks = mesh.sinks();
        sinks.push(Box::new(admin_sink));
        let searching = Searching::prepare(config, &store)?;
        sinks.extend(searching.as_ref().and_then(Searching::sink));
        let last_sequence = store.info()?.last_sequence;
        let Limits { recent_events_max, recent_bytes_max, .. } = config.limits;
        let newest =
            store.newest(recent_events_max.into(), recent_bytes_max as usize, unix_now())?;
        let commits = Arc::new(CommitMetrics::default());
        let observed = Arc::clone(&commits);
        let writer = Writer::spawn(
            store.clone(),
            writer_options(config, count),
            terms(config),
            sinks,
            Box::new(move |commit| observed.observe(&commit)),
        )?;
        let searching = searching.map(|searching| searching.start(&store)).transpose()?;
        let readers =
            Readers::spawn(&store, config.reader_count(), READER_QUEUE_JOBS_MAX, slice(config))?;

        let shard_metrics: Vec<Arc<ShardMetrics>> = (0..count).map(|_| Arc::default()).collect();
        let shard_times: Vec<Arc<ShardTimes>> = (0..count).map(|_| Arc::default()).collect();
        let observe = shard_metrics.iter().cloned().zip(shard_times.iter().cloned());
        let observe = observe.map(|(metrics, times)| observe_shard(metrics, times)).collect();
        let (trace, trace_thread) = opened(arguments.trace_ticks.as_deref(), driver::trace::open)?;
        let (capture, capture_thread) =
            opened(arguments.capture.as_deref(), driver::capture::open)?;
        let recording = Recording { trace, capture };
        let places = Places::new(config.limits.connections_per_ip_max);
        let shards = driver::start(driver::Config {
            listen: config.listen,
            backend: choice(config.backend),
            verify: config.verify,
            search: config.store.search,
            limits: Arc::new(Limits { kept_ages: kept_ages(config), ..config.limits.clone() }),
            tuning: config.tuning,
            pages: Arc::new(pages(config)),
            deflate: config.deflate,
            connections_max: connections,
            places: places.clone(),
            proxies: Arc::new(config.proxies()),
            mesh,
            store: store.clone(),
            last_sequence,
            newest,
            submit: writer.handle(),
            read: readers.handle(),
            observe,
            recording,
        })
        .map_err(|error| Failure::Failed(error.to_string()))?;

        let (retention, erasures) = begin_retention(config, &store, &writer)?.unzip();
        let metrics = Metrics {
            backend: shards.backend,
            tuning,
            shards: shard_metrics,
            times: shard_times,
            commits,
            retention: erasures,
            sources: Some(Sources {
                store: store.clone(),
                writer: writer.handle(),
                readers: readers.handle(),
                places,
                addresses,
                unsynced_ms_max: match config.store.durability {
                    config::Durability::Commit => 0,
                    config::Durability::Interval => config.store.sync_interval_ms,
                },
            }),
        };
        let running = Running {
            pid: process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            url: format!("ws://{}", shards.address),
            shards: count,
            backend: shards.backend.into(),
            metrics: listeners.metrics_address().map(|address| address.to_string()),
        };
        if let Some(address) = &running.metrics {
            tracing::info!(%address, "metrics are served");
        }
        let writes = Writes::new(writer.handle(), origins, verdicts);
        let ops = listeners
            .start(running, metrics, store.clone(), writes)
            .map_err(|error| Failure::Failed(error.to_string()))?;
        let files = trace_thread.into_iter().chain(capture_thread).collect();
        Ok(Self { shards, writer, readers, ops, store, searching, files, retention })
    }

    /// Says that clients are accepted.
    fn announce(&self, config: &Config) {
        self.ops.set_ready(true);
        let driver::Running { address, backend, .. } = &self.shards;
        let (shards, data) = (config.shard_count(), config.data.display());
        let mut stdout = io::stdout().lock();
        let written = writeln!(
            stdout,
            "rheostr ready ws://{address} shards={shards} backend={backend} data={data}"
        )
        .and_then(|()| stdout.flush());
        if let Err(error) = written {
            tracing::warn!(%error, "nobody reads standard output");
        }
    }

    /// Whether a shard or the writer has ended although nobody asked, or the store is damaged.
    fn has_failed(&self) -> bool {
        self.shards.has_failed() || self.writer.has_failed() || self.store.damage().is_some()
    }

    /// Returns when that is so.
    async fn failure(&self) {
        while !self.has_failed() {
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    }

    /// Stops accepting, lets connections drain, commits what is queued, ends every thread.
    async fn stop(mut self, config: &Config, signals: &mut Signals) -> Result<(), Failure> {
        let failed = self.has_failed();
        let damage = self.store.damage().map(str::to_owned);
        let (done, is_done) = oneshot::channel();
        self.ops.set_ready(false);
        self.ops.close_admin();
        self.shards.shutdown();
        let thread = std::thread::Builder::new().name("stop".into());
        thread.spawn(move || {
            self.shards.join();
            for file in self.files {
                let what = file.what();
                if let Err(error) = file.join() {
                    tracing::error!(%error, "the {what} is not complete");
                }
            }
            if let Some(retention) = self.retention {
                retention.close();
            }
            self.writer.close();
            self.readers.close();
            if let Some(searching) = self.searching {
                searching.close();
            }
            self.ops.stop();
            // The receiver is gone only when the process ends at once.
            let _ = done.send(());
        })?;
        let drain = Duration::from_millis(config.limits.drain_ms_max.into());
        let deadline = DRAIN_STAGES * drain + STOP_WAIT;
        tokio::select! {
            name = signals.next() => {
                tracing::warn!(signal = name, "second signal: exiting at once");
                process::exit(EXIT_INTERRUPTED);
            }
            outcome = is_done => match (outcome, failed) {
                (Ok(()), false) => Ok(()),
                (Ok(()), true) => Err(Failure::Failed(damage.unwrap_or("a thread has failed".into()))),
                (Err(_), _) => Err(Failure::Failed("a thread panicked while it ended".into())),
            },
            () = tokio::time::sleep(deadline) => {
                Err(Failure::Failed(format!("the shards did not end within {deadline:?}")))
            }
        }
    }
}

fn writer_options(config: &Config, shards: usize) -> WriterOptions {
    let size = |bytes: u32| usize::try_from(bytes).expect("32 bits");
    WriterOptions {
        // Room for all that the shards may have outstanding, the admin socket's one chunk, and what retention
        // erases: none waits.
        queue_capacity: shards * SUBMISSIONS_MAX + 2,
        batch_events_max: size(config.store.batch_events_max),
        batch_bytes_max: size(config.store.batch_bytes_max),
        sync_interval: Duration::from_millis(config.store.sync_interval_ms.into()),
        recent_events_max: config.limits.recent_events_max.into(),
        recent_bytes_max: size(config.limits.recent_bytes_max),
        ..WriterOptions::default()
    }
}

/// The sizes and budgets in force, which the log is told.
fn told_tuning(config: &Config) -> Vec<(String, String)> {
    let tuning = config.tuning_pairs();
    let said: Vec<_> = tuning.iter().map(|(key, value)| format!("{key}={value}")).collect();
    tracing::info!("tuning {}", said.join(" "));
    tuning
}

/// Starts to apply the rules, where there are some, and to count what goes by them.
fn begin_retention(
    config: &Config,
    store: &Store,
    writer: &Writer,
) -> io::Result<Option<(Retention, Arc<RetentionMetrics>)>> {
    let rules = retention_rules(config);
    if rules.is_empty() {
        return Ok(None);
    }
    let erasures = Arc::new(RetentionMetrics::default());
    let counted = Arc::clone(&erasures);
    let observer = Box::new(move |keep, erasure| counted.observe(keep, erasure));
    let retention = Retention::spawn(store.clone(), writer.handle(), rules, observer)?;
    Ok(Some((retention, erasures)))
}

fn observe_shard(metrics: Arc<ShardMetrics>, times: Arc<ShardTimes>) -> Observe {
    Box::new(move |counters, timings| {
        metrics.publish(counters);
        times.publish(timings);
    })
}

/// What is written to a file of the operator's choice, and its thread.
fn opened<T>(
    path: Option<&Path>,
    open: impl FnOnce(&Path) -> io::Result<(T, FileThread)>,
) -> Result<(Option<T>, Option<FileThread>), Failure> {
    let Some(path) = path else { return Ok((None, None)) };
    let opened = open(path).map_err(|source| Failure::File { path: path.into(), source })?;
    Ok((Some(opened.0), Some(opened.1)))
}

/// Says so where the operator chose less than a durable OK.
fn durable_options(config: &Config) -> Options {
    let durability = match config.store.durability {
        config::Durability::Commit => store::Durability::AtOnce,
        config::Durability::Interval => {
            tracing::warn!(
                sync_interval_ms = config.store.sync_interval_ms,
                "store.durability = interval: a power cut may undo the last commit, though its events got \
                 their OK"
            );
            store::Durability::Later
        }
    };
    Options { durability, ..store_options(config) }
}

/// How much one slice of a stored query may do.
fn slice(config: &Config) -> SliceBudget {
    let tuning = &config.tuning;
    SliceBudget {
        entries: tuning.slice_entries_max as usize,
        bytes: tuning.slice_bytes_max as usize,
        events: tuning.slice_events_max as usize,
        time: Duration::from_micros(tuning.slice_us_max.into()),
    }
}

fn choice(backend: Backend) -> Choice {
    match backend {
        Backend::Auto => Choice::Auto,
        Backend::TokioUring => Choice::TokioUring,
        Backend::Glommio => Choice::Glommio,
        Backend::Epoll => Choice::Epoll,
    }
}

fn pages(config: &Config) -> Pages {
    let (limitation, version) = (config.limitation(), env!("CARGO_PKG_VERSION"));
    let (info, mut nips) = (&config.info, nip11::SUPPORTED_NIPS.to_vec());
    nips.extend(config.store.search.then_some(nip11::SEARCH));
    nips.sort_unstable();
    let url = config.public_url();
    Pages {
        endpoint: config.endpoint_path().into(),
        document: nip11::document(info, &limitation, &nips, version),
        page: nip11::page(info, &limitation, &nips, version, url.as_deref()),
    }
}

/// Raises the limit on open files as far as it goes; the connections that fit, or fewer if fewer are
/// configured.
fn connections(config: &Config) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!(%error, "the limit on open files stays as it is");
            limit.current
        }
    };
    let files = files.unwrap_or(FILES_ASSUMED).min(FILES_ASSUMED);
    let fit = files.saturating_sub(own_files(config)).max(1);
    let connections = match u64::from(config.limits.connections_max) {
        0 => fit,
        wanted if wanted > fit => {
            tracing::warn!(wanted, fit, "limits.connections_max: open files allow fewer");
            fit
        }
        wanted => wanted,
    };
    usize::try_from(connections).expect("below FILES_ASSUMED")
}

/// Where the system sets no limit on open files.
const FILES_ASSUMED: u64 = 1 << 20;

/// Open files that are no connections: of each shard its listener, ring and wake-ups, of the process
/// the store, the log and the operator's connections.
fn own_files(config: &Config) -> u64 {
    64 + 16 * config.shard_count() as u64
}
