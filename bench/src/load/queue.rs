//! Writes of one size past the page cache, many under way at once from one thread: the
//! kernel's asynchronous calls (io_submit(2)), as virtual disks (`aio=native` of QEMU) and
//! databases use them. Where several threads wait for one call each, half of what they cost
//! is to sleep and to be woken; here that is done once for all answers that are there.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::file::{open, path};
use super::memory::{Aligned, Dice};
use super::{Amount, Measured};

/// What io_submit(2) calls a write at an offset (`linux/aio_abi.h`).
const IOCB_CMD_PWRITE: u16 = 1;

/// An answer (`struct io_event` of `linux/aio_abi.h`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Answer {
    /// The number of the call.
    data: u64,
    call: u64,
    /// Bytes, or an error as a negative number.
    result: i64,
    result2: i64,
}

/// One call that is under way, or will be again.
struct Call {
    /// Where the kernel finds what to do.
    block: Box<libc::iocb>,
    buffer: Aligned,
    began: Instant,
}

/// Calls that are under way at once. The kernel is done with their memory when the context
/// is gone, which waits for them; hence it is the first of the fields to be dropped.
struct Queue {
    context: Context,
    calls: Vec<Call>,
    file: File,
    dice: Dice,
    places: u64,
    /// Bytes of one call.
    bytes: usize,
}

/// What the kernel knows the queue by.
struct Context(libc::c_ulong);

impl Context {
    /// For so many calls at once.
    fn new(depth: usize) -> Result<Context> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: io_setup(2) writes the number of the context to where it is told to.
        let done =
            unsafe { libc::syscall(libc::SYS_io_setup, depth as libc::c_uint, &mut context) };
        checked(done).context(
            "no asynchronous calls (io_setup(2)); are all of /proc/sys/fs/aio-max-nr taken?",
        )?;
        Ok(Context(context))
    }

    /// Begins the calls.
    fn submit(&self, blocks: &mut [*mut libc::iocb]) -> Result<()> {
        let mut begun = 0;
        while begun < blocks.len() {
            let rest = &mut blocks[begun..];
            // SAFETY: the pointers are valid and so is what they point to: the memory of
            // calls, which stays where it is until the context is gone.
            let done = unsafe {
                libc::syscall(
                    libc::SYS_io_submit,
                    self.0,
                    rest.len() as libc::c_long,
                    rest.as_mut_ptr(),
                )
            };
            begun += checked(done).context("cannot begin asynchronous writes (io_submit(2))")?;
        }
        Ok(())
    }

    /// Waits for one answer at least.
    fn answers<'a>(&self, into: &'a mut [Answer]) -> Result<&'a [Answer]> {
        loop {
            // SAFETY: the kernel writes no more answers than there is room for.
            let done = unsafe {
                libc::syscall(
                    libc::SYS_io_getevents,
                    self.0,
                    1 as libc::c_long,
                    into.len() as libc::c_long,
                    into.as_mut_ptr(),
                    std::ptr::null_mut::<libc::timespec>(),
                )
            };
            match checked(done) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e).context("no asynchronous answers (io_getevents(2))"),
                Ok(there) => return Ok(&into[..there]),
            }
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: a context of our own, which nobody uses any more.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}

/// What a system call has returned.
fn checked(done: libc::c_long) -> io::Result<usize> {
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}

impl Queue {
    fn new(directory: &Path, bytes: usize, amount: Amount) -> Result<Queue> {
        let call = |n: usize| {
            // SAFETY: numbers all through, for which 0 is as good as any.
            let mut block: Box<libc::iocb> = Box::new(unsafe { std::mem::zeroed() });
            block.aio_data = n as u64;
            block.aio_lio_opcode = IOCB_CMD_PWRITE;
            Call {
                block,
                buffer: Aligned::new(bytes, n as u8),
                began: Instant::now(),
            }
        };
        Ok(Queue {
            context: Context::new(amount.depth)?,
            calls: (0..amount.depth).map(call).collect(),
            file: open(&path(directory), true, true)?,
            dice: Dice::new(0),
            places: (amount.size / bytes as u64).max(1),
            bytes,
        })
    }

    /// Begins these calls, each somewhere.
    fn begin(&mut self, which: impl Iterator<Item = usize>) -> Result<()> {
        let mut blocks = Vec::with_capacity(self.calls.len());
        for n in which {
            let call = &mut self.calls[n];
            call.block.aio_fildes = self.file.as_raw_fd() as u32;
            call.block.aio_buf = call.buffer.bytes().as_ptr() as u64;
            call.block.aio_nbytes = self.bytes as u64;
            call.block.aio_offset = (self.dice.below(self.places) * self.bytes as u64) as i64;
            call.began = Instant::now();
            blocks.push(&raw mut *call.block);
        }
        self.context.submit(&mut blocks)
    }

    /// Waits for answers and counts them; returns whose they are.
    fn end(&mut self, into: &mut Measured) -> Result<Vec<usize>> {
        let mut room = vec![Answer::default(); self.calls.len()];
        let mut ended = Vec::with_capacity(room.len());
        for answer in self.context.answers(&mut room)? {
            if answer.result < 0 {
                let e = io::Error::from_raw_os_error(-answer.result as i32);
                return Err(e).context("an asynchronous write failed");
            }
            ensure!(
                answer.result == self.bytes as i64,
                "{} bytes were written",
                answer.result
            );
            let n = answer.data as usize;
            into.count(self.calls[n].began.elapsed(), self.bytes as u64);
            ended.push(n);
        }
        Ok(ended)
    }
}

/// Writes `bytes` at a time until the time is over or `stop` is set.
pub(crate) fn measure(
    bytes: usize,
    directory: &Path,
    amount: Amount,
    stop: &AtomicBool,
) -> Result<Measured> {
    ensure!(amount.rate.is_none(), "a queue has no rate");
    let mut queue = Queue::new(directory, bytes, amount)?;
    let mut all = Measured::nothing()?;
    let begin = Instant::now();
    queue.begin(0..amount.depth)?;
    let mut under_way = amount.depth;
    while under_way > 0 {
        let ended = queue.end(&mut all)?;
        match begin.elapsed() < amount.time && !stop.load(Ordering::Relaxed) {
            true => queue.begin(ended.into_iter())?,
            false => under_way -= ended.len(),
        }
    }
    all.seconds = begin.elapsed().as_secs_f64();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PAGE: usize = 4096;
    const SIZE: u64 = 1 << 20;

    fn amount(depth: usize) -> Amount {
        Amount {
            depth,
            time: Duration::from_millis(50),
            rate: None,
            size: SIZE,
        }
    }

    fn run(directory: &Path, amount: Amount, stop: bool) -> Result<Measured> {
        measure(PAGE, directory, amount, &AtomicBool::new(stop))
    }

    #[test]
    fn each_write_is_counted_once_and_the_last_ones_are_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        super::super::prepare(dir.path(), SIZE).unwrap();
        let all = run(dir.path(), amount(8), false).unwrap();
        assert!(all.ops > 8, "{all:?}");
        assert_eq!(all.bytes, all.ops * PAGE as u64);
        assert_eq!(all.latencies.len(), all.ops);
        assert!(all.seconds >= 0.05);
        // Told to stop, it waits for what it has begun.
        assert_eq!(run(dir.path(), amount(8), true).unwrap().ops, 8);
        // They were the writes of a queue: each has its number in all its bytes.
        let text = std::fs::read(path(dir.path())).unwrap();
        assert_eq!(text.len() as u64, SIZE);
        for page in text.chunks(PAGE) {
            assert!(page[0] < 8 || page[0] == 0x5a, "{}", page[0]);
            assert!(page.iter().all(|b| *b == page[0]));
        }
        assert!(text.chunks(PAGE).any(|page| page[0] == 7));
    }

    #[test]
    fn what_cannot_be_measured_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(run(dir.path(), amount(1), false).is_err(), "no file");
        super::super::prepare(dir.path(), SIZE).unwrap();
        let paced = Amount {
            rate: Some(1.0),
            ..amount(1)
        };
        assert!(run(dir.path(), paced, false).is_err());
        // No context is so large.
        assert!(run(dir.path(), amount(1 << 30), false).is_err());
    }
}
