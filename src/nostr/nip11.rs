//! What the relay says of itself (NIP-11): the JSON document for clients, one page for people.
//!
//! Both are made from the same values, and those are the values in force.

use serde::{Deserialize, Serialize};

/// What the operator says about the relay. An empty text is left out. In the config file: `[info]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Info {
    /// Name, best under 30 characters.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Plain text of any length.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// URL of a wide picture.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub banner: String,
    /// URL of a square picture.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub icon: String,
    /// The operator's public key, 64 lowercase hex characters.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pubkey: String,
    /// Another way to reach the operator, as a URI.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub contact: String,
    /// URL of the terms of service.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub terms_of_service: String,
    /// URL where payments are made.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub payments_url: String,
}

/// The bounds a client meets, as NIP-11 names them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Limitation {
    /// Bytes of one WebSocket message.
    pub max_message_length: u64,
    /// Open subscriptions of one connection.
    pub max_subscriptions: u64,
    /// Largest `limit` that is honoured.
    pub max_limit: u64,
    /// The `limit` of a filter without one.
    pub default_limit: u64,
    /// Characters of a subscription id.
    pub max_subid_length: u64,
    /// Tags of one event.
    pub max_event_tags: u64,
    /// Characters of one event's content.
    pub max_content_length: u64,
    /// Leading zero bits an event id needs (NIP-13).
    pub min_pow_difficulty: u8,
    /// Whether a client must authenticate before anything else (NIP-42).
    pub auth_required: bool,
    /// Whether a client must pay before anything else.
    pub payment_required: bool,
    /// Whether some condition must be met to write.
    pub restricted_writes: bool,
    /// When an accepted event is on the disk: `commit` = before its OK; `interval` = soon after, so that a
    /// power cut may undo the last ones. Not of NIP-11.
    pub durability: &'static str,
    /// How far back `created_at` may lie, in seconds; `None` = any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at_lower_limit: Option<u64>,
    /// How far ahead `created_at` may lie, in seconds; `None` = any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at_upper_limit: Option<u64>,
}

/// The name of the software, the same wherever it is given.
pub const SOFTWARE: &str = env!("CARGO_PKG_NAME");

/// Of a relay that searches, too.
pub const SEARCH: u16 = 50;

/// What this relay does; client NIPs are not a relay's to advertise.
pub const SUPPORTED_NIPS: &[u16] = &[1, 9, 11, 40, 45, 62];

/// The document served to `Accept: application/nostr+json`.
#[must_use]
pub fn document(info: &Info, limitation: &Limitation, nips: &[u16], version: &str) -> String {
    #[derive(Serialize)]
    struct Document<'a> {
        #[serde(flatten)]
        info: &'a Info,
        supported_nips: &'a [u16],
        software: &'a str,
        version: &'a str,
        limitation: &'a Limitation,
    }
    let document = Document { info, supported_nips: nips, software: SOFTWARE, version, limitation };
    serde_json::to_string(&document).expect("plain fields serialize")
}

/// The page served to browsers: self-contained HTML5. `url` is the address clients connect to; `None`
/// when it can be told from the page's own only.
#[must_use]
pub fn page(
    info: &Info,
    limitation: &Limitation,
    nips: &[u16],
    version: &str,
    url: Option<&str>,
) -> String {
    let name = if info.name.is_empty() { "A Nostr relay" } else { &info.name };
    let mut out = String::with_capacity(4096);
    out.push_str(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>",
    );
    escape(&mut out, name);
    out.push_str("</title>\n<style>\n");
    out.push_str(STYLE);
    out.push_str("</style>\n</head>\n<body>\n<main>\n<h1>");
    escape(&mut out, name);
    out.push_str("</h1>\n");
    if !info.description.is_empty() {
        out.push_str("<p class=\"text\">");
        escape(&mut out, &info.description);
        out.push_str("</p>\n");
    }
    out.push_str(
        "<p>This is a <a href=\"https://nostr.com\">Nostr</a> relay: it keeps notes that people \
         sign and passes them on. Nothing is to be read here; add this address to a Nostr \
         client:</p>\n<p class=\"url\"><code>",
    );
    escape(&mut out, url.unwrap_or("this page's address, with ws:// for http://"));
    out.push_str("</code></p>\n");
    rows(&mut out, "Operator", &operator_rows(info));
    rows(&mut out, "Limits", &limit_rows(limitation));
    out.push_str("<h2>Supported NIPs</h2>\n<p>");
    for (index, nip) in nips.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        out.push_str(&format!(
            "{comma}<a href=\"https://github.com/nostr-protocol/nips/blob/master/{nip:02}.md\">\
             {nip:02}</a>"
        ));
    }
    out.push_str("</p>\n<footer>");
    escape(&mut out, SOFTWARE);
    out.push(' ');
    escape(&mut out, version);
    out.push_str(
        ". Clients get this as JSON with <code>Accept: application/nostr+json</code>.</footer>\n\
         </main>\n</body>\n</html>\n",
    );
    out
}

const STYLE: &str = "\
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }
body { margin: 0; padding: 1.5rem 1rem; }
main { max-width: 40rem; margin: 0 auto; overflow-wrap: anywhere; }
h1 { line-height: 1.2; }
h2 { font-size: 1.1rem; margin: 2rem 0 0.5rem; }
.text { white-space: pre-line; }
.url code { display: block; padding: 0.75rem; border: 1px solid; border-radius: 0.4rem; }
table { border-collapse: collapse; width: 100%; }
td { padding: 0.25rem 0; border-bottom: 1px solid #8884; vertical-align: top; }
td:first-child { padding-right: 1rem; opacity: 0.75; }
footer { margin-top: 2rem; font-size: 0.85rem; opacity: 0.75; }
";

fn operator_rows(info: &Info) -> Vec<(&'static str, String)> {
    [
        ("Public key", &info.pubkey),
        ("Contact", &info.contact),
        ("Terms of service", &info.terms_of_service),
        ("Payments", &info.payments_url),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(label, value)| (label, value.clone()))
    .collect()
}

fn limit_rows(limitation: &Limitation) -> Vec<(&'static str, String)> {
    let seconds = |limit: Option<u64>| limit.map_or("any".into(), |s| format!("{s} s"));
    vec![
        ("Message", format!("{} bytes", limitation.max_message_length)),
        ("Content of an event", format!("{} characters", limitation.max_content_length)),
        ("Tags of an event", limitation.max_event_tags.to_string()),
        ("created_at in the past", seconds(limitation.created_at_lower_limit)),
        ("created_at in the future", seconds(limitation.created_at_upper_limit)),
        ("Subscriptions per connection", limitation.max_subscriptions.to_string()),
        ("Stored events per filter", limitation.max_limit.to_string()),
        ("Proof of work", format!("{} bits", limitation.min_pow_difficulty)),
        ("Authentication", required(limitation.auth_required)),
        ("Payment", required(limitation.payment_required)),
    ]
}

fn required(yes: bool) -> String {
    if yes { "required" } else { "not required" }.into()
}

fn rows(out: &mut String, title: &str, rows: &[(&str, String)]) {
    if rows.is_empty() {
        return;
    }
    out.push_str(&format!("<h2>{title}</h2>\n<table>\n"));
    for (label, value) in rows {
        out.push_str(&format!("<tr><td>{label}</td><td>"));
        escape(out, value);
        out.push_str("</td></tr>\n");
    }
    out.push_str("</table>\n");
}

fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn limitation() -> Limitation {
        Limitation {
            max_message_length: 512_000,
            max_subscriptions: 100,
            max_limit: 5_000,
            default_limit: 5_000,
            max_subid_length: 64,
            max_event_tags: 2_000,
            max_content_length: 262_144,
            min_pow_difficulty: 0,
            auth_required: false,
            payment_required: false,
            restricted_writes: false,
            durability: "commit",
            created_at_lower_limit: None,
            created_at_upper_limit: Some(900),
        }
    }

    #[test]
    fn the_document_holds_what_is_set_and_nothing_else() {
        let info = Info { name: "a \"relay\"".into(), ..Info::default() };
        let text = document(&info, &limitation(), &[1, 9, 11], "1.2.3");
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            value,
            json!({
                "name": "a \"relay\"",
                "supported_nips": [1, 9, 11],
                "software": "rheostr",
                "version": "1.2.3",
                "limitation": {
                    "max_message_length": 512_000,
                    "max_subscriptions": 100,
                    "max_limit": 5_000,
                    "default_limit": 5_000,
                    "max_subid_length": 64,
                    "max_event_tags": 2_000,
                    "max_content_length": 262_144,
                    "min_pow_difficulty": 0,
                    "auth_required": false,
                    "payment_required": false,
                    "restricted_writes": false,
                    "durability": "commit",
                    "created_at_upper_limit": 900,
                },
            })
        );
    }

    #[test]
    fn every_info_field_reaches_the_document() {
        let fields = [
            "name",
            "description",
            "banner",
            "icon",
            "pubkey",
            "contact",
            "terms_of_service",
            "payments_url",
        ];
        let all: serde_json::Map<_, _> =
            fields.iter().map(|name| ((*name).to_owned(), json!(format!("<{name}>")))).collect();
        let info: Info = serde_json::from_value(Value::Object(all)).unwrap();
        let value: Value = serde_json::from_str(&document(&info, &limitation(), &[], "0")).unwrap();
        for name in fields {
            assert_eq!(value[name], json!(format!("<{name}>")));
        }
    }

    #[test]
    fn the_page_escapes_what_the_operator_wrote_and_loads_nothing() {
        let hostile = "<script>alert(\"1\")</script>&'";
        let info = Info {
            name: hostile.into(),
            description: hostile.into(),
            contact: hostile.into(),
            icon: "https://example.com/icon.png".into(),
            ..Info::default()
        };
        let html = page(&info, &limitation(), &[1, 62], "0", Some("ws://host:1/<path>"));
        assert!(!html.contains("<script"));
        let escaped = "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;&#39;";
        assert_eq!(html.matches(escaped).count(), 4, "title, heading, description, contact");
        assert!(html.contains("ws://host:1/&lt;path&gt;"));
        for loading in ["src=", "<link", "@import", "url(", "<img", "<iframe"] {
            assert!(!html.contains(loading), "{loading} would load something");
        }
        assert!(html.contains("512000 bytes"));
        assert!(html.contains("62.md"));
        assert!(html.contains("name=\"viewport\""));
    }
}
