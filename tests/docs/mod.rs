//! Documents that say what is so: the commands in them are run, and what comes back is compared with what they show.
//!
//! - [`session`] finds the commands of a Markdown file, and the output that it shows for each.
//! - [`shown`] compares output with what is shown, where IDs, times and figures are others each time.
//! - [`hosts`] are the hosts on which the commands are typed: network namespaces, or containers.

pub mod hosts;
pub mod session;
pub mod shown;

use std::path::{Path, PathBuf};

/// The workspace, in which the documents are.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is inside the workspace")
}

/// All Markdown files of the workspace that are meant to be read, by path.
pub fn documents() -> Vec<PathBuf> {
    fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                collect(&path, found);
            } else if name.ends_with(".md") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    collect(workspace(), &mut found);
    found.sort();
    found
}
