//! `[load]`.

use toml::de::DeTable;

use super::{Reader, seconds};
use crate::{keys, load::Load};

impl Reader<'_> {
    pub(super) fn load(&mut self, root: &DeTable<'_>) -> Option<Load> {
        let rise = self.value(root, &keys::LOAD_RISE);
        let fall = self.value(root, &keys::LOAD_FALL);
        let rendezvous_per_second = self.value(root, &keys::LOAD_RENDEZVOUS);
        let rejections_per_second = self.value(root, &keys::LOAD_REJECTIONS);
        let puzzle_queue = self.value(root, &keys::LOAD_PUZZLE_QUEUE);
        Some(Load {
            rise: seconds(rise?.value),
            fall: seconds(fall?.value),
            rendezvous_per_second: rendezvous_per_second?.value,
            rejections_per_second: rejections_per_second?.value,
            puzzle_queue: puzzle_queue?.value,
        })
    }
}
