//! The configuration: one commented TOML, `--set key=value` and a few flags, in that order.
//!
//! [`keys`] names every key with its meaning and its allowed values; reading ([`load`]), checking
//! and printing ([`mod@print`]) all go by that table. [`memory`] adds up what the limits allow. Plain
//! data: who reads the file and what the process does with it is in `cli`.

pub mod keys;
pub mod load;
pub mod memory;
pub mod print;
pub mod retention;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::nostr::nip11::{Info, Limitation};
use crate::relay::Accept;
use crate::relay::Proxies;
use crate::relay::Tuning;
use crate::relay::limits::Limits;

pub use load::{ConfigError, Layers};
pub use retention::RetentionRule;

/// The configuration in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where clients connect; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The data directory.
    pub data: PathBuf,
    /// Pinned threads; 0 = one per available core.
    pub shards: u16,
    /// How sockets are driven.
    pub backend: Backend,
    /// Whether signatures are checked.
    pub verify: bool,
    /// The address clients know the relay by, empty or `ws(s)://host[:port][/path]`. Its path is
    /// the one endpoint.
    pub relay_url: String,
    /// Which offers of permessage-deflate are accepted.
    pub deflate: Accept,
    /// Addresses and networks whose word on a client's address is believed.
    pub trusted_proxies: Vec<String>,
    /// Which stored events are not kept for ever.
    pub retention: Vec<RetentionRule>,
    /// NIP-11.
    pub info: Info,
    /// What a client may use.
    pub limits: Limits,
    /// The database.
    pub store: Store,
    /// Sizes and budgets, for measurements.
    pub tuning: Tuning,
    /// For the operator.
    pub admin: Admin,
    /// What goes to stderr.
    pub log: Log,
}

/// How sockets are driven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// `tokio-uring` where `io_uring` is allowed, else `epoll`.
    #[default]
    Auto,
    /// `io_uring` by tokio-uring; refuses to start where it is not allowed.
    TokioUring,
    /// `io_uring` by glommio, in builds with the feature of that name; refuses to start elsewhere, and
    /// where `io_uring` is not allowed.
    Glommio,
    /// `epoll`.
    Epoll,
}

/// The database's bounds. In the config file: `[store]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// Address space reserved for the database; its file grows as needed up to this.
    pub map_bytes_max: u64,
    /// Threads that read; 0 = one per available core, at least 2.
    pub readers: u16,
    /// Events in one commit.
    pub batch_events_max: u32,
    /// Bytes of records in one commit.
    pub batch_bytes_max: u32,
    /// When an accepted event is on the disk.
    pub durability: Durability,
    /// How long a commit may wait for that with [`Durability::Interval`].
    pub sync_interval_ms: u32,
    /// Whether clients may search the text of events (NIP-50), in builds with that feature.
    pub search: bool,
    /// Whether versions that newer ones replace are archived rather than erased.
    pub keep_replaced: bool,
}

/// When an accepted event is on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Before its OK.
    #[default]
    Commit,
    /// With the next commit, or when an interval is over: a power cut undoes the last commit.
    Interval,
}

impl Durability {
    /// Its name in the config file, and in what the relay says of itself.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Interval => "interval",
        }
    }
}

/// The operator's listeners. In the config file: `[admin]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Address of the metrics listener; empty = none.
    pub listen: String,
}

/// What goes to stderr. In the config file: `[log]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Shape of a line.
    pub format: LogFormat,
    /// Least severe level written.
    pub level: LogLevel,
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Severity of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// The relay cannot do its work.
    Error,
    /// It can, but the operator should look.
    Warn,
    /// Starts, stops and rare events.
    #[default]
    Info,
    /// Every connection.
    Debug,
    /// Every message.
    Trace,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7777)),
            data: "./rheostr-data".into(),
            shards: 0,
            backend: Backend::Auto,
            verify: true,
            relay_url: String::new(),
            deflate: Accept::Off,
            trusted_proxies: Vec::new(),
            retention: Vec::new(),
            info: Info::default(),
            limits: Limits::default(),
            store: Store::default(),
            tuning: Tuning::default(),
            admin: Admin::default(),
            log: Log::default(),
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            map_bytes_max: 1 << 40,
            readers: 0,
            batch_events_max: 1_000,
            batch_bytes_max: 16 << 20,
            durability: Durability::Commit,
            sync_interval_ms: 1_000,
            search: false,
            keep_replaced: false,
        }
    }
}

impl Admin {
    /// Where metrics are served when nothing else is configured. The relay goes on without them when
    /// this port is taken (by a second relay on the machine, say); a configured address must be free.
    pub const LISTEN_DEFAULT: &str = "127.0.0.1:7778";

    /// The address to listen on; `None` = the listener is off.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.listen.parse().ok()
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: Self::LISTEN_DEFAULT.into() }
    }
}

impl Config {
    /// Shards to start.
    #[must_use]
    pub fn shard_count(&self) -> usize {
        match self.shards {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            shards => shards.into(),
        }
    }

    /// Reader threads to start.
    #[must_use]
    pub fn reader_count(&self) -> usize {
        match self.store.readers {
            0 => std::thread::available_parallelism().map_or(1, usize::from).max(2),
            readers => readers.into(),
        }
    }

    /// `[tuning]` key by key, for reports of measurements.
    #[must_use]
    pub fn tuning_pairs(&self) -> Vec<(String, String)> {
        let table = toml::Table::try_from(self.tuning).expect("numbers, flags and names are TOML");
        let text =
            |value: toml::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        table.into_iter().map(|(key, value)| (key, text(value))).collect()
    }

    /// The proxies that are believed.
    ///
    /// # Panics
    /// When the list was not checked by [`keys`].
    #[must_use]
    pub fn proxies(&self) -> Proxies {
        let texts = self.trusted_proxies.iter().map(String::as_str);
        Proxies::parse(texts).expect("checked when it was read")
    }

    /// The one path clients connect to.
    #[must_use]
    pub fn endpoint_path(&self) -> &str {
        self.relay_url
            .split_once("://")
            .and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..]))
            .unwrap_or("/")
    }

    /// The address to tell people; `None` when only their side of the connection shows it.
    #[must_use]
    pub fn public_url(&self) -> Option<String> {
        if !self.relay_url.is_empty() {
            return Some(self.relay_url.clone());
        }
        let known = self.listen.port() != 0 && !self.listen.ip().is_unspecified();
        known.then(|| format!("ws://{}/", self.listen))
    }

    /// The bounds as NIP-11 names them.
    #[must_use]
    pub fn limitation(&self) -> Limitation {
        let limits = &self.limits;
        let unless_zero = |limit: u64| (limit > 0).then_some(limit);
        Limitation {
            max_message_length: limits.message_bytes_max.into(),
            max_subscriptions: limits.subscriptions_max.into(),
            max_limit: limits.filter_limit_max.into(),
            default_limit: limits.filter_limit_max.into(),
            max_subid_length: 64,
            max_event_tags: limits.event_tags_max.into(),
            max_content_length: limits.event_content_chars_max.min(limits.message_bytes_max).into(),
            min_pow_difficulty: 0,
            auth_required: false,
            payment_required: false,
            restricted_writes: false,
            durability: self.store.durability.name(),
            created_at_lower_limit: unless_zero(limits.created_at_age_s_max),
            created_at_upper_limit: unless_zero(limits.created_at_ahead_s_max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoint_is_the_path_of_the_relay_url() {
        let endpoint = |url: &str| {
            Config { relay_url: url.into(), ..Config::default() }.endpoint_path().to_owned()
        };
        assert_eq!(endpoint(""), "/");
        assert_eq!(endpoint("wss://relay.example"), "/");
        assert_eq!(endpoint("wss://relay.example/"), "/");
        assert_eq!(endpoint("ws://relay.example:80/a/b"), "/a/b");
    }

    #[test]
    fn an_address_nobody_can_connect_to_is_not_told() {
        let url = |set: &str| {
            let mut layers = Layers::default();
            layers.set(set);
            layers.config().unwrap().public_url()
        };
        assert_eq!(url("relay_url=wss://a/b").as_deref(), Some("wss://a/b"));
        assert_eq!(url("listen=127.0.0.1:80").as_deref(), Some("ws://127.0.0.1:80/"));
        assert_eq!(url("listen=127.0.0.1:0"), None);
        assert_eq!(url("listen=[::]:80"), None);
    }

    #[test]
    fn nip_11_tells_the_bound_that_is_met_first() {
        let mut config = Config::default();
        config.limits.message_bytes_max = 4_096;
        config.limits.created_at_ahead_s_max = 0;
        config.limits.created_at_age_s_max = 60;
        let limitation = config.limitation();
        assert_eq!(limitation.max_content_length, 4_096);
        assert_eq!(limitation.created_at_upper_limit, None);
        assert_eq!(limitation.created_at_lower_limit, Some(60));
    }
}
