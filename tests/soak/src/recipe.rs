//! The builds to choose from: of all shapes, and few enough that processes need the same steps.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fastrand::Rng;

/// The directory of the build contexts, relative to the work directory, and their number.
const CONTEXT: &str = "contexts";
const CONTEXTS: u64 = 6;

/// The directory of steps, relative to the work directory.
pub(crate) const STEPS: &str = "steps";

/// The number of recipes.
pub(crate) const RECIPES: u64 = 40;

/// A build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recipe {
    /// The number of its context.
    pub(crate) context: u64,
    pub(crate) dockerfile: String,
    /// One of its steps fails.
    pub(crate) fails: bool,
}

impl Recipe {
    /// The recipe with this number, the same in each run.
    pub(crate) fn new(number: u64) -> Self {
        let mut rng = Rng::with_seed(number);
        let fails = number % 8 == 7;
        let mut dockerfile = String::from("FROM scratch AS base\n");
        steps(&mut rng, &mut dockerfile, 4);
        // A diamond: two stages on the same one, and one that copies from both.
        for stage in ["left", "right"] {
            dockerfile.push_str(&format!("FROM base AS {stage}\n"));
            steps(&mut rng, &mut dockerfile, 3);
            dockerfile.push_str(&format!("RUN echo {stage} >{stage}\n"));
        }
        dockerfile.push_str("FROM base\nCOPY --from=left /left /l\nCOPY --from=right /right /r\n");
        steps(&mut rng, &mut dockerfile, 3);
        if fails {
            dockerfile.push_str("RUN echo this one fails; exit 3\n");
        }
        Self {
            context: rng.u64(..CONTEXTS),
            dockerfile,
            fails,
        }
    }
}

impl Recipe {
    /// The directory of its context.
    pub(crate) fn context_in(&self, work: &Path) -> PathBuf {
        work.join(CONTEXT).join(self.context.to_string())
    }
}

/// Some steps from a small choice, so that recipes have beginnings in common.
fn steps(rng: &mut Rng, dockerfile: &mut String, most: u64) {
    for _ in 0..rng.u64(1..=most) {
        let n = rng.u64(..4);
        let step = match rng.u64(..7) {
            0 => format!("COPY small-{n} /app/\n"),
            1 => "COPY . /all/\n".to_owned(),
            2 => format!("WORKDIR /work/{n}\n"),
            3 => format!("RUN yes line-{n} | head -c {}000 >made-{n}\n", 1 + n * 40),
            4 => format!(
                "RUN i=0; while [ $i -lt 60 ]; do echo says $i; i=$((i+1)); done; mkdir d{n}\n"
            ),
            5 => format!("RUN sleep 0.0{n}; echo {n} >slow-{n}; ln -s slow-{n} link\n"),
            _ => format!("ENV N={n}\nRUN mkdir -p a/b; echo $N >a/b/env\n"),
        };
        dockerfile.push_str(&step);
    }
}

/// Creates the directories of the contexts, and the one for steps.
pub(crate) fn make_dirs(work: &Path) -> io::Result<()> {
    fs::create_dir_all(work.join(STEPS))?;
    for number in 0..CONTEXTS {
        let mut rng = Rng::with_seed(number);
        let dir = work.join(CONTEXT).join(number.to_string());
        fs::create_dir_all(dir.join("deep/er"))?;
        for file in 0..4 {
            let bytes = vec![b'a' + u8::try_from(number).unwrap_or(0); rng.usize(..3000)];
            fs::write(dir.join(format!("small-{file}")), bytes)?;
        }
        let large: Vec<u8> = std::iter::repeat_with(|| rng.u8(..))
            .take(300_000)
            .collect();
        fs::write(dir.join("deep/er/large"), large)?;
    }
    Ok(())
}
