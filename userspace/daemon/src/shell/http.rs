//! `/metrics`, `/health` and `/ready` over HTTP on loopback.
//!
//! Every answer comes from the event loop, so a loop that hangs shows as a failing `/health`. The `Host` header must
//! name loopback and the port listened on: else a web page could read the metrics through its visitor's browser, by letting its own name resolve
//! to 127.0.0.1 (DNS rebinding).

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue},
    http::uri::Authority,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, oneshot},
    time::{sleep, timeout},
};

use crate::metrics::{HttpPath, HttpRequests};

/// Most connections at once; others wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 64;
/// How long a client may take for a request's header, and how long it may be silent between requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of a request's header.
const MOST_HEADER_BYTES: usize = 16 * 1024;
/// How long a connection may live, however slowly its client reads.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the event loop may take for an answer.
const LOOP_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait after a connection could not be taken, most likely because no descriptor is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What `/metrics` is.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the server asks the event loop. Each carries the way back.
#[derive(Debug)]
pub enum HttpQuestion {
    /// All metrics in text format 0.0.4.
    Metrics(oneshot::Sender<String>),
    /// Why the shield does not do what the configuration asks: one sentence each, none if it does.
    Ready(oneshot::Sender<Vec<String>>),
    /// Whether the loop answers.
    Health(oneshot::Sender<()>),
}

/// Why there is no HTTP server.
#[derive(Debug, Error)]
#[error(
    "cannot listen on {listen} ({source}): nobody could see metrics or health; end the program that listens there, \
     choose another port for listen under [http], or set enabled = false there"
)]
pub struct BindError {
    listen: SocketAddr,
    #[source]
    source: io::Error,
}

/// A listening server that does not answer yet.
#[derive(Debug)]
pub struct HttpServer {
    listener: TcpListener,
}

impl HttpServer {
    /// Where it listens; the port is real even where 0 was asked for.
    ///
    /// # Errors
    /// The system's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Listens on `listen`.
///
/// # Errors
/// [`BindError`], most likely because another program listens there.
pub async fn bind(listen: SocketAddr) -> Result<HttpServer, BindError> {
    let listener = TcpListener::bind(listen).await.map_err(|source| BindError { listen, source })?;
    Ok(HttpServer { listener })
}

/// Serves until it is dropped.
pub async fn serve(server: HttpServer, questions: mpsc::Sender<HttpQuestion>, requests: HttpRequests) {
    let seats = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let context =
        Arc::new(Context { port: server.address().ok().map(|address| address.port()), questions, requests });
    // The semaphore is never closed.
    while let Ok(seat) = Arc::clone(&seats).acquire_owned().await {
        match server.listener.accept().await {
            Ok((stream, _)) => {
                let context = Arc::clone(&context);
                tokio::spawn(async move {
                    // A client that broke off, or was too slow, is no news.
                    let _ = timeout(CONNECTION_TIMEOUT, converse(stream, context)).await;
                    drop(seat);
                });
            }
            Err(error) => {
                tracing::warn!(message_id = "http_failed", %error, "an HTTP connection could not be taken");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

struct Context {
    /// Where this server listens.
    port: Option<u16>,
    questions: mpsc::Sender<HttpQuestion>,
    requests: HttpRequests,
}

async fn converse(stream: TcpStream, context: Arc<Context>) -> hyper::Result<()> {
    let service = service_fn(|request| {
        let context = Arc::clone(&context);
        async move { Ok::<_, Infallible>(context.respond(&request).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MOST_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

impl Context {
    async fn respond(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = HttpPath::of(request.uri().path());
        let response = match check_host(request, self.port) {
            Err((status, reason)) => refusal(status, reason),
            Ok(()) => self.answer(path, request.method()).await,
        };
        self.requests.count(path, response.status().as_u16());
        response
    }

    async fn answer(&self, path: HttpPath, method: &Method) -> Response<Full<Bytes>> {
        if path == HttpPath::Other {
            return refusal(StatusCode::NOT_FOUND, "there are /metrics, /health and /ready");
        }
        if method != Method::GET {
            let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, "only GET is possible");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            return response;
        }
        let answer = match path {
            HttpPath::Metrics => {
                self.ask(HttpQuestion::Metrics).await.map(|text| page(StatusCode::OK, TEXT_FORMAT, text))
            }
            HttpPath::Health => self.ask(HttpQuestion::Health).await.map(|()| {
                object(StatusCode::OK, &json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION") }))
            }),
            HttpPath::Ready => self.ask(HttpQuestion::Ready).await.map(|reasons| {
                if reasons.is_empty() {
                    object(StatusCode::OK, &json!({ "status": "ready" }))
                } else {
                    let body = json!({ "status": "not_ready", "reasons": reasons });
                    object(StatusCode::SERVICE_UNAVAILABLE, &body)
                }
            }),
            HttpPath::Other => None,
        };
        answer.unwrap_or_else(|| refusal(StatusCode::SERVICE_UNAVAILABLE, "the event loop does not answer"))
    }

    /// Asks the event loop; `None` if it does not answer in time.
    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> HttpQuestion) -> Option<T> {
        let (sender, answer) = oneshot::channel();
        timeout(LOOP_TIMEOUT, async {
            self.questions.send(question(sender)).await.ok()?;
            answer.await.ok()
        })
        .await
        .ok()?
    }
}

/// Lets a request through that was meant for loopback (RFC 9110 sections 7.2 and 7.4).
fn check_host(request: &Request<Incoming>, port: Option<u16>) -> Result<(), (StatusCode, &'static str)> {
    const NOT_HERE: (StatusCode, &str) = (
        StatusCode::MISDIRECTED_REQUEST,
        "this server is localhost, 127.0.0.1 or [::1], at the port that it listens on, and nothing else; forward that port \
         by the same number",
    );
    let mut hosts = request.headers().get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err((StatusCode::BAD_REQUEST, "a request has exactly one Host header"));
    };
    let host: Authority = host
        .as_bytes()
        .try_into()
        .map_err(|_| (StatusCode::BAD_REQUEST, "the Host header is not readable"))?;
    let target = request.uri().authority();
    let is_meant = |authority: &Authority| is_loopback(authority, port);
    if is_meant(&host) && target.is_none_or(is_meant) { Ok(()) } else { Err(NOT_HERE) }
}

/// Whether it is `localhost`, 127.0.0.1 or `[::1]`, with this port or without one. With another the request came through
/// something that others may reach.
fn is_loopback(authority: &Authority, port: Option<u16>) -> bool {
    let name = authority.host();
    // What stands behind the name: nothing, or a colon and the port.
    let rest = authority.as_str().strip_prefix(name).unwrap_or("?");
    let is_port = rest.is_empty() || port.is_some_and(|port| rest == format!(":{port}"));
    let is_bare = !authority.as_str().contains('@');
    is_bare && is_port && (name.eq_ignore_ascii_case("localhost") || name == "127.0.0.1" || name == "[::1]")
}

fn page(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn object(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    page(status, "application/json", format!("{body}\n"))
}

fn refusal(status: StatusCode, reason: &str) -> Response<Full<Bytes>> {
    object(status, &json!({ "status": "failed", "reason": reason }))
}

#[cfg(test)]
mod tests;
