//! Mail, by SMTP with STARTTLS: nothing is said to a server, and no password, before it has shown
//! a certificate that is believed.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context as Wakes, Poll, ready};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lettre::message::header::ContentType;
use lettre::message::{Mailbox, Message};
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{
    AsyncSmtpConnection, AsyncTokioStream, Certificate, CertificateStore, TlsParameters,
};
use lettre::transport::smtp::extension::ClientId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::Mail;

/// Bytes that a server may say, at most, TLS and all: a few certificates and a dozen lines.
const MAX_SAID: usize = 64 << 10;

/// Longest password, in bytes.
const MAX_PASSWORD: usize = 1024;

/// The line to a server. Bytes are taken from it one by one, so that what came before TLS, and
/// could be anybody's, is never left over to be read as if the server had said it in TLS.
#[derive(Debug)]
struct Line {
    stream: TcpStream,
    left: usize,
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        wakes: &mut Wakes<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.left == 0 {
            return Poll::Ready(Err(std::io::Error::other("the server says too much")));
        }
        if into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut byte = [0];
        let mut one = ReadBuf::new(&mut byte);
        ready!(Pin::new(&mut self.stream).poll_read(wakes, &mut one))?;
        self.left -= one.filled().len();
        into.put_slice(one.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        wakes: &mut Wakes<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(wakes, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, wakes: &mut Wakes<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(wakes)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, wakes: &mut Wakes<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(wakes)
    }
}

impl AsyncTokioStream for Line {
    fn peer_addr(&self) -> std::io::Result<SocketAddr> {
        self.stream.peer_addr()
    }
}

/// Who is believed to be the server.
fn tls(mail: &Mail) -> Result<TlsParameters> {
    let mut parameters = TlsParameters::builder(mail.server.clone());
    if let Some(ca) = &mail.ca {
        let believed = std::fs::read(ca).with_context(|| format!("cannot read {ca}"))?;
        let believed = Certificate::from_pem(&believed)
            .with_context(|| format!("{ca} holds no certificates"))?;
        parameters = parameters
            .certificate_store(CertificateStore::None)
            .add_root_certificate(believed);
    }
    Ok(parameters.build_rustls()?)
}

/// Who logs in, if somebody does.
fn credentials(mail: &Mail) -> Result<Option<Credentials>> {
    let (Some(user), Some(file)) = (&mail.user, &mail.password_file) else {
        return Ok(None);
    };
    let password = std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
    let password = password.trim_end_matches(['\r', '\n']);
    if password.is_empty() || password.len() > MAX_PASSWORD {
        bail!("{file} does not hold a password");
    }
    Ok(Some(Credentials::new(user.clone(), password.to_owned())))
}

/// The name of this machine, for the server's log.
fn own_name() -> ClientId {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    let usual = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    match !name.is_empty() && name.chars().all(usual) {
        true => ClientId::Domain(name.into_owned()),
        false => ClientId::default(),
    }
}

/// Sends a mail. Takes `limit`, at most; what the subject says is one line.
pub(crate) async fn send(mail: &Mail, subject: &str, body: &str, limit: Duration) -> Result<()> {
    let mut message = Message::builder()
        .from(Mailbox::new(None, mail.from.clone()))
        .date_now()
        .subject(subject)
        .header(ContentType::TEXT_PLAIN)
        .message_id(None);
    for to in &mail.to {
        message = message.to(Mailbox::new(None, to.clone()));
    }
    let message = message.body(body.to_owned())?;
    let (tls, credentials) = (tls(mail)?, credentials(mail)?);
    let whole = async {
        let stream = TcpStream::connect((mail.server.as_str(), mail.port));
        let line = Line {
            stream: stream.await.context("it cannot be reached")?,
            left: MAX_SAID,
        };
        let hello = own_name();
        let mut server = AsyncSmtpConnection::connect_with_transport(Box::new(line), &hello)
            .await
            .context("it does not speak SMTP")?;
        let starts = server.starttls(tls, &hello);
        starts.await.context("no TLS with it, and so no mail")?;
        if let Some(credentials) = credentials {
            let known = [Mechanism::Plain, Mechanism::Login];
            let logs_in = server.auth(&known, &credentials).await;
            logs_in.context("it does not let the user in")?;
        }
        let taken = server.send(message.envelope(), &message.formatted()).await;
        taken.context("it does not take the mail")?;
        // The mail is its own by now, whatever it says.
        let _ = server.quit().await;
        Ok(())
    };
    let sent = timeout(limit, whole).await;
    let sent = sent.unwrap_or_else(|_| bail!("it did not take the mail in {limit:?}"));
    sent.with_context(|| format!("mail server {}:{}", mail.server, mail.port))
}

/// Whether to try again is of no use.
pub(crate) fn is_final(error: &anyhow::Error) -> bool {
    let said = error.downcast_ref::<lettre::transport::smtp::Error>();
    said.is_some_and(|said| said.is_permanent() || said.is_client())
}
