//! Whose connection it is: the peer's address, or what a trusted proxy says of it.
//!
//! `core::net` has addresses and no sockets, so it has a place in these layers.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// The request header in which proxies say whom they speak for.
pub const FORWARDED_FOR: &str = "x-forwarded-for";

/// The proxies whose word on a client's address is believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies(Box<[IpNet]>);

/// A trusted proxy sent an `X-Forwarded-For` that holds something else than addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed X-Forwarded-For")]
pub struct Malformed;

impl Proxies {
    /// Reads addresses (`192.0.2.1`, `2001:db8::1`) and networks (`10.0.0.0/8`).
    ///
    /// # Errors
    /// The text that is neither, or a network with bits beyond its prefix.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, &'a str> {
        texts.into_iter().map(|text| network(text).ok_or(text)).collect::<Result<_, _>>().map(Self)
    }

    /// Whether this peer's `X-Forwarded-For` is believed.
    #[must_use]
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&peer))
    }

    /// Walks from the peer back through the header's values, in the order of the request: each proxy
    /// adds the address it was called from at the end, so the last entry is believed when the peer is
    /// trusted, the one before it when the last is trusted too, and so on. What stands left of the
    /// first address that is not trusted may be anybody's invention and is not looked at. A trusted
    /// peer that names nobody speaks for itself.
    ///
    /// # Errors
    /// When an entry that would be believed is no address.
    pub fn client(&self, peer: IpAddr, values: &[&[u8]]) -> Result<IpAddr, Malformed> {
        let mut client = peer.to_canonical();
        for entry in values.iter().rev().flat_map(|value| value.rsplit(|byte| *byte == b',')) {
            if !self.trusts(client) {
                break;
            }
            if !entry.trim_ascii().is_empty() {
                client = address(entry.trim_ascii()).ok_or(Malformed)?;
            }
        }
        Ok(client)
    }
}

/// An address or a network. An IPv4 one must be written as such, since every address is compared in
/// that form.
fn network(text: &str) -> Option<IpNet> {
    let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()?;
    let is_plain = network.addr().to_canonical() == network.addr();
    (is_plain && network.trunc() == network).then_some(network)
}

/// An address, as some proxies write it with a port, or in brackets.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?;
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = match bare {
        Some(bare) => IpAddr::V6(bare.parse().ok()?),
        None => text.parse().or_else(|_| text.parse::<SocketAddr>().map(|at| at.ip())).ok()?,
    };
    Some(address.to_canonical())
}

/// The address under which a client's connections are counted. The one host of an IPv6 client has a
/// whole /64 to call from, so that is what counts.
#[must_use]
pub fn counted_as(address: IpAddr) -> IpAddr {
    const NETWORK: Ipv6Addr = Ipv6Addr::from_bits(!0 << 64);
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => IpAddr::V6(address & NETWORK),
    }
}

/// Whether the client is a program on this machine. Such are not capped: a proxy that nobody told the
/// relay of speaks for everybody from there. The rest of 127.0.0.0/8 is counted as any address is.
#[must_use]
pub fn is_local(address: IpAddr) -> bool {
    address == Ipv4Addr::LOCALHOST || address == Ipv6Addr::LOCALHOST
}

/// Somebody.
#[cfg(test)]
pub(crate) const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn proxies() -> Proxies {
        Proxies::parse(["192.0.2.1", "10.0.0.0/8", "2001:db8::/32", "::1"]).unwrap()
    }

    #[test]
    fn the_client_is_whom_the_last_trusted_hop_names() {
        let cases: &[(&str, &[&str], Result<&str, Malformed>)] = &[
            // Nobody else is believed.
            ("198.51.100.9", &["203.0.113.7"], Ok("198.51.100.9")),
            ("198.51.100.9", &["rubbish"], Ok("198.51.100.9")),
            ("192.0.2.2", &["203.0.113.7"], Ok("192.0.2.2")),
            ("192.0.2.1", &["203.0.113.7"], Ok("203.0.113.7")),
            ("::ffff:192.0.2.1", &["::ffff:203.0.113.7"], Ok("203.0.113.7")),
            ("2001:db8:5::1", &["2001:db9::7"], Ok("2001:db9::7")),
            // What a client wrote itself stands left of what the proxy added.
            ("192.0.2.1", &["1.1.1.1, 203.0.113.7"], Ok("203.0.113.7")),
            ("192.0.2.1", &["rubbish, \u{e9}, 203.0.113.7"], Ok("203.0.113.7")),
            ("192.0.2.1", &["1.1.1.1", "203.0.113.7"], Ok("203.0.113.7")),
            ("192.0.2.1", &["10.1.1.1, 203.0.113.7", "10.0.0.3"], Ok("203.0.113.7")),
            // From proxy to proxy.
            ("192.0.2.1", &["1.1.1.1, 203.0.113.7 ,10.0.0.3,10.0.0.4"], Ok("203.0.113.7")),
            ("192.0.2.1", &["10.0.0.3, 10.0.0.4"], Ok("10.0.0.3")),
            // It speaks for itself: a health check.
            ("192.0.2.1", &[], Ok("192.0.2.1")),
            ("192.0.2.1", &["", " ,\t,"], Ok("192.0.2.1")),
            ("192.0.2.1", &["203.0.113.7, ,"], Ok("203.0.113.7")),
            // With ports and brackets.
            ("192.0.2.1", &["203.0.113.7:4711"], Ok("203.0.113.7")),
            ("192.0.2.1", &["[2001:db9::7]:4711"], Ok("2001:db9::7")),
            ("192.0.2.1", &["[2001:db9::7]"], Ok("2001:db9::7")),
            ("192.0.2.1", &["[::ffff:203.0.113.7]"], Ok("203.0.113.7")),
            ("192.0.2.1", &["unknown"], Err(Malformed)),
            ("192.0.2.1", &["203.0.113.7, _hidden"], Err(Malformed)),
            ("192.0.2.1", &["_hidden, 10.0.0.3"], Err(Malformed)),
            ("192.0.2.1", &["203.0.113.256"], Err(Malformed)),
            ("192.0.2.1", &["203.0.113.07"], Err(Malformed)),
            ("192.0.2.1", &["203.0.113.7:"], Err(Malformed)),
            ("192.0.2.1", &["[203.0.113.7]"], Err(Malformed)),
            ("192.0.2.1", &["[2001:db9::7"], Err(Malformed)),
            ("192.0.2.1", &["203.0.113.7 1.1.1.1"], Err(Malformed)),
            ("192.0.2.1", &["for=203.0.113.7"], Err(Malformed)),
            ("192.0.2.1", &["\u{e9}"], Err(Malformed)),
        ];
        for (peer, values, expected) in cases {
            let bytes: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).collect();
            let client = proxies().client(ip(peer), &bytes);
            assert_eq!(client, expected.map(ip), "{peer} {values:?}");
        }
        let nobody = Proxies::default().client(ip("127.0.0.1"), &[b"203.0.113.7"]);
        assert_eq!(nobody, Ok(ip("127.0.0.1")), "without configuration nobody is believed");
    }

    #[test]
    fn a_network_is_written_one_way() {
        for good in ["10.0.0.0/8", "0.0.0.0/0", "10.1.2.3", "10.1.2.3/32", "::1", "fe80::/10"] {
            assert!(Proxies::parse([good]).is_ok(), "{good}");
        }
        for bad in [
            "",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0",
            "localhost",
            "10.0.0.0/8 ",
            "10.0.0.1:80",
            "::ffff:10.0.0.1",
            "::ffff:10.0.0.0/104",
            "fe80::1/10",
            "[::1]",
        ] {
            assert_eq!(Proxies::parse(["10.0.0.1", bad]), Err(bad));
        }
    }

    #[test]
    fn an_ipv6_client_is_its_network() {
        assert_eq!(counted_as(ip("2001:db8:1:2:3:4:5:6")), ip("2001:db8:1:2::"));
        assert_ne!(counted_as(ip("2001:db8:1:3::")), counted_as(ip("2001:db8:1:2::")));
        assert_eq!(counted_as(ip("203.0.113.7")), ip("203.0.113.7"));
    }

    #[test]
    fn two_addresses_are_this_machine() {
        for (address, local) in
            [("127.0.0.1", true), ("::1", true), ("127.0.0.2", false), ("::2", false)]
        {
            assert_eq!(is_local(ip(address)), local, "{address}");
        }
    }

    proptest! {
        /// What a client writes before the address its proxy adds changes nothing.
        #[test]
        fn a_client_cannot_speak_for_its_proxy(
            invented in prop::collection::vec("[0-9a-f.:, \\[\\]]{0,40}", 0..4),
            client: u32,
        ) {
            let client = IpAddr::V4(Ipv4Addr::from_bits(client));
            prop_assume!(!proxies().trusts(client));
            let added = client.to_string();
            let together = format!("{}, {added}", invented.join(","));
            let mut apart: Vec<&[u8]> = invented.iter().map(String::as_bytes).collect();
            apart.push(added.as_bytes());
            for values in [&[together.as_bytes()][..], &apart] {
                prop_assert_eq!(proxies().client(ip("192.0.2.1"), values), Ok(client));
            }
        }
    }
}
