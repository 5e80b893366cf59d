//! The server over real sockets on loopback.

use std::net::Ipv4Addr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
};

use super::*;
use crate::metrics::Metrics;

/// A server with an event loop that answers, and what the loop answers to `/ready`.
struct Served {
    address: SocketAddr,
    metrics: Metrics,
    server: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Serves with questions going to `questions`.
async fn served(questions: mpsc::Sender<HttpQuestion>) -> Served {
    let server = bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    let address = server.address().unwrap();
    let metrics = Metrics::new("abc").unwrap();
    let server = tokio::spawn(serve(server, questions, metrics.http()));
    Served { address, metrics, server }
}

/// Serves with a loop that answers everything, and to `/ready` with `reasons`.
async fn answered(reasons: &[&str]) -> Served {
    let (sender, mut questions) = mpsc::channel(4);
    let reasons: Vec<String> = reasons.iter().map(|reason| (*reason).to_owned()).collect();
    tokio::spawn(async move {
        while let Some(question) = questions.recv().await {
            // Whoever asked may have gone.
            let _ = match question {
                HttpQuestion::Metrics(reply) => reply.send("tunica_test 1\n".to_owned()).is_ok(),
                HttpQuestion::Ready(reply) => reply.send(reasons.clone()).is_ok(),
                HttpQuestion::Health(reply) => reply.send(()).is_ok(),
            };
        }
    });
    served(sender).await
}

/// Sends `text` and reads until the server closes.
async fn exchange(address: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
}

fn assert_answer(answer: &str, status: u16, parts: &[&str]) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    for part in parts {
        assert!(answer.contains(part), "{part} in {answer}");
    }
}

#[tokio::test]
async fn pages_answer() {
    let ready = answered(&[]).await;
    let unready = answered(&["eth0: another program is attached"]).await;
    for (served, path, status, parts) in [
        (
            &ready,
            "/metrics",
            200,
            &["content-type: text/plain; version=0.0.4", "\r\n\r\ntunica_test 1\n"][..],
        ),
        (&ready, "/metrics?x=1", 200, &["tunica_test 1\n"]),
        (&ready, "/health", 200, &["application/json", "\"status\":\"ok\"", "no-store"]),
        (&unready, "/health", 200, &["\"status\":\"ok\""]),
        (&ready, "/ready", 200, &["{\"status\":\"ready\"}"]),
        (&unready, "/ready", 503, &["\"reasons\":[\"eth0: another program is attached\"]", "not_ready"]),
        (&ready, "/", 404, &["there are /metrics"]),
        (&ready, "/metrics/", 404, &[]),
    ] {
        assert_answer(&exchange(served.address, &get(path)).await, status, parts);
    }
    let text = ready.metrics.render().unwrap();
    for series in [
        "tunica_http_requests_total{path=\"/metrics\",status=\"200\"} 2",
        "tunica_http_requests_total{path=\"/health\",status=\"200\"} 1",
        "tunica_http_requests_total{path=\"other\",status=\"404\"} 2",
    ] {
        assert!(text.contains(series), "{series} in {text}");
    }
}

#[tokio::test]
async fn other_methods_are_refused_with_what_is_possible() {
    let served = answered(&[]).await;
    for method in ["HEAD", "POST", "DELETE", "OPTIONS"] {
        let text = format!("{method} /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        assert_answer(&exchange(served.address, &text).await, 405, &["allow: GET"]);
    }
}

#[tokio::test]
async fn only_loopback_is_served_by_name() {
    let served = answered(&[]).await;
    let port = served.address.port();
    let other = port.wrapping_add(1).max(1);
    for (hosts, status) in [
        ("Host: localhost", 200),
        ("Host: LOCALHOST:PORT", 200),
        ("Host: 127.0.0.1", 200),
        ("Host: 127.0.0.1:PORT", 200),
        ("Host: [::1]", 200),
        ("Host: [::1]:PORT", 200),
        ("Host: localhost:OTHER", 421),
        ("Host: 127.0.0.1:OTHER", 421),
        ("Host: [::1]:OTHER", 421),
        ("Host: 127.0.0.1:", 421),
        ("Host: 127.0.0.1:0PORT", 421),
        ("Host: 127.0.0.2:PORT", 421),
        ("Host: rebound.example:PORT", 421),
        ("Host: rebound.example", 421),
        ("Host: rebound.example:9187", 421),
        ("Host: localhost.rebound.example", 421),
        ("Host: 127.0.0.1.rebound.example", 421),
        ("Host: localhost@rebound.example", 421),
        ("Host: user@localhost", 421),
        ("Host: 192.0.2.1", 421),
        ("Host: [2001:db8::1]", 421),
        ("Host: ", 400),
        ("Host: a b", 400),
        ("X-Host: localhost", 400),
        ("Host: localhost\r\nHost: localhost", 400),
    ] {
        let hosts = hosts.replace("PORT", &port.to_string()).replace("OTHER", &other.to_string());
        for page in ["/metrics", "/health", "/ready"] {
            let text = format!("GET {page} HTTP/1.1\r\n{hosts}\r\nConnection: close\r\n\r\n");
            let answer = exchange(served.address, &text).await;
            assert_answer(&answer, status, &[]);
            assert_eq!(answer.contains("tunica_test"), status == 200 && page == "/metrics", "{answer}");
        }
    }
    let proxied =
        "GET http://rebound.example/metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert_answer(&exchange(served.address, proxied).await, 421, &[]);
}

#[tokio::test]
async fn a_loop_that_ended_fails_every_page() {
    let (sender, questions) = mpsc::channel(4);
    drop(questions);
    let served = served(sender).await;
    for path in ["/health", "/ready", "/metrics"] {
        let answer = exchange(served.address, &get(path)).await;
        assert_answer(&answer, 503, &["the event loop does not answer"]);
    }
}

#[tokio::test]
async fn a_loop_that_hangs_and_a_client_that_dawdles_are_given_up() {
    // Nobody takes the questions, and the channel is soon full.
    let (sender, _questions) = mpsc::channel(1);
    let served = served(sender).await;
    let dawdler = exchange(served.address, "GET /health HTTP/1.1\r\nHost: loc");
    let (first, second, third) = (get("/health"), get("/metrics"), get("/ready"));
    let (dawdler, first, second, third) = tokio::join!(
        dawdler,
        exchange(served.address, &first),
        exchange(served.address, &second),
        exchange(served.address, &third),
    );
    for answer in [first, second, third] {
        assert_answer(&answer, 503, &["the event loop does not answer"]);
    }
    assert!(!dawdler.contains("200"), "{dawdler}");
}

#[tokio::test]
async fn a_header_without_end_is_refused() {
    let served = answered(&[]).await;
    let text = format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(40_000));
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    // The server may close before it has read all.
    let _ = stream.write_all(text.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
    assert_answer(&exchange(served.address, &get("/health")).await, 200, &[]);
}

#[tokio::test]
async fn one_connection_more_waits_for_a_seat() {
    let served = answered(&[]).await;
    let mut seated = Vec::new();
    for _ in 0..MOST_CONNECTIONS {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        seated.push(stream);
    }
    let mut late = TcpStream::connect(served.address).await.unwrap();
    late.write_all(get("/health").as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    // The others keep their seats for seconds yet.
    let early = timeout(Duration::from_millis(200), late.read_exact(&mut answer)).await;
    assert!(early.is_err(), "served beyond {MOST_CONNECTIONS} connections");
    drop(seated);
    late.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let first = bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    let address = first.address().unwrap();
    let message = bind(address).await.unwrap_err().to_string();
    assert!(message.contains(&address.to_string()) && message.contains("[http]"), "{message}");
}
