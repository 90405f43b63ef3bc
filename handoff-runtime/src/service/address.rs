//! Where a service listens: `127.0.0.1:8080`, `[::1]:8080`, `unix:/run/x.sock`, `udp:127.0.0.1:53`.
//!
//! Never looks a name up: an address that needs a resolver can fail or change between two starts.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// One address to listen on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A TCP socket. Port 0 lets the kernel choose; the status names the port it chose.
    Tcp(SocketAddr),
    /// A Unix stream socket at this path.
    Unix(PathBuf),
    /// A UDP socket.
    Udp(SocketAddr),
}

impl Address {
    /// The same address with a relative Unix path taken from `base`.
    #[must_use]
    pub fn relative_to(self, base: &Path) -> Self {
        match self {
            Self::Unix(path) => Self::Unix(base.join(path)),
            other => other,
        }
    }
}

/// Text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is no address; write 127.0.0.1:8080, [::1]:8080, unix:/run/x.sock or udp:127.0.0.1:53")]
pub struct AddressError {
    text: String,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let refused = || AddressError { text: text.to_owned() };
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(refused()) } else { Ok(Self::Unix(PathBuf::from(path))) };
        }
        match text.strip_prefix("udp:") {
            Some(address) => address.parse().map(Self::Udp).map_err(|_| refused()),
            None => text.parse().map(Self::Tcp).map_err(|_| refused()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Udp(address) => write!(f, "udp:{address}"),
        }
    }
}

/// A named address: the daemon finds the socket under this name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Listen {
    /// Its name in `LISTEN_FDNAMES` (`sd_listen_fds_with_names(3)`).
    pub name: String,
    /// Where it listens.
    pub address: Address,
}

/// Text that is no `NAME=ADDR`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListenError {
    /// There is no `=`.
    #[error("\"{0}\" lacks a name; write NAME=ADDR, for example http=127.0.0.1:8080")]
    NoName(String),
    /// The name can't travel in `LISTEN_FDNAMES`.
    #[error("listener name \"{0}\" is not allowed; use 1 to 255 printable ASCII characters without a colon")]
    BadName(String),
    /// The address is none.
    #[error(transparent)]
    Address(#[from] AddressError),
}

impl Listen {
    /// A listener of this name.
    ///
    /// # Errors
    /// A name that can't travel in `LISTEN_FDNAMES`: empty, too long, with a colon or an unprintable character.
    pub fn new(name: impl Into<String>, address: Address) -> Result<Self, ListenError> {
        let name = name.into();
        let printable = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b':';
        if name.is_empty() || name.len() > 255 || !name.bytes().all(printable) {
            return Err(ListenError::BadName(name));
        }
        Ok(Self { name, address })
    }
}

impl FromStr for Listen {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, ListenError> {
        let (name, address) = text.split_once('=').ok_or_else(|| ListenError::NoName(text.to_owned()))?;
        Self::new(name, address.parse()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_form_is_read_and_printed_alike() {
        for text in ["127.0.0.1:8080", "[::1]:8080", "unix:/run/x.sock", "udp:127.0.0.1:53", "udp:[::1]:53"] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_is_quoted_in_the_error() {
        for text in ["", "8080", "localhost:80", "unix:", "udp:", "127.0.0.1:99999", "tcp:1.2.3.4:5"] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(&format!("\"{text}\"")), "{error}");
        }
    }

    #[test]
    fn a_listener_has_a_name_that_can_travel() {
        let listen: Listen = "http=127.0.0.1:80".parse().unwrap();
        assert_eq!((listen.name.as_str(), listen.address.to_string().as_str()), ("http", "127.0.0.1:80"));
        assert!(matches!("127.0.0.1:80".parse::<Listen>(), Err(ListenError::NoName(_))));
        for bad in ["=127.0.0.1:80", "a:b=127.0.0.1:80", "a\nb=127.0.0.1:80"] {
            assert!(matches!(bad.parse::<Listen>(), Err(ListenError::BadName(_))), "{bad}");
        }
    }

    #[test]
    fn a_relative_unix_path_is_taken_from_its_base() {
        let address: Address = "unix:x.sock".parse().unwrap();
        assert_eq!(address.relative_to(Path::new("/etc/h")), Address::Unix("/etc/h/x.sock".into()));
    }
}
