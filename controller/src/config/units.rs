//! Values of attributes: switches, times, numbers.

use std::time::Duration;

/// `on` or `off`, also as yes/no and true/false.
pub(super) fn switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "yes" | "true" => Some(true),
        "off" | "no" | "false" => Some(false),
        _ => None,
    }
}

/// A time: a number with `d`, `h`, `m` (or `mn`), `s`, `ms` or `us`; without one it counts in `unit`.
pub(super) fn time(text: &str, unit: Duration) -> Option<Duration> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let number: u64 = number.parse().ok()?;
    let micros: u64 = match suffix.trim() {
        "" => u64::try_from(unit.as_micros()).ok()?,
        "us" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" | "mn" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return None,
    };
    Some(Duration::from_micros(number.checked_mul(micros)?))
}

/// A time in the largest unit that says it exactly.
pub(super) fn show(time: Duration) -> String {
    let micros = time.as_micros();
    for (unit, size) in [
        ("d", 86_400_000_000),
        ("h", 3_600_000_000),
        ("m", 60_000_000),
        ("s", 1_000_000),
        ("ms", 1_000),
    ] {
        if micros >= size && micros.is_multiple_of(size) {
            return format!("{}{unit}", micros / size);
        }
    }
    format!("{micros}us")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_defaults() {
        let ms = Duration::from_millis(1);
        for (text, micros) in [
            ("700", 700_000),
            ("700ms", 700_000),
            ("30s", 30_000_000),
            ("2 m", 120_000_000),
            ("5mn", 300_000_000),
            ("24h", 86_400_000_000),
            ("1d", 86_400_000_000),
            ("9us", 9),
        ] {
            assert_eq!(
                time(text, ms),
                Some(Duration::from_micros(micros)),
                "{text}"
            );
        }
        for text in ["", "s", "-1s", "1.5s", "3w", "99999999999999d", "1s2"] {
            assert_eq!(time(text, ms), None, "{text}");
        }
    }

    #[test]
    fn times_are_shown_as_they_are_written() {
        for text in ["700ms", "30s", "5m", "24h", "2d", "9us"] {
            let time = time(text, Duration::ZERO).unwrap();
            let again = super::time(&show(time), Duration::ZERO);
            assert_eq!(again, Some(time), "{text}");
        }
        assert_eq!(show(Duration::from_secs(86_400)), "1d");
    }
}
