//! The configuration as the commented TOML it could have been read from.

use toml::{Table, Value};

use super::Config;
use super::keys::KEYS;
use super::load::lookup;

const WIDTH: usize = 96;

/// Writes every key with its meaning, its allowed values and its value in force.
///
/// # Panics
/// If a key has no field, which a test rules out.
#[must_use]
pub fn print(config: &Config) -> String {
    let table = Table::try_from(config).expect("a configuration is TOML");
    let mut out = String::from("# rheostr. Every key is here, with the value in force.\n");
    let mut section = "";
    for key in KEYS {
        let (of, name) = key.name.rsplit_once('.').unwrap_or(("", key.name));
        if of == section {
            out.push('\n');
        } else {
            out.push_str(&format!("\n[{of}]\n"));
            section = of;
        }
        comment(&mut out, key.doc);
        comment(&mut out, &format!("Allowed: {}.", key.allowed));
        // A text of `info` that is empty is left out of the table.
        let empty = Value::String(String::new());
        let value = lookup(&table, key.name).unwrap_or(&empty);
        out.push_str(&format!("{name} = {value}\n"));
    }
    out
}

fn comment(out: &mut String, text: &str) {
    out.push('#');
    let mut width = 1;
    for word in text.split(' ') {
        let length = word.chars().count() + 1;
        if width + length > WIDTH {
            out.push_str("\n#");
            width = 1;
        }
        out.push(' ');
        out.push_str(word);
        width += length;
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Layers;
    use super::*;

    fn read_back(config: &Config) -> Config {
        let mut layers = Layers::default();
        layers.toml(Path::new("printed"), &print(config));
        layers.config().unwrap()
    }

    #[test]
    fn what_is_printed_reads_back() {
        assert_eq!(read_back(&Config::default()), Config::default());
        let mut layers = Layers::default();
        for set in [
            "listen=[::1]:9",
            "data=./a \"b\"\\c",
            "shards=7",
            "backend=tokio-uring",
            "verify=false",
            "relay_url=wss://relay.example/x",
            "deflate=client-context",
            "info.name=\"a\\n'b' \\\"c\\\" é\"",
            "limits.message_bytes_max=5000000",
            "admin.listen=",
            "log.level=trace",
        ] {
            layers.set(set);
        }
        let config = layers.config().unwrap();
        assert_eq!(config.admin.address(), None);
        assert_eq!(read_back(&config), config);
    }

    #[test]
    fn every_key_is_printed_with_its_meaning() {
        let text = print(&Config::default());
        let plain = text.replace("\n# ", " ");
        for key in KEYS {
            let name = key.name.rsplit('.').next().unwrap();
            assert!(text.contains(&format!("\n{name} = ")), "{name}");
            assert!(plain.contains(key.doc), "doc of {}", key.name);
        }
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
    }
}
