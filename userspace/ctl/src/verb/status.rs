//! `status`, and what in it must not be overlooked.

use tunica_api::{
    request::Request,
    view::{Heartbeat, Interface, Status},
};

/// The request to send.
pub(crate) fn request() -> Request {
    Request::Status {}
}

/// Whether the shield hangs on the interface in a way that the configuration permits.
pub(crate) fn is_attached_as_requested(interface: &Interface) -> bool {
    match (interface.requested.as_str(), interface.actual.as_str()) {
        (_, "native" | "offloaded") => true,
        (requested, actual) => {
            (requested == "native-or-generic" && actual == "generic")
                || (requested == "nftables" && actual == "nftables")
        }
    }
}

/// Whether the kernel has fallen back, or is about to, because the daemon's heartbeat does not reach it.
pub(crate) fn is_stale(heartbeat: &Heartbeat) -> bool {
    // Not `>`: an age that is no number must not look well.
    let limit = std::time::Duration::from_secs(heartbeat.stale_after_seconds).as_secs_f64();
    !matches!(heartbeat.age_seconds.partial_cmp(&limit), Some(std::cmp::Ordering::Less))
}

/// Whether the host is not protected as its configuration says: exit status 7.
pub(crate) fn needs_attention(status: &Status) -> bool {
    status.bypass.is_some()
        || status.trial.is_some_and(|trial| trial.undone)
        || !status.interfaces.iter().all(is_attached_as_requested)
        || !status.program.matches
        || is_stale(&status.heartbeat)
}
