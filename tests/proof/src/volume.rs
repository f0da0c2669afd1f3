//! File systems of our own: an image in memory behind a loop device, formatted and mounted.
//!
//! A [`Volume`] takes its mount and its loop device with it when it goes; what a prover that was killed left behind goes
//! when the next one makes its [`folder`]. Needs privileges; what cannot be made is told in words, for a skip.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;
use wal::io::power::{Journal, shut_down_file_system};

/// How long a file system may stay busy, and how long it is left in peace in between.
const BUSY_LIMIT: Duration = Duration::from_secs(5);
const BUSY_PAUSE: Duration = Duration::from_millis(1);

/// In memory.
const MEMORY: &str = "/dev/shm";
/// Then comes the number of the process, so that nobody takes the folder of one that lives.
const PREFIX: &str = "penstock-proof-";

/// A folder in memory for images and mounts.
pub(crate) fn folder() -> Result<TempDir, String> {
    static CLEAN: Once = Once::new();
    CLEAN.call_once(clean_up_after_the_dead);
    let prefix = format!("{PREFIX}{}-", std::process::id());
    TempDir::with_prefix_in(prefix, MEMORY).map_err(|error| format!("{MEMORY}: {error}"))
}

/// Unmounts, detaches and removes what killed provers left. Whatever does not work here shows itself later, or harms nobody.
fn clean_up_after_the_dead() {
    let folders = std::fs::read_dir(MEMORY).into_iter().flatten().flatten();
    for folder in folders.map(|entry| entry.path()) {
        let name = folder.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(PREFIX));
        let owner = name.and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        // A dead one whose last threads still wait for its own disk has no command line any more.
        let lives = |owner: u32| std::fs::read(format!("/proc/{owner}/cmdline")).is_ok_and(|line| !line.is_empty());
        if owner.is_none_or(lives) {
            continue;
        }
        let inside = |path: &str| Path::new(path).starts_with(&folder);
        let loops = run("losetup", &["--list", "--noheadings", "--output", "NAME,BACK-FILE"]).unwrap_or_default();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        // The newest first: a file system, then the disk below it.
        for at in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)).filter(|at| inside(at)) {
            // By force: requests that nobody is left to answer end, and with them who waits for them.
            let _unmounted_or_shown_later = unmount(at, UnmountFlags::FORCE | UnmountFlags::DETACH);
        }
        for (device, _) in loops.lines().filter_map(|line| line.split_once(' ')).filter(|(_, file)| inside(file.trim()))
        {
            let _detached_or_shown_later = run("losetup", &["--detach", device]);
        }
        let _removed_or_left = std::fs::remove_dir_all(&folder);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ext4,
    Xfs,
}

impl Kind {
    pub(crate) const ALL: [Kind; 2] = [Kind::Ext4, Kind::Xfs];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
        }
    }

    /// Bytes of an image; xfs takes no smaller one.
    pub(crate) fn len(self) -> u64 {
        match self {
            Kind::Ext4 => 64 << 20,
            Kind::Xfs => 320 << 20,
        }
    }

    /// What a disk below it must keep or lose as one in a power cut. ext4 writes whole blocks again from its journal; xfs
    /// counts on the sectors it was made with.
    pub(crate) fn sector(self) -> usize {
        match self {
            Kind::Ext4 => 512,
            Kind::Xfs => 4096,
        }
    }

    fn format(self, device: &str) -> Result<(), String> {
        match self {
            Kind::Ext4 => run("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=0,nodiscard", device]),
            Kind::Xfs => run("mkfs.xfs", &["-q", "-f", "-K", "-s", "size=4096", device]),
        }
        .map(drop)
    }
}

/// Runs a program to its end; its output, or why there is none.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

/// A file system on a loop device, mounted or not.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) kind: Kind,
    device: String,
    at: PathBuf,
    is_mounted: bool,
    /// The image, unless another owns what is behind the device.
    image: Option<PathBuf>,
}

impl Volume {
    /// A fresh file system in `folder`, which is in memory, mounted.
    pub(crate) fn create(kind: Kind, folder: &Path, name: &str) -> Result<Volume, String> {
        Volume::with_room(kind, kind.len(), folder, name)
    }

    /// As [`create`](Volume::create), of `len` bytes.
    pub(crate) fn with_room(kind: Kind, len: u64, folder: &Path, name: &str) -> Result<Volume, String> {
        let image = folder.join(format!("{name}.img"));
        let made = File::create(&image).and_then(|file| file.set_len(len));
        made.map_err(|error| format!("{}: {error}", image.display()))?;
        let mut volume = Volume::on(kind, &image, &folder.join(name))?;
        volume.image = Some(image);
        Ok(volume)
    }

    /// A fresh file system on whatever is behind the file `backing`, mounted at `at`.
    pub(crate) fn on(kind: Kind, backing: &Path, at: &Path) -> Result<Volume, String> {
        std::fs::create_dir_all(at).map_err(|error| format!("{}: {error}", at.display()))?;
        let device = run("losetup", &["--find", "--show", &backing.display().to_string()])?;
        // From here on the drop gives the device back.
        let mut volume = Volume { kind, device, at: at.to_owned(), is_mounted: false, image: None };
        kind.format(&volume.device)?;
        volume.mount()?;
        Ok(volume)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.at
    }

    /// Mounts it; the journal is replayed.
    pub(crate) fn mount(&mut self) -> Result<(), String> {
        // Online discard would only slow down an image in memory; xfs refuses one UUID twice, and ours are copies of none.
        mount(self.device.as_str(), &self.at, self.kind.name(), MountFlags::NOATIME, None)
            .map_err(|error| format!("mount {} on {}: {error}", self.device, self.at.display()))?;
        self.is_mounted = true;
        Ok(())
    }

    /// Unmounts it, after which none of its pages is cached.
    pub(crate) fn unmount(&mut self) -> Result<(), String> {
        if !self.is_mounted {
            return Ok(());
        }
        let began = Instant::now();
        loop {
            match unmount(&self.at, UnmountFlags::empty()) {
                Ok(()) => break,
                // A program that another thread starts holds our open files until it is really that program.
                Err(Errno::BUSY) if began.elapsed() < BUSY_LIMIT => thread::sleep(BUSY_PAUSE),
                Err(error) => return Err(format!("unmount {}: {error}", self.at.display())),
            }
        }
        self.is_mounted = false;
        Ok(())
    }

    /// Cuts its power.
    pub(crate) fn cut(&self, handle: &File, journal: Journal) -> Result<(), String> {
        shut_down_file_system(handle, journal).map_err(|error| format!("shut down {}: {error}", self.kind.name()))
    }

    /// A handle for [`cut`](Volume::cut).
    pub(crate) fn handle(&self) -> Result<File, String> {
        File::open(&self.at).map_err(|error| format!("{}: {error}", self.at.display()))
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.is_mounted && self.unmount().is_err() {
            // Somebody still has a file open: out of sight now, gone with the last of them.
            let _gone_later = unmount(&self.at, UnmountFlags::DETACH);
        }
        if let Err(error) = run("losetup", &["--detach", &self.device]) {
            eprintln!("{} stays behind: {error}", self.device);
        }
        if let Some(image) = &self.image {
            let _in_a_folder_that_goes_too = std::fs::remove_file(image);
        }
    }
}
