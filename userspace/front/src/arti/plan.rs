//! What is to be hosted: the configuration in Arti's words, with every file that it names read and checked.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use arti_client::{
    KeystoreSelector, TorClient, TorClientConfig,
    config::{
        CfgPath, ConfigBuildError, TorClientConfigBuilder,
        onion_service::{OnionServiceConfig, OnionServiceConfigBuilder},
    },
};
use safelog::DisplayRedacted as _;
use thiserror::Error;
use tor_hscrypto::pk::{HsClientDescEncKey, HsClientDescEncKeyParseError, HsId, HsIdKey, HsIdKeypair};
use tor_hsservice::config::{
    TokenBucketConfig,
    restricted_discovery::{HsClientNickname, MAX_RESTRICTED_DISCOVERY_CLIENTS},
};
use tor_llcrypto::pk::ed25519::ExpandedKeypair;
use tor_rtcompat::tokio::TokioRustlsRuntime;
use tunica_config::Config;
use tunica_core::hosted_circuits::Intake;
use tunica_onion::key_file::{ExpandedKey, FILE_BYTES, KeyFileError};

/// The service's name in the state directory. There is one, so nobody needs to choose.
const NICKNAME: &str = "tunica";
/// How often the state directory is looked at before what is wrong there is believed, and how long after another look.
const STATE_LOOKS: u32 = 4;
const STATE_PAUSE: Duration = Duration::from_millis(50);
/// Most that Arti holds for circuits and streams that are slower than their senders, bytes: half of what the drop-in of the unit
/// has beyond what the front has otherwise. Beyond it Arti ends those that hold most.
const MOST_QUEUED: usize = 256 << 20;
/// Longest file of a client's key that is read, bytes.
const MOST_AUTH_BYTES: u64 = 4_096;

/// What is to be hosted.
#[derive(Debug)]
pub struct Plan {
    client: TorClientConfig,
    service: OnionServiceConfig,
    state_dir: PathBuf,
    /// The key that is to be taken over.
    key: Option<ExpandedKey>,
    /// Where it lies.
    key_file: PathBuf,
    /// Whether the state directory has the service's key.
    has_key: AtomicBool,
    ports: Arc<[u16]>,
    idle: Duration,
    patience: Duration,
    most_connections: usize,
    /// Where there is proof of work.
    intake: Option<Intake>,
}

/// Why the service cannot be hosted as it is configured.
#[derive(Debug, Error)]
pub enum PlanError {
    /// A file or directory that a key names cannot be read.
    #[error(
        "{key} {path} cannot be read, so the onion service would not be what it should; look at its owner and mode"
    )]
    Read {
        /// The key.
        key: &'static str,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The state directory cannot be made.
    #[error("arti.state_dir {path} cannot be made; make it, and give it to ingress.user with mode 0700")]
    StateDir {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The key file is no key.
    #[error("arti.key_file {path}: {source}")]
    Key {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        source: KeyFileError,
    },
    /// Others can read the key file.
    #[error(
        "arti.key_file {path} has mode {mode:04o}: whoever reads it can be this onion service; run `chmod 600` on it, and make a \
         new address if somebody may have"
    )]
    Exposed {
        /// Where.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The state directory has another service's key.
    #[error(
        "arti.key_file {path} is the key of another onion address than the one in arti.state_dir {state_dir}: one of the two would \
         be gone; remove arti.key_file to go on with the latter, or name another arti.state_dir for the former"
    )]
    OtherKey {
        /// The key file.
        path: PathBuf,
        /// The state directory.
        state_dir: PathBuf,
    },
    /// A client's key is none.
    #[error(
        "{path} is no key of a client ({source}): the client could not find the service; it must hold \
         descriptor:x25519:KEY, as C tor's authorized_clients"
    )]
    Client {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        source: HsClientDescEncKeyParseError,
    },
    /// A client's key is too long to be one.
    #[error("{path} has {bytes} bytes, so it is no key of a client; it must hold descriptor:x25519:KEY")]
    LongClient {
        /// Where.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// Nobody may find the service.
    #[error(
        "arti.clients_dir {path} has no file NAME.auth: nobody could find the service; put the clients' keys there, or remove the \
         line so that everybody can"
    )]
    NoClients {
        /// Where.
        path: PathBuf,
    },
    /// More clients than fit.
    #[error(
        "arti.clients_dir {path} has {found} clients, and a descriptor has room for {MAX_RESTRICTED_DISCOVERY_CLIENTS}: it could not \
         be published; remove some"
    )]
    ManyClients {
        /// Where.
        path: PathBuf,
        /// How many.
        found: usize,
    },
    /// This program has no proof of work.
    #[error(
        "arti.pow is true, and this tunica-front was built without the feature arti-pow: clients would be asked for nothing; set \
         it to false, or build with `--features arti-pow`, parts of which are under the LGPL"
    )]
    NoPow,
    /// The network file is not understood.
    #[error("arti.network_file {path} is not understood: {source}")]
    Network {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        source: Box<toml::de::Error>,
    },
    /// Arti refuses its settings.
    #[error("Arti does not take its settings: {0}")]
    Settings(#[from] ConfigBuildError),
    /// Arti does not take the state directory.
    #[error(
        "arti.state_dir {path} is of no use to Arti: {why}; it must belong to ingress.user alone, with mode 0700, and nobody else \
         may be able to write above it"
    )]
    State {
        /// Where.
        path: PathBuf,
        /// Arti's words.
        why: String,
    },
}

impl Plan {
    /// Reads and checks everything, and makes the state directory.
    ///
    /// # Errors
    /// [`PlanError`]. Nothing of it changes by being tried again.
    pub fn new(config: &Config) -> Result<Self, PlanError> {
        let arti = &config.arti;
        check_pow(arti.pow, cfg!(feature = "arti-pow"))?;
        let key = arti.key_file.as_deref().map(read_key).transpose()?;
        make_dir(&arti.state_dir)?;
        let mut client = match &arti.network_file {
            Some(path) => read_network(path)?,
            None => TorClientConfigBuilder::default(),
        };
        client.storage().cache_dir(CfgPath::new_literal(arti.state_dir.join("cache")));
        client.storage().state_dir(CfgPath::new_literal(arti.state_dir.join("state")));
        client.system().memory().max(MOST_QUEUED);
        // It is no client, so circuits to exits would be of no use.
        client.preemptive_circuits().set_initial_predicted_ports(Vec::new());
        let plan = Self {
            client: client.build()?,
            service: service(config)?,
            state_dir: arti.state_dir.clone(),
            key,
            key_file: arti.key_file.clone().unwrap_or_default(),
            has_key: AtomicBool::new(false),
            ports: arti.ports.iter().map(|port| port.get()).collect(),
            idle: config.circuits.max_age,
            patience: config.ingress.client,
            most_connections: usize::try_from(config.ingress.maxconn.get()).unwrap_or(usize::MAX),
            intake: arti.pow.then(|| Intake::new(arti.pow_queue_rate, arti.pow_queue_burst)),
        };
        plan.check_state_dir()?;
        plan.learn_key()?;
        Ok(plan)
    }

    /// Whether Arti will take everything in the state directory, by its own measure. Whoever hosts the service meanwhile may end
    /// for a process that has begun, so what would keep that one from it is said before.
    fn check_state_dir(&self) -> Result<(), PlanError> {
        let check = || self.client.fs_mistrust().verifier().check_content().check(&self.state_dir);
        for _ in 1..STATE_LOOKS {
            if check().is_ok() {
                return Ok(());
            }
            // Another process may have just renamed a file.
            std::thread::sleep(STATE_PAUSE);
        }
        check().map_err(|error| self.useless(error))
    }

    /// The onion address in full. A service that has no key yet gets one.
    ///
    /// # Errors
    /// [`PlanError::State`].
    pub fn onion_address(&self) -> Result<String, PlanError> {
        let address = match self.identity() {
            Some(key) => id(&key),
            None => {
                let made = self.at_rest()?.generate_identity_key(KeystoreSelector::Primary);
                made.map_err(|error| self.useless(error))?
            }
        };
        Ok(address.display_unredacted().to_string())
    }

    fn known_address(&self) -> Result<Option<HsId>, PlanError> {
        Ok(self.at_rest()?.onion_address())
    }

    /// The service without a network.
    fn at_rest(&self) -> Result<tor_hsservice::OnionService, PlanError> {
        TorClient::<TokioRustlsRuntime>::create_onion_service(&self.client, self.service.clone())
            .map_err(|error| self.useless(error))
    }

    fn useless(&self, error: impl Into<anyhow::Error>) -> PlanError {
        PlanError::State { path: self.state_dir.clone(), why: format!("{:#}", error.into()) }
    }

    /// The key that is to be taken over.
    pub(super) fn identity(&self) -> Option<HsIdKeypair> {
        ExpandedKeypair::from_secret_key_bytes(*self.key.as_ref()?.bytes()).map(HsIdKeypair::from)
    }

    /// Looks whether the state directory has the service's key. It may get one until it is locked.
    ///
    /// # Errors
    /// [`PlanError::State`], and [`PlanError::OtherKey`] if it is another than the one that is to be taken over.
    pub(super) fn learn_key(&self) -> Result<(), PlanError> {
        let known = self.known_address()?;
        if let (Some(known), Some(key)) = (known, self.identity())
            && id(&key) != known
        {
            let (path, state_dir) = (self.key_file.clone(), self.state_dir.clone());
            return Err(PlanError::OtherKey { path, state_dir });
        }
        self.has_key.store(known.is_some(), Relaxed);
        Ok(())
    }

    /// Whether the state directory has the service's key.
    pub(super) fn has_key(&self) -> bool {
        self.has_key.load(Relaxed)
    }

    pub(super) const fn client(&self) -> &TorClientConfig {
        &self.client
    }

    pub(super) const fn service(&self) -> &OnionServiceConfig {
        &self.service
    }

    /// Held by the one process that hosts the service.
    pub(super) fn lock_file(&self) -> PathBuf {
        self.state_dir.join("host.lock")
    }

    /// Virtual ports that are served.
    pub(super) fn ports(&self) -> Arc<[u16]> {
        Arc::clone(&self.ports)
    }

    /// How long a circuit may be without a stream.
    pub(super) const fn idle(&self) -> Duration {
        self.idle
    }

    /// How long a client may take nothing.
    pub(super) const fn patience(&self) -> Duration {
        self.patience
    }

    /// `ingress.maxconn`.
    pub(super) const fn most_connections(&self) -> usize {
        self.most_connections
    }

    /// How fast clients are met; `None`: as fast as they come.
    pub(super) const fn intake(&self) -> Option<Intake> {
        self.intake
    }
}

/// Arti without its proof of work would take the setting, and ask nobody.
fn check_pow(is_wanted: bool, is_built_in: bool) -> Result<(), PlanError> {
    if is_wanted && !is_built_in { Err(PlanError::NoPow) } else { Ok(()) }
}

fn id(key: &HsIdKeypair) -> HsId {
    HsIdKey::from(key).id()
}

fn service(config: &Config) -> Result<OnionServiceConfig, PlanError> {
    let arti = &config.arti;
    let mut service = OnionServiceConfigBuilder::default();
    let nickname =
        NICKNAME.parse().map_err(|_| ConfigBuildError::MissingField { field: "nickname".to_owned() })?;
    service.nickname(nickname);
    service.num_intro_points(u8::try_from(arti.num_intro_points.get()).unwrap_or(u8::MAX));
    let limit = arti.intro_per_second.map(|rate| TokenBucketConfig::new(rate.get(), arti.intro_burst.get()));
    service.rate_limit_at_intro(limit);
    service.max_concurrent_streams_per_circuit(arti.max_streams_per_circuit.get());
    service.enable_pow(arti.pow);
    // The unit forbids memory that is writable and executable, which the compiled form needs.
    service.disable_pow_compilation(true);
    if let Some(path) = &arti.clients_dir {
        let discovery = service.restricted_discovery();
        discovery.enabled(true);
        for (number, key) in read_clients(path)?.into_iter().enumerate() {
            // C tor takes any name for the file; Arti does not take any name for a client.
            let name: Result<HsClientNickname, _> = format!("client{number}").parse();
            let name =
                name.map_err(|_| ConfigBuildError::MissingField { field: "static_keys".to_owned() })?;
            discovery.static_keys().access().push((name, key));
        }
    }
    Ok(service.build()?)
}

fn reading(key: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PlanError {
    move |source| PlanError::Read { key, path: path.to_owned(), source }
}

fn read_key(path: &Path) -> Result<ExpandedKey, PlanError> {
    const KEY: &str = "arti.key_file";
    let about = fs::metadata(path).map_err(reading(KEY, path))?;
    if about.mode() & 0o077 != 0 {
        return Err(PlanError::Exposed { path: path.to_owned(), mode: about.mode() & 0o7777 });
    }
    let wrong = |source| PlanError::Key { path: path.to_owned(), source };
    let most = u64::try_from(FILE_BYTES).unwrap_or(u64::MAX);
    if about.len() > most {
        let found = usize::try_from(about.len()).unwrap_or(usize::MAX);
        return Err(wrong(KeyFileError::Length { found }));
    }
    ExpandedKey::read(&fs::read(path).map_err(reading(KEY, path))?).map_err(wrong)
}

fn read_clients(folder: &Path) -> Result<Vec<HsClientDescEncKey>, PlanError> {
    const KEY: &str = "arti.clients_dir";
    let mut clients = Vec::new();
    for entry in fs::read_dir(folder).map_err(reading(KEY, folder))? {
        let path = entry.map_err(reading(KEY, folder))?.path();
        if path.extension().is_none_or(|extension| extension != "auth") {
            continue;
        }
        let bytes = fs::metadata(&path).map_err(reading(KEY, &path))?.len();
        if bytes > MOST_AUTH_BYTES {
            return Err(PlanError::LongClient { path, bytes });
        }
        let text = fs::read_to_string(&path).map_err(reading(KEY, &path))?;
        match text.trim().parse() {
            Ok(key) => clients.push(key),
            Err(source) => return Err(PlanError::Client { path, source }),
        }
    }
    match clients.len() {
        0 => Err(PlanError::NoClients { path: folder.to_owned() }),
        found if found > MAX_RESTRICTED_DISCOVERY_CLIENTS => {
            Err(PlanError::ManyClients { path: folder.to_owned(), found })
        }
        _ => Ok(clients),
    }
}

fn read_network(path: &Path) -> Result<TorClientConfigBuilder, PlanError> {
    let text = fs::read_to_string(path).map_err(reading("arti.network_file", path))?;
    toml::from_str(&text)
        .map_err(|source| PlanError::Network { path: path.to_owned(), source: Box::new(source) })
}

fn make_dir(path: &Path) -> Result<(), PlanError> {
    let made = DirBuilder::new().mode(0o700).recursive(true).create(path);
    made.map_err(|source| PlanError::StateDir { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A key that tor made for nobody, behind its tag, and what tor says is its address.
    const KEY: &str = "e87e01b09e21a83a3ab343adec1e0ad9de90d7b07fac19c3ae6eef711950c97aba08f8ea42e54953b576a37ae3e0b52b634db538\
                       8128178789ed4cb7f18f23fe";
    const ADDRESS: &str = "vpu2exidwne6kuyabcr2gqbrd26emwurxou424554pzcjxm2qwbxohad.onion";
    const TAG: &[u8; 32] = b"== ed25519v1-secret: type0 ==\0\0\0";

    /// A plan with these lines of `[arti]`, in a folder whose owner alone is trusted, whatever is above it.
    fn plan(folder: &Path, lines: &str) -> Result<Plan, PlanError> {
        let network = folder.join("network.toml");
        fs::write(&network, "[storage.permissions]\ndangerously_trust_everyone = true\n").unwrap();
        let text = format!(
            "[shield]\ninterfaces = [\"eth0\"]\n[arti]\nenabled = true\nstate_dir = \"{}\"\nnetwork_file = \"{}\"\n{lines}",
            folder.join("arti").display(),
            network.display(),
        );
        Plan::new(&tunica_config::read(&text, "a test").unwrap())
    }

    fn write_key(path: &Path, mode: u32) {
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        let key: Vec<u8> = KEY.as_bytes().chunks(2).map(byte).collect();
        fs::write(path, [&TAG[..], &key].concat()).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_key_of_c_tor_has_the_address_that_tor_says_and_one_of_our_own_stays() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        write_key(&key, 0o600);
        let lines = format!("key_file = \"{}\"", key.display());
        assert_eq!(plan(folder.path(), &lines).unwrap().onion_address().unwrap(), ADDRESS);
        // Nothing was taken over yet, so the service still gets a key of its own, which stays.
        let own = plan(folder.path(), "").unwrap().onion_address().unwrap();
        assert_ne!(own, ADDRESS);
        assert_eq!(plan(folder.path(), "").unwrap().onion_address().unwrap(), own);
        let Err(PlanError::OtherKey { path, .. }) = plan(folder.path(), &lines) else {
            panic!("one of two addresses would be gone")
        };
        assert_eq!(path, key);
    }

    #[test]
    fn files_that_are_of_no_use_are_named_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let (key, clients) = (folder.path().join("key"), folder.path().join("clients"));
        fs::create_dir(&clients).unwrap();
        let line = |key: &str, path: &Path| format!("{key} = \"{}\"", path.display());
        let refused = |lines: &str, says: &str| {
            let text = plan(folder.path(), lines).unwrap_err().to_string();
            assert!(text.contains(says), "{says} in {text}");
        };
        let key_file = line("key_file", &key);
        refused(&key_file, "cannot be read");
        write_key(&key, 0o640);
        refused(&key_file, "mode 0640");
        fs::write(&key, [0; 200]).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        refused(&key_file, "it has 200 bytes and must have 96");
        fs::write(&key, [0; 96]).unwrap();
        refused(&key_file, "no secret key that C tor wrote");

        let clients_dir = line("clients_dir", &clients);
        fs::write(clients.join("README"), "no key").unwrap();
        refused(&clients_dir, "nobody could find the service");
        let client = clients.join("a.auth");
        for text in ["", "descriptor:x25519:short", "descriptor:ed25519:A6RX"] {
            fs::write(&client, text).unwrap();
            refused(&clients_dir, "a.auth is no key of a client");
        }
        fs::write(&client, "x".repeat(5_000)).unwrap();
        refused(&clients_dir, "a.auth has 5000 bytes");
        let auth = "descriptor:x25519:A6RXZPAUECJ4RN2V3QNRB2DMWQTDOSWRNKUFH3IL37ALFODNDR6A\n";
        fs::write(&client, auth).unwrap();
        plan(folder.path(), &clients_dir).unwrap();
        for number in 0..MAX_RESTRICTED_DISCOVERY_CLIENTS {
            fs::write(clients.join(format!("{number}.auth")), auth).unwrap();
        }
        refused(&clients_dir, "has 161 clients");
    }

    #[test]
    fn arti_is_told_the_limits_of_introductions_and_streams_as_they_are_configured() {
        let all =
            "num_intro_points = 7\nintro_per_second = 20\nintro_burst = 45\nmax_streams_per_circuit = 9";
        for (lines, points, limit, streams) in [
            ("", 3, Some((50, 100)), 100),
            (all, 7, Some((20, 45)), 9),
            // The consensus's, which Arti asks introduction points for by saying nothing.
            ("intro_per_second = 0", 3, None, 100),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let plan = plan(folder.path(), lines).unwrap();
            let service = plan.service();
            let limit = limit.map(|(rate, burst)| TokenBucketConfig::new(rate, burst));
            assert_eq!(*service.rate_limit_at_intro(), limit, "{lines}");
            assert_eq!(*service.num_intro_points(), points, "{lines}");
            assert_eq!(*service.max_concurrent_streams_per_circuit(), streams, "{lines}");
        }
    }

    #[test]
    fn proof_of_work_is_asked_for_only_by_a_program_that_has_it() {
        assert!(check_pow(true, true).is_ok() && check_pow(false, false).is_ok());
        let said = check_pow(true, false).unwrap_err().to_string();
        assert!(said.contains("--features arti-pow") && said.contains("LGPL"), "{said}");
    }
}
