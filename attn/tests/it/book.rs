//! The book in `docs/` and the pages beside it: every link leads somewhere, no chapter is forgotten, all Rust is compiled,
//! and the command understands every line that is shown.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

use crate::support::Space;

/// The folder of the workspace.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The pages beside the book, from the folder of the workspace.
const OTHERS: [&str; 5] = ["README.md", "README.pt.md", "CHANGELOG.md", "data/README.md", "benches/README.md"];

/// What a page consists of, as far as it matters here.
#[derive(Default)]
struct Page {
    links: Vec<String>,
    /// The anchors of its headings, as GitHub and mdBook make them.
    anchors: Vec<String>,
    /// The languages of its code blocks; an indented block has none.
    languages: Vec<String>,
    /// The lines of its blocks for a shell.
    commands: Vec<String>,
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn parse(text: &str) -> Page {
    let (mut page, mut heading, mut is_shell) = (Page::default(), None::<String>, false);
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => page.links.push(dest_url.into()),
            Event::Start(Tag::CodeBlock(kind)) => {
                let language = if let CodeBlockKind::Fenced(language) = kind { language.into() } else { String::new() };
                is_shell = language == "sh";
                page.languages.push(language);
            }
            Event::End(TagEnd::CodeBlock) => is_shell = false,
            Event::Text(text) if is_shell => page.commands.extend(text.lines().map(String::from)),
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => page.anchors.extend(heading.take().map(|heading| anchor(&heading))),
            Event::Text(text) | Event::Code(text) => heading.iter_mut().for_each(|heading| heading.push_str(&text)),
            _ => {}
        }
    }
    page
}

/// Letters, digits, `-` and `_`, with hyphens for spaces.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).flat_map(char::to_lowercase).collect()
}

/// The Markdown files of the book, from the folder of the workspace.
fn book() -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![PathBuf::from("docs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(Path::new(ROOT).join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            match Path::new(ROOT).join(&path).is_dir() {
                true => folders.push(path),
                false => assert!(found.insert(path)),
            }
        }
    }
    found.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    found
}

/// A path without `.` and `..`, or nothing if it leads out of the workspace.
fn resolved(path: &Path) -> Option<PathBuf> {
    let mut resolved = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => resolved.pop().then_some(())?,
            Component::CurDir => {}
            part => resolved.push(part),
        }
    }
    Some(resolved)
}

/// What is wrong with a link of a page.
fn fault(from: &Path, link: &str) -> Option<&'static str> {
    if link.starts_with("https://") || link.starts_with("http://") {
        return None;
    }
    let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = match path {
        "" => Some(from.to_path_buf()),
        path => resolved(&from.parent().unwrap().join(path)),
    };
    let Some(target) = target.filter(|target| Path::new(ROOT).join(target).exists()) else {
        return Some("leads to nothing");
    };
    let is_chapter = from.starts_with("docs");
    if is_chapter && !target.starts_with("docs") {
        return Some("leads out of the book, which has nothing but its chapters");
    }
    let has_anchor = || parse(&read(&target)).anchors.iter().any(|heading| heading == anchor);
    (!anchor.is_empty() && !has_anchor()).then_some("names no heading")
}

#[test]
fn every_link_leads_somewhere() {
    let (mut count, mut faults) = (0, vec![]);
    for path in OTHERS.into_iter().map(PathBuf::from).chain(book()) {
        let page = parse(&read(&path));
        count += page.links.len();
        let found = page.links.iter().filter_map(|link| Some((link, fault(&path, link)?)));
        faults.extend(found.map(|(link, what)| format!("{}: {link} {what}", path.display())));
        let distinct: BTreeSet<_> = page.anchors.iter().collect();
        // A second heading of one name has another anchor on GitHub than in the book.
        if path.starts_with("docs") && distinct.len() != page.anchors.len() {
            faults.push(format!("{}: two headings of one name", path.display()));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
    assert!(count > 60, "{count} links");
}

#[test]
fn every_chapter_is_in_the_summary() {
    let mut chapters = book();
    let summary = Path::new("docs/SUMMARY.md");
    assert!(chapters.remove(summary));
    let listed = parse(&read(summary)).links.into_iter().map(|link| Path::new("docs").join(link)).collect();
    assert_eq!(chapters, listed);
}

/// Blocks that rustdoc takes for Rust are those marked so and those without a language.
#[test]
fn every_block_of_rust_is_a_doc_test() {
    let sources = ["src/lib.rs", "src/nn/mapping.rs"].map(|path| read(Path::new(path)));
    let mut tested = 0;
    for path in [PathBuf::from("README.md"), PathBuf::from("README.pt.md")].into_iter().chain(book()) {
        let languages = parse(&read(&path)).languages;
        for language in &languages {
            let known = ["rust", "sh", "text", "toml", "json", "python"];
            assert!(known.contains(&language.as_str()), "{}: a block of {language:?}", path.display());
        }
        let included = format!("../{}\"", path.display());
        let is_included = sources.iter().any(|source| source.contains(&included));
        let has_rust = languages.iter().any(|language| language == "rust");
        assert!(is_included || !has_rust, "{}: its Rust is not compiled", path.display());
        tested += usize::from(is_included);
    }
    assert!(tested >= 5, "{tested} pages");
}

/// The words of a line up to a comment, a pipe or a redirection.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (vec![], String::new(), None);
    for c in line.chars() {
        match (c, quote) {
            (c, Some(end)) if c == end => quote = None,
            (c, Some(_)) => word.push(c),
            ('"' | '\'', None) => quote = Some(c),
            ('#' | '|' | '>', None) if word.is_empty() => break,
            (c, None) if c.is_whitespace() => words.extend((!word.is_empty()).then(|| std::mem::take(&mut word))),
            (c, None) => word.push(c),
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    words
}

/// With one option too many, a command that understands the rest names that option, and does nothing.
#[test]
fn the_command_understands_every_line_that_is_shown() {
    let (space, mut count) = (Space::new(), 0);
    for path in [PathBuf::from("README.md"), PathBuf::from("README.pt.md")].into_iter().chain(book()) {
        for line in parse(&read(&path)).commands {
            let Some((_, line)) =
                line.split_once("attn ").filter(|(before, _)| before.is_empty() || before.ends_with("| "))
            else {
                continue;
            };
            let output = space.command("").args(words(line)).arg("--one-too-many").output().unwrap();
            let message = String::from_utf8(output.stderr).unwrap();
            let is_understood = message.contains("unexpected argument '--one-too-many'");
            assert!(is_understood, "{}: attn {line}: {message}", path.display());
            count += 1;
        }
    }
    assert!(count > 40, "{count} commands");
}
