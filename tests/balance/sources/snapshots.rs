//! Streams of snapshots.

use std::sync::atomic::Ordering::Relaxed;

use futures_util::stream;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::time::sleep;
use tower_upstream::balance::{BalanceHandle, Member};

use super::{count, keys, pool, problem, source};
use crate::support::service::ms;

type Snapshots = UnboundedSender<Result<Vec<Member>, &'static str>>;

fn list(keys: &[&str]) -> Vec<Member> {
    keys.iter().map(|key| Member::new(*key)).collect()
}

async fn followed(first: &[&str]) -> (BalanceHandle, Snapshots, super::Balance<()>) {
    let pool = pool(&[]);
    let (sender, mut snapshots) = mpsc::unbounded_channel();
    pool.handle().follow_snapshots(stream::poll_fn(move |cx| snapshots.poll_recv(cx)));
    sender.send(Ok(list(first))).unwrap();
    sleep(ms(100)).await;
    assert_eq!(keys(&pool.handle()), first);
    (pool.handle(), sender, pool)
}

#[tokio::test(start_paused = true)]
async fn the_last_snapshot_counts_and_the_pool_changes_at_most_every_50_ms() {
    let (pool, snapshots, _balance) = followed(&["a", "b"]).await;
    let changes = count(&pool);
    for n in 0..1000 {
        snapshots.send(Ok(list(&["b", if n % 2 == 0 { "c" } else { "a" }]))).unwrap();
        snapshots.send(Ok(list(&["a", "b", "c"]))).unwrap();
        snapshots.send(Ok(list(&["b", if n % 2 == 0 { "c" } else { "a" }]))).unwrap();
        sleep(ms(10)).await;
    }
    sleep(ms(100)).await;
    assert_eq!(keys(&pool), ["a", "b"]);
    let changes = changes.load(Relaxed);
    assert!((50..=201).contains(&changes), "{changes}");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_of_less_than_half_of_the_members_is_applied_after_5_s() {
    let (pool, snapshots, _balance) = followed(&["a", "b", "c", "d", "e"]).await;
    snapshots.send(Ok(list(&["e", "d"]))).unwrap();
    sleep(ms(3000)).await;
    snapshots.send(Ok(list(&["d", "e"]))).unwrap();
    sleep(ms(1900)).await;
    assert_eq!(keys(&pool).len(), 5, "a snapshot that comes again at once confirms nothing");
    sleep(ms(300)).await;
    assert_eq!((keys(&pool), source(&pool).problem), (vec!["d".to_owned(), "e".to_owned()], None));

    snapshots.send(Ok(list(&["a", "b", "c", "d", "e"]))).unwrap();
    sleep(ms(100)).await;
    snapshots.send(Ok(list(&["a"]))).unwrap();
    sleep(ms(1000)).await;
    snapshots.send(Ok(list(&["a", "b", "c", "d"]))).unwrap();
    sleep(ms(10_000)).await;
    assert_eq!(keys(&pool).len(), 4);
}

#[tokio::test(start_paused = true)]
async fn an_error_an_invalid_snapshot_and_the_end_keep_the_members_and_are_reported() {
    let (pool, snapshots, _balance) = followed(&["a", "b"]).await;
    for (snapshot, says) in [
        (Err("no leader"), "no leader"),
        (Ok(vec![]), "the list of members is empty"),
        (Ok(list(&["a", "a"])), "two members have the key \"a\""),
        (Ok(vec![Member::new("a").weight(0)]), "every active member has the weight 0"),
        (Err("gone"), "gone"),
    ] {
        snapshots.send(snapshot).unwrap();
        sleep(ms(2000)).await;
        assert_eq!((keys(&pool), problem(&pool)), (vec!["a".into(), "b".into()], says.into()));
    }
    snapshots.send(Ok(list(&["b", "a"]))).unwrap();
    sleep(ms(100)).await;
    assert_eq!(source(&pool).problem, None);
    drop(snapshots);
    sleep(ms(100)).await;
    assert_eq!((keys(&pool).len(), problem(&pool).contains("has ended")), (2, true));
}
