//! The connections: dialling, accepting, frames.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fs_driver::link::{SERVER_NAME, pinned_configs};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use twinfold_protocol::ids::Side;

use super::{Hub, WireView, knock, lock};
use crate::cluster::Meaning;

/// The protocol's name in TLS.
const PROTOCOL: &[u8] = b"twinfold-controller/1";

/// The version of the frames.
const VERSION: u32 = 1;

/// Longest frame, in bytes: a view with the longest history, the longest reason and all
/// resources fits.
const MAX_FRAME: usize = 64 << 10;

/// How long a connection, a handshake or the write of a frame may take. Shorter than any
/// sensible timeout of heartbeats, so that there is time for another try.
pub(super) const STEP: Duration = Duration::from_secs(1);

/// Pause between two tries.
pub(super) const RETRY: Duration = Duration::from_millis(100);

/// How often a peer of an earlier release says that it lives, in milliseconds.
fn before() -> u64 {
    200
}

/// What is said.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Frame {
    Hello {
        version: u32,
        node: String,
        run: u64,
        /// Callers at this node's address on this network are let in while its daemon lives.
        #[serde(default)]
        listens: bool,
        /// What its `cluster.xml` says. Both go on, whatever differs.
        #[serde(default)]
        cluster: Option<Meaning>,
    },
    Pulse {
        works: Vec<String>,
        /// Milliseconds until the next one.
        #[serde(default = "before")]
        every_ms: u64,
    },
    View {
        module: String,
        number: u64,
        view: Box<WireView>,
    },
}

/// Serves all networks.
pub(super) async fn run(hub: &Arc<Hub>) {
    let configs = pinned_configs(&hub.cluster.identity, hub.cluster.peer_identity, PROTOCOL);
    let (server, client) = match configs {
        Ok((server, client)) => (Arc::new(server), Arc::new(client)),
        Err(error) => {
            return tracing::error!(error = format!("{error:#}"), "this node's key is of no use");
        }
    };
    let mut tasks = tokio::task::JoinSet::new();
    for lan in 0..hub.lans.len() {
        tasks.spawn(count_silence(hub.clone(), lan));
        match hub.cluster.side {
            Side::Even => {
                tasks.spawn(knock::let_in(hub.clone(), lan));
                tasks.spawn(dial(hub.clone(), lan, TlsConnector::from(client.clone())));
            }
            Side::Odd => {
                tasks.spawn(knock::call(hub.clone(), lan));
                tasks.spawn(listen(hub.clone(), lan, TlsAcceptor::from(server.clone())));
            }
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// Adds up the time in which this node listened.
async fn count_silence(hub: Arc<Hub>, lan: usize) {
    let mut last = Instant::now();
    loop {
        let step = hub.step();
        tokio::time::sleep(step).await;
        let passed = last.elapsed();
        last = Instant::now();
        // Whoever slept longer was not listening.
        let counted = passed.min(step * 4);
        hub.lans[lan]
            .quiet
            .fetch_add(counted.as_millis() as u64, Ordering::AcqRel);
        if lan == 0 {
            hub.listened
                .fetch_add(counted.as_millis() as u64, Ordering::AcqRel);
        }
    }
}

async fn dial(hub: Arc<Hub>, lan: usize, tls: TlsConnector) {
    loop {
        if let Err(error) = dial_once(&hub, lan, &tls).await {
            note(&hub, lan, &error);
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn dial_once(hub: &Arc<Hub>, lan: usize, tls: &TlsConnector) -> Result<()> {
    let there = hub.cluster.lans[lan].there;
    let tcp = knock::connect(hub, lan)
        .await
        .with_context(|| format!("no connection to {there}"))?;
    tcp.set_nodelay(true)?;
    let name = SERVER_NAME.try_into().context("the name is one")?;
    let stream = timeout(STEP, tls.connect(name, tcp))
        .await
        .with_context(|| format!("{there} did not complete the handshake"))?
        .with_context(|| format!("{there} is not the peer of this node"))?;
    talk(hub, lan, stream).await
}

async fn listen(hub: Arc<Hub>, lan: usize, tls: TlsAcceptor) {
    let here = hub.cluster.lans[lan].here;
    let listener = loop {
        // The address may come later, with its network.
        match TcpListener::bind(here).await {
            Ok(listener) => break listener,
            Err(error) => {
                let error = anyhow::Error::from(error).context(format!("cannot listen on {here}"));
                note(&hub, lan, &error);
            }
        }
        tokio::time::sleep(RETRY).await;
    };
    hub.lans[lan].open.store(true, Ordering::Release);
    let mut current: Option<tokio::task::JoinHandle<()>> = None;
    let (tell, mut shaken) = tokio::sync::mpsc::channel(1);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((tcp, from)) => {
                    // A stranger costs a task for a moment, and replaces nobody.
                    let (tls, tell, hub) = (tls.clone(), tell.clone(), hub.clone());
                    tokio::spawn(async move {
                        let _ = tcp.set_nodelay(true);
                        match timeout(STEP, shake(&tls, tcp)).await {
                            Ok(Ok(stream)) => drop(tell.send(stream).await),
                            Ok(Err(error)) => note(&hub, lan, &error.context(format!(
                                "{from} is not the peer of this node"
                            ))),
                            Err(_) => tracing::debug!(%from, "a handshake was not completed in time"),
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(RETRY).await;
                }
            },
            Some(stream) = shaken.recv() => {
                if let Some(old) = current.take() {
                    old.abort();
                }
                let hub = hub.clone();
                current = Some(tokio::spawn(async move {
                    if let Err(error) = talk(&hub, lan, stream).await {
                        note(&hub, lan, &error);
                    }
                }));
            }
        }
    }
}

async fn shake(
    tls: &TlsAcceptor,
    tcp: TcpStream,
) -> Result<tokio_rustls::server::TlsStream<TcpStream>> {
    Ok(tls.accept(tcp).await?)
}

/// Notes what is wrong with a network, and says it once.
fn note(hub: &Hub, lan: usize, error: &anyhow::Error) {
    let text = format!("{error:#}");
    let mut trouble = lock(&hub.lans[lan].trouble);
    if trouble.as_deref() != Some(&text) {
        tracing::warn!(
            lan = hub.cluster.lans[lan].name,
            error = text,
            "no line to the peer"
        );
        *trouble = Some(text);
    }
}

/// Says and hears until the connection ends or is silent.
async fn talk<S: AsyncRead + AsyncWrite>(hub: &Arc<Hub>, lan: usize, stream: S) -> Result<()> {
    let (mut rx, mut tx) = tokio::io::split(stream);
    let hello = Frame::Hello {
        version: VERSION,
        node: hub.cluster.node.clone(),
        run: hub.run,
        listens: hub.lans[lan].open.load(Ordering::Acquire),
        cluster: Some(hub.cluster.meaning.clone()),
    };
    send(&mut tx, &hello).await?;
    let first = timeout(STEP, receive(&mut rx)).await;
    let (run, listens) = match first.context("the peer said no hello")?? {
        Frame::Hello {
            version,
            node,
            run,
            listens,
            cluster,
        } => {
            ensure!(
                version == VERSION,
                "the peer speaks version {version} and this node {VERSION}: install the same release"
            );
            ensure!(
                node == hub.cluster.peer,
                "the peer calls itself {node:?} and cluster.xml {:?}: it differs on the two nodes",
                hub.cluster.peer
            );
            hub.compares(cluster.as_ref());
            (run, listens)
        }
        _ => bail!("the peer's first frame was no hello"),
    };
    let name = &hub.cluster.lans[lan].name;
    tracing::info!(lan = name, "the peer is heard");
    *lock(&hub.lans[lan].trouble) = None;
    let _talks = hub.talks(lan, listens);
    hub.begins(run);
    let mut heard = Instant::now();
    let mut changed = hub.changed.subscribe();
    let mut sent = 0;
    let mut beat = hub.pulse.subscribe();
    let mut every = *beat.borrow_and_update();
    let mut pulse = pulses(every);
    // Most pulses say what the last one said: such a one is not written, nor read, again.
    let (mut works, mut own_pulse) = (Vec::new(), Vec::new());
    let mut peer_pulse: Option<(Vec<u8>, Vec<String>)> = None;
    // Reading is never broken off in the middle of a frame.
    let (tell, mut bodies) = tokio::sync::mpsc::channel(16);
    let read = async move {
        loop {
            let body = receive_body(&mut rx).await;
            let failed = body.is_err();
            if tell.send(body).await.is_err() || failed {
                return std::future::pending::<()>().await;
            }
        }
    };
    tokio::pin!(read);
    loop {
        for (module, number, view) in hub.newer(sent) {
            let name = module.clone();
            let view = Box::new(view);
            match encoded(&Frame::View {
                module,
                number,
                view,
            }) {
                Ok(bytes) => write(&mut tx, &bytes).await?,
                // The other modules have done nothing.
                Err(error) => tracing::error!(module = name, "the peer is not told: {error:#}"),
            }
            sent = number;
        }
        tokio::select! {
            () = &mut read => {}
            body = bodies.recv() => {
                let body = body.context("the reader ended")??;
                let again = peer_pulse.as_ref().is_some_and(|(pulse, _)| *pulse == body);
                let frame = match again {
                    true => None,
                    false => Some(decoded(&body)?),
                };
                heard = Instant::now();
                hub.heard(lan);
                match frame {
                    None => {}
                    Some(Frame::Pulse { mut works, every_ms }) => {
                        hub.peer_beats(every_ms);
                        works.sort_unstable();
                        peer_pulse = Some((body, works));
                    }
                    Some(Frame::View { module, number, view }) => {
                        hub.learn(module, run, number, *view);
                        continue;
                    }
                    Some(Frame::Hello { .. }) => bail!("the peer said hello twice"),
                }
                if let Some((_, works)) = &peer_pulse {
                    hub.learn_works(works);
                }
            }
            _ = pulse.tick() => {
                ensure!(heard.elapsed() < hub.stale(), SILENT);
                if hub.working(&mut works) || own_pulse.is_empty() {
                    let every_ms = every.as_millis() as u64;
                    own_pulse = encoded(&Frame::Pulse { works: works.clone(), every_ms })?;
                }
                write(&mut tx, &own_pulse).await?;
            }
            // The sender lives as long as the hub.
            Ok(()) = beat.changed() => {
                every = *beat.borrow_and_update();
                pulse = pulses(every);
                own_pulse.clear();
            }
            // Where this node's own pulse is a long one.
            () = tokio::time::sleep_until(heard + hub.stale()) => bail!(SILENT),
            _ = changed.changed() => {}
        }
    }
}

/// What is said of a line that is given up.
const SILENT: &str = "the peer is silent";

/// The first of the pulses is due at once. After a pause those that were due meanwhile are not made
/// up for.
fn pulses(every: Duration) -> tokio::time::Interval {
    let mut pulses = tokio::time::interval(every);
    pulses.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    pulses
}

/// A frame with its length.
fn encoded(frame: &Frame) -> Result<Vec<u8>> {
    let body = serde_json::to_vec(frame)?;
    ensure!(
        body.len() <= MAX_FRAME,
        "a frame of {} bytes is too long",
        body.len()
    );
    let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
    bytes.extend(body);
    Ok(bytes)
}

async fn send(tx: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> Result<()> {
    write(tx, &encoded(frame)?).await
}

async fn write(tx: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<()> {
    let write = async {
        tx.write_all(bytes).await?;
        tx.flush().await
    };
    timeout(STEP, write)
        .await
        .context("the peer takes nothing")?
        .context("the line to the peer broke")
}

async fn receive(rx: &mut (impl AsyncRead + Unpin)) -> Result<Frame> {
    decoded(&receive_body(rx).await?)
}

fn decoded(body: &[u8]) -> Result<Frame> {
    serde_json::from_slice(body).context("the peer sends what is no frame")
}

async fn receive_body(rx: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>> {
    let mut length = [0; 4];
    rx.read_exact(&mut length)
        .await
        .context("the peer's daemon closed the line")?;
    let length = u32::from_le_bytes(length) as usize;
    ensure!(
        length <= MAX_FRAME,
        "the peer sends a frame of {length} bytes"
    );
    let mut body = vec![0; length];
    rx.read_exact(&mut body)
        .await
        .context("the peer's daemon closed the line")?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ResourceState;
    use crate::runner::{MAX_NAME, MAX_RESOURCES};

    async fn read(bytes: &[u8]) -> Result<Frame> {
        receive(&mut &bytes[..]).await
    }

    #[test]
    fn a_view_with_all_that_it_may_have_fits_in_a_frame() {
        use twinfold_protocol::automaton::{State, Status, View};
        use twinfold_protocol::handshake::{CopyState, Role};
        use twinfold_protocol::ids::{Generation, ModuleId, SessionId};
        let longest = u128::MAX;
        let all = vec![Generation(longest); twinfold_protocol::limits::MAX_HISTORY];
        let view = View {
            state: State::Second,
            status: Status::Transient,
            copy: CopyState {
                module: ModuleId(longest),
                current: Generation(longest),
                bases: all.clone(),
                history: all,
                ..CopyState::default()
            },
            was: Some(Role::Secondary),
            serves: false,
            session: Some(SessionId(longest)),
            asks: Some(Generation(longest)),
            yielded: Some(Generation(longest)),
            willing: false,
            swaps: false,
            rules: longest,
        };
        // Each of these takes six bytes.
        let reason = "\u{1}".repeat(1 << 20);
        let mut view = WireView::new(&view, reason.clone(), Some("f".repeat(64)));
        view.waits(Status::Transient, &reason);
        view.has_hardware(&[[0xff; 6]; crate::net::vips::MAX_HARDWARE]);
        view.resources = (0..MAX_RESOURCES)
            .map(|n| (format!("{n:0>MAX_NAME$}"), ResourceState::Unknown))
            .collect();
        let module = "m".repeat(twinfold_protocol::limits::MAX_MODULE_NAME);
        let frame = Frame::View {
            module,
            number: u64::MAX,
            view: Box::new(view),
        };
        let length = encoded(&frame).unwrap().len();
        assert!(length > MAX_FRAME / 2, "{length}: it has nothing in it");
    }

    #[tokio::test]
    async fn a_hello_of_an_earlier_release_says_nothing_of_callers() {
        let text = br#"{"hello":{"version":1,"node":"a","run":7}}"#;
        let mut bytes = (text.len() as u32).to_le_bytes().to_vec();
        bytes.extend(text);
        let read = read(&bytes).await;
        assert!(
            matches!(
                &read,
                Ok(Frame::Hello {
                    run: 7,
                    listens: false,
                    cluster: None,
                    ..
                })
            ),
            "{read:?}"
        );
    }

    #[tokio::test]
    async fn a_pulse_of_an_earlier_release_comes_as_often_as_it_did() {
        let text = br#"{"pulse":{"works":["vm"]}}"#;
        let mut bytes = (text.len() as u32).to_le_bytes().to_vec();
        bytes.extend(text);
        let read = read(&bytes).await;
        assert!(
            matches!(&read, Ok(Frame::Pulse { every_ms: 200, .. })),
            "{read:?}"
        );
    }

    /// The next frame of a node that talks.
    async fn said(line: &mut tokio::io::DuplexStream) -> Frame {
        let frame = timeout(Duration::from_secs(60), receive(line));
        frame.await.expect("it says nothing").unwrap()
    }

    #[tokio::test]
    async fn another_pulse_is_told_and_kept_on_a_line_that_stands() {
        let hub = crate::peer::tests::hub();
        let (here, mut there) = tokio::io::duplex(1 << 20);
        let talks = tokio::spawn({
            let hub = hub.clone();
            async move { talk(&hub, 0, here).await }
        });
        let hello = Frame::Hello {
            version: VERSION,
            node: "b".into(),
            run: 1,
            listens: false,
            cluster: None,
        };
        send(&mut there, &hello).await.unwrap();
        assert!(matches!(said(&mut there).await, Frame::Hello { .. }));
        let Frame::Pulse { every_ms, .. } = said(&mut there).await else {
            panic!("it does not beat");
        };
        assert_eq!(every_ms, 200);
        let works = Vec::new();
        let every_ms = 7000;
        let pulse = Frame::Pulse { works, every_ms };
        send(&mut there, &pulse).await.unwrap();
        hub.beats("vm", Some(Duration::from_millis(30)));
        let mut counted = 0;
        while counted < 5 {
            if let Frame::Pulse { every_ms: 30, .. } = said(&mut there).await {
                counted += 1;
            }
        }
        assert_eq!(hub.peer_pulse(), Duration::from_millis(7000));
        drop(there);
        let ended = timeout(Duration::from_secs(60), talks).await.unwrap();
        assert!(ended.unwrap().is_err());
    }

    #[tokio::test]
    async fn what_cluster_xml_says_is_compared_by_each_hello_and_the_line_stands_anyhow() {
        let hub = crate::peer::tests::hub();
        let (to, looks) = std::sync::mpsc::channel();
        hub.follow("vm", to);
        let other: Meaning = serde_json::from_str(r#"{"all":"x","lans":{"fast":"y"}}"#).unwrap();
        let same = hub.cluster.meaning.clone();
        for (cluster, differs) in [
            (Some(other.clone()), true),
            (Some(same.clone()), false),
            (Some(other), true),
            // An earlier release was installed there.
            (None, false),
        ] {
            let (here, mut there) = tokio::io::duplex(1 << 20);
            let talks = tokio::spawn({
                let hub = hub.clone();
                async move { talk(&hub, 0, here).await }
            });
            let hello = Frame::Hello {
                version: VERSION,
                node: "b".into(),
                run: 1,
                listens: false,
                cluster,
            };
            send(&mut there, &hello).await.unwrap();
            let Frame::Hello { cluster, .. } = said(&mut there).await else {
                panic!("it says no hello");
            };
            assert_eq!(cluster.as_ref(), Some(&same));
            assert!(matches!(said(&mut there).await, Frame::Pulse { .. }));
            assert_eq!(hub.differs().is_some(), differs);
            assert!(
                looks
                    .try_iter()
                    .any(|i| matches!(i, crate::runner::Input::Look))
            );
            drop(there);
            let ended = timeout(Duration::from_secs(60), talks).await.unwrap();
            assert!(ended.unwrap().is_err());
        }
    }

    #[tokio::test]
    async fn frames_are_bounded_before_they_are_read() {
        let mut bytes = Vec::new();
        let works = vec!["vm".to_owned()];
        let every_ms = 500;
        let pulse = Frame::Pulse { works, every_ms };
        send(&mut bytes, &pulse).await.unwrap();
        let told = read(&bytes).await;
        assert!(
            matches!(&told, Ok(Frame::Pulse { works, every_ms: 500 }) if works[..] == ["vm"]),
            "{told:?}"
        );
        assert!(read(&bytes[..bytes.len() - 1]).await.is_err());
        let huge = read(&u32::MAX.to_le_bytes()).await.unwrap_err();
        assert!(huge.to_string().contains("4294967295"), "{huge}");
        assert!(read(b"\x02\0\0\0{}").await.is_err());
    }
}
