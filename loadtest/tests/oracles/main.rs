//! A relay that breaks its promises is caught, by name and by the exit status; one that keeps them is not accused.

#![allow(missing_docs, clippy::cast_possible_truncation, clippy::unwrap_used)]

mod admin;
mod captured;
mod figures;
mod kinds;
mod quiet;
mod relay;

use relay::Fault;
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

const BINARY: &str = env!("CARGO_BIN_EXE_rheostr-loadtest");
const EVENTS: usize = 1500;

struct Run {
    status: i32,
    report: Value,
}

impl Run {
    fn violations(&self) -> Vec<&str> {
        let kinds = self.report["oracle"]["kinds"].as_array().expect("a report");
        kinds.iter().map(|one| one["kind"].as_str().unwrap()).collect()
    }

    fn latency(&self, figure: &str) -> f64 {
        self.report["latency_us"][figure].as_f64().expect("a latency")
    }
}

/// Runs the generator; its exit status and what it reports.
fn reports(arguments: &str) -> (i32, Vec<Value>) {
    let output = Command::new(BINARY).args(arguments.split_whitespace()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let reports = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (output.status.code().expect("it exits by itself"), reports)
}

/// Its last report.
fn generate(arguments: &str) -> Run {
    let (status, mut reports) = reports(arguments);
    Run { status, report: reports.pop().unwrap_or_else(|| panic!("nothing told by {arguments}")) }
}

fn against(fault: Fault, arguments: &str) -> Run {
    let address = relay::start(fault);
    generate(&format!("{arguments} --url ws://{address} --settle-ms 0 --timeout-s 10 --json"))
}

fn scratch(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    path.to_str().unwrap().to_owned()
}

/// A file of its own for each test: they run at the same time.
fn events(name: &str, count: usize) -> String {
    let path = scratch(&format!("{name}.jsonl"));
    let made = generate(&format!("gen --count {count} --seed 4 --authors 50 --out {path}"));
    assert_eq!((made.status, &made.report["synthetic"]), (0, &Value::Bool(true)));
    path
}

#[track_caller]
fn assert_kept(run: &Run) {
    assert_eq!(run.status, 0, "{}", run.report);
    assert_eq!(run.report["oracle"]["violations"], 0);
    assert!(run.report["oracle"]["checked"].as_u64() > Some(0), "{}", run.report);
}

#[track_caller]
fn assert_caught(run: &Run, violation: &str) {
    assert_eq!(run.status, 1, "{}", run.report);
    assert!(run.violations().contains(&violation), "{}", run.report["oracle"]);
    assert_eq!(run.report["ok"], false);
}

#[test]
fn a_relay_that_keeps_its_promises_is_not_accused() {
    let events = events("kept", EVENTS);
    let address = relay::start(Fault::Nothing);
    let url = format!("--url ws://{address} --settle-ms 0 --timeout-s 20 --json");
    let ingest = generate(&format!("ingest --events {events} --closed-loop {url}"));
    assert_kept(&ingest);
    assert_eq!(ingest.report["detail"]["accepted"], EVENTS);
    assert_eq!(ingest.report["detail"]["checked_afterwards"]["ids"], EVENTS);
    assert_eq!(ingest.report["pacing"], "closed");
    for arguments in [
        format!("query --shape tag --exact --count 50 --events {events}"),
        format!("query --shape author --exact --closed-loop --count 50 --events {events}"),
        format!("count --shape author --exact --count 50 --events {events}"),
        "fanout --events 300 --subscribers 5 --rate 500".to_owned(),
    ] {
        let run = generate(&format!("{arguments} {url}"));
        assert_kept(&run);
        let pacing = if arguments.contains("--closed-loop") { "closed" } else { "open" };
        assert_eq!(run.report["pacing"], pacing);
    }
}

#[test]
fn every_open_loop_is_satisfied_by_a_relay_that_keeps_its_promises() {
    let events = events("loops", 300);
    let replay = format!("replay --speed 1000 --events {events}");
    for (arguments, unit) in [
        ("mixed --duration-s 1 --rate 200 --followers 8 --query-rate 40 --threads 2", "event"),
        ("soak --duration-s 0.5 --rate 100 --followers 4", "event"),
        ("burst --burst-events 50 --every-ms 100 --bursts 4 --warm-up-s 0.1", "event"),
        (&replay, "event"),
        ("connect --count 50 --rate 200", "connection"),
        ("churn --count 60 --rate 200 --threads 2", "connection"),
    ] {
        let run = against(Fault::Nothing, arguments);
        assert_kept(&run);
        assert_eq!(run.report["pacing"], "open");
        assert_eq!(run.report["unit"], unit);
        assert!(run.latency("count") > 0.0, "{}", run.report);
        if arguments.contains("--warm-up-s") {
            assert_eq!(
                run.report["operations"], 150,
                "the first of four bursts is not in the figures"
            );
        }
    }
}

#[test]
fn what_follows_a_filter_is_what_a_naive_evaluation_says() {
    let arguments = "mixed --duration-s 1 --rate 300 --followers 8 --askers 0 --timeout-s 1";
    let address = relay::start(Fault::DeliversAllBut(100));
    let run = generate(&format!("{arguments} --url ws://{address} --settle-ms 0 --json"));
    assert_caught(&run, "delivery_missing");
    assert_eq!(run.violations(), ["delivery_missing"]);
}

#[test]
fn followers_by_since_get_events_that_were_signed_before_they_came() {
    let address = relay::start(Fault::Nothing);
    let mixed = "mixed --duration-s 0.5 --rate 100 --followers 4 --askers 0";
    let fanout = "fanout --events 30 --rate 200 --subscribers 3 --created-at 1700000000";
    // Each finds stored what those before it have published.
    for (arguments, seed) in [(mixed, 1), (mixed, 2), (fanout, 3), (fanout, 4)] {
        let since = format!("--live-filter since --seed {seed} --settle-ms 0 --json");
        let run = generate(&format!("{arguments} {since} --url ws://{address}"));
        assert_kept(&run);
        assert_eq!(run.report["detail"]["seed"], seed);
        if arguments == fanout {
            assert_eq!(run.report["detail"]["created_at"], 1_700_000_000);
        }
    }
}

#[test]
fn connections_that_are_never_let_go_are_noticed() {
    // The relay is in this process, and keeps what it accepted.
    let arguments = format!("churn --count 40 --rate 400 --pid {}", std::process::id());
    assert_caught(&against(Fault::Nothing, &arguments), "fds_not_released");
}

#[test]
fn a_process_that_is_gone_afterwards_is_a_violation() {
    let judge = |arguments: &str| {
        // It stands for the relay's, and ends inside the window, though the machine be slow to open it.
        let mut process = Command::new("sleep").arg("3").spawn().unwrap();
        let arguments = format!("{arguments} --pid {}", process.id());
        let reaper = std::thread::spawn(move || process.wait());
        assert_caught(&against(Fault::Nothing, &arguments), "not_there_afterwards");
        reaper.join().unwrap().unwrap();
    };
    std::thread::scope(|scope| {
        scope.spawn(|| judge("connect --count 100 --rate 20"));
        judge("idle --connections 2 --hold-s 5");
    });
}

#[test]
fn a_plan_runs_everything_and_fails_if_one_run_does() {
    let address = relay::start(Fault::Repeats(10));
    let plan = scratch("plan.toml");
    let text = format!(
        "[defaults]\nurl = \"ws://{address}\"\nsettle-ms = 0\njson = true\n\
         [[run]]\nscenario = \"connect\"\ncount = 20\nrate = 200\nruns = 2\n\
         [[run]]\nscenario = \"fanout\"\nevents = 20\nsubscribers = 2\nrate = 200\n\
         [[run]]\nscenario = \"connect\"\ncount = 5\n"
    );
    std::fs::write(&plan, text).unwrap();
    let page = scratch("plan.html");
    let (status, told) = reports(&format!("plan {plan} --html {page}"));
    assert_eq!(status, 1);
    let scenarios: Vec<&str> = told.iter().map(|one| one["scenario"].as_str().unwrap()).collect();
    assert_eq!(scenarios, ["connect", "connect", "connect", "fanout", "connect"]);
    let ok: Vec<bool> = told.iter().map(|one| one["ok"].as_bool().unwrap()).collect();
    assert_eq!(ok, [true, true, true, false, true]);
    assert_eq!(told[2]["runs"], 2);
    assert!(told[2]["spread"]["ops_per_s"]["median"].as_f64() > Some(0.0), "{}", told[2]);
    let page = std::fs::read_to_string(page).unwrap();
    let (top, rest) = page.split_once("<h2>").unwrap();
    assert!(top.contains("fanout: VIOLATIONS: ") && top.contains("delivery_twice"), "{top}");
    assert_eq!((top.matches("connect: ok").count(), rest.matches("<h2>").count()), (3, 2));

    std::fs::write(&plan, "[[run]]\nscenario = \"fanout\"\nrtae = 5\n").unwrap();
    let Run { status, report } = generate(&format!("plan {plan}"));
    assert_eq!(status, 2);
    assert!(report["error"].as_str().unwrap().contains("run 1 (fanout): unknown key `rtae`"));
}

#[test]
fn a_run_has_its_page() {
    let (page, nowhere) = (scratch("run.html"), scratch("no/such/run.html"));
    let arguments = "fanout --events 200 --subscribers 3 --rate 500 --runs 2 --html";
    let run = against(Fault::Nothing, &format!("{arguments} {page}"));
    assert_eq!(run.status, 0);
    let page = std::fs::read_to_string(page).unwrap();
    assert_eq!(page.matches("<svg").count(), 2, "latency and throughput: {page}");
    for says in [
        "publish_to_receipt, run 2",
        "event_to_ok, run 1",
        "latency_us.p99",
        "parameters.subscribers",
    ] {
        assert!(page.contains(says), "{says}");
    }
    assert_eq!(against(Fault::Nothing, &format!("{arguments} {nowhere}")).status, 2);
}

#[test]
fn bystanders_get_nothing() {
    let arguments = "fanout --events 100 --subscribers 2 --closed-loop --bystanders 3 --bystander-subscriptions 2";
    assert_kept(&against(Fault::Nothing, arguments));
    let run = against(Fault::IgnoresAuthors, arguments);
    assert_caught(&run, "delivery_unasked");
    assert_eq!(run.violations(), ["delivery_unasked"]);
}

#[test]
fn an_option_that_would_do_nothing_is_refused() {
    let events = events("refused-options", 20);
    for (arguments, names) in [
        ("slow-readers --events 10", "--deaf"),
        (&format!("slow-readers --deaf 1 --from {events}"), "--from"),
        ("idle --connections 1 --hold-s 1 --threads 2", "--threads"),
        ("idle --connections 1 --hold-s 1 --admin 127.0.0.1:9", "--admin"),
        ("connect --count 1 --admin 127.0.0.1:9", "--admin: no"),
        ("churn --count 1 --admin 127.0.0.1:9", "--admin: no"),
        (&format!("ingest --events {events} --admin 127.0.0.1:9"), "--admin: there"),
    ] {
        let run = against(Fault::Nothing, arguments);
        assert_eq!(run.status, 2, "{arguments}: {}", run.report);
        assert!(run.report["error"].as_str().unwrap().starts_with(names), "{}", run.report);
    }
}

#[test]
fn common_options_are_reported_at_the_same_place() {
    let events = events("parameters", 20);
    for arguments in [
        "idle --connections 1 --hold-s 1",
        "connect --count 1",
        "fanout --events 5 --subscribers 1 --closed-loop",
        "slow-readers --rounds 1 --events 5 --subscribers 1 --deaf 1 --closed-loop",
        "soak --duration-s 0.1 --rate 20",
        &format!("ingest --events {events} --closed-loop"),
        &format!("query --shape author --count 2 --events {events}"),
        &format!("count --shape author --count 2 --events {events}"),
    ] {
        let run = against(Fault::Nothing, arguments);
        assert_eq!(run.report["parameters"]["timeout_s"], 10, "{arguments}: {}", run.report);
    }
}

#[test]
fn a_part_of_a_file_is_published() {
    let events = events("parts", 100);
    let ingest = format!("ingest --events {events} --closed-loop");
    for (part, count) in [("--limit 30", 30), ("--skip 30 --limit 20", 20), ("--skip 80", 20)] {
        let run = against(Fault::Nothing, &format!("{ingest} {part}"));
        assert_kept(&run);
        assert_eq!(run.report["detail"]["events"], count, "{part}");
    }
    assert_eq!(against(Fault::Nothing, &format!("{ingest} --skip 100")).status, 2);
}

#[test]
fn an_event_is_answered_once() {
    let events = events("answers", 300);
    let arguments = format!("ingest --events {events} --closed-loop --check-ids 0");
    let short = format!("{arguments} --in-flight 1000");
    let address = relay::start(Fault::AnswersAllBut(100));
    let run = generate(&format!("{short} --url ws://{address} --settle-ms 0 --timeout-s 1 --json"));
    assert_caught(&run, "event_unanswered");
    let kinds = run.report["oracle"]["kinds"].as_array().unwrap();
    let counts: u64 = kinds.iter().map(|one| one["count"].as_u64().unwrap()).sum();
    assert_eq!((run.violations(), counts), (vec!["event_unanswered"], 3));
    assert_caught(&against(Fault::AnswersAgain(100), &arguments), "event_answered_twice");
}

#[test]
fn a_relay_that_refuses_to_count_is_told_from_one_that_counts() {
    let events = events("refusal", 50);
    let arguments = format!("count --events {events} --shape author --count 30 --rate 200");
    let run = against(Fault::RefusesToCount, &arguments);
    assert_eq!((run.status, &run.report["operations"]), (0, &Value::from(0)), "{}", run.report);
    let refused = &run.report["detail"]["refused"];
    assert_eq!(refused["unsupported: no counting here"], 30, "{refused}");
}

#[test]
fn an_event_in_a_thousand_that_is_not_stored_is_missed() {
    let events = events("not-stored", EVENTS);
    let run =
        against(Fault::StoresAllBut(1000), &format!("ingest --events {events} --closed-loop"));
    assert_caught(&run, "acknowledged_event_lost");
}

#[test]
fn a_query_without_an_event_that_is_there_is_told_from_a_right_one() {
    let events = events("query", EVENTS);
    let arguments =
        format!("ingest --events {events} --closed-loop --check-ids 0 --check-queries 30");
    assert_caught(&against(Fault::StoresAllBut(20), &arguments), "stored_event_missing");
}

#[test]
fn an_event_in_a_thousand_that_is_not_delivered_is_missed() {
    let arguments = "fanout --events 1000 --subscribers 3 --closed-loop --timeout-s 3";
    let address = relay::start(Fault::DeliversAllBut(1000));
    let run = generate(&format!("{arguments} --url ws://{address} --settle-ms 0 --json"));
    assert_caught(&run, "delivery_missing");
    let kinds = run.report["oracle"]["kinds"].as_array().unwrap();
    let missing = kinds.iter().find(|one| one["kind"] == "delivery_missing").unwrap();
    assert_eq!(missing["count"], 3, "one for each subscriber");
}

#[test]
fn a_delivery_that_says_something_else_is_noticed() {
    let run = against(Fault::Alters(50), "fanout --events 100 --subscribers 1 --closed-loop");
    assert_caught(&run, "delivery_altered");
}

#[test]
fn a_delivery_that_comes_twice_is_noticed() {
    let run = against(Fault::Repeats(1000), "fanout --events 400 --subscribers 3 --closed-loop");
    assert_caught(&run, "delivery_twice");
}

#[test]
fn a_delivery_out_of_order_is_noticed_where_order_is_promised() {
    let arguments = "fanout --events 100 --subscribers 2 --closed-loop";
    let run = against(Fault::Swaps(7), arguments);
    assert_caught(&run, "delivery_out_of_order");
    assert_eq!(run.violations(), ["delivery_out_of_order"]);
    let run = against(Fault::Swaps(7), &format!("{arguments} --any-order"));
    assert_kept(&run);
    assert!(run.report["detail"]["deliveries_out_of_order"].as_u64() > Some(0), "{}", run.report);
}

#[test]
fn what_was_acknowledged_and_died_with_the_relay_is_missed() {
    let events = events("died", EVENTS);
    let run = against(Fault::DiesWith(EVENTS), &format!("ingest --events {events} --closed-loop"));
    assert_caught(&run, "acknowledged_event_lost");
    let kinds = run.report["oracle"]["kinds"].as_array().unwrap();
    let lost = kinds.iter().find(|one| one["kind"] == "acknowledged_event_lost").unwrap();
    assert_eq!(lost["count"], 100);
}

#[test]
fn a_stall_shows_in_the_open_loop_and_hides_in_the_closed_one() {
    let events = events("stall", 2000);
    let limit = format!("ingest --events {events} --p99-max-ms 100");
    let open = against(Fault::Stalls, &format!("{limit} --connections 4 --rate 800"));
    assert_caught(&open, "p99_above_limit");
    let closed =
        against(Fault::Stalls, &format!("{limit} --connections 1 --in-flight 1 --closed-loop"));
    assert_kept(&closed);
    let (seen, hidden) = (open.latency("p99"), closed.latency("p99"));
    assert!(seen > 5.0 * hidden, "{seen} in the open loop, {hidden} in the closed one");
    let worst = closed.latency("max");
    assert!(worst > 5.0 * hidden, "it stalled all the same: {worst}, p99 {hidden}");
}

#[test]
fn what_a_query_returned_in_the_warm_up_is_not_in_its_rate() {
    let events = events("query-warm-up", 50);
    let address = relay::start(Fault::Nothing);
    let url = format!("--url ws://{address} --settle-ms 0 --json");
    assert_kept(&generate(&format!("ingest --events {events} --closed-loop {url}")));
    // Each finds one event, so that there are as many events a second as queries.
    let query = format!("query --events {events} --shape ids --limit 1 --count 100 --rate 100");
    let run = generate(&format!("{query} --warm-up-s 0.8 {url}"));
    assert_kept(&run);
    let detail = &run.report["detail"];
    let (returned, answered) = (&detail["events_returned"], &detail["answered"]);
    assert_eq!((returned, answered), (&Value::from(100), &Value::from(100)));
    assert!(run.report["operations"].as_u64() < Some(50), "{}", run.report);
    assert_eq!(detail["events_per_second"], run.report["ops_per_s"]);
}

#[test]
fn a_query_that_waits_for_its_turn_is_charged_for_the_wait() {
    let events = events("query-stall", 100);
    let address = relay::start(Fault::Stalls);
    let url = format!("--url ws://{address} --settle-ms 0 --timeout-s 20 --json");
    let ingest =
        format!("ingest --events {events} --closed-loop --check-ids 0 --check-queries 0 {url}");
    assert_kept(&generate(&ingest));
    let query = format!(
        "query --events {events} --shape ids --limit 1 --count 400 --connections 1 --p99-max-ms 100 {url}"
    );
    let open = generate(&format!("{query} --rate 200"));
    assert_caught(&open, "p99_above_limit");
    let closed = generate(&format!("{query} --closed-loop"));
    let (seen, hidden) = (open.latency("p90"), closed.latency("p90"));
    assert!(seen > 5.0 * hidden, "{seen} in the open loop, {hidden} in the closed one");
}
