//! Numbers as people read them.

/// A time, from microseconds.
pub(crate) fn time(us: f64) -> String {
    match us {
        us if us < 9.95 => format!("{us:.2} us"),
        us if us < 99.5 => format!("{us:.1} us"),
        us if us < 9_995.0 => format!("{us:.0} us"),
        us if us < 99_500.0 => format!("{:.1} ms", us / 1e3),
        us if us < 9_995_000.0 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.1} s", us / 1e6),
    }
}

/// A number, short.
pub(crate) fn count(n: f64) -> String {
    match n {
        n if n < 9.95 => format!("{n:.2}"),
        n if n < 99.5 => format!("{n:.1}"),
        n if n < 9_995.0 => format!("{n:.0}"),
        n if n < 99_950.0 => format!("{:.1} k", n / 1e3),
        n if n < 999_500.0 => format!("{:.0} k", n / 1e3),
        n if n < 99_950_000.0 => format!("{:.2} M", n / 1e6),
        n => format!("{:.0} M", n / 1e6),
    }
}

/// Bytes per second.
pub(crate) fn throughput(bytes: f64) -> String {
    match bytes {
        b if b < 999_500.0 => format!("{:.0} kB/s", b / 1e3),
        b if b < 99_950_000.0 => format!("{:.1} MB/s", b / 1e6),
        b if b < 9_995_000_000.0 => format!("{:.0} MB/s", b / 1e6),
        b => format!("{:.1} GB/s", b / 1e9),
    }
}

/// Memory.
pub(crate) fn memory(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_a_unit() {
        assert_eq!(time(3.456), "3.46 us");
        assert_eq!(time(123.4), "123 us");
        assert_eq!(time(12_345.0), "12.3 ms");
        assert_eq!(time(2_500_000.0), "2500 ms");
        assert_eq!(count(123_456.0), "123 k");
        assert_eq!(count(12_345.0), "12.3 k");
        assert_eq!(throughput(1.234e9), "1234 MB/s");
        assert_eq!(memory(3 << 19), "1.5 MiB");
    }
}
