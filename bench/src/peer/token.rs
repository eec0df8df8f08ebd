//! What one machine prints and the other one is given, so that each knows the other.
//!
//! `tfb1-` and in hexadecimal digits: the secret (16 bytes), the identity of the machine that
//! printed it (32), a check (4). The identity tells who is talked to before anything is said;
//! the secret tells that machine that it is talked to by whom its operator meant.

use anyhow::{Context, Result};
use fs_driver::link::Fingerprint;
use twinfold_controller::token;

/// Bytes of the secret: nobody guesses it.
const SECRET: usize = 16;

/// Longest text that is looked at.
const MAX_TEXT: usize = 256;

/// A token.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token {
    secret: [u8; SECRET],
    pub(super) identity: Fingerprint,
}

/// The secret is shown to nobody.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token({})", self.identity)
    }
}

const PREFIX: &str = "tfb1-";

impl Token {
    /// A new one, of the machine with this identity.
    pub(super) fn new(identity: Fingerprint) -> Token {
        Token {
            secret: rand::random(),
            identity,
        }
    }

    pub(super) fn show(&self) -> String {
        let mut bytes = self.secret.to_vec();
        bytes.extend(self.identity.to_bytes());
        token::show(PREFIX, &bytes)
    }

    /// Reads what [`Token::show`] wrote; a slip is noticed.
    pub(crate) fn parse(text: &str) -> Result<Token> {
        let content = token::parse(PREFIX, text, MAX_TEXT, "`twinfold-bench serve`")?;
        let slip = "the token is not complete";
        let (secret, rest) = content.split_first_chunk::<SECRET>().context(slip)?;
        let identity: [u8; 32] = rest.try_into().context(slip)?;
        Ok(Token {
            secret: *secret,
            identity: Fingerprint::from_bytes(identity),
        })
    }

    /// What is said to the machine that printed it.
    pub(super) fn secret(&self) -> String {
        token::hex(&self.secret)
    }

    /// Whether somebody said its secret. Compared by hashes: the time it takes tells nothing.
    pub(super) fn knows(&self, secret: &str) -> bool {
        blake3::hash(secret.as_bytes()) == blake3::hash(self.secret().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_shown_and_every_slip_is_noticed() {
        let token = Token::new(Fingerprint::of(b"a"));
        let text = token.show();
        let read = Token::parse(&text).unwrap();
        assert!(read == token && token.knows(&read.secret()));
        for at in 0..text.len() {
            let mut bad = text.clone().into_bytes();
            bad[at] = if bad[at] == b'0' { b'1' } else { b'0' };
            let bad = String::from_utf8(bad).unwrap();
            assert!(Token::parse(&bad).is_err(), "{at}");
            assert!(Token::parse(&text[..at]).is_err(), "{at}");
        }
    }

    #[test]
    fn no_token_has_the_secret_of_another_one() {
        let [one, two] = [(); 2].map(|()| Token::new(Fingerprint::of(b"a")));
        assert!(!one.knows(&two.secret()) && !one.knows(""));
    }

    #[test]
    fn a_token_is_not_written_into_logs() {
        let token = Token::new(Fingerprint::of(b"a"));
        assert!(!format!("{token:?}").contains(&token.secret()));
    }
}
