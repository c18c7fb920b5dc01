//! Reads the sources and fails where they break a rule of the project that no compiler checks.
//!
//! A rule is a function from one file to its violations. Every rule first has to find a planted violation and
//! to let a planted good line pass, then it reads the files.

#[path = "tidy/source.rs"]
mod source;

use std::{fmt::Write as _, fs};

use source::{Source, files_below, root, root_paths, words};

/// From top to bottom. An import goes down; those in one row do not know each other.
const LAYERS: &[&[&str]] = &[
    &["edge"],
    &["engine"],
    &["runtime"],
    &["shard"],
    &["connection"],
    &["protocol"],
    &["mesh", "os"],
    &["buffer", "simd"],
];

/// Fed with bytes and the time, so that a whole engine runs in a test from a seed.
const SANS_IO: &[&str] = &["protocol", "connection", "shard"];

/// Clocks, sockets, descriptors and runtimes: what a sans-IO layer never names.
const IO_NAMES: &[&str] = &[
    "BorrowedFd",
    "Instant",
    "OwnedFd",
    "RawFd",
    "SystemTime",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "UnixDatagram",
    "UnixListener",
    "UnixStream",
    "io_uring",
    "libc",
    "monoio",
    "rustix",
    "socket2",
    "tokio",
];

/// Modules of std that do I/O, block or read the environment.
const IO_MODULES: &[&str] = &["env", "fs", "process", "thread"];

/// Of the engine, and the one program that submits to a ring of its own.
const UNSAFE_ROOMS: &[&str] = &["mesh/spsc", "os/", "simd/", "bench/src/bin/floor.rs"];
/// Where the files of one machine are.
const HOMES: &[&str] = &["home", "root", "Users", "work"];
const LINES_MAX: usize = 500;
const COLUMNS_MAX: usize = 110;

#[test]
fn imports_go_down_the_layers() {
    let rule = import_against_the_layers;
    finds(rule, "engine/src/protocol/frame.rs", "use crate::shard::Shard;");
    finds(
        rule,
        "engine/src/protocol/frame.rs",
        "use crate::{\n    simd,\n    connection::{Endpoint, Phase},\n};",
    );
    finds(rule, "engine/src/shard/wheel.rs", "fn f() { crate::runtime::wake() }");
    finds(rule, "engine/src/shard/wheel.rs", "use super::super::engine::Engine;");
    finds(rule, "engine/src/os/mod.rs", "use super::mesh::Doorbell;");
    finds(rule, "engine/src/os/socket.rs", "use crate::Connection;");
    finds(rule, "engine/src/edge/metrics.rs", "use crate::runtime::Worker;");
    passes(
        rule,
        "engine/src/shard/mod.rs",
        "use crate::{buffer::Lease, connection::Endpoint};\nuse self::id::Id;",
    );
    passes(rule, "engine/src/shard/process.rs", "use super::connection::Lent; // crate::engine");
    passes(
        rule,
        "engine/src/protocol/frame.rs",
        "#[cfg(test)]\nmod tests {\n    use crate::shard::Shard;\n}",
    );
    passes(rule, "engine/src/edge/metrics.rs", "use crate::{EngineHandle, protocol::HttpResponse};");
    holds(rule, rust_files);
}

#[test]
fn unsafe_stays_in_its_rooms() {
    let rule = unsafe_outside_its_rooms;
    finds(rule, "engine/src/shard/mod.rs", "#![forbid(unsafe_code)]\nfn f() { unsafe { g() } }");
    finds(rule, "engine/src/mesh/end.rs", "unsafe impl Send for End {}");
    finds(rule, "examples/src/bin/echo.rs", "unsafe extern \"C\" {}");
    passes(rule, "engine/src/mesh/spsc.rs", "unsafe impl Send for End {}");
    passes(rule, "engine/src/engine/mod.rs", "//! No unsafe.\nconst WORD: &str = \"unsafe\";");
    // The layers without unsafe code say so to the compiler.
    finds(rule, "engine/src/protocol/mod.rs", "mod frame;");
    passes(rule, "engine/src/protocol/mod.rs", "#![forbid(unsafe_code)]\nmod frame;");
    holds(rule, rust_files);
}

#[test]
fn sans_io_layers_know_no_clock_socket_or_runtime() {
    let rule = io_in_a_sans_io_layer;
    finds(rule, "engine/src/shard/wheel.rs", "let now = std::time::Instant::now();");
    finds(rule, "engine/src/connection/mod.rs", "use std::{net::{SocketAddr, TcpStream}};");
    finds(rule, "engine/src/protocol/frame.rs", "use monoio::buf::IoBuf;");
    finds(rule, "engine/src/protocol/frame.rs", "use std::{fs::File, io};");
    finds(rule, "engine/src/shard/mod.rs", "use crate::os::Clock;");
    finds(rule, "engine/src/shard/mod.rs", "use crate::{\n    buffer::Lease,\n    os::Clock,\n};");
    finds(rule, "engine/src/shard/mod.rs", "std::thread::sleep(pause);");
    passes(rule, "engine/src/shard/mod.rs", "use std::{net::{IpAddr, SocketAddr}, time::Duration};");
    passes(rule, "engine/src/shard/mod.rs", "/// Like std::time::Instant.\nstruct Timestamp(u64);");
    passes(rule, "engine/src/runtime/mod.rs", "use monoio::net::TcpStream;");
    holds(rule, rust_files);
}

#[test]
fn files_are_short() {
    let rule = file_too_long;
    let long = "const A: u8 = 0;\n".repeat(LINES_MAX);
    let with_tests = format!("{long}#[cfg(test)]\nmod tests {{\n{long}}}\n");
    finds(rule, "engine/src/shard/mod.rs", &format!("{long}\n"));
    passes(rule, "engine/src/shard/mod.rs", &with_tests);
    passes(rule, "engine/src/shard/tests.rs", &with_tests.repeat(2));
    holds(rule, rust_files);
}

#[test]
fn lines_are_narrow() {
    let rule = line_too_wide;
    finds(rule, "engine/src/lib.rs", &format!("// {}", "x".repeat(COLUMNS_MAX)));
    passes(rule, "engine/src/lib.rs", &"ß".repeat(COLUMNS_MAX));
    holds(rule, rust_files);
}

#[test]
fn nothing_is_left_unfinished() {
    let rule = unfinished;
    finds(rule, "engine/src/lib.rs", "fn f() { todo!() }");
    finds(rule, "engine/src/lib.rs", "fn f() { unimplemented!(\"later\") }");
    finds(rule, "engine/src/lib.rs", "let x = dbg!(1);");
    finds(rule, "engine/src/lib.rs", "// FIXME: later");
    finds(rule, "scripts/test.sh", "# XXX");
    passes(rule, "engine/src/lib.rs", "// It is to do: todos, XXXX.\nfn prefixme() {}");
    holds(rule, program_files);
}

#[test]
fn names_say_what_a_thing_is() {
    let rule = vague_name;
    finds(rule, "engine/src/utils.rs", "");
    finds(rule, "engine/src/shard/timer_helper.rs", "");
    finds(rule, "engine/src/shard/mod.rs", "pub struct ConnectionManager;");
    finds(rule, "engine/src/shard/mod.rs", "fn send_helper() {}");
    finds(rule, "engine/src/shard/mod.rs", "mod utils;");
    passes(rule, "engine/src/shard/mod.rs", "use futures_util::StreamExt;\nfn utilization() {}");
    holds(rule, program_files);
}

#[test]
fn files_open_with_their_purpose() {
    let rule = no_purpose;
    finds(rule, "engine/src/lib.rs", "use std::fmt;\n//! Late.");
    finds(rule, "engine/src/lib.rs", "//!\n");
    passes(rule, "engine/src/lib.rs", "//! A server.\nuse std::fmt;");
    holds(rule, rust_files);
}

#[test]
fn no_test_is_ignored() {
    let rule = ignored_test;
    finds(rule, "engine/tests/echo.rs", "#[test]\n#[ignore]\nfn f() {}");
    finds(rule, "engine/tests/echo.rs", "#[ignore = \"slow\"]\nfn f() {}");
    passes(rule, "engine/tests/echo.rs", "// #[ignore]\nfn ignored() {}");
    holds(rule, rust_files);
}

#[test]
fn no_path_of_one_machine() {
    let rule = machine_path;
    for home in HOMES {
        finds(rule, "README.md", &format!("see /{home}/someone/notes"));
        passes(rule, "README.md", &format!("see engine/{home}/notes and /{home}s/"));
    }
    holds(rule, |file| !file.ends_with(".lock"));
}

/// What is wrong, and the byte at which it stands.
type Violations = Vec<(usize, String)>;
type Rule = fn(&Source) -> Violations;

fn import_against_the_layers(source: &Source) -> Violations {
    let Some(layer) = source.layer() else { return Vec::new() };
    let row = |name: &str| LAYERS.iter().position(|row| row.contains(&name));
    let Some(own_row) = row(layer) else {
        return vec![(0, format!("`{layer}` is not in the table of layers"))];
    };
    let mut violations = Vec::new();
    for (at, name) in root_paths(source) {
        let is_public_item = name.starts_with(|first: char| first.is_ascii_uppercase());
        let wrong = match row(&name) {
            _ if name == layer => false,
            // The edge knows what every user of the crate knows.
            _ if layer == "edge" => !is_public_item && !public_modules().contains(&name),
            Some(other_row) => other_row <= own_row,
            None => is_public_item,
        };
        if wrong {
            violations.push((at, format!("`{layer}` imports `{name}`")));
        }
    }
    violations
}

fn unsafe_outside_its_rooms(source: &Source) -> Violations {
    let path = source.in_engine().unwrap_or(&source.path);
    if UNSAFE_ROOMS.iter().any(|room| path.starts_with(room)) {
        return Vec::new();
    }
    let mut violations: Violations = words(&source.code)
        .filter(|(_, word)| *word == "unsafe")
        .map(|(at, _)| (at, "`unsafe` outside its rooms".to_owned()))
        .collect();
    let forbids = source.code.contains("#![forbid(unsafe_code)]");
    if SANS_IO.iter().any(|layer| path == format!("{layer}/mod.rs")) && !forbids {
        violations.push((0, "a sans-IO layer forbids unsafe code".to_owned()));
    }
    violations
}

fn io_in_a_sans_io_layer(source: &Source) -> Violations {
    if !source.layer().is_some_and(|layer| SANS_IO.contains(&layer)) {
        return Vec::new();
    }
    let code = &source.code;
    let names = words(code).filter(|(at, word)| {
        let is_path = code[at + word.len()..].starts_with("::");
        IO_NAMES.contains(word) || (is_path && IO_MODULES.contains(word))
    });
    let os = root_paths(source).into_iter().filter(|(_, name)| name == "os");
    names
        .map(|(at, word)| (at, word.to_owned()))
        .chain(os)
        .map(|(at, name)| (at, format!("`{name}` in a sans-IO layer")))
        .collect()
}

fn file_too_long(source: &Source) -> Violations {
    let lines = source.code_before_tests().lines().count();
    let long = lines > LINES_MAX;
    long.then(|| (0, format!("{lines} lines without the tests, at most {LINES_MAX}"))).into_iter().collect()
}

fn line_too_wide(source: &Source) -> Violations {
    let mut at = 0;
    let mut violations = Vec::new();
    for line in source.text.split_inclusive('\n') {
        let columns = line.trim_end().chars().count();
        if columns > COLUMNS_MAX {
            violations.push((at, format!("{columns} columns, at most {COLUMNS_MAX}")));
        }
        at += line.len();
    }
    violations
}

fn unfinished(source: &Source) -> Violations {
    let is_macro = |at: usize, word: &str| source.code[at + word.len()..].starts_with('!');
    let macros = words(&source.code)
        .filter(|(at, word)| ["dbg", "todo", "unimplemented"].contains(word) && is_macro(*at, word));
    let notes = words(&source.text).filter(|(_, word)| ["FIXME", "TODO", "XXX"].contains(word));
    macros.chain(notes).map(|(at, word)| (at, format!("`{word}`"))).collect()
}

fn vague_name(source: &Source) -> Violations {
    const VAGUE: &[&str] =
        &["util", "utils", "utility", "utilities", "helper", "helpers", "manager", "managers"];
    const DEFINING: &[&str] =
        &["class", "const", "def", "enum", "fn", "function", "mod", "static", "struct", "trait", "type"];
    let is_vague = |name: &str| parts_of_name(name).iter().any(|part| VAGUE.contains(&part.as_str()));
    let path = source.path.split(['/', '.']).filter(|part| is_vague(part)).map(|part| (0, part));
    let defined = words(&source.code).zip(words(&source.code).skip(1));
    let names = defined.filter(|((_, word), _)| DEFINING.contains(word)).map(|(_, name)| name);
    path.chain(names.filter(|(_, name)| is_vague(name)))
        .map(|(at, name)| (at, format!("`{name}` does not say what it is")))
        .collect()
}

fn no_purpose(source: &Source) -> Violations {
    let purpose = source.text.lines().next().and_then(|line| line.strip_prefix("//!"));
    let none = purpose.is_none_or(|purpose| purpose.trim().is_empty());
    none.then(|| (0, "the file does not open with `//!` and its purpose".to_owned())).into_iter().collect()
}

fn ignored_test(source: &Source) -> Violations {
    source.code.match_indices("#[ignore").map(|(at, _)| (at, "an ignored test".to_owned())).collect()
}

fn machine_path(source: &Source) -> Violations {
    let mut violations = Vec::new();
    for home in HOMES {
        let home = format!("/{home}/");
        for (at, _) in source.text.match_indices(&home) {
            // `/` after a word is a path within the project, or of a URL.
            let within =
                source.text[..at].ends_with(|last: char| last.is_alphanumeric() || ".-_}*".contains(last));
            if !within {
                violations.push((at, format!("a path that begins with {home}")));
            }
        }
    }
    violations
}

/// The modules that `lib.rs` shows to users.
fn public_modules() -> Vec<String> {
    let text = fs::read_to_string(root().join("engine/src/lib.rs")).expect("the engine's sources");
    let lines: Vec<_> = text.lines().collect();
    let shown = lines.windows(2).filter(|pair| pair[0] != "#[doc(hidden)]").map(|pair| pair[1]);
    shown.filter_map(|line| Some(line.strip_prefix("pub mod ")?.trim_end_matches(';').to_owned())).collect()
}

/// `send_helper` and `SendHelper` are both `send` and `helper`.
fn parts_of_name(name: &str) -> Vec<String> {
    let mut spaced = String::new();
    for character in name.chars() {
        if character.is_uppercase() {
            spaced.push('_');
        }
        spaced.extend(character.to_lowercase());
    }
    spaced.split(['_', '-']).map(str::to_owned).collect()
}

fn finds(rule: Rule, path: &str, text: &str) {
    assert!(!rule(&Source::new(path, text)).is_empty(), "not found in {path}:\n{text}");
}

fn passes(rule: Rule, path: &str, text: &str) {
    let found = rule(&Source::new(path, text));
    assert!(found.is_empty(), "found in {path}: {found:?}\n{text}");
}

/// Fails with every violation in the files whose path `is_meant`.
fn holds(rule: Rule, is_meant: fn(&str) -> bool) {
    let mut report = String::new();
    let mut files = 0;
    for path in files_below(&root()) {
        // This file is full of planted violations.
        if !is_meant(&path) || path == "engine/tests/tidy.rs" {
            continue;
        }
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        files += 1;
        let source = Source::new(&path, &text);
        for (at, violation) in rule(&source) {
            let line = 1 + text[..at].matches('\n').count();
            writeln!(report, "{path}:{line}: {violation}").expect("a string takes everything");
        }
    }
    assert!(files > 10, "only {files} files were read");
    assert!(report.is_empty(), "\n{report}");
}

fn rust_files(path: &str) -> bool {
    path.ends_with(".rs")
}

fn program_files(path: &str) -> bool {
    [".rs", ".sh", ".py", ".js", ".html"].iter().any(|extension| path.ends_with(extension))
}
