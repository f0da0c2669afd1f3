//! A power cut for one real file system, for provers only: what was not yet sent to its device never will be.
//!
//! Leaves everything else to the caller: which file system it is (it must be one of its own), and unmounting it after.

use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

/// What the journal in memory becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Journal {
    /// It is written out first: the metadata are as new as they can be, the data are not.
    Written = 1,
    /// It is lost, as in a power cut.
    Lost = 2,
}

/// `FS_IOC_SHUTDOWN` of ext4, xfs and f2fs. Its number claims that the kernel writes a word; in fact it reads one.
const SHUT_DOWN: Opcode = opcode::read::<u32>(b'X', 125);

/// Stops the file system that `file` is on: from here on all its reads, writes and syncs fail. Needs privileges.
#[expect(unsafe_code, reason = "no safe wrapper has this ioctl")]
pub fn shut_down_file_system(file: impl AsFd, journal: Journal) -> io::Result<()> {
    // SAFETY: for this number the file systems that know it copy one u32 from the pointer that is passed, which
    // `Setter` keeps alive and initialised over the call, and they write nothing back; the others know no such number
    // and answer ENOTTY. Unlike most numbers of group 'X' it means nothing else to any driver.
    unsafe { ioctl(file, Setter::<SHUT_DOWN, u32>::new(journal as u32)) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_the_kernels() {
        assert_eq!(SHUT_DOWN, 0x8004_587d);
    }
}
