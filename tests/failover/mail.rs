//! Mail about what happens, and servers that it is not given to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use harness::{Network, wait_until};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::PATIENCE;
use crate::stage::{Stage, write};

/// Where the server of the tests is, as machine A sees it.
const SERVER: &str = "10.77.0.1";
const PORT: u16 = 2525;

const PASSWORD: &str = "correct horse";

/// What a server of these tests does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Habit {
    /// What a mail server does.
    Sound,
    /// It knows no STARTTLS.
    Clear,
    /// It says before TLS what only counts in it.
    Injects,
    /// It is reached, and says nothing.
    Hangs,
    /// It says something without end, and never a whole line.
    Babbles,
}

/// What somebody said to the server: in clear, and in TLS; and the mail itself.
#[derive(Debug, Default)]
struct Heard {
    clear: Vec<String>,
    secret: Vec<String>,
    mail: String,
}

/// A server in the network of machine A; who is believed to have signed its certificate is in
/// the file.
fn server(network: &Network, habit: Habit, ca: &Path) -> Receiver<Heard> {
    let key = KeyPair::generate().unwrap();
    let parameters = CertificateParams::new([SERVER.to_owned()]).unwrap();
    let certificate = parameters.self_signed(&key).unwrap();
    write(ca, &certificate.pem());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from(certificate.der().to_vec())],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let tls = Arc::new(tls);
    let place = network.namespace(0).unwrap();
    let listener = harness::inside(&place, || TcpListener::bind((SERVER, PORT)));
    let listener = listener.unwrap().unwrap();
    let (tell, heard) = channel();
    // It ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (tls, tell) = (tls.clone(), tell.clone());
            std::thread::spawn(move || serve(stream, habit, &tls, &tell));
        }
    });
    heard
}

fn serve(mut stream: TcpStream, habit: Habit, tls: &Arc<ServerConfig>, tell: &Sender<Heard>) {
    let mut heard = Heard::default();
    match habit {
        Habit::Hangs => {
            // Until who is at the other end gives it up.
            let _ = stream.read_to_string(&mut heard.mail);
        }
        Habit::Babbles => while stream.write_all(&[b'2'; 4096]).is_ok() {},
        Habit::Sound | Habit::Clear | Habit::Injects => {
            if talk(&mut stream, habit, &mut heard.clear, None) {
                let session = ServerConnection::new(tls.clone()).unwrap();
                let mut inside = StreamOwned::new(session, stream);
                talk(&mut inside, habit, &mut heard.secret, Some(&mut heard.mail));
            }
        }
    }
    let _ = tell.send(heard);
}

/// One side of SMTP: notes what is said; true if TLS begins now. The mail is taken in TLS only.
fn talk(
    stream: &mut (impl Read + Write),
    habit: Habit,
    heard: &mut Vec<String>,
    mut mail: Option<&mut String>,
) -> bool {
    let inside = mail.is_some();
    if !inside && stream.write_all(b"220 mail.example.org ESMTP\r\n").is_err() {
        return false;
    }
    loop {
        // Byte by byte: what follows may be TLS.
        let mut line = String::new();
        let mut byte = [0];
        while !line.ends_with("\r\n") {
            match stream.read(&mut byte) {
                Ok(1) => line.push(byte[0].into()),
                _ => return false,
            }
        }
        let line = line.trim_end().to_owned();
        heard.push(line.clone());
        let answer = match line.split(' ').next().unwrap() {
            "EHLO" if inside => "250-mail.example.org\r\n250 AUTH PLAIN\r\n",
            "EHLO" if habit == Habit::Clear => "250-mail.example.org\r\n250 AUTH PLAIN\r\n",
            "EHLO" => "250-mail.example.org\r\n250 STARTTLS\r\n",
            "STARTTLS" if habit == Habit::Injects => "220 go on\r\n250 AUTH LOGIN\r\n",
            "STARTTLS" => "220 go on\r\n",
            "AUTH" => "235 welcome\r\n",
            "DATA" => "354 tell\r\n",
            "QUIT" => "221 bye\r\n",
            _ => "250 well\r\n",
        };
        if stream.write_all(answer.as_bytes()).is_err() {
            return false;
        }
        match line.as_str() {
            "STARTTLS" => return true,
            "QUIT" => return false,
            "DATA" => {
                let Some(mail) = &mut mail else { return false };
                for line in BufReader::new(&mut *stream).lines().map_while(Result::ok) {
                    if line == "." {
                        break;
                    }
                    mail.push_str(&line);
                    mail.push('\n');
                }
                if stream.write_all(b"250 taken\r\n").is_err() {
                    return false;
                }
            }
            _ => {}
        }
    }
}

/// Two machines with a module that is to be told by mail, of which A is to run it.
fn stage(events: &str, timeout: &str) -> Stage {
    Stage::with("isolation=\"wait\"", |home| {
        let (ca, password) = (home.join("mail.pem"), home.join("mail.password"));
        write(&password, &format!("{PASSWORD}\n"));
        format!(
            "<notify mail=\"ops@example.org, night@example.org\" from=\"twinfold@example.org\" \
             server=\"{SERVER}\" port=\"{PORT}\" user=\"node\" passwordfile=\"{}\" ca=\"{}\" \
             events=\"{events}\" timeout=\"{timeout}\"/>",
            password.display(),
            ca.display()
        )
    })
}

fn begin(habit: Habit, events: &str, timeout: &str) -> (Stage, Receiver<Heard>) {
    let stage = stage(events, timeout);
    let heard = server(&stage.network, habit, &stage.a.home().join("mail.pem"));
    (stage.run(), heard)
}

/// What the daemon of A says when a mail is not sent.
fn complains(stage: &Stage, what: &str, of: &str) {
    let log = || std::fs::read_to_string(stage.a.home().join("daemon.log")).unwrap_or_default();
    let said = || log().lines().any(|l| l.contains(what) && l.contains(of));
    assert!(wait_until(PATIENCE, said), "{}", log());
}

#[test]
fn a_mail_arrives_in_tls_with_what_happened_and_a_failed_one_stops_nothing() {
    let (stage, heard) = begin(Habit::Sound, "state", "20s");
    let mut told = String::new();
    let mut subjects = Vec::new();
    while !told.contains("a vm state: PRIM Ready: serving") {
        let heard = heard.recv_timeout(PATIENCE).unwrap();
        assert!(
            heard
                .clear
                .iter()
                .all(|l| l.starts_with("EHLO") || l == "STARTTLS")
        );
        let says = |what: &str| heard.secret.iter().any(|l| l == what);
        assert!(says("MAIL FROM:<twinfold@example.org>"), "{heard:?}");
        assert!(says("RCPT TO:<ops@example.org>"), "{heard:?}");
        assert!(says("RCPT TO:<night@example.org>"), "{heard:?}");
        // "\0node\0correct horse" in base64.
        assert!(says("AUTH PLAIN AG5vZGUAY29ycmVjdCBob3JzZQ=="), "{heard:?}");
        let subject = heard.mail.lines().find(|l| l.starts_with("Subject: "));
        subjects.push(subject.unwrap().to_owned());
        // A long line is told in several, each but the last with this at its end.
        let lines = heard.mail.replace("\r\n", "\n").replace("=\n", "");
        told.push_str(&lines);
    }
    let ours = "Subject: twinfold: vm on a: state: ";
    assert!(subjects.iter().all(|s| s.starts_with(ours)), "{subjects:?}");
    // Each event is told once, in order.
    let log = stage.a.must(&["log", "-m", "vm"]);
    let is_state = |line: &&str| line.contains(" a vm state: ");
    let mut rest = told.as_str();
    for line in log.lines().filter(is_state) {
        let (_, after) = rest
            .split_once(line)
            .unwrap_or_else(|| panic!("{line}: {told}"));
        assert!(!after.contains(line), "twice: {line}");
        rest = after;
        if line.ends_with("PRIM Ready: serving") {
            break;
        }
    }
    // What the server is told is for nobody else.
    for found in [told.as_str(), &log, &stage.a.log()] {
        assert!(!found.contains(PASSWORD) && !found.contains("AG5vZGU"));
    }
    stage.a.works();
}

#[test]
fn nothing_but_a_greeting_is_said_to_a_server_without_tls() {
    let (stage, heard) = begin(Habit::Clear, "state", "20s");
    let heard = heard.recv_timeout(PATIENCE).unwrap();
    assert!(heard.secret.is_empty() && heard.mail.is_empty());
    let greets = |l: &String| l.starts_with("EHLO ") || l == "QUIT";
    assert!(heard.clear.iter().all(greets), "{heard:?}");
    complains(
        &stage,
        "nobody was told by mail",
        "STARTTLS is not supported",
    );
    stage.a.works();
}

#[test]
fn no_password_is_given_to_a_server_that_cannot_show_who_it_is() {
    let (stage, heard) = begin(Habit::Sound, "state", "20s");
    // No mail is on its way behind the one that tells of this.
    let serves = |heard: &Heard| heard.mail.contains("PRIM Ready: serving");
    while !serves(&heard.recv_timeout(PATIENCE).unwrap()) {}
    // Another one is believed from now on.
    let ca = stage.a.home().join("other.pem");
    let key = KeyPair::generate().unwrap();
    let parameters = CertificateParams::new([SERVER.to_owned()]).unwrap();
    write(&ca, &parameters.self_signed(&key).unwrap().pem());
    std::fs::rename(&ca, stage.a.home().join("mail.pem")).unwrap();
    while heard.try_recv().is_ok() {}
    stage.a.must(&["stopstart", "-m", "vm"]);
    complains(&stage, "a mail is tried again", "invalid peer certificate");
    let clear = heard.recv_timeout(PATIENCE).unwrap();
    assert!(
        clear.secret.is_empty() && clear.mail.is_empty(),
        "{clear:?}"
    );
}

#[test]
fn what_is_said_before_tls_does_not_count_in_it() {
    let (stage, heard) = begin(Habit::Injects, "state", "20s");
    let heard = heard.recv_timeout(PATIENCE).unwrap();
    assert!(
        heard.secret.is_empty() && heard.mail.is_empty(),
        "{heard:?}"
    );
    complains(&stage, "a mail is tried again", "no TLS with it");
    stage.a.works();
}

/// A server that never takes the mail is tried three times, and the module does not notice.
fn is_given_up(habit: Habit, timeout: &str, why: &str) {
    let (stage, heard) = begin(habit, "command", timeout);
    complains(&stage, "a mail is tried again", why);
    stage.a.works();
    complains(&stage, "nobody was told by mail", why);
    for _ in 0..3 {
        heard.recv_timeout(PATIENCE).unwrap();
    }
    assert!(heard.try_recv().is_err());
    stage.assert_identical();
}

#[test]
fn a_mail_server_that_hangs_is_given_up() {
    is_given_up(Habit::Hangs, "1s", "did not take the mail in 1s");
}

#[test]
fn a_mail_server_that_babbles_is_given_up() {
    is_given_up(Habit::Babbles, "20s", "says too much");
}
