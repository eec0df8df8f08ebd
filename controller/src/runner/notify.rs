//! Who is told what happens: commands, one event after the other, and readers of mail. Both beside
//! the module, which never waits for them.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Runner;
use super::events::EventLine;
use crate::config::{Mail, Way};
use crate::scripts::Scripts;
use crate::{log, mail};

/// Events that wait to be told, at most, by command and by mail: what comes then is not told.
const MAX_WAITING: usize = 100;

/// What happens within this time is one mail: a failover is a handful of events.
const TOGETHER: Duration = Duration::from_secs(1);

/// How long a mail that was not taken waits until it is tried again. What is to be told may be
/// just what keeps the server from being reached.
const AGAIN: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(15)];

/// Longest subject of a mail, in characters.
const MAX_SUBJECT: usize = 120;

/// One event for one command.
#[derive(Debug)]
struct Note {
    command: String,
    scripts: Scripts,
    kind: String,
    text: String,
    most: Duration,
}

/// One event for the readers of one mail.
#[derive(Debug)]
struct Letter {
    mail: Mail,
    event: EventLine,
    most: Duration,
}

/// Where events go that somebody is to be told of.
#[derive(Debug)]
pub(super) struct Told {
    notes: SyncSender<Note>,
    letters: SyncSender<Letter>,
}

/// Starts the threads that tell.
pub(super) fn start(module: &str) -> Result<Told> {
    let (notes, told) = sync_channel::<Note>(MAX_WAITING);
    let (letters, sent) = sync_channel::<Letter>(MAX_WAITING);
    let thread = |name: &str| std::thread::Builder::new().name(name.into());
    thread("notify")
        .spawn(move || told.into_iter().for_each(run))
        .context("cannot start the thread of the notification commands")?;
    let module = module.to_owned();
    thread("mail")
        .spawn(move || post(&module, &sent))
        .context("cannot start the thread that sends mail")?;
    Ok(Told { notes, letters })
}

fn run(note: Note) {
    let command = Path::new(&note.command);
    let told = note
        .scripts
        .tell(command, [&note.kind, &note.text], note.most);
    if let Err(error) = told {
        let error = format!("{error:#}");
        tracing::warn!(error, command = note.command, "nobody was told");
    }
}

/// Sends mails until the module is no more.
fn post(module: &str, letters: &Receiver<Letter>) {
    while let Ok(first) = letters.recv() {
        // Those who are written to, each with what happened.
        let mut all = vec![vec![first]];
        let until = Instant::now() + TOGETHER;
        for _ in 1..MAX_WAITING {
            let left = until.saturating_duration_since(Instant::now());
            let letter = match letters.recv_timeout(left) {
                Ok(letter) => letter,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            };
            match all.iter_mut().find(|some| some[0].mail == letter.mail) {
                Some(same) => same.push(letter),
                None => all.push(vec![letter]),
            }
        }
        for letters in all {
            if let Err(error) = deliver(&letters) {
                let error = format!("{error:#}");
                tracing::warn!(error, module, "nobody was told by mail");
            }
        }
    }
}

/// Sends one mail with these events, of the same readers.
fn deliver(letters: &[Letter]) -> Result<()> {
    let Some(last) = letters.last() else {
        return Ok(());
    };
    let subject = subject(&last.event, letters.len() - 1);
    let mut body = String::new();
    for letter in letters {
        body.push_str(&log::line(&letter.event)?);
        body.push_str("\r\n");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut again = AGAIN.iter();
    let sent = loop {
        let sent = runtime.block_on(mail::send(&last.mail, &subject, &body, last.most));
        let Err(error) = sent else { break Ok(()) };
        match again.next().filter(|_| !mail::is_final(&error)) {
            Some(pause) => {
                let error = format!("{error:#}");
                tracing::warn!(error, module = last.event.module, "a mail is tried again");
                std::thread::sleep(*pause);
            }
            None => break Err(error),
        }
    };
    // A name service that does not answer is not waited for.
    runtime.shutdown_background();
    sent
}

/// One line that says what happened last.
fn subject(event: &EventLine, more: usize) -> String {
    let (module, node) = (&event.module, &event.node);
    let line = format!(
        "twinfold: {module} on {node}: {}: {}",
        event.kind, event.text
    );
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let mut subject: String = line.chars().map(plain).take(MAX_SUBJECT).collect();
    if more > 0 {
        subject.push_str(&format!(" (and {more} more)"));
    }
    subject
}

impl Runner {
    /// Passes an event on to those who want its kind.
    pub(super) fn notify(&self, event: &EventLine) {
        let (kind, text) = (&event.kind, &event.text);
        for notify in &self.setup.config.notify {
            if !notify.events.iter().any(|event| event == kind) {
                continue;
            }
            let full = match &notify.way {
                Way::Command(command) => {
                    let note = Note {
                        command: command.clone(),
                        scripts: self.setup.scripts.clone(),
                        kind: kind.clone(),
                        text: text.clone(),
                        most: notify.timeout,
                    };
                    matches!(self.notes.notes.try_send(note), Err(TrySendError::Full(_)))
                }
                Way::Mail(mail) => {
                    let letter = Letter {
                        mail: mail.clone(),
                        event: event.clone(),
                        most: notify.timeout,
                    };
                    let sent = self.notes.letters.try_send(letter);
                    matches!(sent, Err(TrySendError::Full(_)))
                }
            };
            if full {
                tracing::warn!(kind, text, "too much happens: this is not told to anybody");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_one_short_line() {
        let mut event = EventLine {
            time: 0,
            node: "a".into(),
            module: "vm".into(),
            kind: "error".into(),
            text: "it failed\r\nBcc: everybody@example.org".into(),
        };
        let line = subject(&event, 2);
        assert_eq!(
            line,
            "twinfold: vm on a: error: it failed  Bcc: everybody@example.org (and 2 more)"
        );
        event.text = "ü".repeat(10_000);
        assert_eq!(subject(&event, 0).chars().count(), MAX_SUBJECT);
    }
}
