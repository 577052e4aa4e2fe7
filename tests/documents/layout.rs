//! Lines of at most 100 columns, and links that lead somewhere.
//!
//! # What may be longer than 100 columns
//!
//! In Markdown:
//! - a row of a table;
//! - a line that cannot be broken: one word (a link, a path), behind the mark of a list or not;
//! - a line of a `text` block: what a program printed;
//! - a line of any block in a file that a command wrote (see [`GENERATED`]).
//!
//! In Rust a row of a table in a comment, and a comment of one word.

use crate::{every_file, read, root};
use std::path::Path;

const COLUMNS: usize = 100;

/// Documents that commands write.
const GENERATED: &[&str] = &["docs/benchmarks.md", "docs/techniques.md"];

fn is_one_word(text: &str) -> bool {
    let text = text.trim_start().trim_start_matches(['-', '*']).trim();
    !text.contains(' ')
}

fn is_row(text: &str) -> bool {
    text.trim_start().starts_with('|')
}

/// The overlong lines of a Markdown file, by number.
fn overlong_markdown(text: &str, generated: bool) -> Vec<usize> {
    let (mut wrong, mut block) = (Vec::new(), None::<String>);
    for (index, line) in text.lines().enumerate() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            block = if block.is_none() { Some(language.to_owned()) } else { None };
            continue;
        }
        let allowed = match block.as_deref() {
            Some(language) => generated || language == "text",
            None => is_row(line) || is_one_word(line),
        };
        if line.chars().count() > COLUMNS && !allowed {
            wrong.push(index + 1);
        }
    }
    wrong
}

/// The overlong lines of a Rust file, by number.
fn overlong_rust(text: &str) -> Vec<usize> {
    let allowed = |line: &str| {
        line.trim_start().strip_prefix("//").is_some_and(|comment| {
            let comment = comment.trim_start_matches(['/', '!']);
            is_row(comment) || is_one_word(comment)
        })
    };
    let lines = text.lines().enumerate();
    lines
        .filter(|(_, line)| line.chars().count() > COLUMNS && !allowed(line))
        .map(|(index, _)| index + 1)
        .collect()
}

#[test]
fn lines_end_at_column_100() {
    let mut wrong = Vec::new();
    let (documents, sources) = (every_file("", "md"), every_file("", "rs"));
    assert!(documents.len() >= 10 && sources.len() >= 100, "the walk finds the files");
    for file in documents {
        let lines = overlong_markdown(&read(&file), GENERATED.contains(&file.as_str()));
        wrong.extend(lines.iter().map(|line| format!("{file}:{line}")));
    }
    for file in sources {
        wrong.extend(overlong_rust(&read(&file)).iter().map(|line| format!("{file}:{line}")));
    }
    for file in scripts() {
        let text = read(&file);
        let overlong = (1..).zip(text.lines()).filter(|(_, line)| line.chars().count() > COLUMNS);
        wrong.extend(overlong.map(|(number, _)| format!("{file}:{number}")));
    }
    assert!(wrong.is_empty(), "longer than {COLUMNS} columns: {wrong:#?}");
}

/// The scripts: files without an extension in these folders.
fn scripts() -> Vec<String> {
    let folders = [".ci", "tests/kernels", "tests/mutants"];
    let found: Vec<String> = folders.iter().flat_map(|folder| every_file(folder, "")).collect();
    assert!(found.len() >= 18, "{found:?}");
    found
}

#[test]
fn overlong_lines_are_found() {
    let (words, word) = ("word ".repeat(25), "w".repeat(120));
    for (text, generated, wrong) in [
        (format!("short\n{words}"), false, vec![2]),
        (format!("short\n{words}"), true, vec![2]),
        (format!("| {words} |"), false, vec![]),
        (format!("- {word}"), false, vec![]),
        (format!("```sh\n{words}\n```\n{words}"), false, vec![2, 4]),
        (format!("```sh\n{words}\n```\n{words}"), true, vec![4]),
        (format!("```text\n{words}\n```"), false, vec![]),
    ] {
        assert_eq!(overlong_markdown(&text, generated), wrong, "{text}");
    }
    for (text, wrong) in [
        (format!("    // {words}"), vec![1]),
        (format!("    //! | {words} |"), vec![]),
        (format!("    let a = {words};"), vec![1]),
        (format!("    let a = \"{words}\";"), vec![1]),
    ] {
        assert_eq!(overlong_rust(&text), wrong, "{text}");
    }
}

/// The targets of the links and images of a document, outside of code.
fn links(text: &str) -> Vec<String> {
    let prose: String = text.split("```").step_by(2).collect();
    let prose: String = prose.split('`').step_by(2).collect::<Vec<_>>().join("code");
    let targets = prose.split("](").skip(1);
    targets.filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.to_owned()).collect()
}

/// The name of a heading in links, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let name = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = name.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Why a link of a document leads nowhere, if it does.
fn broken(document: &str, target: &str) -> Option<String> {
    if target.starts_with("https://") {
        return None;
    }
    let (path, heading) = target.split_once('#').unwrap_or((target, ""));
    let folder = Path::new(document).parent().expect("a file is in a folder");
    let file = if path.is_empty() { document.into() } else { folder.join(path) };
    if !root().join(&file).exists() {
        return Some(format!("{document} links to {target}, which does not exist"));
    }
    let text = if heading.is_empty() { String::new() } else { read(&file.to_string_lossy()) };
    let known =
        text.lines().filter(|line| line.starts_with('#')).any(|line| anchor(line) == heading);
    (!heading.is_empty() && !known)
        .then(|| format!("{document} links to {target}: no such heading"))
}

#[test]
fn links_lead_somewhere() {
    let mut count = 0;
    for document in every_file("", "md") {
        let targets = links(&read(&document));
        count += targets.len();
        let wrong: Vec<String> =
            targets.iter().filter_map(|link| broken(&document, link)).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
    assert!(count > 30, "only {count} links were found");
    assert!(broken("docs/README.md", "../README.md").is_none());
    assert!(broken("docs/README.md", "README.md#no-such-heading").is_some());
    assert!(broken("README.md", "docs/gone.md").is_some());
}

/// Documents that commands write say by which, and so do the charts.
#[test]
fn generated_files_name_their_command() {
    let command = "cargo run --release --manifest-path benches/compare/Cargo.toml";
    for file in GENERATED {
        let text = read(file);
        let head: Vec<&str> = text.lines().take(5).collect();
        assert!(head.join(" ").contains(&format!("Written by `{command}")), "{file}");
    }
    for chart in every_file("docs/charts", "svg") {
        let written = format!("<desc>Written by {command}</desc>");
        assert!(read(&chart).lines().nth(1) == Some(written.as_str()), "{chart}");
    }
}
