//! Reads pictures of the challenge as anybody could who has the source: it draws letters of its own, and takes each character of a
//! picture for the one that looks most alike. What is hard to read it leaves: about one picture in twenty it reads rightly, and
//! there is always another.

use tunica_front::challenge::picture::{HEIGHT, Ink, WIDTH, draw};
use tunica_pow::{CHARACTERS, LETTERS};

/// How often each letter is drawn to learn it.
const LESSONS: u32 = 80;
/// How much less alike the next best letter must be.
const CLEARLY: f32 = 1.1;
/// A character's pixels, at least: less is a blot.
const LEAST_PIXELS: usize = 60;
/// Each character is brought to this size, so that width and height do not count.
const ACROSS: usize = 16;
const DOWN: usize = 24;

/// Its pixels, across and down.
type Piece = Vec<(usize, usize)>;
/// How dark each place of a character is.
type Shape = Vec<f32>;

/// Characters that were seen, with what they are.
pub(crate) struct Reader(Vec<(u8, Shape)>);

impl Reader {
    /// Draws each letter a few times, and remembers how it looked.
    pub(crate) fn learn() -> Self {
        let mut known = Vec::new();
        for (lesson, letter) in
            (0..LESSONS).flat_map(|lesson| LETTERS.iter().map(move |letter| (lesson, *letter)))
        {
            let mut seed = [0; 32];
            // Any numbers will do, as long as they differ (Knuth's multiplier).
            seed[..4].copy_from_slice(&lesson.wrapping_mul(0x9e37_79b9).to_le_bytes());
            seed[8..12].copy_from_slice(&(lesson + 1).to_le_bytes());
            seed[16] = letter;
            let largest = pieces(&draw(&[letter], &seed)).into_iter().max_by_key(Vec::len);
            known.extend(largest.map(|piece| (letter, shape(&piece))));
        }
        Self(known)
    }

    /// What the picture shows; `None` if that is not clear.
    pub(crate) fn read(&self, ink: &Ink) -> Option<String> {
        let pieces = pieces(ink);
        if pieces.len() != CHARACTERS {
            return None;
        }
        pieces.iter().map(|piece| self.letter(&shape(piece)).map(char::from)).collect()
    }

    fn letter(&self, shape: &Shape) -> Option<u8> {
        let mut nearest = LETTERS.map(|letter| (f32::INFINITY, letter));
        for (letter, known) in &self.0 {
            let far = shape.iter().zip(known).map(|(one, other)| (one - other).powi(2)).sum::<f32>();
            let place = LETTERS.iter().position(|each| each == letter).unwrap();
            nearest[place].0 = nearest[place].0.min(far);
        }
        nearest.sort_by(|one, other| one.0.total_cmp(&other.0));
        (nearest[1].0 > nearest[0].0 * CLEARLY).then_some(nearest[0].1)
    }
}

/// The pixels of a PNG as [`tunica_front::challenge::picture::png`] writes it: a bit each, in one block that is not compressed.
pub(crate) fn pixels(png: &[u8]) -> Ink {
    let begin = png.windows(4).position(|name| name == b"IDAT").unwrap() + 4 + 7;
    let rows = png[begin..].chunks(1 + WIDTH / 8).take(HEIGHT);
    rows.map(|row| std::array::from_fn(|x| row[1 + x / 8] >> (7 - x % 8) & 1 == 0)).collect()
}

/// RFC 4648 section 4.
pub(crate) fn from_base64(text: &str) -> Vec<u8> {
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for character in text.bytes().filter(|byte| *byte != b'=') {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            other => panic!("{other} is no base64"),
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    bytes
}

/// What hangs together, from left to right: characters, where none touches its neighbour or is torn.
fn pieces(ink: &Ink) -> Vec<Piece> {
    // The gaps that run across are closed first, then what is thinner than a stroke is taken away.
    let closed = spread(&spread(ink, true), false);
    let mut clean = spread(&spread(&closed, false), true);
    let mut found = Vec::new();
    for x in 0..WIDTH {
        for y in 0..HEIGHT {
            let piece = take(&mut clean, x, y);
            if piece.len() >= LEAST_PIXELS {
                found.push(piece);
            }
        }
    }
    found
}

/// Ink, or the lack of it, spreads to all eight pixels beside it.
fn spread(ink: &Ink, what: bool) -> Ink {
    let mut wider = vec![[!what; WIDTH]; HEIGHT];
    for (y, row) in ink.iter().enumerate() {
        for (x, _) in row.iter().enumerate().filter(|(_, pixel)| **pixel == what) {
            for row in &mut wider[y.saturating_sub(1)..(y + 2).min(HEIGHT)] {
                row[x.saturating_sub(1)..(x + 2).min(WIDTH)].fill(what);
            }
        }
    }
    wider
}

/// Takes away all that hangs together with a pixel.
fn take(ink: &mut Ink, x: usize, y: usize) -> Piece {
    let (mut piece, mut next) = (Vec::new(), vec![(x, y)]);
    while let Some((x, y)) = next.pop() {
        if !std::mem::take(&mut ink[y][x]) {
            continue;
        }
        piece.push((x, y));
        for y in y.saturating_sub(1)..=(y + 1).min(HEIGHT - 1) {
            next.extend((x.saturating_sub(1)..=(x + 1).min(WIDTH - 1)).map(|x| (x, y)));
        }
    }
    piece
}

fn shape(piece: &Piece) -> Shape {
    let (xs, ys) = (piece.iter().map(|at| at.0), piece.iter().map(|at| at.1));
    let (left, top) = (xs.clone().min().unwrap(), ys.clone().min().unwrap());
    let (width, height) = (xs.max().unwrap() - left + 1, ys.max().unwrap() - top + 1);
    let is_ink: std::collections::HashSet<_> = piece.iter().collect();
    let sharp = |x: usize, y: usize| {
        let at = (left + (2 * x + 1) * width / (2 * ACROSS), top + (2 * y + 1) * height / (2 * DOWN));
        f32::from(u8::from(is_ink.contains(&at)))
    };
    // A little blurred, so that what is one place aside is still near.
    let blurred = |x: usize, y: usize| {
        let near = [(1, 1, 4.0), (0, 1, 2.0), (2, 1, 2.0), (1, 0, 2.0), (1, 2, 2.0)];
        let places = near.iter().filter_map(|(dx, dy, weight)| {
            let at = ((x + dx).checked_sub(1)?, (y + dy).checked_sub(1)?);
            (at.0 < ACROSS && at.1 < DOWN).then(|| weight * sharp(at.0, at.1))
        });
        places.sum::<f32>() / 12.0
    };
    (0..DOWN).flat_map(|y| (0..ACROSS).map(move |x| (x, y))).map(|(x, y)| blurred(x, y)).collect()
}
