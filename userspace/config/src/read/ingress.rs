//! `[ingress]`.

use toml::de::DeTable;

use super::{Reader, seconds};
use crate::{
    ingress::{Haproxy, Ingress},
    keys,
};

impl Reader<'_> {
    pub(super) fn haproxy(&mut self, root: &DeTable<'_>) -> Option<Haproxy> {
        let socket = self.optional(root, &keys::HAPROXY_SOCKET);
        let table = self.value(root, &keys::HAPROXY_TABLE);
        Some(Haproxy { socket: socket?, table: table?.value })
    }

    pub(super) fn ingress(&mut self, root: &DeTable<'_>) -> Option<Ingress> {
        let enabled = self.value(root, &keys::INGRESS_ENABLED);
        let start_front = self.value(root, &keys::START_FRONT);
        let user = self.value(root, &keys::INGRESS_USER);
        let listen = self.value(root, &keys::INGRESS_LISTEN);
        let socket = self.optional(root, &keys::INGRESS_SOCKET);
        let gate = self.value(root, &keys::GATE);
        let protocol = self.value(root, &keys::INGRESS_PROTOCOL);
        let backends = self.value(root, &keys::BACKENDS);
        let sticky = self.value(root, &keys::STICKY);
        let health_path = self.value(root, &keys::HEALTH_PATH);
        let health_every = self.value(root, &keys::HEALTH_EVERY);
        let maintenance_page = self.optional(root, &keys::MAINTENANCE_PAGE);
        let maxconn = self.value(root, &keys::MAXCONN);
        let queue = self.value(root, &keys::QUEUE);
        let connect = self.value(root, &keys::CONNECT);
        let client = self.value(root, &keys::CLIENT);
        let server = self.value(root, &keys::SERVER);
        let request = self.value(root, &keys::REQUEST);
        let keep_alive = self.value(root, &keys::KEEP_ALIVE);
        let header_bytes = self.value(root, &keys::HEADER_BYTES);
        let body_bytes = self.value(root, &keys::BODY_BYTES);
        let body_bytes_per_second = self.value(root, &keys::BODY_RATE);
        let post_path = self.value(root, &keys::POST_PATH);
        if let (Some(listen), Some(backends)) = (&listen, &backends)
            && backends.value.contains(&crate::Place::Tcp(listen.value))
        {
            self.report_together(
                &keys::BACKENDS,
                backends,
                &keys::INGRESS_LISTEN,
                listen,
                format!(
                    "a backend is the ingress itself ({}), which would send everything in a circle",
                    listen.value
                ),
                "name the address at which the service itself listens".to_owned(),
            );
            return None;
        }
        Some(Ingress {
            enabled: enabled?.value,
            start_front: start_front?.value,
            user: user?.value,
            listen: listen?.value,
            socket: socket?,
            gate: gate?.value,
            protocol: protocol?.value,
            backends: backends?.value,
            sticky: sticky?.value,
            health_path: health_path?.value,
            health_every: seconds(health_every?.value),
            maintenance_page: maintenance_page?,
            maxconn: maxconn?.value,
            queue: seconds(queue?.value),
            connect: seconds(connect?.value),
            client: seconds(client?.value),
            server: seconds(server?.value),
            request: seconds(request?.value),
            keep_alive: seconds(keep_alive?.value),
            header_bytes: header_bytes?.value,
            body_bytes: body_bytes?.value,
            body_bytes_per_second: body_bytes_per_second?.value,
            post_path: post_path?.value,
        })
    }
}
