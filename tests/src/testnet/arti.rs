//! What Arti must be told to find a private network: authorities and relays, in the words of its configuration.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};

/// Settings for `arti.network_file`.
///
/// `lines` name the authorities as in torrc, `descriptors` are those of all relays (dir-spec, "Server descriptor format").
///
/// # Errors
/// Says what is missing.
pub(super) fn settings(lines: &str, descriptors: &str) -> Result<String> {
    let identities: Vec<_> = lines
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("v3ident="))
        .map(|identity| format!("\"{identity}\""))
        .collect();
    let places: Vec<_> = lines
        .lines()
        .filter(|line| line.starts_with("DirAuthority "))
        .filter_map(|line| line.split(' ').find(|word| word.starts_with("127.0.0.1:")))
        .map(|place| format!("[\"{place}\"]"))
        .collect();
    ensure!(!identities.is_empty() && identities.len() == places.len(), "no authorities in {lines}");
    let (identities, places) = (identities.join(", "), places.join(", "));
    let mut relays = String::new();
    for descriptor in descriptors.split("\nrouter ").filter(|text| text.contains("master-key-ed25519 ")) {
        let word = |key: &str| {
            let line = descriptor.lines().find_map(|line| line.strip_prefix(key));
            line.with_context(|| format!("no `{key}` in {descriptor}"))
        };
        let first = descriptor.lines().next().unwrap_or_default().trim_start_matches("router ");
        let [_, address, port, ..] = first.split(' ').collect::<Vec<_>>()[..] else {
            anyhow::bail!("no address in {first}");
        };
        let _ = writeln!(
            relays,
            "    {{ rsa_identity = \"{}\", ed_identity = \"{}\", orports = [\"{address}:{port}\"] }},",
            word("fingerprint ")?.replace(' ', ""),
            word("master-key-ed25519 ")?,
        );
    }
    ensure!(!relays.is_empty(), "no relays in {descriptors}");
    Ok(format!(
        "[tor_network]\nfallback_caches = [\n{relays}]\n\n\
         [tor_network.authorities]\nv3idents = [{identities}]\nuploads = [{places}]\ndownloads = [{places}]\nvotes = [{places}]\n\n\
         # All relays are neighbours on loopback.\n\
         [path_rules]\nipv4_subnet_family_prefix = 33\nipv6_subnet_family_prefix = 129\n"
    ))
}
