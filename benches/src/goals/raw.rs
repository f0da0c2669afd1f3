//! The disk by itself, as a round needs it.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use wal::calibrate::{self, Durability, Measured, Shape};
use wal::checksum::crc32c;
use wal::io::File;
use wal::io::real::Backend;
use wal::limits::pages;

use crate::numbers::Latencies;

/// Sixteen raw measurements make a round's `W`: each takes this part of a load's time.
const PART: u32 = 10;
/// Latencies need more: p99.9 of a thousand writes is one write.
const LATENCY_PART: u32 = 2;

/// The disk itself.
pub(super) struct Raw<'a> {
    pub(super) file: &'a Arc<dyn File>,
    pub(super) backend: Backend,
    pub(super) bytes: u64,
    pub(super) seconds: Duration,
}

/// One durable write at a time.
pub(super) struct Alone {
    pub(super) latencies: Latencies,
    pub(super) per_second: f64,
}

impl Raw<'_> {
    /// `W` of this round in MB/s: the fastest of all ways to have no more than `in_flight` bytes on their way.
    pub(super) fn limit(&self, in_flight: usize) -> Result<f64, String> {
        let mut best = 0_f64;
        for depth in [1, 2, 4, 8] {
            for parts in [1, 2] {
                let shape = Shape { block: pages(in_flight.div_ceil(depth * parts)), depth };
                for durability in [Durability::PerWrite, Durability::SharedFlush] {
                    best = best.max(self.write(shape, durability, self.seconds / PART)?.bytes_per_second());
                }
            }
        }
        Ok(best / 1e6)
    }

    pub(super) fn alone(&self, bytes: usize) -> Result<Alone, String> {
        let shape = Shape { block: pages(bytes), depth: 1 };
        let measured = self.write(shape, Durability::PerWrite, self.seconds / LATENCY_PART)?;
        let mut latencies = Latencies::new();
        measured.latencies.iter().for_each(|latency| latencies.record(*latency));
        Ok(Alone { latencies, per_second: measured.blocks as f64 / measured.elapsed.as_secs_f64() })
    }

    /// `R` of this round in MB/s.
    pub(super) fn read(&self) -> Result<f64, String> {
        self.read_and(|_| ())
    }

    /// The same by a reader that checks what it reads.
    pub(super) fn read_and_sum(&self) -> Result<f64, String> {
        self.read_and(|block| {
            black_box(crc32c(block));
        })
    }

    fn read_and(&self, look: impl Fn(&[u8]) + Sync) -> Result<f64, String> {
        let mut best = 0_f64;
        for depth in [1, 2, 4, 8] {
            let shape = Shape { block: 1 << 20, depth };
            let measured = calibrate::read(&**self.file, self.bytes, shape, self.seconds / PART, &look);
            best = best.max(measured.map_err(|error| format!("raw read: {error}"))?.bytes_per_second());
        }
        Ok(best / 1e6)
    }

    fn write(&self, shape: Shape, durability: Durability, time: Duration) -> Result<Measured, String> {
        let measured = calibrate::write(self.file, self.bytes, shape, durability, time, self.backend);
        measured.map_err(|error| format!("raw write: {error}"))
    }
}
