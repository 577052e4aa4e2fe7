//! Holds the documents against the code, so that they cannot drift apart.

use proactor::{Capability, REQUIREMENTS, Tier};

fn read(name: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rows of a table whose header starts so, as lists of cells.
fn table(text: &str, header: &str) -> Vec<Vec<String>> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with(header));
    assert!(lines.next().is_some() && lines.next().is_some_and(|line| line.starts_with("|---")), "no table {header:?}");
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    lines.take_while(|line| line.starts_with('|')).map(cells).collect()
}

#[test]
fn the_table_of_capabilities_is_the_code_s_own() {
    let rows = table(&read("KERNEL_REQUIREMENTS.md"), "| capability | mainline |");
    let expected: Vec<Vec<String>> =
        REQUIREMENTS.iter().map(|r| vec![format!("`{}`", r.name), r.kernel.into(), r.lost.into()]).collect();
    assert_eq!(rows, expected);
}

#[test]
fn the_table_of_tiers_names_every_tier_and_only_known_capabilities() {
    let rows = table(&read("KERNEL_REQUIREMENTS.md"), "| tier | mainline |");
    for tier in Tier::ALL {
        assert!(rows.iter().any(|row| row[0] == format!("`{tier}`")), "{tier} is missing");
    }
    for row in &rows {
        // What a tier needs: capabilities by name, none of them newer than the tier.
        for name in row[2].split('`').skip(1).step_by(2) {
            let capability = Capability::from_name(name).unwrap_or_else(|| panic!("{name} is no capability"));
            let version =
                |text: &str| -> Vec<u32> { text.split('.').map(|part| part.parse().expect("a number")).collect() };
            assert!(
                version(capability.kernel()) <= version(&row[1]),
                "{} needs {name} of {}",
                row[0],
                capability.kernel()
            );
        }
    }
}

#[test]
fn the_example_of_the_readme_is_one_that_compiles() {
    let example = read("examples/ping.rs");
    let body = &example[example.find("use proactor").expect("imports")..];
    assert!(read("README.md").contains(body), "README.md does not show examples/ping.rs as it is");
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
    assert!(readme.contains("cargo run --release --example quickstart") && readme.contains("\ncargo test\n"));
}

#[test]
fn the_table_of_planted_bugs_is_the_code_s_own() {
    let source = read("src/mutant.rs");
    let list = &source[source.find("mutants! {").expect("the list")..];
    let mut names: Vec<&str> = list.lines().filter_map(|line| line.strip_suffix("\";")?.split('"').nth(1)).collect();
    let rows = table(&read("docs/fuzzing.md"), "| planted |");
    let mut shown: Vec<String> = rows.iter().map(|row| row[0].trim_matches('`').to_owned()).collect();
    names.sort_unstable();
    shown.sort_unstable();
    assert!(names.len() >= 10 && names == shown, "{names:?}, documented {shown:?}");
}
