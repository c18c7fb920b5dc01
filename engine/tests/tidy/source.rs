//! The project's files, and as much of Rust as tells code from comments and literals, and finds the imports.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// One file, as a rule sees it.
#[derive(Debug)]
pub(crate) struct Source {
    /// From the root of the project, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
    /// The text with comments and literals blanked; the lines are the same.
    pub(crate) code: String,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let code = if path.ends_with(".rs") { blank_comments_and_literals(text) } else { text.to_owned() };
        Self { path: path.to_owned(), text: text.to_owned(), code }
    }

    /// The path within the engine's sources.
    pub(crate) fn in_engine(&self) -> Option<&str> {
        self.path.strip_prefix("engine/src/")
    }

    /// The layer the file belongs to; `lib.rs` belongs to none.
    pub(crate) fn layer(&self) -> Option<&str> {
        let path = self.in_engine()?;
        Some(path.split_once('/').map_or_else(|| path.trim_end_matches(".rs"), |(layer, _)| layer))
            .filter(|layer| *layer != "lib")
    }

    /// How many modules deep the file is: 0 for `lib.rs`.
    fn depth(&self) -> usize {
        let module = self.path.trim_end_matches(".rs").trim_end_matches("/mod");
        module.split('/').skip(2).filter(|name| *name != "lib").count()
    }

    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.split('/').any(|part| part == "tests")
    }

    /// The code without its tests, which come last.
    pub(crate) fn code_before_tests(&self) -> &str {
        let end = self.code.match_indices("#[cfg(test)]").map(|(at, _)| at).find(|at| {
            self.code[*at..].lines().nth(1).is_some_and(|line| line.trim_start().starts_with("mod "))
        });
        if self.is_test() { "" } else { &self.code[..end.unwrap_or(self.code.len())] }
    }
}

/// The first names of all paths from the root of the crate, with their places: `crate::x`, each of
/// `crate::{x, y::z}`, and `super::` as often as it takes to get there.
pub(crate) fn root_paths(source: &Source) -> Vec<(usize, String)> {
    let code = source.code_before_tests();
    let climb = "super::".repeat(source.depth());
    let mut names = Vec::new();
    for prefix in ["crate::", climb.as_str()].into_iter().filter(|prefix| !prefix.is_empty()) {
        for (at, _) in code.match_indices(prefix) {
            let is_whole = !code[..at].ends_with(|last: char| is_word(last) || last == ':');
            let rest = &code[at + prefix.len()..];
            match rest.strip_prefix('{') {
                _ if !is_whole => {}
                Some(group) => names.extend(first_names(group).into_iter().map(|name| (at, name))),
                None => names.extend(words(rest).next().map(|(_, word)| (at, word.to_owned()))),
            }
        }
    }
    names
}

/// The first name of every path in a group of imports, up to its closing brace.
fn first_names(group: &str) -> Vec<String> {
    let mut depth = 0;
    let mut item = String::new();
    let mut items = Vec::new();
    for character in group.chars() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => items.push(std::mem::take(&mut item)),
            _ => {}
        }
        item.push(character);
    }
    items.push(item);
    items.iter().filter_map(|item| words(item).next().map(|(_, word)| word.to_owned())).collect()
}

pub(crate) fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

pub(crate) fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let offset = |word: &str| word.as_ptr() as usize - text.as_ptr() as usize;
    text.split(|character| !is_word(character))
        .filter(|word| !word.is_empty())
        .map(move |word| (offset(word), word))
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the engine lies in the project").to_owned()
}

pub(crate) fn files_below(folder: &Path) -> Vec<String> {
    const GENERATED: &[&str] = &[".git", "artifacts", "corpus", "node_modules", "raw", "seeds", "target"];
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder of the project") {
        let entry = entry.expect("an entry of a folder");
        let name = entry.file_name().to_string_lossy().into_owned();
        if GENERATED.contains(&name.as_str()) {
            continue;
        }
        if entry.file_type().expect("the type of a file").is_dir() {
            files.extend(files_below(&entry.path()).into_iter().map(|below| format!("{name}/{below}")));
        } else {
            files.push(name);
        }
    }
    files.sort();
    files
}

/// Every byte of a comment or a literal becomes a space, so that places stay what they are.
fn blank_comments_and_literals(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    let mut last = ' ';
    while let Some(first) = rest.chars().next() {
        let blank = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment_bytes(rest),
            '"' => string_bytes(rest),
            'r' if !is_word(last) || last == 'b' => raw_string_bytes(rest),
            '\'' => char_bytes(rest),
            _ => 0,
        };
        let taken = if blank > 0 { blank } else { first.len_utf8() };
        for character in rest[..taken].chars() {
            match character {
                '\n' => code.push('\n'),
                _ if blank > 0 => code.extend(std::iter::repeat_n(' ', character.len_utf8())),
                _ => code.push(character),
            }
        }
        last = first;
        rest = &rest[taken..];
    }
    code
}

/// Block comments nest.
fn block_comment_bytes(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while let Some(next) = text[at..].chars().next() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += next.len_utf8();
        }
    }
    text.len()
}

fn string_bytes(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// 0 where there is only a name that begins with r, or a raw name.
fn raw_string_bytes(text: &str) -> usize {
    let hashes = text[1..].bytes().take_while(|byte| *byte == b'#').count();
    if !text[1 + hashes..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let content = 2 + hashes;
    text[content..].find(&end).map_or(text.len(), |at| content + at + end.len())
}

/// 0 where there is a lifetime.
fn char_bytes(text: &str) -> usize {
    let mut characters = text.char_indices().skip(1);
    match characters.next() {
        Some((_, '\\')) => characters.skip(1).find(|(_, next)| *next == '\'').map_or(0, |(at, _)| at + 1),
        Some(_) => characters.next().filter(|(_, next)| *next == '\'').map_or(0, |(at, _)| at + 1),
        None => 0,
    }
}

#[test]
fn code_is_told_from_comments_and_literals() {
    let cases = [
        ("a // b\nc", "a     \nc"),
        ("a /* b /* c */ d */ e", "a                   e"),
        ("a /*/ b */ c", "a          c"),
        ("f(\"a\\\"b\", 'c', '\\'', '\\u{1F}')", "f(      ,    ,     ,         )"),
        ("r#\"a \"b\"# c r\"\\\" r#fn br\"d\"", "          c      r#fn b    "),
        ("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}"),
        ("\"ß\nß\" ß", "   \n    ß"),
    ];
    for (text, code) in cases {
        assert_eq!(blank_comments_and_literals(text), code, "{text}");
    }
}
