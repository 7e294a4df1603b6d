//! A real registry on a loopback port, with its storage in a temporary directory.

use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use store::Digest;
use tempfile::TempDir;

use super::{LayoutDir, run};

/// Ends with the value.
pub struct Registry {
    child: Child,
    host: String,
    port: u16,
    dir: TempDir,
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

impl Registry {
    /// Needs `docker-registry`, and `skopeo` to push.
    pub fn start() -> Self {
        Self::start_at("127.0.0.1", "127.0.0.1", &|_| String::new())
    }

    /// A registry with TLS, under this machine's own name, which must have an address. Its authority
    /// is in `ca.pem`, another one in `other-ca.pem`. Needs `openssl` too.
    pub fn start_with_tls() -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let host = host.trim();
        let mut addresses = (host, 0).to_socket_addrs().unwrap();
        let address = addresses.next().unwrap();
        Self::start_at(host, &address.ip().to_string(), &|dir| {
            certificates(dir, host);
            let (key, cert) = (dir.join("key.pem"), dir.join("cert.pem"));
            format!(
                ", tls: {{certificate: {}, key: {}}}",
                cert.display(),
                key.display()
            )
        })
    }

    fn start_at(host: &str, address: &str, more: &dyn Fn(&Path) -> String) -> Self {
        let started = (0..5).find_map(|_| Self::try_start(host, address, more));
        started.expect("the registry does not start")
    }

    fn try_start(host: &str, address: &str, more: &dyn Fn(&Path) -> String) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind((address, 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = dir.path().join("config.yml");
        let storage = dir.path().join("storage");
        let more = more(dir.path());
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: '{address}:{port}', secret: x{more}}}\n",
            storage.display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // From here on it ends with the value.
        let mut registry = Self {
            child,
            host: host.to_owned(),
            port,
            dir,
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            // Another process may have taken the port.
            if registry.child.try_wait().unwrap().is_some() {
                return None;
            }
            if TcpStream::connect((address, port)).is_ok() {
                return Some(registry);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the registry does not answer");
    }

    /// How `repository:tag` is called from outside.
    pub fn name(&self, name: &str) -> String {
        format!("{}:{}/{name}", self.host, self.port)
    }

    /// A file beside the registry's storage.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Copies an image of a layout as it is.
    pub fn push(&self, layout: &LayoutDir, tag: &str, name: &str) {
        run(
            "skopeo",
            &[
                "copy",
                "--quiet",
                "--all",
                "--preserve-digests",
                "--insecure-policy",
                "--dest-tls-verify=false",
                &format!("oci:{}:{tag}", layout.dir.display()),
                &format!("docker://{}", self.name(name)),
            ],
        );
    }

    /// The file that holds a blob.
    pub fn blob_path(&self, digest: Digest) -> PathBuf {
        let hex = digest.hex();
        self.dir
            .path()
            .join("storage/docker/registry/v2/blobs/sha256")
            .join(&hex[..2])
            .join(&hex)
            .join("data")
    }

    /// Ends it early.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Makes two authorities, and a certificate of the first for `host`.
fn certificates(dir: &Path, host: &str) {
    let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    for (key, authority) in [("ca.key", "ca.pem"), ("other-ca.key", "other-ca.pem")] {
        let subject = format!("/CN={authority}");
        let new = [
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", &subject,
        ];
        run(
            "openssl",
            &[&new[..], &["-keyout", &at(key), "-out", &at(authority)]].concat(),
        );
    }
    let subject = format!("/CN={host}");
    let new = ["req", "-newkey", "rsa:2048", "-nodes", "-subj", &subject];
    run(
        "openssl",
        &[
            &new[..],
            &["-keyout", &at("key.pem"), "-out", &at("cert.csr")],
        ]
        .concat(),
    );
    std::fs::write(dir.join("cert.ext"), format!("subjectAltName=DNS:{host}\n")).unwrap();
    let sign = [
        "x509",
        "-req",
        "-days",
        "2",
        "-CAcreateserial",
        "-in",
        &at("cert.csr"),
    ];
    let by = [
        "-CA",
        &at("ca.pem"),
        "-CAkey",
        &at("ca.key"),
        "-extfile",
        &at("cert.ext"),
    ];
    run(
        "openssl",
        &[&sign[..], &by[..], &["-out", &at("cert.pem")]].concat(),
    );
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.end();
    }
}
