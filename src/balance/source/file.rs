//! A file as a source.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, SystemTime};

use tokio::task::{JoinHandle, spawn_blocking};

use crate::balance::{BalanceHandle, Member};
use crate::body::BoxError;

/// The interval of checks.
const INTERVAL: Duration = Duration::from_secs(1);
/// The largest size of the file, in bytes.
const MAX_SIZE: u64 = 16 << 20;
/// The age from which a modification time is trusted. A younger file is read again: another change may have the same
/// time.
const SETTLED: Duration = Duration::from_secs(2);

impl BalanceHandle {
    /// Reads the members from a file, now and when it changes, until the pool is dropped.
    ///
    /// The file is checked every 1 s +-10 %, by modification time, size and, on Unix, inode. A file that cannot be read
    /// or parsed, has more than 16 MiB, is not UTF-8 or has no member changes nothing, and is reported with its path. A
    /// file with less than half of the members is applied at the second check. Replace the file by a rename, because a
    /// file that is being written may be read in part.
    ///
    /// `parse` runs on a blocking thread. [`poll_source`](Self::poll_source) describes the task.
    ///
    /// ```
    /// use tower_upstream::balance::{BalanceHandle, Member};
    ///
    /// // one `host:port` per line
    /// fn follow_list(pool: &BalanceHandle) {
    ///     pool.watch_file("/etc/gateway/shop.list", |text| {
    ///         Ok::<_, std::io::Error>(text.lines().map(Member::new).collect())
    ///     });
    /// }
    /// ```
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn watch_file<P, E>(&self, path: impl Into<PathBuf>, parse: P) -> JoinHandle<()>
    where
        P: FnMut(&str) -> Result<Vec<Member>, E> + Send + 'static,
        E: Into<BoxError>,
    {
        let (path, file) = (path.into(), Arc::new(Mutex::new(WatchedFile { parse, version: None, result: None })));
        self.poll_source(INTERVAL, move || {
            let (path, file) = (path.clone(), file.clone());
            async move {
                let read = spawn_blocking({
                    let path = path.clone();
                    move || match file.try_lock() {
                        Ok(mut file) => file.check(&path),
                        Err(TryLockError::Poisoned(file)) => file.into_inner().check(&path),
                        Err(TryLockError::WouldBlock) => Err("an earlier read has not ended".to_owned()),
                    }
                });
                let result = read.await.unwrap_or_else(|error| Err(error.to_string()));
                result.map_err(|problem| format!("{}: {problem}", path.display()))
            }
        })
    }
}

/// Version and members of the file when it was last read.
struct WatchedFile<P> {
    parse: P,
    version: Option<Version>,
    result: Option<Result<Vec<Member>, String>>,
}

/// Modification time, size and inode: one of them changes with the file.
type Version = (Option<SystemTime>, u64, u64);

impl<P, E> WatchedFile<P>
where
    P: FnMut(&str) -> Result<Vec<Member>, E>,
    E: Into<BoxError>,
{
    /// Returns the current members; reads the file if it has changed.
    fn check(&mut self, path: &Path) -> Result<Vec<Member>, String> {
        let version = fs::metadata(path).map(|metadata| version_of(&metadata)).map_err(|error| error.to_string())?;
        if let (Some(result), true) = (&self.result, self.version == Some(version)) {
            return result.clone();
        }
        let is_settled = version.0.and_then(|time| time.elapsed().ok()).is_some_and(|age| age >= SETTLED);
        // unset while `parse` runs, in case it panics
        (self.version, self.result) = (None, None);
        let read = read(path).map_err(|error| error.to_string());
        let result = read.and_then(|text| (self.parse)(&text).map_err(|error| super::text(&error.into())));
        (self.version, self.result) = (is_settled.then_some(version), Some(result.clone()));
        result
    }
}

fn version_of(metadata: &fs::Metadata) -> Version {
    #[cfg(unix)]
    let inode = std::os::unix::fs::MetadataExt::ino(metadata);
    #[cfg(not(unix))]
    let inode = 0;
    (metadata.modified().ok(), metadata.len(), inode)
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_SIZE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_SIZE {
        return Err(io::Error::other("the file has more than 16 MiB"));
    }
    Ok(text)
}
