//! Pages whose claims stand in tables, beside the tests that hold them: those tests must exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The folder of the workspace.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// All Rust files in a folder and the folders below it.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = paths.partition(|path| path.is_dir());
    let files = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    files.chain(folders.iter().flat_map(|folder| sources(folder))).collect()
}

/// The tests in the files of `folder`, by the names that `cargo test` knows them by.
fn tests_in(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for path in sources(folder) {
        let module = path.strip_prefix(folder).unwrap().with_extension("");
        let mut module: Vec<_> = module.iter().map(|part| part.to_str().unwrap()).collect();
        module.pop_if(|last| *last == "mod");
        let text = std::fs::read_to_string(&path).unwrap();
        let mut inner = None;
        let mut is_test = false;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(" {")) {
                inner = Some(name);
            }
            is_test |= line.trim() == "#[test]";
            if let Some(function) = line.trim().strip_prefix("fn ").filter(|_| std::mem::take(&mut is_test)) {
                let inner = inner.filter(|_| line.starts_with(' '));
                let name = function.split('(').next();
                found.insert(module.iter().copied().chain(inner).chain(name).collect::<Vec<_>>().join("::"));
            }
        }
    }
    found
}

/// The rows of the tables whose last column is the test: claim, and the tests in that cell.
fn claims(page: &str) -> Vec<(&str, Vec<&str>)> {
    let mut is_table_of_claims = false;
    let rows = page.lines().filter(|line| {
        let is_head = line.ends_with("| Test |");
        is_table_of_claims = line.starts_with('|') && (is_table_of_claims || is_head);
        is_table_of_claims && !is_head && line.starts_with("| ")
    });
    rows.map(|row| {
        let (claim, tests) = row.trim_matches(['|', ' ']).rsplit_once(" | ").unwrap();
        (claim, tests.split('`').skip(1).step_by(2).collect())
    })
    .collect()
}

#[test]
fn every_claim_of_a_page_names_tests_that_exist() {
    let folders =
        ["src", "tests/it", "attn/src", "attn/tests/it"].map(|folder| tests_in(&Path::new(ROOT).join(folder)));
    assert!(folders.iter().all(|tests| tests.len() > 10), "{folders:?}");
    let tests: BTreeSet<String> = folders.into_iter().flatten().collect();
    let mut missing = vec![];
    for (name, min) in
        [("determinism", 25), ("folders", 7), ("mechanism", 9), ("layer", 6), ("adding", 15), ("pt/mecanismo", 9)]
    {
        let page = std::fs::read_to_string(Path::new(ROOT).join(format!("docs/{name}.md"))).unwrap();
        let claims = claims(&page);
        assert!(claims.len() >= min, "{name}: {} claims", claims.len());
        for (claim, named) in claims {
            assert!(!named.is_empty(), "no test holds {claim:?}");
            missing.extend(named.into_iter().filter(|test| !tests.contains(*test)).map(String::from));
        }
    }
    assert!(missing.is_empty(), "tests that are named and do not exist: {missing:#?}");
}
