//! Pictures of characters: drawn from strokes, distorted, and written as PNG, without a library and without a font.
//!
//! How well a program reads them is measured by `cargo run -p tunica-front --example pictures`, see `docs/reference/pow.md`.
//! It keeps out simple programs. It keeps out nobody who trains one for it.

use std::f32::consts::TAU;

/// Width, pixels.
pub const WIDTH: usize = 240;
/// Height, pixels.
pub const HEIGHT: usize = 80;

/// Black or white, row by row; `true` is ink.
pub type Ink = Vec<[bool; WIDTH]>;

type Point = (f32, f32);

/// Numbers for distortion, from bytes that nobody can foretell (xorshift64*, Vigna 2016). The characters do not come from it.
struct Dice(u64);

impl Dice {
    fn new(seed: &[u8; 32]) -> Self {
        let words = seed.as_chunks::<8>().0.iter().map(|bytes| u64::from_be_bytes(*bytes));
        Self(words.fold(0, |all, word| all ^ word) | 1)
    }

    /// Between -1 and 1.
    fn roll(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32;
        bits / (1 << 23) as f32 - 1.0
    }

    /// Within `spread` of `middle`.
    fn near(&mut self, middle: f32, spread: f32) -> f32 {
        middle + spread * self.roll()
    }
}

/// A character as strokes through points; x from 0 to 4, y from 0 (top) to 6.
fn strokes(character: u8) -> &'static [&'static [(i8, i8)]] {
    match character {
        b'3' => &[&[(0, 0), (4, 0), (2, 2), (4, 4), (3, 6), (1, 6), (0, 5)]],
        b'4' => &[&[(3, 6), (3, 0), (0, 4), (4, 4)]],
        b'7' => &[&[(0, 0), (4, 0), (1, 6)]],
        b'9' => &[&[(4, 2), (3, 3), (1, 3), (0, 2), (1, 0), (3, 0), (4, 1), (4, 4), (2, 6)]],
        b'A' => &[&[(0, 6), (2, 0), (4, 6)], &[(1, 4), (3, 4)]],
        b'C' => &[&[(4, 1), (3, 0), (1, 0), (0, 2), (0, 4), (1, 6), (3, 6), (4, 5)]],
        b'E' => &[&[(4, 0), (0, 0), (0, 6), (4, 6)], &[(0, 3), (3, 3)]],
        b'F' => &[&[(4, 0), (0, 0), (0, 6)], &[(0, 3), (3, 3)]],
        b'H' => &[&[(0, 0), (0, 6)], &[(4, 0), (4, 6)], &[(0, 3), (4, 3)]],
        b'J' => &[&[(1, 0), (4, 0)], &[(3, 0), (3, 5), (2, 6), (1, 6), (0, 5)]],
        b'K' => &[&[(0, 0), (0, 6)], &[(4, 0), (0, 3), (4, 6)]],
        b'L' => &[&[(0, 0), (0, 6), (4, 6)]],
        b'M' => &[&[(0, 6), (0, 0), (2, 3), (4, 0), (4, 6)]],
        b'N' => &[&[(0, 6), (0, 0), (4, 6), (4, 0)]],
        b'P' => &[&[(0, 6), (0, 0), (3, 0), (4, 1), (4, 2), (3, 3), (0, 3)]],
        b'R' => &[&[(0, 6), (0, 0), (3, 0), (4, 1), (4, 2), (3, 3), (0, 3)], &[(2, 3), (4, 6)]],
        b'T' => &[&[(0, 0), (4, 0)], &[(2, 0), (2, 6)]],
        b'U' => &[&[(0, 0), (0, 5), (1, 6), (3, 6), (4, 5), (4, 0)]],
        b'V' => &[&[(0, 0), (2, 6), (4, 0)]],
        b'W' => &[&[(0, 0), (1, 6), (2, 3), (3, 6), (4, 0)]],
        b'X' => &[&[(0, 0), (4, 6)], &[(4, 0), (0, 6)]],
        b'Y' => &[&[(0, 0), (2, 3), (4, 0)], &[(2, 3), (2, 6)]],
        _ => &[],
    }
}

/// Draws characters of [`tunica_pow::LETTERS`]; others leave a gap.
pub fn draw(characters: &[u8], seed: &[u8; 32]) -> Ink {
    let mut dice = Dice::new(seed);
    let mut ink = vec![[false; WIDTH]; HEIGHT];
    let mut warp = || (dice.near(2.2, 0.6), TAU / dice.near(80.0, 20.0), dice.near(0.0, TAU));
    let (across, down) = (warp(), warp());
    let warped = |(x, y): Point| {
        let wave = |(height, step, phase): (f32, f32, f32), at: f32| height * (at * step + phase).sin();
        (x + wave(across, y), y + wave(down, x))
    };
    let mut left = dice.near(14.0, 5.0);
    for character in characters {
        let (width, height) = (dice.near(24.0, 2.0), dice.near(44.0, 4.0));
        let (turn, lean) = (dice.near(0.0, 0.24), dice.near(0.0, 0.2));
        let middle = (left + width / 2.0, dice.near(HEIGHT as f32 / 2.0, 7.0));
        let weight = dice.near(2.1, 0.3);
        for stroke in strokes(*character) {
            let points: Vec<Point> = stroke
                .iter()
                .map(|(x, y)| {
                    let x = (f32::from(*x) / 4.0 - 0.5) * width + dice.near(0.0, 1.5);
                    let y = (f32::from(*y) / 6.0 - 0.5) * height + dice.near(0.0, 1.5);
                    let x = x + lean * y;
                    let (sine, cosine) = turn.sin_cos();
                    (middle.0 + x * cosine - y * sine, middle.1 + x * sine + y * cosine)
                })
                .collect();
            trace(&points, |point| dot(&mut ink, warped(point), weight, true));
        }
        // Close enough to touch now and then.
        left += width + dice.near(10.0, 3.0);
    }
    // Lines that join the characters, thinner than their strokes, and gaps across them.
    for is_ink in [true, true, false, false] {
        let mut y = || dice.near(HEIGHT as f32 / 2.0, 22.0);
        let points = [(0.0, y()), (WIDTH as f32 / 3.0, y()), (WIDTH as f32 / 1.5, y()), (WIDTH as f32, y())];
        let weight = if is_ink { 0.8 } else { 0.7 };
        trace(&points, |point| dot(&mut ink, warped(point), weight, is_ink));
    }
    for _ in 0..50 {
        let at = (dice.near(0.5, 0.5) * WIDTH as f32, dice.near(0.5, 0.5) * HEIGHT as f32);
        let is_ink = dice.roll() > 0.0;
        dot(&mut ink, at, 1.0, is_ink);
    }
    ink
}

/// Points along a line, half a pixel apart.
fn trace(points: &[Point], mut each: impl FnMut(Point)) {
    for ((x, y), (to_x, to_y)) in points.iter().zip(points.iter().skip(1)) {
        let steps = ((to_x - x).hypot(to_y - y) * 2.0).ceil().max(1.0);
        for step in 0..=steps as u32 {
            let part = step as f32 / steps;
            each((x + (to_x - x) * part, y + (to_y - y) * part));
        }
    }
}

fn dot(ink: &mut Ink, (x, y): Point, radius: f32, is_ink: bool) {
    let reach = |middle: f32, end: usize| {
        let first = (middle - radius).ceil().clamp(0.0, end as f32) as usize;
        let behind = ((middle + radius).floor() + 1.0).clamp(0.0, end as f32) as usize;
        (first, behind.saturating_sub(first))
    };
    let ((first_row, rows), (first_column, columns)) = (reach(y, HEIGHT), reach(x, WIDTH));
    for (number, row) in ink.iter_mut().enumerate().skip(first_row).take(rows) {
        for (column, pixel) in row.iter_mut().enumerate().skip(first_column).take(columns) {
            if (column as f32 - x).hypot(number as f32 - y) <= radius {
                *pixel = is_ink;
            }
        }
    }
}

/// As PNG (RFC 2083): one bit a pixel, not compressed.
pub fn png(ink: &Ink) -> Vec<u8> {
    let mut rows = Vec::new();
    for row in ink {
        // No filter.
        rows.push(0);
        rows.extend(row.chunks(8).map(|pixels| {
            let bits = pixels.iter().zip((0..8).rev()).filter(|(is_ink, _)| !**is_ink);
            bits.fold(0_u8, |byte, (_, shift)| byte | 1 << shift)
        }));
    }
    let mut file = vec![0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n'];
    let mut header = Vec::new();
    header.extend((WIDTH as u32).to_be_bytes());
    header.extend((HEIGHT as u32).to_be_bytes());
    // One bit a pixel, shades of grey.
    header.extend([1, 0, 0, 0, 0]);
    chunk(&mut file, b"IHDR", &header);
    // zlib (RFC 1950) around one block that is stored (RFC 1951 section 3.2.4), which holds up to 65 535 bytes.
    let length = u16::try_from(rows.len()).unwrap_or(u16::MAX);
    let mut data = vec![0x78, 0x01, 0x01];
    data.extend(length.to_le_bytes());
    data.extend((!length).to_le_bytes());
    let (mut one, mut two) = (1_u32, 0_u32);
    for byte in rows.iter().take(usize::from(length)) {
        one = (one + u32::from(*byte)) % 65_521;
        two = (two + one) % 65_521;
        data.push(*byte);
    }
    data.extend((two << 16 | one).to_be_bytes());
    chunk(&mut file, b"IDAT", &data);
    chunk(&mut file, b"IEND", &[]);
    file
}

fn chunk(file: &mut Vec<u8>, name: &[u8; 4], data: &[u8]) {
    file.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
    file.extend(name);
    file.extend(data);
    let crc = name.iter().chain(data).fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
    });
    file.extend((!crc).to_be_bytes());
}

/// As RFC 4648 section 4 has it, with padding.
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut padded = group.iter().copied().chain([0, 0]);
        let mut next = || padded.next().unwrap_or(0);
        let bits = u32::from_be_bytes([0, next(), next(), next()]);
        for (place, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            let character = ALPHABET.get((bits >> shift & 63) as usize).copied().unwrap_or(b'=');
            text.push(char::from(if place > group.len() { b'=' } else { character }));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tunica_pow::LETTERS;

    use super::*;

    #[test]
    fn every_letter_has_strokes_of_its_own() {
        let all: BTreeSet<_> = LETTERS.iter().map(|letter| strokes(*letter)).collect();
        assert_eq!(all.len(), LETTERS.len());
        assert!(all.iter().all(|strokes| !strokes.is_empty()));
    }

    #[test]
    fn pictures_differ_and_stay_within_their_frame() {
        let mut seen = BTreeSet::new();
        for seed in 0..50 {
            let ink = draw(
                b"AWX37K",
                &[
                    seed, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8,
                    9, 0, 1,
                ],
            );
            let black = ink.iter().flatten().filter(|is_ink| **is_ink).count();
            // Something is drawn, and the picture is not a blot.
            assert!((1_500..9_000).contains(&black), "{black}");
            assert!(seen.insert(ink));
        }
    }

    #[test]
    fn text_of_bytes_is_as_in_the_standard() {
        // RFC 4648 section 10.
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }

    #[test]
    fn a_png_has_the_checksums_of_its_standards() {
        let file = png(&vec![[false; WIDTH]; HEIGHT]);
        assert_eq!(&file[..8], b"\x89PNG\r\n\x1a\n");
        // The CRC of an empty IEND stands in every PNG file.
        assert_eq!(&file[file.len() - 4..], [0xae, 0x42, 0x60, 0x82]);
        assert_eq!(file.len(), 8 + 25 + 12 + 7 + HEIGHT * (1 + WIDTH / 8) + 4 + 12);
    }
}
