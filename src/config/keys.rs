//! Every key of the configuration: its meaning and its allowed values, once.

use std::fmt;
use std::net::SocketAddr;

use toml::Value;

use super::retention;
use crate::relay::Proxies;

/// One key.
#[derive(Debug)]
pub struct Key {
    /// Dotted name.
    pub name: &'static str,
    /// What it may be set to.
    pub allowed: Allowed,
    /// What it means, for `config print`.
    pub doc: &'static str,
}

/// What a key may be set to.
#[derive(Clone, Copy, Debug)]
pub enum Allowed {
    /// An integer in this range, ends included.
    Number(i64, i64),
    /// `true` or `false`.
    Flag,
    /// Any text.
    Text,
    /// Text that is not empty.
    Path,
    /// One of these texts.
    OneOf(&'static [&'static str]),
    /// `IP:PORT`.
    Address,
    /// `IP:PORT`, or empty.
    OptionalAddress,
    /// 64 lowercase hex characters, or empty.
    OptionalPubkey,
    /// A list of addresses and networks.
    Networks,
    /// Rules of `[[retention]]`.
    Retention,
    /// `ws://` or `wss://`, a host, perhaps a path; or empty.
    OptionalRelayUrl,
}

impl Allowed {
    /// Whether `value` is one of them.
    #[must_use]
    pub fn admits(self, value: &Value) -> bool {
        match (self, value) {
            (Self::Number(min, max), Value::Integer(number)) => (min..=max).contains(number),
            (Self::Flag, Value::Boolean(_)) | (Self::Text, Value::String(_)) => true,
            (Self::Path, Value::String(text)) => !text.is_empty(),
            (Self::OneOf(names), Value::String(text)) => names.contains(&text.as_str()),
            (Self::Address, Value::String(text)) => text.parse::<SocketAddr>().is_ok(),
            (Self::OptionalAddress, Value::String(text)) => {
                text.is_empty() || text.parse::<SocketAddr>().is_ok()
            }
            (Self::OptionalPubkey, Value::String(text)) => {
                text.is_empty() || crate::nostr::tag::decode_hex32(text.as_bytes()).is_some()
            }
            (Self::OptionalRelayUrl, Value::String(text)) => text.is_empty() || is_relay_url(text),
            (Self::Networks, Value::Array(list)) => {
                let texts: Option<Vec<_>> = list.iter().map(Value::as_str).collect();
                texts.is_some_and(|texts| Proxies::parse(texts).is_ok())
            }
            (Self::Retention, value) => retention::read(value).is_ok(),
            _ => false,
        }
    }

    /// What the key takes, in view of a value that it does not.
    #[must_use]
    pub fn instead_of(self, value: &Value) -> String {
        match (self, retention::read(value)) {
            (Self::Retention, Err(why)) => why,
            _ => self.to_string(),
        }
    }

    /// Whether the value is a text, so that `--set` need not quote it.
    #[must_use]
    pub fn is_text(self) -> bool {
        !matches!(self, Self::Number(..) | Self::Flag | Self::Networks | Self::Retention)
    }
}

fn is_relay_url(text: &str) -> bool {
    let rest = text.strip_prefix("ws://").or_else(|| text.strip_prefix("wss://"));
    rest.is_some_and(|rest| {
        let host = rest.split('/').next().unwrap_or_default();
        !host.is_empty()
            && rest.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#' | b'@'))
    })
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(min, max) => write!(f, "an integer from {min} to {max}"),
            Self::Flag => f.write_str("true or false"),
            Self::Text => f.write_str("a text"),
            Self::Path => f.write_str("a path"),
            Self::OneOf(names) => {
                f.write_str("one of")?;
                for (index, name) in names.iter().enumerate() {
                    write!(f, "{} \"{name}\"", if index == 0 { "" } else { "," })?;
                }
                Ok(())
            }
            Self::Address => f.write_str("an address as in \"127.0.0.1:7777\" or \"[::1]:7777\""),
            Self::OptionalAddress => f.write_str("an address as in \"127.0.0.1:7778\", or \"\""),
            Self::OptionalPubkey => f.write_str("64 lowercase hex characters, or \"\""),
            Self::Networks => f.write_str(
                "a list of addresses and networks as in [\"192.0.2.1\", \"10.0.0.0/8\"]",
            ),
            Self::Retention => f.write_str(
                "a list of rules, each with kinds or without, and one of age_s_max, author_events_max and \
                 bytes_max",
            ),
            Self::OptionalRelayUrl => {
                f.write_str("an address as in \"wss://relay.example/path\", or \"\"")
            }
        }
    }
}

/// The key of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Whether keys lie below this name.
#[must_use]
pub fn is_section(name: &str) -> bool {
    KEYS.iter().any(|key| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

/// The known key most like `name`. A missing or misspelt section counts less than a wrong last part, a
/// section that is right more.
#[must_use]
pub fn nearest(name: &str) -> &'static str {
    let last = |name: &'_ str| -> usize { name.rfind('.').map_or(0, |at| at + 1) };
    let section = &name[..last(name)];
    let in_section = !section.is_empty() && KEYS.iter().any(|key| key.name.starts_with(section));
    let distance = |known: &str| {
        let astray = if in_section && !known.starts_with(section) { 5 } else { 0 };
        let whole = strsim::damerau_levenshtein(name, known);
        let tail = strsim::damerau_levenshtein(&name[last(name)..], &known[last(known)..]);
        whole.min(tail + 1) + astray
    };
    KEYS.iter().map(|key| key.name).min_by_key(|known| distance(known)).expect("there are keys")
}

const fn key(name: &'static str, allowed: Allowed, doc: &'static str) -> Key {
    Key { name, allowed, doc }
}

const DAY_MS: i64 = 86_400_000;
const MIB: i64 = 1 << 20;

/// Every key, in the order of `config print`: the top level first, then section by section.
pub const KEYS: &[Key] = &[
    key("listen", Allowed::Address, "Where clients connect. Port 0 takes a free one."),
    key("data", Allowed::Path, "The data directory; made when it is not there."),
    key(
        "shards",
        Allowed::Number(0, 1024),
        "Threads that serve connections, each pinned to a core. 0 = one per available core.",
    ),
    key(
        "backend",
        Allowed::OneOf(&["auto", "tokio-uring", "glommio", "epoll"]),
        "How sockets are driven. auto = tokio-uring where io_uring is allowed, else epoll; glommio is in \
         builds with that feature only.",
    ),
    key(
        "verify",
        Allowed::Flag,
        "Whether signatures are checked. Turn it off only where every client is trusted.",
    ),
    key(
        "relay_url",
        Allowed::OptionalRelayUrl,
        "The address clients know this relay by. Its path is the only one that is served (\"/\" when \
         there is none), and requests that name a relay are compared with it.",
    ),
    key(
        "deflate",
        Allowed::OneOf(&["off", "on", "client-context"]),
        "Compression of messages (permessage-deflate) for clients that offer it. It saves 30 to 50 % of \
         what events take on the wire and costs some 16 ns of CPU a byte of a stored event, or of a live \
         one for all its receivers on a shard together. client-context lets a client refer to its earlier messages and \
         costs such a connection 48 KiB.",
    ),
    key(
        "trusted_proxies",
        Allowed::Networks,
        "Proxies whose X-Forwarded-For is believed: the client is its last entry that is not one of \
         these. Of everybody else the header is ignored.",
    ),
    key(
        "retention",
        Allowed::Retention,
        "What is stored and not kept for ever, by rules applied in turn, or as [[retention]] sections at the \
         end of the file. A rule is about its kinds, or without any about all but 5 and 62, and keeps what is \
         at most age_s_max seconds old, the newest author_events_max of each author, or the newest bytes_max \
         bytes of records (indexes take about as much again). `rheostr retain --dry-run` says what would go.",
    ),
    key("info.name", Allowed::Text, "NIP-11: name of the relay, best under 30 characters."),
    key("info.description", Allowed::Text, "NIP-11: what the relay is for."),
    key("info.banner", Allowed::Text, "NIP-11: URL of a wide picture."),
    key("info.icon", Allowed::Text, "NIP-11: URL of a square picture."),
    key("info.pubkey", Allowed::OptionalPubkey, "NIP-11: the operator's public key."),
    key("info.contact", Allowed::Text, "NIP-11: another way to reach the operator, as a URI."),
    key("info.terms_of_service", Allowed::Text, "NIP-11: URL of the terms of service."),
    key("info.payments_url", Allowed::Text, "NIP-11: URL where payments are made."),
    key(
        "limits.connections_max",
        Allowed::Number(0, 4_000_000),
        "Open connections over all shards; more are refused with 503. 0 = as many as the process may \
         have open files.",
    ),
    key(
        "limits.connections_per_ip_max",
        Allowed::Number(0, 4_000_000),
        "Open connections of one client address, an IPv6 /64 counting as one; more are refused with \
         429. 127.0.0.1 and ::1 are not capped. 0 = any number.",
    ),
    key(
        "limits.message_bytes_max",
        Allowed::Number(1_024, 64 * MIB),
        "Bytes of one WebSocket message; a longer one closes the connection with 1009.",
    ),
    key("limits.event_tags_max", Allowed::Number(0, 1_000_000), "Tags of one event."),
    key(
        "limits.event_content_chars_max",
        Allowed::Number(0, 64 * MIB),
        "Characters of one event's content.",
    ),
    key(
        "limits.created_at_age_s_max",
        Allowed::Number(0, 1 << 40),
        "How far back an event's created_at may lie, in seconds. 0 = any.",
    ),
    key(
        "limits.created_at_ahead_s_max",
        Allowed::Number(0, 1 << 40),
        "How far ahead an event's created_at may lie, in seconds. 0 = any.",
    ),
    key(
        "limits.subscriptions_max",
        Allowed::Number(1, 100_000),
        "Open subscriptions of one connection, and COUNTs that are not answered.",
    ),
    key("limits.filters_max", Allowed::Number(1, 10_000), "Filters of one REQ or COUNT."),
    key(
        "limits.filter_values_max",
        Allowed::Number(1, 1_000_000),
        "Values over all lists of all filters of one REQ or COUNT.",
    ),
    key(
        "limits.filter_limit_max",
        Allowed::Number(1, 1_000_000),
        "Stored events per filter: caps its limit, and is the limit of a filter without one.",
    ),
    key(
        "limits.count_entries_max",
        Allowed::Number(1, 1 << 31),
        "Index entries one COUNT may look at, whether they match or not; one that would look at more is \
         answered CLOSED.",
    ),
    key(
        "limits.connection_queries_max",
        Allowed::Number(1, 100_000),
        "Stored queries of one connection under way at once, each with a slice of what it found; the \
         others wait for their turn.",
    ),
    key(
        "limits.recent_events_max",
        Allowed::Number(0, 65_000),
        "Stored events, the newest, that every shard has at hand; stored queries that these answer whole \
         wait for no reader. 0 = none.",
    ),
    key(
        "limits.recent_bytes_max",
        Allowed::Number(0, 1_024 * MIB),
        "Bytes of their records, which all shards share.",
    ),
    key(
        "limits.connection_query_entries_max",
        Allowed::Number(0, 1 << 40),
        "Index entries that the stored queries of one connection may examine at once, about; a query beyond \
         them is refused or ended as rate-limited. 0 = any number.",
    ),
    key(
        "limits.connection_query_entries_per_s",
        Allowed::Number(0, 1_000_000_000),
        "How many of those a connection may have again each second.",
    ),
    key(
        "limits.outbox_messages_max",
        Allowed::Number(1, 100_000),
        "Frames waiting in one connection's subscription stream; a stored query pauses there.",
    ),
    key(
        "limits.outbox_bytes_max",
        Allowed::Number(2_048, 128 * MIB),
        "Bytes waiting in one connection's subscription stream: at least 1024 more than \
         limits.message_bytes_max, so that any event fits. When it is not set it grows with that key.",
    ),
    key(
        "limits.replies_max",
        Allowed::Number(1, 100_000),
        "Answers (OK, COUNT, NOTICE, CLOSED) one connection may have outstanding; a connection without a \
         free one is not read.",
    ),
    key(
        "limits.live_queue_events_max",
        Allowed::Number(1, 1_000_000),
        "Live events waiting in one subscription behind a full outbox or an unfinished stored query.",
    ),
    key(
        "limits.connection_live_events_max",
        Allowed::Number(1, 100_000_000),
        "Live events waiting so in all subscriptions of one connection. Beyond them the subscription \
         furthest behind ends as a slow consumer.",
    ),
    key(
        "limits.live_bytes_max",
        Allowed::Number(1 << 16, 1 << 31),
        "Bytes of all live events that wait so in one shard, each counted once however many wait for \
         it. Beyond them the subscriptions furthest behind end as slow consumers.",
    ),
    key(
        "limits.live_queue_age_ms_max",
        Allowed::Number(1, DAY_MS),
        "How long the oldest event waiting behind a full outbox may do so, in milliseconds; then its \
         subscription ends as a slow consumer.",
    ),
    key(
        "limits.send_buffer_bytes_max",
        Allowed::Number(4_096, 1 << 30),
        "Bytes the kernel may hold for one socket that its peer has not acknowledged. It grants no \
         more than net.core.wmem_max, and uses as much again for its own bookkeeping.",
    ),
    key(
        "limits.write_stall_ms_max",
        Allowed::Number(100, DAY_MS),
        "How long a peer may acknowledge no byte while some are under way to it, in milliseconds.",
    ),
    key(
        "limits.ping_interval_ms",
        Allowed::Number(0, DAY_MS),
        "How often a quiet connection is pinged, in milliseconds. 0 = never.",
    ),
    key(
        "limits.pong_wait_ms_max",
        Allowed::Number(100, DAY_MS),
        "How long after a ping a connection may stay silent, in milliseconds.",
    ),
    key(
        "limits.handshake_ms_max",
        Allowed::Number(10, DAY_MS),
        "How long a client may take to send its HTTP request, in milliseconds.",
    ),
    key(
        "limits.drain_ms_max",
        Allowed::Number(0, DAY_MS),
        "How long a closing connection may take to read what is queued for it, in milliseconds.",
    ),
    key(
        "store.map_bytes_max",
        Allowed::Number(16 * MIB, 64 << 40),
        "Address space reserved for the database. Its file grows as needed, and no further than this. A \
         quarter, 64 MiB at most, is kept for erasing.",
    ),
    key(
        "store.readers",
        Allowed::Number(0, 126),
        "Threads that read the database. 0 = one per available core, at least 2.",
    ),
    key("store.batch_events_max", Allowed::Number(1, 100_000), "Events in one commit."),
    key(
        "store.batch_bytes_max",
        Allowed::Number(64 << 10, 1 << 30),
        "Bytes of events in one commit; one event that is larger is a commit of its own.",
    ),
    key(
        "store.durability",
        Allowed::OneOf(&["commit", "interval"]),
        "\"commit\": an accepted event is on the disk before its OK. \"interval\" is weaker and saves one of \
         two flushes a commit: a power cut may undo the last commit, though its events got their OK. What \
         is left is sound, and kill -9 loses nothing either way.",
    ),
    key(
        "store.sync_interval_ms",
        Allowed::Number(10, 60_000),
        "With store.durability = \"interval\": how long a commit waits at most for the flush that makes it \
         last, in milliseconds. The next commit does it, too.",
    ),
    key(
        "store.search",
        Allowed::Flag,
        "Whether clients may search the text of events (NIP-50); the index is in DATA/search. In builds with the \
         feature search only.",
    ),
    key(
        "store.keep_replaced",
        Allowed::Flag,
        "Whether versions of replaceable and addressable events that newer ones replace go to an archive, for          `rheostr export --replaced`, rather than being erased. Clients see the newest version either way;          deletions, requests to vanish, expirations and rules of age erase archived versions, too.",
    ),
    key(
        "tuning.batch_bytes_max",
        Allowed::Number(4 << 10, 16 * MIB),
        "Bytes from which on one write to a socket takes no further frame. This and all of [tuning] is \
         for measurements: clients see a difference in speed only.",
    ),
    key("tuning.batch_pieces_max", Allowed::Number(3, 1_024), "Pieces of one gather write."),
    key(
        "tuning.chain_threshold_bytes",
        Allowed::Number(0, 64 * MIB),
        "A longer payload is written from where it lies; a shorter one is copied into the write.",
    ),
    key(
        "tuning.unsent_bytes_max",
        Allowed::Number(1 << 10, 16 * MIB),
        "A socket that holds so many bytes it has not sent yet takes no more. A pong is behind these.",
    ),
    key(
        "tuning.receive",
        Allowed::OneOf(&["poll", "ring"]),
        "How a socket is read: \"poll\" waits for it and then reads into the shard's one buffer; \"ring\" \
         does both in one operation of the ring (two elsewhere), into a buffer each connection keeps.",
    ),
    key(
        "tuning.scratch_bytes",
        Allowed::Number(1 << 10, 16 * MIB),
        "Bytes of the one buffer all sockets of a shard are read into.",
    ),
    key(
        "tuning.receive_bytes",
        Allowed::Number(256, MIB),
        "Bytes of the buffer of each connection where tuning.receive = \"ring\".",
    ),
    key(
        "tuning.reads_per_turn_max",
        Allowed::Number(1, 1_024),
        "Reads of one socket before the others have their turn.",
    ),
    key(
        "tuning.direct_writes_max",
        Allowed::Number(0, 1_024),
        "So many writes of one tick are made at once, by a call each; more go to the ring together.",
    ),
    key("tuning.verify_per_tick_max", Allowed::Number(1, 4_096), "Events verified in one tick."),
    key(
        "tuning.ticks_per_submit_max",
        Allowed::Number(1, 4_096),
        "While more events wait to be verified, the verified ones of so many ticks go to the writer \
         together.",
    ),
    key(
        "tuning.thread_messages_per_tick_max",
        Allowed::Number(1, 256),
        "Commits and slices of stored queries a shard takes in one tick.",
    ),
    key(
        "tuning.shard_messages_per_tick_max",
        Allowed::Number(1, 65_536),
        "Messages of other shards a shard takes in one tick.",
    ),
    key(
        "tuning.deliveries_per_tick_max",
        Allowed::Number(1, 1 << 24),
        "Live events a shard puts before subscriptions in one tick, about.",
    ),
    key(
        "tuning.slice_entries_max",
        Allowed::Number(1, 1 << 24),
        "Index entries a reader examines in one slice of a stored query.",
    ),
    key(
        "tuning.slice_us_max",
        Allowed::Number(1, 1_000_000),
        "Microseconds one slice of a stored query takes, about: the next goes on where it ended.",
    ),
    key(
        "tuning.slice_events_max",
        Allowed::Number(1, 1 << 20),
        "Events one slice of a stored query hands out.",
    ),
    key(
        "tuning.slice_bytes_max",
        Allowed::Number(1 << 10, 64 * MIB),
        "Bytes of events one slice of a stored query hands out; one event may be larger.",
    ),
    key(
        "tuning.ring_entries",
        Allowed::Number(8, 32_768),
        "Submissions a ring of tokio-uring queues before it flushes early.",
    ),
    key(
        "tuning.ring_completions",
        Allowed::Number(16, 65_536),
        "Completions such a ring holds without spilling into the kernel's memory; at least \
         tuning.ring_entries.",
    ),
    key(
        "tuning.ring_coop_taskrun",
        Allowed::Flag,
        "IORING_SETUP_COOP_TASKRUN: completions wait for the shard's next call into the kernel.",
    ),
    key(
        "tuning.ring_single_issuer",
        Allowed::Flag,
        "IORING_SETUP_SINGLE_ISSUER: the kernel is told that one thread submits.",
    ),
    key(
        "admin.listen",
        Allowed::OptionalAddress,
        "Where GET /metrics, /health and /ready are answered; \"\" = nowhere. When the port of the \
         default is taken the relay warns and goes on without; any other address must be free.",
    ),
    key("log.format", Allowed::OneOf(&["text", "json"]), "Shape of a line on stderr."),
    key(
        "log.level",
        Allowed::OneOf(&["error", "warn", "info", "debug", "trace"]),
        "Least severe level that is written.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_the_one_meant() {
        assert_eq!(nearest("limits.mesage_bytes_max"), "limits.message_bytes_max");
        assert_eq!(nearest("message_bytes_max"), "limits.message_bytes_max");
        assert_eq!(nearest("limit.filter_limit"), "limits.filter_limit_max");
        assert_eq!(nearest("verfy"), "verify");
        assert_eq!(nearest("Listen"), "listen");
        assert_eq!(nearest("limits.filters"), "limits.filters_max");
        assert_eq!(nearest("limits.verify"), "verify");
        assert_eq!(nearest("log.leve"), "log.level");
    }

    #[test]
    fn relay_urls() {
        for good in ["ws://a", "wss://relay.example/", "wss://relay.example:444/a/b"] {
            assert!(is_relay_url(good), "{good}");
        }
        for bad in
            ["", "relay", "http://a", "ws://", "ws:///path", "ws://a/?x", "ws://a b", "ws://u@h"]
        {
            assert!(!is_relay_url(bad), "{bad}");
        }
    }

    #[test]
    fn proxies_are_addresses_and_networks() {
        let admits = |text: &str| Allowed::Networks.admits(&text.parse().unwrap());
        assert!(admits("[]") && admits(r#"["::1", "10.0.0.0/8"]"#));
        for bad in
            [r#""10.0.0.1""#, "[1]", r#"["10.0.0.1", "proxy"]"#, r#"["10.0.0.1/8"]"#, r#"[""]"#]
        {
            assert!(!admits(bad), "{bad}");
        }
    }

    #[test]
    fn numbers_end_where_they_say() {
        let range = Allowed::Number(2, 4);
        let admitted: Vec<i64> = (0..7).filter(|n| range.admits(&Value::Integer(*n))).collect();
        assert_eq!(admitted, [2, 3, 4]);
        assert!(!range.admits(&Value::Float(3.0)));
        assert!(!range.admits(&Value::String("3".into())));
    }
}
