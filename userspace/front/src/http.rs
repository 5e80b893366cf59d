//! HTTP/1.1 mode: each request is asked for by itself, and forwarded to a backend as the library wrote it anew.
//!
//! hyper parses what the client sends. What it forwards it writes itself, from the parsed request, so a backend never
//! sees two requests where the ingress saw one. What could be read in two ways is refused before (RFC 9112 section 6.3).

mod body;
pub mod puzzle;
pub mod token;

use std::{
    future::poll_fn,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri, Version,
    body::{Body as _, Incoming},
    header::{self, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use thiserror::Error;
use tokio::{
    io::copy_bidirectional,
    sync::Notify,
    time::{sleep, sleep_until, timeout},
};
use tunica_core::{
    circuit_policy::Action,
    refusal::{Class, HttpAnswer, Refusal},
};

use self::body::{Answer, Asked};
use crate::{
    backend::{Backends, Connector},
    challenge,
    circuits::{self, Stay},
    pulse::{self, Late, Patience, Phase, Pulse, Watched},
    stream::Stream,
    welcome,
};

/// What the backend is told about who asks: a word that stays the same for a circuit as long as it and this process live.
pub const CIRCUIT_HEADER: HeaderName = HeaderName::from_static("x-onion-circuit");

/// Headers that concern one connection alone (RFC 9110 section 7.6.1), besides those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Limits and times of HTTP.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// From the first byte of a head to its end.
    pub request: Duration,
    /// Between requests.
    pub keep_alive: Duration,
    /// For a client to send or take the next bytes.
    pub client: Duration,
    /// For the backend to begin its answer.
    pub server: Duration,
    /// For a connection to a backend.
    pub connect: Duration,
    /// Largest head, bytes.
    pub head_bytes: usize,
    /// Largest body of a request, bytes.
    pub body_bytes: u64,
    /// Slowest body of a request after [`Self::request`], bytes a second.
    pub body_bytes_per_second: u64,
    /// What is said while no backend is well, as HTML.
    pub maintenance: Bytes,
    /// When to come again then.
    pub backend_again: Duration,
    /// Whether only GET and HEAD pass, and POST to this path.
    pub post_path: Option<String>,
    /// Whether circuits may be asked for a puzzle, so that [`crate::challenge::PATH`] is the front's own.
    pub asks_puzzles: bool,
    /// Whether backends may vouch for their clients by [`token::GRANT_HEADER`].
    pub backend_grants: bool,
}

/// Most that is held of an answer, bytes.
const BUFFER: usize = 32 * 1024;
/// How long what is being answered may take to come to its end when its connection must end.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long a connection to a backend is kept for another request.
const POOL_IDLE: Duration = Duration::from_secs(2);

type Client = legacy::Client<Connector, Asked>;
type Said = Response<Either<Answer, Full<Bytes>>>;

/// What a worker needs to serve HTTP.
#[derive(Clone)]
pub struct Http {
    settings: Arc<HttpSettings>,
    backends: Arc<Backends>,
    client: Client,
}

impl Http {
    /// Connections to backends that nobody uses are kept for another request.
    pub fn new(settings: Arc<HttpSettings>, backends: Arc<Backends>) -> Self {
        let connector = Connector { backends: Arc::clone(&backends), patience: settings.connect };
        let client = legacy::Client::builder(TokioExecutor::new())
            // Services close idle connections after a few seconds; one that is closing must not be used.
            .pool_idle_timeout(POOL_IDLE)
            .http1_max_buf_size(BUFFER)
            .pool_timer(TokioTimer::new())
            .set_host(false)
            .build(connector);
        Self { settings, backends, client }
    }

    /// Serves one connection to its end. `first` was read from it already.
    pub async fn serve(&self, stream: Stream, first: Bytes, visit: Arc<Stay>) {
        let pulse = visit.pulse();
        // It may have waited for its turn.
        pulse.enter(Phase::New);
        let io = TokioIo::new(Watched::new(first, stream, Arc::clone(pulse)));
        let service = service_fn(|request| {
            let (this, visit) = (self.clone(), Arc::clone(&visit));
            async move { this.answer(request, &visit).await }
        });
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // The phases of the pulse have their own limits.
            .header_read_timeout(None)
            // The host's clock is nobody's business; the service may tell it.
            .auto_date_header(false)
            .max_header_size(self.settings.head_bytes)
            .max_buf_size(self.settings.head_bytes.max(8_192) + 1_024)
            .serve_connection(io, service)
            .with_upgrades();
        let patience = Patience {
            head: self.settings.request,
            idle: self.settings.keep_alive,
            client: self.settings.client,
        };
        let mut is_draining = false;
        // Why it ends, and until when what is under way may come to its own end.
        let mut ending: Option<(Refusal, Instant)> = None;
        let mut cut = pin!(visit.cut());
        let refusal = loop {
            let wait = match pulse.late(&patience) {
                Ok(wait) => wait,
                Err(Late::Idle) => return,
                Err(Late::First) => break Refusal::NoRequest,
                Err(Late::Head) => break Refusal::SlowHeaders,
                Err(Late::Reader) => break Refusal::SlowReader,
            };
            let ended = tokio::select! {
                // What was read with the header is a request that was begun.
                biased;
                ended = timeout(wait, &mut connection) => ended,
                refusal = &mut cut, if ending.is_none() => {
                    if refusal.http() == HttpAnswer::Reset {
                        pulse.reset();
                        break refusal;
                    }
                    if !pulse.is_in_exchange() {
                        break refusal;
                    }
                    ending = Some((refusal, Instant::now() + FAREWELL));
                    Pin::new(&mut connection).graceful_shutdown();
                    continue;
                }
                refusal = ended_at(ending) => {
                    pulse.reset();
                    if pulse.is_idle() {
                        // It was told, or had its whole answer, and does not take it.
                        return;
                    }
                    break refusal;
                }
                () = pulse.idles() => continue,
                () = visit.drained(), if !is_draining && !pulse.is_new() => {
                    is_draining = true;
                    Pin::new(&mut connection).graceful_shutdown();
                    continue;
                }
            };
            match ended {
                Ok(Ok(())) => return,
                Ok(Err(error)) if error.is_parse_version_h2() => break Refusal::VersionUnsupported,
                Ok(Err(error)) if error.is_parse_too_large() => break Refusal::HeaderTooLarge,
                Ok(Err(error)) if error.is_parse() => break Refusal::Malformed,
                // Refused without a word, or the client has gone.
                Ok(Err(_)) => return,
                Err(_) => {}
            }
        };
        visit.refused(refusal);
        // hyper has answered these itself. Whoever waits between requests asks again elsewhere if the connection just ends.
        let is_told = matches!(refusal, Refusal::HeaderTooLarge | Refusal::Malformed);
        if is_told || pulse.is_in_exchange() || pulse.is_idle() {
            return;
        }
        let (status, retry) = match refusal.http() {
            HttpAnswer::Status(status) => (status, None),
            HttpAnswer::RetryLater(status) => (status, Some(self.retry_after(refusal, &visit))),
            // None of these ends a connection that is served, or there is nothing to say.
            HttpAnswer::Served | HttpAnswer::Challenge | HttpAnswer::Tarpit => return,
            HttpAnswer::Reset | HttpAnswer::Close => return,
        };
        if let Some(parts) = connection.into_parts() {
            // hyper has said nothing yet, and says nothing any more.
            welcome::answer(&mut parts.io.into_inner(), status, retry).await;
        }
    }

    /// The answer to one request: the backend's, or why there is none.
    async fn answer(&self, mut request: Request<Incoming>, visit: &Arc<Stay>) -> Result<Said, Unanswered> {
        let pulse = visit.pulse();
        pulse.enter(Phase::Exchange);
        // Before anything is asked about the request, and before anybody else reads it.
        let reader = token::reader(request.headers());
        let not_taken = token::take(request.headers_mut()).and_then(|shown| visit.present(&shown));
        let outcome = tokio::select! {
            biased;
            // The connection is to end, and this request is told why. Whoever serves the connection waits for that, and comes by
            // here when it is so.
            refusal = poll_fn(|_| visit.must_end().map_or(Poll::Pending, Poll::Ready)) => Err(because(refusal)),
            outcome = self.try_answer(request, visit) => outcome,
        };
        let mut said = match outcome {
            Ok(said) => said,
            Err(None) => return Err(Unanswered),
            Err(Some((refusal, retry))) => {
                visit.refused(refusal);
                pulse.enter(Phase::Idle);
                let retry = retry.unwrap_or_else(|| self.retry_after(refusal, visit));
                self.refused(refusal, retry, pulse)?
            }
        };
        token::hand_out(said.headers_mut(), visit, reader);
        if let Some(not_taken) = not_taken {
            said.headers_mut().insert(token::REFUSED_HEADER, HeaderValue::from_static(not_taken.label()));
        }
        Ok(said)
    }

    async fn try_answer(&self, request: Request<Incoming>, visit: &Arc<Stay>) -> Result<Said, Refused> {
        self.check(&request).map_err(because)?;
        if self.is_ours(&request) {
            let said = self.at_challenge_path(request, visit).await?;
            visit.pulse().enter(Phase::Idle);
            return Ok(said);
        }
        let is_write = !matches!(*request.method(), Method::GET | Method::HEAD);
        visit.asks_for(request.uri().path(), is_write);
        let ruling = visit.request();
        match ruling.action {
            Action::Serve | Action::Queue | Action::SlowLane => {}
            Action::Challenge => {
                if let Some(said) = self.must_pay(&request, visit)? {
                    visit.pulse().enter(Phase::Idle);
                    return Ok(said);
                }
            }
            Action::Tarpit | Action::Deny | Action::Reset => {
                return Err(Some((ruling.word, circuits::retry_after(&ruling))));
            }
        }
        // A connection that was given a puzzle has no place yet, and one in the slow lane may have given up its own.
        visit.settle().await.map_err(because)?;
        let number = self.backends.choose(visit.hash()).ok_or(because(Refusal::BackendDown))?;
        let (head, body) = request.into_parts();
        let upgrade = wants_upgrade(&head.method, &head.headers);
        let progress = Arc::new(Notify::new());
        let mut forward = Request::new(Asked::new(body, &self.settings, Arc::clone(&progress)));
        *forward.method_mut() = head.method;
        *forward.uri_mut() = address(&head.uri, number).ok_or(because(Refusal::Malformed))?;
        *forward.headers_mut() = head.headers;
        let headers = forward.headers_mut();
        remove_hop_by_hop(headers);
        headers.insert(CIRCUIT_HEADER, visit.word().clone());
        if let Some(protocol) = &upgrade {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, protocol.clone());
        }
        let from_client = upgrade.map(|_| head.extensions);
        let asked = Instant::now();
        let mut answer = match self.first_word(self.client.request(forward), &progress).await {
            Some(Ok(answer)) => answer,
            Some(Err(error)) => return Err(body::why(&error).map(|refusal| (refusal, None))),
            None => return Err(because(Refusal::BackendTimeout)),
        };
        visit.answered(asked.elapsed());
        if answer.status().is_client_error() || answer.status().is_server_error() {
            visit.failed();
        }
        if token::cleanse(answer.headers_mut(), self.settings.backend_grants) {
            visit.vouch();
        }
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            return switch(answer, from_client, visit, self.settings.client).map_err(because);
        }
        let (mut head, body) = answer.into_parts();
        remove_hop_by_hop(&mut head.headers);
        let mut said =
            Response::new(Either::Left(Answer::new(body, Arc::clone(visit), self.settings.server)));
        *said.status_mut() = head.status;
        *said.headers_mut() = head.headers;
        Ok(said)
    }

    /// The backend's answer; `None` if it is silent for too long after the last of the request went on. A body that comes
    /// too slowly ends by itself.
    async fn first_word(
        &self,
        answer: legacy::ResponseFuture,
        progress: &Notify,
    ) -> Option<Result<Response<Incoming>, legacy::Error>> {
        let patience = self.settings.server.max(self.settings.client);
        tokio::pin!(answer);
        loop {
            tokio::select! {
                answer = &mut answer => return Some(answer),
                () = progress.notified() => {}
                () = sleep(patience) => return None,
            }
        }
    }

    fn is_ours(&self, request: &Request<Incoming>) -> bool {
        self.settings.asks_puzzles && request.uri().path() == challenge::PATH
    }

    /// Refuses what has no one meaning, and methods that do not pass.
    fn check(&self, request: &Request<Incoming>) -> Result<(), Refusal> {
        let headers = request.headers();
        // Where both lengths stand there hyper has decided for the chunks already, and ends the connection afterwards.
        if headers.contains_key(header::TRANSFER_ENCODING) && request.version() != Version::HTTP_11 {
            return Err(Refusal::AmbiguousLength);
        }
        let hosts = headers.get_all(header::HOST).iter().count();
        let least = usize::from(request.version() == Version::HTTP_11);
        if !(least..=1).contains(&hosts) || *request.method() == Method::CONNECT {
            return Err(Refusal::Malformed);
        }
        if let Some(path) = &self.settings.post_path {
            let passes = matches!(*request.method(), Method::GET | Method::HEAD)
                || (*request.method() == Method::POST
                    && (request.uri().path() == path || self.is_ours(request)));
            if !passes {
                return Err(Refusal::MethodDenied);
            }
        }
        if request.body().size_hint().lower() > self.settings.body_bytes {
            return Err(Refusal::BodyTooLarge);
        }
        if headers
            .get(header::EXPECT)
            .is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
        {
            return Err(Refusal::ExpectationFailed);
        }
        Ok(())
    }

    /// When to come again, where no decision says so.
    fn retry_after(&self, refusal: Refusal, visit: &Stay) -> Duration {
        match refusal.class() {
            Class::Backend => self.settings.backend_again,
            Class::Pass | Class::Ban | Class::Circuit | Class::Global => visit.retry_after(refusal),
            Class::Puzzle | Class::Protocol | Class::Slow | Class::Ours => visit.retry_after(refusal),
        }
    }

    /// What the client gets. The connection ends with it: what may still come of the request is not read.
    fn refused(&self, refusal: Refusal, retry: Duration, pulse: &Pulse) -> Result<Said, Unanswered> {
        let status = match refusal.http() {
            HttpAnswer::Status(status) | HttpAnswer::RetryLater(status) => status,
            // Puzzles are handed out where the request is at hand; here it was not even read.
            HttpAnswer::Challenge => 503,
            HttpAnswer::Reset | HttpAnswer::Tarpit => {
                pulse.reset();
                return Err(Unanswered);
            }
            HttpAnswer::Close | HttpAnswer::Served => return Err(Unanswered),
        };
        let is_maintenance = matches!(refusal, Refusal::BackendDown | Refusal::BackendConnectTimeout);
        let page = if is_maintenance { self.settings.maintenance.clone() } else { Bytes::new() };
        let mut said = Response::new(Either::Right(Full::new(page)));
        *said.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        let headers = said.headers_mut();
        if matches!(refusal.http(), HttpAnswer::RetryLater(_)) {
            headers.insert(header::RETRY_AFTER, circuits::whole_seconds(retry).into());
        }
        if is_maintenance {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        }
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        Ok(said)
    }
}

/// Returns when a connection that is ending may take no longer, and why it ends. Never for one that is not.
async fn ended_at(ending: Option<(Refusal, Instant)>) -> Refusal {
    match ending {
        Some((refusal, at)) => {
            sleep_until(at.into()).await;
            refusal
        }
        None => std::future::pending().await,
    }
}

/// A refusal and when to come again; `None`: nobody is there any more to be told.
type Refused = Option<(Refusal, Option<Duration>)>;

fn because(refusal: Refusal) -> Refused {
    Some((refusal, None))
}

/// The connection ends without an answer.
#[derive(Debug, Error)]
#[error("refused without an answer")]
struct Unanswered;

/// The request's path at a backend, as [`Connector`] understands it.
fn address(uri: &Uri, number: usize) -> Option<Uri> {
    let mut parts = uri.clone().into_parts();
    parts.scheme = Some(hyper::http::uri::Scheme::HTTP);
    parts.authority = format!("b{number}").parse().ok();
    parts.path_and_query = parts.path_and_query.or_else(|| "/".parse().ok());
    Uri::from_parts(parts).ok()
}

/// Whether the client asks for a WebSocket (RFC 6455 section 4.1, RFC 9110 section 7.8). Other protocols are not asked for:
/// within HTTP/2 the client could send what nobody here judges.
fn wants_upgrade(method: &Method, headers: &HeaderMap) -> Option<HeaderValue> {
    let mut options = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let names =
        options.any(|value| value.split(',').any(|option| option.trim().eq_ignore_ascii_case("upgrade")));
    let is_socket = |value: &&HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"websocket");
    headers.get(header::UPGRADE).filter(|_| names && *method == Method::GET).filter(is_socket).cloned()
}

/// Removes what concerns one connection alone, what only a proxy may say, and what backends could take for our own word:
/// CGI and its like make one name of `X-Onion-Circuit` and `X_Onion_Circuit`.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
        .collect();
    let ambiguous: Vec<HeaderName> = headers
        .keys()
        .filter(|name| CLAIMED.contains(&name.as_str().replace('_', "-").as_str()))
        .cloned()
        .collect();
    for name in named.iter().chain(&ambiguous).chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Headers by which clients could pose as a proxy, or as us, in whatever spelling.
const CLAIMED: [&str; 11] = [
    "x-onion-circuit",
    "tunica-solution",
    "tunica-token",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
    "proxy",
    "proxy-connection",
    "http2-settings",
];

/// Carries bytes both ways after the backend agreed to another protocol, such as WebSocket.
fn switch(
    answer: Response<Incoming>,
    from_client: Option<hyper::http::Extensions>,
    visit: &Arc<Stay>,
    idle: Duration,
) -> Result<Said, Refusal> {
    // A backend that switches unasked is broken.
    let Some(extensions) = from_client else { return Err(Refusal::BackendBroken) };
    let mut asked = Request::new(());
    *asked.extensions_mut() = extensions;
    let mut said = Response::new(Either::Right(Full::new(Bytes::new())));
    *said.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *said.headers_mut() = answer.headers().clone();
    let (client, backend) = (hyper::upgrade::on(asked), hyper::upgrade::on(answer));
    let visit = Arc::clone(visit);
    let counted = Arc::clone(&visit);
    let carried = async move {
        if let (Ok(client), Ok(backend)) = tokio::join!(client, backend) {
            let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
            let carried = copy_bidirectional(&mut client, &mut backend);
            tokio::pin!(carried);
            loop {
                let before = visit.pulse().bytes();
                tokio::select! {
                    ended = timeout(idle, &mut carried) => {
                        if ended.is_ok() {
                            break;
                        }
                        if visit.pulse().bytes() == before {
                            visit.refused(Refusal::Idle);
                            break;
                        }
                    }
                    refusal = visit.cut() => {
                        // It carries no requests any more: what ends it is what would end it over TCP.
                        if refusal.tcp().is_reset() {
                            visit.pulse().reset();
                        }
                        visit.refused(refusal);
                        break;
                    }
                }
            }
        }
    };
    tokio::spawn(async move { pulse::metered(counted.pulse(), carried).await });
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(rows: &[(&'static str, &'static str)]) -> HeaderMap {
        rows.iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn what_concerns_one_connection_is_not_handed_on() {
        let mut all = headers(&[
            ("connection", "close, X-Private, host"),
            ("connection", "keep-alive"),
            ("x-private", "1"),
            ("keep-alive", "1"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("proxy-authorization", "1"),
            ("x-onion-circuit", "forged"),
            ("x_onion_circuit", "forged"),
            ("tunica_token", "for another front"),
            ("tunica-solution", "1"),
            ("x-forwarded-for", "192.0.2.1"),
            ("proxy", "evil"),
            ("http2-settings", "AAMAAABk"),
            ("host", "a"),
            ("cookie", "b"),
        ]);
        remove_hop_by_hop(&mut all);
        let left: Vec<_> = all.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["host", "cookie"]);
    }

    #[test]
    fn an_upgrade_is_one_only_if_the_connection_says_so() {
        for (rows, expected) in [
            (&[("connection", "Upgrade"), ("upgrade", "websocket")][..], Some("websocket")),
            (&[("connection", "keep-alive, upgrade"), ("upgrade", "WebSocket")], Some("WebSocket")),
            (&[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")], None),
            (&[("upgrade", "websocket")], None),
            (&[("connection", "upgrade")], None),
            (&[("connection", "upgraded"), ("upgrade", "websocket")], None),
        ] {
            let found = wants_upgrade(&Method::GET, &headers(rows));
            assert_eq!(wants_upgrade(&Method::POST, &headers(rows)), None);
            assert_eq!(found.as_ref().and_then(|value| value.to_str().ok()), expected, "{rows:?}");
        }
    }

    #[test]
    fn a_request_keeps_its_path_and_goes_to_the_chosen_backend() {
        for (uri, expected) in
            [("/a?b=c", "http://b3/a?b=c"), ("http://evil.example/x", "http://b3/x"), ("*", "http://b3/")]
        {
            let found = address(&uri.parse().unwrap(), 3).map(|uri| uri.to_string());
            if uri == "*" {
                // `OPTIONS *` has no path; whatever it becomes, it goes to the backend.
                assert!(found.is_none_or(|found| found.starts_with("http://b3")));
            } else {
                assert_eq!(found.as_deref(), Some(expected));
            }
        }
    }
}
