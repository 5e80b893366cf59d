//! Lets the daemon hand these types to the kernel through aya. The crate's only `unsafe`.
//!
//! `aya::Pod` asks that every bit pattern be valid and that no byte be padding. `zerocopy` checks both at compile
//! time for every type here: `FromBytes` the first, `IntoBytes` the second.

use crate::{
    event::{Event, Tally},
    gate::{CircuitBan, CircuitKey, GateSettings},
    keys::{AllowEntry, BanEntry, SourceKey},
    policy::{HostState, NetState, Policy, PortRule, PortState, Verified},
};

macro_rules! pod {
    ($($name:ty),+) => { $(
        const _: () = {
            const fn checked<T: zerocopy::IntoBytes + zerocopy::FromBytes + Copy + 'static>() {}
            checked::<$name>();
        };
        // SAFETY: the line above compiles only for types without padding and with every bit pattern valid.
        unsafe impl aya::Pod for $name {}
    )+ };
}

pod!(
    SourceKey,
    BanEntry,
    AllowEntry,
    Policy,
    PortRule,
    PortState,
    HostState,
    NetState,
    Verified,
    Tally,
    Event,
    GateSettings,
    CircuitKey,
    CircuitBan
);
