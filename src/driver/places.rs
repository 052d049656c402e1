//! How many connections each client address has, over all shards.
//!
//! One table for the relay: a cap that each shard kept for itself would let an address have as many
//! times more as there are shards, and asking the shard that owns an address would wake it for every
//! connection, which costs a thousand times what this lock does. It is in parts, each behind a lock
//! that is held for one look-up: when a client's address becomes known, and when its socket closes.
//! Between those nothing is looked up.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::relay::Admission;
use crate::relay::client::{counted_as, is_local};

/// Parts of the table; so many shards could be at it at once.
const PARTS: usize = 32;

/// Sockets of one address beyond its cap that may be open at once, to be told so.
pub const REFUSED_PER_IP_MAX: u32 = 8;

/// A part of the table with room for more than this gives room back when it empties.
const PART_KEPT: usize = 64;

#[derive(Debug, Default)]
struct Count {
    granted: u32,
    refused: u32,
}

type Part = HashMap<IpAddr, Count>;

/// See the module. An address without connections has no entry.
#[derive(Debug)]
pub struct Places {
    parts: [Mutex<Part>; PARTS],
    hasher: RandomState,
    per_ip_max: u32,
}

impl Places {
    /// An empty table. `per_ip_max` connections are granted to an address; 0 = any number.
    #[must_use]
    pub fn new(per_ip_max: u32) -> Arc<Self> {
        let (parts, hasher) = (Default::default(), RandomState::new());
        Arc::new(Self { parts, hasher, per_ip_max })
    }

    /// Takes a place for a connection from `address`, which is counted until the place is dropped.
    /// Without one the connection is not to be kept open.
    pub fn take(self: &Arc<Self>, address: IpAddr) -> (Admission, Option<Place>) {
        let uncapped = self.per_ip_max == 0 || is_local(address);
        let address = counted_as(address);
        let mut part = self.part(&address);
        let count = part.entry(address).or_default();
        let granted = uncapped || count.granted < self.per_ip_max;
        let admission = if granted {
            count.granted += 1;
            Admission::Granted
        } else if count.refused < REFUSED_PER_IP_MAX {
            count.refused += 1;
            Admission::Refused
        } else {
            return (Admission::Unheard, None);
        };
        drop(part);
        (admission, Some(Place { places: self.clone(), address, granted }))
    }

    /// Addresses with connections.
    #[must_use]
    pub fn addresses(&self) -> usize {
        self.parts.iter().map(|part| lock(part).len()).sum()
    }

    fn part(&self, address: &IpAddr) -> MutexGuard<'_, Part> {
        let hash = self.hasher.hash_one(address);
        #[expect(clippy::cast_possible_truncation, reason = "any bits of a hash will do")]
        lock(&self.parts[hash as usize % PARTS])
    }
}

/// Nothing between two lines that hold the lock leaves a count half changed.
fn lock(part: &Mutex<Part>) -> MutexGuard<'_, Part> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection among those of its address; given back when dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    address: IpAddr,
    granted: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut part = self.places.part(&self.address);
        let Some(count) = part.get_mut(&self.address) else { return };
        let side = if self.granted { &mut count.granted } else { &mut count.refused };
        *side -= 1;
        if count.granted == 0 && count.refused == 0 {
            part.remove(&self.address);
            if part.capacity() > PART_KEPT.max(4 * part.len()) {
                let kept = 2 * part.len();
                part.shrink_to(kept);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_its_cap_and_a_few_more_are_told_so() {
        let places = Places::new(2);
        let take = || places.take(ip("203.0.113.7"));
        let mut granted: Vec<_> = (0..2).map(|_| take()).collect();
        assert!(granted.iter().all(|(admission, _)| *admission == Admission::Granted));
        let mut refused: Vec<_> = (0..REFUSED_PER_IP_MAX).map(|_| take()).collect();
        assert!(refused.iter().all(|(admission, _)| *admission == Admission::Refused));
        assert!(matches!(take(), (Admission::Unheard, None)));
        assert_eq!(places.take(ip("203.0.113.8")).0, Admission::Granted, "another's business");
        granted.pop();
        let (admission, place) = take();
        assert_eq!(admission, Admission::Granted, "those refused take no place");
        refused.pop();
        assert_eq!(take().0, Admission::Refused);
        assert_eq!(places.addresses(), 1);
        drop((granted, refused, place));
        assert_eq!(places.addresses(), 0);
    }

    #[test]
    fn a_network_of_ipv6_is_one_client_and_this_machine_none() {
        let places = Places::new(1);
        let first = places.take(ip("2001:db8::1"));
        assert_eq!(first.0, Admission::Granted);
        assert_eq!(places.take(ip("2001:db8::2")).0, Admission::Refused);
        assert_eq!(places.take(ip("2001:db8:0:1::1")).0, Admission::Granted);
        for local in ["127.0.0.1", "::1"] {
            let held: Vec<_> = (0..5).map(|_| places.take(ip(local))).collect();
            assert!(held.iter().all(|(admission, _)| *admission == Admission::Granted));
            assert_eq!(places.addresses(), 2, "they are counted all the same");
        }
        let any = Places::new(0);
        let held: Vec<_> = (0..5).map(|_| any.take(ip("203.0.113.7"))).collect();
        assert!(held.iter().all(|(admission, _)| *admission == Admission::Granted));
    }

    #[test]
    fn many_threads_leave_nothing() {
        let places = Places::new(3);
        std::thread::scope(|scope| {
            for thread in 0..8_u8 {
                let places = &places;
                scope.spawn(move || {
                    for n in 0..2_000_u16 {
                        let low = (n % 7).to_be_bytes()[1];
                        let held = places.take(IpAddr::from([10, 0, thread % 2, low]));
                        assert!(held.0 != Admission::Unheard || held.1.is_none());
                    }
                });
            }
        });
        assert_eq!(places.addresses(), 0);
    }

    #[test]
    fn what_a_flood_of_addresses_took_is_given_back() {
        let places = Places::new(1);
        let held: Vec<_> =
            (0..100_000_u32).map(|n| places.take(IpAddr::from(n.to_be_bytes()))).collect();
        assert_eq!(places.addresses(), 100_000);
        drop(held);
        let room: usize = places.parts.iter().map(|part| lock(part).capacity()).sum();
        assert!(room <= PARTS * 2 * PART_KEPT, "room for {room}");
    }
}
