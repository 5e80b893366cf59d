//! `threat`.

use tunica_api::{
    front::LoadOrder,
    view::{LoadGround, LoadLine, Threat},
};
use tunica_core::load_level::Level;

use super::text::{Align, clean, table, wrap};

/// How loaded the service is, what that rests on and what follows from it.
pub(super) fn threat(view: &Threat) -> String {
    let Threat { level, word, measured, .. } = view;
    // What the ingress does is said below.
    let line = LoadLine { level: *level, word: word.clone(), measured: *measured, relaxes_tokens: false };
    let mut out = wrap("", "  ", &format!("The load level is {}.", in_short(&line)));
    let rows: [(&str, Option<String>); 5] = [
        ("demands", Some(clean(&view.demands))),
        (
            "set",
            view.pin.map(|pin| {
                let until = pin
                    .expires
                    .map_or_else(|| "`tunica threat clear`".to_owned(), |expires| expires.to_string());
                format!("to {} by hand since {}, until {until}", pin.level.name(), pin.since)
            }),
        ),
        (
            "panic",
            view.attack_mode.map(|mode| {
                let rests = view.pin.is_some_and(|pin| pin.level < Level::Heavy);
                let rests = if rests { "; what was set by hand rests" } else { "" };
                format!("heavy at least until {}{rests}", mode.expires)
            }),
        ),
        (
            "ports",
            Some(
                (if view.tightens_ports { "half the configured rates" } else { "as configured" }).to_owned(),
            ),
        ),
        ("ingress", Some(ingress(view))),
    ];
    out.push('\n');
    for (name, text) in rows {
        if let Some(text) = text {
            out.push_str(&wrap(&format!("{name:<9}"), "         ", &text));
        }
    }
    out.push('\n');
    if view.grounds.is_empty() {
        out.push_str("Nothing is known of the load.\n");
    } else {
        let row = |ground: &LoadGround| {
            let holds = if ground.holds_level { "holds the measured level" } else { "" };
            [clean(&ground.input), percent(ground.ratio), holds.to_owned()]
        };
        let columns = [("INPUT", Align::Left), ("OF FULL LOAD", Align::Right), ("", Align::Left)];
        out.push_str(&table(columns, &view.grounds.iter().map(row).collect::<Vec<_>>()));
    }
    if !view.unknown.is_empty() {
        let unknown: Vec<String> = view.unknown.iter().map(|input| clean(input)).collect();
        out.push_str(&wrap("Not known: ", "  ", &format!("{}.", unknown.join(", "))));
    }
    out
}

/// The level in force, and who says so.
pub(super) fn in_short(line: &LoadLine) -> String {
    let LoadLine { level, word, measured, relaxes_tokens } = line;
    let measured = measured.name();
    let by = match word.as_str() {
        "measured" => "as measured".to_owned(),
        "new_circuits" => format!("because new circuits are alike; measured is {measured}"),
        "attack_mode" => format!("by attack mode; measured is {measured}"),
        "operator" => format!("set by hand; measured is {measured}"),
        other => format!("by {}; measured is {measured}", clean(other)),
    };
    let tokens = if *relaxes_tokens { "; limits of token holders relaxed by one step" } else { "" };
    format!("{} ({by}){tokens}", level.name())
}

fn ingress(view: &Threat) -> String {
    let text = |order: &LoadOrder| {
        let LoadOrder {
            ratio: _,
            asks_puzzles,
            puzzle_difficulty,
            page_difficulty,
            page_waits,
            share,
            relaxes_tokens,
        } = *order;
        let puzzles = match (asks_puzzles, page_waits) {
            (false, _) => "no puzzles".to_owned(),
            (true, false) => {
                format!(
                    "puzzles of {puzzle_difficulty} bits ({page_difficulty} on pages) where they are asked"
                )
            }
            (true, true) => format!(
                "puzzles of {puzzle_difficulty} bits ({page_difficulty} and a wait on pages) where they are asked"
            ),
        };
        let tokens = if relaxes_tokens { ", half as much again for token holders" } else { "" };
        format!("{} of its limits for a circuit that has not paid{tokens}, {puzzles}", percent(share))
    };
    match &view.held {
        Some(held) if *held == view.told => text(held),
        Some(_) => format!("{}; not all of it is in force yet", text(&view.told)),
        None => format!("none that holds to it; it would be {}", text(&view.told)),
    }
}

fn percent(ten_thousandths: u16) -> String {
    format!("{} %", ten_thousandths / 100)
}
