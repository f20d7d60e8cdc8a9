//! Three hosts with the addresses 192.168.99.100 and on, on which commands of a document are typed.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::workspace;
use crate::harness::{Network, etcdutl, our_etcdctl, ours};

const COUNT: usize = 3;
/// How long a command may take.
const TYPED_WITHIN_SECONDS: &str = "120";

/// Hosts. Dropping them ends and removes everything on them.
#[derive(Debug)]
pub struct Hosts {
    home: TempDir,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Network namespaces, in which a script plays Docker.
    Namespaces(Network),
    /// Containers of one real Docker.
    Docker { network: String, image: String },
}

fn text(problem: impl std::fmt::Display) -> String {
    problem.to_string()
}

/// Runs a program that must succeed; what it wrote.
fn run(program: &Path, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|problem| format!("{program:?}: {problem}"))?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if output.status.success() { Ok(said) } else { Err(format!("{program:?} {arguments:?}: {said}")) }
}

fn find(program: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths).map(|folder| folder.join(program)).find(|path| path.is_file())
}

fn need(program: &str) -> Result<PathBuf, String> {
    find(program).ok_or_else(|| format!("there is no {program} here"))
}

impl Hosts {
    /// Hosts that are network namespaces. The error says why there can be none here.
    pub fn namespaces() -> Result<Hosts, String> {
        Network::available()?;
        need("curl")?;
        let network = Network::create(COUNT).map_err(text)?;
        let home = tempfile::tempdir().map_err(text)?;
        let hosts = Hosts { home, kind: Kind::Namespaces(network) };
        hosts.put_binaries()?;
        hosts.put_script("docker", include_str!("docker-in-namespaces.sh"))?;
        hosts.put_script("curl", "#!/bin/sh\nexec ip netns exec \"$HOST_NAMESPACE\" \"$HOST_CURL\" \"$@\"\n")?;
        Ok(hosts)
    }

    /// Hosts that are containers of the Docker that runs here, with an image built from this workspace's programs. The error
    /// says why there can be none here.
    pub fn docker() -> Result<Hosts, String> {
        let docker = need("docker")?;
        need("busybox")?;
        need("curl")?;
        run(&docker, &["info"]).map_err(|_| "Docker does not run here".to_owned())?;
        let id = std::process::id();
        let (network, image) = (format!("keelson-tutorial-{id}"), format!("keelson-tutorial:{id}"));
        let home = tempfile::tempdir().map_err(text)?;
        // From here on, whatever is made is removed with the hosts.
        let hosts = Hosts { home, kind: Kind::Docker { network: network.clone(), image: image.clone() } };
        hosts.put_binaries()?;
        hosts.put_script("docker", include_str!("docker-on-one-host.sh"))?;
        hosts.put_script("curl", "#!/bin/sh\nexec \"$HOST_DOCKER\" exec \"etcd-$HOST_NAME\" curl \"$@\"\n")?;
        let base = format!("keelson-base:{id}");
        run(&workspace().join("deploy/base"), &[&base, "curl"])?;
        let mut build = Command::new(workspace().join("deploy/image"));
        build.args([&image, &base]).env("KEELSON_BINARIES", hosts.binaries());
        let built = build.output().map_err(text)?;
        if !built.status.success() {
            return Err(format!("deploy/image: {}", String::from_utf8_lossy(&built.stderr)));
        }
        run(&docker, &["network", "create", "--internal", "--subnet", "192.168.99.0/24", &network])?;
        Ok(hosts)
    }

    fn binaries(&self) -> PathBuf {
        self.home.path().join("binaries")
    }

    fn commands(&self) -> PathBuf {
        self.home.path().join("commands")
    }

    fn put_binaries(&self) -> Result<(), String> {
        std::fs::create_dir_all(self.binaries()).map_err(text)?;
        for (name, path) in [("etcd", ours().path), ("etcdctl", our_etcdctl()), ("etcdutl", etcdutl())] {
            std::fs::copy(path, self.binaries().join(name)).map_err(text)?;
        }
        Ok(())
    }

    fn put_script(&self, name: &str, script: &str) -> Result<(), String> {
        let path = self.commands().join(name);
        std::fs::create_dir_all(self.commands()).map_err(text)?;
        std::fs::write(&path, script).map_err(text)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).map_err(text)
    }

    /// Types a command on a host; what it wrote to either output.
    pub fn type_on(&self, host: usize, line: &str) -> Result<String, String> {
        let home = self.home.path().join(format!("node{}", host + 1));
        std::fs::create_dir_all(&home).map_err(text)?;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("timeout");
        command.args([TYPED_WITHIN_SECONDS, "sh", "-c", &format!("exec 2>&1\n{line}")]).stdin(Stdio::null());
        command.env("PATH", format!("{}:{path}", self.commands().display()));
        command.env("HOST_NAME", format!("node{}", host + 1)).env("HOST_HOME", &home);
        match &self.kind {
            Kind::Namespaces(network) => {
                command.env("HOST_NAMESPACE", network.namespace(host)).env("HOST_BINARIES", self.binaries());
                command.env("HOST_CURL", need("curl")?);
            }
            Kind::Docker { network, image } => {
                command.env("HOST_DOCKER", need("docker")?).env("HOST_NETWORK", network).env("HOST_IMAGE", image);
                command.env("HOST_ADDRESS", format!("192.168.99.{}", 100 + host));
            }
        }
        let output = command.output().map_err(text)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        match &self.kind {
            Kind::Namespaces(network) => {
                for host in 0..COUNT {
                    let pids = run(Path::new("ip"), &["netns", "pids", &network.namespace(host)]).unwrap_or_default();
                    for pid in pids.split_whitespace() {
                        let _ = run(Path::new("kill"), &["-KILL", pid]);
                    }
                }
            }
            Kind::Docker { network, image } => {
                let Some(docker) = find("docker") else { return };
                let base = image.replace("keelson-tutorial", "keelson-base");
                for host in 1..=COUNT {
                    let _ = run(&docker, &["rm", "-f", "-v", &format!("etcd-node{host}")]);
                    let _ = run(&docker, &["volume", "rm", "-f", &format!("etcd-data-node{host}")]);
                }
                let _ = run(&docker, &["network", "rm", network]);
                let _ = run(&docker, &["rmi", "-f", image, &base]);
            }
        }
    }
}
