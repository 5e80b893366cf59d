//! What a value may be. Each rule judges values, and says in words what it allows.

pub(crate) mod ingress;

use std::{
    fmt,
    marker::PhantomData,
    net::SocketAddr,
    num::{NonZeroU16, NonZeroU32},
    ops::Range,
    path::PathBuf,
};

use toml::{
    Spanned,
    de::{DeInteger, DeValue},
};
use tunica_common::{
    gcra,
    verdict::{Class, Verdict},
};
use tunica_core::{
    id::{ParseIdError, Prefix},
    limits::{self, Port, Transport},
};

use crate::{
    changes::Written,
    config::{Choice, PortLimit, Reporter},
    nearest::nearest,
};

/// Why a value is refused.
#[derive(Debug)]
pub(crate) struct Fault {
    /// Its bytes in the text.
    pub(crate) span: Range<usize>,
    /// Which entry of a list it is; the first is 1.
    pub(crate) entry: Option<usize>,
    /// What would follow from it.
    pub(crate) consequence: String,
    /// What to write instead.
    pub(crate) fix: String,
}

/// The values that a key may have.
pub(crate) trait Rule {
    /// What the rest of the program works with.
    type Value: fmt::Debug;

    /// The kind of TOML value.
    fn kind(&self) -> String;

    /// What is allowed: words that follow "give".
    fn allowed(&self) -> String;

    /// Judges a value. A refused one has at least one fault.
    fn check(&self, value: &Spanned<DeValue<'_>>) -> Result<Self::Value, Vec<Fault>>;

    /// A value as TOML, the same for all ways to write it.
    fn write(&self, value: &Self::Value) -> Written;
}

/// A rule whose values can stand in a list.
pub(crate) trait Element: Rule {
    /// How entries must relate to each other: a word that goes before "entries".
    const RELATION: &'static str;

    /// The entries that do not relate as they must.
    fn unrelated(&self, entries: &[Entry<Self::Value>]) -> Vec<Unrelated>;
}

/// An entry of a list, good in itself.
pub(crate) struct Entry<T> {
    /// Its place in the list; the first is 1.
    number: usize,
    value: T,
}

/// Why an entry cannot stand beside the others.
pub(crate) struct Unrelated {
    number: usize,
    consequence: String,
    fix: String,
}

/// `true` or `false`.
pub(crate) struct Switch;

/// A whole number above zero.
pub(crate) struct Number {
    pub(crate) least: u32,
    pub(crate) most: u32,
    /// What is counted.
    pub(crate) unit: &'static str,
    /// What follows from a number that is too small.
    pub(crate) below: &'static str,
    /// What follows from a number that is too large.
    pub(crate) above: &'static str,
}

/// One of the words of `T`.
pub(crate) struct OneOf<T>(pub(crate) PhantomData<T>);

/// An absolute path.
pub(crate) struct AbsolutePath {
    /// A path that would do.
    pub(crate) example: &'static str,
    /// Whether a file or socket is meant rather than a directory.
    pub(crate) is_file: bool,
    /// Most bytes, and who says so.
    pub(crate) longest: Option<(usize, &'static str)>,
    /// Why the last component may hold no dot.
    pub(crate) dotless: Option<&'static str>,
}

/// The name of a user or group.
pub(crate) struct Account {
    /// `user` or `group`.
    pub(crate) of: &'static str,
    /// A name that would do.
    pub(crate) example: &'static str,
}

/// An address on loopback with a port.
pub(crate) struct LoopbackAddress {
    /// The port of the addresses that are given as examples.
    pub(crate) port: u16,
    /// What follows if others than this host can reach it.
    pub(crate) exposes: &'static str,
    /// What to do for those others.
    pub(crate) elsewhere: &'static str,
}

/// The name of a network interface.
pub(crate) struct InterfaceName;

/// An address range in CIDR notation.
pub(crate) struct Cidr;

/// The label of a verdict of this class.
pub(crate) struct VerdictOf(pub(crate) Class);

/// A port with its protocol.
pub(crate) struct PortName;

/// A port and how much of something it takes in how long.
pub(crate) struct PortRate {
    /// What is counted.
    pub(crate) of: &'static str,
}

/// An account and how many reports it may make in how long.
pub(crate) struct AccountRate;

/// A list of `least` to `most` entries.
pub(crate) struct List<E> {
    pub(crate) each: E,
    pub(crate) least: usize,
    /// `None`: as many as one likes.
    pub(crate) most: Option<usize>,
    /// What follows from a list that is too short.
    pub(crate) below: &'static str,
}

/// Longest name of a network interface, in bytes: `IFNAMSIZ` less the closing NUL (Linux, `include/uapi/linux/if.h`).
const LONGEST_INTERFACE_NAME: usize = 15;
/// Longest name of a user or group, in bytes: what useradd(8) and groupadd(8) make.
const LONGEST_ACCOUNT_NAME: usize = 32;

impl Fault {
    fn at(value: &Spanned<DeValue<'_>>, consequence: impl Into<String>, fix: impl Into<String>) -> Vec<Self> {
        vec![Self { span: value.span(), entry: None, consequence: consequence.into(), fix: fix.into() }]
    }

    fn wrong_type(value: &Spanned<DeValue<'_>>, wanted: &str) -> Vec<Self> {
        let found = match value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a number with a fraction",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a section",
        };
        let consequence = format!("this is {found}, so it has no meaning here");
        Self::at(value, consequence, format!("give {wanted}"))
    }
}

impl Rule for Switch {
    type Value = bool;

    fn kind(&self) -> String {
        "boolean".to_owned()
    }

    fn allowed(&self) -> String {
        "true or false".to_owned()
    }

    fn check(&self, value: &Spanned<DeValue<'_>>) -> Result<bool, Vec<Fault>> {
        value.get_ref().as_bool().ok_or_else(|| Fault::wrong_type(value, "true or false, without quotes"))
    }

    fn write(&self, value: &bool) -> Written {
        Written::One(value.to_string())
    }
}

impl Rule for Number {
    type Value = NonZeroU32;

    fn kind(&self) -> String {
        "whole number".to_owned()
    }

    fn allowed(&self) -> String {
        format!("{} ({})", self.range(), self.unit)
    }

    fn check(&self, value: &Spanned<DeValue<'_>>) -> Result<NonZeroU32, Vec<Fault>> {
        let DeValue::Integer(integer) = value.get_ref() else {
            return Err(Fault::wrong_type(value, &format!("{}, without quotes or fraction", self.range())));
        };
        let number = to_i128(integer);
        let consequence = if number > i128::from(self.most) { self.above } else { self.below };
        u32::try_from(number)
            .ok()
            .filter(|number| (self.least..=self.most).contains(number))
            .and_then(NonZeroU32::new)
            .ok_or_else(|| Fault::at(value, consequence, format!("give {}", self.range())))
    }

    fn write(&self, value: &NonZeroU32) -> Written {
        Written::One(value.to_string())
    }
}

impl Number {
    fn range(&self) -> String {
        format!("a whole number from {} to {}", self.least, self.most)
    }
}

/// The number, or the end of the range towards which it lies if it has more digits than an `i128` holds.
fn to_i128(integer: &DeInteger<'_>) -> i128 {
    let digits = integer.as_str();
    let beyond = if digits.starts_with('-') { i128::MIN } else { i128::MAX };
    i128::from_str_radix(digits, integer.radix()).unwrap_or(beyond)
}

impl Element for Number {
    const RELATION: &'static str = "rising";

    fn unrelated(&self, entries: &[Entry<NonZeroU32>]) -> Vec<Unrelated> {
        let pairs = entries.iter().zip(entries.iter().skip(1));
        pairs
            .filter(|(before, this)| this.value <= before.value)
            .map(|(before, this)| {
                let comparison = if this.value == before.value { "equal to" } else { "less than" };
                Unrelated {
                    number: this.number,
                    consequence: format!(
                        "this is {comparison} entry {}, so repeating would not cost more",
                        before.number
                    ),
                    fix: format!("give a number above {}, or remove this entry", before.value),
                }
            })
            .collect()
    }
}

impl<T: Choice + fmt::Debug> Rule for OneOf<T> {
    type Value = T;

    fn kind(&self) -> String {
        "string".to_owned()
    }

    fn allowed(&self) -> String {
        alternatives(T::ALL.iter().map(|word| word.label()))
    }

    fn check(&self, value: &Spanned<DeValue<'_>>) -> Result<T, Vec<Fault>> {
        let Some(text) = value.get_ref().as_str() else {
            return Err(Fault::wrong_type(value, &self.allowed()));
        };
        T::ALL.iter().copied().find(|word| word.label() == text).ok_or_else(|| {
            let fix = match nearest(text, T::ALL.iter().map(|word| word.label())) {
                Some(meant) => format!("did you mean \"{meant}\"? Give {}", self.allowed()),
                None => format!("give {}", self.allowed()),
            };
            Fault::at(value, "this word is not known here, so what is wanted would be a guess", fix)
        })
    }

    fn write(&self, value: &T) -> Written {
        Written::text(value.label())
    }
}

/// `"a", "b" or "c"`.
fn alternatives<'w>(words: impl Iterator<Item = &'w str>) -> String {
    let mut quoted: Vec<String> = words.map(|word| format!("\"{word}\"")).collect();
    match (quoted.pop(), quoted.is_empty()) {
        (Some(last), false) => format!("{} or {last}", quoted.join(", ")),
        (Some(only), true) => only,
        (None, _) => String::new(),
    }
}

impl Rule for AbsolutePath {
    type Value = PathBuf;

    fn kind(&self) -> String {
        "string".to_owned()
    }

    fn allowed(&self) -> String {
        let mut words = format!("an absolute path of a {}", if self.is_file { "file" } else { "directory" });
        if let Some((longest, _)) = self.longest {
            words.push_str(&format!(", at most {longest} bytes long"));
        }
        if self.dotless.is_some() {
            words.push_str(", without a dot in its last component");
        }
        words.push_str(&format!(", such as {}", self.example));
        words
    }

    fn check(&self, value: &Spanned<DeValue<'_>>) -> Result<PathBuf, Vec<Fault>> {
        let Some(text) = value.get_ref().as_str() else {
            return Err(Fault::wrong_type(value, &self.allowed()));
        };
        let path = PathBuf::from(text);
        let last = path.file_name().and_then(|last| last.to_str());
        let consequence = if !path.is_absolute() {
            "where this lies would depend on the directory that the daemon was started in".to_owned()
        } else if text.contains('\0') {
            "no name of a file can hold a NUL byte".to_owned()
        } else if last.is_none() || (self.is_file && text.ends_with('/')) {
            format!("this names no {}", if self.is_file { "file" } else { "directory of its own" })
        } else if let Some((longest, authority)) = self.longest
            && text.len() > longest
        {
            format!("this is {} bytes long, and {authority}", text.len())
        } else if let Some(authority) = self.dotless
            && last.is_some_and(|last| last.contains('.'))
        {
            authority.to_owned()
        } else {
            return Ok(path);
        };
        Err(Fault::at(value, consequence, format!("give {}", self.allowed())))
    }

    fn write(&self, value: &PathBuf) -> Written {
        // It came from a text, so nothing is replaced.
        Written::text(&value.to_string_lossy())
    }
}

impl Rule for Account {
    type Value = String;

    fn kind(&self) -> String {
        "string".to_owned()
    }

    fn allowed(&self) -> String {
        format!(
            "the name of a {} of at most {LONGEST_ACCOUNT_NAME} bytes, such as \"{}\"",
            self.of, self.example
        )
    }

    fn check(&self, value: &Spanned<DeValue<'_>>) -> Result<String, Vec<Fault>> {
        let Some(name) = value.get_ref().as_str() else {
            return Err(Fault::wrong_type(value, &self.allowed()));
        };
        match self.judge(name) {
            None => Ok(name.to_owned()),
            Some(consequence) => Err(Fault::at(value, consequence, format!("give {}", self.allowed()))),
        }
    }

    fn write(&self, value: &String) -> Written {
        Written::text(value)
    }
}

impl Account {
    /// What would follow from such a name; `None`: it is good.
    fn judge(&self, name: &str) -> Option<String> {
        let is_number = name.bytes().all(|byte| byte.is_ascii_digit());
        let has_odd =
            name.chars().any(|c| matches!(c, ':' | ',' | '/') || c.is_whitespace() || c.is_control());
        if name.is_empty() {
            Some(format!("no {} has an empty name", self.of))
        } else if is_number {
            Some(format!(
                "a number would be looked up as the name of a {}, and none has such a name",
                self.of
            ))
        } else if has_odd || name.starts_with('-') || name.len() > LONGEST_ACCOUNT_NAME {
            Some(format!("no {} can have such a name", self.of))
        } else {
            None
        }
    }
}

impl Rule for LoopbackAddress {
    type Value = SocketAddr;

    fn kind(&self) -> String {
        "string".to_owned()
    }

    fn allowed(&self) -> String {
        let port = self.port;
        format!("a loopback address and a port, such as \"127.0.0.1:{port}\" or \"[::1]:{port}\"")
    }

    fn check(&self, value: &Spanned<DeValue<'_>>) -> Result<SocketAddr, Vec<Fault>> {
        let Some(text) = value.get_ref().as_str() else {
            return Err(Fault::wrong_type(value, &self.allowed()));
        };
        let fix = format!("give {}", self.allowed());
        let Ok(listen) = text.parse::<SocketAddr>() else {
            return Err(Fault::at(
                value,
                "this is no numeric address with a port, so nothing could listen there",
                fix,
            ));
        };
        if listen.ip().to_canonical().is_loopback() {
            return Ok(listen);
        }
        Err(Fault::at(value, self.exposes, format!("{fix}; {}", self.elsewhere)))
    }

    fn write(&self, value: &SocketAddr) -> Written {
        Written::text(&value.to_string())
    }
}

impl Rule for InterfaceName {
    type Value = String;

    fn kind(&self) -> String {
        "string".to_owned()
    }

    fn allowed(&self) -> String {
        format!(
            "a network interface's name of 1 to {LONGEST_INTERFACE_NAME} bytes without `/`, `:` and spaces, such as \
             \"eth0\""
        )
    }

    fn check(&self, value: &Spanned<DeValue<'_>>) -> Result<String, Vec<Fault>> {
        let Some(name) = value.get_ref().as_str() else {
            return Err(Fault::wrong_type(value, &self.allowed()));
        };
        // The kernel's own rule: Linux, net/core/dev.c, dev_valid_name.
        let has_odd = name.chars().any(|c| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control());
        let consequence = if name.is_empty() {
            "an empty name names nothing to protect".to_owned()
        } else if name.len() > LONGEST_INTERFACE_NAME {
            format!(
                "this is {} bytes long, so no interface can have this name and nothing would be protected",
                name.len()
            )
        } else if has_odd || name == "." || name == ".." {
            "no interface can have this name, so nothing would be protected".to_owned()
        } else {
            return Ok(name.to_owned());
        };
        Err(Fault::at(value, consequence, format!("give {}; `ip -brief link` lists them", self.allowed())))
    }

    fn write(&self, value: &String) -> Written {
        Written::text(value)
    }
}

impl Element for InterfaceName {
    const RELATION: &'static str = "different";

    fn unrelated(&self, entries: &[Entry<String>]) -> Vec<Unrelated> {
        repeated(entries, "the interface would be attached to twice, which the kernel refuses")
    }
}

/// The entries whose value stands in the list before, with this consequence.
fn repeated<T: PartialEq>(entries: &[Entry<T>], consequence: &str) -> Vec<Unrelated> {
    let mut faults = Vec::new();
    let mut seen: Vec<&Entry<T>> = Vec::new();
    for entry in entries {
        match seen.iter().find(|earlier| earlier.value == entry.value) {
            Some(first) => faults.push(Unrelated {
                number: entry.number,
                consequence: consequence.to_owned(),
                fix: format!("remove this entry, which repeats entry {}", first.number),
            }),
            None => seen.push(entry),
        }
    }
    faults
}

impl Rule for Cidr {
    type Value = Prefix;

    fn kind(&self) -> String {
        "string".to_owned()
    }

    fn allowed(&self) -> String {
        "an IP address or a network in CIDR notation, such as \"192.0.2.7\", \"192.0.2.0/24\" or \"2001:db8::/64\""
            .to_owned()
    }

    fn check(&self, value: &Spanned<DeValue<'_>>) -> Result<Prefix, Vec<Fault>> {
        let Some(text) = value.get_ref().as_str() else {
            return Err(Fault::wrong_type(value, &self.allowed()));
        };
        let prefix: Prefix = text.parse().map_err(|error| {
            let (consequence, fix) = match error {
                ParseIdError::NotAnAddress(_)
                | ParseIdError::NotASource(_)
                | ParseIdError::PartOfASource { .. } => (
                    "this is no address, so it would protect nobody".to_owned(),
                    format!("give {}", self.allowed()),
                ),
                ParseIdError::BadLength { most, .. } => (
                    "there is no such prefix length, so it would protect nobody".to_owned(),
                    format!("give a whole number from 0 to {most} after the slash"),
                ),
                ParseIdError::HostBits { meant, .. } => (
                    "bits are set beyond the prefix length, so one host or the whole network may be meant"
                        .to_owned(),
                    format!(
                        "give \"{meant}\" for the network, or the address without a slash for the one host"
                    ),
                ),
            };
            Fault::at(value, consequence, fix)
        })?;
        if prefix.reaches_into_ipv4() {
            let consequence =
                "the kernel keeps IPv4 addresses inside this IPv6 range, so all of them would be allowed too";
            return Err(Fault::at(
                value,
                consequence,
                "give \"2000::/3\" for every public IPv6 address, or less",
            ));
        }
        Ok(prefix)
    }

    fn write(&self, value: &Prefix) -> Written {
        Written::text(&value.to_string())
    }
}

impl Element for Cidr {
    const RELATION: &'static str = "separate";

    fn unrelated(&self, entries: &[Entry<Prefix>]) -> Vec<Unrelated> {
        // Sorted by address, then from wide to narrow, a range comes after the one it lies in and before the next one
        // apart: ranges nest or are apart, they never overlap in part.
        let mut sorted: Vec<&Entry<Prefix>> = entries.iter().collect();
        sorted.sort_by_key(|entry| (entry.value.address(), entry.value.length(), entry.number));
        let mut faults = Vec::new();
        let mut widest: Option<&Entry<Prefix>> = None;
        for entry in sorted {
            match widest {
                Some(around) if around.value.overlaps(entry.value) => faults.push(Unrelated {
                    number: entry.number,
                    consequence: format!(
                        "entry {} ({}) covers this already, so one of the two does nothing",
                        around.number, around.value
                    ),
                    fix: "remove the entry that is not meant".to_owned(),
                }),
                Some(_) | None => widest = Some(entry),
            }
        }
        faults
    }
}

impl Rule for PortName {
    type Value = Port;

    fn kind(&self) -> String {
        "string".to_owned()
    }

    fn allowed(&self) -> String {
        "a port from 1 to 65535 and its protocol, such as \"22/tcp\" or \"51820/udp\"".to_owned()
    }

    fn check(&self, value: &Spanned<DeValue<'_>>) -> Result<Port, Vec<Fault>> {
        let Some(text) = value.get_ref().as_str() else {
            return Err(Fault::wrong_type(value, &self.allowed()));
        };
        let parsed = text.split_once('/').and_then(|(number, protocol)| {
            let transport = match protocol {
                "tcp" => Transport::Tcp,
                "udp" => Transport::Udp,
                _ => return None,
            };
            Some(Port { transport, number: whole(number)?.try_into().ok()? })
        });
        parsed.ok_or_else(|| {
            let consequence = "this names no port of a protocol, so nothing would be opened";
            Fault::at(value, consequence, format!("give {}", self.allowed()))
        })
    }

    fn write(&self, value: &Port) -> Written {
        Written::text(&value.to_string())
    }
}

impl Element for PortName {
    const RELATION: &'static str = "different";

    fn unrelated(&self, entries: &[Entry<Port>]) -> Vec<Unrelated> {
        repeated(entries, "naming a port twice changes nothing")
    }
}

/// A whole number without sign.
fn whole(text: &str) -> Option<NonZeroU32> {
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_plain.then(|| text.parse().ok()).flatten()
}

/// So many in so long, and as many at once.
struct Rate {
    count: NonZeroU32,
    seconds: NonZeroU32,
    pace: gcra::Pace,
}

impl Rate {
    /// Reads `20/10s`, at most a day.
    fn read(text: &str) -> Option<Self> {
        let (count, span) = text.split_once('/')?;
        let (count, seconds) = (whole(count)?, whole(span.strip_suffix('s')?)?);
        let pace = gcra::pace(count.get(), u64::from(seconds.get()) * limits::SECOND_NS, count.get());
        let is_short = seconds.get() <= 86_400;
        Some(Self { count, seconds, pace: pace.filter(|_| is_short)? })
    }
}

impl Rule for PortRate {
    type Value = PortLimit;

    fn kind(&self) -> String {
        "string".to_owned()
    }

    fn allowed(&self) -> String {
        format!(
            "a port from 1 to 65535, a space, how many {} it takes, a slash and in how many seconds (at most 86400), such as \
             \"443 20/10s\"; as many are taken at once",
            self.of
        )
    }

    fn check(&self, value: &Spanned<DeValue<'_>>) -> Result<Self::Value, Vec<Fault>> {
        let Some(text) = value.get_ref().as_str() else {
            return Err(Fault::wrong_type(value, &self.allowed()));
        };
        let parsed = text.split_once(' ').and_then(|(port, rate)| {
            let Rate { count, seconds, pace } = Rate::read(rate)?;
            Some(PortLimit { number: whole(port)?.try_into().ok()?, count, seconds, pace })
        });
        parsed.ok_or_else(|| {
            let consequence = "this is no port with a rate, so nothing would be limited";
            Fault::at(value, consequence, format!("give {}", self.allowed()))
        })
    }

    fn write(&self, value: &PortLimit) -> Written {
        Written::text(&value.to_string())
    }
}

impl Element for PortRate {
    const RELATION: &'static str = "different";

    fn unrelated(&self, entries: &[Entry<Self::Value>]) -> Vec<Unrelated> {
        let ports: Vec<Entry<NonZeroU16>> =
            entries.iter().map(|entry| Entry { number: entry.number, value: entry.value.number }).collect();
        repeated(&ports, "a port has one limit, so one of the two would do nothing")
    }
}

impl Rule for AccountRate {
    type Value = Reporter;

    fn kind(&self) -> String {
        "string".to_owned()
    }

    fn allowed(&self) -> String {
        "the name of a user, a space, how many reports it may make, a slash and in how many seconds (at most 86400), such \
         as \"mail 20/60s\"; as many may come at once"
            .to_owned()
    }

    fn check(&self, value: &Spanned<DeValue<'_>>) -> Result<Self::Value, Vec<Fault>> {
        let Some(text) = value.get_ref().as_str() else {
            return Err(Fault::wrong_type(value, &self.allowed()));
        };
        let fix = format!("give {}", self.allowed());
        let user = Account { of: "user", example: "mail" };
        let parsed = text.split_once(' ').and_then(|(account, rate)| Some((account, Rate::read(rate)?)));
        let Some((account, Rate { count, seconds, pace })) = parsed else {
            let consequence = "this is no account with a rate, so nobody could report";
            return Err(Fault::at(value, consequence, fix));
        };
        match user.judge(account) {
            None => Ok(Reporter { account: account.to_owned(), count, seconds, pace }),
            Some(consequence) => Err(Fault::at(value, consequence, fix)),
        }
    }

    fn write(&self, value: &Reporter) -> Written {
        Written::text(&value.to_string())
    }
}

impl Element for AccountRate {
    const RELATION: &'static str = "different";

    fn unrelated(&self, entries: &[Entry<Self::Value>]) -> Vec<Unrelated> {
        let accounts: Vec<Entry<&str>> = entries
            .iter()
            .map(|entry| Entry { number: entry.number, value: entry.value.account.as_str() })
            .collect();
        repeated(&accounts, "an account has one budget, so one of the two would do nothing")
    }
}

impl VerdictOf {
    fn labels(&self) -> impl Iterator<Item = &'static str> {
        Verdict::ALL.iter().filter(|verdict| verdict.class() == self.0).map(|verdict| verdict.label())
    }
}

impl Rule for VerdictOf {
    type Value = Verdict;

    fn kind(&self) -> String {
        "string".to_owned()
    }

    fn allowed(&self) -> String {
        alternatives(self.labels())
    }

    fn check(&self, value: &Spanned<DeValue<'_>>) -> Result<Verdict, Vec<Fault>> {
        let Some(text) = value.get_ref().as_str() else {
            return Err(Fault::wrong_type(value, &self.allowed()));
        };
        let Some(verdict) = Verdict::from_label(text) else {
            let fix = match nearest(text, self.labels()) {
                Some(meant) => format!("did you mean \"{meant}\"? Give {}", self.allowed()),
                None => format!("give {}", self.allowed()),
            };
            return Err(Fault::at(value, "no verdict has this name, so the entry would do nothing", fix));
        };
        if verdict.class() == self.0 {
            return Ok(verdict);
        }
        let consequence = match verdict.class() {
            Class::Pass => "this verdict is of packets that always pass, so the entry would do nothing",
            Class::Uninspected => {
                "this verdict is of packets that cannot be looked into, so the entry would do nothing"
            }
            Class::Sanity => "this verdict is of a sanity rule, so the entry would do nothing",
            Class::Ban => "this verdict is of a ban, so the entry would do nothing",
            Class::Limit | Class::NoSocket | Class::Icmp => {
                "this verdict is of a limit, so the entry would do nothing"
            }
            Class::Port => "this verdict is of a port's rule, so the entry would do nothing",
            Class::Cookie => "this verdict is of packets that are answered, so the entry would do nothing",
        };
        let fix = format!("give {}", self.allowed());
        Err(Fault::at(value, consequence, fix))
    }

    fn write(&self, value: &Verdict) -> Written {
        Written::text(value.label())
    }
}

impl Element for VerdictOf {
    const RELATION: &'static str = "different";

    fn unrelated(&self, entries: &[Entry<Verdict>]) -> Vec<Unrelated> {
        repeated(entries, "naming a verdict twice changes nothing")
    }
}

impl<E: Element> Rule for List<E> {
    type Value = Vec<E::Value>;

    fn kind(&self) -> String {
        format!("list of {}s", self.each.kind())
    }

    fn allowed(&self) -> String {
        let count = match self.most {
            Some(most) => format!("{} to {most}", self.least),
            None => "any number of".to_owned(),
        };
        format!("a list in brackets of {count} {} entries, each {}", E::RELATION, self.each.allowed())
    }

    fn check(&self, value: &Spanned<DeValue<'_>>) -> Result<Self::Value, Vec<Fault>> {
        let Some(array) = value.get_ref().as_array() else {
            return Err(Fault::wrong_type(value, &self.allowed()));
        };
        let count = array.iter().count();
        if count < self.least {
            return Err(Fault::at(value, self.below, format!("give {}", self.allowed())));
        }
        if self.most.is_some_and(|most| count > most) {
            let consequence = format!("{count} entries are more than there is room for");
            return Err(Fault::at(value, consequence, format!("give {}", self.allowed())));
        }
        let (mut entries, mut faults) = (Vec::new(), Vec::new());
        for (number, entry) in (1..).zip(array.iter()) {
            match self.each.check(entry) {
                Ok(value) => entries.push(Entry { number, value }),
                Err(found) => {
                    faults.extend(found.into_iter().map(|fault| Fault { entry: Some(number), ..fault }))
                }
            }
        }
        for Unrelated { number, consequence, fix } in self.each.unrelated(&entries) {
            let span = array.get(number - 1).map_or(value.span(), Spanned::span);
            faults.push(Fault { span, entry: Some(number), consequence, fix });
        }
        if faults.is_empty() {
            Ok(entries.into_iter().map(|entry| entry.value).collect())
        } else {
            Err(faults)
        }
    }

    fn write(&self, value: &Self::Value) -> Written {
        Written::List(value.iter().map(|entry| self.each.write(entry).to_string()).collect())
    }
}
