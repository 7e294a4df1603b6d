//! `cargo xtask demo`: from nothing to a built and checked image.

mod bases;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::build;
use crate::image;
use crate::setup;
use crate::shell::{self, say};
use crate::workspace::{Workspace, make_dir};

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
        cofferdam: build::cofferdam(&workspace)?,
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
            std::fs::copy(entry.path(), context.join(entry.file_name()))?;
        }
        Ok(context)
    }

    fn hello(&self) -> Result<()> {
        say("\n== hello: a static busybox, three RUN steps in a VM");
        let context = self.context("hello")?;
        std::fs::copy("/bin/busybox", context.join("busybox"))?;
        let layout = self.fresh("hello.oci")?;
        let output = format!("type=oci,tar=false,dest={}", layout.display());
        self.build(&context, &["-t", "hello:demo", "-o", &output])?;
        let root = self.unpack(&layout, "demo", "hello.bundle")?;
        let script = std::fs::read_to_string(root.join("bin/hello"))?;
        ensure!(
            script.contains("hello from inside a cofferdam"),
            "/bin/hello is not as expected"
        );
        ensure!(
            root.join("bin/sh").is_symlink(),
            "/bin/sh is not as expected"
        );
        say("umoci unpacked the image; /bin/hello and /bin/sh are as they should be");
        Ok(())
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
        ensure!(
            root.join("usr/bin/hello").is_file(),
            "/usr/bin/hello is missing"
        );
        say("umoci unpacked the image; /usr/bin/hello is there");
        Ok(())
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
        say(format!(
            "umoci unpacked the image; its /bin/lua says: {}",
            version.trim()
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
        let inspected = shell::text(&mut shell::command("skopeo", ["inspect", &reference]))?;
        let layers = inspected.matches("\"MIMEType\"").count();
        say(format!(
            "skopeo reads {reference}: {layers} layers, all digests right"
        ));
        let bundle = self.fresh(bundle)?;
        let image = format!("{}:{tag}", layout.display());
        let mut umoci = shell::command("umoci", ["unpack", "--image", &image]);
        if !setup::is_root() {
            umoci.arg("--rootless");
        }
        shell::output(umoci.arg(&bundle))?;
        Ok(bundle.join("rootfs"))
    }
}
