//! Which programs the tests run: our own `etcd`, built when missing, and real ones when they are installed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// A server program to test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binary {
    /// What reports call it.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

impl Binary {
    /// A program somewhere else, named after its file and folder.
    pub fn at(path: impl Into<PathBuf>) -> Binary {
        let path: PathBuf = path.into();
        // Servers run in a directory of their own, where a relative path would name something else.
        Binary { name: path.display().to_string(), path: path.canonicalize().unwrap_or(path) }
    }
}

/// Our server: the program in `KEELSON_ETCD`, or the one of this build.
///
/// `cargo test` does not build the programs of other packages for a test, so this runs `cargo build` once; it does
/// nothing when the program is up to date.
///
/// # Panics
/// If the program cannot be built: no test of this package means anything without it.
pub fn ours() -> Binary {
    static OURS: OnceLock<Binary> = OnceLock::new();
    OURS.get_or_init(|| match std::env::var_os("KEELSON_ETCD") {
        Some(path) => Binary { name: "ours".into(), ..Binary::at(path) },
        None => Binary { name: "ours".into(), path: build("etcd") },
    })
    .clone()
}

/// Our `etcdutl`: the program of this build.
///
/// # Panics
/// If it cannot be built.
pub fn etcdutl() -> PathBuf {
    static ETCDUTL: OnceLock<PathBuf> = OnceLock::new();
    ETCDUTL.get_or_init(|| build("etcdutl")).clone()
}

/// Real etcds that have been fetched, each in a folder with its tools; none where there are none.
pub fn peer_folders() -> Vec<PathBuf> {
    ["3.4", "3.5.1"].map(|version| peers().join(version)).into_iter().filter(|folder| folder.is_dir()).collect()
}

/// Our `etcdctl`: the program in `KEELSON_OUR_ETCDCTL`, or the one of this build.
///
/// # Panics
/// If the program cannot be built.
pub fn our_etcdctl() -> PathBuf {
    static OURS: OnceLock<PathBuf> = OnceLock::new();
    OURS.get_or_init(|| std::env::var_os("KEELSON_OUR_ETCDCTL").map_or_else(|| build("etcdctl"), PathBuf::from)).clone()
}

/// Builds the program of `package` with the profile of the running test and says where it is.
fn build(package: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    // target/<profile>/deps/test-1234 or target/<profile>/program
    let folder = test.ancestors().skip(1).find(|folder| !folder.ends_with("deps")).expect("target/<profile>");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--locked", "--package", package]);
    command.arg("--manifest-path").arg(workspace().join("Cargo.toml"));
    command.arg("--target-dir").arg(folder.parent().expect("a profile's folder is inside the target folder"));
    if folder.ends_with("release") {
        command.arg("--release");
    }
    let status = command.status().expect("cargo runs");
    assert!(status.success(), "cargo could not build {package}: {status}");
    folder.join(package)
}

/// A real etcd to compare with: the program in `KEELSON_REFERENCE`, else the newest that `.ci/peers` has fetched, else
/// the one that Debian's package installs. `None` where there is none; tests then say so and pass.
pub fn reference() -> Option<Binary> {
    if let Some(path) = std::env::var_os("KEELSON_REFERENCE") {
        return Some(Binary::at(path));
    }
    let peers = peers();
    [peers.join("3.5.1/etcd"), peers.join("3.4/etcd"), PathBuf::from("/usr/bin/etcd")]
        .into_iter()
        .find(|path| path.is_file())
        .map(Binary::at)
}

/// A real etcd that still has the v2 API (no later than 3.5): `KEELSON_REFERENCE_V2`, then Debian's from `.ci/peers`, then
/// the system's. `None` where there is none; tests then say so and pass.
pub fn reference_with_v2() -> Option<Binary> {
    if let Some(path) = std::env::var_os("KEELSON_REFERENCE_V2") {
        return Some(Binary::at(path));
    }
    [peers().join("3.4/etcd"), PathBuf::from("/usr/bin/etcd")].into_iter().find(|path| path.is_file()).map(Binary::at)
}

/// Debian's `etcdctl`, or `None` where it is not installed: `KEELSON_ETCDCTL`, then `.ci/peers`, then the system's.
pub fn etcdctl() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("KEELSON_ETCDCTL") {
        return Some(path.into());
    }
    [peers().join("3.4/etcdctl"), PathBuf::from("/usr/bin/etcdctl")].into_iter().find(|path| path.is_file())
}

/// Where `.ci/peers` puts real etcds, and clients of them.
pub fn peers() -> PathBuf {
    match std::env::var_os("KEELSON_PEERS") {
        Some(folder) => folder.into(),
        None => workspace().join("target/peers"),
    }
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is inside the workspace")
}
