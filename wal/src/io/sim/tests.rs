//! What the simulated disk promises, and what it does not.

use super::*;
use crate::io::buffer::Buffer;
use crate::io::durable;
use crate::limits::PAGE;

fn page(byte: u8) -> Buffer {
    let mut page = Buffer::zeroed(PAGE).unwrap();
    page.fill(byte);
    page
}

fn read(disk: &SimDisk, name: &str) -> Option<Vec<u8>> {
    disk.platter().into_iter().find(|(_, found, _)| found == name).map(|(_, _, bytes)| bytes)
}

#[test]
fn unsynced_bytes_are_lost_and_synced_ones_stay() {
    let disk = SimDisk::default();
    let dir = disk.dir("d");
    durable::put_zeroed(&*dir, "a", 2 * PAGE as u64).unwrap();
    let file = dir.open("a", Access::ReadWrite).unwrap();
    file.write_durable_at(&page(1), 0).unwrap();
    file.write_at(&page(2), PAGE as u64).unwrap();
    disk.restart(Outcome::Nothing);
    let bytes = read(&disk, "a").unwrap();
    assert!(bytes[..PAGE].iter().all(|&byte| byte == 1) && bytes[PAGE..].iter().all(|&byte| byte == 0));
}

#[test]
fn after_a_failed_sync_the_next_one_says_ok_and_the_data_is_gone() {
    let disk = SimDisk::default();
    let dir = disk.dir("d");
    let file = durable::put_zeroed(&*dir, "a", PAGE as u64).unwrap();
    file.write_at(&page(3), 0).unwrap();
    disk.inject(Fault { at: disk.operations() + 1, only: None, forever: false, failure: Failure::Errno(5) });
    assert!(file.sync_range(0, PAGE as u64).is_err());
    file.sync_range(0, PAGE as u64).unwrap();
    let mut seen = page(0);
    file.read_at(&mut seen, 0).unwrap();
    assert_eq!(seen[0], 3, "the cache still shows it");
    disk.restart(Outcome::Everything);
    assert_eq!(read(&disk, "a").unwrap()[0], 0);
}

#[test]
fn a_rename_without_a_directory_sync_may_be_lost() {
    let disk = SimDisk::default();
    let dir = disk.dir("d");
    dir.create("a").unwrap().sync().unwrap();
    dir.sync().unwrap();
    dir.rename("a", "b").unwrap();
    disk.restart(Outcome::Nothing);
    assert!(read(&disk, "a").is_some() && read(&disk, "b").is_none());
}

#[test]
fn one_seed_gives_one_outcome() {
    let outcome = |seed| {
        let disk = SimDisk::default();
        let file = durable::put_zeroed(&*disk.dir("d"), "a", 64 * PAGE as u64).unwrap();
        for at in 0..64 {
            file.write_at(&page(at as u8), at * PAGE as u64).unwrap();
        }
        disk.restart(Outcome::Torn(seed));
        read(&disk, "a").unwrap()
    };
    assert_eq!(outcome(5), outcome(5));
    assert_ne!(outcome(5), outcome(6));
}

#[test]
fn an_interrupted_creation_is_all_or_nothing() {
    for at in 1.. {
        let disk = SimDisk::default();
        disk.stop_at(at);
        let done = durable::put(&*disk.dir("d"), "a", &[9; PAGE]).is_ok();
        for outcome in [Outcome::Nothing, Outcome::Everything, Outcome::Torn(at), Outcome::Torn(at + 1000)] {
            let disk = disk.fork();
            disk.restart(outcome);
            let found = read(&disk, "a");
            assert!(found.is_some() || !done);
            assert!(found.is_none_or(|bytes| bytes == vec![9; PAGE]), "stop at {at}, {outcome:?}");
        }
        if done {
            return;
        }
    }
}
