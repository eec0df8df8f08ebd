//! What the kernel of the peer's machine says of a process there: it lets callers in where one
//! listens, and refuses them where none does any more. That needs no process to answer, and costs
//! no timeout.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::time::timeout;

use super::Hub;
use super::line::{RETRY, STEP};

/// How long the peer's kernel may take to answer at a driver's port. Silence says nothing.
const KNOCK: Duration = Duration::from_millis(250);

/// Pause between two callers at a port at which nothing is said.
const PAUSE: Duration = Duration::from_millis(10);

/// Pause before an address is tried again that cannot be listened on.
const LATER: Duration = Duration::from_secs(1);

/// What came of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// A process listens there.
    Open,
    /// None does.
    Refused,
    /// Nobody knows.
    Nothing,
}

impl Answer {
    fn of<T>(connected: &std::io::Result<T>) -> Answer {
        match connected {
            Ok(_) => Answer::Open,
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => Answer::Refused,
            Err(_) => Answer::Nothing,
        }
    }
}

/// Calls at an address, for a moment.
pub(crate) fn knock(there: SocketAddr) -> Answer {
    Answer::of(&TcpStream::connect_timeout(&there, KNOCK))
}

/// Connects to the peer on a network; what its kernel says is noted.
pub(super) async fn connect(hub: &Hub, lan: usize) -> std::io::Result<tokio::net::TcpStream> {
    let (here, there) = (hub.cluster.lans[lan].here, hub.cluster.lans[lan].there);
    let connect = async {
        let socket = match there {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        // From this network's own address: another one would not tell of this network.
        socket.bind(SocketAddr::new(here.ip(), 0))?;
        socket.connect(there).await
    };
    let connected = timeout(STEP, connect).await.unwrap_or_else(|_| {
        let text = format!("{there} did not answer");
        Err(std::io::Error::new(std::io::ErrorKind::TimedOut, text))
    });
    hub.answers(lan, Answer::of(&connected));
    connected
}

/// The node that dials is called, too, so that its kernel can say whether it lives; there is
/// nothing to be said to callers.
pub(super) async fn let_in(hub: Arc<Hub>, lan: usize) {
    let here = hub.cluster.lans[lan].here;
    let listener = loop {
        match TcpListener::bind(here).await {
            Ok(listener) => break listener,
            Err(error) => tracing::debug!(%here, %error, "callers cannot be let in"),
        }
        tokio::time::sleep(LATER).await;
    };
    hub.lans[lan].open.store(true, Ordering::Release);
    loop {
        drop(listener.accept().await);
        tokio::time::sleep(PAUSE).await;
    }
}

/// The node that is dialled calls when its line has ended, until there is another one.
pub(super) async fn call(hub: Arc<Hub>, lan: usize) {
    let state = &hub.lans[lan];
    loop {
        state.ended.notified().await;
        // Of an earlier release's dialler the kernel would say nothing but that it does not listen.
        while state.lines.load(Ordering::Acquire) == 0 && state.listens.load(Ordering::Acquire) {
            drop(connect(&hub, lan).await);
            tokio::time::sleep(RETRY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_open_while_somebody_listens_and_refused_afterwards() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(knock(address), Answer::Open);
        drop(listener);
        // A program that another test is about to start has it open until it begins.
        let until = std::time::Instant::now() + Duration::from_secs(60);
        while knock(address) != Answer::Refused {
            assert!(std::time::Instant::now() < until, "it is still open");
            std::thread::sleep(PAUSE);
        }
    }

    #[test]
    fn who_does_not_answer_has_not_refused() {
        let timed_out = std::io::Error::from(std::io::ErrorKind::TimedOut);
        assert_eq!(Answer::of::<()>(&Err(timed_out)), Answer::Nothing);
        let unreachable = std::io::Error::from_raw_os_error(libc::EHOSTUNREACH);
        assert_eq!(Answer::of::<()>(&Err(unreachable)), Answer::Nothing);
    }
}
