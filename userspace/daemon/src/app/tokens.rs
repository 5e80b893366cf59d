//! Tokens: the daemon keeps their keys, and remembers what any front revoked. It sees no token.

use std::time::Duration;

use tunica_api::{
    front::{MOST_NEWLY_REVOKED, PreviousKey, RevokedToken, TokenOrder},
    view::{Answer, Done, RefusedCode},
};
use tunica_core::{circuit_policy::Revoked, time::Monotime, token_keys::TokenKeys};

use super::App;
use crate::{
    shell::token_file::{self, TokenFileError},
    views,
};

/// How often keys that could not be kept are written again.
const AGAIN: Duration = Duration::from_secs(60);

/// What is known of tokens.
#[derive(Default)]
pub(super) struct AtTokens {
    /// `None` where there is no ingress, or no randomness.
    keys: Option<TokenKeys>,
    revoked: Revoked,
    /// When keys that their file does not hold are written again.
    unkept: Option<Unkept>,
}

/// Keys that could not be written.
struct Unkept {
    again: Monotime,
    /// Whether those that the file may still hold were revoked.
    is_revoked: bool,
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
                if amiss.as_ref().is_some_and(TokenFileError::is_unkept) {
                    self.tokens.unkept =
                        Some(Unkept { again: self.now().mono.after(AGAIN), is_revoked: false });
                }
                amiss.map(|error| error.to_string())
            }
            Err(error) => {
                Some(format!("there are no random bytes for keys of tokens ({error}), so there are none"))
            }
        };
        self.tell_of_keys(amiss);
        self.send_orders();
    }

    /// The log has what is news.
    fn tell_of_keys(&mut self, amiss: Option<String>) {
        if let Some(amiss) = amiss.as_ref().filter(|amiss| self.troubles.token_keys.as_ref() != Some(*amiss))
        {
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
        let is_changed = is_over || turned.is_some_and(|turned| turned.is_ok());
        if is_changed || self.tokens.unkept.as_ref().is_some_and(|unkept| unkept.again <= now.mono) {
            // Said where it is shown.
            let _ = self.keep_keys(false);
        }
        if is_changed {
            self.send_orders();
        }
    }

    /// Writes the keys. Where those before were revoked, now or when they could not be written, none of them may stay.
    fn keep_keys(&mut self, is_revoked: bool) -> Result<(), TokenFileError> {
        let Some(keys) = &self.tokens.keys else { return Ok(()) };
        let is_revoked = is_revoked || self.tokens.unkept.as_ref().is_some_and(|unkept| unkept.is_revoked);
        let path = self.config.token_keys();
        let kept = if is_revoked { token_file::replace(&path, keys) } else { token_file::write(&path, keys) };
        let again = self.now().mono.after(AGAIN);
        self.tokens.unkept = kept.is_err().then_some(Unkept { again, is_revoked });
        self.tell_of_keys(kept.as_ref().err().map(ToString::to_string));
        kept
    }

    /// A front revoked tokens that this daemon may not know of. It is believed no more than it may say.
    pub(super) fn revoked_by_front(&mut self, revoked: Vec<RevokedToken>) {
        let now = self.now().mono;
        let hear = |token: RevokedToken| self.tokens.revoked.hear(token.id, Monotime(token.until), now);
        if revoked.into_iter().take(MOST_NEWLY_REVOKED).map(hear).filter(|is_news| *is_news).count() > 0 {
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
        let mut changes = vec![
            "every VIP token that was handed out counts for nothing, and its circuits are as any other"
                .to_owned(),
        ];
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
            // No key makes them good, so none need be remembered.
            self.tokens.revoked = Revoked::default();
            let kept = self.keep_keys(true);
            self.send_orders();
            tracing::warn!(message_id = "tokens_revoked", "an operator revoked every VIP token");
            match kept {
                Ok(()) => {}
                Err(error @ TokenFileError::Stays { .. }) => {
                    return views::refused(RefusedCode::Failed, error.to_string());
                }
                Err(error) => changes.push(error.to_string()),
            }
        }
        Answer::Done(Done { dry_run, changes, undo: None })
    }
}
