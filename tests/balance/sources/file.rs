//! A file that is watched.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use tokio::time::sleep;
use tower_upstream::balance::{BalanceHandle, Member};

use super::{keys, pool, problem, source};
use crate::support::service::ms;

/// A file of this test, removed at its end.
struct File(PathBuf);

impl File {
    fn new(text: &str) -> Self {
        static FILES: AtomicU32 = AtomicU32::new(0);
        let name = format!("tower-upstream-{}-{}.list", std::process::id(), FILES.fetch_add(1, Relaxed));
        let file = Self(std::env::temp_dir().join(name));
        file.write(text);
        file
    }

    fn write(&self, text: impl AsRef<[u8]>) {
        fs::write(&self.0, text).unwrap();
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// One key per line; a line with a blank is an error.
fn parse(text: &str) -> Result<Vec<Member>, String> {
    assert!(!text.contains("panic"), "as the file wants");
    match text.lines().find(|line| line.contains(' ')) {
        Some(line) => Err(format!("{line:?} has a blank")),
        None => Ok(text.lines().map(Member::new).collect()),
    }
}

async fn watched(file: &File) -> (super::Balance<()>, BalanceHandle) {
    let pool = pool(&[]);
    let handle = pool.handle();
    handle.watch_file(&file.0, parse);
    sleep(ms(100)).await;
    assert_eq!(keys(&handle), ["a", "b"]);
    (pool, handle)
}

#[tokio::test(start_paused = true)]
async fn a_changed_file_is_applied_within_about_a_second_whatever_its_size() {
    let file = File::new("a\nb");
    let (_pool, handle) = watched(&file).await;
    for text in ["a\nc", "d\nc", "d\nc\nb"] {
        file.write(text);
        sleep(ms(1200)).await;
        assert_eq!((keys(&handle).len(), source(&handle).problem), (text.lines().count(), None));
        let mut expected: Vec<_> = text.lines().collect();
        expected.sort_unstable();
        assert_eq!(keys(&handle), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn two_changes_with_the_same_time_and_size_are_both_seen() {
    let (file, now) = (File::new("a\nb"), std::time::SystemTime::now());
    let set_time = || fs::File::options().write(true).open(&file.0).unwrap().set_modified(now).unwrap();
    set_time();
    let (_pool, handle) = watched(&file).await;
    file.write("a\nc");
    set_time();
    sleep(ms(1200)).await;
    assert_eq!(keys(&handle), ["a", "c"]);
}

#[tokio::test(start_paused = true)]
async fn a_bad_file_keeps_the_members_and_is_reported_with_its_path_and_the_reason() {
    let file = File::new("a\nb");
    let (_pool, handle) = watched(&file).await;
    let path = file.0.display().to_string();
    for (content, why) in [
        (&b"a\nb c"[..], "\"b c\" has a blank"),
        (b"", "the list of members is empty"),
        (b"a\na", "two members have the key \"a\""),
        (b"a\xff", "valid UTF-8"),
        (b"panic", "panic"),
        (&vec![b'a'; (16 << 20) + 1], "more than 16 MiB"),
    ] {
        file.write(content);
        sleep(ms(2400)).await;
        let problem = problem(&handle);
        assert!(problem.contains(why), "{problem}");
        assert!(problem.contains(&path) || why.contains("member"), "{problem}");
        assert_eq!(keys(&handle), ["a", "b"]);
        file.write("a\nb");
        sleep(ms(1200)).await;
        assert_eq!(source(&handle).problem, None);
    }
    fs::remove_file(&file.0).unwrap();
    sleep(ms(1200)).await;
    assert!(problem(&handle).contains("No such file"), "{}", problem(&handle));
    fs::create_dir(&file.0).unwrap();
    sleep(ms(1200)).await;
    assert!(problem(&handle).contains(&path));
    fs::remove_dir(&file.0).unwrap();
    assert_eq!(keys(&handle), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_file_of_less_than_half_of_the_members_is_applied_by_the_second_check() {
    let file = File::new("a\nb");
    let (_pool, handle) = watched(&file).await;
    file.write("a\nb\nc\nd\ne");
    sleep(ms(1200)).await;
    file.write("e");
    sleep(ms(800)).await;
    sleep(ms(1600)).await;
    assert_eq!(keys(&handle), ["e"]);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_was_not_changed_for_2_s_is_not_read_again() {
    let file = File::new("a\nb");
    let old = std::time::SystemTime::now() - ms(10_000);
    fs::File::options().write(true).open(&file.0).unwrap().set_modified(old).unwrap();
    let (pool, reads) = (pool(&[]), Arc::new(AtomicU32::new(0)));
    let count = reads.clone();
    pool.handle().watch_file(&file.0, move |text| {
        count.fetch_add(1, Relaxed);
        parse(text)
    });
    sleep(ms(60_000)).await;
    assert_eq!(reads.load(Relaxed), 1);
    assert!(source(&pool.handle()).age <= ms(1100));
    drop(pool);
    sleep(ms(1)).await;
    assert_eq!(Arc::strong_count(&reads), 1);
}
