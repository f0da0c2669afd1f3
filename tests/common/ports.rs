//! Free ports for servers that need a number before they start.
//!
//! The range lies below the ports the kernel gives to outgoing connections, so that none of those takes a port between the
//! moment it was found free and the moment the server binds it. A server that still meets "Address already in use" is
//! started again with other ports by its own module.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::events::Random;

const FIRST: u64 = 20_000;
const COUNT: u64 = 12_000;

/// A port of the loopback address that nobody listens on.
pub fn free() -> u16 {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let mut random = Random::new((u64::from(std::process::id()) << 32) ^ Random::from_clock().next() ^ call);
    for _ in 0..200 {
        let port = u16::try_from(FIRST + random.below(COUNT)).expect("the range fits into a port number");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("200 ports of {FIRST}..{} are taken", FIRST + COUNT);
}
