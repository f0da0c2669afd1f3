//! What a stretch of time cost the host: CPU, bytes of the block devices, memory.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::host::{self, DeviceCounts, Devices};

/// CPU time that the harness itself spends, added up by its threads, so that it can be taken off.
#[derive(Debug, Default)]
pub(crate) struct Generator(AtomicU64);

impl Generator {
    /// Runs `work` on account of the harness.
    pub(crate) fn own<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = host::thread_cpu();
        let result = work();
        let spent = host::thread_cpu().saturating_sub(before);
        self.0.fetch_add(u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        result
    }

    fn spent(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// A stretch of time that has begun.
pub(crate) struct Meter<'a> {
    devices: Option<Devices>,
    generator: &'a Generator,
    begin: Reading,
    at: Instant,
}

/// What a stretch of time cost, or the counters at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    pub(crate) elapsed: Duration,
    /// Of all threads of the process but for the harness's own work. Work that the kernel does on threads of its own shows
    /// in no process.
    pub(crate) cpu: Duration,
    pub(crate) generator_cpu: Duration,
    /// Of all processes that use the devices.
    pub(crate) device: Option<DeviceCounts>,
    pub(crate) resident_max: Option<u64>,
}

impl<'a> Meter<'a> {
    pub(crate) fn start(dirs: &[PathBuf], generator: &'a Generator) -> Meter<'a> {
        host::forget_memory_peak();
        let devices = Devices::below(dirs);
        let begin = counters(devices.as_ref(), generator, Duration::ZERO);
        Meter { devices, generator, begin, at: Instant::now() }
    }

    pub(crate) fn read(&self) -> Reading {
        let now = counters(self.devices.as_ref(), self.generator, self.at.elapsed());
        let generator_cpu = now.generator_cpu.saturating_sub(self.begin.generator_cpu);
        let device = now.device.zip(self.begin.device).map(|(now, begin)| DeviceCounts {
            read_bytes: now.read_bytes.saturating_sub(begin.read_bytes),
            written_bytes: now.written_bytes.saturating_sub(begin.written_bytes),
            flushes: now.flushes.saturating_sub(begin.flushes),
        });
        Reading {
            cpu: now.cpu.saturating_sub(self.begin.cpu).saturating_sub(generator_cpu),
            generator_cpu,
            device,
            ..now
        }
    }
}

fn counters(devices: Option<&Devices>, generator: &Generator, elapsed: Duration) -> Reading {
    Reading {
        elapsed,
        cpu: host::process_cpu(),
        generator_cpu: generator.spent(),
        device: devices.and_then(Devices::counts),
        resident_max: host::memory_peak(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_harness_pays_for_its_own_work() {
        let generator = Generator::default();
        let meter = Meter::start(&[PathBuf::from("/proc")], &generator);
        let until = host::thread_cpu() + Duration::from_millis(20);
        generator.own(|| while host::thread_cpu() < until {});
        let reading = meter.read();
        assert!(reading.generator_cpu >= Duration::from_millis(19), "{reading:?}");
        assert_eq!(reading.device, None, "there is no block device below /proc");
    }
}
