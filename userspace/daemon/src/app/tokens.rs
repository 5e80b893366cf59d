//! Tokens: the daemon keeps their keys, and remembers what any front revoked. It sees no token.

use tunica_api::{
    front::{PreviousKey, RevokedToken, TokenOrder},
    view::{Answer, Done, RefusedCode},
};
use tunica_core::{circuit_policy::Revoked, time::Monotime, token_keys::TokenKeys};

use super::App;
use crate::{shell::token_file, views};

/// What is known of tokens.
#[derive(Default)]
pub(super) struct AtTokens {
    /// `None` where there is no ingress, or no randomness.
    keys: Option<TokenKeys>,
    revoked: Revoked,
}

impl AtTokens {
    /// What a front is told.
    pub(super) fn order(&self) -> Option<TokenOrder> {
        let keys = self.keys.as_ref()?;
        Some(TokenOrder {
            key: keys.current(),
            previous: keys.previous().map(|(key, until)| PreviousKey { key, until: until.0 }),
            revoked: self.revoked.iter().map(|(id, until)| RevokedToken { id, until: until.0 }).collect(),
        })
    }
}

impl App {
    /// Takes up the keys, or makes the first ones.
    pub(super) fn open_tokens(&mut self) {
        if !self.config.ingress.enabled {
            return;
        }
        let amiss = match token_file::open(&self.config.token_keys(), self.now().wall) {
            Ok((keys, amiss)) => {
                self.tokens.keys = Some(keys);
                amiss.map(|error| error.to_string())
            }
            Err(error) => {
                Some(format!("there are no random bytes for keys of tokens ({error}), so there are none"))
            }
        };
        self.tell_of_keys(amiss);
        self.send_orders();
    }

    fn tell_of_keys(&mut self, amiss: Option<String>) {
        if let Some(amiss) = &amiss {
            tracing::warn!(message_id = "token_keys_amiss", "{amiss}");
        }
        self.troubles.token_keys = amiss;
    }

    /// What time makes due: another key, and the end of the one before.
    pub(super) fn advance_tokens(&mut self) {
        let now = self.now();
        self.tokens.revoked.forget_expired(now.mono);
        let Some(keys) = &mut self.tokens.keys else { return };
        let is_over = keys.advance(now.wall);
        let turned = keys.is_due(now.wall).then(token_file::draw);
        if let Some(Ok(key)) = turned {
            keys.turn(key, now.wall);
        }
        if is_over || turned.is_some_and(|turned| turned.is_ok()) {
            self.keep_keys();
        }
    }

    fn keep_keys(&mut self) {
        let Some(keys) = &self.tokens.keys else { return };
        let kept = token_file::write(&self.config.token_keys(), keys);
        self.tell_of_keys(kept.err().map(|error| error.to_string()));
        self.send_orders();
    }

    /// A front revoked tokens that this daemon may not know of.
    pub(super) fn revoked_by_front(&mut self, revoked: Vec<RevokedToken>) {
        let now = self.now().mono;
        let add = |token: RevokedToken| self.tokens.revoked.add(token.id, Monotime(token.until), now);
        if revoked.into_iter().map(add).filter(|is_news| *is_news).count() > 0 {
            self.send_orders();
        }
    }

    /// Makes every token worthless that was ever handed out.
    pub(super) fn revoke_all_tokens(&mut self, dry_run: bool) -> Answer {
        let now = self.now().wall;
        let Some(keys) = &mut self.tokens.keys else {
            let why =
                "there are no tokens: the ingress is not configured; set `enabled = true` under [ingress]";
            return views::refused(RefusedCode::NotFound, why.to_owned());
        };
        if !dry_run {
            match token_file::draw() {
                Ok(key) => keys.revoke_all(key, now),
                Err(error) => {
                    let why = format!(
                        "no random bytes for another key ({error}): all tokens are good as before; try again"
                    );
                    return views::refused(RefusedCode::Failed, why);
                }
            }
            self.keep_keys();
            tracing::warn!(message_id = "tokens_revoked", "an operator revoked every VIP token");
        }
        let changes = vec![
            "every VIP token that was handed out counts for nothing, and its circuits are as any other"
                .to_owned(),
        ];
        Answer::Done(Done { dry_run, changes, undo: None })
    }
}
