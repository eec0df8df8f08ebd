//! Reading and writing the primitive values of a frame.

use bytes::{BufMut, Bytes, BytesMut};

use super::Frame;
use crate::attr::{Device, Kind};
use crate::ids::{FileId, Generation, ModuleId, Seq, SessionId};
use crate::limits;
use crate::op::{BadName, Name, Payload};
use crate::time::Timestamp;

/// How a peer broke the protocol. It is dropped with this reason, and nothing it
/// sent in the frame is done.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    /// A frame announces more bytes than any frame may have.
    #[error("a frame of {0} bytes was announced, {max} are allowed", max = limits::MAX_FRAME)]
    FrameTooLong(usize),
    /// A frame ends inside a value.
    #[error("a frame ends inside a value")]
    Truncated,
    /// Bytes are left over at the end of a frame.
    #[error("a frame has {0} bytes too many")]
    Trailing(usize),
    /// A kind byte nobody knows.
    #[error("unknown {what} {value}")]
    Unknown {
        /// Of which value.
        what: &'static str,
        /// What was read.
        value: u64,
    },
    /// A length or number beyond its limit.
    #[error("{what} is {value}, the limit is {limit}")]
    Limit {
        /// Of which value.
        what: &'static str,
        /// What was read.
        value: u64,
        /// What is allowed.
        limit: u64,
    },
    /// A name that is none.
    #[error("bad name: {0}")]
    Name(#[from] BadName),
    /// A frame that may not come now.
    #[error("{0}")]
    Order(String),
}

/// Builds one frame.
#[derive(Debug)]
pub struct Writer {
    buffer: BytesMut,
}

impl Writer {
    /// Starts a frame of this kind.
    pub fn new(kind: u8) -> Writer {
        let mut buffer = BytesMut::with_capacity(96);
        buffer.put_u32_le(0);
        buffer.put_u8(kind);
        Writer { buffer }
    }

    /// Ends the frame; `payload` follows the written bytes.
    pub fn finish(mut self, payload: Payload) -> Frame {
        let length = self.buffer.len() - 4 + payload.len();
        debug_assert!(length <= limits::MAX_FRAME, "frame of {length} bytes");
        self.buffer[..4].copy_from_slice(&(length as u32).to_le_bytes());
        Frame {
            header: self.buffer.freeze(),
            payload,
        }
    }

    /// Bytes written so far, length word included.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// A frame is never empty.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// One byte.
    pub fn u8(&mut self, v: u8) {
        self.buffer.put_u8(v);
    }

    /// Two bytes, little-endian.
    pub fn u16(&mut self, v: u16) {
        self.buffer.put_u16_le(v);
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self, v: u32) {
        self.buffer.put_u32_le(v);
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self, v: u64) {
        self.buffer.put_u64_le(v);
    }

    /// Sixteen bytes, little-endian.
    pub fn u128(&mut self, v: u128) {
        self.buffer.put_u128_le(v);
    }

    /// A file id.
    pub fn file(&mut self, v: FileId) {
        self.u64(v.0);
    }

    /// A sequence number.
    pub fn seq(&mut self, v: Seq) {
        self.u64(v.0);
    }

    /// Seconds and nanoseconds.
    pub fn time(&mut self, v: Timestamp) {
        self.buffer.put_i64_le(v.secs);
        self.u32(v.nanos);
    }

    /// A one-byte length and that many bytes.
    pub fn name(&mut self, v: &Name) {
        self.u8(v.as_bytes().len() as u8);
        self.buffer.put_slice(v.as_bytes());
    }

    /// A four-byte length and that many bytes.
    pub fn bytes(&mut self, v: &[u8]) {
        self.u32(v.len() as u32);
        self.buffer.put_slice(v);
    }

    /// A kind byte, and for device nodes the two numbers.
    pub fn kind(&mut self, v: Kind) {
        let (code, device) = match v {
            Kind::Regular => (1, None),
            Kind::Directory => (2, None),
            Kind::Symlink => (3, None),
            Kind::Fifo => (4, None),
            Kind::Socket => (5, None),
            Kind::CharDevice(d) => (6, Some(d)),
            Kind::BlockDevice(d) => (7, Some(d)),
        };
        self.u8(code);
        if let Some(d) = device {
            self.u32(d.major);
            self.u32(d.minor);
        }
    }

    /// A presence byte and, when present, the value.
    pub fn option<T>(&mut self, v: Option<T>, put: impl FnOnce(&mut Writer, T)) {
        match v {
            None => self.u8(0),
            Some(v) => {
                self.u8(1);
                put(self, v);
            }
        }
    }
}

/// Reads one frame.
#[derive(Debug)]
pub struct Reader {
    frame: Payload,
    chunk: usize,
    at: usize,
    left: usize,
}

impl Reader {
    /// Starts at the kind byte.
    pub fn new(frame: Payload) -> Reader {
        let left = frame.len();
        Reader {
            frame,
            chunk: 0,
            at: 0,
            left,
        }
    }

    /// Bytes not yet read.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Fails unless everything was read.
    pub fn end(&self) -> Result<(), Violation> {
        match self.left {
            0 => Ok(()),
            n => Err(Violation::Trailing(n)),
        }
    }

    fn copy(&mut self, out: &mut [u8]) -> Result<(), Violation> {
        if out.len() > self.left {
            return Err(Violation::Truncated);
        }
        self.left -= out.len();
        let mut done = 0;
        while done < out.len() {
            let chunk = &self.frame.chunks()[self.chunk][self.at..];
            let n = chunk.len().min(out.len() - done);
            out[done..done + n].copy_from_slice(&chunk[..n]);
            done += n;
            self.at += n;
            if n == chunk.len() {
                self.chunk += 1;
                self.at = 0;
            }
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Violation> {
        let mut out = [0; N];
        self.copy(&mut out)?;
        Ok(out)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Violation> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes, little-endian.
    pub fn u16(&mut self) -> Result<u16, Violation> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self) -> Result<u32, Violation> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self) -> Result<u64, Violation> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Sixteen bytes, little-endian.
    pub fn u128(&mut self) -> Result<u128, Violation> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    /// A truth value: 0 or 1.
    pub fn bool(&mut self, what: &'static str) -> Result<bool, Violation> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            v => Err(Violation::Unknown {
                what,
                value: v.into(),
            }),
        }
    }

    /// A file id other than zero.
    pub fn file(&mut self) -> Result<FileId, Violation> {
        match self.u64()? {
            0 => Err(Violation::Unknown {
                what: "file id",
                value: 0,
            }),
            v => Ok(FileId(v)),
        }
    }

    /// A sequence number.
    pub fn seq(&mut self) -> Result<Seq, Violation> {
        Ok(Seq(self.u64()?))
    }

    /// A generation.
    pub fn generation(&mut self) -> Result<Generation, Violation> {
        Ok(Generation(self.u128()?))
    }

    /// A module id.
    pub fn module(&mut self) -> Result<ModuleId, Violation> {
        Ok(ModuleId(self.u128()?))
    }

    /// A session id.
    pub fn session(&mut self) -> Result<SessionId, Violation> {
        Ok(SessionId(self.u128()?))
    }

    /// Seconds and nanoseconds.
    pub fn time(&mut self) -> Result<Timestamp, Violation> {
        let secs = i64::from_le_bytes(self.array()?);
        let nanos = self.u32()?;
        check("nanoseconds", u64::from(nanos), 999_999_999)?;
        Ok(Timestamp { secs, nanos })
    }

    /// A byte offset or size that a file can have.
    pub fn offset(&mut self, what: &'static str) -> Result<u64, Violation> {
        let v = self.u64()?;
        check(what, v, limits::MAX_OFFSET)?;
        Ok(v)
    }

    /// An offset and a length that together stay within what a file can have.
    pub fn range(&mut self) -> Result<(u64, u64), Violation> {
        let offset = self.offset("offset")?;
        let length = self.offset("length")?;
        check(
            "end of range",
            offset.saturating_add(length),
            limits::MAX_OFFSET,
        )?;
        Ok((offset, length))
    }

    /// A one-byte length and a name.
    pub fn name(&mut self) -> Result<Name, Violation> {
        let length = usize::from(self.u8()?);
        let mut bytes = [0; limits::MAX_NAME];
        self.copy(&mut bytes[..length])?;
        Ok(Name::new(&bytes[..length])?)
    }

    /// A four-byte length, checked against `limit`, and that many bytes.
    pub fn bytes(&mut self, what: &'static str, limit: usize) -> Result<Bytes, Violation> {
        let length = self.u32()? as usize;
        check(what, length as u64, limit as u64)?;
        self.exactly(length)
    }

    /// So many bytes.
    pub fn exactly(&mut self, length: usize) -> Result<Bytes, Violation> {
        if length > self.left {
            return Err(Violation::Truncated);
        }
        let mut out = vec![0; length];
        self.copy(&mut out)?;
        Ok(out.into())
    }

    /// A count, checked against `limit` and against the bytes left, of which each
    /// counted thing needs at least one.
    pub fn count(&mut self, what: &'static str, limit: usize) -> Result<usize, Violation> {
        let count = self.u32()? as usize;
        check(what, count as u64, limit as u64)?;
        if count > self.left {
            return Err(Violation::Truncated);
        }
        Ok(count)
    }

    /// A text of at most `limit` bytes; what is not UTF-8 is replaced.
    pub fn text(&mut self, what: &'static str, limit: usize) -> Result<String, Violation> {
        let bytes = self.bytes(what, limit)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A kind byte and what belongs to it.
    pub fn kind(&mut self) -> Result<Kind, Violation> {
        Ok(match self.u8()? {
            1 => Kind::Regular,
            2 => Kind::Directory,
            3 => Kind::Symlink,
            4 => Kind::Fifo,
            5 => Kind::Socket,
            6 => Kind::CharDevice(self.device()?),
            7 => Kind::BlockDevice(self.device()?),
            v => {
                return Err(Violation::Unknown {
                    what: "kind of object",
                    value: v.into(),
                });
            }
        })
    }

    fn device(&mut self) -> Result<Device, Violation> {
        Ok(Device {
            major: self.u32()?,
            minor: self.u32()?,
        })
    }

    /// A presence byte and the value.
    pub fn option<T>(
        &mut self,
        what: &'static str,
        get: impl FnOnce(&mut Reader) -> Result<T, Violation>,
    ) -> Result<Option<T>, Violation> {
        if self.bool(what)? {
            get(self).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Everything left, as file data, in the pieces in which it came.
    pub fn payload(&mut self) -> Result<Payload, Violation> {
        check("payload", self.left as u64, limits::MAX_PAYLOAD as u64)?;
        let mut out = Payload::default();
        for (i, chunk) in self.frame.chunks().iter().enumerate().skip(self.chunk) {
            let from = if i == self.chunk { self.at } else { 0 };
            out.push(chunk.slice(from..));
        }
        self.chunk = self.frame.chunks().len();
        self.left = 0;
        Ok(out)
    }
}

/// Fails when `value` is beyond `limit`.
pub(super) fn check(what: &'static str, value: u64, limit: u64) -> Result<(), Violation> {
    if value > limit {
        return Err(Violation::Limit { what, value, limit });
    }
    Ok(())
}
