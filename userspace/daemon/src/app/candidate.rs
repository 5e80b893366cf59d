//! `candidate`: another configuration, tried beside the one in force.

use tunica_api::{
    request,
    view::{self, Answer, Done, Promotion, RefusedCode},
};
use tunica_config::Config;
use tunica_core::{candidate, time::WallTime};

use super::App;
use crate::{settings, shell::xdp::Shield, views};

/// What is tried.
pub(super) struct Tried {
    name: String,
    text: String,
    config: Config,
    since: WallTime,
}

impl Tried {
    /// What `status` says of it.
    pub(super) fn line(&self, shield: &Shield) -> view::Tried {
        let (refuses, passes) =
            views::candidate_differences(&shield.tables().differences().unwrap_or_default());
        let sum = |rows: Vec<view::Difference>| rows.iter().map(|row| row.packets).sum();
        view::Tried { name: self.name.clone(), since: self.since, refuses: sum(refuses), passes: sum(passes) }
    }
}

fn none() -> Answer {
    views::refused(
        RefusedCode::NotFound,
        "no candidate is loaded; `tunica candidate load FILE` loads one".to_owned(),
    )
}

impl App {
    /// Has a configuration tried on every packet, which changes nothing of what becomes of them.
    pub(super) fn load_candidate(&mut self, request: request::CandidateLoad) -> Answer {
        match self.try_candidate(request) {
            Ok(done) => Answer::Done(done),
            Err((code, message)) => {
                views::refused(code, format!("{message}\nno candidate was loaded; nothing else was changed"))
            }
        }
    }

    fn try_candidate(&mut self, request: request::CandidateLoad) -> Result<Done, (RefusedCode, String)> {
        let bad = |message: String| (RefusedCode::BadConfig, message);
        let request::CandidateLoad { name, text } = request;
        let config = tunica_config::read(&text, &name).map_err(|problems| bad(problems.to_string()))?;
        let fixed = settings::fixed_keys_changed(&self.config, &config);
        if let Some(message) = settings::restart_needed(&fixed) {
            return Err(bad(message));
        }
        let (settings, _) = settings::of(&config).map_err(|error| bad(error.to_string()))?;
        self.end_candidate("another one takes its place");
        let (desired, in_force) = (self.coordinator.desired(), self.coordinator.settings());
        self.shield
            .load_candidate(settings, desired, in_force)
            .map_err(|error| (RefusedCode::Failed, error.to_string()))?;
        let changes = tunica_config::changes(&self.config, &config);
        let untried = untried(&changes);
        let tried = changes.len() - untried.len();
        let mut said = vec![format!(
            "{name} is tried on every packet from now on and decides nothing; {tried} of its keys differ from what is \
             in force and are tried"
        )];
        if !untried.is_empty() {
            said.push(format!("not tried, in force with a promotion only: {}", untried.join(", ")));
        }
        said.extend(self.why_blind());
        tracing::info!(
            message_id = "candidate_loaded",
            "a candidate is tried beside the configuration in force"
        );
        self.candidate = Some(Tried { name, text, config, since: self.now().wall });
        Ok(Done { dry_run: false, changes: said, undo: Some("tunica candidate drop".to_owned()) })
    }

    /// Why a candidate sees not every packet, if so.
    fn why_blind(&self) -> Option<String> {
        if self.coordinator.settings().mode == tunica_core::limits::Mode::Off {
            return Some("the mode is off, so no packet is judged, by the candidate neither".to_owned());
        }
        let without: Vec<_> = self
            .shield
            .interfaces()
            .into_iter()
            .filter(|interface| !interface.is_ours)
            .map(|interface| interface.name)
            .collect();
        (!without.is_empty()).then(|| {
            format!(
                "the program is not attached to {}, so the candidate sees no packet there",
                without.join(", ")
            )
        })
    }

    /// What the candidate would do otherwise.
    pub(super) fn candidate_status(&self) -> Answer {
        let (Some(tried), Some(loaded)) = (&self.candidate, self.shield.candidate()) else { return none() };
        let read = || {
            Ok::<_, crate::shell::xdp::tables::TableError>((
                loaded.totals()?,
                self.shield.tables().differences()?,
            ))
        };
        let (totals, differences) = match read() {
            Ok(read) => read,
            Err(error) => return views::refused(RefusedCode::Failed, error.to_string()),
        };
        let changes = tunica_config::changes(&self.config, &tried.config);
        let untried = untried(&changes).into_iter().map(str::to_owned).collect();
        let (refuses, passes) = views::candidate_differences(&differences);
        let counters = views::counter_rows(&totals).into_iter().filter(|row| row.packets > 0).collect();
        Answer::Candidate(Box::new(view::Candidate {
            name: tried.name.clone(),
            since: tried.since,
            changes: views::changes(changes, &[]),
            untried,
            refuses,
            passes,
            counters,
        }))
    }

    /// What the caller has to write to bring the candidate into force. The daemon may write no configuration.
    pub(super) fn candidate_promotion(&self) -> Answer {
        let Some(tried) = &self.candidate else { return none() };
        Answer::Promotion(Promotion {
            file: self.config_path.display().to_string(),
            before: self.text.clone(),
            after: tried.text.clone(),
        })
    }

    /// Ends the trial by request.
    pub(super) fn drop_candidate(&mut self) -> Answer {
        let Some(tried) = &self.candidate else { return none() };
        let said = format!("{} is tried no more; nothing else changes", tried.name);
        self.end_candidate("it was dropped by request");
        if self.candidate.is_some() {
            let why = self.troubles.tables.clone().unwrap_or_default();
            return views::refused(
                RefusedCode::Failed,
                format!("{why}\nit goes on judging and decides nothing"),
            );
        }
        Answer::Done(Done { dry_run: false, changes: vec![said], undo: None })
    }

    /// Ends the trial, if there is one. Where the kernel does not let it end, it goes on and `status` says so.
    pub(super) fn end_candidate(&mut self, why: &str) {
        let (desired, settings) = (self.coordinator.desired(), self.coordinator.settings());
        if let Err(error) = self.shield.drop_candidate(desired, settings) {
            self.troubles.tables =
                Some(format!("the candidate could not be taken out of the kernel: {error}"));
        }
        if self.shield.candidate().is_none() && self.candidate.take().is_some() {
            tracing::info!(message_id = "candidate_dropped", why, "the candidate is tried no more");
        }
    }
}

/// Keys that the kernel program does not try.
fn untried(changes: &[tunica_config::Change]) -> Vec<&'static str> {
    changes.iter().map(|change| change.key).filter(|key| !candidate::tries(key)).collect()
}
