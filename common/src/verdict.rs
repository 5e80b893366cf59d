//! One word for each outcome of a packet.
//!
//! The word is the counter's slot, the Prometheus label, what a test asserts and what `tunica explain` says.

/// What group of rules an outcome belongs to; it decides which switches and which protections apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Inspected, or exempt from inspection by design.
    Pass,
    /// Could not be looked into; passed unless `shield.uninspected.drop` names it.
    Uninspected,
    /// No honest sender makes such a packet; stateless, so neither allow list nor evidence matters.
    Sanity,
    /// The source is in the ban table.
    Ban,
    /// The source opened more connections than its share.
    Limit,
    /// A port's own rule: closed, or over the port's rate.
    Port,
    /// The segment belongs to no connection.
    NoSocket,
    /// ICMP over its rate.
    Icmp,
    /// A SYN answered in the stack's place.
    Cookie,
}

/// What was done with a packet.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Handed to the kernel's network stack.
    Pass = 0,
    /// Dropped before a socket buffer existed.
    Drop = 1,
    /// Passed because the shield observes; `enforce` would have dropped it.
    WouldDrop = 2,
    /// Answered with a SYN cookie, without the network stack.
    Answer = 3,
    /// Passed because the shield observes; `enforce` would have answered it.
    WouldAnswer = 4,
}

impl Action {
    /// Every action, in slot order.
    pub const ALL: [Self; 5] = [Self::Pass, Self::Drop, Self::WouldDrop, Self::Answer, Self::WouldAnswer];

    /// The value of the `action` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::WouldDrop => "would_drop",
            Self::Answer => "answer",
            Self::WouldAnswer => "would_answer",
        }
    }

    /// The action with this number, or `None` where the kernel program is newer than this code.
    pub const fn from_slot(slot: u32) -> Option<Self> {
        match slot {
            0 => Some(Self::Pass),
            1 => Some(Self::Drop),
            2 => Some(Self::WouldDrop),
            3 => Some(Self::Answer),
            4 => Some(Self::WouldAnswer),
            _ => None,
        }
    }
}

macro_rules! verdicts {
    ($( $(#[$doc:meta])* $name:ident = $slot:literal, $label:literal, $class:ident, $sentence:literal; )+) => {
        /// Every outcome the shield knows. The number is the counter slot and never changes meaning.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Verdict { $( $(#[$doc])* $name = $slot, )+ }

        impl Verdict {
            /// Every verdict, in slot order.
            pub const ALL: &'static [Self] = &[ $( Self::$name, )+ ];

            /// The value of the `verdict` label, and the word that configuration files use.
            pub const fn label(self) -> &'static str {
                match self { $( Self::$name => $label, )+ }
            }

            /// The group of rules this outcome belongs to.
            pub const fn class(self) -> Class {
                match self { $( Self::$name => Class::$class, )+ }
            }

            /// What `tunica explain` prints: one sentence, no subject's address in it.
            pub const fn sentence(self) -> &'static str {
                match self { $( Self::$name => $sentence, )+ }
            }

            /// The verdict in this counter slot, or `None` where the kernel program is newer than this code.
            pub const fn from_slot(slot: u32) -> Option<Self> {
                match slot { $( $slot => Some(Self::$name), )+ _ => None }
            }
        }
    };
}

verdicts! {
    /// Inspected and found in order.
    Pass = 0, "pass", Pass, "nothing in the policy speaks against this packet";
    /// The shield is switched off (`mode = "off"` or no policy was ever written).
    Unarmed = 1, "unarmed", Pass, "the shield is not armed: every packet passes uninspected";
    /// ARP always passes (RFC 826): without it the host is unreachable.
    Arp = 2, "arp", Pass, "ARP always passes: without it no address resolves";
    /// Neighbour discovery with hop limit 255 always passes (RFC 4861, sections 6.1 and 7.1).
    NeighbourDiscovery = 3, "neighbour_discovery", Pass, "IPv6 neighbour discovery always passes: without it no address resolves";
    /// Path-MTU messages always pass (RFC 1191, RFC 8201).
    PathMtu = 4, "path_mtu", Pass, "path-MTU messages always pass: without them large segments vanish";
    /// DHCP always passes (RFC 2131 ports 67 and 68, RFC 8415 ports 546 and 547).
    Dhcp = 5, "dhcp", Pass, "DHCP always passes: without it the host loses its address";
    /// A ban or a per-source limit spoke against the packet, the allow list for it.
    Allowed = 6, "allowed", Pass, "a ban or limit would have dropped this packet, but the allow list names its source";

    /// An EtherType that is neither IP nor ARP.
    UnknownEthertype = 7, "unknown_ethertype", Uninspected, "the EtherType is neither IP nor ARP, so the shield does not look inside";
    /// More VLAN tags than [`crate::policy::MAX_VLAN_TAGS`].
    VlanDepth = 8, "vlan_depth", Uninspected, "the frame carries more VLAN tags than the shield looks behind";
    /// More IPv6 extension headers than [`crate::policy::MAX_EXTENSION_HEADERS`], or a jumbogram (RFC 2675).
    ExtensionHeaders = 9, "extension_headers", Uninspected, "the packet carries more IPv6 extension headers than the shield looks behind, or is a jumbogram";
    /// A fragment other than the first has no ports (RFC 791, RFC 8200 section 4.5).
    LaterFragment = 10, "later_fragment", Uninspected, "a later fragment carries no ports, so only its source can be judged";

    /// Another packet inside: IP in IP, GRE, IPsec, L2TP, EtherIP, or a PPPoE session.
    Tunnel = 11, "tunnel", Uninspected, "the packet carries another one inside, which the shield does not look at";

    /// A length field contradicts another one or the frame.
    BadLength = 12, "bad_length", Sanity, "a length field contradicts the packet's size";
    /// A first fragment too small for its transport header, or TCP at offset 8 (RFC 1858).
    BadFragment = 13, "bad_fragment", Sanity, "the fragment is cut so that it hides its transport header (RFC 1858)";
    /// FIN, PSH and URG together without ACK, or with SYN.
    Xmas = 14, "xmas", Sanity, "FIN, PSH and URG are set together: a scanner's Christmas-tree segment";
    /// No flag at all.
    NullFlags = 15, "null_flags", Sanity, "no TCP flag is set: a scanner's null segment";
    /// SYN and FIN together.
    SynFin = 16, "syn_fin", Sanity, "SYN and FIN are set together, which no TCP sends";
    /// SYN and RST together.
    SynRst = 17, "syn_rst", Sanity, "SYN and RST are set together, which no TCP sends";
    /// FIN without ACK (RFC 9293 section 3.10.7: every segment but the first SYN and some RSTs carries ACK).
    FinNoAck = 18, "fin_no_ack", Sanity, "FIN is set without ACK, which no TCP sends";
    /// Source and destination address are the same (the LAND attack).
    Land = 19, "land", Sanity, "source and destination address are the same";
    /// The source is one of this host's own addresses, arriving from outside.
    OwnSource = 20, "own_source", Sanity, "the source is one of this host's own addresses, yet the packet came from outside";

    /// The source is banned.
    Banned = 21, "banned", Ban, "the source is banned";
    /// The source opened connections faster than the per-source SYN limit.
    SynRate = 22, "syn_rate", Limit, "the source opens connections faster than its limit";

    /// A SYN that nothing speaks against. Its own word, so that new connections can be told from traffic.
    Syn = 23, "syn", Pass, "nothing in the policy speaks against this new connection";
    /// The port's SYN budget is exceeded, and this SYN goes to the listener so that it goes on accepting cookies.
    SynTrickle = 24, "syn_trickle", Pass, "the port answers with cookies; a few SYNs a second still go to its listener, which accepts cookies only then";
    /// The port's SYN budget is exceeded, and no cookie can be made for this SYN.
    SynOverBudget = 25, "syn_over_budget", Pass, "the port's SYN budget is exceeded and the shield cannot answer this SYN, so the kernel's own defence does";
    /// An ACK that returns a good SYN cookie to a listener.
    CookieAck = 26, "cookie_ack", Pass, "the segment returns a good SYN cookie, which proves its source";
    /// The source is in a banned range.
    BannedNet = 27, "banned_net", Ban, "the source lies in a banned range";
    /// Many neighbours exceed the SYN limit, so their whole network shares one.
    SynRateNet = 28, "syn_rate_net", Limit, "many neighbours of the source open connections faster than their limit, so the larger network shares one limit and exceeds it";
    /// `lockdown`: the port is not among the open ones.
    PortClosed = 29, "port_closed", Port, "the port is not open and the host is locked down";
    /// The port's limit of new connections is exceeded.
    PortRate = 30, "port_rate", Port, "new connections to the port come faster than the port's limit";
    /// The port's limit of UDP packets is exceeded.
    UdpRate = 31, "udp_rate", Port, "UDP packets to the port come faster than the port's limit";
    /// A TCP segment that belongs to no connection, from a source that sends many.
    NoSocket = 32, "no_socket", NoSocket, "the segment belongs to no connection of this host, and its source, or all together, send many such";
    /// Echo requests of the source exceed its limit.
    IcmpRate = 33, "icmp_rate", Icmp, "the source sends echo requests faster than its limit";
    /// Echo requests to the host exceed the host's limit.
    IcmpHostRate = 34, "icmp_host_rate", Icmp, "echo requests reach the host faster than the host's limit";
    /// Other ICMP messages exceed their ceiling, under which even path-MTU messages fall.
    IcmpCeiling = 35, "icmp_ceiling", Icmp, "ICMP messages reach the host faster than the ceiling for all of them";
    /// Nobody listens on the port, and its SYN budget is exceeded.
    NoListener = 36, "no_listener", NoSocket, "nobody listens on the port, and SYNs reach it faster than its budget";
    /// The SYN was answered with a cookie.
    SynCookie = 37, "syn_cookie", Cookie, "the port's SYN budget is exceeded, so the SYN is answered with a cookie and costs the host no memory";
}

impl Verdict {
    /// How many verdicts there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The verdict's counter slot.
    pub const fn slot(self) -> u32 {
        self as u32
    }

    /// The verdict's bit in [`crate::policy::Policy::sanity_mask`] and
    /// [`crate::policy::Policy::uninspected_drop_mask`].
    pub const fn bit(self) -> u64 {
        1 << self.slot()
    }

    /// The verdict with this label.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|verdict| verdict.label() == label)
    }

    /// The bits of every verdict in `class`.
    pub const fn mask_of(class: Class) -> u64 {
        let mut mask = 0;
        let mut slot = 0;
        while slot < Self::COUNT as u32 {
            if let Some(verdict) = Self::from_slot(slot)
                && verdict.class() as u8 == class as u8
            {
                mask |= verdict.bit();
            }
            slot += 1;
        }
        mask
    }
}

const _: () = assert!(Verdict::COUNT <= 64, "the policy's masks have 64 bits");

impl Class {
    /// Every class, in the order of the reference page.
    pub const ALL: [Self; 9] = [
        Self::Pass,
        Self::Uninspected,
        Self::Sanity,
        Self::Ban,
        Self::Limit,
        Self::Port,
        Self::NoSocket,
        Self::Icmp,
        Self::Cookie,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_dense_and_labels_unique() {
        for (index, verdict) in Verdict::ALL.iter().enumerate() {
            assert_eq!(verdict.slot() as usize, index);
            assert_eq!(Verdict::from_slot(verdict.slot()), Some(*verdict));
            assert_eq!(Verdict::from_label(verdict.label()), Some(*verdict));
        }
        assert_eq!(Verdict::from_slot(Verdict::COUNT as u32), None);
    }

    #[test]
    fn every_verdict_is_in_exactly_one_mask() {
        let all = Class::ALL.into_iter().fold(0u64, |seen, class| {
            assert_eq!(seen & Verdict::mask_of(class), 0);
            seen | Verdict::mask_of(class)
        });
        assert_eq!(all.count_ones() as usize, Verdict::COUNT);
    }
}
