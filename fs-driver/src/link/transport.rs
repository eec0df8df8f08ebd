//! Sockets and QUIC settings.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use quinn::{Endpoint, EndpointConfig, IdleTimeout, TransportConfig, VarInt};

use super::identity::{Fingerprint, Identity, SERVER_NAME};
use super::socket::LinkRuntime;
use super::tls;
use crate::state::Settings;

/// UDP socket buffers asked for, in bytes: what is in flight must fit, or large
/// writes stall on loss that is none.
const SOCKET_BUFFER: usize = 8 << 20;

/// Bytes the peer may send on a stream and on the connection before we have taken them.
const WINDOW: u32 = 32 << 20;

/// Bytes in flight before the path is known; both ends are neighbours.
const INITIAL_WINDOW: u64 = 1 << 20;

/// Largest datagram tried and taken, in bytes of UDP payload: what a jumbo frame carries.
const MAX_DATAGRAM: u16 = 8900;

/// What is needed to reach the peer and to be reached.
#[derive(Debug)]
pub struct Transport {
    listen: Vec<SocketAddr>,
    pub(super) peers: Vec<SocketAddr>,
    server: quinn::ServerConfig,
    client: quinn::ClientConfig,
}

impl Transport {
    /// Checks keys and addresses. Binds nothing yet.
    pub fn new(settings: &Settings, identity: &Identity) -> Result<Transport> {
        let peer = Fingerprint::parse(&settings.peer_id)?;
        let (server, client) = tls::configs(identity, peer)?;
        let idle = idle(Duration::from_millis(settings.stall_ms));
        let transport = Arc::new(transport(idle)?);
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(server));
        server.transport_config(transport.clone());
        let mut client = quinn::ClientConfig::new(Arc::new(client));
        client.transport_config(transport);
        Ok(Transport {
            listen: settings.listen.clone(),
            peers: settings.peer.clone(),
            server,
            client,
        })
    }

    /// Endpoints that accept the peer, one for each network.
    pub fn listen(&self) -> Result<Vec<Endpoint>> {
        self.listen
            .iter()
            .map(|address| {
                endpoint(*address, Some(self.server.clone()))
                    .with_context(|| format!("cannot listen on {address}"))
            })
            .collect()
    }

    /// An endpoint that dials addresses of the same family as `to`.
    pub fn dialler(&self, to: SocketAddr) -> Result<Endpoint> {
        let any: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let mut endpoint = endpoint(SocketAddr::new(any, 0), None)?;
        endpoint.set_default_client_config(self.client.clone());
        Ok(endpoint)
    }

    /// The same keys with quinn's own settings: for those who measure what ours are worth.
    pub fn stock(&self) -> (quinn::ServerConfig, quinn::ClientConfig) {
        let (mut server, mut client) = (self.server.clone(), self.client.clone());
        let stock = Arc::new(TransportConfig::default());
        server.transport_config(stock.clone());
        client.transport_config(stock);
        (server, client)
    }

    /// The name to dial with.
    pub fn server_name(&self) -> &'static str {
        SERVER_NAME
    }
}

/// How long a line may be silent. Shorter than a peer may be without progress: a line
/// that is cut is then known to be cut, and bridged, while ops wait for the peer;
/// otherwise the peer would be dropped first, as one that hangs.
fn idle(stall: Duration) -> Duration {
    stall * 3 / 4
}

fn transport(idle: Duration) -> Result<TransportConfig> {
    let mut config = TransportConfig::default();
    let mut congestion = quinn::congestion::CubicConfig::default();
    congestion.initial_window(INITIAL_WINDOW);
    let mut mtu = quinn::MtuDiscoveryConfig::default();
    mtu.upper_bound(MAX_DATAGRAM);
    config
        .max_idle_timeout(Some(IdleTimeout::try_from(idle)?))
        .keep_alive_interval(Some(idle / 4))
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .receive_window(VarInt::from_u32(2 * WINDOW))
        .send_window(2 * u64::from(WINDOW))
        .max_concurrent_bidi_streams(VarInt::from_u32(8))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .congestion_controller_factory(Arc::new(congestion))
        .initial_rtt(Duration::from_millis(5))
        .mtu_discovery_config(Some(mtu));
    Ok(config)
}

fn endpoint(address: SocketAddr, server: Option<quinn::ServerConfig>) -> Result<Endpoint> {
    let socket = UdpSocket::bind(address)?;
    size_buffers(&socket)?;
    let mut config = EndpointConfig::default();
    // Without it the peer tries nothing larger than an ordinary Ethernet frame.
    config.max_udp_payload_size(MAX_DATAGRAM)?;
    // The runtime is handed in, so that another platform can bring its own.
    let runtime = LinkRuntime::new(usize::from(MAX_DATAGRAM));
    Ok(Endpoint::new(config, server, socket, Arc::new(runtime))?)
}

fn size_buffers(socket: &UdpSocket) -> Result<()> {
    let reference = socket2::SockRef::from(socket);
    force(socket, libc::SO_RCVBUFFORCE);
    force(socket, libc::SO_SNDBUFFORCE);
    if reference.recv_buffer_size()? < SOCKET_BUFFER {
        reference.set_recv_buffer_size(SOCKET_BUFFER)?;
        warn_if_capped("net.core.rmem_max", reference.recv_buffer_size()?);
    }
    if reference.send_buffer_size()? < SOCKET_BUFFER {
        reference.set_send_buffer_size(SOCKET_BUFFER)?;
        warn_if_capped("net.core.wmem_max", reference.send_buffer_size()?);
    }
    Ok(())
}

/// Asks for the buffer beyond the system's limit, which root may (`socket(7)`).
fn force(socket: &UdpSocket, option: libc::c_int) {
    let size = SOCKET_BUFFER as libc::c_int;
    // SAFETY: the option takes an int, whose address and size are passed.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const size).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        );
    }
}

fn warn_if_capped(sysctl: &str, got: usize) {
    if let Some(warning) = capped(sysctl, got) {
        tracing::warn!("{warning}");
    }
}

fn capped(sysctl: &str, got: usize) -> Option<String> {
    (got < SOCKET_BUFFER).then(|| {
        format!(
            "the kernel gives this socket a buffer of {got} bytes instead of {SOCKET_BUFFER}; large \
             writes will be slow. Raise it: sysctl -w {sysctl}={SOCKET_BUFFER}"
        )
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_small_buffer_is_reported_with_what_to_do_about_it() {
        let warning = capped("net.core.rmem_max", 212_992).unwrap();
        assert!(
            warning.contains("212992 bytes instead of 8388608"),
            "{warning}"
        );
        assert!(
            warning.ends_with("sysctl -w net.core.rmem_max=8388608"),
            "{warning}"
        );
        // The kernel doubles what it is asked for, and reports that.
        assert_eq!(capped("net.core.rmem_max", 2 * SOCKET_BUFFER), None);
    }

    #[test]
    fn a_cut_line_is_noticed_before_a_peer_without_progress_is_dropped() {
        let stall = Duration::from_millis(2000);
        assert!(idle(stall) < stall && idle(stall) > stall / 2);
    }

    /// The two ends of a link on loopback.
    pub(in crate::link) fn pair(directory: &Path) -> (Transport, Transport) {
        let homes = ["a", "b"].map(|name| directory.join(name));
        let [one, two] = homes.each_ref().map(|home| {
            std::fs::create_dir(home).unwrap();
            Identity::load_or_create(&home.join("id")).unwrap()
        });
        let free = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        let end = |home: &Path, own: &Identity, other: &Identity| {
            let mut settings = Settings::new("vm", home, &other.fingerprint().to_string());
            settings.listen = vec![address];
            settings.peer = vec![address];
            Transport::new(&settings, own).unwrap()
        };
        (end(&homes[0], &one, &two), end(&homes[1], &two, &one))
    }

    /// A connection from the second end to the first one, as each has it.
    pub(in crate::link) async fn connect(
        listening: &Endpoint,
        client: &Transport,
    ) -> [quinn::Connection; 2] {
        let to = client.peers[0];
        let dialling = client.dialler(to).unwrap();
        let dialled = dialling.connect(to, client.server_name()).unwrap();
        let accepted = async { listening.accept().await.unwrap().await.unwrap() };
        let (dialled, accepted) = tokio::join!(dialled, accepted);
        [dialled.unwrap(), accepted]
    }

    #[test]
    fn both_ends_send_datagrams_as_large_as_the_network_carries() {
        let place = tempfile::tempdir().unwrap();
        let (server, client) = pair(place.path());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let grown = async {
            let listening = server.listen().unwrap().remove(0);
            let ends = connect(&listening, &client).await;
            let mtu = |end: &quinn::Connection| end.stats().path.current_mtu;
            // The search ends a few bytes below what is the most.
            while ends.iter().any(|end| mtu(end) < MAX_DATAGRAM - 64) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            drop(listening);
        };
        let patience = Duration::from_secs(60);
        runtime.block_on(async { tokio::time::timeout(patience, grown).await.unwrap() });
    }
}
