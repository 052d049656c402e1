//! What a relay says, recognized by its first bytes.
//!
//! The quick look accepts only the compact form that relays print (`["OK","<id>",true,"…"]`). Anything else (spaces,
//! escapes, other shapes) goes to serde_json, so a relay is never judged by its whitespace.

use memchr::memmem;
use serde_json::Value;
use std::borrow::Cow;

/// An event id.
pub type Id = [u8; 32];

/// One message from a relay; text borrows from the frame where no escape forces a copy.
#[derive(Debug, PartialEq, Eq)]
pub enum RelayMessage<'a> {
    Ok {
        id: Id,
        accepted: bool,
        reason: Cow<'a, str>,
    },
    Event {
        subscription: Cow<'a, str>,
        id: Id,
    },
    Eose {
        subscription: Cow<'a, str>,
    },
    Closed {
        subscription: Cow<'a, str>,
        reason: Cow<'a, str>,
    },
    /// NIP-45.
    Count {
        subscription: Cow<'a, str>,
        count: u64,
        approximate: bool,
    },
    Notice(Cow<'a, str>),
    Auth,
    Other,
}

/// A frame that is no message of NIP-01 at all.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a relay message: {0}")]
pub struct Malformed(pub String);

/// Reads one message.
///
/// # Errors
/// [`Malformed`] if it is not a JSON array that starts with a string, or a known message with missing parts.
pub fn parse(text: &[u8]) -> Result<RelayMessage<'_>, Malformed> {
    match quick(text) {
        Some(message) => Ok(message),
        None => slow(text),
    }
}

/// The event object inside `["EVENT","sub",{…}]`, as it was sent.
pub fn event_json(text: &[u8]) -> Option<&[u8]> {
    let start = memchr::memchr(b'{', text)?;
    let end = memchr::memrchr(b'}', text)?;
    text.get(start..=end)
}

fn quick(text: &[u8]) -> Option<RelayMessage<'_>> {
    if let Some(rest) = text.strip_prefix(b"[\"EVENT\",\"") {
        let (subscription, rest) = plain_string(rest)?;
        let rest = rest.strip_prefix(b",{")?;
        // Inside a JSON string every quote is escaped, so these bytes can only be the key.
        let at = memmem::find(rest, b"\"id\":\"")? + 6;
        let (id, rest) = hex_id(&rest[at..])?;
        rest.starts_with(b"\"")
            .then_some(RelayMessage::Event { subscription: subscription.into(), id })
    } else if let Some(rest) = text.strip_prefix(b"[\"OK\",\"") {
        let (id, rest) = hex_id(rest)?;
        let rest = rest.strip_prefix(b"\",")?;
        let (accepted, rest) = match rest.strip_prefix(b"true,\"") {
            Some(rest) => (true, rest),
            None => (false, rest.strip_prefix(b"false,\"")?),
        };
        let (reason, rest) = plain_string(rest)?;
        (rest == b"]").then_some(RelayMessage::Ok { id, accepted, reason: reason.into() })
    } else {
        let rest = text.strip_prefix(b"[\"EOSE\",\"")?;
        let (subscription, rest) = plain_string(rest)?;
        rest.starts_with(b"]").then_some(RelayMessage::Eose { subscription: subscription.into() })
    }
}

/// A string without escapes, up to its closing quote, and what follows the quote.
fn plain_string(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = memchr::memchr2(b'"', b'\\', bytes)?;
    if bytes[end] == b'\\' {
        return None;
    }
    Some((std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]))
}

fn hex_id(bytes: &[u8]) -> Option<(Id, &[u8])> {
    let (hex, rest) = bytes.split_at_checked(64)?;
    let mut id = [0; 32];
    faster_hex::hex_decode(hex, &mut id).ok()?;
    Some((id, rest))
}

fn slow(text: &[u8]) -> Result<RelayMessage<'static>, Malformed> {
    let malformed =
        || Malformed(String::from_utf8_lossy(&text[..text.len().min(120)]).into_owned());
    let value: Value = serde_json::from_slice(text).map_err(|_| malformed())?;
    let parts = value.as_array().ok_or_else(malformed)?;
    let string = |index: usize| {
        parts.get(index).and_then(Value::as_str).map(str::to_owned).ok_or_else(malformed)
    };
    let id =
        |hex: &str| hex_id(hex.as_bytes()).filter(|(_, rest)| rest.is_empty()).map(|(id, _)| id);
    Ok(match string(0)?.as_str() {
        "OK" => RelayMessage::Ok {
            id: id(&string(1)?).ok_or_else(malformed)?,
            accepted: parts.get(2).and_then(Value::as_bool).ok_or_else(malformed)?,
            reason: string(3)?.into(),
        },
        "EVENT" => {
            let event_id = parts.get(2).and_then(|event| event.get("id")).and_then(Value::as_str);
            RelayMessage::Event {
                subscription: string(1)?.into(),
                id: event_id.and_then(id).ok_or_else(malformed)?,
            }
        }
        "EOSE" => RelayMessage::Eose { subscription: string(1)?.into() },
        "CLOSED" => {
            RelayMessage::Closed { subscription: string(1)?.into(), reason: string(2)?.into() }
        }
        "COUNT" => RelayMessage::Count {
            subscription: string(1)?.into(),
            count: parts.get(2).and_then(|one| one["count"].as_u64()).ok_or_else(malformed)?,
            approximate: parts[2]["approximate"] == true,
        },
        "NOTICE" => RelayMessage::Notice(string(1)?.into()),
        "AUTH" => RelayMessage::Auth,
        _ => RelayMessage::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4ef323e0e32b6025b5e7c59e78f4ed0145805fbab9b95247357a10379ede375d";

    /// Each message in the compact form that the quick look must take, and the same with spaces, which it must not.
    #[test]
    fn the_quick_look_agrees_with_serde_json() {
        let messages = [
            format!(r#"["OK","{ID}",true,""]"#),
            format!(r#"["OK","{ID}",false,"blocked: näh"]"#),
            format!(
                r#"["EVENT","s",{{"id":"{ID}","pubkey":"{ID}","tags":[["e","x"]],"content":"y"}}]"#
            ),
            format!(r#"["EVENT","s",{{"content":"\"id\":\"00\"","id":"{ID}","kind":1}}]"#),
            r#"["EOSE","s"]"#.to_owned(),
        ];
        for message in messages {
            let seen = quick(message.as_bytes()).expect(&message);
            assert_eq!(seen, slow(message.as_bytes()).unwrap());
            let spaced =
                serde_json::to_string_pretty(&serde_json::from_str::<Value>(&message).unwrap())
                    .unwrap();
            assert_eq!(quick(spaced.as_bytes()), None);
            assert_eq!(parse(spaced.as_bytes()).unwrap(), seen);
        }
    }

    #[test]
    fn escapes_and_rarer_messages_take_the_slow_way() {
        let text = format!(r#"["OK","{ID}",false,"invalid: \"kind\""]"#);
        let Ok(RelayMessage::Ok { accepted: false, reason, .. }) = parse(text.as_bytes()) else {
            panic!()
        };
        assert_eq!(reason, "invalid: \"kind\"");
        assert_eq!(
            parse(br#"["EOSE","a\"b"]"#).unwrap(),
            RelayMessage::Eose { subscription: "a\"b".into() }
        );
        assert_eq!(
            parse(br#"["EOSE","s",["finish"]]"#).unwrap(),
            RelayMessage::Eose { subscription: "s".into() }
        );
        assert_eq!(parse(br#"["AUTH","challenge"]"#).unwrap(), RelayMessage::Auth);
        assert_eq!(parse(br#"["NOTICE","hey"]"#).unwrap(), RelayMessage::Notice("hey".into()));
        let count =
            |approximate| RelayMessage::Count { subscription: "s".into(), count: 7, approximate };
        assert_eq!(parse(br#"["COUNT","s",{"count":7}]"#).unwrap(), count(false));
        assert_eq!(parse(br#"["COUNT","s",{"count":7,"approximate":true}]"#).unwrap(), count(true));
        assert_eq!(parse(br#"["NEG-MSG","s","61"]"#).unwrap(), RelayMessage::Other);
    }

    #[test]
    fn nonsense_is_malformed() {
        let short = format!(r#"["OK","{ID}",true]"#);
        for text in [
            "",
            "{}",
            "[]",
            "[1]",
            r#"["EVENT","s",{}]"#,
            r#"["COUNT","s",{"counts":1}]"#,
            r#"["OK","ab",true,""]"#,
            &short,
            "[\"EOSE\"",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn the_event_is_cut_out_of_its_message() {
        assert_eq!(event_json(br#"["EVENT","s",{"a":{}}]"#), Some(&br#"{"a":{}}"#[..]));
        assert_eq!(event_json(br#"["EOSE","s"]"#), None);
    }
}
