//! One program for all targets: `FUZZ_TARGET` names the one to run, and `FUZZ_SEEDS` a directory to
//! which its seeds are written first.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use fuzz::Target;
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<Target> = OnceLock::new();

fn choose() -> Target {
    let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET is not set");
    let target = fuzz::target(&name).unwrap_or_else(|| panic!("no target is called {name}"));
    if let Some(dir) = std::env::var_os("FUZZ_SEEDS") {
        for (n, seed) in (target.seeds)().into_iter().enumerate() {
            std::fs::write(Path::new(&dir).join(format!("seed-{n}")), seed).expect("a directory");
        }
    }
    target
}

fuzz_target!(init: { TARGET.get_or_init(choose); }, |bytes: &[u8]| {
    if let Some(target) = TARGET.get() {
        (target.run)(bytes);
    }
});
