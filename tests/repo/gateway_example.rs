//! The gateway example as a person starts it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Beside the test's own binary, where `cargo test` builds it too.
fn example() -> Option<Command> {
    let here = std::env::current_exe().unwrap();
    let built: PathBuf = here.parent()?.parent()?.join("examples/gateway");
    if !built.exists() {
        println!("skipped: {} is not built", built.display());
        return None;
    }
    let mut command = Command::new(built);
    for name in ["CONFIG", "LISTEN", "UPSTREAM", "UPSTREAM_CA", "UPSTREAM_HTTP2", "WORKERS", "NAME", "RUST_LOG"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Some(command)
}

/// Below the ports that the system hands out by itself, so that no connection takes it meanwhile.
fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let port = 15_000 + (std::process::id() * 16 + NEXT.fetch_add(1, Ordering::Relaxed)) % 15_000;
        let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// A process that is killed at the end of the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    for _ in 0..500 {
        if let Ok(stream) = TcpStream::connect(address) {
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            return stream;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    panic!("the gateway never listened at {address}");
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = connect(address);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // a truncated response ends in an error; the bytes before it are what is tested
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn an_argument_is_one_clear_line_and_exit_2() {
    let Some(mut command) = example() else { return };
    let output = command.arg("--listen").output().unwrap();
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), complaint.lines().count()), (Some(2), 1), "{complaint}");
    assert!(complaint.contains("--listen") && complaint.contains("UPSTREAM"), "{complaint}");
}

#[test]
fn a_bad_value_is_one_clear_line_and_exit_2() {
    let Some(_) = example() else { return };
    let rows = [
        ("LISTEN", "here"),
        ("UPSTREAM", "ftp://files"),
        ("UPSTREAM", "here"),
        ("UPSTREAM", "http://user@host"),
        ("UPSTREAM_CA", "/no/such/file"),
        ("UPSTREAM_CA", "/dev/null"),
        ("UPSTREAM_HTTP2", "yes"),
        ("CONNECT_TIMEOUT_MS", "1s"),
        ("READ_TIMEOUT_MS", "0"),
        ("WORKERS", "0"),
        ("NAME", "two words"),
    ];
    for (name, value) in rows {
        let listen = free_address().to_string();
        let mut command = example().unwrap();
        let output = command.env("LISTEN", listen).env("UPSTREAM", "127.0.0.1:1").env(name, value).output().unwrap();
        let complaint = String::from_utf8(output.stderr).unwrap();
        let last = complaint.lines().last().unwrap_or_default();
        assert_eq!(output.status.code(), Some(2), "{name}={value}: {complaint}");
        assert!(last.contains(name) && last.contains(value), "{name}={value}: {complaint}");
        assert!(!complaint.contains("panicked"), "{complaint}");
    }
}

#[test]
fn the_default_settings_start_without_a_warning() {
    let Some(mut command) = example() else { return };
    let listen = free_address();
    command.env("LISTEN", listen.to_string()).env("UPSTREAM", "127.0.0.1:1").env("RUST_LOG", "warn");
    let mut running = Running(command.spawn().unwrap());
    // it listens before it reads the settings, and responds after
    assert!(get(listen, "/").starts_with("HTTP/1.1 502"));
    running.0.kill().unwrap();
    let mut log = String::new();
    running.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(!log.contains("attempts_total") && !log.contains("finding="), "{log}");
}

#[test]
fn the_ten_failing_upstreams_start_without_a_warning() {
    let Some(mut command) = example() else { return };
    let listen = free_address();
    let mut running = Running(command.env("LISTEN", listen.to_string()).spawn().unwrap());
    assert!(get(listen, "/").contains("curl -i"));
    running.0.kill().unwrap();
    let mut log = String::new();
    running.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(!log.contains("WARN"), "{log}");
}

#[test]
fn settings_that_conflict_are_a_warning_in_plain_words() {
    let Some(mut command) = example() else { return };
    let listen = free_address();
    command.env("LISTEN", listen.to_string()).env("UPSTREAM", "127.0.0.1:1").env("READ_TIMEOUT_MS", "60000");
    let mut running = Running(command.spawn().unwrap());
    assert!(get(listen, "/").starts_with("HTTP/1.1 502"));
    running.0.kill().unwrap();
    let mut log = String::new();
    running.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(log.contains("3 attempts plus backoff can take 180.075 s, but `total` is 60 s: "), "{log}");
    assert!(log.contains("; set the total to at least 180.075 s"), "{log}");
}

#[test]
fn without_upstream_ten_failing_ones_are_started_and_each_failure_is_named() {
    let Some(mut command) = example() else { return };
    let address = free_address();
    let mut running = Running(command.env("LISTEN", address.to_string()).env("WORKERS", "1").spawn().unwrap());
    let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.next().unwrap().contains("ten"));
    let curls: Vec<String> = lines.by_ref().take_while(|line| line.contains("curl -i")).collect();
    assert_eq!(curls.len(), 10);

    let named = [
        ("/refused", "error=connection_refused"),
        ("/empty", "error=connection_terminated"),
        ("/reset", "error=connection_terminated"),
        ("/hang", "error=connection_read_timeout"),
        ("/half-head", "error=http_response_incomplete"),
        ("/half-body", "200 OK"),
        ("/garbage", "error=http_protocol_error"),
        ("/smuggle", "error=http_protocol_error"),
        ("/busy", "received-status=503"),
        ("/stale", "200 OK"),
    ];
    for (path, says) in named {
        let answer = get(address, path);
        assert!(answer.contains(says), "{path}: {answer}");
        assert!(curls.iter().any(|curl| curl.contains(&format!("{path} "))), "{path} is not among {curls:?}");
    }
    // its connection is closed after the first response
    assert!(get(address, "/stale").starts_with("HTTP/1.1 "));
    assert!(get(address, "/").contains("curl -i"));
}

/// An upstream that responds with its name, until the process ends.
fn named(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 1024];
            let _ = stream.read(&mut head);
            let length = name.len();
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{name}");
        }
    });
    address
}

#[test]
fn several_addresses_are_endpoints_of_one_upstream() {
    let Some(mut command) = example() else { return };
    let (listen, dead) = (free_address(), free_address());
    let upstreams = format!("{},{dead},{}", named("one"), named("two"));
    let _running = Running(command.env("LISTEN", listen.to_string()).env("UPSTREAM", upstreams).spawn().unwrap());
    let answers: Vec<_> = (0..40).map(|_| get(listen, "/")).collect();
    assert!(answers.iter().all(|answer| answer.starts_with("HTTP/1.1 200")), "{answers:?}");
    assert!(["one", "two"].iter().all(|name| answers.iter().any(|answer| answer.ends_with(name))));
}

#[test]
fn the_file_with_three_services_starts_without_a_warning() {
    let Some(mut command) = example() else { return };
    let listen = free_address();
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/gateway/gateway.toml");
    assert!(std::fs::read_to_string(&file).unwrap().lines().count() < 120);
    command.env("LISTEN", listen.to_string()).env("CONFIG", file).env("RUST_LOG", "warn,tower_upstream=error");
    let mut running = Running(command.spawn().unwrap());
    assert!(get(listen, "/").starts_with("HTTP/1.1 404"), "no route has this host");
    running.0.kill().unwrap();
    let mut log = String::new();
    running.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert_eq!(log, "");
}

#[test]
fn a_file_routes_by_host_and_path_and_is_applied_when_it_changes() {
    let Some(mut command) = example() else { return };
    let listen = free_address();
    let file = std::env::temp_dir().join(format!("gateway-{}.toml", listen.port()));
    let (shop, api, blog) = (named("shop"), named("api"), named("blog"));
    let write = |routes: &str| {
        let upstream =
            |name, address| format!("[[upstream]]\nname = \"{name}\"\nendpoint = [{{ address = \"{address}\" }}]\n");
        let text = format!("{routes}\n{}{}{}", upstream("shop", shop), upstream("api", api), upstream("blog", blog));
        std::fs::write(&file, text).unwrap();
    };
    let route = |host: &str, path: &str, to: &str| {
        format!("[[route]]\nhost = \"{host}\"\npath = \"{path}\"\nupstream = \"{to}\"\n")
    };
    write(&(route("x", "/", "shop") + &route("x", "/api", "api") + &route("blog.test", "/", "blog")));
    let mut running = Running(command.env("LISTEN", listen.to_string()).env("CONFIG", &file).spawn().unwrap());
    let ends = |path, name| assert!(get(listen, path).ends_with(name), "{path}: {}", get(listen, path));
    ends("/", "shop");
    ends("/api", "api");
    ends("/api/orders", "api");
    ends("/apis", "shop");

    write("[[route]]\nupstream = \"shup\"\n");
    let hangup = |running: &Running| {
        let pid = running.0.id().to_string();
        assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    };
    hangup(&running);
    ends("/api", "api");
    write(&route("x", "/", "blog"));
    hangup(&running);
    for _ in 0..500 {
        if get(listen, "/api").ends_with("blog") {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    ends("/api", "blog");
    running.0.kill().unwrap();
    let mut log = String::new();
    running.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(log.contains("there is no upstream \"shup\"") && log.contains("configuration applied"), "{log}");
    let _ = std::fs::remove_file(file);
}

/// The example before a listener that the test answers for, and the example's address.
fn before_a_silent_upstream() -> Option<(Running, TcpListener, SocketAddr)> {
    let mut command = example()?;
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, to) = (free_address(), upstream.local_addr().unwrap().to_string());
    let running = Running(command.env("LISTEN", address.to_string()).env("UPSTREAM", to).spawn().unwrap());
    Some((running, upstream, address))
}

#[test]
fn sigterm_completes_running_calls_and_accepts_no_new_ones() {
    let Some((mut running, upstream, address)) = before_a_silent_upstream() else { return };
    let mut idle = connect(address);
    let mut client = connect(address);
    write!(client, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let (mut behind, _) = upstream.accept().unwrap();
    let mut head = [0; 512];
    assert!(behind.read(&mut head).unwrap() > 0);

    let pid = running.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    // the idle connection is closed immediately, which shows that the signal has arrived
    assert_eq!(idle.read(&mut head).unwrap(), 0);
    behind.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("done"), "{answer}");
    assert!(running.0.wait().unwrap().success());
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn sigterm_lets_an_open_tunnel_end_before_the_process_does() {
    let Some((mut running, upstream, address)) = before_a_silent_upstream() else { return };
    let mut idle = connect(address);
    let mut client = connect(address);
    write!(client, "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\n").unwrap();
    let (mut behind, _) = upstream.accept().unwrap();
    let mut read = [0; 1024];
    assert!(behind.read(&mut read).unwrap() > 0);
    behind.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\n").unwrap();
    let head = client.read(&mut read).unwrap();
    assert!(read[..head].starts_with(b"HTTP/1.1 101 "));

    let pid = running.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(idle.read(&mut read).unwrap(), 0, "the signal has arrived");
    for _ in 0..10 {
        client.write_all(b"ping").unwrap();
        behind.read_exact(&mut read[..4]).unwrap();
        behind.write_all(&read[..4]).unwrap();
        client.read_exact(&mut read[..4]).unwrap();
        assert!(running.0.try_wait().unwrap().is_none());
        std::thread::park_timeout(Duration::from_millis(20));
    }
    drop((client, behind));
    assert!(running.0.wait().unwrap().success());
}
