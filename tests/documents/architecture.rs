//! Holds what ARCHITECTURE.md, CONTRIBUTING.md and SECURITY.md name against the sources: files,
//! functions, types; and the imports of the library against its layers.

use crate::{every_file, quoted, read, root};

/// A document whose names are checked, and how many files, functions and types it names at least.
const DOCUMENTS: &[(&str, [usize; 3])] = &[
    ("ARCHITECTURE.md", [30, 30, 10]),
    ("CONTRIBUTING.md", [15, 0, 8]),
    ("SECURITY.md", [8, 12, 20]),
];

/// Finds a path of a document: from the root, below `src/`, or below `src/backend/`. A name without
/// a folder is any file of that name. `*` stands for each backend.
fn file(path: &str) -> Option<String> {
    if !path.contains('/') {
        let named = |file: &String| file.rsplit('/').next() == Some(path);
        return every_file("src", "rs").into_iter().chain(every_file("tests", "rs")).find(named);
    }
    let exists = |place: &str| {
        let names = if place.contains('*') { &["uring", "epoll", "sim"][..] } else { &[""] };
        names.iter().all(|name| root().join(place.replace('*', name)).exists())
    };
    let places = ["", "src/", "src/backend/"].map(|place| format!("{place}{path}"));
    places.into_iter().find(|place| exists(place)).map(|place| place.replace('*', "uring"))
}

/// The text of a file, or of all Rust files in a folder.
fn text_of(path: &str) -> String {
    match root().join(path).is_dir() {
        true => every_file(path, "rs")
            .iter()
            .filter(|file| !file.starts_with("tests/documents"))
            .map(|file| read(file))
            .collect(),
        false => read(path),
    }
}

fn has_function(text: &str, name: &str) -> bool {
    text.contains(&format!("fn {name}(")) || text.contains(&format!("fn {name}<"))
}

/// A path, and not a command or a place for a name (`NAME`).
fn is_path(word: &str) -> bool {
    let is_name = !word.contains([' ', '(']) && !word.contains("NAME");
    is_name && (word.ends_with(".rs") || word.starts_with("src/") || word.starts_with("tests/"))
}

/// The parts of a line that may be names: code spans; in a picture, words.
fn names(line: &str, in_picture: bool) -> Vec<&str> {
    let separators = [' ', ',', ';', ':', '|'];
    match in_picture {
        true => line.split(separators).collect(),
        false => quoted(line),
    }
}

/// What is wrong with the names in a text, and how many files, functions and types were checked.
///
/// - A path exists.
/// - A function, written `name()`, is in the file that the line names before it, if it names one;
///   otherwise in some file.
/// - Each part of `Type::part` or `Type` is a word of the sources.
fn check(text: &str) -> (Vec<String>, [usize; 3]) {
    let sources = text_of("src") + &text_of("tests");
    let word = |name: &str| {
        let borders = |c: char| !c.is_alphanumeric() && c != '_';
        sources.split(borders).any(|word| word == name)
    };
    let (mut wrong, mut counts, mut in_picture) = (Vec::new(), [0; 3], false);
    for line in text.lines() {
        if line.starts_with("```") {
            in_picture = !in_picture && line == "```text";
            continue;
        }
        // A picture has two columns, each with a file and its functions.
        let mut owner: Option<String> = None;
        for name in names(line, in_picture) {
            let problem = if is_path(name) {
                counts[0] += 1;
                owner = file(name);
                owner.is_none().then(|| format!("no file {name}"))
            } else if let Some(function) = name.strip_suffix("()") {
                counts[1] += 1;
                let function = function.rsplit("::").next().unwrap_or(function);
                let found = match &owner {
                    Some(owner) => has_function(&text_of(owner), function),
                    None => has_function(&sources, function),
                };
                (!found)
                    .then(|| format!("no function {name} in {}", owner.as_deref().unwrap_or("src")))
            } else if name.starts_with(|c: char| c.is_ascii_uppercase()) && !name.contains(' ') {
                let name = name.split('(').next().unwrap_or_default();
                let of_type = name.chars().any(|c| c.is_ascii_lowercase());
                counts[2] += usize::from(of_type);
                let unknown = name.split("::").find(|part| of_type && !word(part));
                unknown.map(|part| format!("no {part} (of {name})"))
            } else {
                None
            };
            wrong.extend(problem);
        }
    }
    (wrong, counts)
}

#[test]
fn what_the_documents_name_is_in_the_sources() {
    for (document, least) in DOCUMENTS {
        let (wrong, counts) = check(&read(document));
        assert!(wrong.is_empty(), "{document}: {wrong:#?}");
        let enough = counts.iter().zip(least).all(|(count, least)| count >= least);
        assert!(enough, "{document}: only {counts:?} names were found, of {least:?} at least");
    }
}

#[test]
fn a_name_that_is_not_there_is_found() {
    for (line, problem) in [
        ("`src/engine/gone.rs` has it", "no file src/engine/gone.rs"),
        ("see `src/engine/send.rs` `translate()`", "no function translate() in src/engine/send.rs"),
        ("`no_such_function()` does it", "no function no_such_function() in src"),
        ("`Config::no_such_limit`", "no no_such_limit (of Config::no_such_limit)"),
        ("```text\nengine/send.rs   gone()\n```", "no function gone() in src/engine/send.rs"),
    ] {
        assert_eq!(check(line).0, [problem], "{line}");
    }
    let right = "`src/engine/send.rs` `continue_send()`, `Engine::send`, `Event::Closed(reason)`";
    assert_eq!(check(right), (Vec::new(), [1, 1, 2]));
}

#[test]
fn the_modules_that_may_use_unsafe_are_those_of_the_document() {
    let document = read("ARCHITECTURE.md");
    let section = document.split("## Imports and `unsafe`").nth(1).expect("the section");
    let mut named: Vec<String> = quoted(section)
        .into_iter()
        .skip_while(|name| *name != "unsafe_code")
        .filter(|name| is_path(name))
        .map(|name| match name.ends_with('/') {
            true => format!("{name}mod.rs"),
            false => name.to_owned(),
        })
        .collect();
    let allowed = "allow(unsafe_code)";
    let mut found: Vec<String> = every_file("src", "rs")
        .into_iter()
        .filter(|file| file != "src/lib.rs" && read(file).contains(&format!("#![{allowed}]")))
        .collect();
    for rest in read("src/lib.rs").split(&format!("#[{allowed}]\n")).skip(1) {
        let module = rest.lines().next().and_then(|line| line.split(' ').next_back());
        let module = module.expect("a module").trim_end_matches(';');
        found.push(format!("src/{module}.rs"));
    }
    named.sort_unstable();
    found.sort_unstable();
    assert_eq!(named, found);
}

/// The layer of a module of the library, from the top: the simulator, the engine, the backends, and
/// the modules that all of them use.
fn layer(module: &str) -> usize {
    ["sim", "engine", "backend"].iter().position(|name| *name == module).unwrap_or(3)
}

/// What a file imports from a layer above its own. The re-exports of the root are above all but the
/// simulator: they hide the module.
fn imports_above(file: &str, text: &str) -> Vec<String> {
    let own = file.trim_start_matches("src/").trim_end_matches(".rs");
    let own = layer(own.split('/').next().unwrap_or(own));
    let borders = |c: char| !c.is_alphanumeric() && c != '_';
    let imported = text.split("crate::").skip(1).filter_map(|rest| rest.split(borders).next());
    let is_export = |name: &str| name.starts_with(char::is_uppercase);
    let above = imported.filter(|name| layer(name) < own || own > 0 && is_export(name));
    above.map(|module| format!("{file} imports {module}")).collect()
}

#[test]
fn imports_go_down_only() {
    let product = |file: &String| !file.contains("/tests") && file != "src/lib.rs";
    let code = |file: &String| {
        let text = read(file);
        let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        lines.collect::<Vec<_>>().join("\n")
    };
    let files: Vec<String> = every_file("src", "rs").into_iter().filter(product).collect();
    assert!(files.len() > 80, "{} files", files.len());
    let wrong: Vec<String> =
        files.iter().flat_map(|file| imports_above(file, &code(file))).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(imports_above("src/table.rs", "use crate::engine::Core;").len(), 1);
    assert_eq!(imports_above("src/backend/epoll/mod.rs", "use crate::engine;").len(), 1);
    assert_eq!(imports_above("src/backend/epoll/mod.rs", "use crate::Engine;").len(), 1);
    assert!(imports_above("src/engine/mod.rs", "use crate::backend::Backend;").is_empty());
}
