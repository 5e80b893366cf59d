//! `[sybil]`.

use toml::de::DeTable;

use super::{Reader, seconds};
use crate::{keys, sybil::Sybil};

impl Reader<'_> {
    pub(super) fn sybil(&mut self, root: &DeTable<'_>) -> Option<Sybil> {
        let alike_percent = self.value(root, &keys::SYBIL_ALIKE);
        let learn = self.value(root, &keys::SYBIL_LEARN);
        let raises_level = self.value(root, &keys::SYBIL_RAISES);
        let samples = self.value(root, &keys::SYBIL_SAMPLES);
        Some(Sybil {
            alike_percent: alike_percent?.value,
            learn: seconds(learn?.value),
            raises_level: raises_level?.value,
            samples: samples?.value,
        })
    }
}
