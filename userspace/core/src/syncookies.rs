//! How `net.ipv4.tcp_syncookies` fits what the shield does with cookies: one judgement for `tunica doctor`, which asks the
//! daemon, and `tunica check --host`, which asks nobody.

use crate::limits::CookieState;

/// What the sysctl's value means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// 0: the kernel's listeners have no defence of their own.
    Defenceless,
    /// 1, and nobody makes it 2 although the shield is to answer with cookies.
    Unserved,
    /// 1, and the daemon makes it 2 while the shield answers with cookies.
    Switched,
    /// 2, and the shield is to answer with cookies.
    Served,
    /// Any other value, which suffices.
    Enough,
    /// It cannot be read.
    Unknown,
}

/// How bad that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Well,
    /// Works, but less well than it could.
    Warning,
    /// The shield cannot do its work.
    Failure,
}

impl Fit {
    /// What a value means. `cookies` is what the shield can do with it, as far as configuration and host go; `None` where
    /// that is not known.
    pub const fn of(found: Option<u64>, cookies: Option<CookieState>) -> Self {
        match (found, cookies) {
            (Some(0), _) => Self::Defenceless,
            (Some(1), Some(CookieState::Sysctl { .. })) => Self::Unserved,
            (Some(1), Some(CookieState::Waiting)) => Self::Switched,
            (Some(2), cookies) if wants_cookies(cookies) => Self::Served,
            (Some(_), _) => Self::Enough,
            (None, _) => Self::Unknown,
        }
    }

    /// How bad it is.
    pub const fn severity(self) -> Severity {
        match self {
            Self::Defenceless => Severity::Failure,
            Self::Unserved | Self::Unknown => Severity::Warning,
            Self::Switched | Self::Served | Self::Enough => Severity::Well,
        }
    }

    /// What follows behind the value, in a sentence about it.
    pub const fn clause(self) -> &'static str {
        match self {
            Self::Unserved => ", and shield.cookies.manage_syncookies is false",
            Self::Switched => "; the daemon makes it 2 while the shield answers with cookies",
            Self::Served => ": listeners take the shield's cookies",
            Self::Defenceless | Self::Enough | Self::Unknown => "",
        }
    }

    /// What it means and what to do; empty where all is well.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Defenceless => {
                "a SYN flood from forged sources fills the listen queue whatever a per-source limit does, and then nobody \
                 connects; `sysctl -w net.ipv4.tcp_syncookies=1`, and keep it in /etc/sysctl.d"
            }
            Self::Unserved => {
                "listeners would refuse the shield's cookies, so ports over their SYN budget leave the flood to the \
                 kernel's own; set shield.cookies.manage_syncookies = true and `tunica reload`, or `sysctl -w \
                 net.ipv4.tcp_syncookies=2`, with which the kernel answers every SYN with a cookie"
            }
            Self::Unknown => {
                "whether the listen queue withstands forged sources is not known; look at `sysctl net.ipv4.tcp_syncookies`"
            }
            Self::Switched | Self::Served | Self::Enough => "",
        }
    }
}

/// Whether the shield is to answer with cookies, as far as the configuration goes.
pub const fn wants_cookies(cookies: Option<CookieState>) -> bool {
    match cookies {
        Some(CookieState::Disabled | CookieState::NoBudget) => false,
        Some(
            CookieState::Ready { .. }
            | CookieState::Waiting
            | CookieState::NoProgram
            | CookieState::HiddenTags
            | CookieState::Sysctl { .. },
        )
        | None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_judged_by_what_the_shield_wants() {
        let unserved = Some(CookieState::Sysctl { found: Some(1) });
        let ready = Some(CookieState::Ready { with_options: false });
        for (found, cookies, expected, severity) in [
            (Some(0), None, Fit::Defenceless, Severity::Failure),
            (Some(0), Some(CookieState::Disabled), Fit::Defenceless, Severity::Failure),
            (Some(1), unserved, Fit::Unserved, Severity::Warning),
            (Some(1), Some(CookieState::Waiting), Fit::Switched, Severity::Well),
            (Some(1), Some(CookieState::Disabled), Fit::Enough, Severity::Well),
            (Some(1), None, Fit::Enough, Severity::Well),
            (Some(2), ready, Fit::Served, Severity::Well),
            (Some(2), None, Fit::Served, Severity::Well),
            (Some(2), Some(CookieState::NoBudget), Fit::Enough, Severity::Well),
            (None, ready, Fit::Unknown, Severity::Warning),
        ] {
            let fit = Fit::of(found, cookies);
            assert_eq!((fit, fit.severity()), (expected, severity), "{found:?} {cookies:?}");
            assert_eq!(fit.advice().is_empty(), severity == Severity::Well);
        }
    }
}
