//! Several upstreams from a file, routed by host and path, and reloaded while the gateway runs.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use http::uri::Authority;
use http::{Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::Service;
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};
use tower::ServiceExt;
use tower_upstream::forward::{ClientInfo, ForwardingRules, Scheme};
use tower_upstream::stack::{UpstreamConfig, UpstreamProxy, UpstreamProxyBody};

/// How often the file is checked for a change.
const CHECK: Duration = Duration::from_secs(1);

/// A file with routes and upstreams.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    #[serde(default, rename = "route")]
    routes: Vec<Route>,
    #[serde(rename = "upstream")]
    upstreams: Vec<UpstreamConfig>,
}

/// A route: the requests that go to an upstream.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Route {
    /// The host, without a port; default: any host.
    host: Option<String>,
    /// The prefix of the path, in whole segments; default: any path.
    path: Option<String>,
    /// The name of the upstream.
    upstream: String,
}

impl File {
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Creates a file with one upstream for all requests.
    pub(crate) fn single(upstream: UpstreamConfig) -> Self {
        Self { routes: Vec::new(), upstreams: vec![upstream] }
    }
}

/// The routes and upstreams in use.
struct Table {
    routes: Vec<Route>,
    upstreams: HashMap<String, UpstreamProxy<Incoming>>,
    /// The upstream of all requests, if there are no routes.
    only: Option<UpstreamProxy<Incoming>>,
}

impl Table {
    /// Returns the upstream of the matching route. Routes with a host come first, then those with a longer path.
    fn find<B>(&self, request: &Request<B>) -> Option<&UpstreamProxy<Incoming>> {
        let authority = || request.headers().get(header::HOST)?.to_str().ok()?.parse::<Authority>().ok();
        let authority = request.uri().authority().cloned().or_else(authority);
        let host = authority.as_ref().map(Authority::host);
        let path = request.uri().path();
        let matches = |route: &&Route| {
            let has_host =
                route.host.as_deref().is_none_or(|own| host.is_some_and(|host| host.eq_ignore_ascii_case(own)));
            has_host && route.path.as_deref().is_none_or(|prefix| is_below(path, prefix))
        };
        let rank = |route: &&Route| (route.host.is_some(), route.path.as_deref().map_or(0, str::len));
        match self.routes.iter().filter(matches).max_by_key(rank) {
            Some(route) => self.upstreams.get(&route.upstream),
            None => self.only.as_ref(),
        }
    }
}

/// Whether a path equals a prefix or lies below it.
fn is_below(path: &str, prefix: &str) -> bool {
    let prefix = prefix.trim_end_matches('/');
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A gateway to the upstreams of a file; clones share them.
#[derive(Clone)]
pub(crate) struct Gateway {
    table: Arc<RwLock<Arc<Table>>>,
    rules: ForwardingRules,
}

impl Gateway {
    pub(crate) fn new(file: File, name: &str) -> Result<Self, String> {
        let rules = ForwardingRules::new(name).map_err(|error| format!("NAME={name}: {error}"))?;
        let table = table(file, &rules, None)?;
        Ok(Self { table: Arc::new(RwLock::new(Arc::new(table))), rules })
    }

    /// Returns the service for one accepted connection.
    pub(crate) fn for_client(&self, peer: SocketAddr) -> ForClient {
        ForClient { gateway: self.clone(), client: ClientInfo::new(Some(peer.ip()), Scheme::Http) }
    }

    /// Waits until the upstreams have no open WebSocket connection.
    pub(crate) async fn drain(self) {
        for upstream in self.current().upstreams.values() {
            let _ = upstream.handle().drain(Duration::MAX).await;
        }
    }

    fn current(&self) -> Arc<Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Applies the file after a SIGHUP and after each change; a bad file changes nothing.
    pub(crate) async fn reload(self, path: PathBuf) {
        let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
        let mut seen = modified(&path);
        loop {
            let forced = tokio::select! {
                _ = hangup.recv() => true,
                () = tokio::time::sleep(CHECK) => false,
            };
            let now = modified(&path);
            if !forced && now == seen {
                continue;
            }
            seen = now;
            match File::read(&path).and_then(|file| table(file, &self.rules, Some(&self.current()))) {
                Ok(table) => {
                    *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
                    tracing::info!(file = %path.display(), "configuration applied");
                }
                Err(error) => {
                    tracing::error!("configuration not applied, the previous one stays in use: {error}");
                }
            }
        }
    }
}

fn modified(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// Builds the upstreams of a file. All of them are validated before a running one is changed. A running one is replaced
/// if a setting has changed that cannot change while it runs.
fn table(file: File, rules: &ForwardingRules, running: Option<&Table>) -> Result<Table, String> {
    let mut problems = String::new();
    let mut built: Vec<(String, UpstreamProxy<Incoming>, UpstreamConfig)> = Vec::new();
    for config in file.upstreams {
        let name = config.name().unwrap_or_default().to_owned();
        match config.clone().proxy(rules.clone()) {
            Ok(_) if built.iter().any(|(other, ..)| *other == name) => {
                let _ = write!(problems, "\ntwo upstreams have the name {name:?}");
            }
            Ok(upstream) => built.push((name, upstream, config)),
            Err(errors) => {
                let _ = write!(problems, "\n{errors}");
            }
        }
    }
    for Route { upstream, path, .. } in &file.routes {
        if !built.iter().any(|(name, ..)| name == upstream) {
            let _ = write!(problems, "\nroute: there is no upstream {upstream:?}");
        }
        if path.as_ref().is_some_and(|path| !path.starts_with('/')) {
            let _ = write!(problems, "\nroute to {upstream:?}: the path does not begin with a slash");
        }
    }
    if file.routes.is_empty() && built.len() > 1 {
        problems.push_str("\nthere are several upstreams and no [[route]]: add one for each upstream");
    }
    if !problems.is_empty() {
        return Err(problems.trim_start().to_owned());
    }
    let upstreams: HashMap<_, _> = built
        .into_iter()
        .map(|(name, new, config)| {
            let running = running.and_then(|running| running.upstreams.get(&name));
            let kept = running.filter(|running| match running.apply(config) {
                Ok(()) => true,
                Err(errors) => {
                    tracing::info!("upstream replaced, its connections are opened again: {errors}");
                    false
                }
            });
            (name, kept.cloned().unwrap_or(new))
        })
        .collect();
    let only = if upstreams.len() == 1 { upstreams.values().next().cloned() } else { None };
    let only = only.filter(|_| file.routes.is_empty());
    Ok(Table { routes: file.routes, upstreams, only })
}

/// The service for one accepted connection.
pub(crate) struct ForClient {
    gateway: Gateway,
    client: ClientInfo,
}

impl Service<Request<Incoming>> for ForClient {
    type Response = Response<UpstreamProxyBody<Incoming>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.client.clone());
        let table = self.gateway.current();
        let Some(upstream) = table.find(&request) else {
            let mut response = Response::new(bytes::Bytes::from_static(b"no route\n").into());
            *response.status_mut() = StatusCode::NOT_FOUND;
            return Box::pin(std::future::ready(Ok(response)));
        };
        Box::pin(upstream.service().oneshot(request))
    }
}
