//! The jobs that are measured, each with one kind of request and one kind of upstream.

/// The request of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// GET without a body.
    Get,
    /// POST with 16 bytes.
    Post,
}

/// The behaviour of the upstream while it is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Does {
    /// It responds immediately.
    Answers,
    /// Its future is pending once, so that timers are armed.
    Pends,
    /// Its response's first frame comes two polls late.
    IsLate,
    /// It fails the first attempt of each call without having been sent the request.
    FailsFirst,
    /// It failed until the circuit opened: every measured call is refused.
    Opened,
}

/// A job of a layer or a stack: a row of the table.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) name: &'static str,
    pub(crate) ask: Ask,
    pub(crate) does: Does,
    /// Number of calls that warm a service up.
    pub(crate) warm: u32,
}

impl Job {
    const fn new(name: &'static str, ask: Ask, does: Does) -> Self {
        Self { name, ask, does, warm: 200 }
    }

    /// Each endpoint of a pool has to be called once.
    const fn warmed_by(self, warm: u32) -> Self {
        Self { warm, ..self }
    }
}

pub(crate) static TIMEOUT: Job = Job::new("timeout", Ask::Get, Does::Answers);
pub(crate) static TIMEOUT_PENDING: Job = Job::new("timeout, pending once", Ask::Get, Does::Pends);
pub(crate) static BREAKER: Job = Job::new("circuit breaker", Ask::Get, Does::Answers);
pub(crate) static BREAKER_OPEN: Job = Job::new("circuit breaker, open", Ask::Get, Does::Opened);
pub(crate) static LIMIT: Job = Job::new("concurrency limit", Ask::Get, Does::Answers);
pub(crate) static LIMIT_ADAPTIVE: Job = Job::new("concurrency limit that learns", Ask::Get, Does::Answers);
pub(crate) static RETRY: Job = Job::new("retry with a budget, GET", Ask::Get, Does::Answers);
pub(crate) static RETRY_NOT: Job = Job::new("the same, POST not to be repeated", Ask::Post, Does::Answers);
pub(crate) static RETRY_OFF: Job = Job::new("retry with one attempt", Ask::Get, Does::Answers);
pub(crate) static ADMISSION: Job = Job::new("admission", Ask::Get, Does::Answers);
pub(crate) static CLASSIFY: Job = Job::new("classification", Ask::Get, Does::Answers);
pub(crate) static POOL_1: Job = Job::new("pool of 1 endpoint", Ask::Get, Does::Answers);
pub(crate) static POOL_2: Job = Job::new("pool of 2 endpoints", Ask::Get, Does::Answers);
pub(crate) static POOL_100: Job = Job::new("pool of 100 endpoints", Ask::Get, Does::Answers);
pub(crate) static POOL_10000: Job = Job::new("pool of 10,000 endpoints", Ask::Get, Does::Answers).warmed_by(50_000);
pub(crate) static STACK: Job = Job::new("stack, GET", Ask::Get, Does::Answers);
pub(crate) static STACK_PENDING: Job = Job::new("stack, GET, pending once", Ask::Get, Does::Pends);
pub(crate) static STACK_LATE: Job = Job::new("stack, GET, first frame late", Ask::Get, Does::IsLate);
pub(crate) static STACK_REPEATED: Job =
    Job::new("stack, GET, first attempt fails and is repeated", Ask::Get, Does::FailsFirst);
pub(crate) static STACK_POST: Job = Job::new("stack, POST not to be repeated", Ask::Post, Does::Answers);
pub(crate) static STACK_POST_PENDING: Job = Job::new("stack, the same, pending once", Ask::Post, Does::Pends);
pub(crate) static STACK_POST_LATE: Job = Job::new("stack, the same, first frame late", Ask::Post, Does::IsLate);
pub(crate) static STACK_OPEN: Job = Job::new("stack, POST, circuit open", Ask::Post, Does::Opened);

/// The rows of the table, in its order.
pub(crate) static ALL: [&Job; 23] = [
    &TIMEOUT,
    &TIMEOUT_PENDING,
    &BREAKER,
    &BREAKER_OPEN,
    &LIMIT,
    &LIMIT_ADAPTIVE,
    &RETRY,
    &RETRY_NOT,
    &RETRY_OFF,
    &ADMISSION,
    &CLASSIFY,
    &POOL_1,
    &POOL_2,
    &POOL_100,
    &POOL_10000,
    &STACK,
    &STACK_PENDING,
    &STACK_LATE,
    &STACK_REPEATED,
    &STACK_POST,
    &STACK_POST_PENDING,
    &STACK_POST_LATE,
    &STACK_OPEN,
];
