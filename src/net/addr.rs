//! Addresses of stream sockets. Owns: [`Addr`] and its conversions.

use crate::error::Error;
use socket2::{Domain, SockAddr};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where to connect to or listen on: IPv4, IPv6, or a unix stream socket.
///
/// As text: `127.0.0.1:80`, `[::1]:80`, `unix:/run/app.sock`, `unix:@abstract-name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Addr {
    /// An IPv4 or IPv6 address and port.
    Inet(SocketAddr),
    /// A path in the file system.
    Unix(PathBuf),
    /// A name in Linux's abstract namespace, without the leading zero byte.
    UnixAbstract(Vec<u8>),
    /// A unix socket without a name: one end of a socketpair, or a client that did not bind.
    UnixUnnamed,
}

impl Addr {
    pub(crate) fn domain(&self) -> Domain {
        match self {
            Addr::Inet(SocketAddr::V4(_)) => Domain::IPV4,
            Addr::Inet(SocketAddr::V6(_)) => Domain::IPV6,
            _ => Domain::UNIX,
        }
    }

    pub(crate) fn is_unix(&self) -> bool {
        !matches!(self, Addr::Inet(_))
    }

    /// True where a zero-copy send cannot pay: the bytes never reach a network card.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            Addr::Inet(addr) => match addr.ip() {
                IpAddr::V4(ip) => ip.is_loopback(),
                IpAddr::V6(ip) => {
                    ip.is_loopback() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback())
                }
            },
            _ => true,
        }
    }

    pub(crate) fn to_sockaddr(&self) -> Result<SockAddr, Error> {
        let refuse = |why| Error::Address { addr: self.to_string(), why };
        match self {
            Addr::Inet(addr) => Ok(SockAddr::from(*addr)),
            Addr::Unix(path) if path.as_os_str().is_empty() => Err(refuse("the path is empty")),
            Addr::Unix(path) => {
                SockAddr::unix(path).map_err(|_| refuse("the path is longer than 107 bytes"))
            }
            Addr::UnixAbstract(name) => {
                let path = [b"\0", name.as_slice()].concat();
                let path: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(&path);
                SockAddr::unix(path).map_err(|_| refuse("the name is longer than 107 bytes"))
            }
            Addr::UnixUnnamed => Err(refuse("an unnamed socket cannot be addressed")),
        }
    }

    pub(crate) fn from_sockaddr(addr: &SockAddr) -> Addr {
        if let Some(inet) = addr.as_socket() {
            return Addr::Inet(inet);
        }
        match (addr.as_pathname(), addr.as_abstract_namespace()) {
            (Some(path), _) => Addr::Unix(path.to_owned()),
            (None, Some(name)) => Addr::UnixAbstract(name.to_owned()),
            (None, None) => Addr::UnixUnnamed,
        }
    }

    /// The IP address and port, if it is one.
    pub fn as_inet(&self) -> Option<SocketAddr> {
        match self {
            Addr::Inet(addr) => Some(*addr),
            _ => None,
        }
    }
}

impl From<SocketAddr> for Addr {
    fn from(addr: SocketAddr) -> Addr {
        Addr::Inet(addr)
    }
}

impl<I: Into<IpAddr>> From<(I, u16)> for Addr {
    fn from(pair: (I, u16)) -> Addr {
        Addr::Inet(SocketAddr::from(pair))
    }
}

impl From<&Path> for Addr {
    fn from(path: &Path) -> Addr {
        Addr::Unix(path.to_owned())
    }
}

impl From<PathBuf> for Addr {
    fn from(path: PathBuf) -> Addr {
        Addr::Unix(path)
    }
}

/// The text was no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseAddrError(String);

impl fmt::Display for ParseAddrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is no address: expected IP:PORT, [IPV6]:PORT, unix:PATH or unix:@NAME",
            self.0
        )
    }
}

impl std::error::Error for ParseAddrError {}

impl FromStr for Addr {
    type Err = ParseAddrError;

    fn from_str(text: &str) -> Result<Addr, ParseAddrError> {
        match text.strip_prefix("unix:") {
            Some("") => Err(ParseAddrError(text.to_owned())),
            Some(path) => Ok(match path.strip_prefix('@') {
                Some(name) => Addr::UnixAbstract(name.as_bytes().to_vec()),
                None => Addr::Unix(path.into()),
            }),
            None => text.parse().map(Addr::Inet).map_err(|_| ParseAddrError(text.to_owned())),
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Addr::Inet(addr) => write!(f, "{addr}"),
            Addr::Unix(path) => write!(f, "unix:{}", path.display()),
            Addr::UnixAbstract(name) => write!(f, "unix:@{}", String::from_utf8_lossy(name)),
            Addr::UnixUnnamed => f.write_str("unix:"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for text in ["127.0.0.1:80", "[2001:db8::1]:8080", "unix:/tmp/a.sock", "unix:@name"] {
            let addr: Addr = text.parse().unwrap();
            assert_eq!(addr.to_string(), text);
            assert_eq!(Addr::from_sockaddr(&addr.to_sockaddr().unwrap()), addr);
        }
        for text in ["", "localhost", "127.0.0.1", "unix:", "[::1]"] {
            assert!(text.parse::<Addr>().is_err(), "{text}");
        }
    }

    #[test]
    fn impossible_addresses_are_errors() {
        for addr in [
            Addr::Unix("".into()),
            Addr::Unix("x".repeat(200).into()),
            Addr::UnixAbstract(vec![b'x'; 200]),
            Addr::UnixUnnamed,
        ] {
            assert!(matches!(addr.to_sockaddr(), Err(Error::Address { .. })), "{addr}");
        }
    }
}
