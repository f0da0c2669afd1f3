//! The one safe order of creating, replacing and removing files.
//!
//! Create = temporary name, write, sync the file, rename, sync the directory. A crash at any point leaves the old
//! state or the new one, and perhaps a temporary file, which [`remove_leftovers`] takes away at the next start.

use std::io;
use std::sync::Arc;

use super::buffer::Buffer;
use super::{Access, Dir, File};
use crate::limits::{PAGE, pages};
use crate::planted::{self, Bug};

/// What temporary names end in. Nothing else in a directory of the log does.
pub const TEMPORARY: &str = ".new";

/// Bytes written at once while zeroing: large enough for full speed, small enough to stay off the disk's back.
const ZERO_CHUNK: usize = 1 << 20;

/// Creates or replaces `name` with `bytes`, padded with zeros to whole pages.
pub fn put(dir: &dyn Dir, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut buffer = Buffer::zeroed(pages(bytes.len()))?;
    buffer[..bytes.len()].copy_from_slice(bytes);
    let temporary = format!("{name}{TEMPORARY}");
    let file = create_afresh(dir, &temporary)?;
    file.write_at(&buffer, 0)?;
    if !planted::is(Bug::PublishUnsyncedFile) {
        file.sync()?;
    }
    publish(dir, &temporary, name)
}

/// Creates `name` with `len` zero bytes really written, so that later writes change no metadata.
pub fn put_zeroed(dir: &dyn Dir, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
    assert!(len.is_multiple_of(PAGE as u64), "segments are whole pages");
    let temporary = format!("{name}{TEMPORARY}");
    let file = create_afresh(dir, &temporary)?;
    if let Err(error) = zero(&*file, len) {
        // A full disk is the usual cause: give the space back at once. The name was never published.
        drop(file);
        let _ignored = dir.remove(&temporary);
        return Err(error);
    }
    finish_zeroed(dir, file, &temporary, name)
}

/// Makes `name`, `len` zero bytes, out of the file `old`, without asking the disk for space. Under its old name the file
/// is whole or gone after a crash: the zeros follow once the temporary name is durable.
pub fn renew(dir: &dyn Dir, old: &str, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
    let temporary = format!("{name}{TEMPORARY}");
    dir.rename(old, &temporary)?;
    dir.sync()?;
    let file = dir.open(&temporary, Access::ReadWrite)?;
    zero(&*file, len)?;
    finish_zeroed(dir, file, &temporary, name)
}

fn zero(file: &dyn File, len: u64) -> io::Result<()> {
    let zeros = Buffer::zeroed(ZERO_CHUNK.min(len as usize))?;
    let mut at = 0;
    while at < len {
        let chunk = (len - at).min(zeros.len() as u64) as usize;
        file.write_at(&zeros[..chunk], at)?;
        at += chunk as u64;
    }
    Ok(())
}

fn finish_zeroed(dir: &dyn Dir, file: Arc<dyn File>, temporary: &str, name: &str) -> io::Result<Arc<dyn File>> {
    if !planted::is(Bug::PublishUnsyncedSegment) {
        file.sync()?;
    }
    drop(file);
    publish(dir, temporary, name)?;
    dir.open(name, Access::ReadWrite)
}

/// Removes `name`; durable once this returns.
pub fn remove(dir: &dyn Dir, name: &str) -> io::Result<()> {
    dir.remove(name)?;
    dir.sync()
}

/// Removes what an interrupted creation left behind. Such a file was never published, so nothing depends on it.
pub fn remove_leftovers(dir: &dyn Dir) -> io::Result<()> {
    for name in dir.list()? {
        if name.ends_with(TEMPORARY) {
            dir.remove(&name)?;
        }
    }
    Ok(())
}

/// A new, empty file under a temporary name, which an interrupted creation may have left.
pub(crate) fn create_afresh(dir: &dyn Dir, temporary: &str) -> io::Result<Arc<dyn File>> {
    match dir.create(temporary) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            dir.remove(temporary)?;
            dir.create(temporary)
        }
        other => other,
    }
}

fn publish(dir: &dyn Dir, temporary: &str, name: &str) -> io::Result<()> {
    dir.rename(temporary, name)?;
    if planted::is(Bug::SkipDirectorySync) {
        return Ok(());
    }
    dir.sync()
}
