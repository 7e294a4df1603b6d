//! Builds through an external vsock device: the agent's connections arrive at Unix sockets instead of
//! our own device.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tests::{BUSYBOX, Bench, run};

/// A running `vhost-device-vsock`. `cargo xtask test` and `vm-test` install it and set the variable
/// that names it.
struct Device {
    process: Child,
    dir: TempDir,
}

impl Device {
    fn start() -> Self {
        let program = std::env::var_os("COFFERDAM_STOCK_DEVICE");
        let program = program.expect("COFFERDAM_STOCK_DEVICE: run `cargo xtask vm-test`");
        let dir = TempDir::new().unwrap();
        let mut command = Command::new(program);
        // It refuses receive buffers larger than this, which is the size of our driver's.
        command.args(["--guest-cid", "3", "--tx-buffer-size", "1048576"]);
        command.arg("--socket").arg(dir.path().join("device"));
        command.arg("--uds-path").arg(dir.path().join("host"));
        let process = command.stdin(Stdio::null()).spawn().unwrap();
        let device = Self { process, dir };
        let deadline = Instant::now() + Duration::from_secs(30);
        // It does not report when it is ready, but it is long before QEMU has started.
        while !device.socket().exists() {
            assert!(Instant::now() < deadline, "the device does not listen");
            thread::sleep(Duration::from_millis(10));
        }
        device
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("device")
    }

    fn uds(&self) -> PathBuf {
        self.dir.path().join("host")
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Builds something that sends several mebibytes in both directions, more than once.
#[track_caller]
fn check_builds(device: &Device, vsock: &str, transport: &str, driver: &str) {
    let bench = Bench::new();
    let big: Vec<u8> = (0..1_500_000_u32).flat_map(u32::to_le_bytes).collect();
    bench.write("big", &big);
    let dockerfile =
        format!("{BUSYBOX}COPY big /\nRUN cp /big /copy && echo heard\nRUN cmp /big /copy\n");
    let out = bench.out().join("tree");
    let metadata = bench.out().join("metadata");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let mut command = bench.build_command(&["-o", &text(&out), "--vsock", vsock]);
    command.args([
        "--transport",
        transport,
        "--metadata-file",
        &text(&metadata),
    ]);
    bench.write("Dockerfile", &dockerfile);
    run(command).expect_status(0).says(&["heard"]);
    assert_eq!(fs::read(out.join("copy")).unwrap(), big);
    let metadata = fs::read_to_string(metadata).unwrap();
    let found = format!("\"transport\":\"{driver}\"");
    let metadata: String = metadata.split_whitespace().collect();
    assert!(metadata.contains(&found), "{metadata}");
    bench.check_clean();
    let listener = format!("{}_3325", device.uds().display());
    assert!(!Path::new(&listener).exists(), "the socket is left over");
}

#[test]
fn a_device_with_a_socket_per_port_serves_the_kernels_driver() {
    let device = Device::start();
    let vsock = format!(
        "{},uds={}",
        device.socket().display(),
        device.uds().display()
    );
    check_builds(&device, &vsock, "auto", "kernel");
    // The next VM gets the same device.
    check_builds(&device, &vsock, "auto", "kernel");
}

#[test]
fn a_device_with_one_socket_serves_our_driver() {
    let device = Device::start();
    let listener = format!("{}_3325", device.uds().display());
    let vsock = format!("{},port={listener}", device.socket().display());
    check_builds(&device, &vsock, "ring", "ring");
}

#[test]
fn without_the_device_the_build_fails_with_the_reason() {
    let bench = Bench::new();
    let nobody = bench.out().join("nobody");
    let vsock = format!("{0},uds={0}", nobody.display());
    let command = bench.build_command(&["--vsock", &vsock]);
    bench.write("Dockerfile", BUSYBOX);
    run(command).expect_status(125).says(&["nobody"]);
    bench.check_clean();
}
