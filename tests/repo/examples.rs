//! The examples run as a person runs them: without arguments, and with a wrong one.
//!
//! `cargo test` builds them; `cargo test --test repo` alone runs those that are there. The gateway has tests of its
//! own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

/// Beside the test's own binary, where `cargo test` builds it too.
fn example(name: &str) -> Option<Command> {
    let here = std::env::current_exe().unwrap();
    let built: PathBuf = here.parent()?.parent()?.join("examples").join(name);
    if !built.exists() {
        println!("skipped: {} is not built", built.display());
        return None;
    }
    let mut command = Command::new(built);
    command.env_remove("LISTEN").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Some(command)
}

/// A process that is killed at the end of the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Waits for its end.
    fn ended(&mut self) -> Output {
        for _ in 0..6_000 {
            if let Some(status) = self.0.try_wait().unwrap() {
                let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
                if let Some(pipe) = &mut self.0.stdout {
                    pipe.read_to_end(&mut stdout).unwrap();
                }
                self.0.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
                return Output { status, stdout, stderr };
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        panic!("it never ends");
    }

    /// Its output, and the address in its first line.
    fn introduced(&mut self) -> (BufReader<ChildStdout>, SocketAddr) {
        let mut lines = BufReader::new(self.0.stdout.take().unwrap());
        let (told, said) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut first = String::new();
            lines.read_line(&mut first).unwrap();
            told.send((lines, first))
        });
        // a binary of other sources may print nothing
        let (lines, first) = said.recv_timeout(Duration::from_secs(60)).expect("its first line");
        let address = first.trim().strip_prefix("listening at http://").unwrap_or_else(|| panic!("{first}"));
        (lines, address.parse().unwrap())
    }
}

/// The output of an example that ends by itself, successfully.
fn printed(name: &str) -> Option<String> {
    let output = Running(example(name)?.spawn().unwrap()).ended();
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && complaint.is_empty(), "{name}: {:?}, {complaint}", output.status);
    Some(String::from_utf8(output.stdout).unwrap())
}

fn get(address: SocketAddr, path: &str, field: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{field}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn one_layer_alone_opens_its_circuit_around_a_function() {
    let Some(said) = printed("embedded") else { return };
    let lines: Vec<_> = said.lines().collect();
    let (errors, rest) = lines.split_at(5);
    assert!(errors.iter().all(|line| line.ends_with("the client's own error: connection refused")), "{said}");
    assert!(rest[..2].iter().all(|line| line.contains("503") && line.contains("circuit_open")), "{said}");
    assert_eq!(rest[2..], ["the circuit is Open after 5 failures, 2 refused"]);
}

#[test]
fn two_clients_behave_alike_in_one_stack() {
    let Some(said) = printed("client") else { return };
    let (hyper_util, reqwest) = said.split_once("reqwest:\n").unwrap();
    assert_eq!(hyper_util.strip_prefix("hyper-util:\n").unwrap(), reqwest);
    let lines: Vec<_> = reqwest.lines().map(str::trim).collect();
    let repeated = ["attempt 1: closed_before_response", "attempt 2: upstream_status", "200 OK, attempts: 3, tea"];
    assert_eq!(lines[1..4], repeated);
    assert!(lines[5].starts_with("502 Bad Gateway, attempts: 1, closed_before_response"), "{said}");
    assert!(lines[5].contains("not retried (the method is not idempotent)"), "{said}");
    // a request that was not sent is sent again whatever its method
    assert!(lines[7].starts_with("502 Bad Gateway, attempts: 2, connection_refused"), "{said}");
}

#[test]
fn a_grpc_client_gets_grpc_statuses() {
    let Some(said) = printed("grpc") else { return };
    let lines: Vec<_> = said.lines().map(str::trim).filter(|line| !line.starts_with("(server")).collect();
    let refused = |line: &&str| line.starts_with("Unavailable") && line.contains("cause=connection_refused");
    let open = |line: &&str| line.starts_with("Unavailable") && line.contains("cause=circuit_open");
    // one request is one vote, however many attempts it took
    assert!(lines[1..6].iter().all(refused) && lines[6..7].iter().all(open), "{said}");
    assert_eq!(lines[8], "tea");
    assert!(lines[10].starts_with("DeadlineExceeded"), "{said}");
    assert!(lines[12].starts_with("ResourceExhausted"), "{said}");
    assert_eq!(lines[13..15], ["tea", "tea"]);
    assert!(lines[15].starts_with("11 calls, in flight 0"), "{said}");
    assert_eq!(said.matches("(server: ").count(), 4, "{said}");
}

#[test]
fn misaligned_timeouts_are_named() {
    let Some(said) = printed("align") else { return };
    assert_eq!(said.matches("=== ").count(), 5);
    assert!(said.contains("With a total of 10 s"), "{said}");
}

#[test]
fn an_axum_app_responds_as_its_curl_lines_say() {
    let Some(mut command) = example("axum_app") else { return };
    let mut running = Running(command.spawn().unwrap());
    let (mut said, address) = running.introduced();
    let curls: Vec<_> = said.by_ref().lines().map(Result::unwrap).skip(1).take(8).collect();
    let answers: Vec<_> = curls
        .iter()
        .map(|curl| {
            let asked = curl.strip_prefix(&format!("curl -i http://{address}")).unwrap();
            let (asked, _) = asked.split_once(" # ").unwrap();
            let (path, field) = asked.trim().split_once(" -H ").unwrap_or((asked.trim(), "'Accept: */*'"));
            get(address, path, field.trim_matches('\''))
        })
        .collect();

    let expected = [
        (200, "tea: 4.20, attempts: 2\n"),
        (503, "Write to help@shop.example.\n"),
        (200, "all is well\n"),
        (504, "Write to help@shop.example.\n"),
        (200, "the upstream's own words\n"),
        (504, "Write to help@shop.example.\n"),
        (502, "</html>\n"),
        (200, "]\n"),
    ];
    for ((answer, curl), (status, end)) in answers.iter().zip(&curls).zip(expected) {
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.ends_with(end), "{curl}\n{answer}");
    }
    assert!(answers[5].contains("\r\nproxy-status: axum-app; error=connection_read_timeout\r\n"), "{}", answers[5]);
    assert!(answers[6].contains("\r\nproxy-status: axum-app; error=connection_refused\r\n"), "{}", answers[6]);
    assert!(answers[7].contains("(first_byte_timeout, 1)"), "{}", answers[7]);

    // as ctrl-c
    assert!(Command::new("kill").args(["-INT", &running.0.id().to_string()]).status().unwrap().success());
    let ended = running.ended();
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    assert_eq!(rest, "drained: Complete\n");
}

#[test]
fn an_app_rejects_a_request_that_is_too_late() {
    let Some(mut command) = example("admission") else { return };
    let mut running = Running(command.env("LISTEN", "127.0.0.1:0").spawn().unwrap());
    let (_said, address) = running.introduced();
    for (left, status) in [("20000", 200), ("0", 504)] {
        let answer = get(address, "/", &format!("x-request-timeout-ms: {left}"));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    assert!(get(address, "/status", "x: y").contains("expired: 1"));
}

#[test]
fn a_bad_value_is_one_clear_line_and_exit_2() {
    let rows = [
        ("axum_app", Some("here"), None),
        ("axum_app", Some("192.0.2.1:80"), None),
        ("axum_app", None, Some("--help")),
        ("admission", Some("127.0.0.1"), None),
    ];
    for (name, listen, argument) in rows {
        let Some(mut command) = example(name) else { return };
        let command = command.args(argument).envs(listen.map(|value| ("LISTEN", value)));
        let output = Running(command.spawn().unwrap()).ended();
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), complaint.lines().count()), (Some(2), 1), "{name}: {complaint}");
        let value = listen.or(argument).unwrap();
        assert!(
            complaint.starts_with(name) && complaint.contains("LISTEN") && complaint.contains(value),
            "{complaint}"
        );
        assert!(output.stdout.is_empty());
    }
}
