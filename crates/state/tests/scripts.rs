//! Golden scripts: `tests/scripts/*.txt` say what is done and what comes of it.
//!
//! A script is read by people: sentences (`#`), commands, and under each command its output, every line of which begins
//! with `=>`. With `UPDATE_SCRIPTS=1` the outputs are written anew, to be read before they are accepted. The commands
//! are described in `tests/scripts/README.md`.

mod script;

use std::fs;
use std::path::Path;

/// Runs one script and gives it back with the outputs it really had.
fn replayed(text: &str) -> String {
    let mut world = script::World::new();
    let mut out = String::new();
    for line in text.lines().filter(|line| !line.starts_with("=>")) {
        out.push_str(line);
        out.push('\n');
        if !line.trim().is_empty() && !line.starts_with('#') {
            for answer in world.run(line) {
                out.push_str(&format!("=> {answer}\n"));
            }
        }
    }
    out
}

#[test]
fn every_script_has_the_outputs_it_says() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut paths: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    assert!(!paths.is_empty());
    let mut wrong = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let replayed = replayed(&text);
        if std::env::var_os("UPDATE_SCRIPTS").is_some() {
            fs::write(&path, replayed).unwrap();
        } else if replayed != text {
            let lines = text.lines().zip(replayed.lines()).enumerate();
            let first = lines.into_iter().find(|(_, (said, was))| said != was);
            wrong.push(format!("{}: first difference (line, said, was): {first:?}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
