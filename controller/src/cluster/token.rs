//! What one node prints and the other is given, so that both know each other's keys.
//!
//! `tfj1-` and in hexadecimal digits: the secret (16 bytes), the identity of the node that
//! printed it (32), then each address (its text and a comma), then a check (4). The identity
//! lets the joining node know whom it talks to before it says anything; the secret lets the
//! other one know that this is the node its operator meant.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use fs_driver::link::Fingerprint;

use crate::token;

/// Bytes of the secret: nobody guesses it.
pub(super) const SECRET: usize = 16;

/// Longest token, in characters.
const MAX_TOKEN: usize = 4096;

/// A token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Token {
    pub(super) secret: [u8; SECRET],
    pub(super) identity: Fingerprint,
    pub(super) addresses: Vec<SocketAddr>,
}

const PREFIX: &str = "tfj1-";

impl Token {
    pub(super) fn show(&self) -> String {
        let mut bytes = self.secret.to_vec();
        bytes.extend(self.identity.to_bytes());
        for address in &self.addresses {
            bytes.extend(address.to_string().bytes());
            bytes.push(b',');
        }
        token::show(PREFIX, &bytes)
    }

    pub(super) fn parse(text: &str) -> Result<Token> {
        let content = token::parse(PREFIX, text, MAX_TOKEN, "`twinfold cluster init`")?;
        let rest = content.split_first_chunk::<SECRET>();
        let (secret, rest) = rest.context("the token is not complete")?;
        let rest = rest.split_first_chunk::<32>();
        let (identity, rest) = rest.context("the token is not complete")?;
        let addresses = std::str::from_utf8(rest)?
            .split_terminator(',')
            .map(str::parse)
            .collect::<Result<Vec<SocketAddr>, _>>()?;
        ensure!(!addresses.is_empty(), "the token names no address");
        Ok(Token {
            secret: *secret,
            identity: Fingerprint::from_bytes(*identity),
            addresses,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_shown_and_every_slip_is_noticed() {
        let token = Token {
            secret: [7; SECRET],
            identity: Fingerprint::of(b"a"),
            addresses: vec![
                "10.0.0.1:4800".parse().unwrap(),
                "[fd00::1]:4800".parse().unwrap(),
            ],
        };
        let text = token.show();
        assert_eq!(Token::parse(&text).unwrap(), token);
        for at in 0..text.len() {
            let mut bad = text.clone().into_bytes();
            bad[at] = if bad[at] == b'0' { b'1' } else { b'0' };
            assert!(
                Token::parse(std::str::from_utf8(&bad).unwrap()).is_err(),
                "{at}"
            );
            assert!(Token::parse(&text[..at]).is_err(), "{at}");
        }
        assert!(Token::parse("tfj1-ää").is_err());
    }
}
