//! `confirm`.

use tunica_api::request::Request;

/// The request to send.
pub(crate) fn request() -> Request {
    Request::Confirm {}
}
