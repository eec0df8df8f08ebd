//! Every bound of the protocol, in one place, with its reason.

use std::time::Duration;

/// Largest payload of one write op, in bytes. The adapter asks its kernel for
/// requests no larger than this.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// Largest frame on the wire, in bytes after the length word: a payload and the
/// largest header that may stand before it.
pub const MAX_FRAME: usize = MAX_PAYLOAD + (64 << 10);

/// Longest name in a directory, in bytes (`NAME_MAX` of Linux; a Windows name of
/// 255 UTF-16 units may need three bytes each and is refused beyond this bound).
pub const MAX_NAME: usize = 255;

/// Longest symbolic link target, in bytes (`PATH_MAX`).
pub const MAX_TARGET: usize = 4096;

/// Longest extended attribute name, in bytes (`XATTR_NAME_MAX`).
pub const MAX_XATTR_NAME: usize = 255;

/// Largest extended attribute value, in bytes (`XATTR_SIZE_MAX`).
pub const MAX_XATTR_VALUE: usize = 64 << 10;

/// Largest file offset plus length, in bytes: what a signed 64-bit offset can address.
pub const MAX_OFFSET: u64 = i64::MAX as u64;

/// Unit of the dirty map, in bytes. Resync moves whole blocks of this size.
pub const BLOCK: u64 = 4096;

/// Largest file, in bytes: the dirty map tells no more blocks apart, and marks behind it could
/// not be moved. One block less than 2^32, as on ext4.
pub const MAX_MAPPED_FILE: u64 = u32::MAX as u64 * BLOCK;

/// Unit of the intent log for file ranges, in bytes: large enough that a steady
/// workload seldom touches a cold one, small enough that what was hot in a crash
/// is soon compared.
pub const EXTENT: u64 = 4 << 20;

/// Extents that the note of one op names one by one; an op that reaches further is
/// noted as "the whole file".
pub const MAX_NOTED_EXTENTS: u64 = 64;

/// New file ids that one durable note covers, so that a burst of creations costs one sync.
pub const ID_BLOCK: u64 = 4096;

/// Names of one directory kept apart in the dirty map before it collapses to "the whole directory".
pub const MAX_MARKED_NAMES: usize = 4096;

/// Names kept apart in one dirty map; beyond it a directory of which another name is
/// marked collapses to "the whole directory". About 80 bytes each.
pub const MAX_MARKED_NAMES_IN_ALL: usize = 256 << 10;

/// Files in one dirty map with more than one run of marked blocks; beyond it a further one
/// collapses to "the whole file". About 200 bytes each, and a bit for each block in their
/// denser parts.
pub const MAX_SCATTERED_FILES: usize = 128 << 10;

/// What takes memory of its own in one dirty map: 64 objects in a row with the same marks or
/// others, a file with some of its blocks marked, a directory with some of its names. About
/// 75 bytes each; beyond it everything is compared. A million changed files stay below it,
/// and a hundred million new ones.
pub const MAX_MARKED_PLACES: usize = 3 << 19;

/// Bytes of ops shipped but not yet acknowledged, per module. Beyond it writers wait.
pub const MAX_IN_FLIGHT_BYTES: usize = 64 << 20;

/// Ops that are kept, applied or not: those behind a flush that has not ended are. Beyond it
/// writers wait.
pub const MAX_UNSETTLED_OPS: usize = 1 << 19;

/// Into how many periods the deadline of an op is divided to see how fast the peer is: what it
/// applies in one or two of them may be in flight.
pub const FLOW_PERIODS: u32 = 16;

/// Ops that may be in flight to a connected peer, however slow it seems. It is dropped when it
/// takes longer for them than the deadline of one.
pub const MIN_IN_FLIGHT_OPS: u64 = 64;

/// The same in bytes.
pub const MIN_IN_FLIGHT_BYTES: usize = 512 << 10;

/// Ops that wait in mode `flush` for more to be sent with them, at most: as many as are
/// encoded in one go.
pub const MAX_LINGERING_OPS: u64 = 64;

/// Ops shipped but not yet acknowledged, per module. Beyond it writers wait.
pub const MAX_IN_FLIGHT_OPS: usize = 16_384;

/// Bytes of resync data in flight when nothing else runs.
pub const RESYNC_WINDOW_IDLE: usize = 8 << 20;

/// Bytes of resync data in flight while the application writes: what may stand
/// before a write in the one stream.
pub const RESYNC_WINDOW_BUSY: usize = 256 << 10;

/// After how many bytes a peer that is brought up is asked to flush what it has got. When as
/// many have come again before it has, no more is moved until it has.
pub const RESYNC_FLUSH_EVERY: u64 = 1 << 30;

/// Bytes for which it is asked before the end: less may as well be flushed with that.
pub const RESYNC_FLUSH_LEAST: u64 = 64 << 20;

/// How often it is asked at the end, if the last time took long.
pub const RESYNC_LAST_FLUSHES: u32 = 8;

/// What of the peer's syncs nobody waits for (checkpoints, those of a resync) has this many
/// times the deadline of one that somebody does: they are of everything, and a disk that has
/// much to write is not a dead one.
pub const UNAWAITED_SYNCS: u32 = 15;

/// A peer whose disk is busy, and which says so again and again, has this many times the time
/// for an op or a sync.
pub const BUSY_PATIENCE: u32 = 3;

/// How long after the application's last write resync uses its idle window.
pub const RESYNC_BUSY_FOR: Duration = Duration::from_millis(50);

/// Largest piece of file data that resync moves in one op, in bytes; while the application
/// writes, [`RESYNC_WINDOW_BUSY`] is. Smaller where it would fill much of what may be in flight
/// to a slow peer.
pub const RESYNC_CHUNK: usize = 512 << 10;

/// Entries of a directory in one resync op.
pub const MAX_PUT_ENTRIES: usize = 1024;

/// Bytes of names and objects in one resync op for a directory: symbolic link
/// targets would otherwise fill many frames.
pub const MAX_PUT_BYTES: usize = 512 << 10;

/// Bytes of extended attributes that travel with their object; the others have ops of their own.
pub const MAX_PUT_XATTRS: usize = 128 << 10;

/// Generations kept in a copy's history, newest first.
pub const MAX_HISTORY: usize = 16;

/// Marks in one control message.
pub const MAX_MARKS_PER_FRAME: usize = 4096;

/// Bytes of a dirty map in one OwnMarks frame.
pub const MAX_MAP_BYTES: usize = 512 << 10;

/// Chunks of a resync target's dirty map that take 8 KiB of memory each, at most: beyond
/// it comparing everything is cheaper than to trust the peer with more.
pub const MAX_TARGET_CHUNKS: usize = 8 << 10;

/// Bytes of a resync target's dirty map, at most: beyond it everything is compared.
pub const MAX_TARGET_MAP: usize = 64 << 20;

/// Marks of a resync target, at most: beyond it comparing everything is cheaper.
pub const MAX_TARGET_MARKS: usize = 4 << 20;

/// Blocks compared by one compare request.
pub const MAX_COMPARE_BLOCKS: usize = 4096;

/// Compare requests under way at once: enough that neither node waits for the other one,
/// few enough that their answers take no memory to speak of.
pub const MAX_COMPARE_QUESTIONS: usize = 256;

/// Blocks that compare requests under way are about, at most: what either node may hash
/// before an answer that is waited for.
pub const MAX_COMPARE_AHEAD: u64 = 64 << 10;

/// Objects asked for by one compare request.
pub const MAX_COMPARE_OBJECTS: usize = 4096;

/// Bytes of a file that one question of a verify covers in the op stream: what may stand
/// before a write there, hashed from the page cache in a fraction of a millisecond.
pub const VERIFY_CHUNK: u64 = 256 << 10;

/// Questions in the op stream that the secondary has not answered, at most.
pub const MAX_VERIFYING: usize = 16;

/// Questions in one frame of the verify stream.
pub const MAX_VERIFY_QUESTIONS: usize = 256;

/// Bytes that the questions of one such frame cover together, at most: a hole of this
/// size is one question, and an answer takes a bounded time however slow the disk is.
pub const MAX_VERIFY_BYTES: u64 = 64 << 20;

/// Names in one page of a listing.
pub const MAX_VERIFY_NAMES: usize = 1024;

/// Extended attributes of one object: Linux lists 64 KiB of names, of two bytes at least.
pub const MAX_XATTRS: usize = 32 << 10;
/// Calls that a node whose disk failed has under way at its peer, at most. More than a
/// kernel has requests in the background, so that in practice it bounds nobody.
pub const MAX_REMOTE_CALLS: usize = 4096;

/// Entries of a directory in one answer to a remote listing.
pub const MAX_LISTED: usize = 256;

/// Longest reason text in a control message, in bytes.
pub const MAX_REASON: usize = 1024;

/// Longest module name, in bytes.
pub const MAX_MODULE_NAME: usize = 64;
