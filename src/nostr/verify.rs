//! Signatures (BIP-340), checked with libsecp256k1.

use secp256k1::{XOnlyPublicKey, schnorr};

use super::event::{Event, Pubkey};
use super::parse::Candidate;

/// An event whose id and signature are right.
#[derive(Clone, Debug)]
pub struct VerifiedEvent(Event);

impl VerifiedEvent {
    /// Vouches for a candidate whose signature the operator chose not to check (`verify = false`,
    /// `import --no-verify`).
    #[must_use]
    pub fn trust(candidate: Candidate) -> Self {
        Self(candidate.event)
    }

    /// The event.
    #[must_use]
    pub fn into_event(self) -> Event {
        self.0
    }
}

/// The signature does not belong to the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("signature is wrong")]
pub struct BadSignature;

/// Checks signatures and remembers the parsed keys of recent authors: parsing one costs an eighth
/// of a verification.
pub struct Verifier {
    keys: Vec<Option<(Pubkey, XOnlyPublicKey)>>,
}

/// Direct-mapped slots; a power of two. 100 bytes each.
const KEYS: usize = 1024;

impl Default for Verifier {
    fn default() -> Self {
        Self { keys: vec![None; KEYS] }
    }
}

impl Verifier {
    /// Checks one signature.
    ///
    /// # Errors
    /// When the key is not a point or the signature is not this key's over this id.
    pub fn verify(&mut self, candidate: Candidate) -> Result<VerifiedEvent, BadSignature> {
        let view = candidate.event.view();
        let key = self.key(view.pubkey())?;
        let signature = schnorr::Signature::from_byte_array(candidate.sig);
        schnorr::verify(&signature, view.id(), &key).map_err(|_| BadSignature)?;
        Ok(VerifiedEvent(candidate.event))
    }

    fn key(&mut self, pubkey: &Pubkey) -> Result<XOnlyPublicKey, BadSignature> {
        let at = usize::from(u16::from_le_bytes([pubkey[0], pubkey[1]])) & (KEYS - 1);
        match &self.keys[at] {
            Some((known, key)) if known == pubkey => Ok(*key),
            _ => {
                let key = XOnlyPublicKey::from_byte_array(*pubkey).map_err(|_| BadSignature)?;
                self.keys[at] = Some((*pubkey, key));
                Ok(key)
            }
        }
    }
}
