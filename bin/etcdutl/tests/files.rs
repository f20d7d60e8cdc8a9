//! `etcdutl` on the data directories that three etcds left behind: what it says, what it makes, and what it refuses.

use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Exit code, stdout, and stderr without log lines.
fn run(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_etcdutl")).args(arguments).output().expect("etcdutl starts");
    let stderr = String::from_utf8(output.stderr).expect("stderr is UTF-8");
    let is_log = |line: &&str| line.starts_with("{\"level\":");
    let stderr = stderr.lines().filter(|line| !is_log(line)).map(|line| format!("{line}\n")).collect();
    (output.status.code().expect("it exits"), String::from_utf8(output.stdout).expect("stdout is UTF-8"), stderr)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

/// The data directory that an etcd left behind when it was killed, unpacked into `dir`.
fn recorded(version: &str, dir: &Path) -> PathBuf {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/wal/tests/data");
    let packed = std::fs::File::open(data.join(format!("datadir-{version}.tar.gz"))).expect("it is recorded");
    let unpacked = dir.join(version);
    tar::Archive::new(flate2::read::GzDecoder::new(packed)).unpack(&unpacked).expect("it unpacks");
    unpacked
}

/// Its bbolt file as `snapshot save` would have written it: with a sum at its end.
fn snapshot(version: &str, dir: &Path) -> Vec<u8> {
    let db = std::fs::read(recorded(version, dir).join("member/snap/db")).expect("it has a bbolt file");
    let sum = Sha256::digest(&db);
    [&db[..], &sum].concat()
}

/// The numbers are what the three said of themselves (`state`'s tests replay the same logs).
#[test]
fn hashes_are_those_of_the_etcd_that_wrote_the_file() {
    let dir = tempfile::tempdir().expect("a directory");
    for (version, line) in
        [("3.4.23", "2875972514, 172, 70\n"), ("3.5.1", "1934096889, 167, 70\n"), ("3.7.1", "2875972514, 172, 70\n")]
    {
        let data = recorded(version, dir.path());
        let db = data.join("member/snap/db");
        for path in [&db, &data] {
            assert_eq!(run(&["hashkv", text(path)]), (0, line.into(), String::new()), "{version}");
        }
        let (code, at_100, _) = run(&["hashkv", text(&db), "--rev", "100", "-w", "json"]);
        assert!(code == 0 && at_100.contains("\"hashRevision\":100,\"compactRevision\":70"), "{at_100}");
        for (revision, error) in [("69", "has been compacted"), ("1000", "is a future revision")] {
            let error = format!("Error: mvcc: required revision {error}\n");
            assert_eq!(run(&["hashkv", text(&db), "--rev", revision]), (1, String::new(), error), "{version}");
        }
    }
}

#[test]
fn a_restored_file_has_the_same_history_and_other_members() {
    let dir = tempfile::tempdir().expect("a directory");
    for version in ["3.4.23", "3.5.1", "3.7.1"] {
        let file = dir.path().join(format!("{version}.snap"));
        std::fs::write(&file, snapshot(version, dir.path())).expect("it can be written");
        let restored = dir.path().join(format!("{version}.restored"));
        let restore = ["snapshot", "restore", text(&file), "--data-dir", text(&restored)];
        assert_eq!(run(&restore), (0, String::new(), String::new()), "{version}");
        assert_eq!(run(&["hashkv", text(&restored)]), run(&["hashkv", text(&file)]), "{version}");
        let names = |dir: &str| {
            let entries = std::fs::read_dir(restored.join("member").join(dir)).expect("it was made");
            let mut names: Vec<_> =
                entries.map(|entry| entry.expect("it can be listed").file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(names("snap"), ["0000000000000001-0000000000000001.snap", "db"]);
        assert_eq!(names("wal")[0], "0000000000000000-0000000000000000.wal");
        let error = format!("Error: data-dir \"{}\" not empty or could not be read\n", restored.display());
        assert_eq!(run(&restore), (1, String::new(), error));
    }
}

/// A bumped revision is the newest one, and marked as compacted.
#[test]
fn a_restore_can_raise_the_revision_so_that_old_watchers_notice() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("snap");
    std::fs::write(&file, snapshot("3.5.1", dir.path())).expect("it can be written");
    let restored = dir.path().join("restored");
    let restore = ["snapshot", "restore", text(&file), "--data-dir", text(&restored), "--bump-revision", "1000000"];
    let error = "Error: --mark-compacted required if --revision-bump > 0\n";
    assert_eq!(run(&restore), (128, String::new(), error.into()));
    assert_eq!(run(&[&restore[..], &["--mark-compacted"]].concat()).0, 0);
    let (_, fields, _) = run(&["hashkv", text(&restored), "-w", "fields"]);
    assert!(fields.ends_with("\"Hash revision\" : 1000167\n\"Compact revision\" : 1000167\n"), "{fields}");
}

/// Wherever a file is cut off or changed, it is refused with a reason and nothing is left behind; or, where no sum is asked
/// for and the change has hit what no page uses or a value's content, it is read. Never does the program break.
#[test]
fn damaged_files_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let whole = snapshot("3.5.1", dir.path());
    let file = dir.path().join("damaged");
    let restored = dir.path().join("restored");
    let restore = ["snapshot", "restore", text(&file), "--data-dir", text(&restored)];
    let unchecked = [&restore[..], &["--skip-hash-check"]].concat();
    let commands = [&restore[..], &unchecked, &["snapshot", "status", text(&file)], &["hashkv", text(&file)]];
    // Lengths that end in, before and behind pages and the sum; and bytes of all kinds of pages.
    let cuts =
        (0..60).map(|n| whole.len() * n / 60).chain([1, 31, 32, 4_096, 8_192, whole.len() - 1, whole.len() - 32]);
    let flips = (0..60).map(|n| whole.len() * n / 60 + n * 7 % 100).filter(|at| *at < whole.len());
    let cut = cuts.map(|len| (format!("cut off at {len}"), whole[..len].to_vec()));
    let flipped = flips.map(|at| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x41;
        (format!("changed at {at}"), bytes)
    });
    for (what, bytes) in cut.chain(flipped) {
        std::fs::write(&file, bytes).expect("it can be written");
        for command in commands {
            let (code, stdout, stderr) = run(command);
            let must_fail = command == &restore[..];
            assert!(code == 1 || code == 0 && !must_fail, "{what}: {command:?}: {code} {stdout}{stderr}");
            assert!(code == 0 || stderr.starts_with("Error: ") && stdout.is_empty(), "{what}: {command:?}: {stderr}");
            assert!(!stderr.contains("panicked"), "{what}: {command:?}: {stderr}");
            let left = restored.join("member").exists();
            assert_eq!(left, code == 0 && command.contains(&"restore"), "{what}: {command:?}: {stderr}");
            if left {
                std::fs::remove_dir_all(&restored).expect("it can be removed");
            }
        }
    }
}

#[test]
fn migrate_names_the_version_that_the_data_fits() {
    let dir = tempfile::tempdir().expect("a directory");
    let data: Vec<_> = ["3.4.23", "3.5.1", "3.7.1"].map(|version| recorded(version, dir.path())).into();
    let migrate = |data: &PathBuf, version, force: &[&str]| {
        let (code, _, error) =
            run(&[&["migrate", "--data-dir", text(data), "--target-version", version], force].concat());
        (code, error)
    };
    let version_of = |data: &PathBuf| {
        let status = run(&["snapshot", "status", text(&data.join("member/snap/db")), "-w", "fields"]).1;
        status.lines().last().map(str::to_owned)
    };
    let refused = |code, text: &str| (code, format!("Error: {text}\n"));
    let done = (0, String::new());
    assert_eq!(
        migrate(&data[0], "3.5", &[]),
        refused(1, "cannot detect storage schema version: missing term information")
    );
    for (version, text) in [
        ("3", "wrong target version format, expected \"X.Y\", got \"3\""),
        ("3.4", "target version \"3.4\" not supported. Minimal \"3.5\""),
    ] {
        assert_eq!(migrate(&data[1], version, &[]), refused(128, text));
    }
    assert_eq!(migrate(&data[1], "3.5", &[]), done);
    assert_eq!(migrate(&data[1], "3.6", &[]), done);
    assert_eq!(version_of(&data[1]).as_deref(), Some("\"Version\" : 3.6.0"));
    assert_eq!(migrate(&data[1], "3.5", &[]), done);
    assert_eq!(version_of(&data[1]).as_deref(), Some("\"Version\" : "));
    assert_eq!(migrate(&data[1], "3.9", &[]), refused(1, "version \"3.9.0\" is not supported"));
    assert_eq!(migrate(&data[1], "4.0", &[]), refused(1, "changing major storage version is not supported"));
    assert_eq!(migrate(&data[2], "3.7", &[]), done);
    let (code, error) = migrate(&data[2], "3.5", &[]);
    assert_eq!(migrate(&data[2], "3.5", &["--force"]), done, "{code} {error}");
}

#[test]
fn defrag_keeps_every_row() {
    let dir = tempfile::tempdir().expect("a directory");
    for version in ["3.4.23", "3.5.1", "3.7.1"] {
        let data = recorded(version, dir.path());
        let db = data.join("member/snap/db");
        let hash = || run(&["snapshot", "status", text(&db), "-w", "fields"]).1.lines().next().map(str::to_owned);
        let before = (hash(), std::fs::metadata(&db).expect("it is there").len());
        assert_eq!(run(&["defrag", "--data-dir", text(&data)]), (0, String::new(), String::new()));
        assert_eq!(hash(), before.0);
        assert!(std::fs::metadata(&db).expect("it is there").len() <= before.1);
    }
    let nowhere = dir.path().join("nowhere");
    let (code, _, error) = run(&["defrag", "--data-dir", text(&nowhere)]);
    assert!(code == 1 && error.contains("no such file or directory)"), "{code} {error}");
}

#[test]
fn each_kind_of_mistake_has_its_exit_code() {
    for (words, code, message) in [
        (&["nosuch"][..], 1, "unknown command \"nosuch\" for \"etcdutl\""),
        (&["version", "--nosuch"], 1, "unknown flag: --nosuch"),
        (&["defrag"], 1, "required flag(s) \"data-dir\" not set"),
        (&["migrate"], 1, "required flag(s) \"data-dir\", \"target-version\" not set"),
        (&["snapshot", "status"], 128, "snapshot status requires exactly one argument"),
        (&["snapshot", "restore"], 128, "snapshot restore requires exactly one argument"),
        (&["snapshot", "save", "x"], 128, "In order to download snapshot use: `etcdctl snapshot save ...`"),
        (&["snapshot", "status", "/nonexistent"], 1, "stat /nonexistent: no such file or directory"),
        (&["snapshot", "status", "x", "-w", "y"], 4, "unsupported output format"),
        (
            &["snapshot", "restore", "x", "--name", "y"],
            1,
            "couldn't find local name \"y\" in the initial cluster configuration",
        ),
    ] {
        let (found, stdout, stderr) = run(words);
        assert_eq!((found, stdout.as_str()), (code, ""), "{words:?}");
        assert!(stderr.starts_with(&format!("Error: {message}\n")), "{words:?}: {stderr}");
    }
    for words in
        [&[][..], &["help"], &["snapshot"], &["snapshot", "nosuch"], &["help", "defrag"], &["completion", "zsh"]]
    {
        let (code, stdout, stderr) = run(words);
        assert_eq!((code, stdout.is_empty(), stderr.as_str()), (0, false, ""), "{words:?}");
    }
    assert_eq!(run(&["version"]).1, "etcdutl version: 3.7.1\nAPI version: 3.7\n");
}
