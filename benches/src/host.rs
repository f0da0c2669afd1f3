//! What the host counts: sectors of a block device, CPU time, memory, context switches, load.
//!
//! Promises that a number that the host does not have is `None`, never zero: a tmpfs has no block device, and inside some
//! containers `/sys` is empty.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// The kernel counts in these, whatever the device's sectors are.
const SECTOR: u64 = 512;

/// The block device below a directory, as `/sys` knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlockDevice {
    /// `/sys/dev/block/MAJOR:MINOR`
    path: PathBuf,
    pub(crate) number: String,
}

/// Counters of a block device since the host started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DeviceCounts {
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
    /// Flushes of the disk's cache. A partition shows none: they are counted for the whole disk.
    pub(crate) flushes: u64,
}

impl BlockDevice {
    /// The device that holds `dir`, if it is a block device that the host shows.
    pub(crate) fn below(dir: &Path) -> Option<BlockDevice> {
        let device = fs::metadata(dir).ok()?.dev();
        let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        let path = PathBuf::from("/sys/dev/block").join(&number);
        path.join("stat").exists().then_some(BlockDevice { path, number })
    }

    pub(crate) fn name(&self) -> String {
        let target = fs::read_link(&self.path).ok();
        let name = target.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        name.unwrap_or_else(|| self.number.clone())
    }

    pub(crate) fn counts(&self) -> Option<DeviceCounts> {
        let own = parse_stat(&fs::read_to_string(self.path.join("stat")).ok()?)?;
        let flushes = match self.whole_disk() {
            Some(disk) => parse_stat(&fs::read_to_string(disk.join("stat")).ok()?)?.flushes,
            None => own.flushes,
        };
        Some(DeviceCounts { flushes, ..own })
    }

    /// A setting of its request queue: `write_cache`, `fua`, `logical_block_size`.
    pub(crate) fn queue(&self, setting: &str) -> Option<String> {
        let disk = self.whole_disk().unwrap_or_else(|| self.path.clone());
        fs::read_to_string(disk.join("queue").join(setting)).ok().map(|text| text.trim().to_owned())
    }

    /// Bytes that it was told to forget.
    fn discarded(&self) -> Option<u64> {
        parse_discarded(&fs::read_to_string(self.path.join("stat")).ok()?)
    }

    fn whole_disk(&self) -> Option<PathBuf> {
        self.path.join("partition").exists().then(|| fs::canonicalize(&self.path).ok()?.parent().map(Path::to_owned))?
    }
}

/// One line of `/sys/block/DEVICE/stat`: reads 1, sectors read 3, sectors written 7, flushes 16 (kernels since 5.5).
fn parse_stat(line: &str) -> Option<DeviceCounts> {
    let fields: Vec<u64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    Some(DeviceCounts {
        read_bytes: fields.get(2)? * SECTOR,
        written_bytes: fields.get(6)? * SECTOR,
        flushes: fields.get(15).copied().unwrap_or_default(),
    })
}

/// Sectors discarded are field 13 of that line (kernels since 4.18).
fn parse_discarded(line: &str) -> Option<u64> {
    line.split_whitespace().nth(13)?.parse().ok().map(|sectors: u64| sectors * SECTOR)
}

/// Longest wait for a disk to forget what was removed from it.
const FORGETS_WITHIN: Duration = Duration::from_secs(20);
/// A disk that was told nothing for so long has been told everything.
const FORGETS_EVERY: Duration = Duration::from_millis(200);

/// Waits until what was removed below `dir` is gone from the disk as well. Where a file system is mounted with `discard`, it
/// tells the disk behind the next commit, and reads and writes beside that take twice as long: those of whoever measures next.
pub(crate) fn forgotten(dir: &Path) {
    let Some(device) = BlockDevice::below(dir) else { return };
    if let Ok(dir) = fs::File::open(dir) {
        let _commits_by_itself_after_some_seconds = rustix::fs::syncfs(dir);
    }
    let until = Instant::now() + FORGETS_WITHIN;
    let mut seen = device.discarded();
    while Instant::now() < until {
        std::thread::sleep(FORGETS_EVERY);
        let now = device.discarded();
        if now == seen {
            return;
        }
        seen = now;
    }
}

/// The counters of all devices below some directories, each device once.
pub(crate) struct Devices(Vec<BlockDevice>);

impl Devices {
    /// `None` when one of them is not on a block device: a sum without it would be wrong.
    pub(crate) fn below(dirs: &[PathBuf]) -> Option<Devices> {
        let mut found: Vec<BlockDevice> = Vec::new();
        for dir in dirs {
            let device = BlockDevice::below(dir)?;
            if !found.contains(&device) {
                found.push(device);
            }
        }
        Some(Devices(found))
    }

    pub(crate) fn counts(&self) -> Option<DeviceCounts> {
        let mut sum = DeviceCounts::default();
        for device in &self.0 {
            let counts = device.counts()?;
            sum.read_bytes += counts.read_bytes;
            sum.written_bytes += counts.written_bytes;
            sum.flushes += counts.flushes;
        }
        Some(sum)
    }
}

/// CPU time of all threads of this process, user and system.
pub(crate) fn process_cpu() -> Duration {
    duration(clock_gettime(ClockId::ProcessCPUTime))
}

/// CPU time of the calling thread.
pub(crate) fn thread_cpu() -> Duration {
    duration(clock_gettime(ClockId::ThreadCPUTime))
}

/// CPU time of all threads of another process, in the kernel's ticks of (mostly) 10 ms. Children are not counted.
pub(crate) fn cpu_of(process: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name before the last parenthesis may hold anything; user and system time are fields 14 and 15.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_secs_f64((user + system) as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// Pages of 2 MiB that are reserved and that nobody uses.
pub(crate) fn huge_pages_free() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    meminfo.lines().find_map(|line| line.strip_prefix("HugePages_Free:"))?.trim().parse().ok()
}

/// Ticks of all processors since the host started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Busy {
    used: u64,
    all: u64,
}

impl Busy {
    /// The part of the time since `before` in which a processor did something.
    pub(crate) fn since(self, before: Busy) -> Option<f64> {
        let all = self.all.checked_sub(before.all).filter(|all| *all > 0)?;
        Some(self.used.saturating_sub(before.used) as f64 / all as f64)
    }
}

/// What all processors did so far.
pub(crate) fn busy() -> Option<Busy> {
    parse_busy(fs::read_to_string("/proc/stat").ok()?.lines().next()?)
}

/// `cpu  user nice system idle iowait irq softirq steal guest guest_nice`; guests are counted in user and nice already.
fn parse_busy(line: &str) -> Option<Busy> {
    let ticks: Vec<u64> = line.split_whitespace().skip(1).take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
    let all = ticks.iter().sum();
    Some(Busy { used: all - ticks.get(3)? - ticks.get(4)?, all })
}

fn duration(time: rustix::time::Timespec) -> Duration {
    Duration::try_from(time).unwrap_or_default()
}

/// Memory of this process in bytes.
pub(crate) fn resident() -> Option<u64> {
    of_process("VmRSS:").map(|kib| kib * 1024)
}

/// The most of it since the last [`forget_memory_peak`].
pub(crate) fn memory_peak() -> Option<u64> {
    of_process("VmHWM:").map(|kib| kib * 1024)
}

pub(crate) fn threads() -> Option<u64> {
    of_process("Threads:")
}

fn of_process(name: &str) -> Option<u64> {
    field(&fs::read_to_string("/proc/self/status").ok()?, name)
}

/// Where the kernel allows it; without it the peak is that of the whole process.
pub(crate) fn forget_memory_peak() {
    let _not_everywhere = fs::write("/proc/self/clear_refs", "5");
}

/// Times that threads of this process other than the calling one went to sleep by themselves: before each of them but the
/// first they were woken.
pub(crate) fn wake_ups_of_others() -> Option<u64> {
    let own = rustix::thread::gettid().as_raw_nonzero().to_string();
    let mut sum = 0;
    for task in fs::read_dir("/proc/self/task").ok()? {
        let task = task.ok()?;
        if task.file_name().to_string_lossy() != own {
            // A thread may end while we look.
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            sum += field(&status, "voluntary_ctxt_switches:").unwrap_or_default();
        }
    }
    Some(sum)
}

fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Runnable processes, averaged over the last minute: on a busy host the numbers beside it are worth less.
pub(crate) fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// Bytes of the files below `dir` as they occupy the disk.
pub(crate) fn disk_use(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let sizes = entries.filter_map(Result::ok).map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_use(&entry.path()),
        Ok(metadata) => metadata.blocks() * SECTOR,
        Err(_) => 0,
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_of_the_kernels_line_are_the_right_ones() {
        let line =
            "3475609 76031 444284442 6409512 7073989 344686 556868480 2423259 0 1369980 9595662 1 2 3 4 2622412 6";
        let expected =
            DeviceCounts { read_bytes: 444_284_442 * 512, written_bytes: 556_868_480 * 512, flushes: 2_622_412 };
        assert_eq!(parse_stat(line), Some(expected));
        assert_eq!(parse_discarded(line), Some(3 * 512));
        assert_eq!(parse_stat("1 2 3"), None);
    }

    #[test]
    fn idle_processors_and_those_that_wait_for_a_disk_are_not_busy() {
        let (before, after) = (parse_busy("cpu  10 0 10 70 10 0 0 0 0 0"), parse_busy("cpu  30 5 20 90 30 1 2 2 9 9"));
        assert_eq!(after.unwrap().since(before.unwrap()), Some(0.5));
        assert_eq!(before.unwrap().since(before.unwrap()), None);
        assert_eq!(parse_busy("cpu"), None);
    }

    #[test]
    fn another_process_has_cpu_time_while_it_is_there() {
        assert!(cpu_of(std::process::id()).is_some());
        assert_eq!(cpu_of(u32::MAX), None);
    }

    #[test]
    fn a_directory_without_a_block_device_has_no_counters() {
        assert_eq!(BlockDevice::below(Path::new("/proc")), None);
        assert!(Devices::below(&[PathBuf::from("/proc")]).is_none());
    }

    #[test]
    fn a_thread_that_sleeps_and_is_woken_counts_and_the_caller_does_not() {
        let (to, from) = std::sync::mpsc::channel::<()>();
        let (back, answered) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let (came, here) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || {
                came.send(()).unwrap();
                while from.recv().is_ok() {
                    back.send(()).unwrap();
                }
            });
            here.recv().unwrap();
            let before = wake_ups_of_others().unwrap();
            // How often it slept between two messages is the scheduler's choice; that it did at all is not.
            while wake_ups_of_others().unwrap() == before {
                to.send(()).unwrap();
                answered.recv().unwrap();
            }
            drop(to);
        });
        assert!(memory_peak().unwrap() >= resident().unwrap() / 2 && threads().unwrap() >= 1);
    }
}
