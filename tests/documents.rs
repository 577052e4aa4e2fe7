//! Holds the documents against the code, so that they cannot drift apart: the kernel document, the
//! README, the page on speed. The names in other documents are in `documents/architecture.rs`; line
//! lengths and links are in `documents/layout.rs`.

#[path = "documents/architecture.rs"]
mod architecture;
#[path = "documents/layout.rs"]
mod layout;

use proactor::{Capability, REQUIREMENTS, Tier};
use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    let path = root().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files below a folder with this extension ("": none), as paths from the root, in order. Build
/// outputs and hidden files are left out.
fn every_file(folder: &str, extension: &str) -> Vec<String> {
    let (mut files, mut folders) = (Vec::new(), vec![root().join(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy();
            let is_built = path.is_dir() && path.join("CACHEDIR.TAG").exists();
            if is_built || name.starts_with('.') || name == "target" {
                continue;
            }
            let inside = path.strip_prefix(root()).expect("below the root");
            match path.is_dir() {
                true => folders.push(path),
                false if path.extension().unwrap_or_default() == extension => {
                    files.push(inside.to_string_lossy().into_owned());
                }
                false => {}
            }
        }
    }
    files.sort_unstable();
    files
}

/// The rows of a table whose header starts so, as lists of cells.
fn table(text: &str, header: &str) -> Vec<Vec<String>> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with(header));
    assert!(
        lines.next().is_some() && lines.next().is_some_and(|line| line.starts_with("|---")),
        "no table {header:?}"
    );
    let cells =
        |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    lines.take_while(|line| line.starts_with('|')).map(cells).collect()
}

#[test]
fn the_table_of_capabilities_is_the_code_s_own() {
    let rows = table(&read("KERNEL_REQUIREMENTS.md"), "| capability | mainline |");
    let expected: Vec<Vec<String>> = REQUIREMENTS
        .iter()
        .map(|r| vec![format!("`{}`", r.name), r.kernel.into(), r.lost.into()])
        .collect();
    assert_eq!(rows, expected);
}

/// 6.1 -> [6, 1].
fn version(text: &str) -> Vec<u32> {
    text.split('.')
        .map(|part| part.parse().unwrap_or_else(|_| panic!("{text:?} is no version")))
        .collect()
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

#[test]
fn the_table_of_tiers_is_the_code_s_own() {
    let rows = table(&read("KERNEL_REQUIREMENTS.md"), "| tier | mainline |");
    assert_eq!(rows.len(), Tier::ALL.len() + 1, "the tiers, and epoll");
    for (tier, row) in Tier::ALL.into_iter().zip(&rows) {
        assert_eq!(
            (row[0].as_str(), row[1].as_str()),
            (format!("`{tier}`").as_str(), tier.kernel())
        );
        let mut needs: Vec<&str> =
            tier.needs().iter().map(|capability| capability.name()).collect();
        let mut shown = quoted(&row[2]);
        shown.sort_unstable();
        needs.sort_unstable();
        assert_eq!(shown, needs, "what tier {tier} needs");
        let floor = tier.needs().iter().map(|capability| version(capability.kernel())).max();
        assert!(
            floor.is_none_or(|floor| floor == version(tier.kernel())),
            "the floor of {tier} is that of its needs"
        );
    }
}

/// All sources of the library, to look a name up in.
fn sources() -> String {
    every_file("src", "rs").iter().map(|file| read(file)).collect()
}

/// Words of the kernel that look like names of ours.
const KERNEL_WORDS: &[&str] = &[
    "io_uring_disabled",
    "io_uring_group",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
];

#[test]
fn the_kernel_document_names_nothing_that_the_code_does_not_have() {
    let (text, sources) = (read("KERNEL_REQUIREMENTS.md"), sources());
    let mut checked = 0;
    let prose: Vec<&str> = text.split("```").step_by(2).collect();
    for quote in prose.iter().flat_map(|part| quoted(part)) {
        let name = quote.split(['(', '=', ',', ' ']).next().unwrap_or_default();
        let is_name = name.contains('_')
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        let method = ["Config::", "Engine::", "Event::", "ListenOptions::"]
            .iter()
            .find_map(|of| name.strip_prefix(of));
        let known = if let Some(method) = method {
            ["(", ":", ",", " {"].iter().any(|end| sources.contains(&format!(" {method}{end}")))
        } else if name.starts_with("PROACTOR_") {
            sources.contains(name) || read("tests/README.md").contains(name)
        } else if is_name {
            Capability::from_name(name).is_some()
                || KERNEL_WORDS.contains(&name)
                || environments().contains(&name.to_owned())
        } else {
            continue;
        };
        assert!(known, "KERNEL_REQUIREMENTS.md names `{quote}`, which the code does not have");
        checked += 1;
    }
    assert!(checked > 40, "only {checked} names found");
}

#[test]
fn the_kernel_document_gives_each_capability_the_floor_of_the_code() {
    // Wherever a version follows a capability in running text: `name`, 5.10 or `name` (5.10).
    let text = read("KERNEL_REQUIREMENTS.md");
    let mut checked = 0;
    for requirement in REQUIREMENTS {
        for rest in text.split(&format!("`{}`", requirement.name)).skip(1) {
            let rest = rest.trim_start_matches([',', ' ', '(', '|']);
            let number: String =
                rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
            if number.contains('.') && number.starts_with(['5', '6', '7']) {
                assert_eq!(
                    version(number.trim_end_matches('.')),
                    version(requirement.kernel),
                    "{}",
                    requirement.name
                );
                checked += 1;
            }
        }
    }
    assert!(checked >= REQUIREMENTS.len(), "the table at least");
}

/// The names of the environments that the suite has.
fn environments() -> Vec<String> {
    let source = read("tests/conformance/environments.rs");
    let list =
        source[source.find("const ENVIRONMENTS").expect("the list")..].split("name: \"").skip(1);
    list.filter_map(|rest| rest.split_once('"'))
        .map(|(name, _)| name.to_owned())
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn the_tables_of_kernels_are_whole_and_without_failures() {
    let text = read("KERNEL_REQUIREMENTS.md");
    let ran =
        text.lines().find(|line| line.starts_with("By `tests/kernels/run` on 20")).expect("a date");
    assert_eq!(
        ran.split(' ').nth(3).map(|date| date.trim_end_matches(':').len()),
        Some(10),
        "{ran}"
    );
    let kernels = table(&text, "| kernel | chosen by default |");
    for floor in ["5.10.", "6.1.", "6.12.", "7."] {
        assert!(kernels.iter().any(|row| row[0].starts_with(floor)), "no kernel {floor}");
    }
    for row in &kernels {
        let tier = row[1]
            .trim_matches('`')
            .strip_prefix("uring/")
            .and_then(Tier::from_name)
            .expect("a tier");
        assert!(
            tier == Tier::Deferred || version(row[0][..4].trim_end_matches('.')) < version("6.1"),
            "{row:?}"
        );
        assert!(row[2..].iter().all(|counts| counts.contains(" 0 failed")), "{row:?}");
    }
    let rows = table(&text, "| environment | stands on |");
    let shown: Vec<String> = rows.iter().map(|row| row[0].trim_matches('`').to_owned()).collect();
    assert_eq!(shown, environments());
    assert!(rows.iter().all(|row| row[3].contains(" 0 failed")));
}

/// Without indentation, empty lines left out.
fn flat(text: &str) -> String {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| line.to_owned() + "\n")
        .collect()
}

#[test]
fn the_code_of_the_readme_is_that_of_an_example() {
    let (readme, example) = (read("README.md"), flat(&read("examples/ping.rs")));
    let blocks: Vec<&str> = readme.split("```rust\n").skip(1).collect();
    assert!(!blocks.is_empty(), "README.md shows code");
    for block in blocks {
        let code = flat(block.split("```").next().expect("closed"));
        assert!(
            code.lines().count() >= 10 && example.contains(&code),
            "README.md shows code that is not in examples/ping.rs:\n{code}"
        );
    }
}

#[test]
fn the_readme_names_every_example_and_the_test_command() {
    let readme = read("README.md");
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if let Some(name) = name.strip_suffix(".rs") {
            assert!(readme.contains(&format!("`{name}`")), "{name} is missing");
        }
    }
    assert!(
        readme.contains("cargo run --release --example quickstart")
            && readme.contains("\ncargo test\n")
    );
}

/// What the page on speed tells a reader to run must be there, and what it quotes must be measured.
#[test]
fn the_page_on_speed_names_what_can_be_run() {
    let (page, table) = (read("docs/how-it-got-fast.md"), read("docs/techniques.md"));
    let mut checked = 0;
    for variant in page.split("techniques --with ").skip(1) {
        let variant = match variant.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next().expect("closed"),
            None => variant.split(['`', ' ', '\n']).next().expect("a word"),
        };
        assert!(table.contains(variant), "docs/techniques.md has no variant {variant:?}");
        checked += 1;
    }
    assert!(checked >= 8, "{checked} variants");
    let benchmarks = read("docs/benchmarks.md");
    for chart in ["servers", "clients", "latency"] {
        let path = format!("charts/{chart}.svg");
        let svg = read(&format!("docs/{path}"));
        assert!(benchmarks.contains(&path) && svg.contains("<svg"), "{path}");
    }
    for peer in ["mio", "tokio", "tokio-uring", "monoio", "compio", "glommio", "a10", "ringline"] {
        assert!(benchmarks.contains(&format!("| {peer} |")), "{peer} is not in docs/benchmarks.md");
    }
}

/// The planted bugs: name and text of each file. `tests/mutants/run --help` has the format.
fn mutants() -> Vec<(String, String)> {
    let named = |path: String| {
        let name = path.trim_start_matches("tests/mutants/").trim_end_matches(".mutant");
        (name.to_owned(), read(&path))
    };
    every_file("tests/mutants", "mutant").into_iter().map(named).collect()
}

/// One side of a hunk without white space: its context, and its lines that begin with `sign`.
fn side(hunk: &str, sign: char) -> String {
    let lines = hunk.lines().filter_map(|line| line.strip_prefix([' ', sign]));
    lines.flat_map(str::split_whitespace).collect()
}

#[test]
fn each_planted_bug_applies_to_the_sources() {
    for (name, text) in mutants() {
        let hunks: Vec<&str> = text.split("\n@@ ").skip(1).collect();
        assert!(!hunks.is_empty(), "{name}.mutant has no hunk");
        for hunk in hunks {
            let (file, hunk) = hunk.split_once('\n').expect("a file, and lines");
            let source: String = read(file).split_whitespace().collect();
            let (find, put) = (side(hunk, '-'), side(hunk, '+'));
            assert!(!find.is_empty() && find != put, "{name}.mutant changes nothing in {file}");
            assert_eq!(source.matches(&find).count(), 1, "{name}.mutant, in {file}: {hunk}");
        }
    }
}

#[test]
fn the_table_of_planted_bugs_is_that_of_the_files() {
    let bugs = mutants().into_iter().map(|(name, text)| {
        let finder = text.lines().find_map(|line| line.strip_prefix("finder: "));
        let bug = text.lines().next().expect("what the bug is").trim_end_matches('.').to_owned();
        (name, bug, finder.unwrap_or("seeds").to_owned())
    });
    let bugs: Vec<_> = bugs.collect();
    let shown = table(&read("docs/fuzzing.md"), "| planted |").into_iter().map(|row| {
        let finder = if row[2].starts_with("seed ") { "seeds" } else { row[2].trim_matches('`') };
        (row[0].trim_matches('`').to_owned(), row[1].clone(), finder.to_owned())
    });
    let mut shown: Vec<_> = shown.collect();
    shown.sort_unstable();
    assert!(bugs.len() >= 20, "only {}", bugs.len());
    assert_eq!(bugs, shown);
}
