//! Who may import whom, and what the pure core may not touch, read from the sources.
//!
//! Every path in every file counts: imports, types, calls, and what stands inside macros. Code under
//! `#[cfg(test)]` does not; it never runs in a relay.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// What a layer may name besides itself. A layer that is not listed here may name everything.
const MAY_IMPORT: [(&str, &[&str]); 7] = [
    ("wire", &[]),
    ("nostr", &[]),
    ("relay", &["wire", "nostr"]),
    ("store", &["nostr", "relay::ports"]),
    ("search", &["nostr", "relay::ports", "store"]),
    ("driver", &["wire", "nostr", "relay", "store"]),
    ("config", &["nostr", "relay"]),
];

const UNRESTRICTED: [&str; 4] = ["cli", "ops", "main", "lib"];

/// The layers without a clock, socket, thread, channel, file or randomness.
const PURE: [&str; 3] = ["wire", "nostr", "relay"];

/// As pure, in a layer that is not: a write transaction is a function of its input, so that whoever replays
/// the same batches has the same tables.
const PURE_FILES: [&str; 7] = [
    "store/apply.rs",
    "store/maintain.rs",
    "store/names.rs",
    "store/schema.rs",
    "store/transaction.rs",
    "store/transaction/archive.rs",
    "store/visible.rs",
];

/// What the pure layers may not name.
const IMPURE: [&str; 27] = [
    "std::net",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::sync::mpsc",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "std::sync::Condvar",
    "std::sync::Barrier",
    "std::fs",
    "std::env",
    "std::process",
    "std::os",
    "std::io::stdin",
    "std::io::stdout",
    "std::io::stderr",
    // Their default hasher is seeded at random.
    "std::collections::HashMap",
    "std::collections::HashSet",
    "std::hash::RandomState",
    "std::collections::hash_map::RandomState",
    "flume",
    "tokio",
    "tokio_uring",
    "glommio",
    "rand",
    "socket2",
    "rustix",
];

/// Files that may name one impure thing all the same, and why.
const IMPURE_ALL_THE_SAME: [(&str, &str); 1] = [
    // Only asks whether a key was there before; no order comes out of it.
    ("nostr/json.rs", "std::collections::HashSet"),
];

/// The files with `unsafe` code.
const MAY_BE_UNSAFE: [&str; 7] = [
    "cli/bus_error.rs",
    "driver/backend/tokio_uring.rs",
    "driver/backend/glommio.rs",
    "driver/backend/epoll.rs",
    "driver/memory.rs",
    "driver/sockopt.rs",
    "store/environment.rs",
];

#[test]
fn layers_import_only_what_they_may() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = sources(&root);
    assert!(files.len() > 30, "found {} files", files.len());
    let mut faults = Vec::new();
    for (path, text) in &files {
        faults.extend(faults_of(path, text));
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// Files below `src`, named from there, without those that belong to tests.
fn sources(root: &Path) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut of_tests = BTreeSet::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source");
                of_tests.extend(test_modules(&path, &text));
                files.push((path, text));
            }
        }
    }
    files.retain(|(path, _)| !of_tests.iter().any(|module| path.starts_with(module)));
    let name = |path: PathBuf| {
        let below = path.strip_prefix(root).expect("below the root");
        below.to_str().expect("UTF-8").to_owned()
    };
    files.sort();
    files.into_iter().map(|(path, text)| (name(path), text)).collect()
}

/// The files and folders of the modules that this file declares for tests only.
fn test_modules(path: &Path, text: &str) -> Vec<PathBuf> {
    let file = syn::parse_file(text).expect("Rust");
    let stem = path.file_stem().expect("a name");
    let folder = match stem.to_str() {
        Some("mod" | "lib" | "main") => path.parent().expect("a folder").to_path_buf(),
        _ => path.with_extension(""),
    };
    let modules = file.items.iter().filter_map(|item| match item {
        syn::Item::Mod(module) if module.content.is_none() && is_for_tests(&module.attrs) => {
            Some(module.ident.to_string())
        }
        _ => None,
    });
    modules.flat_map(|name| [folder.join(format!("{name}.rs")), folder.join(name)]).collect()
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.meta.require_list().is_ok_and(|list| list.tokens.to_string() == "test")
    })
}

/// What is wrong with one file.
fn faults_of(path: &str, text: &str) -> Vec<String> {
    let layer = path.split(['/', '.']).next().expect("a first part");
    let allowed = MAY_IMPORT.iter().find(|(name, _)| *name == layer).map(|(_, allowed)| *allowed);
    let mut faults = Vec::new();
    if allowed.is_none() && !UNRESTRICTED.contains(&layer) {
        faults.push(format!("{path}: a layer without rules: {layer}"));
    }
    let pure = PURE.contains(&layer) || PURE_FILES.contains(&path);
    let found = Found::read(path, text);
    for name in &found.paths {
        if let Some(own) = name.strip_prefix("crate::") {
            let within = |layer: &str| {
                own == layer || own.strip_prefix(layer).is_some_and(|rest| rest.starts_with("::"))
            };
            let fine = allowed.is_none_or(|list| list.iter().any(|name| within(name)));
            if !fine && !within(layer) {
                faults.push(format!("{path}: {layer} may not import {own}"));
            }
        } else if pure && let Some(impure) = impure(name) {
            let waived = IMPURE_ALL_THE_SAME.contains(&(path, impure));
            if !waived {
                faults.push(format!("{path} is pure and names {name}"));
            }
        }
    }
    for word in &found.words {
        if word == "unsafe" && !MAY_BE_UNSAFE.contains(&path) {
            faults.push(format!("{path}: unsafe outside the files named in this test"));
        } else if word != "unsafe" && pure {
            faults.push(format!("{path} is pure and says {word}"));
        }
    }
    faults
}

/// The forbidden thing that a path names, lies in, or opens the door to (`use std::time`).
fn impure(name: &str) -> Option<&'static str> {
    IMPURE.into_iter().find(|impure| {
        let lies_in = |inner: &str, outer: &str| {
            inner == outer || inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with("::"))
        };
        let door = name.strip_suffix("::*").unwrap_or(name);
        lies_in(name, impure) || (door != "std" || name == "std::*") && lies_in(impure, door)
    })
}

/// The paths and the telling words of one file.
#[derive(Debug, Default)]
struct Found {
    /// Module of the code being read, from the crate's root.
    module: Vec<String>,
    /// Absolute: `crate::…`, or another crate's.
    paths: BTreeSet<String>,
    words: BTreeSet<String>,
}

impl Found {
    fn read(path: &str, text: &str) -> Self {
        let file = syn::parse_file(text).expect("Rust");
        let mut module: Vec<_> =
            path.trim_end_matches(".rs").split('/').map(String::from).collect();
        if module.last().is_some_and(|last| matches!(last.as_str(), "mod" | "lib" | "main")) {
            module.pop();
        }
        let mut found = Self { module, ..Self::default() };
        found.visit_file(&file);
        found
    }

    /// Notes a path; relative ones are counted from this module.
    fn note(&mut self, segments: &[String]) {
        let mut absolute = match segments[0].as_str() {
            "crate" | "rheostr" => vec![],
            "self" | "super" => self.module.clone(),
            "Self" => return,
            _ => {
                self.paths.insert(segments.join("::"));
                return;
            }
        };
        for segment in segments {
            match segment.as_str() {
                "crate" | "rheostr" | "self" => {}
                "super" => drop(absolute.pop()),
                name => absolute.push(name.into()),
            }
        }
        if !absolute.is_empty() {
            self.paths.insert(format!("crate::{}", absolute.join("::")));
        }
    }

    fn note_use(&mut self, before: &mut Vec<String>, tree: &syn::UseTree) {
        match tree {
            syn::UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.note_use(before, &path.tree);
                before.pop();
            }
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.note_use(before, tree));
            }
            syn::UseTree::Name(syn::UseName { ident })
            | syn::UseTree::Rename(syn::UseRename { ident, .. }) => {
                self.note(&[&before[..], &[ident.to_string()]].concat());
            }
            syn::UseTree::Glob(_) => self.note(&[&before[..], &["*".into()]].concat()),
        }
    }

    /// Paths and words in the tokens of a macro, which has no syntax tree.
    fn note_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    let word = ident.to_string();
                    self.note_word(&word);
                    if colons != 2 && !path.is_empty() {
                        let path = std::mem::take(&mut path);
                        self.note(&path);
                    }
                    path.push(word);
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                other => {
                    if let TokenTree::Group(group) = other {
                        self.note_tokens(group.stream());
                    }
                    if !path.is_empty() {
                        let path = std::mem::take(&mut path);
                        self.note(&path);
                    }
                    colons = 0;
                }
            }
        }
        if !path.is_empty() {
            self.note(&path);
        }
    }

    fn note_word(&mut self, word: &str) {
        if matches!(word, "async" | "await" | "unsafe") {
            self.words.insert(word.into());
        }
    }
}

impl<'ast> Visit<'ast> for Found {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        use syn::Item;
        let attributes = match item {
            Item::Mod(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            Item::Struct(item) => &item.attrs,
            Item::Const(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_for_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        self.module.push(module.ident.to_string());
        visit::visit_item_mod(self, module);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.note_use(&mut Vec::new(), &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<_> =
            path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.note(&segments);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.note_tokens(item.tokens.clone());
        visit::visit_macro(self, item);
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        signature.asyncness.iter().for_each(|_| self.note_word("async"));
        signature.unsafety.iter().for_each(|_| self.note_word("unsafe"));
        visit::visit_signature(self, signature);
    }

    fn visit_expr(&mut self, expression: &'ast syn::Expr) {
        match expression {
            syn::Expr::Async(_) => self.note_word("async"),
            syn::Expr::Await(_) => self.note_word("await"),
            syn::Expr::Unsafe(_) => self.note_word("unsafe"),
            syn::Expr::Closure(closure) if closure.asyncness.is_some() => self.note_word("async"),
            _ => {}
        }
        visit::visit_expr(self, expression);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        item.unsafety.iter().for_each(|_| self.note_word("unsafe"));
        visit::visit_item_impl(self, item);
    }
}

/// Each planted fault is found, and nothing is said of what is allowed.
#[test]
fn planted_faults_are_found() {
    let faulty = [
        ("wire/frame.rs", "use crate::nostr::Event;"),
        ("wire/frame.rs", "use rheostr::nostr::Event;"),
        ("wire/mod.rs", "fn f() { crate::store::open() }"),
        ("wire/a/b.rs", "use super::super::super::relay::Limits;"),
        ("nostr/event.rs", "use super::super::wire;"),
        ("nostr/event.rs", "mod inner { use super::super::super::wire::batch; }"),
        ("nostr/event.rs", "fn f() -> crate::relay::Limits { todo!() }"),
        ("relay/shard.rs", "use crate::{nostr::Event, store::Writer};"),
        ("relay/shard.rs", "use crate::*;"),
        ("relay/shard.rs", "fn f() { assert!(crate::driver::now() > 0) }"),
        ("store/scan.rs", "use crate::relay::Limits;"),
        ("store/scan.rs", "use crate::relay::portside;"),
        ("store/scan.rs", "use crate::wire::frame;"),
        ("driver/bus.rs", "use crate::ops::metrics;"),
        ("config/load.rs", "use crate::driver::Backend;"),
        ("config.rs", "use crate::cli;"),
        ("cluster/mod.rs", "struct X;"),
        ("wire/x.rs", "use std::net::TcpStream;"),
        ("wire/x.rs", "use std::{fmt, net};"),
        ("nostr/x.rs", "fn f() { let _ = std::time::SystemTime::now(); }"),
        ("nostr/x.rs", "use std::time;"),
        ("nostr/x.rs", "use std::time::*;"),
        ("relay/x.rs", "use std::time::{Duration, Instant as Clock};"),
        ("relay/x.rs", "use std::sync::mpsc::channel;"),
        ("relay/x.rs", "use std::sync::*;"),
        ("relay/x.rs", "use std::collections::HashMap;"),
        ("relay/x.rs", "use std::hash::RandomState;"),
        ("relay/x.rs", "fn f(x: flume::Sender<u8>) {}"),
        ("relay/x.rs", "use tokio::time::sleep;"),
        ("relay/x.rs", "fn f() { println!(\"{}\", rand::random::<u8>()) }"),
        ("relay/x.rs", "fn f() { vec![std::env::var(\"X\")]; }"),
        ("relay/x.rs", "use std::fs::File;"),
        ("relay/x.rs", "async fn f() {}"),
        ("relay/x.rs", "fn f() { let _ = async { 1 }; }"),
        ("relay/x.rs", "impl X { async fn f() {} }"),
        ("relay/x.rs", "macro_rules! m { () => { x.await } }"),
        ("relay/x.rs", "fn f() { unsafe { g() } }"),
        ("cli/x.rs", "unsafe fn f() {}"),
        ("cli/x.rs", "unsafe impl Send for X {}"),
        ("cli/x.rs", "macro_rules! m { () => { unsafe { g() } } }"),
        ("nostr/json.rs", "use std::collections::HashMap;"),
        ("store/apply.rs", "fn f() -> u64 { std::time::SystemTime::now().elapsed() }"),
        ("store/maintain.rs", "use std::env;"),
        ("store/transaction.rs", "use rustix::time::clock_gettime;"),
        ("store/names.rs", "use crate::config::Config;"),
    ];
    for (path, text) in faulty {
        assert!(!faults_of(path, text).is_empty(), "{path}: {text}");
    }
    let fine = [
        ("wire/frame.rs", "use super::batch::Batch; use crate::wire::http; use std::io::Cursor;"),
        ("nostr/event.rs", "use bytes::Bytes; use super::tag; use std::sync::Arc;"),
        ("nostr/json.rs", "use std::collections::HashSet;"),
        ("relay/shard.rs", "use crate::{nostr::Event, wire::frame}; use std::time::Duration;"),
        ("relay/shard.rs", "#[cfg(test)] mod tests { use std::thread; use crate::store::Writer; }"),
        ("relay/mod.rs", "pub use shard::Shard; use std::collections::VecDeque;"),
        ("store/writer.rs", "use std::time::SystemTime;"),
        ("store/scan.rs", "use crate::relay::ports::Query; use crate::nostr; use std::fs;"),
        ("driver/bus.rs", "async fn f() { crate::store::open() } use std::time::Instant;"),
        ("driver/backend/epoll.rs", "fn f() { unsafe { g() } }"),
        ("cli/mod.rs", "use crate::driver; use crate::ops;"),
        ("main.rs", "fn main() { rheostr::cli::main() }"),
    ];
    for (path, text) in fine {
        assert_eq!(faults_of(path, text), [""; 0], "{path}: {text}");
    }
}

/// A module for tests is left out by its declaration, whatever its name.
#[test]
fn files_of_tests_are_left_out() {
    let text = "#[cfg(test)] mod tests; mod other; #[cfg(test)] mod model { use x::y; }";
    let folder = Path::new("src/store");
    let expected = [folder.join("tests.rs"), folder.join("tests")];
    assert_eq!(test_modules(&folder.join("mod.rs"), text), expected);
    assert_eq!(test_modules(Path::new("src/store.rs"), text), expected);
}
