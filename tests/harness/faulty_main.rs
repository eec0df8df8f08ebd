//! The process behind a disk that tests program ([`harness::faulty`]).

fn main() -> anyhow::Result<()> {
    let directory = std::env::args_os().nth(1);
    let directory = directory.ok_or_else(|| anyhow::anyhow!("usage: faulty-disk DIRECTORY"))?;
    harness::faulty::serve(directory.as_ref())
}
