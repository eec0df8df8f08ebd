//! Where the operating system's file system interface meets the [`crate::vfs`].
//! An adapter decodes a call, makes it, and encodes the answer; it decides nothing.

#[cfg(target_os = "linux")]
pub mod fuse;
