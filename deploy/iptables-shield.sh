#!/bin/sh
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

rules_iptables() {
    cat <<'RULES'
*filter
:TUNICA - [0:0]
:TUNICA_DROP - [0:0]
# On loopback only the ports named here have a limit.
-A TUNICA -i lo -j RETURN
-A TUNICA -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN
-A TUNICA -p tcp --tcp-flags FIN,PSH,URG,ACK FIN,PSH,URG -j TUNICA_DROP
-A TUNICA -p tcp --tcp-flags FIN,PSH,URG,SYN FIN,PSH,URG,SYN -j TUNICA_DROP
-A TUNICA -p tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG NONE -j TUNICA_DROP
-A TUNICA -p tcp --tcp-flags SYN,FIN SYN,FIN -j TUNICA_DROP
-A TUNICA -p tcp --tcp-flags SYN,RST SYN,RST -j TUNICA_DROP
-A TUNICA -p tcp --tcp-flags FIN,ACK FIN -j TUNICA_DROP
-A TUNICA -m addrtype --src-type LOCAL -j TUNICA_DROP
-A TUNICA -p icmp --icmp-type 8 -m hashlimit --hashlimit-name tunica_echo --hashlimit-above 1/sec --hashlimit-burst 4 --hashlimit-mode srcip --hashlimit-srcmask 32 -j TUNICA_DROP
-A TUNICA -p icmp --icmp-type 8 -m hashlimit --hashlimit-name tunica_echo_host --hashlimit-above 100/sec --hashlimit-burst 100 -j TUNICA_DROP
-A TUNICA -p icmp --icmp-type 8 -j RETURN
-A TUNICA -p icmp -m hashlimit --hashlimit-name tunica_icmp --hashlimit-above 1000/sec --hashlimit-burst 1000 -j TUNICA_DROP
-A TUNICA -p tcp ! --syn -m conntrack --ctstate NEW -m hashlimit --hashlimit-name tunica_no_socket --hashlimit-above 100/sec --hashlimit-burst 100 --hashlimit-mode srcip --hashlimit-srcmask 32 -j TUNICA_DROP
-A TUNICA -p tcp --syn -m hashlimit --hashlimit-name tunica_syn --hashlimit-above 10/sec --hashlimit-burst 20 --hashlimit-mode srcip --hashlimit-srcmask 32 -j TUNICA_DROP
-A TUNICA -p tcp --syn -m hashlimit --hashlimit-name tunica_budget --hashlimit-above 100/sec --hashlimit-burst 300 --hashlimit-mode dstport -m comment --comment "over the budget: counted, left to the cookies of the kernel" -j RETURN
-A TUNICA_DROP -m limit --limit 5/min --limit-burst 5 -j LOG --log-prefix "SHIELD_DOS_DROP: " --log-level debug
-A TUNICA_DROP -j DROP
RULES
}

rules_ip6tables() {
    cat <<'RULES'
*filter
:TUNICA - [0:0]
:TUNICA_DROP - [0:0]
# On loopback only the ports named here have a limit.
-A TUNICA -i lo -j RETURN
-A TUNICA -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN
-A TUNICA -p ipv6-icmp --icmpv6-type 133 -m hl --hl-eq 255 -j RETURN
-A TUNICA -p ipv6-icmp --icmpv6-type 134 -m hl --hl-eq 255 -j RETURN
-A TUNICA -p ipv6-icmp --icmpv6-type 135 -m hl --hl-eq 255 -j RETURN
-A TUNICA -p ipv6-icmp --icmpv6-type 136 -m hl --hl-eq 255 -j RETURN
-A TUNICA -p ipv6-icmp --icmpv6-type 137 -m hl --hl-eq 255 -j RETURN
-A TUNICA -p tcp --tcp-flags FIN,PSH,URG,ACK FIN,PSH,URG -j TUNICA_DROP
-A TUNICA -p tcp --tcp-flags FIN,PSH,URG,SYN FIN,PSH,URG,SYN -j TUNICA_DROP
-A TUNICA -p tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG NONE -j TUNICA_DROP
-A TUNICA -p tcp --tcp-flags SYN,FIN SYN,FIN -j TUNICA_DROP
-A TUNICA -p tcp --tcp-flags SYN,RST SYN,RST -j TUNICA_DROP
-A TUNICA -p tcp --tcp-flags FIN,ACK FIN -j TUNICA_DROP
-A TUNICA -m addrtype --src-type LOCAL -j TUNICA_DROP
-A TUNICA -p ipv6-icmp --icmpv6-type 128 -m hashlimit --hashlimit-name tunica_echo --hashlimit-above 1/sec --hashlimit-burst 4 --hashlimit-mode srcip --hashlimit-srcmask 64 -j TUNICA_DROP
-A TUNICA -p ipv6-icmp --icmpv6-type 128 -m hashlimit --hashlimit-name tunica_echo_host --hashlimit-above 100/sec --hashlimit-burst 100 -j TUNICA_DROP
-A TUNICA -p ipv6-icmp --icmpv6-type 128 -j RETURN
-A TUNICA -p ipv6-icmp -m hashlimit --hashlimit-name tunica_icmp --hashlimit-above 1000/sec --hashlimit-burst 1000 -j TUNICA_DROP
-A TUNICA -p tcp ! --syn -m conntrack --ctstate NEW -m hashlimit --hashlimit-name tunica_no_socket --hashlimit-above 100/sec --hashlimit-burst 100 --hashlimit-mode srcip --hashlimit-srcmask 64 -j TUNICA_DROP
-A TUNICA -p tcp --syn -m hashlimit --hashlimit-name tunica_syn --hashlimit-above 10/sec --hashlimit-burst 20 --hashlimit-mode srcip --hashlimit-srcmask 64 -j TUNICA_DROP
-A TUNICA -p tcp --syn -m hashlimit --hashlimit-name tunica_budget --hashlimit-above 100/sec --hashlimit-burst 300 --hashlimit-mode dstport -m comment --comment "over the budget: counted, left to the cookies of the kernel" -j RETURN
-A TUNICA_DROP -m limit --limit 5/min --limit-burst 5 -j LOG --log-prefix "SHIELD_DOS_DROP: " --log-level debug
-A TUNICA_DROP -j DROP
RULES
}

# The jump comes last, and only if it is not there yet.
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
