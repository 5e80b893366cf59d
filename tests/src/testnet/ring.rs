//! The hash ring on which directories of onion services have their places (rend-spec-v3, section 2.2.3), and the shared random
//! values that a network votes on for it (srv-spec.txt).

use std::{
    fs,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};
use sha3::{Digest as _, Sha3_256};

use super::{Network, Profile, service::Upload};

/// A shared random value of a consensus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedRandom {
    /// Authorities that revealed their part of it. A network that has just begun makes a first value of nobody's.
    pub reveals: u32,
    /// The value: 32 bytes.
    pub value: Vec<u8>,
}

/// The values of a consensus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SharedRandoms {
    /// `shared-rand-previous-value`.
    pub previous: Option<SharedRandom>,
    /// `shared-rand-current-value`.
    pub current: Option<SharedRandom>,
}

/// What a place on the ring was computed for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The time period, counted as rend-spec-v3, section 2.2.1 does.
    pub period: u64,
    /// The random value; `None`: what stands in for one where there is none.
    pub random: Option<Vec<u8>>,
}

impl SharedRandoms {
    /// Reads the lines of a consensus; see dir-spec.txt, section 3.4.1.
    ///
    /// # Errors
    /// If one is not as it should be.
    fn of(consensus: &str) -> Result<Self> {
        let value = |which: &str| -> Result<Option<SharedRandom>> {
            let name = format!("shared-rand-{which}-value ");
            let Some(rest) = consensus.lines().find_map(|line| line.strip_prefix(&name)) else {
                return Ok(None);
            };
            let (reveals, value) = rest.split_once(' ').with_context(|| format!("{name}{rest}"))?;
            let value = from_base64(value).with_context(|| format!("{name}{rest}"))?;
            Ok(Some(SharedRandom { reveals: reveals.parse()?, value }))
        };
        Ok(Self { previous: value("previous")?, current: value("current")? })
    }

    /// Both values, where authorities made both.
    pub fn made(&self) -> Option<[&SharedRandom; 2]> {
        let is_made = |random: &&SharedRandom| random.reveals > 0;
        Some([self.previous.as_ref().filter(is_made)?, self.current.as_ref().filter(is_made)?])
    }
}

impl Profile {
    /// The number of the time period that is now: the first began twelve votes after the epoch.
    ///
    /// # Errors
    /// If the clock is before that.
    pub fn time_period(self) -> Result<u64> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("a clock before 1970")?;
        let begun =
            now.checked_sub(Duration::from_secs(12 * self.voting_seconds())).context("an early clock")?;
        Ok(begun.as_secs() / (60 * self.time_period_minutes()))
    }
}

impl Network {
    /// The shared random values of the present consensus.
    ///
    /// # Errors
    /// If there is none.
    pub fn shared_randoms(&self) -> Result<SharedRandoms> {
        SharedRandoms::of(&self.consensus()?)
    }

    /// For which period, and by which of these random values, a directory has the place that an upload tells; of the periods
    /// around the present one.
    ///
    /// # Errors
    /// If it is no place of that directory.
    pub fn place_of(&self, upload: &Upload, profile: Profile, randoms: &[Vec<u8>]) -> Result<Place> {
        let names = self.fingerprints()?;
        let name = names.iter().find(|(_, fingerprint)| *fingerprint == upload.directory);
        let (name, _) = name.with_context(|| format!("no directory {}", upload.directory))?;
        let path = self.folder().join(name).join("data/keys/ed25519_master_id_public_key");
        let key = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        // A header of 32 bytes, then the key.
        let key = key.get(32..).context("a key file without a key")?;
        let (present, minutes) = (profile.time_period()?, profile.time_period_minutes());
        for period in present.saturating_sub(4)..=present + 2 {
            let is_at = |random: &[u8]| place(key, random, period, minutes) == upload.index;
            if let Some(random) = randoms.iter().find(|random| is_at(random)) {
                return Ok(Place { period, random: Some(random.clone()) });
            }
            if is_at(&disaster(period, minutes)) {
                return Ok(Place { period, random: None });
            }
        }
        bail!("{upload:?} is no place of {name} in the periods around {present}")
    }
}

/// A directory's place, as tor's events write it.
fn place(directory: &[u8], random: &[u8], period: u64, minutes: u64) -> String {
    let place = Sha3_256::new()
        .chain_update(b"node-idx")
        .chain_update(directory)
        .chain_update(random)
        .chain_update(period.to_be_bytes())
        .chain_update(minutes.to_be_bytes())
        .finalize();
    place.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// What stands in for a random value where there is none.
fn disaster(period: u64, minutes: u64) -> Vec<u8> {
    Sha3_256::new()
        .chain_update(b"shared-random-disaster")
        .chain_update(minutes.to_be_bytes())
        .chain_update(period.to_be_bytes())
        .finalize()
        .to_vec()
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    const DIGITS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0, 0_u32);
    for digit in text.trim_end_matches('=').chars() {
        held = held << 6 | u32::try_from(DIGITS.find(digit)?).ok()?;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(held >> bits & 0xff).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_from_a_consensus() {
        let consensus = "shared-rand-previous-value 0 zxJao+gBmFMSezvz/VXkEWEQJD5b/z+7AXNCGoLFVW0=\n\
                         shared-rand-current-value 3 z6e77bpW9tX3JC/j4ez5A8KlC1NapgcvFs6AcbJSIQI=\n";
        let randoms = SharedRandoms::of(consensus).unwrap();
        assert_eq!(randoms.made(), None);
        let current = randoms.current.unwrap();
        assert_eq!((current.reveals, current.value.len(), current.value.first()), (3, 32, Some(&0xcf)));
        assert_eq!(current.value.last(), Some(&0x02));
        assert_eq!(SharedRandoms::of("").unwrap(), SharedRandoms::default());
        assert!(SharedRandoms::of("shared-rand-current-value 3").unwrap_or_default().current.is_none());
        assert!(SharedRandoms::of("shared-rand-current-value 3 ?\n").is_err());
    }
}
