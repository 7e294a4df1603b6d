//! `cargo xtask demo`: from nothing to a built and checked image.

mod bases;
mod tree;

use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::build;
use crate::image;
use crate::setup;
use crate::shell::{self, say};
use crate::workspace::{Workspace, make_dir};

/// What apt and dpkg write besides the files of packages.
const APT: &[&str] = &["var/lib/dpkg", "var/lib/apt", "var/cache", "var/log"];

/// Build the examples in a VM and check the images with independent tools.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also the larger examples: a Debian image with a package from the network, and a C project.
    #[arg(long)]
    all: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let bases: &[setup::Need] = if args.all { setup::BASES } else { &[] };
    setup::require(&[setup::VM, setup::CHECKERS, bases])?;
    let workspace = Workspace::find()?;
    let demo = Demo {
        cofferdam: build::cofferdam_release(&workspace)?,
        image: image::build(&workspace, &image::Args::default())?,
        examples: workspace.root.join("examples"),
        work: workspace.target.join("demo"),
    };
    make_dir(&demo.work)?;
    demo.hello()?;
    if args.all {
        demo.debian()?;
        demo.c_project()?;
    }
    say("\nAll done. The images are in the store of the demo:");
    shell::run(&mut demo.command(["images"]))?;
    say(format!(
        "\nTo use it yourself:\n    {} build --help",
        demo.cofferdam.display()
    ));
    Ok(())
}

/// What the examples are built with.
#[derive(Debug)]
struct Demo {
    cofferdam: PathBuf,
    image: PathBuf,
    examples: PathBuf,
    /// Contexts, outputs, and a store of the demo's own.
    work: PathBuf,
}

impl Demo {
    fn command<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = shell::command(&self.cofferdam, args);
        command
            .env("COFFERDAM_STORE", self.work.join("store"))
            .env("COFFERDAM_VM_IMAGE", &self.image);
        command
    }

    /// Builds a context, showing the command as one would type it.
    fn build(&self, context: &Path, args: &[&str]) -> Result<()> {
        say(format!(
            "\n$ cofferdam build {} {}",
            args.join(" "),
            context.display()
        ));
        shell::run(self.command(["build"]).args(args).arg(context))
    }

    /// A context: the files of an example, copied so that more can be put beside them.
    fn context(&self, example: &str) -> Result<PathBuf> {
        let context = self.work.join(example);
        make_dir(&context)?;
        let from = self.examples.join(example);
        for entry in std::fs::read_dir(&from).with_context(|| from.display().to_string())? {
            let entry = entry?;
            copy_in(&entry.path(), &context.join(entry.file_name()))?;
        }
        Ok(context)
    }

    fn hello(&self) -> Result<()> {
        say("\n== hello: a static busybox, three RUN steps in a VM");
        let context = self.context("hello")?;
        copy_in(Path::new("/bin/busybox"), &context.join("busybox"))?;
        let layout = self.fresh("hello.oci")?;
        let output = format!("type=oci,tar=false,dest={}", layout.display());
        self.build(&context, &["-t", "hello:demo", "-o", &output])?;
        let root = self.unpack(&layout, "demo", "hello.bundle")?;
        let expected = self.fresh("hello.expected")?;
        make_dir(&expected.join("bin"))?;
        make_dir(&expected.join("srv"))?;
        install(
            "755",
            &context.join("busybox"),
            &expected.join("bin/busybox"),
        )?;
        install(
            "644",
            &context.join("motd.txt"),
            &expected.join("srv/motd.txt"),
        )?;
        let applets = shell::text(&mut shell::command("/bin/busybox", ["--list"]))?;
        for applet in applets.lines().filter(|applet| *applet != "busybox") {
            symlink("/bin/busybox", expected.join("bin").join(applet))?;
        }
        let script = "#!/bin/sh\ncat /srv/motd.txt\necho \"hello from inside a cofferdam\"\n";
        std::fs::write(self.work.join("hello.sh"), script).context("expected script")?;
        install(
            "755",
            &self.work.join("hello.sh"),
            &expected.join("bin/hello"),
        )?;
        // Everything else was made by the build, whenever that was.
        let dated = [Path::new("bin/busybox"), Path::new("srv/motd.txt")];
        self.check(&expected, &root, &[], &|path| dated.contains(&path))
    }

    fn debian(&self) -> Result<()> {
        say("\n== debian: a package from the network, on a base made by mmdebstrap");
        let context = self.context("debian")?;
        bases::root(&context.join("debian.tar"), &[])?;
        let base = context.join("base.Dockerfile").display().to_string();
        self.build(&context, &["-f", &base, "-t", "debian:minbase"])?;
        let layout = self.fresh("debian.oci")?;
        let output = format!("type=oci,tar=false,dest={}", layout.display());
        self.build(&context, &["-t", "debian-hello:demo", "-o", &output])?;
        let root = self.unpack(&layout, "demo", "debian.bundle")?;
        let expected = self.fresh("debian.expected")?;
        make_dir(&expected)?;
        let mut tar = shell::command("tar", ["--extract", "--preserve-permissions"]);
        tar.args([
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
            "--file",
        ]);
        tar.arg(context.join("debian.tar"))
            .arg("--directory")
            .arg(&expected);
        shell::output(&mut tar)?;
        let package = bases::package("hello", &self.work)?;
        let mut unpack = shell::command("dpkg-deb", ["--extract"]);
        shell::output(unpack.arg(&package).arg(&expected))?;
        // Whose times change when something is put into them.
        let mut listed = bases::directories(&package)?;
        listed.insert("tmp".into());
        self.check(&expected, &root, APT, &|path| !listed.contains(path))
    }

    fn c_project(&self) -> Result<()> {
        say("\n== c-project: Lua from Debian's source package, compiled, and run from scratch");
        let context = self.context("c-project")?;
        bases::root(
            &context.join("toolchain.tar"),
            &["gcc", "libc6-dev", "make"],
        )?;
        bases::source(
            "lua5.4",
            ".orig.tar.gz",
            &context.join("lua.tar.gz"),
            &self.work,
        )?;
        let base = context.join("base.Dockerfile").display().to_string();
        self.build(&context, &["-f", &base, "-t", "debian:toolchain"])?;
        self.build(&context, &["--target", "check"])?;
        let layout = self.fresh("c-project.oci")?;
        let output = format!("type=oci,tar=false,dest={}", layout.display());
        self.build(
            &context,
            &["--target", "runtime", "-t", "lua:demo", "-o", &output],
        )?;
        let root = self.unpack(&layout, "demo", "c-project.bundle")?;
        let version = shell::text(&mut shell::command(root.join("bin/lua"), ["-v"]))?;
        say(format!("its /bin/lua says: {}", version.trim()));
        let expected = self.fresh("c-project.expected")?;
        for dir in ["bin", "srv"] {
            make_dir(&expected.join(dir))?;
        }
        install("755", &root.join("bin/lua"), &expected.join("bin/lua"))?;
        install(
            "644",
            &context.join("sieve.lua"),
            &expected.join("srv/sieve.lua"),
        )?;
        self.check(&expected, &root, &[], &|path| {
            path == Path::new("srv/sieve.lua")
        })
    }

    /// Compares an unpacked image with what it should be.
    fn check(
        &self,
        expected: &Path,
        found: &Path,
        except: &[&str],
        dated: &dyn Fn(&Path) -> bool,
    ) -> Result<()> {
        let owners = setup::is_root();
        let devices: &[&str] = if owners { &[] } else { &["dev"] };
        let rules = tree::Rules {
            owners,
            except: &[except, devices].concat(),
            dated,
        };
        let entries = tree::compare(expected, found, &rules)?;
        let of_owners = if owners { ", owners" } else { "" };
        say(format!(
            "its {entries} files and directories match: content, modes{of_owners}, times, links, \
             attributes"
        ));
        Ok(())
    }

    /// A path where nothing is.
    fn fresh(&self, name: &str) -> Result<PathBuf> {
        let path = self.work.join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path)?;
        }
        Ok(path)
    }

    /// Checks a layout with skopeo and unpacks it with umoci: neither shares code with us.
    fn unpack(&self, layout: &Path, tag: &str, bundle: &str) -> Result<PathBuf> {
        let reference = format!("oci:{}:{tag}", layout.display());
        let copy = format!("dir:{}", self.fresh("skopeo.copy")?.display());
        // Copying reads every blob and compares it with its digest.
        shell::output(&mut shell::command(
            "skopeo",
            ["--insecure-policy", "copy", &reference, &copy],
        ))?;
        let inspected = shell::output(&mut shell::command("skopeo", ["inspect", &reference]))?;
        let inspected: Value = serde_json::from_slice(&inspected).context("skopeo inspect")?;
        let layers = inspected
            .get("Layers")
            .and_then(Value::as_array)
            .map_or(0, Vec::len);
        ensure!(layers > 0, "skopeo finds no layers in {reference}");
        say(format!(
            "skopeo read {reference}: {layers} layers, all digests right"
        ));
        let bundle = self.fresh(bundle)?;
        let image = format!("{}:{tag}", layout.display());
        let mut umoci = shell::command("umoci", ["unpack", "--image", &image]);
        if !setup::is_root() {
            umoci.arg("--rootless");
        }
        shell::output(umoci.arg(&bundle))?;
        say("umoci unpacked it");
        Ok(bundle.join("rootfs"))
    }
}

/// Copies a file into a context. Its time is always the same: a step that is cached keeps the times
/// that files had when it ran, and they are compared.
fn copy_in(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    let time = SystemTime::UNIX_EPOCH + Duration::new(bases::EPOCH, 123_456_789);
    let file = File::options().write(true).open(to)?;
    file.set_modified(time).context("cannot set a time")
}

/// Copies a file with its time.
fn install(mode: &str, from: &Path, to: &Path) -> Result<()> {
    let mut install = shell::command("install", ["--preserve-timestamps", "--mode", mode]);
    shell::output(install.args([from, to])).map(drop)
}
