//! Prints the alignment reports of a few deployments; the last one has no findings.
//!
//! ```console
//! cargo run --example align
//! ```

use std::time::Duration;

use tower_upstream::alignment::Topology;
use tower_upstream::alignment::peers;
use tower_upstream::breaker::Ratio;
use tower_upstream::retry::Quantile;
use tower_upstream::timeout::Timeouts;

const fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}

const fn secs(number: u64) -> Duration {
    Duration::from_secs(number)
}

fn main() {
    let alb = Topology::new().load_balancer(peers::AWS_ALB);
    show(
        "The next axum behind an ALB, all defaults: a keep-alive of 30 s, an idle timeout of 60 s",
        Timeouts::new(),
        &alb.clone().server(peers::AXUM_NEXT),
    );

    show(
        "hyper-util's pool in front of Node.js: an idle timeout of 90 s, a keep-alive of 5 s",
        Timeouts::new().total(secs(30)),
        &alb.clone().server(peers::AXUM).upstream(peers::NODE).pool_idle(peers::HYPER_UTIL_POOL_IDLE),
    );

    show(
        "A mobile client that waits 3 s, and three attempts that take longer together",
        Timeouts::new().response_head(secs(2)).attempt(secs(2)).total(secs(3)),
        &Topology::new()
            .client_timeout(secs(3))
            .connect(ms(1500))
            .upstream_timeout(secs(2))
            .attempts(3)
            .backoff(ms(25), secs(1)),
    );

    show(
        "Server-sent events under the timeouts of an ordinary route",
        Timeouts::new().body_idle(secs(15)).total(secs(15)),
        &alb.clone().server(peers::AXUM).heartbeat(secs(20)),
    );

    let fits = Topology::new()
        .client_timeout(secs(10))
        .load_balancer(peers::AWS_ALB)
        .load_balancer_propagation(secs(15))
        .server(peers::AXUM_NEXT.keep_alive(secs(75)))
        .upstream(peers::UVICORN)
        .upstream_timeout(ms(1500))
        .connect(ms(500))
        .pool_idle(secs(3))
        .attempts(3)
        .backoff(ms(25), secs(1))
        .retry_after(secs(5))
        .hedge_delay(ms(400))
        .budget_window(secs(10))
        .breaker(secs(2), secs(10))
        .probe_timeout(secs(1))
        .breaker_min_requests(20)
        .rate(40, secs(1))
        .drain_delay(secs(20))
        .grace(secs(30))
        .replay(64 << 10, 2_000, 256 << 20)
        .learned_quantile(Quantile::P99_5)
        .hang_share(Ratio::per_mille(2));
    let timeouts = Timeouts::new().response_head(ms(1800)).attempt(secs(2)).total(secs(8));
    show("Everything declared, and everything fits", timeouts, &fits);

    // the error of a failed start: only the refused findings
    if let Err(misaligned) = timeouts.total(secs(10)).checked(&fits) {
        println!("\nWith a total of 10 s:\n\n{misaligned}");
    }
}

fn show(title: &str, timeouts: Timeouts, topology: &Topology) {
    println!("=== {title}\n\n{}\n", timeouts.check(topology));
}
