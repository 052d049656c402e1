//! Relays that this test serves, compared from the outside.

#![allow(missing_docs, clippy::cast_possible_truncation, clippy::unwrap_used, dead_code)]

#[path = "oracles/relay.rs"]
mod relay;

use relay::Fault;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

const PORT: &str = "RHEOSTR_TEST_PORT";
const FAULT: &str = "RHEOSTR_TEST_FAULT";
const FILE: &str = "RHEOSTR_TEST_FILE";

/// The process that the comparison starts.
#[test]
#[ignore = "a relay, which relays_take_turns_and_one_that_breaks_a_promise_is_named_and_not_counted starts"]
fn serve() {
    let Ok(port) = std::env::var(PORT) else { return };
    let fault = match std::env::var(FAULT).unwrap().as_str() {
        "repeats" => Fault::Repeats(100),
        _ => Fault::Nothing,
    };
    // Its working directory is another than the comparison's.
    assert!(fs::exists(std::env::var(FILE).unwrap()).unwrap());
    relay::start_at(port.parse().unwrap(), fault);
    loop {
        std::thread::park();
    }
}

fn plan() -> String {
    let relay = |name: &str, fault: &str| {
        format!(
            "[[relay]]\nname = \"{name}\"\ndurability = \"none\"\n\
             command = [\"{{relay}}\", \"--exact\", \"serve\", \"--ignored\", \"--nocapture\"]\n\
             environment = {{ {PORT} = \"{{port}}\", {FAULT} = \"{fault}\", {FILE} = \"{{data}}/a/b\" }}\n\
             files = {{ \"a/b\" = \"\" }}\n"
        )
    };
    let head = "rounds = 2\nevents = 200\nserver_cpus = [0]\ngenerator_cpus = [0]\n";
    let runs = "[[run]]\nname = \"ingest\"\nscenario = \"ingest\"\n\
        options = { events = \"{events}\", closed-loop = true, settle-ms = 0 }\n\
        [[run]]\nname = \"fan-out\"\nscenario = \"fanout\"\n\
        options = { closed-loop = true, subscribers = 5, events = 40, settle-ms = 0 }\n";
    let absent =
        "[[relay]]\nname = \"absent\"\ndurability = \"none\"\ncommand = [\"{nowhere}/relay\"]\n";
    [head, &relay("good", "none"), &relay("bad", "repeats"), absent, runs].concat()
}

#[test]
fn relays_take_turns_and_one_that_breaks_a_promise_is_named_and_not_counted() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    fs::write(path("plan.toml"), plan()).unwrap();
    fs::create_dir(path("data")).unwrap();
    symlink(std::env::current_exe().unwrap(), path("relay")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_rheostr-loadtest"))
        .arg("compare")
        .arg(path("plan.toml"))
        .current_dir(scratch.path())
        .args(["--data-root", "data", "--set", "relay=relay"])
        .arg("--out")
        .arg(path("out"))
        .arg("--html")
        .arg(path("page.html"))
        .arg("--json")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let comparison: Value = serde_json::from_slice(&output.stdout).unwrap();

    let row = |run: &str| {
        let rows = comparison["rows"].as_array().unwrap();
        let row =
            rows.iter().find(|row| row["run"] == run && row["figure"] == "server.cpu_us_per_op");
        row.unwrap_or_else(|| panic!("{run}: {comparison}"))
    };
    let counted = |row: &Value, relay: usize| {
        row["cells"][relay]["values"].as_array().unwrap().iter().filter(|one| one.is_f64()).count()
    };
    assert_eq!((counted(row("ingest"), 0), counted(row("ingest"), 1)), (2, 2));
    assert_eq!((counted(row("fan-out"), 0), counted(row("fan-out"), 1)), (2, 0));
    assert!(row("ingest")["noise"].as_f64().unwrap() >= 1.0);
    // One CPU for both may make the generator the limit, which is said there too.
    let refused = comparison["refused"].as_array().unwrap().iter().map(|one| one.as_str().unwrap());
    let broken: Vec<&str> = refused.filter(|one| !one.contains("the generator was")).collect();
    assert_eq!(broken.len(), 2, "{broken:?}");
    assert!(broken[0].contains("fan-out, bad, round 1: 2 × delivery_twice"), "{broken:?}");
    assert_eq!(comparison["ok"], true, "the first kept its promises");
    assert!(comparison["skipped"][0].as_str().unwrap().contains("--set nowhere="));

    assert!(fs::read_to_string(path("page.html")).unwrap().contains("<svg"));
    for run in ["good/ingest/1", "good-again/fan-out/2", "bad/ingest/2"] {
        let kept = fs::read_to_string(path("out").join(run).join("run.json")).unwrap();
        assert!(serde_json::from_str::<Value>(&kept).unwrap()["server"]["cpu_us_per_op"].is_f64());
    }
    assert!(path("out/good/ingest/1/event_to_ok.hgrm").exists());
    assert!(path("out/compare.json").exists());
    assert_eq!(fs::read_dir(path("data")).unwrap().count(), 0, "nothing is left behind");

    // The one in question is the first of them.
    let output = Command::new(env!("CARGO_BIN_EXE_rheostr-loadtest"))
        .arg("compare")
        .arg(path("plan.toml"))
        .current_dir(scratch.path())
        .args(["--data-root", "data", "--set", "relay=relay", "--relay", "bad", "--rounds", "1"])
        .output()
        .unwrap();
    let table = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{table}");
    let (above, _) = table.split_once("| run").expect("a table");
    assert!(above.contains("- refused: fan-out, bad, round 1: 2 × delivery_twice"), "{table}");
}
