//! `config check`, `config print`, and what a wrong configuration is answered with.

use crate::support::{Directory, ok, run};

#[test]
fn what_is_printed_can_be_used() {
    let dir = Directory::new();
    let file = dir.file("relay.toml");
    let printed = ok(&["config", "print", "--set", "info.name=A \"name\"", "--set", "shards=3"]);
    assert!(printed.contains("\nshards = 3\n"));
    assert!(printed.lines().any(|line| line.starts_with("# ")));
    std::fs::write(&file, &printed).unwrap();
    assert_eq!(ok(&["config", "print", "--config", &file]), printed);
    ok(&["config", "check", "--config", &file]);
}

#[test]
fn a_wrong_configuration_ends_every_command_with_2() {
    let dir = Directory::new();
    let file = dir.file("relay.toml");
    std::fs::write(&file, "\n[limits]\nmesage_bytes_max = 5000\nfilters_max = 0\n").unwrap();
    let data = dir.file("data");
    for command in [
        &["config", "check", "--config", &file][..],
        &["config", "print", "--config", &file],
        &["relay", "--config", &file, "--data", &data],
        &["--config", &file, "--data", &data],
        &["import", "--config", &file, "--data", &data],
        &["check", "--config", &file, "--data", &data],
    ] {
        let done = run(command);
        assert_eq!(done.code, 2, "{command:?}: {}", done.err);
        assert_eq!(done.out, "");
        let unknown = "relay.toml:3: unknown key \"limits.mesage_bytes_max\"; the nearest known key \
                       is \"limits.message_bytes_max\"";
        assert!(done.err.contains(unknown), "{}", done.err);
        let refused = "relay.toml:4: limits.filters_max = 0: must be an integer from 1 to 10000";
        assert!(done.err.contains(refused), "{}", done.err);
    }
    assert!(!std::path::Path::new(&data).exists(), "nothing was begun");
}

#[test]
fn the_keys_outside_checks_rely_on_are_there() {
    for set in [
        "limits.message_bytes_max=4000000",
        "limits.message_bytes_max=4096",
        "limits.event_tags_max=2000",
        "limits.created_at_age_s_max=0",
        "limits.created_at_ahead_s_max=0",
        "limits.filter_limit_max=500",
        "limits.subscriptions_max=20",
        "limits.outbox_messages_max=100",
        "verify=false",
    ] {
        ok(&["config", "check", "--set", set]);
    }
}

#[test]
fn usage() {
    assert_eq!(run(&["--shards", "many"]).code, 2);
    assert_eq!(run(&["scan"]).code, 2);
    assert_eq!(run(&["nonsense"]).code, 2);
    assert_eq!(run(&["config", "check", "--config", "/nonexistent.toml"]).code, 2);
    let done = run(&["config", "check", "--set", "shards"]);
    assert!(done.code == 2 && done.err.contains("--set shards: write it as key=value"));
    let help = ok(&["--help"]);
    for command in
        ["relay", "import", "export", "scan", "count", "delete", "info", "check", "config"]
    {
        assert!(help.contains(&format!("\n  {command} ")), "{command}");
        assert!(ok(&[command, "--help"]).contains("Usage: rheostr "), "{command}");
    }
}
