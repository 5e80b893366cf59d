//! `[arti]`.

use toml::de::DeTable;

use super::{Found, Reader, find};
use crate::{arti::Arti, keys, rule::Rule};

impl Reader<'_> {
    pub(super) fn arti(&mut self, root: &DeTable<'_>) -> Option<Arti> {
        let enabled = self.value(root, &keys::ARTI_ENABLED);
        let state_dir = self.value(root, &keys::ARTI_STATE);
        let key_file = self.optional(root, &keys::ARTI_KEY);
        let ports = self.value(root, &keys::ARTI_PORTS);
        let num_intro_points = self.value(root, &keys::ARTI_INTRO_POINTS);
        let intro_per_second = self.value(root, &keys::ARTI_INTRO_RATE);
        let intro_burst = self.value(root, &keys::ARTI_INTRO_BURST);
        let max_streams_per_circuit = self.value(root, &keys::ARTI_STREAMS);
        let clients_dir = self.optional(root, &keys::ARTI_CLIENTS);
        let pow = self.value(root, &keys::ARTI_POW);
        let pow_queue_rate = self.value(root, &keys::ARTI_POW_RATE);
        let pow_queue_burst = self.value(root, &keys::ARTI_POW_BURST);
        let network_file = self.optional(root, &keys::ARTI_NETWORK);
        if let (Some(rate), Some(burst)) = (&intro_per_second, &intro_burst)
            && rate.value.is_some_and(|rate| rate > burst.value)
        {
            self.report_together(
                &keys::ARTI_INTRO_BURST,
                intro_burst.as_ref()?,
                &keys::ARTI_INTRO_RATE,
                intro_per_second.as_ref()?,
                format!(
                    "the burst ({}) is below what may come in one second, which introduction points refuse \
                     (rend-spec, EST_INTRO_DOS_EXT)",
                    burst.value
                ),
                "give a burst of at least intro_per_second".to_owned(),
            );
            return None;
        }
        if let (Some(rate), Some(burst)) = (&pow_queue_rate, &pow_queue_burst)
            && rate.value > burst.value
        {
            self.report_together(
                &keys::ARTI_POW_BURST,
                burst,
                &keys::ARTI_POW_RATE,
                rate,
                format!(
                    "the burst ({}) is below what may be met in one second, so the rate would never be reached",
                    burst.value
                ),
                "give a burst of at least pow_queue_rate".to_owned(),
            );
            return None;
        }
        let enabled = enabled?.value;
        if enabled {
            self.refuse_beside_arti(
                root,
                &keys::TOR_CONTROL,
                "circuits of another tor would be closed for those of Arti",
            );
            self.refuse_beside_arti(
                root,
                &keys::TOR_METRICS,
                "the load of another tor would count as that of Arti",
            );
            self.refuse_beside_arti(
                root,
                &keys::HAPROXY_SOCKET,
                "Arti hands streams to tunica-front alone, never to HAProxy",
            );
        }
        Some(Arti {
            enabled,
            state_dir: state_dir?.value,
            key_file: key_file?,
            ports: ports?.value,
            num_intro_points: num_intro_points?.value,
            intro_per_second: intro_per_second?.value,
            intro_burst: intro_burst?.value,
            max_streams_per_circuit: max_streams_per_circuit?.value,
            clients_dir: clients_dir?,
            pow: pow?.value,
            pow_queue_rate: pow_queue_rate?.value,
            pow_queue_burst: pow_queue_burst?.value,
            network_file: network_file?,
        })
    }

    fn refuse_beside_arti<R: Rule>(&mut self, root: &DeTable<'_>, key: &keys::Key<R>, consequence: &str) {
        if let Found::Value(value) = find(root, key.name) {
            let found = self.excerpt(value.span());
            let fix = "remove this line, or set enabled = false under [arti]".to_owned();
            let consequence = format!("arti.enabled is true, and {consequence}");
            self.report(value.span(), Some(key.name.to_owned()), Some(found), consequence, fix);
        }
    }
}
