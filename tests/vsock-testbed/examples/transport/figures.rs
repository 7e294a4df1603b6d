//! What a measurement costs, and the line of JSON about it.

use std::fs;
use std::time::{Duration, Instant};

use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// A running measurement.
#[derive(Debug)]
pub(crate) struct Meter {
    /// This process and its helpers.
    pids: Vec<u32>,
    used: Duration,
    began: Instant,
}

/// What was measured.
#[derive(Debug)]
pub(crate) struct Cost {
    took: Duration,
    used: Duration,
    peak_rss: u64,
}

impl Meter {
    /// Begins; `helpers` are processes whose CPU time counts as well.
    pub(crate) fn start(helpers: &[u32]) -> Self {
        let pids = [&[std::process::id()], helpers].concat();
        // Resets the peak (proc(5), clear_refs).
        fs::write("/proc/self/clear_refs", "5").ok();
        Self {
            used: cpu_time(&pids),
            pids,
            began: Instant::now(),
        }
    }

    /// Ends.
    pub(crate) fn stop(self) -> Cost {
        let took = self.began.elapsed();
        Cost {
            took,
            used: cpu_time(&self.pids).saturating_sub(self.used),
            peak_rss: peak_rss(),
        }
    }
}

impl Cost {
    /// Prints the line about a transfer.
    pub(crate) fn report(&self, case: Case<'_>, bytes: u64) {
        self.print(case, &self.speed(bytes));
    }

    /// Prints the line about two transfers at once, with the share of the slower one.
    pub(crate) fn report_two(&self, case: Case<'_>, bytes: u64, split: f64) {
        let figures = format!("\"streams\":2,\"split\":{split},{}", self.speed(bytes));
        self.print(case, &figures);
    }

    /// Prints the line about round trips.
    pub(crate) fn report_round_trip(
        &self,
        path: &str,
        direction: &str,
        chunk: usize,
        time: Duration,
    ) {
        let figures = format!("\"round_trip_us\":{}", time.as_secs_f64() * 1e6);
        self.print(Case::of(path, direction, chunk), &figures);
    }

    /// Prints the line about idle time.
    pub(crate) fn report_idle(&self, path: &str) {
        let share = self.used.as_secs_f64() / self.took.as_secs_f64();
        self.print(
            Case::of(path, "idle", 0),
            &format!("\"cpu_s_per_s\":{share}"),
        );
    }

    /// Prints the line about the memory that a transfer of this many GiB took.
    pub(crate) fn report_memory(&self, path: &str, gib: u64, guest: u64) {
        let figures = format!(
            "\"gib\":{gib},\"guest_peak_rss_mib\":{}",
            as_float(guest) / as_float(1 << 20)
        );
        self.print(Case::of(path, "memory", 0), &figures);
    }

    fn speed(&self, bytes: u64) -> String {
        let mib = as_float(bytes >> 20);
        format!(
            "\"mib_s\":{},\"cpu_s_per_gib\":{}",
            mib / self.took.as_secs_f64(),
            self.used.as_secs_f64() * 1024.0 / mib,
        )
    }

    #[expect(clippy::print_stdout, reason = "the report is its output")]
    fn print(&self, case: Case<'_>, figures: &str) {
        let Case {
            path,
            direction,
            consume,
            chunk,
        } = case;
        println!(
            "{{\"path\":\"{path}\",\"direction\":\"{direction}\",\"consume\":\"{consume}\",\
             \"chunk\":{chunk},{figures},\"peak_rss_mib\":{}}}",
            self.peak_mib(),
        );
    }

    fn peak_mib(&self) -> f64 {
        as_float(self.peak_rss) / as_float(1 << 20)
    }
}

/// What is measured. A dash is for what makes no difference.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case<'a> {
    /// The transport.
    pub(crate) path: &'a str,
    /// Which side sends.
    pub(crate) direction: &'a str,
    /// What the receiver does with the bytes.
    pub(crate) consume: &'a str,
    /// Bytes of one send.
    pub(crate) chunk: usize,
}

impl<'a> Case<'a> {
    /// A case where it makes no difference what the receiver does.
    fn of(path: &'a str, direction: &'a str, chunk: usize) -> Self {
        Self {
            path,
            direction,
            consume: "-",
            chunk,
        }
    }
}

/// CPU time of processes; one that has ended counts as zero.
fn cpu_time(pids: &[u32]) -> Duration {
    let of = |pid: &u32| {
        let pid = Pid::from_raw(i32::try_from(*pid).ok()?);
        let clock = clock_getcpuclockid(pid).ok()?;
        clock_gettime(clock).ok().map(Duration::from)
    };
    pids.iter().filter_map(of).sum()
}

/// Peak resident bytes of this process, without shared memory, which is the guest's.
fn peak_rss() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.unwrap_or(0) << 10
    };
    of("VmHWM:").saturating_sub(of("RssShmem:"))
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn as_float(number: u64) -> f64 {
    number as f64
}
