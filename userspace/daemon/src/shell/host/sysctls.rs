//! Settings of the kernel that decide how far the shield carries.

use std::path::Path;

use tunica_api::view::{Finding, Level};
use tunica_core::{
    limits::CookieState,
    syncookies::{Fit, Severity, wants_cookies},
};

use super::{finding, ok_if, read_trimmed};

/// Of a full table of connections the kernel drops new ones, whosever they are.
const ALMOST_FULL: f64 = 0.8;
/// From here on it may be full at the next look.
const FULL: f64 = 0.95;

/// Findings of the settings below `net`, which is `/proc/sys/net`. `cookies` is what the shield can do with them, as far as
/// configuration and host go; `None` where that is not known.
pub(super) fn examine(net: &Path, cookies: Option<CookieState>) -> [Finding; 4] {
    let number = |name: &str| read_trimmed(net.join(name)).and_then(|text| text.parse::<u64>().ok());
    [
        syncookies(number("ipv4/tcp_syncookies"), cookies),
        timestamps(number("ipv4/tcp_timestamps"), cookies),
        forwarding(number("ipv4/ip_forward"), number("ipv6/conf/all/forwarding")),
        connections(number("netfilter/nf_conntrack_count"), number("netfilter/nf_conntrack_max")),
    ]
}

fn value(number: Option<u64>) -> String {
    number.map_or_else(|| "cannot be read".to_owned(), |number| format!("is {number}"))
}

fn syncookies(found: Option<u64>, cookies: Option<CookieState>) -> Finding {
    let fit = Fit::of(found, cookies);
    let level = match fit.severity() {
        Severity::Failure => Level::Failure,
        Severity::Warning => Level::Warning,
        Severity::Well => Level::Ok,
    };
    finding(
        "syncookies",
        level,
        format!("net.ipv4.tcp_syncookies {}{}", value(found), fit.clause()),
        fit.advice(),
    )
}

fn timestamps(found: Option<u64>, cookies: Option<CookieState>) -> Finding {
    let is_asked = wants_cookies(cookies);
    let (level, then) = match found {
        // Linux, net/ipv4/syncookies.c: the options travel in the timestamp.
        Some(0) => (Level::Warning, ""),
        Some(1) if is_asked => (
            Level::Ok,
            ": connections begun with a cookie of the shield go without window scaling and SACK, which slows transfers over \
             long ways; with 2 they keep both, and every peer can tell how long the host has been up",
        ),
        Some(2) if is_asked => (
            Level::Ok,
            ": connections begun with a cookie of the shield keep window scaling and SACK; every peer can tell how long the \
             host has been up",
        ),
        Some(_) | None => (Level::Ok, ""),
    };
    finding(
        "timestamps",
        level,
        format!("net.ipv4.tcp_timestamps {}{then}", value(found)),
        "connections begun with a cookie, the kernel's own too, go without window scaling and SACK; `sysctl -w \
         net.ipv4.tcp_timestamps=1`",
    )
}

fn forwarding(v4: Option<u64>, v6: Option<u64>) -> Finding {
    let does = |found: Option<u64>| found.is_some_and(|found| found != 0);
    let what = match (does(v4), does(v6)) {
        (false, false) => return finding("forwarding", Level::Ok, "this host does not forward", ""),
        (true, false) => "IPv4",
        (false, true) => "IPv6",
        (true, true) => "IPv4 and IPv6",
    };
    finding(
        "forwarding",
        Level::Warning,
        format!("this host forwards {what}"),
        "packets that only pass through (containers, virtual machines) meet the sanity rules, bans, the SYN limit of their \
         source and the ICMP limits; port rules, SYN budgets, cookies, lockdown and the rule on segments without a \
         connection leave them alone, so what lies behind needs a firewall of its own; spare a network whose many users \
         share an address with `tunica allow add NETWORK`",
    )
}

fn connections(count: Option<u64>, most: Option<u64>) -> Finding {
    let (Some(count), Some(most @ 1..)) = (count, most) else {
        return finding("conntrack", Level::Ok, "the kernel tracks no connections", "");
    };
    let fill = count as f64 / most as f64;
    let level = if fill >= FULL { Level::Failure } else { ok_if(fill < ALMOST_FULL, Level::Warning) };
    finding(
        "conntrack",
        level,
        format!("{count} of {most} tracked connections"),
        &format!(
            "a full table refuses every new connection, whosever it is; `sysctl -w net.netfilter.nf_conntrack_max={}`, or \
             track less (`notrack` in nftables)",
            most.saturating_mul(2)
        ),
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const READY: Option<CookieState> = Some(CookieState::Ready { with_options: false });
    const UNSERVED: Option<CookieState> = Some(CookieState::Sysctl { found: Some(1) });

    /// Findings of a host with these settings.
    fn found(files: &[(&str, &str)], cookies: Option<CookieState>) -> [Finding; 4] {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        examine(root.path(), cookies)
    }

    #[test]
    fn each_setting_is_judged_by_what_the_shield_makes_of_it() {
        const COOKIES: &str = "ipv4/tcp_syncookies";
        const STAMPS: &str = "ipv4/tcp_timestamps";
        let both =
            |count, most| vec![("netfilter/nf_conntrack_count", count), ("netfilter/nf_conntrack_max", most)];
        for (files, cookies, check, level, part) in [
            (vec![(COOKIES, "0")], UNSERVED, "syncookies", Level::Failure, "is 0"),
            (vec![(COOKIES, "0")], Some(CookieState::Disabled), "syncookies", Level::Failure, "is 0"),
            (vec![(COOKIES, "1")], UNSERVED, "syncookies", Level::Warning, "is 1, and"),
            (vec![(COOKIES, "1")], Some(CookieState::Waiting), "syncookies", Level::Ok, "makes it 2"),
            (vec![(COOKIES, "1")], Some(CookieState::Disabled), "syncookies", Level::Ok, "is 1"),
            (vec![(COOKIES, "2")], READY, "syncookies", Level::Ok, "take the shield's cookies"),
            (vec![(COOKIES, "?")], None, "syncookies", Level::Warning, "cannot be read"),
            (vec![(STAMPS, "0")], READY, "timestamps", Level::Warning, "is 0"),
            (vec![(STAMPS, "1")], READY, "timestamps", Level::Ok, "without window scaling"),
            (vec![(STAMPS, "2")], READY, "timestamps", Level::Ok, "keep window scaling"),
            (vec![(STAMPS, "1")], Some(CookieState::NoBudget), "timestamps", Level::Ok, "is 1"),
            (vec![("ipv4/ip_forward", "0")], READY, "forwarding", Level::Ok, "does not forward"),
            (vec![("ipv4/ip_forward", "1")], READY, "forwarding", Level::Warning, "forwards IPv4"),
            (vec![("ipv6/conf/all/forwarding", "1")], READY, "forwarding", Level::Warning, "forwards IPv6"),
            (vec![], READY, "conntrack", Level::Ok, "tracks no"),
            (both("79", "100"), READY, "conntrack", Level::Ok, "79 of 100"),
            (both("80", "100"), READY, "conntrack", Level::Warning, "80 of 100"),
            (both("95", "100"), READY, "conntrack", Level::Failure, "95 of 100"),
            (both("5", "0"), READY, "conntrack", Level::Ok, "tracks no"),
        ] {
            let findings = found(&files, cookies);
            let finding = findings.iter().find(|finding| finding.check == check).unwrap();
            assert_eq!(finding.level, level, "{files:?}: {finding:?}");
            assert!(finding.found.contains(part), "{files:?}: {finding:?}");
            assert_eq!(finding.advice.is_empty(), level == Level::Ok, "{finding:?}");
        }
    }
}
