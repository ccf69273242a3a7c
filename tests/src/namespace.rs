//! A network namespace for one daemon: a network of its own with one cable to here, and name servers
//! of a test's choosing. Made with `ip`, taken away when dropped.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// A namespace that is there for as long as the value.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    cable: String,
    network: [u8; 3],
}

impl Namespace {
    /// Makes one; `Ok(None)` where the machine does not allow it.
    ///
    /// # Errors
    /// It is allowed and fails all the same.
    pub fn new() -> Result<Option<Self>> {
        let number = std::process::id();
        let [.., high, low] = number.to_be_bytes();
        let namespace = Self {
            name: format!("outrigger-{number}"),
            cable: format!("out{number}"),
            // Private, and different for tests side by side.
            network: [10, 64 | (high & 63), low],
        };
        if ip(&["netns", "add", &namespace.name]).is_err() {
            return Ok(None);
        }
        let peer = format!("{}n", namespace.cable);
        if ip(&["link", "add", &namespace.cable, "type", "veth", "peer", "name", &peer, "netns", &namespace.name])
            .is_err()
        {
            return Ok(None);
        }
        namespace.add_address(namespace.here())?;
        ip(&["link", "set", &namespace.cable, "up"])?;
        ip(&["-n", &namespace.name, "address", "add", &format!("{}/24", namespace.inside()), "dev", &peer])?;
        ip(&["-n", &namespace.name, "link", "set", &peer, "up"])?;
        ip(&["-n", &namespace.name, "link", "set", "lo", "up"])?;
        let resolver = namespace.resolver();
        std::fs::create_dir_all(resolver.parent().context("no folder")?)?;
        std::fs::write(&resolver, format!("nameserver {}\n", namespace.here())).context("write resolv.conf")?;
        Ok(Some(namespace))
    }

    /// The words before a command that run it inside.
    pub fn enter(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.name]
    }

    /// Our own address on the cable, which is also the name server that is asked inside.
    pub fn here(&self) -> Ipv4Addr {
        self.address(1)
    }

    /// The address inside.
    pub fn inside(&self) -> Ipv4Addr {
        self.address(2)
    }

    /// Any address of the network; from 3 on it is nobody's unless [`Self::add_address`] makes it ours.
    pub fn address(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.network;
        Ipv4Addr::new(a, b, c, host)
    }

    /// Makes an address of the network ours.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add_address(&self, address: Ipv4Addr) -> Result<()> {
        ip(&["address", "add", &format!("{address}/24"), "dev", &self.cable])
    }

    /// Takes it away again: whatever is sent to it from inside vanishes, and whatever comes from it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn take_address(&self, address: Ipv4Addr) -> Result<()> {
        ip(&["address", "delete", &format!("{address}/24"), "dev", &self.cable])
    }

    /// What `ip netns exec` shows as `/etc/resolv.conf`.
    fn resolver(&self) -> PathBuf {
        PathBuf::from("/etc/netns").join(&self.name).join("resolv.conf")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&["link", "delete", &self.cable]);
        // A process that is being killed still holds it for a moment.
        for _ in 0..50 {
            if ip(&["netns", "delete", &self.name]).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if let Some(folder) = self.resolver().parent() {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let done = Command::new("ip").args(arguments).output().context("run ip")?;
    ensure!(done.status.success(), "ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&done.stderr).trim());
    Ok(())
}
