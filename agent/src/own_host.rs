//! What this machine calls itself, as Java's `InetAddress.getLocalHost` would find it.
//!
//! The address is that of the machine's own name, IPv4 first; the full name is the first one that `/etc/hosts` gives
//! that address, or else the plain name: a reverse look-up in DNS is not made.

use std::net::{IpAddr, ToSocketAddrs};

/// The names and the address of this machine, looked up once per use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnHost {
    /// As the kernel knows it: `collector7`.
    pub name: String,
    /// `None` where the name has no address.
    pub address: Option<IpAddr>,
    /// `collector7.example.com`, where `/etc/hosts` says so.
    pub full_name: String,
}

impl OwnHost {
    pub fn find() -> OwnHost {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        let found: Vec<IpAddr> = (name.as_str(), 0)
            .to_socket_addrs()
            .map(|addresses| addresses.map(|address| address.ip()).collect())
            .unwrap_or_default();
        let address = found.iter().find(|address| address.is_ipv4()).or(found.first()).copied();
        let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        let full_name = address.and_then(|address| canonical(&hosts, address)).unwrap_or_else(|| name.clone());
        OwnHost { name, address, full_name }
    }
}

/// The first name that `/etc/hosts` gives an address.
fn canonical(hosts: &str, address: IpAddr) -> Option<String> {
    hosts.lines().find_map(|line| {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        (words.next()?.parse::<IpAddr>().ok()? == address).then(|| words.next().map(str::to_owned))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_full_name_is_the_first_of_the_address_in_the_hosts_file() {
        let hosts = "127.0.0.1 localhost\n# 10.0.0.7 no\n10.0.0.7\tbox.example.com box # us\n";
        assert_eq!(canonical(hosts, "10.0.0.7".parse().unwrap()).as_deref(), Some("box.example.com"));
        assert_eq!(canonical(hosts, "10.0.0.8".parse().unwrap()), None);
    }
}
