//! Bodies stream: a gibibyte takes no memory, and who does not read is not written to for ever.
//!
//! Gateway, upstream and client share this process, and none of them keeps what passes. The tests take
//! turns, so that each measures itself alone.

// helpers fail their test
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use support::{Gateway, PATIENCE, Upstream, Wire, proxy, short};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tower_upstream::timeout::Timeouts;

static TURN: Mutex<()> = Mutex::const_new(());

const GIB: u64 = 1 << 30;
const PIECE: usize = 256 << 10;
/// Far more than sockets and hyper hold, far less than what is sent.
const BOUND: u64 = 64 << 20;

/// This process' memory, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Reads so many bytes, looking at the memory now and then; the most it grew.
async fn drain(stream: &mut TcpStream, length: u64, before: u64) -> (u64, u64) {
    let (mut buffer, mut read, mut grown, mut look) = (vec![0; PIECE], 0, 0, 0);
    while read < length {
        let got = stream.read(&mut buffer).await.unwrap() as u64;
        if got == 0 {
            break;
        }
        read += got;
        if read >= look {
            grown = resident().saturating_sub(before).max(grown);
            look = read + (8 << 20);
        }
    }
    (read, grown)
}

async fn pour(stream: &mut TcpStream, length: u64) {
    let piece = vec![b'x'; PIECE];
    for _ in 0..length / PIECE as u64 {
        stream.write_all(&piece).await.unwrap();
    }
}

fn patient() -> Timeouts {
    Timeouts::new().head(PATIENCE).body_idle(PATIENCE)
}

#[tokio::test]
async fn a_download_of_a_gibibyte_takes_no_memory() {
    let _turn = TURN.lock().await;
    let upstream = Upstream::scripted(|mut wire, _| async move {
        wire.request().await.unwrap();
        wire.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {GIB}\r\n\r\n")).await;
        pour(&mut wire.into_inner(), GIB).await;
    })
    .await;
    let gateway = Gateway::limited(proxy(upstream.address), patient()).await;
    let before = resident();
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let (read, grown) = drain(&mut stream, u64::MAX, before).await;
    assert!((GIB..GIB + 1000).contains(&read), "{read}");
    assert!(grown < BOUND, "{grown} bytes more");
    assert_eq!(gateway.seen.causes(), []);
}

#[tokio::test]
async fn an_upload_of_a_gibibyte_takes_no_memory() {
    let _turn = TURN.lock().await;
    let before = resident();
    let upstream = Upstream::scripted(move |mut wire, _| async move {
        wire.request_head().await.unwrap();
        let begun = wire.buffered() as u64;
        let mut stream = wire.into_inner();
        let (read, grown) = drain(&mut stream, GIB - begun, before).await;
        let told = format!("{} {grown}", read + begun);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", told.len());
        stream.write_all(format!("{head}{told}").as_bytes()).await.unwrap();
    })
    .await;
    let gateway = Gateway::limited(proxy(upstream.address), patient().total(None)).await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {GIB}\r\n\r\n").as_bytes()).await.unwrap();
    pour(&mut stream, GIB).await;
    let answer = Wire::new(stream).answer().await.text();
    let (read, grown) = answer.split_once(' ').unwrap();
    assert_eq!(read, GIB.to_string());
    assert!(grown.parse::<u64>().unwrap() < BOUND, "{grown} bytes more");
    assert_eq!(gateway.seen.causes(), []);
}

/// Waits until the count stands still, and says where.
async fn at_rest(count: &AtomicU64) -> u64 {
    let (mut last, mut still) = (0, 0);
    for _ in 0..900 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let now = count.load(SeqCst);
        still = if now == last && now > 0 { still + 1 } else { 0 };
        if still == 50 {
            return now;
        }
        last = now;
    }
    panic!("it never stood still");
}

#[tokio::test]
async fn an_upstream_whose_answer_nobody_reads_has_to_wait() {
    const LENGTH: u64 = 4 * BOUND;
    let _turn = TURN.lock().await;
    let written = Arc::new(AtomicU64::new(0));
    let count = written.clone();
    let upstream = Upstream::scripted(move |mut wire, _| {
        let count = count.clone();
        async move {
            wire.request().await.unwrap();
            wire.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n")).await;
            let mut stream = wire.into_inner();
            while count.load(SeqCst) < LENGTH {
                pour(&mut stream, PIECE as u64).await;
                count.fetch_add(PIECE as u64, SeqCst);
            }
        }
    })
    .await;
    // the limits on the upstream rest as long as nobody reads: the wait is longer than they are
    let gateway = Gateway::limited(proxy(upstream.address), short()).await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let waited_at = at_rest(&written).await;
    assert!(waited_at < BOUND, "{waited_at} bytes were taken though nobody read them");
    let (read, _) = drain(&mut stream, u64::MAX, 0).await;
    assert!((LENGTH..LENGTH + 1000).contains(&read), "{read}");
    assert_eq!(gateway.seen.causes(), []);
}

#[tokio::test]
async fn a_client_whose_upload_nobody_reads_has_to_wait() {
    let _turn = TURN.lock().await;
    let release = Arc::new(tokio::sync::Notify::new());
    let go_on = release.clone();
    let upstream = Upstream::scripted(move |mut wire, _| {
        let go_on = go_on.clone();
        async move {
            wire.request_head().await.unwrap();
            go_on.notified().await;
            let begun = wire.buffered() as u64;
            let mut stream = wire.into_inner();
            drain(&mut stream, 4 * BOUND - begun, 0).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let gateway = Gateway::limited(proxy(upstream.address), patient()).await;
    let (mut read, mut write) = TcpStream::connect(gateway.address).await.unwrap().into_split();
    let written = Arc::new(AtomicU64::new(0));
    let count = written.clone();
    let upload = tokio::spawn(async move {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 4 * BOUND);
        write.write_all(head.as_bytes()).await.unwrap();
        let piece = vec![b'x'; PIECE];
        while count.load(SeqCst) < 4 * BOUND {
            write.write_all(&piece).await.unwrap();
            count.fetch_add(PIECE as u64, SeqCst);
        }
        write
    });
    let waited_at = at_rest(&written).await;
    assert!(waited_at < BOUND, "{waited_at} bytes were taken though nobody read them");
    release.notify_one();
    let _write = support::soon(upload).await.unwrap();
    let mut answer = [0; 12];
    support::soon(read.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}
