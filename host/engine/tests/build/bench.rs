//! A store, a context, and a stand-in for the VM.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use engine::build::{BuildError, BuildRequest, BuildResult, DockerfileSource, build};
use engine::event::{Comparison, Event, Outcome, Reporter};
use exec::{Cancel, Executor, Output, StepDone, StepError, StepNetwork, StepSpec, Stream};
use oci::Platform;
use oci::decompress::UnpackLimits;
use store::{OpenOptions, Store, TrustDomain, VmSteps};
use tempfile::TempDir;

/// A new one for each step.
static DAYS: AtomicU64 = AtomicU64::new(1);

/// Runs nothing; a layer with one file stands for what the command would have made. A step `exploit`
/// changes nothing that can be seen, but from then on the VM forges what the steps in it make.
struct StandIn<'a> {
    store: &'a Store,
    vm: VmSteps,
    owned: AtomicBool,
    /// Whether it may start its VM; without it, always.
    admitted: Option<&'a AtomicBool>,
    ran: Mutex<Vec<StepSpec>>,
}

impl Executor for StandIn<'_> {
    fn prepare(&self) {}

    fn is_admitted(&self, patience: Duration) -> bool {
        let admitted = || {
            self.admitted
                .is_none_or(|admitted| admitted.load(Ordering::SeqCst))
        };
        if !admitted() {
            thread::sleep(patience);
        }
        admitted()
    }

    fn run(
        &self,
        step: &StepSpec,
        output: &mut dyn Output,
        cancel: &Cancel,
    ) -> Result<StepDone, StepError> {
        assert!(self.is_admitted(Duration::ZERO), "{} runs", step.name);
        self.ran.lock().unwrap().push(step.clone());
        self.vm.begin(step.key, &step.name).unwrap();
        let command = step.args.last().unwrap().clone();
        output.write(Stream::Stdout, command.as_bytes());
        // `hold FILE` waits for the file, `hold FILE fail` fails then.
        if let Some(held) = command.strip_prefix("hold ") {
            let file = held.strip_suffix(" fail").unwrap_or(held);
            while !Path::new(file).exists() {
                if cancel.sleep(Duration::from_millis(5)) {
                    return Err(StepError::Cancelled);
                }
            }
            output.write(Stream::Stderr, b" and released");
        }
        if command == "fail" || command.ends_with(" fail") {
            return Err(StepError::Failed {
                status: 3,
                out_of_memory: None,
            });
        }
        if command == "lose the vm" {
            let cause = io::Error::other("60 s without an answer");
            return Err(StepError::Host(Box::new(cause)));
        }
        if command == "wait" && cancel.sleep(Duration::from_secs(60)) {
            return Err(StepError::Cancelled);
        }
        // What a step makes may depend on its name only, like `echo same`, or on the day, or only
        // its time may.
        let name = command.split(' ').next().unwrap();
        let day = DAYS.fetch_add(1, Ordering::SeqCst);
        let text = match name {
            "date" => format!("{day}"),
            _ if self.owned.load(Ordering::SeqCst) && name != "honest" => "forged".to_owned(),
            _ => name.to_owned(),
        };
        let mut tar = tar::Builder::new(self.store.layer_writer(&step.name).unwrap());
        if name == "exploit" {
            self.owned.store(true, Ordering::SeqCst);
            let layer = tar.into_inner().unwrap().finish().unwrap();
            return Ok(self.done(layer));
        }
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(text.len() as u64);
        if name == "touch" {
            header.set_mtime(1_000_000_000 + day);
        }
        tar.append_data(&mut header, format!("made-by-{name}"), text.as_bytes())
            .unwrap();
        let layer = tar.into_inner().unwrap().finish().unwrap();
        Ok(self.done(layer))
    }
}

impl StandIn<'_> {
    fn done(&self, layer: store::Layer) -> StepDone {
        StepDone {
            layer,
            provenance: self.vm.so_far(),
            peak_memory: 0,
        }
    }
}

/// Keeps how each step ended.
#[derive(Default)]
pub(crate) struct Watch {
    pub(crate) log: Mutex<Vec<u8>>,
    names: Mutex<BTreeMap<u32, String>>,
    ended: Mutex<Vec<(String, Outcome)>>,
    pub(crate) warnings: Mutex<Vec<String>>,
    statuses: Mutex<Vec<String>>,
    why: Mutex<BTreeMap<u32, String>>,
    compared: Mutex<BTreeMap<u32, Comparison>>,
}

impl Watch {
    /// What steps printed so far.
    pub(crate) fn printed(&self) -> String {
        String::from_utf8(self.log.lock().unwrap().clone()).unwrap()
    }

    /// Whether a step has waited until its VM may start.
    pub(crate) fn has_waited_for_its_vm(&self) -> bool {
        let statuses = self.statuses.lock().unwrap();
        statuses
            .iter()
            .any(|what| what == "waiting until the builder VM may start")
    }

    /// Whether a step has waited for another build that does the same.
    pub(crate) fn has_waited(&self) -> bool {
        let statuses = self.statuses.lock().unwrap();
        statuses
            .iter()
            .any(|what| what.starts_with("waiting for the same step"))
    }
}

/// Far more than anything here takes, even on a slow machine under load.
const BOUND: Duration = Duration::from_secs(60);

/// Waits until something has happened, while other threads are at work.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + BOUND;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} never happened");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What was told of steps, by their names.
fn by_name<T: Clone>(names: &BTreeMap<u32, String>, of: &BTreeMap<u32, T>) -> Vec<(String, T)> {
    let named = of
        .iter()
        .filter_map(|(step, t)| Some((names.get(step)?.clone(), t.clone())));
    named.collect()
}

#[track_caller]
fn only<'a, T: std::fmt::Debug>(list: &'a [(String, T)], part: &str) -> &'a T {
    let found = list.iter().find(|(name, _)| name.contains(part));
    &found
        .unwrap_or_else(|| panic!("no step with {part}: {list:?}"))
        .1
}

impl Reporter for Watch {
    fn report(&self, event: Event) {
        match event {
            Event::Started { step, name } => {
                self.names.lock().unwrap().insert(step, name);
            }
            Event::Ended { step, outcome, .. } => {
                let name = self
                    .names
                    .lock()
                    .unwrap()
                    .get(&step)
                    .cloned()
                    .unwrap_or_default();
                self.ended.lock().unwrap().push((name, outcome));
            }
            Event::Warning { text, .. } => self.warnings.lock().unwrap().push(text),
            Event::Explained { step, why } => {
                self.why.lock().unwrap().insert(step, why.to_string());
            }
            Event::Compared { step, comparison } => {
                self.compared.lock().unwrap().insert(step, comparison);
            }
            Event::Log { data, .. } => self.log.lock().unwrap().extend_from_slice(&data),
            Event::Status { what, .. } => self.statuses.lock().unwrap().push(what),
        }
    }
}

pub(crate) struct Bench {
    root: PathBuf,
    /// Unless it belongs to another process.
    _dir: Option<TempDir>,
}

/// What a build did.
pub(crate) struct Built {
    pub(crate) result: Result<BuildResult, BuildError>,
    pub(crate) ran: Vec<StepSpec>,
    pub(crate) ended: Vec<(String, Outcome)>,
    why: Vec<(String, String)>,
    compared: Vec<(String, Comparison)>,
}

impl Built {
    pub(crate) fn commands(&self) -> Vec<&str> {
        self.ran
            .iter()
            .map(|step| step.args.last().unwrap().as_str())
            .collect()
    }

    /// Why the step was found or not.
    #[track_caller]
    pub(crate) fn why(&self, part: &str) -> &str {
        only::<String>(&self.why, part)
    }

    /// What came of doing the step again.
    #[track_caller]
    pub(crate) fn compared(&self, part: &str) -> &Comparison {
        only(&self.compared, part)
    }

    #[track_caller]
    pub(crate) fn outcome(&self, part: &str) -> &Outcome {
        only(&self.ended, part)
    }
}

impl Bench {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        std::fs::create_dir(dir.path().join("context")).unwrap();
        Self {
            root: dir.path().to_owned(),
            _dir: Some(dir),
        }
    }

    /// With the store and the context of another one.
    pub(crate) fn over(root: PathBuf) -> Self {
        Self { root, _dir: None }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn context(&self) -> PathBuf {
        self.root.join("context")
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.root.join("store")
    }

    pub(crate) fn open(&self) -> Store {
        let options = OpenOptions {
            command: "test".to_owned(),
            read_only: false,
        };
        Store::open(&self.store(), &options).unwrap()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.context().join(name), text).unwrap();
    }

    pub(crate) fn request(&self, dockerfile: &str) -> BuildRequest {
        BuildRequest {
            context: Some(self.context()),
            dockerfile: DockerfileSource::Text(dockerfile.as_bytes().to_vec()),
            build_args: Vec::new(),
            target: None,
            no_cache: false,
            rebuild: None,
            trust_domain: TrustDomain::new("bench").unwrap(),
            timeout: None,
            step_timeout: None,
            idle_timeout: None,
            log_limit: store::StepLog::DEFAULT_LIMIT,
            explain: false,
            pull: false,
            labels: Vec::new(),
            tags: Vec::new(),
            outputs: Vec::new(),
            jobs: 4,
            platform: "linux/amd64".parse::<Platform>().unwrap(),
            named_contexts: Vec::new(),
            hosts: Vec::new(),
            network: StepNetwork::Default,
            reach: Default::default(),
            unpack: UnpackLimits::USUAL,
            epoch: None,
        }
    }

    pub(crate) fn build(&self, dockerfile: &str) -> Built {
        self.build_as(&self.request(dockerfile), &Cancel::new())
    }

    pub(crate) fn build_as(&self, request: &BuildRequest, cancel: &Cancel) -> Built {
        self.build_seen_by(&Watch::default(), request, cancel)
    }

    /// Builds while somebody else may look at what is told.
    pub(crate) fn build_seen_by(
        &self,
        watch: &Watch,
        request: &BuildRequest,
        cancel: &Cancel,
    ) -> Built {
        self.build_on(self.open(), None, watch, request, cancel)
    }

    /// The same with this store; `admitted` says whether steps may run.
    pub(crate) fn build_on(
        &self,
        store: Store,
        admitted: Option<&AtomicBool>,
        watch: &Watch,
        request: &BuildRequest,
        cancel: &Cancel,
    ) -> Built {
        let executor = StandIn {
            store: &store,
            vm: store.record_vm().unwrap(),
            owned: AtomicBool::new(false),
            admitted,
            ran: Mutex::default(),
        };
        let result = build(request, &store, &executor, watch, cancel);
        let ran = executor.ran.into_inner().unwrap();
        store.close().unwrap();
        let names = watch.names.lock().unwrap();
        Built {
            result,
            ran,
            why: by_name(&names, &watch.why.lock().unwrap()),
            compared: by_name(&names, &watch.compared.lock().unwrap()),
            ended: watch.ended.lock().unwrap().clone(),
        }
    }
}
