//! Options of `cofferdam build`.

use std::path::PathBuf;

use clap::ValueEnum;
use engine::export::OutputSpec;
use engine::image::{ImageRef, Platform};
use launcher::{Accel, Bridge, Transport};

use crate::progress::Mode;
use crate::size;
use crate::values::{Pair, assignment, host, pair};

/// What counts when steps are done again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Rebuild {
    /// Everything but times
    Content,
    /// Times, too
    Strict,
}

const EXAMPLES: &str = "\
Examples:
  cofferdam build -t app .                        keep the image in the store as app:latest
  cofferdam build -f docker/Dockerfile .          another Dockerfile, the same context
  cofferdam build --target test .                 up to the stage `test`
  cofferdam build -o out .                        the files of the image in the directory out/
  cofferdam build -o type=oci,dest=app.tar .      the image as an OCI archive
  cofferdam build -q . > image-id                 nothing but the image id
  cofferdam build --explain .                     which steps have to be done, and why
  cofferdam build --rebuild .                     do them again: is the result the same?
  cofferdam build - < Dockerfile                  a Dockerfile without a context
  cofferdam build --build-context base=oci-layout:///images/debian .
                                                  FROM base means that layout

The image id is the digest of the image's configuration, as `docker images` shows it.
Steps run in a VM, which is started only if one of them is not cached.";

/// Build an image from a Dockerfile
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::command) struct Args {
    /// Directory of the build context; `-` reads a Dockerfile from standard input instead
    #[arg(value_name = "PATH")]
    pub(super) context: PathBuf,
    /// The Dockerfile [default: Dockerfile in PATH]; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// Name of the image, as NAME or NAME:TAG; may be repeated
    #[arg(short, long = "tag", value_name = "NAME")]
    pub(super) tags: Vec<ImageRef>,
    /// Value for an ARG of the Dockerfile; NAME alone takes it from the environment; may be repeated
    #[arg(long = "build-arg", value_name = "NAME=VALUE", value_parser = pair)]
    pub(super) build_args: Vec<Pair>,
    /// Stage to build [default: the last one]
    #[arg(long, value_name = "STAGE")]
    pub(super) target: Option<String>,
    /// Do every step again, even if its result is in the store
    #[arg(long)]
    pub(super) no_cache: bool,
    /// Say for each step why its result was found in the store or not: which input of the step
    /// changed since the last time
    #[arg(long, conflicts_with = "quiet")]
    pub(super) explain: bool,
    /// Do steps that are in the store again and compare: content, or with `strict` times, too
    ///
    /// RUN, COPY, ADD and WORKDIR steps are done again, each on top of what is stored, and what they
    /// make is compared with what is stored, path by path. Nothing that is stored is replaced, and
    /// the image is made of it as always. If anything differs, the exit status is 3. Times of files
    /// do not count unless with `strict`; those after SOURCE_DATE_EPOCH, if it is set, count as it.
    #[arg(
        long,
        value_name = "HOW",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "content",
        conflicts_with = "no_cache"
    )]
    pub(super) rebuild: Option<Rebuild>,
    /// Ask registries for newer versions of base images
    #[arg(long)]
    pub(super) pull: bool,
    /// Label of the image; wins over LABEL; may be repeated
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = pair)]
    pub(super) labels: Vec<Pair>,
    /// Where else the result goes: a directory, `-`, or type=oci|docker|tar|local,dest=PATH; may be
    /// repeated
    #[arg(short, long = "output", value_name = "SPEC")]
    pub(super) outputs: Vec<OutputSpec>,
    /// How progress is shown on standard error
    #[arg(
        long,
        value_name = "MODE",
        env = "COFFERDAM_PROGRESS",
        hide_env_values = true,
        default_value = "auto"
    )]
    pub(super) progress: Mode,
    /// Show nothing but errors; print the image id on standard output
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Platform of the image [default: this machine's]
    #[arg(long, value_name = "OS/ARCH")]
    pub(super) platform: Option<Platform>,
    /// Name for an image that FROM and --from then mean: docker-image://REF or
    /// oci-layout://DIR{:TAG}{@DIGEST}; may be repeated
    #[arg(long = "build-context", value_name = "NAME=VALUE", value_parser = assignment)]
    pub(super) build_contexts: Vec<(String, String)>,
    /// Line for /etc/hosts of RUN steps; may be repeated
    #[arg(long = "add-host", value_name = "HOST:IP", value_parser = host, value_delimiter = ',')]
    pub(super) hosts: Vec<(String, String)>,
    /// Network of RUN steps that do not say: default or none
    #[arg(long, value_name = "NETWORK", default_value = "default")]
    pub(super) network: String,
    /// Write the image id to this file
    #[arg(long, value_name = "FILE")]
    pub(super) iidfile: Option<PathBuf>,
    /// Write digests, outcome and times to this file, as JSON, also after a failure
    #[arg(long, value_name = "FILE")]
    pub(super) metadata_file: Option<PathBuf>,
    /// Most steps at work at the same time [default: the number of processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) jobs: Option<u16>,
    /// Memory of the VM, such as 2g
    #[arg(short, long, value_name = "SIZE", value_parser = parse_memory)]
    pub(super) memory: Option<u64>,
    /// Processors of the VM [default: those of this machine]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=255))]
    pub(super) cpus: Option<u16>,
    /// Directory with the image of the builder VM [default: beside the program, at home, in the
    /// system]
    #[arg(
        long,
        value_name = "DIR",
        env = "COFFERDAM_VM_IMAGE",
        hide_env_values = true
    )]
    pub(super) vm_image: Option<PathBuf>,
    /// Room to keep on the file system of the store: below it what no build uses and no image needs is
    /// removed while building, oldest first; 0 for never [default: a twentieth of it, at most 2g]
    #[arg(
        long,
        value_name = "SIZE",
        env = "COFFERDAM_MIN_FREE_SPACE",
        hide_env_values = true,
        value_parser = size::parse
    )]
    pub(super) min_free_space: Option<u64>,
    /// How the VM's processor is run: auto, kvm or tcg
    #[arg(
        long,
        value_name = "ACCEL",
        env = "COFFERDAM_ACCEL",
        hide_env_values = true,
        default_value = "auto"
    )]
    pub(super) accel: Accel,
    /// By which driver the VM reaches its vsock device: auto, ring or kernel
    #[arg(
        long,
        value_name = "TRANSPORT",
        env = "COFFERDAM_TRANSPORT",
        hide_env_values = true,
        default_value = "auto"
    )]
    pub(super) transport: Transport,
    /// Who makes that device: embedded, host, DEVICE,uds=PATH or DEVICE,port=PATH
    ///
    /// `embedded` is this program, the fastest way by far. `host` is the kernel of this machine
    /// (/dev/vhost-vsock). DEVICE is the vhost-user socket of a device that is running already, such
    /// as vhost-device-vsock; it brings the connections of the VM to the Unix socket PATH_3325, or
    /// to PATH itself with `port=`. It serves one build at a time.
    #[arg(
        long,
        value_name = "VSOCK",
        env = "COFFERDAM_VSOCK",
        hide_env_values = true,
        default_value = "embedded"
    )]
    pub(super) vsock: Bridge,
}

/// Memory of a VM: as much as this machine can give it.
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
