//! `docs/architecture.md` says what is: its memory map is what `exitvisor layout` prints, its list
//! of files is that of the tree, each with the sentence that opens it.
// Helpers stop a test as its own assertions do.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use exitvisor::{layout, report};

/// The crates whose files are listed, and the mark of each one's table.
const CRATES: &[(&str, &str)] = &[
    ("hypervisor", "hypervisor/src"),
    ("abi", "hypervisor/abi/src"),
    ("firmware", "firmware/src"),
    ("guest-kernel", "guest-kernel/src"),
    ("exitlog", "guest-kernel/linux/exitlog/src"),
    ("xtask", "xtask/src"),
];

#[test]
fn the_document_says_what_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = root.join("docs/architecture.md");
    let written = fs::read_to_string(&path).unwrap();
    let mut fresh = written.clone();
    // 5 GiB: enough for every range to be there.
    let map = report::layout::text(&layout::ranges(5 << 30));
    fresh = replace(&fresh, "layout", &format!("```text\n{map}```\n"));
    for (mark, folder) in CRATES {
        fresh = replace(&fresh, mark, &files(&root.join(folder)));
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, fresh).unwrap();
    } else {
        assert!(
            fresh == written,
            "docs/architecture.md is out of date; regenerate its tables with\n\
             UPDATE_DOCS=1 cargo test -p exitvisor --test architecture"
        );
    }
}

/// The text with what is between a table's marks replaced.
fn replace(text: &str, name: &str, table: &str) -> String {
    let begin = format!("<!-- table {name} -->\n");
    let end = "<!-- end -->";
    let (before, rest) = text.split_once(&begin).expect("the document has the mark");
    let (_, after) = rest.split_once(end).expect("the mark has an end");
    format!("{before}{begin}\n{table}\n{end}{after}")
}

/// A table of the Rust files below a folder, those of a folder after those beside it.
fn files(folder: &Path) -> String {
    let mut files = Vec::new();
    collect(folder, &mut files);
    let depth = |file: &PathBuf| file.components().count();
    files.sort_by_key(|file| (file.parent().map(Path::to_owned), depth(file), file.clone()));
    let mut table = String::from("| file | what lives there |\n|---|---|\n");
    for file in files {
        let name = file.strip_prefix(folder).unwrap().display();
        let sentence = opening(&fs::read_to_string(&file).unwrap());
        assert!(
            !sentence.is_empty(),
            "{name} is not opened by a `//!` sentence"
        );
        table.push_str(&format!("| `{name}` | {sentence} |\n"));
    }
    table
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

/// The first sentence of a file's `//!` comment, its links as plain code.
fn opening(source: &str) -> String {
    let paragraph: Vec<&str> = source
        .lines()
        .skip_while(|line| !line.starts_with("//!"))
        .map_while(|line| line.strip_prefix("//!"))
        .map(str::trim)
        .take_while(|line| !line.is_empty())
        .collect();
    let paragraph = paragraph.join(" ");
    let sentence = match paragraph.split_once(". ") {
        Some((first, _)) => first,
        None => paragraph.trim_end_matches(['.', ':']),
    };
    let sentence = sentence.replace("[`", "`").replace("`]", "`");
    sentence.replace('|', "\\|")
}
