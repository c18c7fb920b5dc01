//! What a run cost: processor time and memory of the server, processor time of the client, and how busy the
//! server's cores were, all read from `/proc`.
//!
//! The kernel accounts a running thread's time when it is switched or ticked, so a figure can be a few
//! milliseconds old: measure for a second or more.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::Result;

/// Takes a reading at the start and at the end of the measured phase.
#[derive(Debug)]
pub(crate) struct Sampler {
    server: Option<u32>,
    client_threads: usize,
    cores: Vec<usize>,
    /// The kernel's threads that do soft interrupts on those cores when there are too many of them.
    daemons: Vec<u32>,
    begin: Option<Reading>,
    end: Option<Reading>,
}

#[derive(Debug)]
struct Reading {
    at: Instant,
    client_cpu: Duration,
    server: Option<ServerReading>,
}

#[derive(Debug)]
struct ServerReading {
    /// Of the process.
    cpu: Duration,
    /// Of the kernel's threads that do soft interrupts on its cores.
    daemons: Duration,
    /// In ticks of a hundredth of a second.
    user_ticks: u64,
    system_ticks: u64,
    cores: Vec<CoreTicks>,
}

/// A core's ticks from `/proc/stat`, as far as they are told apart here.
#[derive(Clone, Copy, Debug, Default)]
struct CoreTicks {
    user: u64,
    system: u64,
    soft_interrupts: u64,
    idle: u64,
    other: u64,
}

impl Sampler {
    /// Watches the process `server`, if given, and the cores it may run on.
    ///
    /// # Errors
    /// There is no such process.
    pub(crate) fn new(server: Option<u32>) -> Result<Self> {
        let cores = server.map(allowed_cores).transpose()?.unwrap_or_default();
        let daemons = soft_interrupt_daemons(&cores)?;
        Ok(Self { server, client_threads: 1, cores, daemons, begin: None, end: None })
    }

    /// The client loads the server with so many threads; one, if not told.
    pub(crate) fn client_threads(mut self, threads: usize) -> Self {
        self.client_threads = threads;
        self
    }

    /// The measured phase starts now.
    ///
    /// # Errors
    /// The server is gone.
    pub(crate) fn begin(&mut self) -> Result<()> {
        self.begin = Some(self.read()?);
        Ok(())
    }

    /// The measured phase ends now.
    ///
    /// # Errors
    /// The server is gone.
    pub(crate) fn end(&mut self) -> Result<()> {
        self.end = Some(self.read()?);
        Ok(())
    }

    /// The cost of the measured phase, and per message if it had `messages` of them. How busy the client was
    /// is the mean over its threads.
    pub(crate) fn cost(&self, messages: u64) -> Value {
        let (Some(begin), Some(end)) = (&self.begin, &self.end) else {
            return Value::Null;
        };
        let per_message =
            |cpu: Duration| if messages == 0 { Value::Null } else { json!(micros(cpu) / messages as f64) };
        let seconds = end.at.duration_since(begin.at).as_secs_f64();
        let client_cpu = end.client_cpu - begin.client_cpu;
        let mut cost = json!({
            "seconds": seconds,
            "client_cpu_seconds": client_cpu.as_secs_f64(),
            "client_cpu_us_per_message": per_message(client_cpu),
            "client_threads": self.client_threads,
            "client_busy": client_cpu.as_secs_f64() / seconds / self.client_threads as f64,
        });
        let (Some(server_begin), Some(server_end)) = (&begin.server, &end.server) else {
            return cost;
        };
        let daemons = server_end.daemons.saturating_sub(server_begin.daemons);
        let server_cpu = server_end.cpu.saturating_sub(server_begin.cpu) + daemons;
        let cores = server_begin.cores.iter().zip(&server_end.cores).map(|(begin, end)| end.since(begin));
        let cores: Vec<Value> =
            self.cores.iter().zip(cores).map(|(core, ticks)| ticks.shares(*core)).collect();
        let busy =
            cores.iter().filter_map(|core| core["busy"].as_f64()).sum::<f64>() / cores.len().max(1) as f64;
        cost["server_cpu_seconds"] = json!(server_cpu.as_secs_f64());
        cost["server_cpu_us_per_message"] = per_message(server_cpu);
        cost["soft_interrupt_daemons_seconds"] = json!(daemons.as_secs_f64());
        cost["server_user_seconds"] = json!((server_end.user_ticks - server_begin.user_ticks) as f64 / 100.0);
        cost["server_system_seconds"] =
            json!((server_end.system_ticks - server_begin.system_ticks) as f64 / 100.0);
        cost["server_busy"] = json!(server_cpu.as_secs_f64() / seconds);
        cost["server_core_busy"] = json!(busy);
        cost["server_cores"] = json!(cores);
        cost
    }

    fn read(&self) -> Result<Reading> {
        Ok(Reading {
            at: Instant::now(),
            client_cpu: client_cpu(),
            server: self.server.map(|pid| read_server(pid, &self.cores, &self.daemons)).transpose()?,
        })
    }
}

impl CoreTicks {
    fn since(self, earlier: &Self) -> Self {
        Self {
            user: self.user - earlier.user,
            system: self.system - earlier.system,
            soft_interrupts: self.soft_interrupts - earlier.soft_interrupts,
            idle: self.idle - earlier.idle,
            other: self.other - earlier.other,
        }
    }

    fn shares(self, core: usize) -> Value {
        let total = (self.user + self.system + self.soft_interrupts + self.idle + self.other).max(1) as f64;
        json!({
            "core": core,
            "busy": 1.0 - self.idle as f64 / total,
            "user": self.user as f64 / total,
            "system": self.system as f64 / total,
            "soft_interrupts": self.soft_interrupts as f64 / total,
        })
    }
}

/// The resident memory of a process now and at its highest, in bytes.
///
/// # Errors
/// There is no such process.
pub(crate) fn resident_bytes(pid: u32) -> Result<(u64, u64)> {
    let status = read(&format!("/proc/{pid}/status"))?;
    let kib = |name: &str| {
        let value =
            field(&status, name).and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
        value.ok_or_else(|| format!("no {name} for process {pid}"))
    };
    Ok((kib("VmRSS:")? * 1024, kib("VmHWM:")? * 1024))
}

/// How many files a process may have open.
///
/// # Errors
/// There is no such process.
pub(crate) fn open_files_max(pid: u32) -> Result<u64> {
    let limits = read(&format!("/proc/{pid}/limits"))?;
    let limit =
        field(&limits, "Max open files").and_then(|value| value.split_whitespace().next()?.parse().ok());
    limit.ok_or_else(|| format!("no limit on open files for process {pid}").into())
}

/// The bytes of the kernel's slab caches: in all, and by name. `None` where they cannot be read.
pub(crate) fn slab_bytes() -> Option<Vec<(String, u64)>> {
    let slabs = fs::read_to_string("/proc/slabinfo").ok()?;
    // name active_objs num_objs objsize objperslab pagesperslab : tunables .. : slabdata active_slabs
    // num_slabs ..
    let caches = slabs.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let pages_per_slab: u64 = fields.get(5)?.parse().ok()?;
        let slabs: u64 = fields.get(14)?.parse().ok()?;
        Some(((*fields.first()?).to_owned(), slabs * pages_per_slab * PAGE_BYTES))
    });
    Some(caches.collect())
}

/// The cores a process may run on.
fn allowed_cores(pid: u32) -> Result<Vec<usize>> {
    let status = read(&format!("/proc/{pid}/status"))?;
    let list = field(&status, "Cpus_allowed_list:").unwrap_or_default();
    let mut cores = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cores.extend(first.parse::<usize>()?..=last.parse::<usize>()?);
    }
    Ok(cores)
}

fn client_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The process numbers of `ksoftirqd` on these cores; none where they cannot be seen.
fn soft_interrupt_daemons(cores: &[usize]) -> Result<Vec<u32>> {
    let names: Vec<String> = cores.iter().map(|core| format!("ksoftirqd/{core}")).collect();
    let mut daemons = Vec::new();
    for process in fs::read_dir("/proc")? {
        let process = process?;
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        if names.iter().any(|wanted| wanted == name.trim()) {
            daemons.push(pid);
        }
    }
    Ok(daemons)
}

/// The time a thread has run, in nanoseconds.
fn run_time(schedstat: &Path) -> u64 {
    // A thread may end between the listing and the reading; what it used is then lost to us.
    let stat = fs::read_to_string(schedstat).unwrap_or_default();
    stat.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or(0)
}

fn read_server(pid: u32, cores: &[usize], daemons: &[u32]) -> Result<ServerReading> {
    let mut nanoseconds = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).map_err(|_| format!("process {pid} is gone"))? {
        nanoseconds += run_time(&task?.path().join("schedstat"));
    }
    let daemons =
        daemons.iter().map(|daemon| run_time(Path::new(&format!("/proc/{daemon}/schedstat")))).sum();
    let stat = read(&format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything, so count from its end: utime is field 14, stime 15.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let tick = |index: usize| {
        after_name.split_whitespace().nth(index).and_then(|field| field.parse().ok()).unwrap_or(0)
    };
    Ok(ServerReading {
        cpu: Duration::from_nanos(nanoseconds),
        daemons: Duration::from_nanos(daemons),
        user_ticks: tick(11),
        system_ticks: tick(12),
        cores: core_ticks(cores)?,
    })
}

fn core_ticks(cores: &[usize]) -> Result<Vec<CoreTicks>> {
    let stat = read("/proc/stat")?;
    let ticks = cores.iter().map(|core| {
        let line = field(&stat, &format!("cpu{core} ")).unwrap_or_default();
        let ticks: Vec<u64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        let at = |index: usize| ticks.get(index).copied().unwrap_or(0);
        // user nice system idle iowait irq softirq steal
        CoreTicks {
            user: at(0) + at(1),
            system: at(2),
            soft_interrupts: at(6),
            idle: at(3) + at(4),
            other: at(5) + at(7),
        }
    });
    Ok(ticks.collect())
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))
}

fn read(path: &str) -> Result<String> {
    Ok(fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?)
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

const PAGE_BYTES: u64 = 4096;
