//! Whether the relay wants an event, before its signature is paid for.

use super::limits::Limits;
use crate::nostr::{Candidate, Kind};

/// Judges what the event says of itself against the limits at `unix_s`.
///
/// # Errors
/// The text of the `OK false`, with its prefix (NIP-01).
pub fn judge(candidate: &Candidate, limits: &Limits, unix_s: u64) -> Result<(), String> {
    let event = candidate.event().view();
    let shape = candidate.shape();
    if shape.tags > limits.event_tags_max as usize {
        return Err(format!(
            "invalid: {} tags, the limit is {}",
            shape.tags, limits.event_tags_max
        ));
    }
    if shape.content_chars > limits.event_content_chars_max as usize {
        return Err(format!(
            "invalid: {} characters of content, the limit is {}",
            shape.content_chars, limits.event_content_chars_max
        ));
    }
    let age_max = limits.created_at_age_s_max;
    if age_max > 0 && event.created_at() < unix_s.saturating_sub(age_max) {
        return Err(format!("invalid: created_at is more than {age_max} seconds ago"));
    }
    if let Some(kept) = limits.kept_ages.iter().find(|kept| !kept.keeps(event, unix_s)) {
        let (age_max, kind) = (kept.age_s_max, event.kind().0);
        return Err(format!(
            "invalid: created_at is more than {age_max} seconds ago, and events of kind {kind} are kept no longer"
        ));
    }
    let ahead_max = limits.created_at_ahead_s_max;
    if ahead_max > 0 && event.created_at() > unix_s.saturating_add(ahead_max) {
        return Err(format!("invalid: created_at is more than {ahead_max} seconds ahead"));
    }
    if event.is_expired(unix_s) {
        return Err("invalid: event has expired".into());
    }
    if event.kind() == Kind::AUTH {
        return Err("invalid: kind 22242 is for AUTH messages only (NIP-42)".into());
    }
    if event.is_protected() {
        return Err("restricted: a protected event is taken from its authenticated author only \
                    (NIP-70), and this relay does not ask for authentication"
            .into());
    }
    Ok(())
}
