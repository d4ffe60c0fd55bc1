//! Routes, packet filters and the C library's resolver, in a network of their own.
//!
//! Needs root, `unshare`, `ip` and `iptables`; elsewhere its test says that it was skipped.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use tower_upstream::BadGatewayCause as Cause;
use tower_upstream::cause::Phase;

use super::client::{dial, url};
use super::connect::limited;
use super::descriptors::again_below;
use super::peer::{Peer, upstream};
use super::resolver::serve_names;
use super::table::{Got, check, no_connection, row};
use super::two_reqwests::no_such_name;

const NAME: &str = "error_chains::namespace::routes_filters_and_the_c_resolver_are_told_apart";

fn missing() -> Option<&'static str> {
    if fs::metadata("/proc/self").map_or(0, |this| this.uid()) != 0 {
        return Some("not root");
    }
    let works = |command: &[&str]| {
        let mut run = Command::new(command[0]);
        let run = run.args(&command[1..]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        run.is_ok_and(|status| status.success())
    };
    let tools: [(&[&str], &str); 3] = [
        (&["unshare", "-n", "-m", "true"], "no unshare, or it is not allowed"),
        (&["ip", "-V"], "no ip"),
        (&["iptables", "--version"], "no iptables"),
    ];
    tools.into_iter().find_map(|(command, why)| (!works(command)).then_some(why))
}

fn run(command: &str) {
    let ran = Command::new("sh").args(["-ec", command]).status();
    assert!(ran.is_ok_and(|status| status.success()), "{command}");
}

/// Loopback, odd routes, our own name server; nothing of it outlives the process.
fn furnish() {
    run("ip link set lo up");
    run("ip route add unreachable 127.66.0.1 table local");
    run("ip route add prohibit 127.66.0.2 table local");
    run("ip route add blackhole 127.66.0.3 table local");
    // filters answer each packet, not one a second
    fs::write("/proc/sys/net/ipv4/icmp_ratelimit", "0").expect("the namespace's own setting");
    serve_names("127.0.0.153:53");
    let ours = std::env::temp_dir().join(format!("error-chains-{}.conf", std::process::id()));
    fs::write(&ours, "nameserver 127.0.0.153\noptions timeout:1 attempts:1\n").expect("a temporary file");
    let theirs = fs::canonicalize("/etc/resolv.conf").expect("a resolver is set up");
    run(&format!("mount --bind {} {}", ours.display(), theirs.display()));
    let _ = fs::remove_file(ours);
}

async fn named(name: &str) -> [Got; 2] {
    dial(HttpConnector::new(), format!("http://{name}.test/")).await
}

async fn routed(host: &str) -> [Got; 2] {
    dial(limited(), format!("http://{host}:80/")).await
}

/// A listening port behind one rule of the packet filter.
async fn filtered(rule: &str) -> [Got; 2] {
    let address = upstream(Peer::silence);
    let (chain, target) = rule.split_once(' ').expect("a chain and a target");
    run(&format!("iptables -w -A {chain} -p tcp --dport {} -j {target}", address.port()));
    let got = dial(limited(), url(address)).await;
    run(&format!("iptables -w -F {chain}"));
    got
}

/// The range of local ports holds one, and that one is taken.
async fn without_local_ports() -> [Got; 2] {
    let address = SocketAddr::from(([127, 0, 0, 1], upstream(Peer::silence).port()));
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40000").expect("the namespace's own setting");
    let _taken = TcpStream::connect_timeout(&address, Duration::from_secs(1)).expect("one port is left");
    dial(HttpConnector::new(), url(address)).await
}

#[test]
fn routes_filters_and_the_c_resolver_are_told_apart() {
    if let Some(why) = missing() {
        println!("skipped: {why}");
        return;
    }
    if again_below(&["unshare", "-n", "-m"], NAME).is_some() {
        return;
    }
    furnish();
    let of = |cause| no_connection(cause).phase(Phase::Resolve);
    let timed_out = || no_connection(Cause::ConnectTimeout).phase(Phase::Connect);
    let refused = || no_connection(Cause::ConnectionRefused).errno(111);
    let unroutable = |errno| no_connection(Cause::Unroutable).errno(errno).phase(Phase::Connect);
    check(vec![
        row("A02", "NXDOMAIN", named("nx"), of(Cause::DnsNotFound)),
        row("A03", "SERVFAIL", named("servfail"), of(Cause::DnsFailure)),
        row("A04", "REFUSED", named("refused"), of(Cause::DnsFailure)),
        row("A05", "NODATA", named("nodata"), of(Cause::DnsNotFound)),
        row("A06", "silence", named("silent"), of(Cause::DnsFailure)),
        row("H08", "NXDOMAIN, reqwest", no_such_name(), of(Cause::DnsNotFound)),
        row("A11", "route unreachable", routed("127.66.0.1"), unroutable(113)),
        row("A12", "route prohibit", routed("127.66.0.2"), unroutable(13)),
        row("A13", "route blackhole", routed("127.66.0.3"), no_connection(Cause::ConnectFailed).errno(22)),
        row("A14", "no route", routed("192.0.2.1"), unroutable(101)),
        row("A15", "IN drop", filtered("INPUT DROP"), timed_out()),
        row("A16", "IN reset", filtered("INPUT REJECT --reject-with tcp-reset"), refused()),
        row("A17", "IN port", filtered("INPUT REJECT --reject-with icmp-port-unreachable"), refused()),
        row("A18", "IN admin", filtered("INPUT REJECT --reject-with icmp-admin-prohibited"), unroutable(113)),
        row("A19", "IN host", filtered("INPUT REJECT --reject-with icmp-host-unreachable"), unroutable(113)),
        row("A20", "OUT admin", filtered("OUTPUT REJECT --reject-with icmp-admin-prohibited"), unroutable(113)),
        row("A21", "OUT drop", filtered("OUTPUT DROP"), timed_out()),
        row("A23", "no local port", without_local_ports(), no_connection(Cause::GatewayResources).errno(99)),
    ]);
}
