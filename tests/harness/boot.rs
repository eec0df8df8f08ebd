//! A power cut ends the operating system as well; here it goes on. So a node whose disk
//! was cut is told that its last run belonged to another boot.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of one of the two slots of `state/copy`, and where its parts lie (see there).
const SLOT: usize = 4096;
const LENGTH: usize = 18;
const BODY: usize = 22;

/// Bytes of the boot id, and of what follows it in the body: five flags, two numbers.
const BOOT: usize = 16;
const BEHIND: usize = 5 + 8 + 8;

/// Bytes of the boot id, as they are kept.
fn running() -> io::Result<[u8; BOOT]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let id = u128::from_str_radix(&text.trim().replace('-', ""), 16);
    Ok(id.map_err(io::Error::other)?.to_le_bytes())
}

/// The copy's history in `state`, if there is one, names another boot from now on. A slot
/// that is not sound is left as it is.
pub fn another(state: &Path) -> io::Result<()> {
    let path = state.join("copy");
    let mut other = running()?;
    other[0] ^= 0xff;
    let Ok(mut bytes) = std::fs::read(&path) else {
        return Ok(());
    };
    for slot in bytes.chunks_exact_mut(SLOT) {
        let length = u32::from_le_bytes([0, 1, 2, 3].map(|n| slot[LENGTH + n])) as usize;
        let end = BODY.saturating_add(length);
        if length < BOOT + BEHIND || end + 4 > SLOT {
            continue;
        }
        let sum = crc32c::crc32c(&slot[..end]).to_le_bytes();
        if slot[end..end + 4] != sum {
            continue;
        }
        let boot = &mut slot[end - BEHIND - BOOT..end - BEHIND];
        if *boot == [0; BOOT] {
            // It has not run yet.
            continue;
        }
        // Elsewhere in the file it would be something else that is changed.
        if *boot != running()? && *boot != other {
            return Err(io::Error::other("the boot id is not where it is expected"));
        }
        boot.copy_from_slice(&other);
        let sum = crc32c::crc32c(&slot[..end]).to_le_bytes();
        slot[end..end + 4].copy_from_slice(&sum);
    }
    let file = std::fs::File::options().write(true).open(&path)?;
    file.write_all_at(&bytes, 0)
}
