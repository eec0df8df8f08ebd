//! The text of a token: what one program prints and an operator carries to the other machine.
//!
//! A prefix that tells what the token is for and of which version, then in hexadecimal digits
//! the content and a check of it.

use anyhow::{Context, Result, bail, ensure};

/// Bytes of the hash behind the content: of two, one slip in 65,536 went unnoticed.
const CHECK: usize = 4;

fn check(content: &[u8]) -> [u8; CHECK] {
    let mut sum = [0; CHECK];
    sum.copy_from_slice(&blake3::hash(content).as_bytes()[..CHECK]);
    sum
}

/// Two hexadecimal digits for every byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The text of a token with this content.
pub fn show(prefix: &str, content: &[u8]) -> String {
    format!("{prefix}{}{}", hex(content), hex(&check(content)))
}

/// The content of a token that [`show`] made.
///
/// # Errors
///
/// A text of more than `longest` characters, without the prefix (then `printer`, the command
/// that prints such tokens, is named), and every slip: the check does not fit.
pub fn parse(prefix: &str, text: &str, longest: usize, printer: &str) -> Result<Vec<u8>> {
    ensure!(text.len() <= longest, "a token is not that long");
    let digits = text
        .trim()
        .strip_prefix(prefix)
        .with_context(|| format!("a token begins with {prefix}; {printer} prints it"))?;
    let digit = |c: u8| (c as char).to_digit(16).map(|d| d as u8);
    let bytes: Option<Vec<u8>> = digits
        .as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [a, b] => Some(digit(*a)? << 4 | digit(*b)?),
            _ => None,
        })
        .collect();
    let bytes = bytes.with_context(|| format!("a token has hexadecimal digits behind {prefix}"))?;
    let Some((content, sum)) = bytes.split_last_chunk::<CHECK>() else {
        bail!("the token is not complete");
    };
    ensure!(
        check(content) == *sum,
        "the token is not complete, or was mistyped"
    );
    Ok(content.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_shown_is_read_and_what_is_wrong_is_named() {
        let text = show("tx1-", b"content");
        let read = |text: &str| parse("tx1-", text, 64, "`x`").map_err(|e| e.to_string());
        assert_eq!(read(&format!(" {text}\n")).unwrap(), b"content");
        let cases = [
            ("tx2-00", "a token begins with tx1-; `x` prints it"),
            ("tx1-0", "a token has hexadecimal digits behind tx1-"),
            ("tx1-zz", "a token has hexadecimal digits behind tx1-"),
            ("tx1-00", "the token is not complete"),
            (
                &text[..text.len() - 2],
                "the token is not complete, or was mistyped",
            ),
            (&"0".repeat(65), "a token is not that long"),
        ];
        for (text, told) in cases {
            assert_eq!(read(text).unwrap_err(), told, "{text}");
        }
    }
}
