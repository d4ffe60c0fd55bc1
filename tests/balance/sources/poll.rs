//! Sources that are asked at intervals, DNS among them.

use std::convert::Infallible;
use std::future::{pending, ready};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper_util::client::legacy::connect::dns::Name;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tower::{ServiceExt, service_fn};
use tower_upstream::balance::{Balance, Member};
use tower_upstream::client::Target;

use super::{Log, count, keys, pool, problem, source};
use crate::support::service::{get, ms};

type Answers = Arc<Mutex<Result<Vec<&'static str>, &'static str>>>;

fn addresses(ips: &[&str]) -> Vec<SocketAddr> {
    ips.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 0)).collect()
}

/// A resolver with these answers, and the number of its queries.
fn resolver(
    answers: Answers,
) -> (
    impl tower::Service<Name, Response = std::vec::IntoIter<SocketAddr>, Error = io::Error, Future: Send> + Clone + Send,
    Arc<AtomicU32>,
) {
    let queries = Arc::new(AtomicU32::new(0));
    let count = queries.clone();
    let resolve = service_fn(move |name: Name| {
        assert_eq!(name.as_str(), "shop.test");
        count.fetch_add(1, Relaxed);
        let answer = answers.lock().unwrap().clone();
        ready(answer.map(|ips| addresses(&ips).into_iter()).map_err(io::Error::other))
    });
    (resolve, queries)
}

fn target(text: &str) -> Target {
    text.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn every_address_of_a_name_is_an_endpoint_and_the_name_is_resolved_every_5_s() {
    let pool = pool(&[]);
    let answers = Answers::new(Mutex::new(Ok(vec!["10.0.0.2", "2001:db8::1", "10.0.0.1", "10.0.0.2"])));
    let (resolver, queries) = resolver(answers.clone());
    let handle = pool.handle();
    handle.follow_dns_with(&target("https://shop.test/v1"), resolver);
    handle.members().wait_for(|members| !members.is_empty()).await.unwrap();
    assert_eq!(keys(&handle), ["10.0.0.1:443", "10.0.0.2:443", "[2001:db8::1]:443"]);
    let members = handle.members().borrow().clone();
    assert!(members.iter().all(|member| *member.key == member.addresses[0].to_string()));

    let changes = count(&handle);
    *answers.lock().unwrap() = Ok(vec!["2001:db8::1", "10.0.0.1", "10.0.0.2"]);
    sleep(ms(100_000)).await;
    let queries = queries.load(Relaxed);
    assert!((19..=23).contains(&queries), "{queries}");
    assert_eq!(changes.load(Relaxed), 0, "the order of an answer has no meaning");
    assert!(source(&handle).age <= ms(5_500));
}

#[tokio::test(start_paused = true)]
async fn a_failed_or_empty_result_keeps_the_addresses() {
    let pool = pool(&[]);
    let answers = Answers::new(Mutex::new(Ok(vec!["10.0.0.1", "10.0.0.2"])));
    let handle = pool.handle();
    handle.follow_dns_with(&target("shop.test:8080"), resolver(answers.clone()).0);
    sleep(ms(100)).await;
    for (answer, says) in
        [(Err("SERVFAIL"), "SERVFAIL"), (Ok(vec![]), "the list of members is empty"), (Err("NXDOMAIN"), "NXDOMAIN")]
    {
        *answers.lock().unwrap() = answer;
        sleep(ms(20_000)).await;
        assert_eq!(
            (keys(&handle), problem(&handle)),
            (vec!["10.0.0.1:8080".into(), "10.0.0.2:8080".into()], says.into())
        );
        assert!(source(&handle).age >= ms(18_000));
        *answers.lock().unwrap() = Ok(vec!["10.0.0.1", "10.0.0.2"]);
        sleep(ms(6_000)).await;
        assert_eq!(source(&handle).problem, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_result_of_less_than_half_of_the_members_has_to_come_twice_in_any_order() {
    let pool = pool(&[]);
    let answers = Answers::new(Mutex::new(Ok(vec!["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"])));
    let handle = pool.handle();
    handle.follow_dns_with(&target("shop.test"), resolver(answers.clone()).0);
    sleep(ms(100)).await;
    *answers.lock().unwrap() = Ok(vec!["10.0.0.1", "10.0.0.2"]);
    sleep(ms(6_000)).await;
    assert_eq!(keys(&handle).len(), 5);
    *answers.lock().unwrap() = Ok(vec!["10.0.0.2", "10.0.0.1"]);
    sleep(ms(6_000)).await;
    assert_eq!(keys(&handle).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_query_without_an_answer_is_given_up_after_5_s() {
    let pool = pool(&["a"]);
    let silent = service_fn(|_: Name| pending::<Result<std::vec::IntoIter<SocketAddr>, Infallible>>());
    pool.handle().follow_dns_with(&target("shop.test"), silent);
    sleep(ms(4_900)).await;
    assert_eq!(source(&pool.handle()).problem, None);
    sleep(ms(200)).await;
    assert_eq!(problem(&pool.handle()), "the query has no result after 5s");
}

#[tokio::test(start_paused = true)]
async fn an_address_needs_no_resolver() {
    let pool = pool(&[]);
    let (resolver, queries) = resolver(Answers::new(Mutex::new(Err("asked"))));
    pool.handle().follow_dns_with(&target("http://[::1]:8080"), resolver);
    sleep(ms(60_000)).await;
    assert_eq!((keys(&pool.handle()), queries.load(Relaxed)), (vec!["[::1]:8080".to_owned()], 0));
}

#[tokio::test(start_paused = true)]
async fn an_address_that_was_removed_finishes_its_calls() {
    let gate = Arc::new(Semaphore::new(0));
    let make = {
        let gate = gate.clone();
        move |member: &Member| {
            let (gate, key) = (gate.clone(), member.key.clone());
            service_fn(move |_: Request<_>| {
                let (gate, key) = (gate.clone(), key.clone());
                async move {
                    if key.starts_with("10.0.0.1") {
                        let _ = gate.acquire().await;
                    }
                    Ok::<_, io::Error>(Response::new(Full::new(Bytes::copy_from_slice(key.as_bytes()))))
                }
            })
        }
    };
    let pool = Balance::builder("shop", make).build().unwrap();
    let answers = Answers::new(Mutex::new(Ok(vec!["10.0.0.1"])));
    pool.handle().follow_dns_with(&target("shop.test"), resolver(answers.clone()).0);
    sleep(ms(100)).await;
    let running = tokio::spawn(pool.clone().oneshot(get()));
    sleep(ms(100)).await;
    *answers.lock().unwrap() = Ok(vec!["10.0.0.2"]);
    sleep(ms(6_000)).await;
    assert_eq!(keys(&pool.handle()), ["10.0.0.2:80"]);
    for _ in 0..10 {
        let response = pool.clone().oneshot(get()).await.unwrap();
        assert_eq!(crate::support::service::text(response).await, "10.0.0.2:80");
    }
    assert!(!running.is_finished());
    gate.add_permits(1);
    let response = running.await.unwrap().unwrap();
    assert_eq!(crate::support::service::text(response).await, "10.0.0.1:80");
}

#[tokio::test(start_paused = true)]
async fn a_closure_can_query_anything() {
    let pool = pool(&[]);
    let (handle, round) = (pool.handle(), AtomicU32::new(0));
    handle.poll_source(ms(1000), move || {
        // such as SRV records with priorities and weights
        let round = round.fetch_add(1, Relaxed);
        async move {
            match round {
                0 => Ok(vec![Member::new("b").weight(5), Member::new("a").tier(1)]),
                1 => Ok(vec![Member::new("a"), Member::new("a")]),
                2 => Ok(vec![Member::new("a").weight(0)]),
                _ => Err("out of order"),
            }
        }
    });
    sleep(ms(500)).await;
    assert_eq!(keys(&handle), ["a", "b"]);
    for says in ["two members have the key \"a\"", "every active member has the weight 0", "out of order"] {
        sleep(ms(1000)).await;
        assert_eq!((keys(&handle).len(), problem(&handle)), (2, says.to_owned()));
    }
}

#[tokio::test(start_paused = true)]
async fn an_interval_out_of_range_is_the_nearest_in_range() {
    for (interval, queries) in [(ms(0), 550..=670), (std::time::Duration::MAX, 1..=1)] {
        let (pool, counter) = (pool(&["a"]), Arc::new(AtomicU32::new(0)));
        let count = counter.clone();
        pool.handle().poll_source(interval, move || {
            count.fetch_add(1, Relaxed);
            ready(Ok::<_, Infallible>([Member::new("a")]))
        });
        sleep(ms(60_000)).await;
        assert!(queries.contains(&counter.load(Relaxed)), "{counter:?} with {interval:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_polled_ends_with_its_pool() {
    let witness = Arc::new(());
    for hangs in [false, true] {
        let (pool, held) = (pool(&["a"]), witness.clone());
        let task = pool.handle().poll_source(ms(5000), move || {
            let held = held.clone();
            async move {
                if hangs {
                    pending::<()>().await;
                }
                drop(held);
                Ok::<_, Infallible>([Member::new("a")])
            }
        });
        sleep(ms(100)).await;
        drop(pool);
        sleep(ms(1)).await;
        assert!(task.is_finished());
        assert_eq!(Arc::strong_count(&witness), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_is_reported_with_its_sources_and_bounded() {
    let pool = pool(&["a"]);
    pool.handle().poll_source(ms(1000), || {
        let source = io::Error::other("ä".repeat(10_000));
        ready(Err::<Vec<Member>, _>(tower_upstream::Failure::from_error(source)))
    });
    sleep(ms(100)).await;
    let problem = problem(&pool.handle());
    assert!(problem.len() <= 200 && problem.ends_with('ä'), "{problem}");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_for_an_hour_is_logged_once_and_so_is_its_return() {
    let (log, _guard) = Log::record();
    let pool = pool(&["a", "b"]);
    let answers = Answers::new(Mutex::new(Err("SERVFAIL")));
    pool.handle().follow_dns_with(&target("shop.test"), resolver(answers.clone()).0);
    sleep(ms(3_600_000)).await;
    assert_eq!(problem(&pool.handle()), "SERVFAIL");
    *answers.lock().unwrap() = Ok(vec!["10.0.0.1"]);
    sleep(ms(20_000)).await;
    *answers.lock().unwrap() = Err("NXDOMAIN");
    sleep(ms(60_000)).await;
    let failed = |members, age, why| {
        let what = "the source of the members failed, they stay as they are";
        format!("WARN tower_upstream: {what}: {why} upstream=\"shop\" members={members} age_s={age}")
    };
    let lines = log.lines();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert_eq!(lines[0], failed(2, 0, "SERVFAIL"));
    assert_eq!(lines[1], "INFO tower_upstream: the source of the members works again upstream=\"shop\"");
    assert!(lines[2].contains("NXDOMAIN") && lines[2].contains("members=1"), "{}", lines[2]);
}

#[tokio::test]
async fn the_system_resolves_names_too() {
    let pool = pool(&[]);
    pool.handle().follow_dns(&target("http://localhost:8080"));
    let mut members = pool.handle().members();
    let found = crate::support::soon(members.wait_for(|members| !members.is_empty())).await.unwrap().clone();
    assert!(found.iter().any(|member| &*member.key == "127.0.0.1:8080" || &*member.key == "[::1]:8080"), "{found:?}");
}
