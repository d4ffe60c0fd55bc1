//! Time that passes at once, for tests over real sockets.

use std::time::Duration;

/// Advances the clock in steps; after each, tasks that are due run, and what they send arrives.
///
/// Between steps the clock runs as usual: a clock that stays paused would jump to the next timer whenever all tasks wait,
/// though bytes may still be under way in the kernel. It needs a runtime of one thread.
pub(crate) async fn skip(steps: u32, step: Duration) {
    for _ in 0..steps {
        tokio::time::pause();
        tokio::time::advance(step).await;
        tokio::time::resume();
        // each polls the sockets once: a message takes several hops
        for _ in 0..32 {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
