//! How fit each interface is for the shield.

use std::io;

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};
use netlink_sys::protocols::NETLINK_ROUTE;
use tunica_api::view::{Finding, Level};
use tunica_core::limits::CookieState;

use super::{finding, ok_if};
use crate::{
    shell::xdp::hook::{self, Hook, Mode},
    sys::Offloads,
};

/// Drivers whose native XDP the kernel's documentation or the driver's source states.
const NATIVE_DRIVERS: &[&str] = &[
    "atlantic",
    "bnxt_en",
    "bonding",
    "cpsw",
    "dpaa2-eth",
    "ena",
    "enetc",
    "fec",
    "gve",
    "hv_netvsc",
    "i40e",
    "iavf",
    "ice",
    "idpf",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "lan966x",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "mvpp2",
    "netsec",
    "nfp",
    "octeontx2",
    "qede",
    "sfc",
    "stmmac",
    "thunderx",
    "tsnep",
    "tun",
    "veth",
    "virtio_net",
    "vmxnet3",
    "xen-netfront",
];

/// Largest MTU whose frames fit one page with headroom and tail; beyond it a driver needs multi-buffer XDP.
const ONE_PAGE_MTU: u32 = 3_498;

/// What the others are to one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Link {
    index: u32,
    name: String,
    kind: Option<InfoKind>,
    /// The bond, team or bridge that it is a port of.
    master: Option<u32>,
    /// What it lies on, as a VLAN does.
    lower: Option<u32>,
}

/// Findings of each interface that the configuration names.
pub(super) fn examine(interfaces: &[String], cookies: Option<CookieState>) -> Vec<Finding> {
    let links = links();
    interfaces.iter().flat_map(|name| examine_one(name, interfaces, links.as_deref(), cookies)).collect()
}

fn examine_one(
    name: &str,
    configured: &[String],
    links: Result<&[Link], &io::Error>,
    cookies: Option<CookieState>,
) -> Vec<Finding> {
    let hook = match hook::read(name) {
        Ok(Some(hook)) => hook,
        Ok(None) => {
            return vec![finding(
                &format!("interface.{name}"),
                Level::Failure,
                "there is no such interface",
                "the host is not protected there; name one that `ip link` shows under shield.interfaces",
            )];
        }
        Err(error) => return vec![unread(name, &error)],
    };
    let offloads = crate::sys::offloads(name);
    let mut findings = vec![
        state(name, hook),
        driver(name),
        occupancy(name, hook),
        queues(name, hook),
        mtu(name, hook),
        receive_offload(name, &offloads),
    ];
    match links {
        Ok(links) => {
            findings.push(place(name, configured, links));
            findings.push(tags(name, &vlans_on(name, links), &offloads, cookies));
        }
        Err(error) => findings.push(unread(name, error)),
    }
    findings
}

fn unread(name: &str, error: &io::Error) -> Finding {
    finding(
        &format!("interface.{name}"),
        Level::Warning,
        format!("the kernel does not tell about it: {error}"),
        "nothing can be said of it; see that AF_NETLINK is allowed",
    )
}

/// Every interface of this network namespace.
fn links() -> io::Result<Vec<Link>> {
    let mut links = Vec::new();
    let everything = RouteNetlinkMessage::GetLink(LinkMessage::default());
    crate::netlink::ask(NETLINK_ROUTE, everything, true, |answer| {
        if let RouteNetlinkMessage::NewLink(message) = answer {
            links.push(link(message));
        }
    })?;
    Ok(links)
}

fn link(message: LinkMessage) -> Link {
    let mut link = Link { index: message.header.index, ..Link::default() };
    for attribute in message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            link.name = name;
        } else if let LinkAttribute::Controller(master) = attribute {
            link.master = Some(master);
        } else if let LinkAttribute::Link(lower) = attribute {
            link.lower = Some(lower);
        } else if let LinkAttribute::LinkInfo(parts) = attribute {
            link.kind = parts
                .into_iter()
                .find_map(|part| if let LinkInfo::Kind(kind) = part { Some(kind) } else { None });
        }
    }
    link
}

fn state(name: &str, hook: Hook) -> Finding {
    finding(
        &format!("link.{name}"),
        ok_if(hook.is_up, Level::Warning),
        if hook.is_up { "set up" } else { "set down" },
        &format!(
            "no packet comes in there, and some drivers take no program before; `ip link set dev {name} up`"
        ),
    )
}

fn driver(name: &str) -> Finding {
    let driver = crate::sys::driver(name).ok().flatten();
    let (level, found) = match &driver {
        Some(driver) if NATIVE_DRIVERS.contains(&driver.as_str()) => {
            (Level::Ok, format!("driver {driver}, which has native XDP"))
        }
        Some(driver) => (Level::Warning, format!("driver {driver}, not known to have native XDP")),
        None => (Level::Warning, "the driver does not tell its name".to_owned()),
    };
    finding(
        &format!("driver.{name}"),
        level,
        found,
        "attaching may fail; shield.attach = \"native-or-generic\" accepts the slower generic mode",
    )
}

fn occupancy(name: &str, hook: Hook) -> Finding {
    let look = "`ip -d link show` shows what is attached";
    let (level, found, advice) = match (hook.mode, hook.program_id) {
        (Mode::None, _) => (Level::Ok, "free".to_owned(), look),
        (mode, None) => (Level::Warning, format!("a program is attached in {} mode", mode.label()), look),
        (mode @ (Mode::Generic | Mode::Multiple), Some(id)) => (
            Level::Warning,
            format!("program {id} is attached in {} mode", mode.label()),
            "each packet has cost a socket buffer before the program sees it, several times what native mode takes; use a \
             driver with native XDP, set shield.attach = \"native\", then `tunica bypass on` and `off`",
        ),
        (mode @ (Mode::Native | Mode::Offloaded), Some(id)) => (
            Level::Ok,
            format!(
                "program {id} is attached in {} mode (`bpftool prog show id {id}` names it)",
                mode.label()
            ),
            look,
        ),
    };
    finding(&format!("hook.{name}"), level, found, advice)
}

fn queues(name: &str, hook: Hook) -> Finding {
    // Where the driver does not tell what it uses, what it allocated must do.
    let used = crate::sys::receive_channels(name).ok().flatten().unwrap_or(hook.receive_queues);
    let cpus = u32::try_from(std::thread::available_parallelism().map_or(1, usize::from)).unwrap_or(u32::MAX);
    finding(
        &format!("queues.{name}"),
        ok_if(used >= cpus || used == 0, Level::Warning),
        format!("{used} receive queues for {cpus} CPUs"),
        &format!(
            "the shield works on as many CPUs as there are queues, so a flood fills those while others idle; `ethtool -l \
             {name}` says how many there can be, `ethtool -L {name} combined {cpus}` sets them"
        ),
    )
}

fn mtu(name: &str, hook: Hook) -> Finding {
    finding(
        &format!("mtu.{name}"),
        ok_if(hook.mtu <= ONE_PAGE_MTU, Level::Warning),
        format!("MTU {}", hook.mtu),
        &format!(
            "frames above one page need a driver with multi-buffer XDP; if attaching fails, `ip link set dev {name} mtu \
             {ONE_PAGE_MTU}`"
        ),
    )
}

fn receive_offload(name: &str, offloads: &io::Result<Option<Offloads>>) -> Finding {
    let (level, found) = match offloads {
        Ok(Some(Offloads { large_receive: false, .. })) => {
            (Level::Ok, "large receive offload is off".to_owned())
        }
        Ok(Some(Offloads { large_receive: true, .. })) => {
            (Level::Failure, "large receive offload is on".to_owned())
        }
        Ok(None) => (Level::Ok, "the driver has no offloads to ask about".to_owned()),
        Err(error) => (Level::Warning, format!("offloads cannot be read: {error}")),
    };
    finding(
        &format!("offloads.{name}"),
        level,
        found,
        &format!("drivers refuse native XDP while it is on; `ethtool -K {name} lro off`"),
    )
}

/// Whether every packet that arrives by the interface's companions meets the shield, too.
fn place(name: &str, configured: &[String], links: &[Link]) -> Finding {
    let check = format!("place.{name}");
    let by_index = |index: u32| links.iter().find(|link| link.index == index);
    let Some(own) = links.iter().find(|link| link.name == name) else {
        return finding(&check, Level::Warning, "gone meanwhile", "ask again");
    };
    if own.kind == Some(InfoKind::Vlan) {
        let lower = own.lower.and_then(by_index).map_or("its interface", |lower| lower.name.as_str());
        return finding(
            &check,
            Level::Warning,
            format!("a VLAN of {lower}"),
            &format!(
                "a VLAN has no native XDP, and packets of other VLANs are not inspected; name {lower} instead under \
                 shield.interfaces, the shield looks behind two tags"
            ),
        );
    }
    let Some(master) = own.master.and_then(by_index) else {
        return finding(&check, Level::Ok, "stands for itself", "");
    };
    match &master.kind {
        Some(InfoKind::Bond | InfoKind::Team) => {}
        // Packets to the host come by one port of a bridge or another; each has its own hook.
        Some(_) | None => return finding(&check, Level::Ok, format!("a port of {}", master.name), ""),
    }
    if configured.contains(&master.name) {
        return finding(
            &check,
            Level::Warning,
            format!("a port of {}, which is named as well", master.name),
            &format!(
                "the kernel takes a program on the one or on the other; leave {} alone under shield.interfaces, then \
                 `tunica reload`",
                master.name
            ),
        );
    }
    let bare: Vec<&str> = links
        .iter()
        .filter(|link| link.master == own.master && !configured.contains(&link.name))
        .map(|link| link.name.as_str())
        .collect();
    if bare.is_empty() {
        return finding(
            &check,
            Level::Ok,
            format!("a port of {}, as all others that are named", master.name),
            "",
        );
    }
    finding(
        &check,
        Level::Failure,
        format!("a port of {}, as {} that shield.interfaces does not name", master.name, bare.join(", ")),
        &format!(
            "packets that arrive there are not inspected; name {} instead of its ports, or all of them, then `tunica \
             reload`",
            master.name
        ),
    )
}

/// Names of the VLANs on the interface.
fn vlans_on(name: &str, links: &[Link]) -> Vec<String> {
    let Some(own) = links.iter().find(|link| link.name == name) else { return Vec::new() };
    let vlans =
        links.iter().filter(|link| link.kind == Some(InfoKind::Vlan) && link.lower == Some(own.index));
    vlans.map(|vlan| vlan.name.clone()).collect()
}

/// Whether one of these interfaces takes off the tags of VLANs that lie on it. What cannot be read counts as no.
pub fn hides_tags(interfaces: &[String]) -> bool {
    let Ok(links) = links() else { return false };
    interfaces.iter().any(|name| hides_tags_of(&vlans_on(name, &links), &crate::sys::offloads(name)))
}

fn hides_tags_of(vlans: &[String], offloads: &io::Result<Option<Offloads>>) -> bool {
    !vlans.is_empty() && matches!(offloads, Ok(Some(Offloads { vlan_tags: true, .. })))
}

/// Whether the shield sees the tags of the VLANs on the interface. Judging does without them, answering does not.
fn tags(
    name: &str,
    vlans: &[String],
    offloads: &io::Result<Option<Offloads>>,
    cookies: Option<CookieState>,
) -> Finding {
    let check = format!("vlan.{name}");
    if vlans.is_empty() {
        return finding(&check, Level::Ok, "carries no VLAN", "");
    }
    let hides = hides_tags_of(vlans, offloads);
    let vlans = vlans.join(", ");
    if !hides {
        return finding(&check, Level::Ok, format!("carries {vlans}; the shield sees their tags"), "");
    }
    finding(
        &check,
        if cookies == Some(CookieState::HiddenTags) { Level::Failure } else { Level::Warning },
        format!("carries {vlans}, and takes off their tags before the shield sees a packet"),
        &format!(
            "packets are judged all the same, but a cookie would leave without a tag and never reach a client in those VLANs, \
             so ports over their SYN budget leave the flood to the kernel; `ethtool -K {name} rxvlan off`"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: Option<InfoKind>, master: u32, lower: u32) -> Link {
        let some = |index: u32| (index > 0).then_some(index);
        Link { index, name: name.to_owned(), kind, master: some(master), lower: some(lower) }
    }

    fn network() -> Vec<Link> {
        vec![
            link(1, "lo", None, 0, 0),
            link(2, "eth0", None, 5, 0),
            link(3, "eth1", None, 5, 0),
            link(4, "eth2", None, 0, 0),
            link(5, "bond0", Some(InfoKind::Bond), 0, 0),
            link(6, "eth2.7", Some(InfoKind::Vlan), 0, 4),
            link(7, "eth2.8", Some(InfoKind::Vlan), 0, 4),
            link(8, "br0", Some(InfoKind::Bridge), 0, 0),
            link(9, "tap0", Some(InfoKind::Tun), 8, 0),
            link(10, "bond0.9", Some(InfoKind::Vlan), 0, 5),
        ]
    }

    #[test]
    fn companions_that_nobody_watches_are_named() {
        for (name, configured, level, found) in [
            ("eth0", &["eth0"][..], Level::Failure, "a port of bond0, as eth1 that"),
            ("eth0", &["eth0", "eth1"], Level::Ok, "a port of bond0"),
            ("eth0", &["eth0", "bond0"], Level::Warning, "named as well"),
            ("bond0", &["bond0"], Level::Ok, "stands for itself"),
            ("eth2", &["eth2"], Level::Ok, "stands for itself"),
            ("eth2.7", &["eth2.7"], Level::Warning, "a VLAN of eth2"),
            ("tap0", &["tap0"], Level::Ok, "a port of br0"),
            ("eth9", &["eth9"], Level::Warning, "gone"),
        ] {
            let configured: Vec<String> = configured.iter().map(|name| (*name).to_owned()).collect();
            let finding = place(name, &configured, &network());
            assert_eq!(finding.level, level, "{finding:?}");
            assert!(finding.found.contains(found), "{finding:?}");
            assert_eq!(finding.advice.is_empty(), level == Level::Ok, "{finding:?}");
        }
    }

    #[test]
    fn hidden_tags_matter_where_there_are_vlans_and_cookies() {
        let offloads = |vlan_tags| Ok(Some(Offloads { large_receive: false, vlan_tags }));
        let ready = Some(CookieState::Ready { with_options: false });
        let hidden = Some(CookieState::HiddenTags);
        for (name, offloads, cookies, level) in [
            ("eth2", offloads(true), hidden, Level::Failure),
            ("eth2", offloads(true), Some(CookieState::Disabled), Level::Warning),
            ("eth2", offloads(false), ready, Level::Ok),
            ("eth2", Ok(None), ready, Level::Ok),
            ("eth1", offloads(true), ready, Level::Ok),
            ("bond0", offloads(true), hidden, Level::Failure),
        ] {
            let finding = tags(name, &vlans_on(name, &network()), &offloads, cookies);
            assert_eq!(finding.level, level, "{name}: {finding:?}");
            let hides = hides_tags_of(&vlans_on(name, &network()), &offloads);
            assert_eq!(hides, level != Level::Ok, "{name}");
        }
        assert_eq!(vlans_on("eth2", &network()), ["eth2.7", "eth2.8"]);
    }

    #[test]
    fn a_hook_that_is_slow_or_down_is_said() {
        let hook = Hook {
            interface: 2,
            mode: Mode::None,
            program_id: None,
            mtu: 1_500,
            receive_queues: 0,
            is_up: true,
        };
        for (mode, program_id, level) in [
            (Mode::None, None, Level::Ok),
            (Mode::Native, Some(7), Level::Ok),
            (Mode::Offloaded, Some(7), Level::Ok),
            (Mode::Generic, Some(7), Level::Warning),
            (Mode::Multiple, Some(7), Level::Warning),
            (Mode::Native, None, Level::Warning),
        ] {
            assert_eq!(occupancy("eth0", Hook { mode, program_id, ..hook }).level, level, "{mode:?}");
        }
        assert_eq!(state("eth0", hook).level, Level::Ok);
        assert!(state("eth0", Hook { is_up: false, ..hook }).advice.contains("ip link set dev eth0 up"));
        for (size, level) in [(1_280, Level::Ok), (3_498, Level::Ok), (3_499, Level::Warning)] {
            assert_eq!(mtu("eth0", Hook { mtu: size, ..hook }).level, level);
        }
        for (large_receive, level) in [(false, Level::Ok), (true, Level::Failure)] {
            let offloads = Ok(Some(Offloads { large_receive, vlan_tags: false }));
            assert_eq!(receive_offload("eth0", &offloads).level, level);
        }
    }
}
