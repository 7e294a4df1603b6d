//! Options of `cofferdam build`.

use std::path::PathBuf;
use std::time::Duration;

use ::store::StepLog;
use clap::ValueEnum;
use engine::export::OutputSpec;
use launcher::{Accel, Transport, VsockBackend};
use net_policy::{HostRule, NetRule};
use oci::{ImageRef, Platform};

use crate::progress::Mode;
use crate::size;
use crate::values::{Pair, assignment, host, pair};

/// What `--rebuild` compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Rebuild {
    /// Everything except file times
    Content,
    /// Everything including file times
    Strict,
}

const EXAMPLES: &str = "\
Examples:
  cofferdam build -t app .                        build and tag the image app:latest
  cofferdam build -f docker/Dockerfile .          use another Dockerfile
  cofferdam build --target test .                 build the stage `test`
  cofferdam build -o out .                        export the files of the image to out/
  cofferdam build -o type=oci,dest=app.tar .      export an OCI archive
  cofferdam build -q . > image-id                 print only the image ID
  cofferdam build --allow-net deb.debian.org --allow-net '*.crates.io:443' .
                                                  let steps reach these hosts only
  cofferdam build --explain .                     show why steps are or are not cached
  cofferdam build --rebuild .                     check that cached steps are reproducible
  cofferdam build - < Dockerfile                  build without a context
  cofferdam build --build-context base=oci-layout:///images/debian .
                                                  use a local OCI layout for `FROM base`

The image ID is the digest of the image configuration, as in `docker images`.
RUN steps run in a VM. It starts only if one of them is not cached.";

/// Build an image from a Dockerfile
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::command) struct Args {
    /// Build context directory, or `-` to read a Dockerfile from standard input
    #[arg(value_name = "PATH")]
    pub(super) context: PathBuf,
    /// Path of the Dockerfile, or `-` for standard input [default: PATH/Dockerfile]
    ///
    /// A file in the build context may be a link only to another file in it. A file elsewhere may be
    /// any file or pipe.
    #[arg(short, long, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// Image name, NAME or NAME:TAG; repeatable
    #[arg(short, long = "tag", value_name = "NAME")]
    pub(super) tags: Vec<ImageRef>,
    /// Set a build-time variable; NAME alone takes its value from the environment; repeatable
    #[arg(long = "build-arg", value_name = "NAME=VALUE", value_parser = pair)]
    pub(super) build_args: Vec<Pair>,
    /// Target stage to build [default: the last stage]
    #[arg(long, value_name = "STAGE")]
    pub(super) target: Option<String>,
    /// Do not use cached results
    #[arg(long)]
    pub(super) no_cache: bool,
    /// Name of the builds that trust each other [default: the repository or directory of the context]
    ///
    /// A RUN step that breaks out of its sandbox controls its VM, and so the results of all later steps
    /// of its build. Builds of one trust domain share the results of their RUN steps. A build takes
    /// results of another domain only if it contains every step that their VM had run. Give builds of
    /// strangers' code, such as pull requests, a domain of their own.
    #[arg(
        long,
        value_name = "NAME",
        env = "COFFERDAM_TRUST_DOMAIN",
        hide_env_values = true
    )]
    pub(super) trust_domain: Option<String>,
    /// Explain for each step why it was or was not cached
    #[arg(long, conflicts_with = "quiet")]
    pub(super) explain: bool,
    /// Run cached steps again and compare the results; `strict` also compares file times
    ///
    /// Runs cached RUN, COPY, ADD and WORKDIR steps again on top of the stored layers and compares
    /// the results with the stored ones, path by path. Nothing in the store is replaced, and the
    /// image is made from the stored results. If a result differs, the exit status is 3. File times
    /// are compared only with `strict`; if SOURCE_DATE_EPOCH is set, later times count as equal to it.
    #[arg(
        long,
        value_name = "HOW",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "content",
        conflicts_with = "no_cache"
    )]
    pub(super) rebuild: Option<Rebuild>,
    /// Always check the registry for newer base images
    #[arg(long)]
    pub(super) pull: bool,
    /// Set an image label; overrides LABEL; repeatable
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = pair)]
    pub(super) labels: Vec<Pair>,
    /// Output destination: a directory, `-`, or type=oci|docker|tar|local,dest=PATH; repeatable
    ///
    /// In a directory (type=local), devices are left out and programs have no set-user-ID and
    /// set-group-ID bits and no capabilities, unless root adds devices=true or setuid=true.
    #[arg(short, long = "output", value_name = "SPEC")]
    pub(super) outputs: Vec<OutputSpec>,
    /// Type of progress output on standard error
    #[arg(
        long,
        value_name = "MODE",
        env = "COFFERDAM_PROGRESS",
        hide_env_values = true,
        default_value = "auto"
    )]
    pub(super) progress: Mode,
    /// Suppress progress output and print the image ID
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Target platform [default: the platform of this machine]
    #[arg(long, value_name = "OS/ARCH")]
    pub(super) platform: Option<Platform>,
    /// Additional named build context: docker-image://REF or oci-layout://DIR{:TAG}{@DIGEST};
    /// repeatable
    #[arg(long = "build-context", value_name = "NAME=VALUE", value_parser = assignment)]
    pub(super) build_contexts: Vec<(String, String)>,
    /// Add a host-to-IP mapping to /etc/hosts of RUN steps; the IP `host-gateway` is this machine, if
    /// --allow-net names `localhost`; repeatable
    #[arg(long = "add-host", value_name = "HOST:IP", value_parser = host, value_delimiter = ',')]
    pub(super) hosts: Vec<(String, String)>,
    /// Network of RUN steps without --network: default, or none; with none, ADD downloads nothing
    ///
    /// With `none` a step reaches nothing. With `default` it reaches the network, but not this machine:
    /// loopback, link-local, multicast and metadata addresses and the addresses of this machine are
    /// denied unless --allow-net names them.
    #[arg(long, value_name = "NETWORK", default_value = "default")]
    pub(super) network: String,
    /// Let RUN steps and ADD connect to HOST only: a name, *.NAME, an address or a range; repeatable
    ///
    /// Without it RUN steps reach everything that --network says. With it nothing else resolves or
    /// connects; downloads of ADD and their redirections are held to it, too, but for what --allow-host
    /// names. Registries of FROM are not: no image could be built without them. HOST is a name (`deb.debian.org`), the names below one (`*.debian.org`), an address
    /// (`10.1.2.3`, `[2001:db8::1]:443`), a range (`10.1.0.0/16`), `localhost`, or `*` for all that is
    /// open without this option. A name opens the addresses that it resolves to, as long as the answer
    /// lives; other names at the same address are open then, too.
    ///
    /// An address or range that is written out may also be one that is denied otherwise. `localhost`
    /// is this machine, which a step reaches as host.docker.internal (10.0.2.2). Cached results are
    /// used whatever they connected to when they were made; see --no-cache.
    #[arg(long = "allow-net", value_name = "HOST[:PORT]")]
    pub(super) allow_net: Vec<NetRule>,
    /// Let FROM and ADD reach HOST, or HOST:PORT, whatever its address, for example localhost:5000; repeatable
    ///
    /// This machine makes the requests of FROM, COPY --from and ADD. What a Dockerfile or an image
    /// names there, and what a registry or server redirects to, must not have an address of this
    /// machine (such as localhost), a link-local address or that of a cloud's metadata service.
    /// Hosts that are named here are exempt; `*.example.com` is every name below example.com. So are
    /// hosts that other options name: the registry of --build-context NAME=docker-image://REF, and
    /// HOST:PORT at the beginning of a --build-arg. With a proxy in the environment, the proxy
    /// resolves names and decides.
    #[arg(
        long = "allow-host",
        value_name = "HOST[:PORT]",
        env = "COFFERDAM_ALLOW_HOST",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub(super) allow_hosts: Vec<HostRule>,
    /// Let neither RUN steps nor FROM and ADD reach private addresses, such as 10.0.0.0/8 and fc00::/7
    #[arg(long)]
    pub(super) deny_private: bool,
    /// Write the image ID to FILE
    #[arg(long, value_name = "FILE")]
    pub(super) iidfile: Option<PathBuf>,
    /// Write build result metadata to FILE as JSON, also after a failure
    #[arg(long, value_name = "FILE")]
    pub(super) metadata_file: Option<PathBuf>,
    /// Maximum number of steps to run in parallel [default: number of CPUs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) jobs: Option<u16>,
    /// Longest time that the build may take, for example 1h30m
    #[arg(
        long,
        value_name = "TIME",
        env = "COFFERDAM_TIMEOUT",
        hide_env_values = true,
        value_parser = limit
    )]
    pub(super) timeout: Option<Duration>,
    /// Longest time that each RUN step may take
    #[arg(
        long,
        value_name = "TIME",
        env = "COFFERDAM_STEP_TIMEOUT",
        hide_env_values = true,
        value_parser = limit
    )]
    pub(super) step_timeout: Option<Duration>,
    /// Longest time that a RUN step may print nothing
    #[arg(
        long,
        value_name = "TIME",
        env = "COFFERDAM_IDLE_TIMEOUT",
        hide_env_values = true,
        value_parser = limit
    )]
    pub(super) idle_timeout: Option<Duration>,
    /// Text that the log of each RUN step keeps, at least 64k; the middle of a longer one is left out
    #[arg(
        long,
        value_name = "SIZE",
        env = "COFFERDAM_LOG_LIMIT",
        hide_env_values = true,
        default_value = "1g",
        value_parser = log_limit
    )]
    pub(super) log_limit: u64,
    /// Size that the changes of each RUN step may have, sparse files counted in full, up to the 64g of
    /// the VM's disk and to what is free at the store
    #[arg(
        long,
        value_name = "SIZE",
        env = "COFFERDAM_STEP_DISK",
        hide_env_values = true,
        default_value = "16g",
        value_parser = size::parse
    )]
    pub(super) step_disk: u64,
    /// Size of all layers and files that this build may add to the store
    #[arg(
        long,
        value_name = "SIZE",
        env = "COFFERDAM_BUILD_DISK",
        hide_env_values = true,
        default_value = "64g",
        value_parser = size::parse
    )]
    pub(super) build_disk: u64,
    /// Size to which a pulled layer, or an archive that ADD unpacks, may unpack
    #[arg(
        long,
        value_name = "SIZE",
        env = "COFFERDAM_LAYER_SIZE",
        hide_env_values = true,
        default_value = "128g",
        value_parser = size::parse
    )]
    pub(super) layer_size: u64,
    /// How many times its compressed size it may unpack to, beyond the first 1g
    #[arg(
        long,
        value_name = "N",
        env = "COFFERDAM_LAYER_RATIO",
        hide_env_values = true,
        default_value = "100"
    )]
    pub(super) layer_ratio: u64,
    /// Memory of the VM, for example 2g [default: half of --total-memory, from 512m to 4g]
    #[arg(short, long, value_name = "SIZE", value_parser = parse_memory)]
    pub(super) memory: Option<u64>,
    /// Memory that the VMs of all builds with this store may have together; others wait [default: that of
    /// this machine or of the control group, less a reserve]
    #[arg(
        long,
        value_name = "SIZE",
        env = "COFFERDAM_TOTAL_MEMORY",
        hide_env_values = true,
        value_parser = size::parse
    )]
    pub(super) total_memory: Option<u64>,
    /// Number of CPUs of the VM [default: all CPUs of this machine]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=255))]
    pub(super) cpus: Option<u16>,
    /// Guest image directory [default: the first of ../vmimage next to the program,
    /// $XDG_DATA_HOME/cofferdam/vm and /usr/lib/cofferdam/vm]
    #[arg(
        long,
        value_name = "DIR",
        env = "COFFERDAM_VM_IMAGE",
        hide_env_values = true
    )]
    pub(super) vm_image: Option<PathBuf>,
    /// Keep SIZE of disk space free: prune unused cache, and end this build if that is not enough; 0
    /// disables this [default: 5% of the file system, at most 2g]
    #[arg(
        long,
        value_name = "SIZE",
        env = "COFFERDAM_MIN_FREE_SPACE",
        hide_env_values = true,
        value_parser = size::parse
    )]
    pub(super) min_free_space: Option<u64>,
    /// VM accelerator: auto, kvm or tcg (emulation)
    #[arg(
        long,
        value_name = "ACCEL",
        env = "COFFERDAM_ACCEL",
        hide_env_values = true,
        default_value = "auto"
    )]
    pub(super) accel: Accel,
    /// vsock driver in the VM: auto, ring (built in) or kernel
    #[arg(
        long,
        value_name = "TRANSPORT",
        env = "COFFERDAM_TRANSPORT",
        hide_env_values = true,
        default_value = "auto"
    )]
    pub(super) transport: Transport,
    /// vsock device of the VM: embedded, host, DEVICE,uds=PATH or DEVICE,port=PATH
    ///
    /// `embedded` is part of this program and by far the fastest. `host` is the kernel of this
    /// machine (/dev/vhost-vsock). DEVICE is the vhost-user socket of a running device such as
    /// vhost-device-vsock. With `uds=`, that device forwards connections to the Unix socket
    /// PATH_3325; with `port=`, to PATH. It serves one build at a time.
    #[arg(
        long,
        value_name = "VSOCK",
        env = "COFFERDAM_VSOCK",
        hide_env_values = true,
        default_value = "embedded"
    )]
    pub(super) vsock: VsockBackend,
}

/// Parses the limit of a log.
fn log_limit(text: &str) -> Result<u64, String> {
    let limit = size::parse(text)?;
    if limit < StepLog::LEAST_LIMIT {
        return Err("a log keeps at least 64k".to_owned());
    }
    Ok(limit)
}

/// Parses a time limit.
fn limit(text: &str) -> Result<Duration, String> {
    let limit = size::parse_duration(text)?;
    if limit.is_zero() {
        return Err(
            "a time limit must be longer than zero; leave the option out for none".to_owned(),
        );
    }
    Ok(limit)
}

/// Parses the memory size of a VM and checks that this machine can provide it.
fn parse_memory(text: &str) -> Result<u64, String> {
    let bytes = size::parse(text).map_err(|error| error.to_string())?;
    let range = launcher::memory_range();
    if range.contains(&bytes) {
        return Ok(bytes);
    }
    let (least, most) = range.into_inner();
    Err(format!(
        "a VM on this machine can have {} to {}",
        size::show(least),
        size::show(most)
    ))
}
