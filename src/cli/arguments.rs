//! The shape of the command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{Backend, Config, ConfigError, Layers, LogFormat};

/// A Nostr relay.
#[derive(Debug, Parser)]
#[command(
    name = "rheostr",
    version,
    about = "A Nostr relay: pinned shards on io_uring, durable before OK",
    long_about = "A Nostr relay: pinned shards on io_uring, durable before OK.\n\n\
        Without a command it runs the relay, on ws://127.0.0.1:7777/ unless told otherwise. The \
        other commands work on a data directory. Those that read may do so at any time. Those that \
        write (import, delete) go through the relay when one runs on the directory, so that \
        nobody has to stop it. Those that replace the data file (restore, compact, check \
        --repair) need it for themselves.",
    after_help = "Exit codes: 0 done; 1 failed, or differences found; 2 wrong usage or configuration.",
    args_conflicts_with_subcommands = true
)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// For the relay, when no command is given.
    #[command(flatten)]
    pub relay: RelayArguments,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the relay (the same as no command)
    ///
    /// Prints one line on standard output when it accepts clients:
    ///     rheostr ready ws://ADDR:PORT shards=N backend=NAME data=DIR
    /// Everything else goes to standard error. SIGTERM or SIGINT ends it: it stops accepting,
    /// sends what is queued, closes with 1001, commits and exits 0. A second signal ends it at once.
    #[command(verbatim_doc_comment)]
    Relay(RelayArguments),
    /// Store events from JSON lines
    ///
    /// Ids and signatures are checked on all cores and events are stored in the order of their
    /// lines. Bad lines are counted and named by number and reason; they never end the import.
    /// The relay's limits on age and size do not apply. Ephemeral events are rejected.
    Import(ImportArguments),
    /// Write events as JSON lines, oldest first
    Export(ExportArguments),
    /// Print the events that match a filter as JSON lines, newest first
    Scan(FilterArguments),
    /// Print how many events match a filter, its limit aside
    Count(FilterArguments),
    /// Erase the events that match a filter, its limit included
    ///
    /// Leaves no tombstones: the same events may be published or imported again.
    Delete(DeleteArguments),
    /// Erase what the rules of [[retention]] do not keep
    ///
    /// A running relay does so by itself: then only --dry-run is of use, which says for each rule what
    /// would be erased after the rules before it.
    Retain(RetainArguments),
    /// Print what a data directory holds, and which relay runs on it
    Info(InfoArguments),
    /// Compare every index with every event, and every event with its id; exit 1 on differences
    Check(CheckArguments),
    /// Write a snapshot of the store to a file, also beside a running relay
    ///
    /// The snapshot holds what was committed when it began. The file appears under its name when it
    /// is whole and on the disk; an existing one is not overwritten.
    Backup(BackupArguments),
    /// Make a backup the store of a new or empty data directory, and check it
    Restore(RestoreArguments),
    /// Rewrite the data file without its free pages
    ///
    /// For a directory that no relay and no other command uses. Needs room for a second file; a
    /// crash leaves the old file in place, or the new one.
    Compact(StoreArguments),
    /// Bring the store of an older build to the schema of this one
    ///
    /// A relay does so when it starts, before it listens. This does it ahead, and says so when nothing
    /// is to be done. A crash leaves it to be gone on with; older builds cannot read it from then on, so
    /// make a backup first, with the older build.
    Migrate(StoreArguments),
    /// Check or print the configuration
    Config(ConfigCommandArguments),
}

/// Where the configuration comes from.
#[derive(Clone, Debug, Default, Args)]
pub struct ConfigArguments {
    /// Configuration file (TOML); `rheostr config print` writes one with every key explained
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set any key of the configuration, as in --set limits.message_bytes_max=262144
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
}

/// Which data directory.
#[derive(Clone, Debug, Default, Args)]
pub struct StoreArguments {
    /// Data directory [default: ./rheostr-data, or the configured one]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub config: ConfigArguments,
}

/// For the relay.
#[derive(Clone, Debug, Default, Args)]
pub struct RelayArguments {
    #[command(flatten)]
    pub store: StoreArguments,
    /// Where clients connect; port 0 takes a free one [default: 127.0.0.1:7777]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Threads that serve connections, each pinned to a core; 0 = one per core [default: 0]
    #[arg(long, value_name = "N")]
    pub shards: Option<u16>,
    /// How sockets are driven [default: auto]
    #[arg(long, value_enum)]
    pub backend: Option<Backend>,
    /// Shape of the lines on standard error [default: text]
    #[arg(long, value_enum)]
    pub log_format: Option<LogFormat>,
    /// Write what each shard did in each of its turns as CSV, for measurements
    #[arg(long, value_name = "FILE")]
    pub trace_ticks: Option<PathBuf>,
    /// Write every message of clients as JSON lines, with its time and connection, to be replayed
    #[arg(long, value_name = "FILE")]
    pub capture: Option<PathBuf>,
}

/// For `import`.
#[derive(Debug, Args)]
pub struct ImportArguments {
    #[command(flatten)]
    pub store: StoreArguments,
    /// Trust the signatures (ids are checked all the same)
    #[arg(long)]
    pub no_verify: bool,
    /// Only read and check the lines, and count as imported what has nothing against it but perhaps the
    /// store, which is not opened
    #[arg(long)]
    pub dry_run: bool,
    /// End with one JSON object on standard output:
    /// {"read","imported","duplicate","superseded","rejected","seconds"}
    #[arg(long)]
    pub json: bool,
    /// JSON lines, one event each; - is standard input
    #[arg(default_value = "-")]
    pub file: PathBuf,
}

/// For `export`.
#[derive(Debug, Args)]
pub struct ExportArguments {
    #[command(flatten)]
    pub store: StoreArguments,
    /// Oldest created_at, in seconds since the epoch
    #[arg(long, value_name = "SECONDS")]
    pub since: Option<u64>,
    /// Newest created_at, in seconds since the epoch
    #[arg(long, value_name = "SECONDS")]
    pub until: Option<u64>,
    /// Newest first
    #[arg(long)]
    pub reverse: bool,
    /// Instead of what is stored, the archive of replaced versions (store.keep_replaced): by author, kind and
    /// d, the oldest first
    #[arg(long, conflicts_with = "reverse")]
    pub replaced: bool,
    /// File to write; - is standard output
    #[arg(default_value = "-")]
    pub file: PathBuf,
}

/// For `scan` and `count`.
#[derive(Debug, Args)]
pub struct FilterArguments {
    #[command(flatten)]
    pub store: StoreArguments,
    /// A filter as in NIP-01, such as '{"kinds":[1],"limit":10}'; several are ORed
    #[arg(value_name = "FILTER_JSON", required = true)]
    pub filters: Vec<String>,
}

/// For `delete`.
#[derive(Debug, Args)]
pub struct DeleteArguments {
    #[command(flatten)]
    pub store: StoreArguments,
    /// A filter as in NIP-01; several are ORed
    #[arg(long = "filter", value_name = "FILTER_JSON", required = true)]
    pub filters: Vec<String>,
    /// Leave what is stored alone: only archived versions (store.keep_replaced), of which a filter without
    /// a limit erases those that match in any case
    #[arg(long)]
    pub replaced: bool,
    /// Count what would be erased
    #[arg(long)]
    pub dry_run: bool,
}

/// For `retain`.
#[derive(Debug, Args)]
pub struct RetainArguments {
    #[command(flatten)]
    pub store: StoreArguments,
    /// Count what would be erased
    #[arg(long)]
    pub dry_run: bool,
}

/// For `info`.
#[derive(Debug, Args)]
pub struct InfoArguments {
    #[command(flatten)]
    pub store: StoreArguments,
    /// As one JSON object
    #[arg(long)]
    pub json: bool,
}

/// For `check`.
#[derive(Debug, Args)]
pub struct CheckArguments {
    #[command(flatten)]
    pub store: StoreArguments,
    /// Make the store anew from its events; what is not what was signed is left out and named
    ///
    /// For a directory that no relay and no other command uses. Needs room for a second file; a
    /// crash leaves the old file in place, or the new one.
    #[arg(long)]
    pub repair: bool,
}

/// For `backup`.
#[derive(Debug, Args)]
pub struct BackupArguments {
    #[command(flatten)]
    pub store: StoreArguments,
    /// File to write; in a directory it is named rheostr-SECONDS.mdb, by the time it began
    #[arg(value_name = "DIR_OR_FILE")]
    pub to: PathBuf,
}

/// For `restore`.
#[derive(Debug, Args)]
pub struct RestoreArguments {
    #[command(flatten)]
    pub store: StoreArguments,
    /// Do not compare every index with every event afterwards
    #[arg(long)]
    pub no_check: bool,
    /// What `backup` wrote
    #[arg(value_name = "FILE")]
    pub from: PathBuf,
}

/// For `config`.
#[derive(Debug, Args)]
pub struct ConfigCommandArguments {
    /// What to do with it.
    #[command(subcommand)]
    pub command: ConfigCommand,
}

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say everything that is wrong with it; exit 2 if something is
    Check(ConfigArguments),
    /// Write it as commented TOML, every key with its value in force
    Print(ConfigArguments),
}

impl ConfigArguments {
    fn layers(&self) -> Layers {
        let mut layers = Layers::default();
        if let Some(path) = &self.config {
            layers.file(path);
        }
        for assignment in &self.sets {
            layers.set(assignment);
        }
        layers
    }

    /// The configuration in force.
    pub fn read(&self) -> Result<Config, ConfigError> {
        self.layers().config()
    }
}

impl StoreArguments {
    fn layers(&self) -> Layers {
        let mut layers = self.config.layers();
        if let Some(data) = &self.data {
            // TOML is Unicode; a path that is not cannot be configured, and is refused as empty.
            layers.flag("data", data.to_str().unwrap_or_default());
        }
        layers
    }

    /// The configuration in force.
    pub fn read(&self) -> Result<Config, ConfigError> {
        self.layers().config()
    }
}

impl RelayArguments {
    /// The configuration in force.
    pub fn read(&self) -> Result<Config, ConfigError> {
        let mut layers = self.store.layers();
        if let Some(listen) = self.listen {
            layers.flag("listen", listen.to_string());
        }
        if let Some(shards) = self.shards {
            layers.flag("shards", i64::from(shards));
        }
        if let Some(backend) = self.backend {
            layers.flag("backend", name_of(backend));
        }
        if let Some(format) = self.log_format {
            layers.flag("log.format", name_of(format));
        }
        layers.config()
    }
}

/// The name of a value, the same in flags and in TOML.
fn name_of(value: impl clap::ValueEnum) -> String {
    value.to_possible_value().expect("no value is hidden").get_name().to_owned()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::CommandFactory;

    use super::*;

    fn relay(arguments: &[&str]) -> RelayArguments {
        let all = ["rheostr"].iter().chain(arguments);
        let arguments = Arguments::try_parse_from(all).unwrap();
        match arguments.command {
            Some(Command::Relay(relay)) => relay,
            None => arguments.relay,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn relay_flags_work_with_and_without_the_command() {
        let flags = [
            "--listen",
            "127.0.0.1:0",
            "--data",
            "/d",
            "--shards",
            "3",
            "--backend",
            "tokio-uring",
            "--set",
            "verify=false",
            "--log-format",
            "json",
            "--set",
            "shards=9",
        ];
        let mut with = vec!["relay"];
        with.extend(flags);
        for arguments in [&flags[..], &with[..]] {
            let config = relay(arguments).read().unwrap();
            assert_eq!(config.listen.port(), 0);
            assert_eq!(config.data, Path::new("/d"));
            assert_eq!(config.shards, 3, "a flag of its own wins over --set");
            assert_eq!(config.backend, Backend::TokioUring);
            assert_eq!(config.log.format, LogFormat::Json);
            assert!(!config.verify);
        }
        assert!(Arguments::try_parse_from(["rheostr", "--shards", "1", "check"]).is_err());
    }

    #[test]
    fn without_anything_it_is_the_default() {
        assert_eq!(relay(&[]).read().unwrap(), Config::default());
    }
}
