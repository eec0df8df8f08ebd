//! A power cut ends the operating system as well; here it goes on. So a node whose disk
//! was cut is told that its last run belonged to another boot.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of one of the two slots of `state/copy`, and where its parts lie (see there).
const SLOT: usize = 4096;
const LENGTH: usize = 18;
const BODY: usize = 22;

/// Bytes of the boot id, the last ones of the body.
const BOOT: usize = 16;

/// The copy's history in `state`, if there is one, names another boot from now on. A slot
/// that is not sound is left as it is.
pub(crate) fn another(state: &Path) -> io::Result<()> {
    let path = state.join("copy");
    let Ok(mut bytes) = std::fs::read(&path) else {
        return Ok(());
    };
    for slot in bytes.chunks_exact_mut(SLOT) {
        let length = u32::from_le_bytes([0, 1, 2, 3].map(|n| slot[LENGTH + n])) as usize;
        let end = BODY.saturating_add(length);
        if length < BOOT || end + 4 > SLOT {
            continue;
        }
        let sum = crc32c::crc32c(&slot[..end]).to_le_bytes();
        if slot[end..end + 4] != sum {
            continue;
        }
        slot[end - BOOT] ^= 0xff;
        let sum = crc32c::crc32c(&slot[..end]).to_le_bytes();
        slot[end..end + 4].copy_from_slice(&sum);
    }
    let file = std::fs::File::options().write(true).open(&path)?;
    file.write_all_at(&bytes, 0)
}
