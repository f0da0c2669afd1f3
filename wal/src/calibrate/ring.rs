//! The same measurement through io_uring, with one thread, as a log is written where the kernel allows it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Durability, Measured, Run, Shape, make_noise, stamp};
use crate::flushes::Flushes;
use crate::io::File;
use crate::io::uring::{Ring, Written};

pub(super) fn write(
    file: &Arc<dyn File>,
    len: u64,
    shape: Shape,
    durability: Durability,
    time: Duration,
    mut ring: Ring,
) -> io::Result<Measured> {
    let mut run = Run::new(len, shape, time)?;
    // The first writes bring their memory; the clock starts when they have all been there.
    let mut first = 2 * shape.depth as u64;
    let (mut begun, mut ended, mut done) = (BTreeMap::new(), Vec::new(), Measured::default());
    let (mut flushes, mut token) = (Flushes::default(), 0);
    loop {
        while begun.len() < shape.depth && (first > 0 || !run.is_over()) {
            let (number, offset) = run.next();
            let make = |block: &mut [u8]| {
                if token < 2 * shape.depth as u64 {
                    // Its memory comes back for the later ones.
                    make_noise(block);
                }
                stamp(block, number);
            };
            begun.insert(token, Instant::now());
            ring.write(token, file, offset, shape.block, make)?;
            token += 1;
        }
        if let Some(file) = flushes.begin() {
            ring.flush(file);
        }
        if begun.is_empty() {
            done.elapsed = run.begin.elapsed();
            return Ok(done);
        }
        if first > 0 && done.blocks >= first {
            first = 0;
            done = Measured::default();
            run.begin_again();
        }
        ring.wait(&mut ended, || true)?;
        for Written { token, result } in ended.drain(..) {
            let mut durable = |token| done.add(shape.block, begun.remove(&token).expect("it has begun").elapsed());
            match token {
                Some(token) => {
                    result?;
                    if durability == Durability::PerWrite {
                        durable(token);
                        done.syncs += 1;
                    } else {
                        flushes.returned(token, file, 0)?;
                    }
                }
                None => {
                    for (token, result) in flushes.ended(result) {
                        result?;
                        durable(token);
                    }
                    done.syncs += 1;
                }
            }
        }
    }
}
