//! A shift as its handle drives it.

use std::time::Duration;

use tokio::time::sleep;
use tower_upstream::BadGatewayCause;
use tower_upstream::balance::{Balance, Member, Shift, ShiftReason, ShiftState};

use crate::pool::{Endpoint, Servers, call};
use crate::support::service::{Act, ms};

type Body = tower_upstream::body::TrackedUpload<http_body_util::Full<bytes::Bytes>>;

fn pool(servers: &Servers) -> Balance<Endpoint<Body>> {
    let members = [("a", "old"), ("b", "old"), ("x", "new"), ("y", "new")];
    let members = members.map(|(key, group)| Member::new(key).group(group));
    // its probes would be calls too
    Balance::builder("shop", servers.factory()).members(members).without_circuit().build().unwrap()
}

/// The calls of a hundred that the new group gets.
async fn calls(servers: &Servers, pool: &Balance<Endpoint<Body>>) -> u32 {
    let before = servers.calls("x") + servers.calls("y");
    for _ in 0..100 {
        call(pool).await;
        sleep(ms(1)).await;
    }
    servers.calls("x") + servers.calls("y") - before
}

#[tokio::test(start_paused = true)]
async fn verdicts_take_effect_and_a_completed_shift_can_be_rolled_back() {
    let servers = Servers::default();
    let pool = pool(&servers);
    let shift = pool.handle().shift(Shift::new("old", "new").steps([0.0, 0.5]));
    let mut snapshots = shift.snapshots();
    assert_eq!(calls(&servers, &pool).await, 0, "the first share holds at once");
    shift.complete();
    sleep(ms(1)).await;
    assert_eq!(snapshots.borrow_and_update().state, ShiftState::Completed);
    assert_eq!(calls(&servers, &pool).await, 100);
    shift.roll_back();
    sleep(ms(1)).await;
    assert_eq!(snapshots.borrow_and_update().state, ShiftState::RolledBack(ShiftReason::Requested));
    assert_eq!(calls(&servers, &pool).await, 0);
}

#[tokio::test(start_paused = true)]
async fn what_clients_do_wrong_rolls_nothing_back() {
    let servers = Servers::default();
    let pool = pool(&servers);
    for key in ["x", "y"] {
        servers.set(key, Act::Responds(404));
    }
    let shift = pool.handle().shift(Shift::new("old", "new").steps([0.5]).step_time(ms(2_000)));
    for _ in 0..100 {
        calls(&servers, &pool).await;
    }
    let snapshot = shift.snapshots().borrow().clone();
    assert_eq!(snapshot.state, ShiftState::Completed, "{snapshot:?}");
    assert_eq!(snapshot.new.failures, 0);
}

#[tokio::test(start_paused = true)]
async fn each_failure_counts_once() {
    for act in [Act::Responds(500), Act::Responds(429), Act::Fails(BadGatewayCause::ResetBeforeResponse)] {
        let servers = Servers::default();
        let pool = pool(&servers);
        servers.set("x", act);
        servers.set("y", act);
        let shift = pool.handle().shift(Shift::new("old", "new").steps([0.5]));
        let sent = u64::from(calls(&servers, &pool).await);
        sleep(ms(2_000)).await;
        let new = shift.snapshots().borrow().new;
        assert_eq!((new.calls, new.failures), (sent, sent), "{act:?}");
        assert!(sent > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_held_shift_stays_at_its_step() {
    let servers = Servers::default();
    let pool = pool(&servers);
    let shift = pool.handle().shift(Shift::new("old", "new").steps([0.5, 0.9]).step_time(Duration::ZERO));
    shift.hold();
    for _ in 0..100 {
        calls(&servers, &pool).await;
    }
    let snapshots = shift.snapshots();
    assert_eq!(snapshots.borrow().state, ShiftState::Held(ShiftReason::Requested));
    assert!((snapshots.borrow().share - 0.5).abs() < 1e-9);
    shift.resume();
    sleep(ms(1)).await;
    assert_eq!(snapshots.borrow().step, 1);
}

#[tokio::test(start_paused = true)]
async fn a_shift_ends_with_its_pool() {
    let servers = Servers::default();
    let pool = pool(&servers);
    let mut snapshots = pool.handle().shift(Shift::new("old", "new")).snapshots();
    sleep(ms(5_000)).await;
    drop(pool);
    while snapshots.changed().await.is_ok() {}
}

fn pool_with_circuits(servers: &Servers) -> Balance<Endpoint<Body>> {
    let members = [("a", "old"), ("b", "old"), ("x", "new"), ("y", "new")];
    let members = members.map(|(key, group)| Member::new(key).group(group));
    Balance::builder("shop", servers.factory()).members(members).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_new_group_that_was_down_for_a_moment_takes_calls_again() {
    let servers = Servers::default();
    let pool = pool_with_circuits(&servers);
    let shift = pool.handle().shift(Shift::new("old", "new").steps([0.3]));
    for key in ["x", "y"] {
        servers.set(key, Act::Fails(BadGatewayCause::ConnectionRefused));
    }
    for _ in 0..20 {
        calls(&servers, &pool).await;
    }
    assert_eq!(shift.snapshots().borrow().state, ShiftState::Held(ShiftReason::Capacity));
    for key in ["x", "y"] {
        servers.set(key, Act::Responds(200));
    }
    for _ in 0..300 {
        calls(&servers, &pool).await;
    }
    assert!(calls(&servers, &pool).await > 15, "{:?}", *shift.snapshots().borrow());
}

#[tokio::test(start_paused = true)]
async fn a_new_group_that_is_alone_returns_from_an_outage() {
    let servers = Servers::default();
    let pool = pool_with_circuits(&servers);
    let shift = pool.handle().shift(Shift::new("old", "new"));
    calls(&servers, &pool).await;
    shift.complete();
    sleep(ms(1_500)).await;
    let _ = pool.handle().replace(["x", "y"].map(|key| Member::new(key).group("new"))).unwrap();
    for key in ["x", "y"] {
        servers.set(key, Act::Fails(BadGatewayCause::ConnectionRefused));
    }
    for _ in 0..50 {
        calls(&servers, &pool).await;
    }
    for key in ["x", "y"] {
        servers.set(key, Act::Responds(200));
    }
    for _ in 0..100 {
        calls(&servers, &pool).await;
    }
    assert_eq!(call(&pool).await, 200);
}
