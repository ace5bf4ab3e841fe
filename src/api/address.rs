//! Where a request comes from: its client's address, seen through the proxies that are trusted.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use axum::http::HeaderMap;

/// Addresses that begin alike, such as `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    /// Its first address.
    first: IpAddr,
    /// Bits that its addresses have in common.
    prefix: u8,
}

/// Whoever has an address of the sixth version has 2^64 of them, as a rule.
const HOST_PREFIX_V6: u8 = 64;

impl Network {
    /// The network that one user calls from: the address, or the 64 bits that tell networks apart.
    pub fn of_user(address: IpAddr) -> Self {
        match address.to_canonical() {
            v4 @ IpAddr::V4(_) => Network::new(v4, 32),
            v6 @ IpAddr::V6(_) => Network::new(v6, HOST_PREFIX_V6),
        }
    }

    fn new(address: IpAddr, prefix: u8) -> Self {
        let first = match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(u32::from(32 - prefix)).unwrap_or(0);
                IpAddr::V4((u32::from(v4) & mask).into())
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(u32::from(128 - prefix)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from(u128::from(v6) & mask))
            }
        };
        Network { first, prefix }
    }

    fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.first.is_ipv4() && Network::new(address, self.prefix) == *self
    }
}

/// The text is no address and no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidNetwork;

impl fmt::Display for InvalidNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address such as 127.0.0.1 or a network such as 10.0.0.0/8")
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| InvalidNetwork)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => most,
            Some(digits) => digits
                .parse()
                .ok()
                .filter(|prefix| *prefix <= most)
                .ok_or(InvalidNetwork)?,
        };
        Ok(Network::new(address, prefix))
    }
}

/// The header in which a proxy tells who its client is. One only: a proxy passes on the others as its client
/// made them up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AddressHeader {
    /// `X-Forwarded-For`: a list, to which each proxy adds.
    #[default]
    ForwardedFor,
    /// `Forwarded` (RFC 7239): the same, with more words.
    Forwarded,
    /// `X-Real-IP`: one address.
    RealIp,
}

impl AddressHeader {
    /// All, by their names in the configuration.
    pub const ALL: [(&str, AddressHeader); 3] = [
        ("x-forwarded-for", AddressHeader::ForwardedFor),
        ("forwarded", AddressHeader::Forwarded),
        ("x-real-ip", AddressHeader::RealIp),
    ];

    fn name(self) -> &'static str {
        let named = AddressHeader::ALL
            .iter()
            .find(|(_, header)| *header == self);
        named.map_or("", |(name, _)| *name)
    }
}

/// The proxies whose word is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// Where they call from.
    pub trusted: Vec<Network>,
    /// Where they say it.
    pub header: AddressHeader,
}

impl Proxies {
    /// The client of a connection that comes from `peer`: the last hop that is no trusted proxy, since what
    /// stands before it was written by somebody who is none.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        let mut hops = self.hops(headers);
        while self.trusts(client) {
            match hops.pop() {
                Some(Some(hop)) => client = hop,
                // A hop that cannot be read may be anybody: the proxy that reports it stands for it.
                Some(None) | None => break,
            }
        }
        client
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(address))
    }

    /// What the header says, the last hop last.
    fn hops(&self, headers: &HeaderMap) -> Vec<Option<IpAddr>> {
        let mut hops = Vec::new();
        if self.trusted.is_empty() {
            return hops;
        }
        for value in headers.get_all(self.header.name()) {
            let text = value.to_str().unwrap_or_default();
            match self.header {
                AddressHeader::ForwardedFor => hops.extend(text.split(',').map(address_of)),
                AddressHeader::Forwarded => hops.extend(split(text, ',').map(forwarded_for)),
                AddressHeader::RealIp => hops.push(address_of(text)),
            }
        }
        hops
    }
}

/// The `for` of one element of `Forwarded`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    split(element, ';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let is_for = name.trim().eq_ignore_ascii_case("for");
        is_for.then(|| address_of(value.trim().trim_matches('"')))
    })?
}

/// Splits where `separator` stands outside of quotes.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |character| {
        quoted ^= character == '"';
        character == separator && !quoted
    })
}

/// An address, with or without a port; one of the sixth version may stand in brackets.
fn address_of(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    let address = bare.parse::<IpAddr>().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|socket| socket.ip());
    address.or_else(with_port).map(|found| found.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderName;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn proxies(trusted: &[&str], header: AddressHeader) -> Proxies {
        Proxies {
            trusted: trusted.iter().map(|text| text.parse().unwrap()).collect(),
            header,
        }
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn networks_are_read_and_hold_their_addresses() {
        let check = |network: &str, address: &str, inside: bool| {
            let network: Network = network.parse().unwrap();
            assert_eq!(
                network.contains(ip(address)),
                inside,
                "{network:?} {address}"
            );
        };
        check("10.0.0.0/8", "10.255.0.1", true);
        check("10.0.0.0/8", "11.0.0.1", false);
        check("10.1.2.3/8", "10.9.9.9", true);
        check("10.0.0.1", "10.0.0.1", true);
        check("10.0.0.1", "10.0.0.2", false);
        check("0.0.0.0/0", "203.0.113.9", true);
        check("0.0.0.0/0", "::1", false);
        check("::/0", "2001:db8::1", true);
        check("2001:db8::/32", "2001:db8:ffff::1", true);
        check("2001:db8::/32", "2001:db9::1", false);
        // The same host as a socket for both versions shows it.
        check("10.0.0.0/8", "::ffff:10.1.1.1", true);
        for wrong in [
            "",
            "10.0.0",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/",
            "a/8",
            "10.0.0.0/+8/",
        ] {
            assert_eq!(wrong.parse::<Network>(), Err(InvalidNetwork), "{wrong}");
        }
    }

    #[test]
    fn a_user_of_the_sixth_version_is_a_network() {
        let same =
            |one: &str, other: &str| Network::of_user(ip(one)) == Network::of_user(ip(other));
        assert!(same("2001:db8:1:2::1", "2001:db8:1:2:ffff::9"));
        assert!(!same("2001:db8:1:2::1", "2001:db8:1:3::1"));
        assert!(!same("192.0.2.1", "192.0.2.2"));
        assert!(same("::ffff:192.0.2.1", "192.0.2.1"));
    }

    /// Who is taken for the client, where `lines` come from `peer`.
    fn check(proxies: &Proxies, peer: &str, lines: &[(&'static str, &str)], client: &str) {
        let found = proxies.client(ip(peer), &headers(lines));
        assert_eq!(found, ip(client), "{peer} {lines:?}");
    }

    #[test]
    fn the_last_hop_that_is_not_trusted_counts() {
        const NAME: &str = "x-forwarded-for";
        let two = proxies(&["127.0.0.1", "10.0.0.0/8"], AddressHeader::ForwardedFor);
        check(&two, "127.0.0.1", &[], "127.0.0.1");
        check(&two, "127.0.0.1", &[(NAME, "192.0.2.7")], "192.0.2.7");
        // What the client itself wrote stands before what the proxy saw.
        check(
            &two,
            "127.0.0.1",
            &[(NAME, "1.1.1.1, 192.0.2.7")],
            "192.0.2.7",
        );
        check(
            &two,
            "127.0.0.1",
            &[(NAME, "1.1.1.1"), (NAME, "192.0.2.7")],
            "192.0.2.7",
        );
        check(
            &two,
            "127.0.0.1",
            &[(NAME, "127.0.0.1, 192.0.2.7, 10.0.0.4")],
            "192.0.2.7",
        );
        check(&two, "127.0.0.1", &[(NAME, "192.0.2.7:4711")], "192.0.2.7");
        check(
            &two,
            "127.0.0.1",
            &[(NAME, "[2001:db8::5]:80")],
            "2001:db8::5",
        );
        check(&two, "127.0.0.1", &[(NAME, "2001:db8::5")], "2001:db8::5");
        // Only proxies: the first of them began it.
        check(
            &two,
            "127.0.0.1",
            &[(NAME, "10.0.0.9, 10.0.0.4")],
            "10.0.0.9",
        );
        // What cannot be read is not gone past.
        check(
            &two,
            "127.0.0.1",
            &[(NAME, "192.0.2.7, unknown")],
            "127.0.0.1",
        );
        check(
            &two,
            "127.0.0.1",
            &[(NAME, "192.0.2.7, , 10.0.0.4")],
            "10.0.0.4",
        );
        check(&two, "127.0.0.1", &[(NAME, "\u{e9}")], "127.0.0.1");
    }

    #[test]
    fn who_is_no_trusted_proxy_is_not_believed() {
        let forged = [
            ("x-forwarded-for", "192.0.2.7"),
            ("forwarded", "for=192.0.2.7"),
            ("x-real-ip", "192.0.2.7"),
        ];
        for (_, header) in AddressHeader::ALL {
            check(&proxies(&[], header), "127.0.0.1", &forged, "127.0.0.1");
            let other = proxies(&["10.0.0.0/8"], header);
            check(&other, "203.0.113.5", &forged, "203.0.113.5");
        }
        // Nor is a header that the proxy does not write, and so passes on as it came.
        let one = proxies(&["127.0.0.1"], AddressHeader::ForwardedFor);
        check(&one, "127.0.0.1", &forged[1..], "127.0.0.1");
    }

    #[test]
    fn the_other_headers_are_read_likewise() {
        let one = proxies(&["127.0.0.1", "10.0.0.4"], AddressHeader::Forwarded);
        let check_one =
            |value: &str, client| check(&one, "127.0.0.1", &[("forwarded", value)], client);
        check_one("for=192.0.2.7", "192.0.2.7");
        check_one(
            "for=1.1.1.1, For=\"192.0.2.7:99\";proto=https;by=10.0.0.1",
            "192.0.2.7",
        );
        check_one("proto=https; for=\"[2001:db8::5]:80\"", "2001:db8::5");
        check_one("for=192.0.2.7, for=10.0.0.4;host=\"a,b;c\"", "192.0.2.7");
        check_one("for=_hidden", "127.0.0.1");
        check_one("proto=https", "127.0.0.1");
        let real = proxies(&["127.0.0.1"], AddressHeader::RealIp);
        check(
            &real,
            "127.0.0.1",
            &[("x-real-ip", "192.0.2.7")],
            "192.0.2.7",
        );
        let twice = [("x-real-ip", "1.1.1.1"), ("x-real-ip", "192.0.2.7")];
        check(&real, "127.0.0.1", &twice, "192.0.2.7");
    }
}
