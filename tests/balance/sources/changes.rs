//! Streams of tower's `discover::Change`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt, stream};
use proptest::prelude::*;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::time::{Instant, advance, sleep};
use tower::discover::Change;
use tower_upstream::balance::{BalanceHandle, Member};

use super::{count, keys, pool, problem, source};
use crate::support::service::ms;

type Discovered = Result<Change<String, u32>, std::io::Error>;
/// The other end of a stream of changes.
struct Discovery(UnboundedSender<Discovered>);

impl Discovery {
    fn put(&self, key: &str, weight: u32) {
        self.0.send(Ok(Change::Insert(key.to_owned(), weight))).unwrap();
    }

    fn remove(&self, keys: &[&str]) {
        for key in keys {
            self.0.send(Ok(Change::Remove((*key).to_owned()))).unwrap();
        }
    }
}

/// A pool with these members, all of them from its stream.
async fn discovered(inserted: &[&str]) -> (BalanceHandle, Discovery, super::Balance<()>) {
    let pool = pool(&[]);
    let (sender, mut changes) = mpsc::unbounded_channel();
    pool.handle().follow_changes(stream::poll_fn(move |cx| changes.poll_recv(cx)), |key, weight| {
        Member::new(key).weight(weight)
    });
    let discovery = Discovery(sender);
    for key in inserted {
        discovery.put(key, 1);
    }
    sleep(ms(100)).await;
    assert_eq!(keys(&pool.handle()).len(), inserted.len());
    (pool.handle(), discovery, pool)
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_changes_that_are_ready_are_applied_as_one_while_no_call_comes() {
    let pool = pool(&[]);
    let (handle, changes) = (pool.handle(), count(&pool.handle()));
    let inserts = (0..10_000).map(|key| Ok::<_, Infallible>(Change::Insert(key, ())));
    handle.follow_changes(stream::iter(inserts).chain(stream::pending()), |key, ()| Member::new(key));
    sleep(ms(100)).await;
    assert_eq!((keys(&handle).len(), changes.load(Relaxed)), (10_000, 1));
    assert_eq!(source(&handle).problem, None);
}

#[tokio::test(start_paused = true)]
async fn changes_of_a_channel_are_applied_as_one_whatever_tokio_lets_a_task_read_at_once() {
    let (pool, discovery, _balance) = discovered(&[]).await;
    let changes = count(&pool);
    for key in 0..10_000 {
        discovery.put(&key.to_string(), 1);
    }
    sleep(ms(100)).await;
    assert_eq!((keys(&pool).len(), changes.load(Relaxed)), (10_000, 1));
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_stream_is_reported_and_the_next_change_is_applied() {
    let (pool, discovery, _balance) = discovered(&["a"]).await;
    discovery.0.send(Err(std::io::Error::other("no leader"))).unwrap();
    sleep(ms(500)).await;
    assert_eq!((problem(&pool), keys(&pool)), ("no leader".to_owned(), vec!["a".to_owned()]));
    discovery.put("b", 1);
    sleep(ms(100)).await;
    assert_eq!((source(&pool).problem, keys(&pool).len()), (None, 2));
    // what was read before an error is applied before it is reported
    discovery.put("c", 1);
    discovery.0.send(Err(std::io::Error::other("no leader"))).unwrap();
    sleep(ms(500)).await;
    assert_eq!((problem(&pool), keys(&pool).len()), ("no leader".to_owned(), 3));
}

#[tokio::test(start_paused = true)]
async fn an_end_of_the_stream_keeps_the_members_and_is_reported() {
    let (pool, discovery, _balance) = discovered(&["a", "b"]).await;
    discovery.put("c", 1);
    drop(discovery);
    sleep(ms(10_000)).await;
    assert_eq!(keys(&pool), ["a", "b", "c"]);
    assert!(problem(&pool).contains("has ended"));
    assert!(source(&pool).age > ms(9_000));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_inserted_again_replaces_its_member_and_one_removal_removes_it() {
    let (pool, discovery, _balance) = discovered(&["a", "b"]).await;
    discovery.put("a", 7);
    sleep(ms(100)).await;
    assert_eq!((keys(&pool), pool.members().borrow()[0].weight), (vec!["a".to_owned(), "b".to_owned()], 7));
    discovery.remove(&["a", "unknown"]);
    sleep(ms(100)).await;
    assert_eq!(keys(&pool), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn the_key_of_a_member_is_that_of_the_stream() {
    let pool = pool(&["x"]);
    let changes = [Change::Insert(1, ()), Change::Insert(2, ()), Change::Remove(1)].map(Ok::<_, Infallible>);
    pool.handle().follow_changes(stream::iter(changes), |_, ()| Member::new("another"));
    sleep(ms(100)).await;
    assert_eq!(keys(&pool.handle()), ["x", "2"]);
}

#[tokio::test(start_paused = true)]
async fn members_that_flap_100_times_a_second_change_the_pool_20_times_a_second_at_most() {
    let (pool, discovery, _balance) = discovered(&["a", "b", "c"]).await;
    let changes = count(&pool);
    for flap in 0..1000 {
        if flap % 2 == 0 {
            discovery.remove(&["b"]);
        } else {
            discovery.put("b", 1);
        }
        if flap % 7 == 0 {
            discovery.put("d", 1);
            discovery.remove(&["d"]);
        }
        sleep(ms(10)).await;
    }
    sleep(ms(100)).await;
    assert_eq!(keys(&pool).len(), 3);
    let changes = changes.load(Relaxed);
    assert!((50..=201).contains(&changes), "{changes}");
}

#[tokio::test(start_paused = true)]
async fn most_members_leave_only_after_5_s() {
    let (pool, discovery, _balance) = discovered(&["a", "b", "c", "d", "e"]).await;
    discovery.remove(&["a", "b", "c"]);
    sleep(ms(4900)).await;
    assert_eq!(keys(&pool).len(), 5);
    assert!(problem(&pool).contains("2 instead of 5 members"), "{}", problem(&pool));
    sleep(ms(300)).await;
    assert_eq!((keys(&pool), source(&pool).problem), (vec!["d".to_owned(), "e".to_owned()], None));
}

#[tokio::test(start_paused = true)]
async fn members_that_flap_do_not_confirm_that_the_others_have_left() {
    let (pool, discovery, _balance) = discovered(&["a", "b", "c", "d", "e"]).await;
    discovery.remove(&["a", "b", "c"]);
    for _ in 0..20 {
        sleep(ms(100)).await;
        discovery.put("a", 1);
        discovery.remove(&["a"]);
    }
    assert_eq!(keys(&pool).len(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_begins_again_replaces_the_members_at_once() {
    let (pool, discovery, _balance) = discovered(&["a", "b", "c"]).await;
    discovery.remove(&["a", "b", "c"]);
    sleep(ms(20_000)).await;
    assert_eq!(keys(&pool), ["a", "b", "c"], "an empty pool serves nobody");
    assert_eq!(problem(&pool), "the list of members is empty");
    for key in ["c", "d", "e"] {
        discovery.put(key, 1);
    }
    sleep(ms(100)).await;
    assert_eq!((keys(&pool), source(&pool).problem), (vec!["c".into(), "d".into(), "e".into()], None));
}

#[tokio::test(start_paused = true)]
async fn members_of_other_origin_stay() {
    let (pool, discovery, _balance) = discovered(&["a", "b"]).await;
    let _ = pool.upsert(Member::new("fallback").tier(1)).unwrap();
    discovery.remove(&["b"]);
    sleep(ms(100)).await;
    assert_eq!(keys(&pool), ["a", "fallback"]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_only_errs_is_polled_again_after_a_pause() {
    let pool = pool(&["a"]);
    let polls = Arc::new(AtomicU32::new(0));
    let counter = polls.clone();
    let errs = stream::repeat_with(move || {
        counter.fetch_add(1, Relaxed);
        Err::<Change<String, u32>, _>("unauthorized")
    });
    pool.handle().follow_changes(errs, |key, _| Member::new(key));
    sleep(ms(60_000)).await;
    assert!((60..70).contains(&polls.load(Relaxed)), "{polls:?}");
    assert_eq!((problem(&pool.handle()), keys(&pool.handle())), ("unauthorized".to_owned(), vec!["a".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_always_ready_is_applied_and_delays_no_other_task() {
    let pool = pool(&["a"]);
    let endless = (0_u64..).map(|n| Ok::<_, Infallible>(Change::Insert(n % 3, ())));
    let task = pool.handle().follow_changes(stream::iter(endless), |key, ()| Member::new(key));
    for _ in 0..5 {
        // the paused clock does not advance by itself while a task is busy
        tokio::task::yield_now().await;
        advance(ms(60)).await;
    }
    assert_eq!(keys(&pool.handle()), ["a", "0", "1", "2"]);
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn more_changes_than_a_pool_can_have_are_dropped_and_reported() {
    let pool = pool(&["a"]);
    let inserts = (0..65_536).map(|key| Ok::<_, Infallible>(Change::Insert(key, ())));
    pool.handle().follow_changes(stream::iter(inserts).chain(stream::pending()), |key, ()| Member::new(key));
    sleep(ms(1000)).await;
    assert_eq!(keys(&pool.handle()), ["a"]);
    assert!(problem(&pool.handle()).contains("more than 65,536 changes"), "{}", problem(&pool.handle()));
}

#[tokio::test(start_paused = true)]
async fn weights_of_0_everywhere_are_refused_until_one_has_a_weight() {
    let (pool, discovery, _balance) = discovered(&["a", "b"]).await;
    discovery.put("a", 0);
    discovery.put("b", 0);
    sleep(ms(100)).await;
    assert_eq!(problem(&pool), "every active member has the weight 0");
    assert_eq!(pool.members().borrow()[0].weight, 1);
    discovery.put("b", 3);
    sleep(ms(100)).await;
    assert_eq!(pool.members().borrow().iter().map(|member| member.weight).collect::<Vec<_>>(), [0, 3]);
}

/// Never yields; counts how often it is polled, and is counted itself.
struct Silent(Arc<AtomicU32>);

impl Stream for Silent {
    type Item = Discovered;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Discovered>> {
        self.0.fetch_add(1, Relaxed);
        Poll::Pending
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_never_yields_costs_nothing_and_ends_with_its_pool() {
    let polls = Arc::new(AtomicU32::new(0));
    for _ in 0..100 {
        let pool = pool(&["a"]);
        let task = pool.handle().follow_changes(Silent(polls.clone()), |key, _| Member::new(key));
        polls.store(0, Relaxed);
        sleep(ms(60_000)).await;
        assert_eq!(polls.load(Relaxed), 1);
        assert_eq!(Arc::strong_count(&polls), 2);
        drop(pool);
        sleep(ms(1)).await;
        assert!(task.is_finished());
        assert_eq!(Arc::strong_count(&polls), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_ends_when_its_task_is_aborted_and_while_it_waits() {
    let polls = Arc::new(AtomicU32::new(0));
    let kept = pool(&["a"]);
    let task = kept.handle().follow_changes(Silent(polls.clone()), |key, _| Member::new(key));
    sleep(ms(1)).await;
    task.abort();
    sleep(ms(1)).await;
    assert_eq!(Arc::strong_count(&polls), 1);

    // in the pause after an error
    let witness = Arc::new(());
    let held = witness.clone();
    let errs = stream::repeat_with(move || {
        let _ = &held;
        Err::<Change<String, u32>, _>("down")
    });
    let dropped = pool(&["a"]);
    dropped.handle().follow_changes(errs, |key, _| Member::new(key));
    sleep(ms(5_000)).await;
    drop(dropped);
    sleep(ms(1)).await;
    assert_eq!(Arc::strong_count(&witness), 1);
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_source_is_reported() {
    let pool = pool(&["a"]);
    let changes = stream::iter([Ok::<_, Infallible>(Change::Insert("b", ()))]).chain(stream::pending());
    let task = pool.handle().follow_changes(changes, |_, ()| panic!("no such value"));
    let begun = Instant::now();
    assert!(task.await.unwrap_err().is_panic());
    assert_eq!((begun.elapsed(), keys(&pool.handle())), (ms(0), vec!["a".to_owned()]));
    assert!(problem(&pool.handle()).contains("panicked"));
}

/// What a random source does.
#[derive(Clone, Debug)]
enum Act {
    Put(u8, u32),
    Remove(u8),
    Fail,
    Sleep(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        (0_u8..12, 0_u32..3).prop_map(|(key, weight)| Act::Put(key, weight)),
        (0_u8..12).prop_map(Act::Remove),
        Just(Act::Fail),
        (0_u64..200).prop_map(Act::Sleep),
        Just(Act::Sleep(7_000)),
    ];
    prop::collection::vec(act, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_stream_does_the_pool_has_its_members_in_the_end_or_says_why_not(acts in acts()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (pool, discovery, _balance) = discovered(&[]).await;
            let mut model = BTreeMap::new();
            for act in acts {
                match act {
                    Act::Put(key, weight) => {
                        discovery.put(&key.to_string(), weight);
                        model.insert(key.to_string(), weight);
                    }
                    Act::Remove(key) => {
                        discovery.remove(&[&key.to_string()]);
                        model.remove(&key.to_string());
                    }
                    Act::Fail => discovery.0.send(Err(std::io::Error::other("failed"))).unwrap(),
                    Act::Sleep(time) => sleep(ms(time)).await,
                }
            }
            sleep(ms(120_000)).await;
            let members = pool.members().borrow().clone();
            let found: BTreeMap<_, _> = members.iter().map(|member| (member.key.to_string(), member.weight)).collect();
            if model.values().any(|weight| *weight > 0) {
                assert_eq!(found, model);
            } else {
                // the pool kept the members that it had
                let has_weight = found.is_empty() || found.values().any(|weight| *weight > 0);
                assert!(has_weight && (found.is_empty() || source(&pool).problem.is_some()), "{found:?}");
            }
        });
    }
}
