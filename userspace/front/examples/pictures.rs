//! Draws pictures of the challenge and has tesseract read them: how many of them a common OCR program solves.
//!
//! ```text
//! cargo run --release -p tunica-front --example pictures -- FOLDER 500
//! ```
//!
//! Each file's name is what it shows. Without `tesseract` (Debian's package tesseract-ocr) the pictures are only drawn.
#![allow(clippy::print_stdout, reason = "it is a program for the terminal")]

use std::{env, fs, io, path::Path, process::Command};

use tunica_front::challenge::picture;
use tunica_pow::LETTERS;

/// How often a whole picture was read, and how many of its characters stood where they belong.
#[derive(Default)]
struct Score {
    pictures: usize,
    characters: usize,
}

fn main() -> io::Result<()> {
    let mut arguments = env::args().skip(1);
    let folder = arguments.next().unwrap_or_else(|| "pictures".to_owned());
    let count: u32 = arguments.next().and_then(|count| count.parse().ok()).unwrap_or(100);
    fs::create_dir_all(&folder)?;
    let has_tesseract = Command::new("tesseract").arg("--version").output().is_ok();
    let letters = String::from_utf8_lossy(LETTERS).into_owned();
    // One line of text, one word, and one line without tesseract's own thresholds.
    let modes = ["7", "8", "13"];
    let mut scores: Vec<Score> = modes.iter().map(|_| Score::default()).collect();
    let mut any = 0;
    for number in 0..count {
        // Numbers that look random and are the same in each run (Knuth's multiplier).
        let mut state = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize
        };
        let characters: Vec<u8> =
            (0..6).filter_map(|_| LETTERS.get(next() % LETTERS.len()).copied()).collect();
        let mut seed = [0; 32];
        seed.iter_mut().for_each(|byte| *byte = next() as u8);
        let text = String::from_utf8_lossy(&characters).into_owned();
        let file = Path::new(&folder).join(format!("{text}.png"));
        fs::write(&file, picture::png(&picture::draw(&characters, &seed)))?;
        if !has_tesseract {
            continue;
        }
        let mut is_read = false;
        for (mode, score) in modes.iter().zip(&mut scores) {
            let out = Command::new("tesseract")
                .arg(&file)
                .args(["-", "--psm", mode, "--dpi", "150", "-c"])
                .arg(format!("tessedit_char_whitelist={letters}"))
                .output()?;
            let said: String =
                String::from_utf8_lossy(&out.stdout).chars().filter(|it| !it.is_whitespace()).collect();
            score.pictures += usize::from(said == text);
            score.characters += said.chars().zip(text.chars()).filter(|(one, other)| one == other).count();
            is_read |= said == text;
        }
        any += usize::from(is_read);
    }
    println!("{count} pictures in {folder}");
    if !has_tesseract {
        println!("tesseract is not installed, so nobody read them");
        return Ok(());
    }
    for (mode, score) in modes.iter().zip(&scores) {
        let Score { pictures, characters } = score;
        println!("--psm {mode}: {pictures} whole pictures, {characters} of {} characters", 6 * count);
    }
    println!("read in at least one of these ways: {any} of {count}");
    Ok(())
}
