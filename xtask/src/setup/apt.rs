//! Reading packages from the archive that this machine already uses, without touching the machine's own apt state.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::process;

/// A source of binary packages that the machine's administrator has configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Source {
    /// Archive addresses, as written.
    pub(crate) uris: Vec<String>,
    /// Suites, such as `bookworm-updates`.
    pub(crate) suites: Vec<String>,
    /// The key that signs it: a path, a fingerprint or a whole key, as written.
    pub(crate) signed_by: Option<String>,
}

impl Source {
    /// Whether this is a security archive, which carries fixes for one release and no other suite.
    fn is_security(&self) -> bool {
        self.suites.iter().any(|suite| suite.contains("security"))
    }
}

/// The enabled binary sources of a deb822 file (`*.sources`, see `sources.list(5)`).
pub(crate) fn parse_deb822(text: &str) -> Vec<Source> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let mut stanzas: Vec<Vec<(String, String)>> = vec![Vec::new()];
    for line in lines {
        if line.trim().is_empty() {
            stanzas.push(Vec::new());
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanzas.last_mut().and_then(|stanza| stanza.last_mut()) {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':')
            && let Some(stanza) = stanzas.last_mut()
        {
            stanza.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    stanzas.iter().filter_map(|stanza| source_of(stanza)).collect()
}

fn source_of(stanza: &[(String, String)]) -> Option<Source> {
    let field = |name: &str| stanza.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let words = |name: &str| -> Vec<String> {
        field(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    };
    let is_enabled = field("enabled").is_none_or(|value| !value.eq_ignore_ascii_case("no"));
    if !is_enabled || !words("types").iter().any(|kind| kind == "deb") {
        return None;
    }
    let signed_by = field("signed-by").map(str::to_owned);
    Some(Source { uris: words("uris"), suites: words("suites"), signed_by })
}

/// The binary sources of a one-line file (`sources.list`, `*.list`).
pub(crate) fn parse_one_line(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line.strip_prefix("deb").filter(|rest| rest.starts_with([' ', '\t', '['])) else {
            continue;
        };
        let (options, rest) = match rest.trim_start().strip_prefix('[').and_then(|rest| rest.split_once(']'))
        {
            Some(split) => split,
            None => ("", rest),
        };
        let signed_by = options
            .split_whitespace()
            .find_map(|option| option.strip_prefix("signed-by="))
            .map(str::to_owned);
        let mut words = rest.split_whitespace().map(str::to_owned);
        if let (Some(uri), Some(suite)) = (words.next(), words.next()) {
            sources.push(Source { uris: vec![uri], suites: vec![suite], signed_by });
        }
    }
    sources
}

/// The sources configured under `folder` (`/etc/apt` on a real machine), in apt's order.
///
/// # Errors
/// When a file of the list cannot be read.
pub(crate) fn configured_sources(folder: &Path) -> Result<Vec<Source>> {
    let mut files = vec![folder.join("sources.list")];
    if let Ok(entries) = fs::read_dir(folder.join("sources.list.d")) {
        let mut parts: Vec<PathBuf> =
            entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
        parts.sort();
        files.extend(parts);
    }
    let mut sources = Vec::new();
    for file in files.iter().filter(|file| file.is_file()) {
        let read = || fs::read_to_string(file).with_context(|| format!("reading {}", file.display()));
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => sources.extend(parse_deb822(&read()?)),
            Some("list") => sources.extend(parse_one_line(&read()?)),
            // apt ignores any other ending.
            Some(_) | None => {}
        }
    }
    Ok(sources)
}

/// One deb822 stanza for `suite` for each archive of `sources` that may carry it, without repetition.
///
/// Debian's security fixes are an archive of their own. A machine that names none is taken to find it beside its other
/// archive, at the address with `-security` behind it, where Debian's mirrors have it.
pub(crate) fn stanzas_for(sources: &[Source], suite: &str) -> Vec<String> {
    let is_of_security = suite.ends_with("-security");
    let ending = if is_of_security && !sources.iter().any(Source::is_security) { "-security" } else { "" };
    let mut stanzas = Vec::new();
    for source in
        sources.iter().filter(|source| source.is_security() == (is_of_security && ending.is_empty()))
    {
        for uri in &source.uris {
            let uri = format!("{}{ending}", uri.trim_end_matches('/'));
            let mut stanza = format!("Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\n");
            if let Some(key) = &source.signed_by {
                // Writing to a string cannot fail.
                let _ = writeln!(stanza, "Signed-By: {key}");
            }
            if !stanzas.contains(&stanza) {
                stanzas.push(stanza);
            }
        }
    }
    stanzas
}

/// Does `act` with the first archive of this machine that has `suite` and whatever `act` takes from it.
///
/// # Errors
/// Names the suite and, for each archive, its address and what went wrong there.
pub(crate) fn with_suite<T>(suite: &str, act: impl Fn(&PrivateApt) -> Result<T>) -> Result<T> {
    let stanzas = stanzas_for(&configured_sources(Path::new("/etc/apt"))?, suite);
    if stanzas.is_empty() {
        bail!("this machine's apt names no archive that may have the suite {suite}");
    }
    let mut reasons = Vec::new();
    for stanza in stanzas {
        match PrivateApt::new(Some(&stanza)).and_then(|apt| act(&apt)) {
            Ok(done) => return Ok(done),
            Err(error) => {
                let uri = stanza.lines().find_map(|line| line.strip_prefix("URIs: ")).unwrap_or_default();
                reasons.push(format!("{uri}: {error:#}"));
            }
        }
    }
    bail!(
        "no archive that this machine's apt names gives what is needed from the suite {suite}: {}",
        reasons.join("; ")
    )
}

/// The first of `versions` whose upstream part is exactly the release `pinned`.
///
/// A Debian version is `[epoch:]upstream[-revision]`, and a repacked upstream has `+dfsg…` behind it; a pre-release
/// has `~` behind it and is another release.
pub(crate) fn matching_version<'a>(versions: &'a [String], pinned: &str) -> Option<&'a str> {
    versions.iter().map(String::as_str).find(|version| {
        let version = version.split_once(':').map_or(*version, |(_, rest)| rest);
        let upstream = version.rsplit_once('-').map_or(version, |(upstream, _)| upstream);
        upstream.strip_prefix(pinned).is_some_and(|rest| rest.is_empty() || rest.starts_with('+'))
    })
}

/// The versions in the output of `apt-cache madison`, newest first.
pub(crate) fn parse_madison(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.split('|').nth(1)).map(|version| version.trim().to_owned()).collect()
}

/// apt with lists and cache of its own in a temporary folder, so that the machine's stay as they are.
#[derive(Debug)]
pub(crate) struct PrivateApt {
    folder: TempDir,
}

impl PrivateApt {
    /// Fetches the package lists of the given deb822 `stanza`, or of the machine's own sources where it is `None`.
    ///
    /// # Errors
    /// When apt is missing or the archive does not answer.
    pub(crate) fn new(stanza: Option<&str>) -> Result<Self> {
        let folder = TempDir::with_prefix("tunica-apt-").context("making a temporary folder for apt")?;
        let path = folder.path();
        for part in ["lists/partial", "cache/archives/partial", "parts", "download"] {
            fs::create_dir_all(path.join(part)).context("making a temporary folder for apt")?;
        }
        let at = |part: &str| path.join(part).display().to_string();
        let mut settings = format!(
            "Dir::State::Lists \"{}\";\nDir::Cache \"{}\";\nAcquire::Languages \"none\";\n\
             APT::Sandbox::User \"root\";\nAPT::Get::List-Cleanup \"false\";\n\
             #clear APT::Update::Pre-Invoke;\n#clear APT::Update::Post-Invoke;\n\
             #clear APT::Update::Post-Invoke-Success;\n",
            at("lists"),
            at("cache"),
        );
        if let Some(stanza) = stanza {
            fs::write(path.join("archive.sources"), stanza).context("writing a temporary source list")?;
            // Another suite than the machine's: what is installed here is not part of it.
            fs::write(path.join("status"), "").context("writing an empty list of packages")?;
            let _ = write!(
                settings,
                "Dir::Etc::SourceList \"{}\";\nDir::Etc::SourceParts \"{}\";\nDir::State::Status \"{}\";\n",
                at("archive.sources"),
                at("parts"),
                at("status"),
            );
        }
        fs::write(path.join("apt.conf"), settings).context("writing temporary settings for apt")?;
        let apt = Self { folder };
        // Without `--error-on=any` an archive that does not answer is only a warning.
        process::capture(apt.command("apt-get")?.args(["-qq", "--error-on=any", "update"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Result<Command> {
        let mut command = process::command(program)?;
        command.arg("-c").arg(self.folder.path().join("apt.conf"));
        Ok(command)
    }

    /// The versions of `package` that the archive offers, newest first.
    ///
    /// # Errors
    /// When apt fails; an unknown package is an empty list.
    pub(crate) fn versions(&self, package: &str) -> Result<Vec<String>> {
        Ok(parse_madison(&process::capture(self.command("apt-cache")?.args(["madison", package]))?))
    }

    /// What the archive says of those of `packages` that it has, as deb822 paragraphs (`apt-cache show`).
    ///
    /// # Errors
    /// When it has none of them.
    pub(crate) fn describe(&self, packages: &[&str]) -> Result<String> {
        process::capture(self.command("apt-cache")?.arg("show").args(packages))
    }

    /// Downloads `packages` (`name` or `name=version`) and unpacks them into one folder, running none of their scripts.
    /// The folder lives as long as `self`.
    ///
    /// # Errors
    /// When a package is unknown, its download fails or its checksum is wrong.
    pub(crate) fn unpack(&self, packages: &[String]) -> Result<PathBuf> {
        let download = self.folder.path().join("download");
        let mut apt = self.command("apt-get")?;
        process::capture(apt.args(["-qq", "download"]).args(packages).current_dir(&download))?;
        self.unpack_all(&download)
    }

    /// Downloads `package` with everything it needs that is not installed, and unpacks all of it into one folder, running
    /// no scripts. The folder lives as long as `self`.
    ///
    /// # Errors
    /// When a package is unknown, its download fails or its checksum is wrong.
    pub(crate) fn unpack_with_dependencies(&self, package: &str) -> Result<PathBuf> {
        let mut apt = self.command("apt-get")?;
        apt.args(["-qq", "install", "--yes", "--download-only", "--no-install-recommends"]);
        // Nothing is installed, so dpkg's lock, which only root may take, is not needed.
        process::capture(apt.args(["--option", "Debug::NoLocking=true", package]))?;
        self.unpack_all(&self.folder.path().join("cache/archives"))
    }

    fn unpack_all(&self, folder: &Path) -> Result<PathBuf> {
        let files = self.folder.path().join("files");
        let mut found = false;
        for entry in fs::read_dir(folder).context("listing downloads")? {
            let archive = entry.context("listing downloads")?.path();
            if archive.extension().is_some_and(|extension| extension == "deb") {
                process::capture(process::command("dpkg-deb")?.arg("-x").arg(&archive).arg(&files))?;
                found = true;
            }
        }
        if !found {
            bail!("apt-get downloaded no package");
        }
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(uri: &str, suites: &[&str], signed_by: Option<&str>) -> Source {
        Source {
            uris: vec![uri.to_owned()],
            suites: suites.iter().map(|suite| (*suite).to_owned()).collect(),
            signed_by: signed_by.map(str::to_owned),
        }
    }

    #[test]
    fn deb822_sources_are_read() {
        let text = "Types: deb deb-src\n# a comment inside\nURIs: http://mirror.example/debian\n\
                    Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /usr/share/keyrings/a.gpg\n\n\
                    Types: deb-src\nURIs: http://source.example/debian\nSuites: bookworm\n\n\
                    Enabled: no\nTypes: deb\nURIs: http://off.example/debian\nSuites: bookworm\n\n\n\
                    types: deb\nuris:\n http://one.example/x\n http://two.example/x\nsuites: ./\n";
        let sources = parse_deb822(text);
        assert_eq!(sources.len(), 2);
        assert_eq!(
            sources[0],
            source(
                "http://mirror.example/debian",
                &["bookworm", "bookworm-updates"],
                Some("/usr/share/keyrings/a.gpg")
            )
        );
        assert_eq!(sources[1].uris, ["http://one.example/x", "http://two.example/x"]);
    }

    #[test]
    fn an_inline_key_keeps_its_lines() {
        let text = "Types: deb\nURIs: http://m.example/d\nSuites: s\nSigned-By:\n -----BEGIN-----\n .\n mQ\n";
        let stanza = stanzas_for(&parse_deb822(text), "other").remove(0);
        assert!(stanza.ends_with("Signed-By: \n -----BEGIN-----\n .\n mQ\n"), "{stanza}");
    }

    #[test]
    fn one_line_sources_are_read() {
        let text = "# deb http://comment.example/debian bookworm main\n\
                    deb http://mirror.example/debian bookworm main contrib # tail\n\
                    deb-src http://mirror.example/debian bookworm main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://other.example/debian bookworm-backports main\n\
                    \tdeb\thttp://tab.example/debian\tsid\tmain\n\
                    debris\n";
        assert_eq!(
            parse_one_line(text),
            [
                source("http://mirror.example/debian", &["bookworm"], None),
                source("http://other.example/debian", &["bookworm-backports"], Some("/k.gpg")),
                source("http://tab.example/debian", &["sid"], None),
            ]
        );
    }

    #[test]
    fn both_formats_are_found_where_apt_looks() {
        let folder = TempDir::new().unwrap();
        let parts = folder.path().join("sources.list.d");
        fs::create_dir(&parts).unwrap();
        fs::write(folder.path().join("sources.list"), "deb http://a.example/debian x main\n").unwrap();
        fs::write(parts.join("b.sources"), "Types: deb\nURIs: http://b.example/debian\nSuites: x\n").unwrap();
        fs::write(parts.join("c.list"), "deb http://c.example/debian x main\n").unwrap();
        fs::write(parts.join("d.list.disabled"), "deb http://d.example/debian x main\n").unwrap();
        let uris: Vec<String> =
            configured_sources(folder.path()).unwrap().into_iter().flat_map(|source| source.uris).collect();
        assert_eq!(uris, ["http://a.example/debian", "http://b.example/debian", "http://c.example/debian"]);
    }

    #[test]
    fn the_suite_is_asked_for_once_and_not_of_security_archives() {
        let key = Some("/k.gpg");
        let sources = [
            source("http://m.example/debian", &["bookworm"], key),
            source("http://m.example/debian", &["bookworm-updates"], key),
            source("http://m.example/debian-security", &["bookworm-security"], key),
        ];
        assert_eq!(
            stanzas_for(&sources, "trixie-backports"),
            ["Types: deb\nURIs: http://m.example/debian\nSuites: trixie-backports\nComponents: main\n\
              Signed-By: /k.gpg\n"]
        );
    }

    #[test]
    fn a_security_suite_is_asked_of_security_archives() {
        let other = source("http://m.example/debian/", &["bookworm"], Some("/k.gpg"));
        let security = source("http://s.example/security", &["bookworm-security"], None);
        let stanza = |uri: &str, key: &str| {
            [format!("Types: deb\nURIs: {uri}\nSuites: bullseye-security\nComponents: main\n{key}")]
        };
        assert_eq!(
            stanzas_for(&[other.clone(), security], "bullseye-security"),
            stanza("http://s.example/security", "")
        );
        assert_eq!(
            stanzas_for(&[other], "bullseye-security"),
            stanza("http://m.example/debian-security", "Signed-By: /k.gpg\n")
        );
    }

    #[test]
    fn only_the_pinned_release_matches() {
        let text = "  rust-src | 1.96.1+dfsg1-2~bpo13+1 | http://m.example/debian trixie-backports/main Packages\n  \
                    rust-src | 1.95.0+dfsg1-2~bpo13+1 | http://m.example/debian trixie-backports/main Packages\n  \
                    rust-src | 1.95.0+dfsg1-1~bpo13+1 | http://m.example/debian trixie-backports/main Packages\n";
        let versions = parse_madison(text);
        assert_eq!(matching_version(&versions, "1.95.0"), Some("1.95.0+dfsg1-2~bpo13+1"));
        assert_eq!(matching_version(&versions, "1.9"), None);
        assert_eq!(matching_version(&versions, "1.94.0"), None);
        let odd = ["1.95.0~beta.3+dfsg1-1", "1.95.01-1", "2:1.95.0-1"].map(str::to_owned);
        assert_eq!(matching_version(&odd, "1.95.0"), Some("2:1.95.0-1"));
    }
}
