//! The README's first program, copied into an empty package, compiles and prints the output that the README shows.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use crate::package::{CRATE, Package};

const README: &str = include_str!("../../README.md");

/// The section's first block in this language, as it stands there.
fn block(language: &str) -> &'static str {
    let (_, section) = README.split_once("# A reverse proxy that explains its errors\n").unwrap();
    let (_, block) = section.split_once(&format!("```{language}\n")).unwrap();
    block.split_once("```").unwrap().0
}

/// A process that is killed at the end of the test; `cargo run` has become the program itself.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn get(address: &str, accept: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /cart HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_readmes_app_is_short_and_says_why_its_upstream_is_dead() {
    let code = block("rust,no_run");
    let lines = code.lines().filter(|line| !line.trim().is_empty()).count();
    assert!(lines < 25, "{lines} lines");

    // the crate as it is here, in place of its release
    let here = format!("tower-upstream = {{ path = {CRATE:?}");
    let dependencies = block("toml").replace("tower-upstream = { version = \"0.1\"", &here);
    assert!(dependencies.contains(&here), "{dependencies}");
    let package = Package::new("newcomer", &format!("{dependencies}\n[profile.dev]\ndebug = false\n"));
    fs::write(package.folder().join("src/main.rs"), code).unwrap();

    let built = package.cargo("build").output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    assert!(built.stderr.is_empty(), "{}", String::from_utf8_lossy(&built.stderr));
    let mut app = Running(package.cargo("run").stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
    let mut said = String::new();
    BufReader::new(app.0.stdout.take().unwrap()).read_line(&mut said).unwrap();
    let address = said.trim().strip_prefix("http://").unwrap();

    let browser = get(address, "text/html,application/xhtml+xml,*/*;q=0.8");
    assert!(browser.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{browser}");
    assert!(browser.contains("\r\nproxy-status: shop-edge; error=connection_refused\r\n"), "{browser}");
    assert!(browser.contains("\r\ncontent-type: text/html; charset=utf-8\r\n"), "{browser}");
    assert!(browser.contains("<h1>The service could not be reached.</h1>"), "{browser}");

    // every line that the README shows, but for the request's id
    let curl = get(address, "*/*");
    for line in block("text").lines().filter(|line| *line != "...") {
        let line = if line.starts_with("x-request-id: ") { "x-request-id: " } else { line };
        assert!(curl.contains(line), "{line:?} is not in\n{curl}");
    }
}
