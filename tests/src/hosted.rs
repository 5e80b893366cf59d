//! An ingress that hosts the onion service itself, with Arti.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{beside::arti_front, ingress::Backend, lab::Lab, testnet::Network};

/// Configures a lab whose ingress hosts a service, with these lines of `[arti]` and `[circuits]`.
///
/// # Errors
/// If an authority of the network does not answer, or a file cannot be written.
pub fn configure(lab: &Lab, network: &Network, backend: &Backend, arti: &str, circuits: &str) -> Result<()> {
    let file = lab.path("network.toml");
    fs::write(&file, network.arti_settings()?).context("writing what Arti must know")?;
    lab.configure(
        "mode = \"observe\"",
        &format!(
            "[ingress]\nenabled = true\nuser = \"root\"\nbackends = [\"{}\"]\nkeep_alive_seconds = 120\n\
             [arti]\nenabled = true\nstate_dir = \"{}\"\nnetwork_file = \"{}\"\n{arti}\n[circuits]\n{circuits}",
            backend.address(),
            lab.path("arti").display(),
            file.display(),
        ),
    )
}

/// The service's address, as the ingress says it.
///
/// # Errors
/// What it says instead.
pub fn address(lab: &Lab) -> Result<String> {
    let mut command = Command::new(arti_front()?);
    command.arg("--config").arg(lab.path("tunica.toml")).arg("--onion-address");
    let said = command.output().context("starting the ingress")?;
    ensure!(said.status.success(), "{said:?}");
    Ok(String::from_utf8(said.stdout)?.trim().to_owned())
}
