//! The UDP socket under QUIC: as quinn's own for tokio, with fewer wake-ups.
//!
//! Each datagram that the peer takes out of its buffer makes a socket writable again. A
//! thread that waits for that as well is woken by every datagram that it has sent, for
//! nothing: so whether the socket is writable is asked only after a send found that it
//! was not. And a receive that did not fill its buffers has emptied the socket; another
//! one would only say so.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::tasks;

/// Bytes that one send may carry, however many datagrams they are cut into (`udp(7)`;
/// the kernel's limit is 65,535 with all headers).
const MAX_SEND: usize = 65_000;

/// Bytes that one receive may bring of datagrams that arrived together.
const MAX_RECEIVE: usize = 65_536;

/// tokio for one endpoint, with our sockets and tasks.
#[derive(Debug)]
pub(super) struct LinkRuntime {
    /// The largest datagram that the endpoint takes, in bytes.
    max_datagram: usize,
    has_endpoint: AtomicBool,
}

impl LinkRuntime {
    /// For an endpoint that takes datagrams of so many bytes.
    pub(super) fn new(max_datagram: usize) -> LinkRuntime {
        LinkRuntime {
            max_datagram,
            has_endpoint: AtomicBool::new(false),
        }
    }
}

impl Runtime for LinkRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        // The endpoint is the first; who sends an op has to do with its connection only.
        match self.has_endpoint.swap(true, Ordering::Relaxed) {
            false => TokioRuntime.spawn(future),
            true => tasks::spawn_detached(future),
        }
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(Arc::new(Socket {
            state: UdpSocketState::new((&socket).into())?,
            io: watched(socket, Interest::READABLE)?,
            full: AtomicBool::new(false),
            largest: AtomicUsize::new(1),
            max_datagram: self.max_datagram,
        }))
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

/// Has the runtime tell when `socket` is ready.
fn watched<T: AsRawFd + Owned>(socket: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: the descriptor is the socket's own, and stays the same one and open until the
    // socket is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
}

/// What owns one descriptor for as long as it lives.
trait Owned {}

impl Owned for UdpSocket {}
impl Owned for OwnedFd {}

#[derive(Debug)]
struct Socket {
    state: UdpSocketState,
    io: AsyncFd<UdpSocket>,
    /// The last send found no room.
    full: AtomicBool,
    /// The largest datagram sent so far, in bytes.
    largest: AtomicUsize,
    max_datagram: usize,
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room {
            socket: self,
            waiting: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len());
        self.largest.fetch_max(size, Ordering::Relaxed);
        let once = (MAX_SEND / size.max(1)).max(1) * size.max(1);
        // More than fits into one send only when datagrams have just become larger. Should
        // a later piece find no room, all are sent again: QUIC knows datagrams it has had.
        for piece in transmit.contents.chunks(once) {
            let one = Transmit {
                destination: transmit.destination,
                ecn: transmit.ecn,
                contents: piece,
                segment_size: transmit.segment_size.filter(|size| piece.len() > *size),
                src_ip: transmit.src_ip,
            };
            let sent = self.state.send(self.io.get_ref().into(), &one);
            if let Err(e) = sent {
                if e.kind() == io::ErrorKind::WouldBlock {
                    self.full.store(true, Ordering::Release);
                }
                return Err(e);
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut readable = ready!(self.io.poll_read_ready(cx))?;
            let received = self.state.recv(readable.get_inner().into(), buffers, meta);
            match received {
                Ok(n) => {
                    // `recvmmsg(2)` found no more. What arrives from now on is told anew.
                    if n < buffers.len() {
                        readable.clear_ready();
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => readable.clear_ready(),
                // An error here would end the endpoint for good; it is one datagram that is not
                // there, and whatever is wrong for longer ends connections in time.
                Err(error) => {
                    tracing::debug!(%error, "nothing could be received");
                    readable.clear_ready();
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.get_ref().local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        let fit = MAX_SEND / self.largest.load(Ordering::Relaxed);
        self.state.max_gso_segments().min(fit).max(1)
    }

    fn max_receive_segments(&self) -> usize {
        // Buffers are as many of the largest datagrams: one more of them than fit.
        let fit = MAX_RECEIVE / self.max_datagram + 1;
        self.state.gro_segments().min(fit)
    }
}

/// Waits until a full socket has room.
#[derive(Debug)]
struct Room {
    socket: Arc<Socket>,
    /// A descriptor of its own: one cannot be waited for in two ways.
    waiting: Option<AsyncFd<OwnedFd>>,
}

impl UdpPoller for Room {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.socket.full.load(Ordering::Acquire) {
            this.waiting = None;
            return Poll::Ready(Ok(()));
        }
        let waiting = match &mut this.waiting {
            Some(waiting) => waiting,
            None => {
                let own = OwnedFd::from(this.socket.io.get_ref().try_clone()?);
                // Told at once if there is room by now.
                let waiting = watched(own, Interest::WRITABLE)?;
                this.waiting.insert(waiting)
            }
        };
        let told = ready!(waiting.poll_write_ready(cx)).map(|_room| ());
        this.socket.full.store(false, Ordering::Release);
        this.waiting = None;
        Poll::Ready(told)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::os::unix::net::UnixDatagram;
    use std::time::Duration;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// Datagrams as large as the kernel takes on loopback, nearly.
    const LARGE: usize = 60_000;

    fn socket(max_datagram: usize) -> (Arc<dyn AsyncUdpSocket>, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let runtime = LinkRuntime::new(max_datagram);
        (runtime.wrap_udp_socket(socket).unwrap(), address)
    }

    /// Runs with a deadline.
    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async { tokio::time::timeout(PATIENCE, test).await.unwrap() });
    }

    fn send(
        socket: &Arc<dyn AsyncUdpSocket>,
        destination: SocketAddr,
        contents: &[u8],
        segment_size: Option<usize>,
    ) -> io::Result<()> {
        socket.try_send(&Transmit {
            destination,
            ecn: None,
            contents,
            segment_size,
            src_ip: None,
        })
    }

    /// Receives datagrams until there are `count`; their lengths and first bytes.
    async fn receive(socket: &Arc<dyn AsyncUdpSocket>, count: usize) -> Vec<(usize, u8)> {
        let mut all = Vec::new();
        while all.len() < count {
            let mut space = vec![0; 2 * MAX_RECEIVE];
            let (one, two) = space.split_at_mut(MAX_RECEIVE);
            let mut meta = [RecvMeta::default(); 2];
            let received = poll_fn(|cx| {
                let mut buffers = [IoSliceMut::new(&mut *one), IoSliceMut::new(&mut *two)];
                socket.poll_recv(cx, &mut buffers, &mut meta)
            });
            let received = received.await.unwrap();
            for (buffer, meta) in [&*one, &*two].into_iter().zip(&meta).take(received) {
                let cut = buffer[..meta.len].chunks(meta.stride);
                all.extend(cut.map(|datagram| (datagram.len(), datagram[0])));
            }
        }
        all
    }

    #[test]
    fn datagrams_that_arrive_one_by_one_or_many_together_are_all_received() {
        run(async {
            let (tx, _) = socket(1500);
            let (rx, to) = socket(1500);
            for many in [1, 2, 3, 40] {
                for n in 0..many {
                    send(&tx, to, &[n; 100], None).unwrap();
                }
                let received = receive(&rx, usize::from(many)).await;
                let wanted: Vec<_> = (0..many).map(|n| (100, n)).collect();
                assert_eq!(received, wanted);
            }
        });
    }

    #[test]
    fn what_arrives_while_somebody_waits_wakes_him() {
        run(async {
            let (tx, _) = socket(1500);
            let (rx, to) = socket(1500);
            for round in 0..100 {
                let sent = async {
                    tokio::task::yield_now().await;
                    send(&tx, to, &[round; 10], None).unwrap();
                };
                let (received, ()) = tokio::join!(receive(&rx, 1), sent);
                assert_eq!(received, [(10, round)]);
            }
        });
    }

    #[test]
    fn more_than_one_send_can_carry_is_sent_in_several() {
        run(async {
            let (tx, _) = socket(9000);
            let (rx, to) = socket(9000);
            if tx.max_transmit_segments() == 1 {
                return; // No segmentation here: nothing to be cut.
            }
            let mut contents = vec![0; 9 * 9000 + 17];
            for (n, datagram) in contents.chunks_mut(9000).enumerate() {
                datagram[0] = n as u8;
            }
            send(&tx, to, &contents, Some(9000)).unwrap();
            let received = receive(&rx, 10).await;
            let wanted = (0..10).map(|n| (if n == 9 { 17 } else { 9000 }, n));
            assert_eq!(received, wanted.collect::<Vec<_>>());
            assert!(tx.max_transmit_segments() * 9000 <= MAX_SEND);
        });
    }

    /// On loopback a UDP socket is never full; a local socket behaves as one on a network.
    #[test]
    fn a_full_socket_is_waited_for_until_it_has_room() {
        run(async {
            let (near, far) = UnixDatagram::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            let fill = |near: &UnixDatagram| while near.send(&[0; 1000]).is_ok() {};
            fill(&near);
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            let io = UdpSocket::from(OwnedFd::from(near.try_clone().unwrap()));
            let socket = Arc::new(Socket {
                state: UdpSocketState::new((&udp).into()).unwrap(),
                io: watched(io, Interest::READABLE).unwrap(),
                full: AtomicBool::new(false),
                largest: AtomicUsize::new(1),
                max_datagram: LARGE,
            });
            let mut room = socket.clone().create_io_poller();
            for _ in 0..3 {
                // Nothing has been found full: nobody waits.
                poll_fn(|cx| room.as_mut().poll_writable(cx)).await.unwrap();
                socket.full.store(true, Ordering::Release);
                let waited = tokio::time::timeout(
                    Duration::from_millis(50),
                    poll_fn(|cx| room.as_mut().poll_writable(cx)),
                );
                assert!(waited.await.is_err(), "there is no room yet");
                let reader = async {
                    tokio::task::yield_now().await;
                    far.set_nonblocking(true).unwrap();
                    while far.recv(&mut [0; 1000]).is_ok() {}
                };
                let (told, ()) =
                    tokio::join!(poll_fn(|cx| room.as_mut().poll_writable(cx)), reader);
                told.unwrap();
                assert!(!socket.full.load(Ordering::Acquire));
                fill(&near);
            }
        });
    }

    #[test]
    fn buffers_hold_whatever_arrives_together() {
        run(async {
            for max_datagram in [1200, 8900, LARGE] {
                let (socket, _) = socket(max_datagram);
                let segments = socket.max_receive_segments();
                let gro = segments * max_datagram >= MAX_RECEIVE;
                assert!(gro || segments == 1 || segments == 64, "{segments}");
            }
        });
    }
}
