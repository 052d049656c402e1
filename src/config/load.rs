//! From layers of text to a checked [`Config`]: defaults ← file ← `--set` ← flags.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::Config;
use super::keys;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A line of the config file, from 1.
    File(PathBuf, usize),
    /// `--set`.
    Set,
    /// A flag of its own.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Set => f.write_str("--set"),
            Self::Flag => f.write_str("command line"),
        }
    }
}

/// One thing that is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The file cannot be read.
    #[error("{}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's words.
        error: String,
    },
    /// The file is not TOML.
    #[error("{}: {error}", path.display())]
    NotToml {
        /// The file.
        path: PathBuf,
        /// The parser's words, with line and column.
        error: String,
    },
    /// `--set` without `=`.
    #[error("--set {text}: write it as key=value")]
    NotAnAssignment {
        /// What was given.
        text: String,
    },
    /// No such key.
    #[error("{origin}: unknown key {key:?}; the nearest known key is {nearest:?}")]
    Unknown {
        /// Where it was written.
        origin: Origin,
        /// As written, dotted.
        key: String,
        /// A known key like it.
        nearest: &'static str,
    },
    /// A section was given a value.
    #[error("{origin}: {key:?} is a section; its keys are written {key}.name or under [{key}]")]
    Section {
        /// Where it was written.
        origin: Origin,
        /// The section.
        key: String,
    },
    /// The value is not one the key takes.
    #[error("{origin}: {key} = {value}: must be {allowed}")]
    Refused {
        /// Where it was written.
        origin: Origin,
        /// The key.
        key: &'static str,
        /// As TOML.
        value: String,
        /// What the key takes.
        allowed: String,
    },
    /// Two values contradict each other.
    #[error("{key} = {value}: must be {allowed}")]
    Relation {
        /// The key to change.
        key: &'static str,
        /// Its value.
        value: u64,
        /// What it may be beside the others.
        allowed: String,
    },
}

/// Everything that is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError(pub Vec<Problem>);

/// What was written, layer over layer. Problems are gathered and reported together.
#[derive(Debug, Default)]
pub struct Layers {
    values: BTreeMap<&'static str, Value>,
    problems: Vec<Problem>,
}

/// How many bytes of one event's frame are not the event: `["EVENT",` and a subscription id of 64
/// characters, each of which JSON may write with up to 12.
pub const FRAME_OVERHEAD_BYTES: u32 = 1_024;

impl Layers {
    /// Adds the config file at `path`.
    pub fn file(&mut self, path: &Path) {
        match std::fs::read_to_string(path) {
            Ok(text) => self.toml(path, &text),
            Err(error) => self
                .problems
                .push(Problem::Unreadable { path: path.into(), error: error.to_string() }),
        }
    }

    /// Adds the text of a config file; `path` is for messages.
    pub fn toml(&mut self, path: &Path, text: &str) {
        let parsed = text.parse::<Table>().and_then(|table| Ok((table, DeTable::parse(text)?)));
        let (table, spans) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => {
                let error = error.to_string().trim_end().to_owned();
                self.problems.push(Problem::NotToml { path: path.into(), error });
                return;
            }
        };
        let mut lines = BTreeMap::new();
        key_lines(text, "", spans.get_ref(), &mut lines);
        let mut leaves = Vec::new();
        flatten("", &table, &mut leaves);
        for (name, value) in leaves {
            let line = lines.get(&name).copied().unwrap_or(1);
            self.put(Origin::File(path.into(), line), &name, value);
        }
    }

    /// Adds one `key=value`. The value is TOML; a text need not be quoted.
    pub fn set(&mut self, assignment: &str) {
        let Some((name, text)) = assignment.split_once('=') else {
            self.problems.push(Problem::NotAnAssignment { text: assignment.into() });
            return;
        };
        let (name, text) = (name.trim(), text.trim());
        let bare = || Value::String(text.to_owned());
        let is_text = keys::find(name).is_some_and(|key| key.allowed.is_text());
        let value = match text.parse::<Value>() {
            Ok(value) if value.is_str() || !is_text => value,
            _ => bare(),
        };
        self.put(Origin::Set, name, value);
    }

    /// Adds the value of a flag of its own.
    pub fn flag(&mut self, name: &str, value: impl Into<Value>) {
        self.put(Origin::Flag, name, value.into());
    }

    /// The configuration in force.
    ///
    /// # Errors
    /// Everything that is wrong with the layers.
    ///
    /// # Panics
    /// If the table of keys and the types disagree, which a test rules out.
    pub fn config(mut self) -> Result<Config, ConfigError> {
        let outbox_is_set = self.values.contains_key("limits.outbox_bytes_max");
        let mut table = Table::try_from(Config::default()).expect("the defaults are TOML");
        for (name, value) in std::mem::take(&mut self.values) {
            insert(&mut table, name, value);
        }
        let mut config: Config =
            Value::Table(table).try_into().expect("the table of keys describes the types");
        let event_frame_max = config.limits.message_bytes_max + FRAME_OVERHEAD_BYTES;
        if !outbox_is_set {
            config.limits.outbox_bytes_max = config.limits.outbox_bytes_max.max(event_frame_max);
        }
        self.relate(&config);
        if self.problems.is_empty() { Ok(config) } else { Err(ConfigError(self.problems)) }
    }

    fn put(&mut self, origin: Origin, name: &str, value: Value) {
        let Some(key) = keys::find(name) else {
            let key = name.to_owned();
            self.problems.push(if keys::is_section(name) {
                Problem::Section { origin, key }
            } else {
                Problem::Unknown { origin, key, nearest: keys::nearest(name) }
            });
            return;
        };
        if key.allowed.admits(&value) {
            self.values.insert(key.name, value);
        } else {
            let (value, allowed) = (value.to_string(), key.allowed.instead_of(&value));
            self.problems.push(Problem::Refused { origin, key: key.name, value, allowed });
        }
    }

    /// Checks values against each other.
    fn relate(&mut self, config: &Config) {
        let limits = &config.limits;
        let event_frame_max = limits.message_bytes_max + FRAME_OVERHEAD_BYTES;
        if limits.outbox_bytes_max < event_frame_max {
            self.problems.push(Problem::Relation {
                key: "limits.outbox_bytes_max",
                value: limits.outbox_bytes_max.into(),
                allowed: format!(
                    "at least {event_frame_max}, {FRAME_OVERHEAD_BYTES} more than \
                     limits.message_bytes_max = {}, or events of that size could not be delivered",
                    limits.message_bytes_max
                ),
            });
        }
        let tuning = &config.tuning;
        if tuning.ring_completions < tuning.ring_entries {
            self.problems.push(Problem::Relation {
                key: "tuning.ring_completions",
                value: tuning.ring_completions.into(),
                allowed: format!("at least tuning.ring_entries = {}", tuning.ring_entries),
            });
        }
        let store = &config.store;
        if store.map_bytes_max / 4 < store.batch_bytes_max.into() {
            self.problems.push(Problem::Relation {
                key: "store.map_bytes_max",
                value: store.map_bytes_max,
                allowed: format!(
                    "at least 4 × store.batch_bytes_max = {}, so that a commit and the pages it \
                     replaces fit",
                    u64::from(store.batch_bytes_max) * 4
                ),
            });
        }
    }
}

/// The value at a dotted name.
#[must_use]
pub fn lookup<'t>(table: &'t Table, name: &str) -> Option<&'t Value> {
    match name.split_once('.') {
        Some((section, rest)) => lookup(table.get(section)?.as_table()?, rest),
        None => table.get(name),
    }
}

fn insert(table: &mut Table, name: &str, value: Value) {
    match name.split_once('.') {
        Some((section, rest)) => {
            let section =
                table.entry(section).or_insert_with(|| Value::Table(Table::new())).as_table_mut();
            insert(section.expect("a section is a table"), rest, value);
        }
        None => {
            table.insert(name.to_owned(), value);
        }
    }
}

/// Every value below `table` with its dotted name. An empty table that is no section counts as a
/// value, so that it is not passed over.
pub fn flatten(prefix: &str, table: &Table, leaves: &mut Vec<(String, Value)>) {
    for (name, value) in table {
        let name = format!("{prefix}{name}");
        match value {
            Value::Table(inner) if !inner.is_empty() => {
                flatten(&format!("{name}."), inner, leaves);
            }
            Value::Table(_) if keys::is_section(&name) => {}
            _ => leaves.push((name, value.clone())),
        }
    }
}

fn key_lines(text: &str, prefix: &str, table: &DeTable<'_>, lines: &mut BTreeMap<String, usize>) {
    for (key, value) in table {
        let name = format!("{prefix}{}", key.get_ref());
        let line = 1 + text.as_bytes()[..key.span().start].iter().filter(|b| **b == b'\n').count();
        if let DeValue::Table(inner) = value.get_ref() {
            key_lines(text, &format!("{name}."), inner, lines);
        }
        lines.insert(name, line);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Backend, LogFormat};
    use super::*;

    fn from_toml(text: &str) -> Result<Config, String> {
        let mut layers = Layers::default();
        layers.toml(Path::new("relay.toml"), text);
        layers.config().map_err(|error| error.to_string())
    }

    fn from_sets(sets: &[&str]) -> Result<Config, String> {
        let mut layers = Layers::default();
        sets.iter().for_each(|set| layers.set(set));
        layers.config().map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_written_is_the_default() {
        assert_eq!(from_toml(""), Ok(Config::default()));
        assert_eq!(from_toml("[limits]\n[info]\n"), Ok(Config::default()));
    }

    #[test]
    fn later_layers_win() {
        let mut layers = Layers::default();
        layers.toml(Path::new("a"), "shards = 2\nverify = false\nbackend = \"epoll\"");
        layers.set("shards=3");
        layers.set("verify = true");
        layers.flag("shards", 4);
        let config = layers.config().unwrap();
        assert_eq!((config.shards, config.verify, config.backend), (4, true, Backend::Epoll));
    }

    #[test]
    fn set_takes_toml_and_bare_text() {
        let config = from_sets(&[
            "info.name=My relay",
            "info.description=\"quoted = text\"",
            "info.contact=7",
            "log.format=json",
            "listen=[::1]:80",
            "data=/tmp/x y",
            "limits.message_bytes_max=65_536",
            "verify=false",
        ])
        .unwrap();
        assert_eq!(config.info.name, "My relay");
        assert_eq!(config.info.description, "quoted = text");
        assert_eq!(config.info.contact, "7");
        assert_eq!(config.log.format, LogFormat::Json);
        assert_eq!(config.listen.port(), 80);
        assert_eq!(config.data, Path::new("/tmp/x y"));
        assert_eq!(config.limits.message_bytes_max, 65_536);
        assert!(!config.verify);
    }

    #[test]
    fn problems_name_key_value_range_and_line() {
        let text =
            "\n[limits]\nmessage_bytes_max = 7\nmesage_bytes_max = 8\n\n[log]\nlevel = \"loud\"\n";
        assert_eq!(
            from_toml(text).unwrap_err().lines().collect::<Vec<_>>(),
            [
                "relay.toml:4: unknown key \"limits.mesage_bytes_max\"; the nearest known key is \
                 \"limits.message_bytes_max\"",
                "relay.toml:3: limits.message_bytes_max = 7: must be an integer from 1024 to 67108864",
                "relay.toml:7: log.level = \"loud\": must be one of \"error\", \"warn\", \"info\", \
                 \"debug\", \"trace\"",
            ]
        );
    }

    #[test]
    fn wrong_shapes_are_named() {
        let error = |text: &str| from_toml(text).unwrap_err();
        assert!(error("limits = 3").contains("\"limits\" is a section"));
        assert!(error("[verify]\nx = 1").contains("unknown key \"verify.x\""));
        assert!(error("[extra]").contains("unknown key \"extra\""));
        assert!(error("[[limits]]\nfilters_max = 1").contains("\"limits\" is a section"));
        assert!(error("shards = 1.0").contains("shards = 1.0: must be an integer"));
        assert!(error("listen = \"localhost:7777\"").contains("must be an address"));
        assert!(error("shards = 1\nshards = 2").contains("relay.toml: TOML parse error at line 2"));
        assert!(
            from_sets(&["shards"]).unwrap_err().contains("--set shards: write it as key=value")
        );
        assert!(
            from_sets(&["limits.filters_max=-1"])
                .unwrap_err()
                .contains("--set: limits.filters_max = -1: must be an integer from 1 to 10000")
        );
    }

    #[test]
    fn an_unset_outbox_grows_with_the_message_and_a_set_one_must_hold_it() {
        let config = from_sets(&["limits.message_bytes_max=4000000"]).unwrap();
        assert_eq!(config.limits.outbox_bytes_max, 4_001_024);
        let error =
            from_sets(&["limits.message_bytes_max=4000000", "limits.outbox_bytes_max=4001023"]);
        let error = error.unwrap_err();
        assert!(error.starts_with("limits.outbox_bytes_max = 4001023: must be at least 4001024"));
        let store = from_sets(&["store.map_bytes_max=16777216"]).unwrap_err();
        assert!(store.starts_with("store.map_bytes_max = 16777216: must be at least 4 × store."));
        let ring = from_sets(&["tuning.ring_completions=512"]).unwrap_err();
        assert_eq!(
            ring,
            "tuning.ring_completions = 512: must be at least tuning.ring_entries = 1024"
        );
    }

    #[test]
    fn every_key_is_a_field_and_every_field_a_key() {
        let mut leaves = Vec::new();
        flatten("", &Table::try_from(Config::default()).unwrap(), &mut leaves);
        let mut fields: Vec<&str> = leaves.iter().map(|(name, _)| name.as_str()).collect();
        // An empty text of `info` is left out when it is serialized.
        let info = keys::KEYS.iter().map(|key| key.name).filter(|name| name.starts_with("info."));
        fields.extend(info);
        fields.sort_unstable();
        let mut known: Vec<&str> = keys::KEYS.iter().map(|key| key.name).collect();
        known.sort_unstable();
        assert_eq!(fields, known);
        for key in keys::KEYS {
            if let Some(default) = lookup(&Table::try_from(Config::default()).unwrap(), key.name) {
                assert!(key.allowed.admits(default), "default of {}", key.name);
            }
            assert!(key.doc.len() > 10 && key.doc.ends_with('.'), "doc of {}", key.name);
        }
    }

    #[test]
    fn the_ends_of_every_range_fit_the_types() {
        for key in keys::KEYS {
            let keys::Allowed::Number(min, max) = key.allowed else { continue };
            for end in [min, max] {
                let mut table = Table::try_from(Config::default()).unwrap();
                insert(&mut table, key.name, Value::Integer(end));
                let config: Result<Config, _> = Value::Table(table).try_into();
                assert!(config.is_ok(), "{} = {end}", key.name);
            }
        }
    }
}
