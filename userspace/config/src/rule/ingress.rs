//! Rules of `[ingress]`.

use std::{
    net::SocketAddr,
    num::{NonZeroU16, NonZeroU32},
    path::PathBuf,
};

use toml::{Spanned, de::DeValue};
use tunica_core::circuit_policy::Ratio;

use tunica_core::refusal::Refusal;

use super::{Element, Entry, Fault, Number, Rule, Unrelated, alternatives, repeated};
use crate::{
    changes::Written,
    ingress::{Place, is_private},
    nearest::nearest,
};

/// Where a backend listens.
pub(crate) struct BackendPlace;

/// The path of a URL.
pub(crate) struct UrlPath {
    /// A path that would do.
    pub(crate) example: &'static str,
}

/// Longest path of a Unix socket, bytes (unix(7)).
const LONGEST_SOCKET: usize = 107;
/// Longest path of a URL that is taken, bytes.
const LONGEST_URL_PATH: usize = 255;

impl Rule for BackendPlace {
    type Value = Place;

    fn kind(&self) -> String {
        "string".to_owned()
    }

    fn allowed(&self) -> String {
        "a numeric address on loopback or in a private network with a port, such as \"127.0.0.1:10001\", or a Unix socket, \
         such as \"unix:/run/app/http.sock\""
            .to_owned()
    }

    fn check(&self, value: &Spanned<DeValue<'_>>) -> Result<Place, Vec<Fault>> {
        let Some(text) = value.get_ref().as_str() else {
            return Err(Fault::wrong_type(value, &self.allowed()));
        };
        let fix = format!("give {}", self.allowed());
        if let Some(path) = text.strip_prefix("unix:") {
            let fits = path.starts_with('/') && !path.contains('\0') && path.len() <= LONGEST_SOCKET;
            return if fits {
                Ok(Place::Unix(PathBuf::from(path)))
            } else {
                let consequence = "a Unix socket needs an absolute path of at most 107 bytes";
                Err(Fault::at(value, consequence, fix))
            };
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() == 0 => Err(Fault::at(value, "nothing can listen on port 0", fix)),
            Ok(address) if is_private(address.ip()) => Ok(Place::Tcp(address)),
            Ok(_) => Err(Fault::at(
                value,
                "what visitors ask for would cross the internet unencrypted, and tell where the service is",
                fix,
            )),
            Err(_) => Err(Fault::at(
                value,
                "this is no numeric address with a port, so nothing would be sent there",
                fix,
            )),
        }
    }

    fn write(&self, value: &Place) -> Written {
        Written::text(&value.to_string())
    }
}

impl Element for BackendPlace {
    const RELATION: &'static str = "different";

    fn unrelated(&self, entries: &[Entry<Place>]) -> Vec<Unrelated> {
        repeated(entries, "naming a backend twice sends it twice as much")
    }
}

impl Rule for UrlPath {
    type Value = String;

    fn kind(&self) -> String {
        "string".to_owned()
    }

    fn allowed(&self) -> String {
        format!(
            "a path that begins with / and holds visible ASCII characters only, such as \"{}\"",
            self.example
        )
    }

    fn check(&self, value: &Spanned<DeValue<'_>>) -> Result<String, Vec<Fault>> {
        let Some(text) = value.get_ref().as_str() else {
            return Err(Fault::wrong_type(value, &self.allowed()));
        };
        let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic());
        if text.starts_with('/') && is_plain && text.len() <= LONGEST_URL_PATH {
            return Ok(text.to_owned());
        }
        let consequence = "no request could ask for this";
        Err(Fault::at(value, consequence, format!("give {}", self.allowed())))
    }

    fn write(&self, value: &String) -> Written {
        Written::text(value)
    }
}

/// The name of a proxy of HAProxy.
pub(crate) struct ProxyName;

/// Longest name of a proxy that is taken, bytes.
const LONGEST_PROXY_NAME: usize = 64;

impl Rule for ProxyName {
    type Value = String;

    fn kind(&self) -> String {
        "string".to_owned()
    }

    fn allowed(&self) -> String {
        format!(
            "1 to {LONGEST_PROXY_NAME} letters and digits of ASCII, `-`, `_`, `.` or `:`, such as \"tunica_circuits\""
        )
    }

    fn check(&self, value: &Spanned<DeValue<'_>>) -> Result<String, Vec<Fault>> {
        let Some(text) = value.get_ref().as_str() else {
            return Err(Fault::wrong_type(value, &self.allowed()));
        };
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
        if (1..=LONGEST_PROXY_NAME).contains(&text.len()) && text.bytes().all(is_part) {
            return Ok(text.to_owned());
        }
        let consequence = "HAProxy could have no table of this name";
        Err(Fault::at(value, consequence, format!("give {}", self.allowed())))
    }

    fn write(&self, value: &String) -> Written {
        Written::text(value)
    }
}

/// A number as [`Number`] has it, or 0, which switches off what it limits.
pub(crate) struct OrOff(pub(crate) Number);

impl Rule for OrOff {
    type Value = Option<NonZeroU32>;

    fn kind(&self) -> String {
        self.0.kind()
    }

    fn allowed(&self) -> String {
        format!("{}, or 0 for none", self.0.allowed())
    }

    fn check(&self, value: &Spanned<DeValue<'_>>) -> Result<Option<NonZeroU32>, Vec<Fault>> {
        if let DeValue::Integer(integer) = value.get_ref()
            && super::to_i128(integer) == 0
        {
            return Ok(None);
        }
        self.0.check(value).map(Some)
    }

    fn write(&self, value: &Option<NonZeroU32>) -> Written {
        value.map_or_else(|| Written::One("0".to_owned()), |number| self.0.write(&number))
    }
}

/// A limit that may be tried before it acts, by its word.
pub(crate) struct ShadowLimit;

impl ShadowLimit {
    fn labels() -> impl Iterator<Item = &'static str> {
        Refusal::ALL.iter().filter(|word| word.may_be_shadow()).map(|word| word.label())
    }
}

impl Rule for ShadowLimit {
    type Value = Refusal;

    fn kind(&self) -> String {
        "string".to_owned()
    }

    fn allowed(&self) -> String {
        alternatives(Self::labels())
    }

    fn check(&self, value: &Spanned<DeValue<'_>>) -> Result<Refusal, Vec<Fault>> {
        let Some(text) = value.get_ref().as_str() else {
            return Err(Fault::wrong_type(value, &self.allowed()));
        };
        let fix = match nearest(text, Self::labels()) {
            Some(meant) => format!("did you mean \"{meant}\"? Give {}", self.allowed()),
            None => format!("give {}", self.allowed()),
        };
        match Refusal::named(text) {
            Some(word) if word.may_be_shadow() => Ok(word),
            Some(_) => {
                Err(Fault::at(value, "this is no limit that could be tried, so it would go on acting", fix))
            }
            None => Err(Fault::at(value, "no limit has this name, so it would go on acting", fix)),
        }
    }

    fn write(&self, value: &Refusal) -> Written {
        Written::text(value.label())
    }
}

impl Element for ShadowLimit {
    const RELATION: &'static str = "different";

    fn unrelated(&self, entries: &[Entry<Refusal>]) -> Vec<Unrelated> {
        repeated(entries, "naming a limit twice changes nothing")
    }
}

/// A part of a whole, from 0.0 to 1.0.
pub(crate) struct Part {
    /// Of what.
    pub(crate) unit: &'static str,
}

impl Rule for Part {
    type Value = Ratio;

    fn kind(&self) -> String {
        "float".to_owned()
    }

    fn allowed(&self) -> String {
        format!("a part from 0.0 to 1.0 {}", self.unit)
    }

    fn check(&self, value: &Spanned<DeValue<'_>>) -> Result<Ratio, Vec<Fault>> {
        let fix = || format!("give {}", self.allowed());
        let part = if let Some(float) = value.get_ref().as_float() {
            float.as_str().parse::<f64>().ok()
        } else if let DeValue::Integer(integer) = value.get_ref() {
            // 0 and 1 are meant as parts, too.
            i32::try_from(super::to_i128(integer)).ok().map(f64::from)
        } else {
            return Err(Fault::wrong_type(value, &format!("{}, without quotes", self.allowed())));
        };
        let consequence = "there is no part of a whole that is less than nothing or more than all of it";
        part.and_then(Ratio::new).ok_or_else(|| Fault::at(value, consequence, fix()))
    }

    fn write(&self, value: &Ratio) -> Written {
        Written::One(format!("{:?}", f64::from(value.ten_thousandths()) / 10_000.0))
    }
}

/// Where tor takes commands.
pub(crate) struct ControlPlace;

impl Rule for ControlPlace {
    type Value = Place;

    fn kind(&self) -> String {
        "string".to_owned()
    }

    fn allowed(&self) -> String {
        "a loopback address with a port, such as \"127.0.0.1:9051\", or a Unix socket, such as \"unix:/run/tor/control\""
            .to_owned()
    }

    fn check(&self, value: &Spanned<DeValue<'_>>) -> Result<Place, Vec<Fault>> {
        let fix = format!("give {}", self.allowed());
        let place = BackendPlace.check(value).map_err(|faults| {
            let about_tor = |fault: Fault| Fault {
                consequence: "this is no place where tor could be spoken to".to_owned(),
                fix: fix.clone(),
                ..fault
            };
            faults.into_iter().map(about_tor).collect::<Vec<_>>()
        })?;
        match &place {
            Place::Tcp(address) if !address.ip().to_canonical().is_loopback() => Err(Fault::at(
                value,
                "whoever listens on the way could read the password and close circuits",
                fix,
            )),
            Place::Tcp(_) | Place::Unix(_) => Ok(place),
        }
    }

    fn write(&self, value: &Place) -> Written {
        Written::text(&value.to_string())
    }
}

/// A port of an onion address.
pub(crate) struct OnionPort;

impl Rule for OnionPort {
    type Value = NonZeroU16;

    fn kind(&self) -> String {
        "whole number".to_owned()
    }

    fn allowed(&self) -> String {
        "a port from 1 to 65535".to_owned()
    }

    fn check(&self, value: &Spanned<DeValue<'_>>) -> Result<NonZeroU16, Vec<Fault>> {
        let DeValue::Integer(integer) = value.get_ref() else {
            return Err(Fault::wrong_type(value, &format!("{}, without quotes", self.allowed())));
        };
        u16::try_from(super::to_i128(integer)).ok().and_then(NonZeroU16::new).ok_or_else(|| {
            Fault::at(value, "no client could ask for this port", format!("give {}", self.allowed()))
        })
    }

    fn write(&self, value: &NonZeroU16) -> Written {
        Written::One(value.to_string())
    }
}

impl Element for OnionPort {
    const RELATION: &'static str = "different";

    fn unrelated(&self, entries: &[Entry<NonZeroU16>]) -> Vec<Unrelated> {
        repeated(entries, "naming a port twice changes nothing")
    }
}
