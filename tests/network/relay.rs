//! A network that does what a test wants: a UDP relay between the secondary and one
//! address of the primary that can be cut, lose, delay and reorder datagrams.

use std::collections::{BTreeMap, HashMap};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use harness::Dice;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Socket buffers, in bytes: what the relay loses it loses on purpose.
const BUFFER: usize = 8 << 20;

/// Bytes of the largest datagram.
const DATAGRAM: usize = 64 << 10;

/// What the network does to each datagram, in both directions.
#[derive(Clone, Copy, Default)]
pub(crate) struct Weather {
    /// Nothing gets through.
    pub(crate) cut: bool,
    /// Datagrams of a thousand that are lost.
    pub(crate) lost: u32,
    /// The shortest delay, in milliseconds.
    pub(crate) delay: u64,
    /// What may come on top of it; differences reorder.
    pub(crate) jitter: u64,
}

/// One network. Gone when it is dropped.
pub(crate) struct Relay {
    front: SocketAddr,
    weather: Arc<Mutex<Weather>>,
    stop: Arc<AtomicBool>,
    /// Bytes that were carried to who dialled.
    inward: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// A network that leads to `to`.
    pub(crate) fn to(to: SocketAddr) -> Relay {
        let front = socket();
        let address = front.local_addr().unwrap();
        let weather = Arc::<Mutex<Weather>>::default();
        let stop = Arc::<AtomicBool>::default();
        let inward = Arc::<AtomicU64>::default();
        let thread = std::thread::spawn({
            let (weather, stop, inward) = (weather.clone(), stop.clone(), inward.clone());
            move || forward(&front, to, &weather, &stop, &inward)
        });
        Relay {
            front: address,
            weather,
            stop,
            inward,
            thread: Some(thread),
        }
    }

    /// Where the secondary dials.
    pub(crate) fn address(&self) -> SocketAddr {
        self.front
    }

    /// Bytes that were carried from the one that accepts to the one that dials.
    pub(crate) fn inward(&self) -> u64 {
        self.inward.load(Ordering::Relaxed)
    }

    /// Changes the weather from now on.
    pub(crate) fn set(&self, weather: Weather) {
        *self.weather.lock().unwrap() = weather;
    }

    /// Lets nothing through.
    pub(crate) fn cut(&self) {
        self.set(Weather {
            cut: true,
            ..Weather::default()
        });
    }

    /// Lets everything through.
    pub(crate) fn heal(&self) {
        self.set(Weather::default());
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).unwrap();
    socket
}

/// A datagram on its way: through the socket of a client, to an address.
struct Flying {
    client: SocketAddr,
    inward: bool,
    bytes: Vec<u8>,
}

fn forward(
    front: &UdpSocket,
    to: SocketAddr,
    weather: &Mutex<Weather>,
    stop: &AtomicBool,
    inward: &AtomicU64,
) {
    let mut clients: HashMap<SocketAddr, UdpSocket> = HashMap::new();
    let mut flying: BTreeMap<(Instant, u64), Flying> = BTreeMap::new();
    let mut buffer = vec![0; DATAGRAM];
    let mut dice = Dice::new(0);
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        let wait = flying
            .keys()
            .next()
            .map_or(Duration::from_millis(20), |(at, _)| {
                at.saturating_duration_since(now)
            })
            .min(Duration::from_millis(20));
        wait_for(front.as_fd(), clients.values().map(AsFd::as_fd), wait);
        let weather = *weather.lock().unwrap();
        let mut take = |client, inward, bytes: &[u8]| {
            if weather.cut || dice.below(1000) < u64::from(weather.lost) {
                return;
            }
            let more = dice.below(weather.jitter * 1000 + 1);
            let at = Instant::now() + Duration::from_micros(weather.delay * 1000 + more);
            number += 1;
            let bytes = bytes.to_vec();
            flying.insert(
                (at, number),
                Flying {
                    client,
                    inward,
                    bytes,
                },
            );
        };
        while let Ok((n, client)) = front.recv_from(&mut buffer) {
            clients.entry(client).or_insert_with(|| {
                let back = socket();
                back.connect(to).unwrap();
                back
            });
            take(client, true, &buffer[..n]);
        }
        for (client, back) in &clients {
            while let Ok(n) = back.recv(&mut buffer) {
                take(*client, false, &buffer[..n]);
            }
        }
        let now = Instant::now();
        while let Some(first) = flying.first_entry()
            && first.key().0 <= now
        {
            let datagram = first.remove();
            // What a socket does not take is lost, as on any network.
            if datagram.inward {
                let _ = clients[&datagram.client].send(&datagram.bytes);
            } else {
                inward.fetch_add(datagram.bytes.len() as u64, Ordering::Relaxed);
                let _ = front.send_to(&datagram.bytes, datagram.client);
            }
        }
    }
}

fn wait_for<'a>(
    front: BorrowedFd<'a>,
    backs: impl Iterator<Item = BorrowedFd<'a>>,
    limit: Duration,
) {
    let mut all: Vec<PollFd<'_>> = std::iter::once(front)
        .chain(backs)
        .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
        .collect();
    let limit = Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    let _ = poll(&mut all, Some(&limit));
}
