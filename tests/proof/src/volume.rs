//! File systems of our own: an image in memory behind a loop device, formatted and mounted.
//!
//! Whatever happens, a [`Volume`] takes its mount and its loop device with it when it goes. Needs privileges; what cannot
//! be made is told in words, for a skip.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use wal::io::power::{Journal, shut_down_file_system};

/// How long a file system may stay busy, and how long it is left in peace in between.
const BUSY_LIMIT: Duration = Duration::from_secs(5);
const BUSY_PAUSE: Duration = Duration::from_millis(1);

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
        let image = folder.join(format!("{name}.img"));
        let made = File::create(&image).and_then(|file| file.set_len(kind.len()));
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
