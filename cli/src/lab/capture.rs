//! Watching one interface: the kernel's packet filter picks, so that a busy link costs nothing.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::time::Duration;

use ipnet::Ipv4Net;
use nix::sys::socket::{LinkAddr, bind};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::error::LabError;
use super::netns::Namespace;

/// Bytes kept of a frame: all headers, and the packet that an ICMP error embeds.
const SNAP: usize = 256;

/// Which IPv4 frames to pick among those that an interface receives.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pick {
    /// Only sources in this prefix.
    pub source: Option<Ipv4Net>,
    /// Only frames to this Ethernet address. A switch may flood frames to others.
    pub to: Option<[u8; 6]>,
}

impl Pick {
    /// The filter in classic BPF, over an Ethernet frame.
    fn program(self) -> Vec<SockFilter> {
        let op = |code: u32, k: u32| (code as u16, k);
        let load_word = |offset| op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
        let load_half = |offset| op(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, offset);
        let mask = |k| op(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, k);
        let equal = |k| op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k);
        let mut steps = vec![load_half(12), equal(0x0800)];
        if let Some([a, b, c, d, e, f]) = self.to {
            steps.extend([load_word(0), equal(u32::from_be_bytes([a, b, c, d]))]);
            steps.extend([load_half(4), equal(u32::from(u16::from_be_bytes([e, f])))]);
        }
        if let Some(net) = self.source {
            let bits = u32::from(net.netmask());
            steps.extend([load_word(26), mask(bits), equal(u32::from(net.network()))]);
        }
        let accept = steps.len();
        let mut program: Vec<SockFilter> = steps
            .iter()
            .enumerate()
            .map(|(place, &(code, k))| {
                let jump = u32::from(code) & 0x07 == libc::BPF_JMP;
                // A comparison that fails jumps over the rest, and over the accepting return.
                let refuse = if jump { (accept - place) as u8 } else { 0 };
                SockFilter::new(code, 0, refuse, k)
            })
            .collect();
        let ret = (libc::BPF_RET | libc::BPF_K) as u16;
        program.push(SockFilter::new(ret, 0, 0, SNAP as u32));
        program.push(SockFilter::new(ret, 0, 0, 0));
        program
    }
}

/// Frames that an interface receives, as the filter picks them.
#[derive(Debug)]
pub struct Capture {
    socket: Socket,
}

impl Capture {
    /// Begins to watch an interface.
    ///
    /// # Errors
    /// No such interface, or no privilege.
    pub fn open(namespace: &Namespace, link: &str, pick: Pick) -> Result<Capture, LabError> {
        let address = namespace.link_address(link)?;
        let opened = namespace.run(|| {
            let socket = packet_socket(&address, libc::ETH_P_IP)?;
            socket.attach_filter(&pick.program())?;
            // What was queued between opening and binding may be another interface's.
            socket.set_nonblocking(true)?;
            while (&socket).read(&mut [0; SNAP]).is_ok() {}
            Ok(socket)
        });
        let socket = opened.map_err(LabError::system(format!(
            "watching {link} in {}",
            namespace.name()
        )))?;
        Ok(Capture { socket })
    }

    /// The frames since it was last asked, each cut to its first 256 bytes.
    pub fn take(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = [0; SNAP];
        while let Ok(length) = (&self.socket).read(&mut buffer) {
            frames.push(buffer[..length].to_vec());
        }
        frames
    }

    /// Waits until a frame is there that the condition accepts; frames before it are dropped.
    pub fn wait(&self, limit: Duration, mut accept: impl FnMut(&[u8]) -> bool) -> bool {
        super::wait::until(limit, || self.take().iter().any(|frame| accept(frame)))
    }
}

/// A raw packet socket on one interface, for frames of one EtherType (in host order).
pub(super) fn packet_socket(address: &LinkAddr, ether_type: i32) -> io::Result<Socket> {
    // The argument is the type in network order, in the low half of an int.
    let protocol = i32::from((ether_type as u16).to_be());
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(protocol)))?;
    // The address comes without a protocol, so the socket keeps its own.
    bind(socket.as_raw_fd(), address)?;
    Ok(socket)
}
