//! Addresses of stream sockets. Owns: [`Addr`] and its conversions. Invariant: only an address that
//! a socket can use becomes a `SockAddr`. Must not know how addresses are used.

use crate::error::Error;
use socket2::{Domain, SockAddr};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// An address to connect to or to listen on: IPv4, IPv6, or a unix stream socket.
///
/// The text forms are `127.0.0.1:80`, `[::1]:80`, `unix:/run/app.sock` and `unix:@abstract-name`.
///
/// ```
/// use proactor::Addr;
/// let addr: Addr = "unix:/run/app.sock".parse()?;
/// assert_eq!(addr, Addr::Unix("/run/app.sock".into()));
/// let addr = Addr::from((std::net::Ipv4Addr::LOCALHOST, 80));
/// assert_eq!(addr.to_string(), "127.0.0.1:80");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Addr {
    /// An IPv4 or IPv6 address and port.
    Inet(SocketAddr),
    /// A path in the file system (unix(7)). At most 107 bytes.
    Unix(PathBuf),
    /// A name in the abstract namespace (unix(7)), without the leading zero byte. At most 107
    /// bytes.
    UnixAbstract(Vec<u8>),
    /// A unix socket without a name: an end of a socketpair, or a client that did not bind.
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

    /// True for loopback and unix sockets. Zero-copy sends do not help there: the kernel copies the
    /// bytes in any case.
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
        let error = |why| Error::Address { addr: self.to_string(), why };
        match self {
            Addr::Inet(addr) => Ok(SockAddr::from(*addr)),
            Addr::Unix(path) if path.as_os_str().is_empty() => Err(error("the path is empty")),
            Addr::Unix(path) => {
                SockAddr::unix(path).map_err(|_| error("the path is longer than 107 bytes"))
            }
            Addr::UnixAbstract(name) => {
                let path = [b"\0", name.as_slice()].concat();
                let path: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(&path);
                SockAddr::unix(path).map_err(|_| error("the name is longer than 107 bytes"))
            }
            Addr::UnixUnnamed => Err(error("an unnamed socket cannot be addressed")),
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

    /// The IP address and port. `None` for unix sockets.
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

/// The text is not a valid [`Addr`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseAddrError(String);

impl fmt::Display for ParseAddrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not an address: expected IP:PORT, [IPV6]:PORT, unix:PATH or unix:@NAME",
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
    fn the_text_form_parses_to_the_same_address() {
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
    fn unusable_addresses_are_errors() {
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
