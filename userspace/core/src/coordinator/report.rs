//! What becomes of a report. Only [`Coordinator::reported`] changes state, and that is what reports themselves are
//! remembered by.

use super::{
    Coordinator, MOST_REASON_CHARACTERS, Outcome, RefusedCode,
    operator::{self, Plan, Refusal},
};
use crate::{
    evidence::Offence,
    id::BanTarget,
    notice::Notice,
    reports::{MOST_SERVICE_BYTES, Report, Unheard},
    time::Now,
};

impl Coordinator {
    pub(super) fn reported(&mut self, report: &Report, now: Now) -> Outcome {
        let plan = self.plan_report(report, now);
        let mut outcome = operator::answer(&plan, report.dry_run);
        if !report.dry_run {
            outcome.notices.extend(self.note_report(report, plan.as_ref().err(), now));
        }
        outcome
    }

    fn plan_report(&self, report: &Report, now: Now) -> Result<Plan, Refusal> {
        let (source, settings) = (report.source, &self.settings);
        let uid = report.reporter.uid;
        match self.reports.hear(report.reporter, &settings.reporters, now.mono) {
            Ok(_) => {}
            Err(Unheard::Stranger) => return Err(Refusal::NotAReporter(uid)),
            Err(Unheard::OverBudget) => return Err(Refusal::OverBudget(uid)),
        }
        operator::check_reason(&report.reason)?;
        if let Some(service) = &report.service
            && !is_service(service)
        {
            return Err(Refusal::BadService);
        }
        let who = BanTarget::Source(source);
        if let Some(protection) = self.protection(source.prefix(), now.mono) {
            return Err(Refusal::Protected { who, protection });
        }
        if let Some(fact) = self.ledger.bans.get(&source) {
            let until = operator::until(fact.expires);
            return Ok(Plan::of(format!("{source} is banned already{until}; the report changes nothing")));
        }
        let (threshold, window) = (settings.ban_threshold, settings.report_window);
        let count = self.reports.with_one_more(source, threshold, window, now.mono);
        if count < threshold {
            return Ok(Plan::of(format!(
                "report {count} of {threshold} against {source} within {} s; the last of them bans it",
                window.as_secs()
            )));
        }
        self.plan_offence(&Offence::by_report(source, uid, reason(report, count)), now)
    }

    /// Remembers a report that was heard, and what is to be told of one that did not count.
    fn note_report(&mut self, report: &Report, refusal: Option<&Refusal>, now: Now) -> Option<Notice> {
        let (source, settings) = (report.source, &self.settings);
        let (is_heard, is_counted) = match refusal.map(Refusal::code) {
            Some(RefusedCode::Forbidden | RefusedCode::OverBudget) => (false, false),
            Some(RefusedCode::Protected | RefusedCode::Invalid | RefusedCode::NotFound) => (true, false),
            // A full table is no fault of the report.
            Some(RefusedCode::Full) | None => (true, !self.ledger.bans.contains_key(&source)),
        };
        if is_heard {
            self.reports.spend(report.reporter, &settings.reporters, now.mono);
        }
        if is_counted {
            self.reports.note(source, settings.ban_threshold, settings.report_window, now.mono);
        }
        let refusal = refusal?;
        let notice = match refusal.protection() {
            Some(protection) => Notice::ReportRefusedProtected { source, protection },
            None if refusal.code() == RefusedCode::OverBudget => {
                Notice::ReporterOverBudget { uid: report.reporter.uid }
            }
            None => return None,
        };
        self.reports.may_tell(now.mono).then_some(notice)
    }
}

fn is_service(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=MOST_SERVICE_BYTES).contains(&name.len()) && name.bytes().all(is_plain)
}

/// What the ledger keeps as the ban's reason.
fn reason(report: &Report, count: u32) -> String {
    let Report { reporter, reason, service, .. } = report;
    let reports = if count == 1 { "1 report" } else { &format!("{count} reports, the last") };
    let service = service.as_ref().map_or_else(String::new, |service| format!(" ({service})"));
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    let whole = format!("{reports} by uid {}{service}{reason}", reporter.uid);
    whole.chars().take(MOST_REASON_CHARACTERS).collect()
}
