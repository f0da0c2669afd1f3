//! RocksDB by its C interface, with its own settings but for one: each write syncs the log before it returns.

use std::ffi::{CStr, CString, c_char, c_uchar};
use std::path::Path;
use std::ptr::{self, NonNull};

use crate::stores::{Producer, Store};

/// What `rocksdb/c.h` declares; a thing of it is known by its address alone.
mod c {
    use std::ffi::{c_char, c_uchar};

    pub(super) enum Database {}
    pub(super) enum Options {}
    pub(super) enum WriteOptions {}
    pub(super) enum WriteBatch {}

    #[link(name = "rocksdb")]
    unsafe extern "C" {
        pub(super) fn rocksdb_options_create() -> *mut Options;
        pub(super) fn rocksdb_options_destroy(options: *mut Options);
        pub(super) fn rocksdb_options_set_create_if_missing(options: *mut Options, yes: c_uchar);
        pub(super) fn rocksdb_open(
            options: *const Options,
            name: *const c_char,
            error: *mut *mut c_char,
        ) -> *mut Database;
        pub(super) fn rocksdb_close(database: *mut Database);
        pub(super) fn rocksdb_writeoptions_create() -> *mut WriteOptions;
        pub(super) fn rocksdb_writeoptions_destroy(options: *mut WriteOptions);
        pub(super) fn rocksdb_writeoptions_set_sync(options: *mut WriteOptions, yes: c_uchar);
        pub(super) fn rocksdb_writebatch_create() -> *mut WriteBatch;
        pub(super) fn rocksdb_writebatch_destroy(batch: *mut WriteBatch);
        pub(super) fn rocksdb_writebatch_clear(batch: *mut WriteBatch);
        pub(super) fn rocksdb_writebatch_put(
            batch: *mut WriteBatch,
            key: *const c_char,
            key_len: usize,
            value: *const c_char,
            value_len: usize,
        );
        pub(super) fn rocksdb_write(
            database: *mut Database,
            options: *const WriteOptions,
            batch: *mut WriteBatch,
            error: *mut *mut c_char,
        );
        pub(super) fn rocksdb_free(memory: *mut std::ffi::c_void);
    }
}

const YES: c_uchar = 1;

struct RocksDb(NonNull<c::Database>);

// SAFETY: a database may be written by several threads at once, without locks of theirs; so RocksDB promises.
unsafe impl Sync for RocksDb {}

pub(crate) fn open(dir: &Path) -> Result<Box<dyn Store>, String> {
    let name = CString::new(dir.join("db").into_os_string().into_encoded_bytes()).map_err(|error| error.to_string())?;
    let mut error = ptr::null_mut();
    // SAFETY: the options live until they are destroyed, the database does not refer to them afterwards; `name` ends in a zero
    // and outlives the call, and so does `error`.
    let database = unsafe {
        let options = c::rocksdb_options_create();
        c::rocksdb_options_set_create_if_missing(options, YES);
        let database = c::rocksdb_open(options, name.as_ptr(), &mut error);
        c::rocksdb_options_destroy(options);
        database
    };
    told(error)?;
    Ok(Box::new(RocksDb(NonNull::new(database).ok_or("no database, and no reason")?)))
}

/// What RocksDB said went wrong, if it said something.
fn told(error: *mut c_char) -> Result<(), String> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: what it says ends in a zero, is ours, and was allocated by it.
    unsafe {
        let text = CStr::from_ptr(error).to_string_lossy().into_owned();
        c::rocksdb_free(error.cast());
        Err(text)
    }
}

impl Store for RocksDb {
    fn producer(&self) -> Result<Box<dyn Producer + '_>, String> {
        // SAFETY: what is made here is destroyed once, when the producer is dropped.
        let (options, batch) = unsafe {
            let options = c::rocksdb_writeoptions_create();
            c::rocksdb_writeoptions_set_sync(options, YES);
            (options, c::rocksdb_writebatch_create())
        };
        Ok(Box::new(RocksDbProducer { database: self, options, batch }))
    }
}

impl Drop for RocksDb {
    fn drop(&mut self) {
        // SAFETY: producers borrow the database, so none is left.
        unsafe { c::rocksdb_close(self.0.as_ptr()) }
    }
}

struct RocksDbProducer<'a> {
    database: &'a RocksDb,
    options: *mut c::WriteOptions,
    batch: *mut c::WriteBatch,
}

impl Producer for RocksDbProducer<'_> {
    fn commit(&mut self, first_key: u64, events: &[Vec<u8>]) -> Result<(), String> {
        let mut error = ptr::null_mut();
        // SAFETY: options and batch are this producer's and alive, the database is borrowed; keys and values are copied into the
        // batch before the call returns.
        unsafe {
            c::rocksdb_writebatch_clear(self.batch);
            for (key, event) in (first_key..).zip(events) {
                let (key, value) = (key.to_be_bytes(), event.as_ptr().cast());
                c::rocksdb_writebatch_put(self.batch, key.as_ptr().cast(), key.len(), value, event.len());
            }
            c::rocksdb_write(self.database.0.as_ptr(), self.options, self.batch, &mut error);
        }
        told(error)
    }
}

impl Drop for RocksDbProducer<'_> {
    fn drop(&mut self) {
        // SAFETY: `producer` made them, and nobody else knows them.
        unsafe {
            c::rocksdb_writebatch_destroy(self.batch);
            c::rocksdb_writeoptions_destroy(self.options);
        }
    }
}
