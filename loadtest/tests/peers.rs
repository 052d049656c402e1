//! `loadtest/peers` refuses what it has no recipe for before it builds anything. What it installs is not tested: that
//! is minutes of somebody else's build.

#![allow(missing_docs, clippy::unwrap_used)]

use std::process::{Command, Output};

fn peers(arguments: &[&str]) -> Output {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers");
    Command::new(script).args(arguments).output().unwrap()
}

#[test]
fn a_wrong_call_is_refused_before_anything_is_made() {
    let scratch = tempfile::tempdir().unwrap();
    let new = scratch.path().join("new");
    let new = new.to_str().unwrap();
    for (arguments, status, says) in [
        (&[][..], 2, "loadtest/peers DIR"),
        (&["--all"], 2, "loadtest/peers DIR"),
        (&[new, "strfry"], 1, "no recipe for strfry: there are nostr-rs-relay"),
        (&[new, "rnostr", "--fast"], 1, "no recipe for --fast"),
    ] {
        let output = peers(arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(says), "{arguments:?}");
        assert_eq!(output.stdout, b"");
    }
    assert!(!std::fs::exists(new).unwrap());
}

#[test]
fn help_says_how_and_what_it_needs() {
    let output = peers(&["--help"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for word in
        ["loadtest/peers DIR [nostr-rs-relay] [rnostr] [nostr_relay]", "protoc", "--set peers=DIR"]
    {
        assert!(text.contains(word), "{word}: {text}");
    }
}
