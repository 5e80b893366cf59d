//! Which programs the tests, the demo and the benchmark run, and where each comes from.

/// How a program reaches this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// `apt-get install`: its package starts nothing.
    Install,
    /// `apt-get install`, and it is a library that an unpacked program needs, by the name that the loader looks for.
    Library,
    /// Its package would start a service, so it is unpacked and only this file is copied into the tree's own tools.
    Unpack {
        /// The file's path in the package.
        file: &'static str,
    },
}

/// A program, or a library that one needs, from a Debian package.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    /// What is run or loaded.
    pub(crate) name: &'static str,
    /// The Debian package that brings it.
    pub(crate) package: &'static str,
    /// What it is for.
    pub(crate) why: &'static str,
    /// How it gets here.
    pub(crate) delivery: Delivery,
}

const fn installed(name: &'static str, package: &'static str, why: &'static str) -> Program {
    Program { name, package, why, delivery: Delivery::Install }
}

const fn library(name: &'static str, package: &'static str, why: &'static str) -> Program {
    Program { name, package, why, delivery: Delivery::Library }
}

const fn unpacked(
    name: &'static str,
    package: &'static str,
    file: &'static str,
    why: &'static str,
) -> Program {
    Program { name, package, why, delivery: Delivery::Unpack { file } }
}

/// Every program, in the order in which they are shown.
pub(crate) const PROGRAMS: &[Program] = &[
    installed("ip", "iproute2", "network namespaces and virtual links for tests and demo"),
    installed("bpftool", "bpftool", "tests that other tools can load and read the kernel program"),
    installed("nft", "nftables", "the benchmark's and the demo's baseline"),
    installed("iptables", "iptables", "the benchmark's baseline"),
    installed("xdp-filter", "xdp-tools", "the benchmark's yardstick"),
    installed("iperf3", "iperf3", "bulk TCP in the benchmark"),
    installed("ethtool", "ethtool", "offloads of virtual links in tests and demo"),
    installed("sysctl", "procps", "kernel settings inside the tests' namespaces"),
    installed("systemd-analyze", "systemd", "tests of the unit file"),
    installed("xz", "xz-utils", "kernel modules of the virtual machines"),
    installed("setpriv", "util-linux", "tests that run the daemon with two capabilities"),
    installed("g++", "g++", "the fuzzer's runtime, which is C++"),
    unpacked("promtool", "prometheus", "usr/bin/promtool", "tests of the alert rules"),
    unpacked("tor", "tor", "usr/bin/tor", "private Tor networks for tests and developers"),
    unpacked("tor-gencert", "tor", "usr/bin/tor-gencert", "keys of those networks' authorities"),
    unpacked("haproxy", "haproxy", "usr/sbin/haproxy", "tests of HAProxy as the ingress"),
    // What else tor and HAProxy load, a Debian system has from the start.
    library("libevent-2.1.so.7", "libevent-2.1-7", "tor's event loop"),
    library("liblua5.3.so.0", "liblua5.3-0", "HAProxy's scripts"),
    library("libopentracing-c-wrapper.so.0", "libopentracing-c-wrapper0", "HAProxy's tracing"),
];

/// The package that brings `program`, if it is one of ours.
pub(crate) fn package_of(program: &str) -> Option<&'static str> {
    PROGRAMS.iter().find(|known| known.name == program).map(|known| known.package)
}
