//! The number of a circuit, as one tor process counts it.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
};

use thiserror::Error;

/// The first eight bytes of every address that stands for a circuit: `fc00:dead:beef:4dad::/64`.
///
/// Source: `export_hs_client_circuit_id` in tor's `src/core/or/connection_edge.c`.
const NETWORK: [u16; 4] = [0xfc00, 0xdead, 0xbeef, 0x4dad];

/// The number of a circuit in one tor process: tor counts all its own circuits from 1, and from 1 again after a restart.
///
/// It means nothing without the process, so it never leaves this machine. `Debug` is scrubbed, and there is no `Display`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RawCircuit(NonZeroU32);

/// Why an address stands for no circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotACircuit {
    /// The header names no address: `UNKNOWN`, `LOCAL`, a Unix socket, a datagram.
    #[error("the PROXY header names no source address")]
    NoAddress,
    /// An IPv4 address.
    #[error("the source is an IPv4 address")]
    Ipv4,
    /// An IPv6 address outside `fc00:dead:beef:4dad::/64`.
    #[error("the source lies outside fc00:dead:beef:4dad::/64")]
    OtherNetwork,
    /// Bits 64 to 95, which tor leaves zero, are not.
    #[error("the source lies in fc00:dead:beef:4dad::/64, but bits 64 to 95 of it are not zero")]
    MiddleBits,
    /// Circuit 0, which tor never gives to a circuit.
    #[error("the source is circuit 0, and tor counts circuits from 1")]
    Zero,
}

impl RawCircuit {
    /// The circuit of this number.
    pub const fn new(number: NonZeroU32) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn number(self) -> NonZeroU32 {
        self.0
    }

    /// The circuit that an address stands for: its low 32 bits.
    ///
    /// # Errors
    /// When the address is not one that tor writes. Whoever requires circuits must refuse the stream.
    pub fn of(address: IpAddr) -> Result<Self, NotACircuit> {
        let IpAddr::V6(address) = address else { return Err(NotACircuit::Ipv4) };
        let [a, b, c, d, middle_high, middle_low, high, low] = address.segments();
        if [a, b, c, d] != NETWORK {
            return Err(NotACircuit::OtherNetwork);
        }
        if (middle_high, middle_low) != (0, 0) {
            return Err(NotACircuit::MiddleBits);
        }
        NonZeroU32::new(u32::from(high) << 16 | u32::from(low)).map(Self).ok_or(NotACircuit::Zero)
    }

    /// The address that stands for the circuit. Its text is canonical (`fc00:dead:beef:4dad::29a`), as HAProxy prints
    /// it, and not tor's (`fc00:dead:beef:4dad::0:29a`); both read as the same address.
    pub const fn address(self) -> Ipv6Addr {
        let [a, b, c, d] = NETWORK;
        let number = self.0.get();
        Ipv6Addr::new(a, b, c, d, 0, 0, (number >> 16) as u16, (number & 0xffff) as u16)
    }
}

impl fmt::Debug for RawCircuit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("RawCircuit(scrubbed)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn circuits_are_read_from_what_tor_writes_and_from_nothing_else() {
        for (address, expected) in [
            ("fc00:dead:beef:4dad::0:29a", Ok(0x29a)),
            ("fc00:dead:beef:4dad::29a", Ok(0x29a)),
            ("fc00:dead:beef:4dad:0:0:0:1", Ok(1)),
            ("fc00:dead:beef:4dad::1:0", Ok(0x1_0000)),
            ("fc00:dead:beef:4dad::ffff:ffff", Ok(u32::MAX)),
            ("fc00:dead:beef:4dad::", Err(NotACircuit::Zero)),
            ("fc00:dead:beef:4dad:1::29a", Err(NotACircuit::MiddleBits)),
            ("fc00:dead:beef:4dad:0:1:0:29a", Err(NotACircuit::MiddleBits)),
            ("fc00:dead:beef:4dae::29a", Err(NotACircuit::OtherNetwork)),
            ("::29a", Err(NotACircuit::OtherNetwork)),
            ("::ffff:127.0.0.1", Err(NotACircuit::OtherNetwork)),
            ("127.0.0.1", Err(NotACircuit::Ipv4)),
        ] {
            let circuit = RawCircuit::of(address.parse().unwrap());
            assert_eq!(circuit.map(|circuit| circuit.number().get()), expected, "{address}");
        }
    }

    #[test]
    fn debug_shows_no_number() {
        let circuit = RawCircuit::new(NonZeroU32::MAX);
        assert_eq!(format!("{circuit:?}"), "RawCircuit(scrubbed)");
    }

    proptest! {
        /// For all circuits, their address stands for them.
        #[test]
        fn addresses_stand_for_circuits(number in 1u32..) {
            let circuit = RawCircuit::new(NonZeroU32::new(number).unwrap());
            prop_assert_eq!(RawCircuit::of(circuit.address().into()), Ok(circuit));
        }
    }
}
