use std::time::{Duration, UNIX_EPOCH};

use http::Method;

use super::*;
use crate::cause::{BadGatewayCause, Evidence, Replay};

const HTML: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_795_372_020)
}

fn request_with(method: Method, name: &str, value: &str) -> Request<()> {
    Request::builder().method(method).uri("/").header(name, value).body(()).unwrap()
}

/// The response to a failure, as text.
fn response_with_page(page: &ErrorPage, request: &Request<()>, failure: &Failure, id: &str) -> Response<String> {
    let mut response = Response::builder().status(failure.status()).header("proxy-status", "edge; error=x");
    response = response.header("x-request-id", id).header("content-encoding", "gzip").header("content-length", "3");
    let mut response = response.body(()).unwrap();
    let preferences = page.preferences(request);
    let body = page.write(&preferences, failure, &mut response, now());
    response.map(|()| String::from_utf8(body.to_vec()).unwrap())
}

fn html(failure: &Failure, id: &str) -> Response<String> {
    response_with_page(&ErrorPage::new(), &request_with(Method::GET, "accept", HTML), failure, id)
}

fn refused() -> Failure {
    let failure = Failure::builder(BadGatewayCause::ConnectionRefused).upstream("payments");
    let failure = failure.replay(Replay::NotSent, Evidence::NoConnection);
    failure.peer(std::net::SocketAddr::from(([10, 0, 0, 7], 8080))).build()
}

#[test]
fn a_user_reads_what_happened_whether_to_try_again_when_and_whom_to_contact() {
    let response = html(&refused(), "f00");
    let page = response.body();
    for part in [
        "<!DOCTYPE html>\n<html lang=\"en\" dir=\"auto\">",
        "<title>502 Bad Gateway</title>",
        "<h1>The service could not be reached.</h1>",
        "<p>It is safe to reload this page.</p>",
        "<dt>Request ID</dt><dd>f00</dd>",
        "<time datetime=\"2026-11-22T18:27:00Z\">2026-11-22T18:27:00Z</time>",
        "<p>If the problem continues, contact the site and give the time and the request ID.</p>",
        "<meta name=\"color-scheme\" content=\"light dark\">",
        "prefers-color-scheme:dark",
    ] {
        assert!(page.contains(part), "{part} is not in\n{page}");
    }
    assert!(page.len() < 3000, "{}", page.len());
    for part in ["<script", "http", "src=", "href", "@import", "url(", "payments", "10.0.0.7", "refused", "upstream"] {
        assert!(!page.contains(part), "{part} is in\n{page}");
    }
    let headers = response.headers();
    assert_eq!(response.status(), 502);
    assert_eq!(headers["content-type"], "text/html; charset=utf-8");
    assert_eq!(headers["content-length"], page.len().to_string());
    assert_eq!(headers["content-language"], "en");
    assert_eq!(headers["cache-control"], "no-store");
    assert_eq!(headers["vary"], "accept");
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert_eq!(headers["proxy-status"], "edge; error=x");
    assert!(headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'; style-src 'sha"));
    assert!(!headers.contains_key("content-encoding"));
}

#[test]
fn every_cause_has_a_page_that_says_what_is_proven_and_no_more() {
    for &cause in BadGatewayCause::ALL {
        for (replay, evidence) in [
            (Replay::NotSent, Evidence::NoConnection),
            (Replay::IdempotentOnly, Evidence::Counted),
            (Replay::Never, Evidence::Inferred),
        ] {
            let failure = Failure::builder(cause).replay(replay, evidence).build();
            let proven = replay == Replay::NotSent;
            for method in [Method::GET, Method::HEAD, Method::POST, Method::PUT] {
                let advice = failure.advice(&method).text();
                let response = |accept| {
                    response_with_page(
                        &ErrorPage::new(),
                        &request_with(method.clone(), "accept", accept),
                        &failure,
                        "f00",
                    )
                };
                if method == Method::HEAD {
                    assert_eq!(response(HTML).body(), "");
                    continue;
                }
                let page = response(HTML).into_body();
                assert!(page.contains(&format!("</h1>\n<p>{advice}</p>\n<dl>")), "{cause}: {page}");
                assert!(response("*/*").body().contains(&format!(".\n{advice}\n\nRequest ID")), "{cause}");
                let json: serde_json::Value = serde_json::from_str(response("application/json").body()).unwrap();
                assert!(json["detail"].as_str().unwrap().ends_with(&format!(". {advice}")), "{cause}: {json}");
                assert_eq!(json["retry_safe"], proven || method.is_safe(), "{cause}");
                assert_eq!(page.contains("was not processed"), proven && !method.is_safe(), "{cause}: {page}");
            }
            let call = request_with(Method::POST, "content-type", "application/grpc");
            let call = response_with_page(&ErrorPage::new(), &call, &failure, "f00");
            let message = call.headers()["grpc-message"].to_str().unwrap();
            assert!(message.ends_with(failure.advice(&Method::POST).text()), "{cause}: {message}");
        }
    }
}

#[test]
fn a_request_id_is_asked_for_only_if_the_response_has_one() {
    let page = ErrorPage::new();
    for accept in [HTML, "*/*"] {
        let mut response = Response::builder().status(502).body(()).unwrap();
        let preferences = page.preferences(&request_with(Method::GET, "accept", accept));
        let body = page.write(&preferences, &refused(), &mut response, now());
        let text = std::str::from_utf8(&body).unwrap();
        assert!(text.contains("contact the site and give the time."), "{text}");
        assert!(!text.to_lowercase().contains("request id"), "{text}");
    }
}

#[test]
fn a_missing_route_is_a_page_not_found_if_its_status_is_404() {
    let page = ErrorPage::new();
    let mut response = Response::builder().status(404).body(()).unwrap();
    let preferences = page.preferences(&request_with(Method::GET, "accept", HTML));
    let body = page.write(&preferences, &Failure::new(BadGatewayCause::NoRoute), &mut response, now());
    let text = std::str::from_utf8(&body).unwrap();
    assert!(text.contains("<h1>Page not found.</h1>\n<p>Reloading will not help"), "{text}");
}

#[test]
fn a_request_id_is_escaped_and_bounded() {
    for id in ["<script>alert(1)</script>", "\"><img onerror=x>", "' onload='x", "&lt;", "a\\\"}"] {
        let page = html(&refused(), id).into_body();
        let shown = page.split("<dt>Request ID</dt><dd>").nth(1).unwrap().split("</dd>").next().unwrap();
        assert!(!shown.contains(['<', '>', '"', '\'']), "{shown}");
        let json = request_with(Method::GET, "accept", "application/json");
        let json = response_with_page(&ErrorPage::new(), &json, &refused(), id).into_body();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["request_id"], id);
    }
    let long = html(&refused(), &"x".repeat(9000)).into_body();
    assert!(long.contains(&format!("<dd>{}\u{2026}</dd>", "x".repeat(MAX_ID))), "{long}");
    assert!(html(&refused(), &"x".repeat(MAX_ID)).body().contains(&format!("<dd>{}</dd>", "x".repeat(MAX_ID))));
    assert!(!html(&refused(), "\u{e9}").body().contains("Request ID<"), "what is no ASCII is not shown");
}

#[test]
fn a_program_reads_a_problem() {
    let request = request_with(Method::POST, "accept", "application/json");
    let response = response_with_page(&ErrorPage::new(), &request, &refused(), "f00");
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert!(!response.headers().contains_key("content-security-policy"));
    let json: serde_json::Value = serde_json::from_str(response.body()).unwrap();
    let expected = serde_json::json!({
        "title": "Bad Gateway",
        "status": 502,
        "detail": "The service could not be reached. Your request was not processed. It is safe to try again.",
        "request_id": "f00",
        "time": "2026-11-22T18:27:00Z",
        "retry_safe": true,
    });
    assert_eq!(json, expected);
    let page = ErrorPage::new().problem_types("https://shop.example/problems/").reveal_upstream();
    let json: serde_json::Value =
        serde_json::from_str(response_with_page(&page, &request, &refused(), "f00").body()).unwrap();
    assert_eq!(json["type"], "https://shop.example/problems/connection_refused");
    assert_eq!((&json["upstream"], &json["peer"]), (&"payments".into(), &"10.0.0.7:8080".into()));
    assert_eq!(json["cause"], "connection_refused");
}

#[test]
fn a_terminal_reads_lines() {
    let curl = request_with(Method::GET, "accept", "*/*");
    let response = response_with_page(&ErrorPage::new().contact("Call 5117."), &curl, &refused(), "f00");
    let text = "502 Bad Gateway\n\nThe service could not be reached.\nIt is safe to reload this page.\n\n\
                Request ID: f00\nTime (UTC): 2026-11-22T18:27:00Z\nCall 5117.\n";
    assert_eq!(response.body(), text);
    let response = response_with_page(&ErrorPage::new().reveal_upstream(), &curl, &refused(), "f00");
    assert!(response.body().contains("cause: connection_refused\nupstream: payments\npeer: 10.0.0.7:8080\n"));
}

#[test]
fn a_head_has_the_fields_of_the_get_and_no_body() {
    let get = html(&refused(), "f00");
    let head = response_with_page(&ErrorPage::new(), &request_with(Method::HEAD, "accept", HTML), &refused(), "f00");
    assert_eq!(head.headers(), get.headers());
    assert_eq!(head.body(), "");
}

#[test]
fn a_grpc_call_has_a_status_in_the_head_of_a_200_for_every_cause() {
    for &cause in BadGatewayCause::ALL {
        let call = request_with(Method::POST, "content-type", "application/grpc+proto");
        let response = response_with_page(&ErrorPage::new(), &call, &Failure::new(cause), "f00");
        assert_eq!((response.status().as_u16(), response.body().as_str()), (200, ""), "{cause}");
        let headers = response.headers();
        assert_eq!(headers["content-type"], "application/grpc");
        let code: u8 = headers["grpc-status"].to_str().unwrap().parse().unwrap();
        assert!((1..=16).contains(&code), "{cause}");
        assert!(headers["grpc-message"].to_str().unwrap().ends_with('.'));
        assert_eq!(headers["x-request-id"], "f00");
        for absent in ["content-length", "vary", "content-language", "x-content-type-options"] {
            assert!(!headers.contains_key(absent), "{absent}");
        }
    }
    let call = request_with(Method::POST, "content-type", "application/grpc");
    let response = response_with_page(&ErrorPage::new().reveal_upstream(), &call, &refused(), "f00");
    let message = "The service could not be reached. Your request was not processed. It is safe to try again. \
                   cause=connection_refused upstream=payments peer=10.0.0.7:8080";
    assert_eq!(response.headers()["grpc-status"], "14");
    assert_eq!(response.headers()["grpc-message"], message);
}

#[test]
fn a_status_without_content_gets_none() {
    for status in [101, 204, 205, 304] {
        let mut response = Response::builder().status(status).body(()).unwrap();
        let page = ErrorPage::new();
        let preferences = page.preferences(&request_with(Method::GET, "accept", HTML));
        assert!(page.write(&preferences, &refused(), &mut response, now()).is_empty());
        assert!(response.headers().is_empty(), "{status}");
    }
}

#[test]
fn messages_and_templates_can_be_replaced() {
    let page = ErrorPage::new().contact("Call 5117.").messages(|context| {
        assert_eq!(context.accept_language(), Some("de-CH, en;q=0.5"));
        Messages::english(context).language("de").summary("Der <Dienst> ist gestört.").labels("Anfrage", "Zeit")
    });
    let mut request = request_with(Method::GET, "accept", HTML);
    request.headers_mut().insert("accept-language", HeaderValue::from_static("de-CH, en;q=0.5"));
    let response = response_with_page(&page, &request, &refused(), "f00");
    for part in ["<html lang=\"de\"", "<h1>Der &lt;Dienst&gt; ist gestört.</h1>", "<dt>Anfrage</dt>", "Call 5117."] {
        assert!(response.body().contains(part), "{part}");
    }
    assert_eq!(response.headers()["content-language"], "de");
    assert_eq!(response.headers().get_all("vary").iter().collect::<Vec<_>>(), ["accept", "accept-language"]);

    let page =
        ErrorPage::new().template(|context, messages| format!("{} {}", context.status().as_u16(), messages.summary));
    let response = response_with_page(&page, &request_with(Method::GET, "accept", HTML), &refused(), "f00");
    assert_eq!(response.body(), "502 The service could not be reached.");
    assert!(response.headers()["content-security-policy"].to_str().unwrap().contains("style-src 'unsafe-inline'"));
}

#[test]
fn vary_keeps_its_members_and_gets_each_name_once() {
    let varies = |lines: &[&'static str]| {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(VARY, HeaderValue::from_static(line));
        }
        vary(&mut headers, ACCEPT);
        let lines = headers.get_all(VARY).iter().map(|line| line.to_str().unwrap().to_owned());
        lines.collect::<Vec<_>>()
    };
    assert_eq!(varies(&[]), ["accept"]);
    assert_eq!(varies(&["origin, accept-language"]), ["origin, accept-language", "accept"]);
    assert_eq!(varies(&["origin", "x, Accept"]), ["origin", "x, Accept"]);
    assert_eq!(varies(&["*"]), ["*"]);
}
