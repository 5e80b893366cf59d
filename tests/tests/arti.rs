//! The onion service that the ingress hosts itself, with Arti, on a private network of the real tor.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use tunica_tests::{
    beside::{Beside, arti_front},
    fate::{self, Stage},
    ingress::Backend,
    lab::Lab,
    testnet::{Network, Profile, shared},
};

/// A lab whose ingress hosts a service, with these lines of `[arti]` and `[circuits]`.
fn configure(lab: &Lab, network: &Network, backend: &Backend, arti: &str, circuits: &str) {
    let file = lab.path("network.toml");
    fs::write(&file, network.arti_settings().unwrap()).unwrap();
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
    .unwrap();
}

fn front(lab: &Lab, arguments: &[&str]) -> Output {
    let mut command = Command::new(arti_front().unwrap());
    command.arg("--config").arg(lab.path("tunica.toml")).args(arguments).output().unwrap()
}

/// The address that the front says.
fn address(lab: &Lab) -> String {
    let said = front(lab, &["--onion-address"]);
    assert!(said.status.success(), "{said:?}");
    String::from_utf8(said.stdout).unwrap().trim().to_owned()
}

#[test]
fn circuits_of_a_hosted_service_share_the_fate_of_those_of_c_tor() {
    // The network comes up meanwhile.
    let network = std::thread::spawn(|| shared(Profile::Usual).unwrap());
    let mut lab = Lab::new("arti").unwrap();
    let backend = Backend::start().unwrap();
    let network = network.join().unwrap();
    configure(&lab, &network, &backend, "", fate::CIRCUITS);
    lab.start().unwrap();
    let onion = address(&lab);
    let _front = Beside::start_with_arti(&lab).unwrap();
    lab.wait_for("the ingress", |lab| Ok(lab.metric("tunica_front_up")? == Some(1.0))).unwrap();
    let client = network.client().unwrap();
    lab.wait_for("the service", |_| Ok(fate::open(&client, &onion).is_ok())).unwrap();
    fate::hold(&mut Stage { lab: &mut lab, client: &client, onion: &onion, backend: &backend }).unwrap();
    let log = fs::read_to_string(lab.path("front.log")).unwrap();
    let name = onion.trim_end_matches(".onion");
    assert!(onion.len() == 62 && !log.contains(name) && !lab.log().contains(name), "{log}");
}
