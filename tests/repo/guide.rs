//! The documentation: its tables are those of the code, and its links work where it is read.

use std::fs;
use std::path::{Path, PathBuf};

use tower_upstream::BadGatewayCause;
use tower_upstream::cause::Replay;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap()
}

/// The cells of each row whose first cell is code.
fn rows(page: &str) -> Vec<Vec<String>> {
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect()).collect()
}

/// The row of each cause, in the order of the code.
fn rows_of_causes(page: &str) -> Vec<(BadGatewayCause, Vec<String>)> {
    let rows = rows(page).into_iter();
    let named = |name: &str| BadGatewayCause::ALL.iter().find(|cause| cause.as_str() == name);
    rows.filter_map(|row| Some((*named(&row[0])?, row))).collect()
}

#[test]
fn the_table_of_causes_is_that_of_the_code() {
    let page = read("src/guide/causes.md");
    let rows = rows_of_causes(&page);
    assert!(rows.iter().map(|row| row.0).eq(BadGatewayCause::ALL.iter().copied()));
    for (cause, row) in rows {
        assert_eq!(row[1], cause.proxy_status_error().unwrap_or_default(), "{cause}");
        assert_eq!(row[2], cause.status().as_str(), "{cause}");
        let sent_again = match cause.replay() {
            Replay::NotSent => "any method",
            Replay::IdempotentOnly => "idempotent",
            _ => "never",
        };
        assert_eq!(row[3], sent_again, "{cause}");
        assert_eq!((row[4].as_str(), row[5].as_str()), (cause.summary(), cause.next_step()), "{cause}");
    }
}

/// Pages that rustdoc, GitHub and crates.io show.
fn pages() -> Vec<PathBuf> {
    let guide = fs::read_dir(root().join("src/guide")).unwrap().map(|entry| entry.unwrap().path());
    let mut pages: Vec<_> = guide.filter(|path| path.extension().is_some_and(|end| end == "md")).collect();
    pages.push(root().join("README.md"));
    pages
}

/// The targets of a page's links, outside of code.
fn links(text: &str) -> Vec<String> {
    let prose: String = text.split("```").step_by(2).collect();
    let inline = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let references = prose.lines().filter(|line| line.starts_with('['));
    let references = references.filter_map(|line| line.split_once("]: ")).map(|(_, target)| target);
    inline.chain(references).map(str::to_owned).collect()
}

#[test]
fn links_of_readme_and_guide_are_absolute_or_stay_on_the_page() {
    for page in pages() {
        for link in links(&fs::read_to_string(&page).unwrap()) {
            assert!(link.starts_with("https://") || link.starts_with('#'), "{}: {link}", page.display());
        }
    }
}

#[test]
fn links_of_other_documents_lead_to_files() {
    for document in ["CONTRIBUTING.md", "docs/ARCHITECTURE.md"] {
        let path = root().join(document);
        for link in links(&read(document)) {
            let file = link.split('#').next().unwrap();
            let exists = path.parent().unwrap().join(file).exists();
            assert!(link.starts_with("https://") || exists, "{document}: {link}");
        }
    }
}
