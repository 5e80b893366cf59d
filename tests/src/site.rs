//! A site as browsers meet it: pages with sixty resources of several kinds and sizes, a form to log in, and a cookie.

use std::{
    fmt::Write as _,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::Result;

/// What belongs to a page beside itself.
pub const RESOURCES: usize = STYLES + SCRIPTS + PICTURES + FONTS;
/// Style sheets of a page.
pub const STYLES: usize = 10;
/// Scripts of a page.
pub const SCRIPTS: usize = 12;
/// Pictures of a page, each as wide as [`PICTURE_WIDTH`].
pub const PICTURES: usize = 34;
/// Fonts of a page. No text is set in them.
pub const FONTS: usize = 4;
/// Pixels.
pub const PICTURE_WIDTH: usize = 16;

/// Who may log in.
pub const NAME: &str = "alice";
/// And by which word.
pub const PASSWORD: &str = "correct horse";
/// What a browser that logged in brings.
const COOKIE: &str = "session=4f1d";

/// The service. Its thread ends with the process.
#[derive(Debug)]
pub struct Site {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// A request and its outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// `GET` or `POST`.
    pub method: String,
    /// With what stands behind a question mark.
    pub path: String,
    /// What it was answered with.
    pub status: u16,
}

impl Site {
    /// Starts it there.
    ///
    /// # Errors
    /// If the address is taken.
    pub fn start(at: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(at)?;
        let address = listener.local_addr()?;
        let asked = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(io::Result::ok) {
                let asked = Arc::clone(&shared);
                // Who breaks off gets no answer.
                thread::spawn(move || drop(serve(stream, &asked)));
            }
        });
        Ok(Self { address, asked })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Every request but health checks, in the order in which they came.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Answer {
    status: u16,
    kind: &'static str,
    /// Whole header lines.
    more: String,
    body: Vec<u8>,
}

fn serve(stream: TcpStream, asked: &Mutex<Vec<Asked>>) -> io::Result<()> {
    let mut write = stream.try_clone()?;
    let mut read = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if read.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let field = |name: &str| {
            head.lines().find_map(|line| {
                let (known, value) = line.split_once(':')?;
                known.eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        let mut body = String::new();
        let length = field("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        read.by_ref().take(length).read_to_string(&mut body)?;
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let is_known =
            field("cookie").is_some_and(|cookies| cookies.split("; ").any(|cookie| cookie == COOKIE));
        let answer = answer(method, path, is_known, &body);
        if path != "/health" {
            let row = Asked { method: method.to_owned(), path: path.to_owned(), status: answer.status };
            asked.lock().unwrap_or_else(PoisonError::into_inner).push(row);
        }
        // Nothing is kept by the browser, so that every page asks for all of it.
        let mut bytes = format!(
            "HTTP/1.1 {} -\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n{}\r\n",
            answer.status,
            answer.kind,
            answer.body.len(),
            answer.more,
        )
        .into_bytes();
        bytes.extend(answer.body);
        write.write_all(&bytes)?;
    }
}

fn answer(method: &str, path: &str, is_known: bool, body: &str) -> Answer {
    let with = |status, kind, body| Answer { status, kind, more: String::new(), body };
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match (method, parts.as_slice()) {
        ("GET", ["health"]) => with(200, "text/plain", b"well".to_vec()),
        ("GET", [""]) => with(200, "text/html", page(1, is_known).into_bytes()),
        ("GET", ["page", number]) => {
            with(200, "text/html", page(number.parse().unwrap_or(1), is_known).into_bytes())
        }
        ("POST", ["login"]) if body == form(NAME, PASSWORD) => Answer {
            status: 303,
            kind: "text/plain",
            more: format!("Location: /page/1\r\nSet-Cookie: {COOKIE}; HttpOnly; SameSite=Lax\r\n"),
            body: Vec::new(),
        },
        ("POST", ["login"]) => with(403, "text/plain", b"no".to_vec()),
        ("GET", [_, kind @ ("css" | "js" | "bmp" | "woff2"), number]) => {
            resource(kind, number).unwrap_or_else(|| with(404, "text/plain", Vec::new()))
        }
        _ => with(404, "text/plain", Vec::new()),
    }
}

/// As browsers send it.
fn form(name: &str, password: &str) -> String {
    format!("name={name}&password={}", password.replace(' ', "+"))
}

/// A page; what belongs to it has names of its own.
fn page(number: u32, is_known: bool) -> String {
    let mut head = String::new();
    let mut rest = String::new();
    for each in 0..STYLES {
        let _ = writeln!(head, "<link rel=stylesheet href=/{number}/css/{each}>");
    }
    for each in 0..FONTS {
        let _ = writeln!(
            head,
            "<link rel=preload as=font type=font/woff2 crossorigin href=/{number}/woff2/{each}>"
        );
    }
    for each in 0..SCRIPTS {
        // Some hold the page up, some do not.
        let how = ["", " defer", " async"].get(each % 3).copied().unwrap_or_default();
        let _ = writeln!(head, "<script src=/{number}/js/{each}{how}></script>");
    }
    for each in 0..PICTURES {
        let _ = writeln!(rest, "<img src=/{number}/bmp/{each}>");
    }
    let who = if is_known {
        format!("<p id=who>{NAME}</p>")
    } else {
        "<p id=who></p><form id=login action=/login method=post><input name=name><input name=password type=password>\
         <button>Log in</button></form>"
            .to_owned()
    };
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>{number}</title><link rel=icon href=data:,>\n{head}\
         <body><a id=next href=/page/{}>Next</a>{who}\n{rest}</body></html>\n",
        number + 1,
    )
}

/// From 200 bytes to 40 KB: many are small, a few are large.
fn size(number: usize) -> usize {
    const SIZES: [usize; 9] = [200, 700, 1_500, 3_000, 800, 9_000, 400, 22_000, 40_000];
    SIZES.get(number % SIZES.len()).copied().unwrap_or(200)
}

fn resource(kind: &str, number: &str) -> Option<Answer> {
    let number: usize = number.parse().ok()?;
    let size = size(number);
    let padded = |text: String| {
        let room = size.saturating_sub(text.len() + 4);
        format!("{text}/*{}*/", ".".repeat(room)).into_bytes()
    };
    let (kind, body) = match kind {
        "css" => ("text/css", padded(format!(".c{number} {{ margin: 0 }}\n"))),
        "js" => ("text/javascript", padded("window.ran = (window.ran || 0) + 1;\n".to_owned())),
        "bmp" => ("image/bmp", picture(size)),
        _ => ("font/woff2", vec![b'w'; size]),
    };
    Some(Answer { status: 200, kind, more: String::new(), body })
}

/// A picture of about this many bytes: Windows' bitmap with a header of 40 bytes and three bytes a pixel.
fn picture(size: usize) -> Vec<u8> {
    const HEADERS: usize = 14 + 40;
    let row = 3 * PICTURE_WIDTH;
    let rows = size.saturating_sub(HEADERS).div_ceil(row).max(1);
    let word = |number: usize| u32::try_from(number).unwrap_or(0).to_le_bytes();
    let mut bytes = b"BM".to_vec();
    for number in [HEADERS + row * rows, 0, HEADERS, 40, PICTURE_WIDTH, rows] {
        bytes.extend(word(number));
    }
    // One plane, 24 bits a pixel; the other fields may be zero.
    bytes.extend([1, 0, 24, 0]);
    bytes.resize(HEADERS, 0);
    bytes.resize(HEADERS + row * rows, 0x7f);
    bytes
}
