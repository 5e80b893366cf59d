//! Texts for hosts without the daemon: a shell script of iptables rules, a file for sysctl.d(5).
//!
//! The script is the shield's policy as far as iptables has words for it, in two chains of its own; everything else on
//! the host stays as it is.

use std::{fmt::Write as _, num::NonZeroU16};

use crate::DROP_LOG_PREFIX;

/// What a script is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// SYNs a second that one port takes before the kernel's cookies answer; the burst is three times as many.
    pub syn_rate: u32,
    /// A port on loopback that takes 20 new connections per 10 s: tor's SOCKS port.
    pub socks_port: Option<NonZeroU16>,
    /// The port on loopback at which tor hands over the streams of an onion service, limited to `syn_rate` new
    /// connections.
    pub ingress_port: Option<NonZeroU16>,
    /// Whether packets that connection tracking calls invalid are dropped.
    pub drop_invalid: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { syn_rate: 100, socks_port: None, ingress_port: None, drop_invalid: false }
    }
}

/// What differs between iptables and ip6tables.
struct Family {
    tool: &'static str,
    is_v4: bool,
}

const FAMILIES: [Family; 2] =
    [Family { tool: "iptables", is_v4: true }, Family { tool: "ip6tables", is_v4: false }];

/// The script, for sh(1): `start`, `stop`, `status` and `dry-run`. Starting twice is like starting once; stopping leaves
/// the host's rules as they were before.
pub fn iptables(options: &Options) -> String {
    let mut script = String::from(HEAD);
    for family in &FAMILIES {
        // Writing to a string cannot fail.
        let _ = write!(
            script,
            "rules_{tool}() {{\n    cat <<'RULES'\n*filter\n:TUNICA - [0:0]\n:TUNICA_DROP - [0:0]\n{rules}RULES\n}}\n\n",
            tool = family.tool,
            rules = rules(options, family)
        );
    }
    script.push_str(TAIL);
    script
}

fn rules(options: &Options, family: &Family) -> String {
    let mut text = String::new();
    let mut comment = |words: &str| {
        let _ = writeln!(text, "# {words}");
    };
    comment("On loopback only the ports named here have a limit.");
    let mut rule = |words: &str| {
        let _ = writeln!(text, "-A TUNICA {words}");
    };
    let width = if family.is_v4 { 32 } else { 64 };
    let above = |name: &str, rate: &str, burst: u32| {
        format!(
            "-m hashlimit --hashlimit-name tunica_{name} --hashlimit-above {rate} --hashlimit-burst {burst}"
        )
    };
    let by_source = |name: &str, rate: &str, burst: u32| {
        format!("{} --hashlimit-mode srcip --hashlimit-srcmask {width}", above(name, rate, burst))
    };
    if let Some(port) = options.socks_port {
        rule(&format!("-i lo -p tcp --dport {port} --syn {} -j TUNICA_DROP", above("socks", "2/sec", 20)));
    }
    let (budget, burst) = (format!("{}/sec", options.syn_rate), options.syn_rate.saturating_mul(3));
    if let Some(port) = options.ingress_port {
        rule(&format!(
            "-i lo -p tcp --dport {port} --syn {} -j TUNICA_DROP",
            above("ingress", &budget, burst)
        ));
        rule(&format!("! -i lo -p tcp --dport {port} -j TUNICA_DROP"));
    }
    rule("-i lo -j RETURN");
    rule("-m conntrack --ctstate ESTABLISHED,RELATED -j RETURN");
    if options.drop_invalid {
        rule("-m conntrack --ctstate INVALID -j TUNICA_DROP");
    }
    if !family.is_v4 {
        for kind in 133..=137 {
            rule(&format!("-p ipv6-icmp --icmpv6-type {kind} -m hl --hl-eq 255 -j RETURN"));
        }
    }
    for (looked_at, set) in [
        ("FIN,PSH,URG,ACK", "FIN,PSH,URG"),
        ("FIN,PSH,URG,SYN", "FIN,PSH,URG,SYN"),
        ("FIN,SYN,RST,PSH,ACK,URG", "NONE"),
        ("SYN,FIN", "SYN,FIN"),
        ("SYN,RST", "SYN,RST"),
        ("FIN,ACK", "FIN"),
    ] {
        rule(&format!("-p tcp --tcp-flags {looked_at} {set} -j TUNICA_DROP"));
    }
    rule("-m addrtype --src-type LOCAL -j TUNICA_DROP");
    let echo = if family.is_v4 { "-p icmp --icmp-type 8" } else { "-p ipv6-icmp --icmpv6-type 128" };
    rule(&format!("{echo} {} -j TUNICA_DROP", by_source("echo", "1/sec", 4)));
    rule(&format!("{echo} {} -j TUNICA_DROP", above("echo_host", "100/sec", 100)));
    rule(&format!("{echo} -j RETURN"));
    let icmp = if family.is_v4 { "-p icmp" } else { "-p ipv6-icmp" };
    rule(&format!("{icmp} {} -j TUNICA_DROP", above("icmp", "1000/sec", 1_000)));
    rule(&format!(
        "-p tcp ! --syn -m conntrack --ctstate NEW {} -j TUNICA_DROP",
        by_source("no_socket", "100/sec", 100)
    ));
    rule(&format!("-p tcp --syn {} -j TUNICA_DROP", by_source("syn", "10/sec", 20)));
    // Dropping these would let an attacker close the port for everybody.
    rule(&format!(
        "-p tcp --syn {} --hashlimit-mode dstport -m comment --comment \"over the budget: counted, left to the cookies of the kernel\" -j RETURN",
        above("budget", &budget, burst)
    ));
    let _ = writeln!(
        text,
        "-A TUNICA_DROP -m limit --limit 5/min --limit-burst 5 -j LOG --log-prefix \"{DROP_LOG_PREFIX}\" --log-level debug\n\
         -A TUNICA_DROP -j DROP"
    );
    text
}

const HEAD: &str = r#"#!/bin/sh
# The shield's policy in iptables, for hosts where neither XDP nor nftables can be had.
# Written by `tunica render iptables`; make another one rather than edit this one.
#
#   start    puts the rules in force, each family in one transaction; again: renews them
#   stop     removes them; every other rule stays
#   status   shows the rules and their counters
#   dry-run  prints what start would load, and has iptables check it
#
# Only the chains TUNICA and TUNICA_DROP of table filter are ours, and one jump at the top of INPUT. What passes them is
# left to your own rules. Nothing survives a restart of the host: start it from a unit.
set -eu

"#;

const TAIL: &str = r#"# The jump comes last, and only if it is not there yet.
load() {
    "rules_$1"
    "$1" -C INPUT -j TUNICA 2>/dev/null || echo '-I INPUT 1 -j TUNICA'
    echo COMMIT
}

each() {
    for tool in iptables ip6tables; do "$1" "$tool"; done
}

start() {
    load "$1" | "$1-restore" --noflush
}

check() {
    load "$1"
    load "$1" | "$1-restore" --noflush --test
}

stop() {
    "$1" -D INPUT -j TUNICA 2>/dev/null || true
    for chain in TUNICA TUNICA_DROP; do
        "$1" -F "$chain" 2>/dev/null || true
    done
    for chain in TUNICA TUNICA_DROP; do
        "$1" -X "$chain" 2>/dev/null || true
    done
}

status() {
    "$1" -nvL TUNICA
    "$1" -nvL TUNICA_DROP
}

for tool in iptables ip6tables iptables-restore ip6tables-restore; do
    command -v "$tool" >/dev/null || { echo "$0: there is no $tool; install iptables" >&2; exit 1; }
done
case "${1-}" in
    start) each start ;;
    stop) each stop ;;
    status) each status ;;
    dry-run) each check ;;
    *) echo "usage: $0 start|stop|status|dry-run" >&2; exit 2 ;;
esac
"#;

/// A file for `/etc/sysctl.d`: what helps a host against floods of SYNs.
pub fn sysctl() -> &'static str {
    "\
# For /etc/sysctl.d/90-tunica.conf; `sysctl --system` reads it. Written by `tunica render sysctl`.

# The kernel answers with SYN cookies once a listener's backlog is full. With 2 it accepts a cookie at any time, which
# the shield's own cookies need: set 2 where ports are to answer in XDP, or leave 1 and set
# shield.cookies.manage_syncookies = true, and the daemon switches while a port is over its budget.
net.ipv4.tcp_syncookies = 1
# Connections half open, of each listener.
net.ipv4.tcp_max_syn_backlog = 8192
# A forged SYN is forgotten after 7 s instead of 63 s.
net.ipv4.tcp_synack_retries = 2
# Packets that wait between the network card and the stack, of each CPU.
net.core.netdev_max_backlog = 5000
"
}
