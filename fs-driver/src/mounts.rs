//! The kernel's table of what is mounted (`proc_pid_mountinfo(5)`).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A path in the table. Spaces and their like are in the table as a backslash and three octal digits.
pub(crate) fn unescaped(text: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, behind)) = rest.split_first() {
        let code = match (first, behind) {
            (b'\\', [a, b, c, ..]) => std::str::from_utf8(&[*a, *b, *c])
                .ok()
                .and_then(|digits| u8::from_str_radix(digits, 8).ok()),
            _ => None,
        };
        plain.push(code.unwrap_or(*first));
        rest = match code {
            Some(_) => &behind[3..],
            None => behind,
        };
    }
    PathBuf::from(OsString::from_vec(plain))
}
