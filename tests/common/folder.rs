//! Files that a test writes.

#![allow(dead_code, reason = "each test binary uses what it needs")]

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use kigo::gguf::Writer;

/// A folder of its own for one test, removed at its end; in that of temporary files where the tests run out of a bundle.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("kigo-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
        let parent = match std::env::var_os("KIGO_BUNDLE") {
            Some(_) => std::env::temp_dir(),
            None => env!("CARGO_TARGET_TMPDIR").into(),
        };
        let path = parent.join(name);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn write(&self, name: &str, writer: &Writer) -> PathBuf {
        let path = self.path(name);
        writer.write(&path).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
