//! Network devices, as users write them: `passt`, or `pool:` and the name of a
//! segment, followed by options with commas between them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use mkvmm_base::mac::{Mac, MacError};
use mkvmm_base::{InstanceName, NameError};
use serde::{Deserialize, Serialize};

use crate::options::{Known, OptionError, Options, split};

/// The number of bytes of the largest packet unless another is given, and at
/// most: the largest that passt takes.
pub const MTU_MAX: u16 = 65520;
/// The number of bytes of the largest packet at least: what IPv6 needs.
pub const MTU_MIN: u16 = 1280;
/// The maximum number of forwarded ranges of ports of a device.
pub const FORWARDS_MAX: usize = 64;

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NetSpec {
    /// What it is connected to.
    pub link: NetLink,
    /// The address of the device; derived from its instance if `None`.
    pub mac: Option<Mac>,
    /// The number of bytes of the largest packet.
    pub mtu: u16,
}

/// What a network device is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetLink {
    /// The host's network, by the program passt.
    Passt {
        /// The ports of the host that lead to the guest.
        forwards: Vec<Forward>,
    },
    /// The other guests on a segment of the pool. Its name is like that of an
    /// instance.
    Pool(InstanceName),
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// The Transmission Control Protocol.
    Tcp,
    /// The User Datagram Protocol.
    Udp,
}

/// Ports of the host that lead to as many ports of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// The protocol of the connections.
    pub protocol: Protocol,
    /// The address of the host; any if `None`.
    pub address: Option<IpAddr>,
    /// The first and the last port of the host.
    pub host: (u16, u16),
    /// The first port of the guest.
    pub guest: u16,
}

/// A reason why a text is not a network device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// It is connected to something else.
    #[error("`{text}` is neither `passt` nor `pool:SEGMENT`")]
    Link {
        /// The text before the first comma.
        text: String,
    },
    /// The name of the segment is invalid.
    #[error("the segment")]
    Segment(#[from] NameError),
    /// An option is invalid.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// The address is invalid.
    #[error("mac={text}: {error}")]
    Mac {
        /// The text of the address.
        text: String,
        /// What is wrong with it.
        error: MacError,
    },
    /// The MTU is out of range.
    #[error("mtu={text}: it is not a number from {MTU_MIN} to {MTU_MAX}")]
    Mtu {
        /// The text of the number.
        text: String,
    },
    /// The forwarded ports are invalid.
    #[error(
        "forward={text}: it is not [udp:][ADDRESS/]PORT[-PORT][:PORT[-PORT]] with as many ports \
         of the guest as of the host"
    )]
    Forward {
        /// The text of the ports.
        text: String,
    },
    /// There are too many forwarded ranges.
    #[error("{count} forwarded ranges of ports are too many (limit: {FORWARDS_MAX})")]
    Forwards {
        /// The number of ranges.
        count: usize,
    },
}

const PASST_OPTIONS: Options = Options {
    of: "a network device",
    known: &[
        Known::value("mac"),
        Known::value("mtu"),
        Known::repeated("forward"),
    ],
};

const POOL_OPTIONS: Options = Options {
    of: "a network device on a segment",
    known: &[Known::value("mac"), Known::value("mtu")],
};

impl NetSpec {
    /// Returns the name of the segment, for a device on one.
    pub fn segment(&self) -> Option<&InstanceName> {
        match &self.link {
            NetLink::Pool(segment) => Some(segment),
            NetLink::Passt { .. } => None,
        }
    }
}

impl FromStr for NetSpec {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        let (head, words) = split(text);
        let (mut link, options) = match (head, head.strip_prefix("pool:")) {
            ("passt", _) => (
                NetLink::Passt {
                    forwards: Vec::new(),
                },
                &PASST_OPTIONS,
            ),
            (_, Some(name)) => (NetLink::Pool(name.parse()?), &POOL_OPTIONS),
            _ => {
                let text = head.to_owned();
                return Err(NetError::Link { text });
            }
        };
        let (mut mac, mut mtu) = (None, MTU_MAX);
        for option in words.read(options) {
            match (option?, &mut link) {
                (("mac", value), _) => mac = Some(parse_mac(value)?),
                (("mtu", value), _) => mtu = parse_mtu(value)?,
                ((_forward, value), NetLink::Passt { forwards }) => {
                    forwards.push(value.parse()?);
                    let count = forwards.len();
                    if count > FORWARDS_MAX {
                        return Err(NetError::Forwards { count });
                    }
                }
                // The options of a segment have no others.
                ((_other, _), NetLink::Pool(_)) => {}
            }
        }
        Ok(Self { link, mac, mtu })
    }
}

fn parse_mac(text: &str) -> Result<Mac, NetError> {
    text.parse().map_err(|error| NetError::Mac {
        text: text.to_owned(),
        error,
    })
}

fn parse_mtu(text: &str) -> Result<u16, NetError> {
    let number = number(text).filter(|mtu| (MTU_MIN..=MTU_MAX).contains(mtu));
    number.ok_or_else(|| NetError::Mtu {
        text: text.to_owned(),
    })
}

/// Reads a decimal number without a sign.
fn number(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|digit| digit.is_ascii_digit());
    text.parse().ok().filter(|_| is_plain)
}

impl FromStr for Forward {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        let (protocol, rest) = match (text.strip_prefix("udp:"), text.strip_prefix("tcp:")) {
            (Some(rest), _) => (Protocol::Udp, rest),
            (_, rest) => (Protocol::Tcp, rest.unwrap_or(text)),
        };
        let parse = || {
            let (address, ports) = match rest.split_once('/') {
                Some((address, ports)) => (Some(address.parse().ok()?), ports),
                None => (None, rest),
            };
            let (host, guest) = ports.split_once(':').unwrap_or((ports, ports));
            let (host, guest) = (range(host)?, range(guest)?);
            let is_equal = host.1 - host.0 == guest.1 - guest.0;
            is_equal.then_some(Self {
                protocol,
                address,
                host,
                guest: guest.0,
            })
        };
        parse().ok_or_else(|| NetError::Forward {
            text: text.to_owned(),
        })
    }
}

/// Reads `PORT` or `PORT-PORT`, from 1 on and in ascending order.
fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    (first > 0 && first <= last).then_some((first, last))
}

impl Forward {
    /// Returns the ports as passt's options `-t` and `-u` take them.
    pub fn ports(&self) -> String {
        let address = self.address.map(|address| format!("{address}/"));
        let (first, last) = self.host;
        // The last one is checked not to exceed 65535.
        let end = self.guest.saturating_add(last - first);
        let range = |first, last| match first == last {
            true => format!("{first}"),
            false => format!("{first}-{last}"),
        };
        format!(
            "{}{}:{}",
            address.unwrap_or_default(),
            range(first, last),
            range(self.guest, end)
        )
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "",
            Protocol::Udp => "udp:",
        };
        write!(f, "{protocol}{}", self.ports())
    }
}

impl fmt::Display for NetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let forwards = match &self.link {
            NetLink::Passt { forwards } => {
                f.write_str("passt")?;
                forwards.as_slice()
            }
            NetLink::Pool(segment) => {
                write!(f, "pool:{segment}")?;
                &[]
            }
        };
        if let Some(mac) = self.mac {
            write!(f, ",mac={mac}")?;
        }
        if self.mtu != MTU_MAX {
            write!(f, ",mtu={}", self.mtu)?;
        }
        for forward in forwards {
            write!(f, ",forward={forward}")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for NetSpec {
    type Error = NetError;

    fn try_from(text: String) -> Result<Self, NetError> {
        text.parse()
    }
}

impl From<NetSpec> for String {
    fn from(spec: NetSpec) -> Self {
        spec.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for text in [
            "passt",
            "pool:lan",
            "pool:lan,mac=02:00:00:00:00:01,mtu=1500",
            "passt,mtu=9000,forward=8080:80",
            "passt,forward=127.0.0.1/2222:22,forward=udp:5000-5009:6000-6009,forward=::1/80:80",
        ] {
            let spec: NetSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
        }
        let short: NetSpec = "passt,forward=tcp:443".parse().unwrap();
        assert_eq!(short.to_string(), "passt,forward=443:443");
        assert_eq!(short.mtu, MTU_MAX);
    }

    #[test]
    fn each_wrong_text_has_its_error() {
        for (text, message) in [
            ("", "`` is neither"),
            ("tap:x", "`tap:x` is neither"),
            ("passt:x", "`passt:x` is neither"),
            ("pool:", "the segment"),
            ("pool:-a", "the segment"),
            ("passt,", "`` is not an option"),
            ("passt,vlan=1", "`vlan=1` is not an option"),
            ("pool:a,forward=1", "`forward=1` is not an option"),
            ("passt,mtu=1500,mtu=1500", "`mtu` is given twice"),
            ("passt,mtu=1279", "mtu=1279"),
            ("passt,mtu=65521", "mtu=65521"),
            ("passt,mtu=+1500", "mtu=+1500"),
            ("passt,mac=01:00:00:00:00:00", "the address of a group"),
            ("passt,mac=1", "mac=1: it is not six pairs"),
            ("passt,forward=", "forward="),
            ("passt,forward=0", "forward=0"),
            ("passt,forward=65536", "forward=65536"),
            ("passt,forward=2-1", "forward=2-1"),
            ("passt,forward=1-2:1", "forward=1-2:1"),
            ("passt,forward=x/80", "forward=x/80"),
            ("passt,forward=80:-t", "forward=80:-t"),
            ("passt,forward=icmp:80", "forward=icmp:80"),
        ] {
            let error = text.parse::<NetSpec>().unwrap_err();
            assert!(error.to_string().contains(message), "{text}: {error}");
        }
        let many = (0..=FORWARDS_MAX).map(|port| format!(",forward={}", port + 1));
        let many: String = many.collect();
        let error = format!("passt{many}").parse::<NetSpec>();
        assert_eq!(error, Err(NetError::Forwards { count: 65 }));
    }
}
