//! Loading kernel modules.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result};

use super::MODULES;

/// From `linux/module.h`: the kernel unpacks the module itself.
const MODULE_INIT_COMPRESSED_FILE: libc::c_int = 4;

/// Loads all modules that the archive has. Called in the guest.
pub fn load_modules() -> Result<()> {
    let Ok(entries) = std::fs::read_dir(Path::new("/").join(MODULES)) else {
        return Ok(());
    };
    let mut modules: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    modules.sort();
    // Which one needs which differs from kernel to kernel: what lacks another one's symbols
    // (`ENOENT`, `init_module(2)`) is tried again after it.
    while !modules.is_empty() {
        let mut later = Vec::new();
        let mut last = None;
        for module in &modules {
            match load(module) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    later.push(module.clone());
                    last = Some((module.clone(), e));
                }
                Err(e) => return Err(e).with_context(|| cannot_load(module)),
            }
        }
        if let Some((module, e)) = last
            && later.len() == modules.len()
        {
            return Err(e).with_context(|| cannot_load(&module));
        }
        modules = later;
    }
    Ok(())
}

fn cannot_load(module: &Path) -> String {
    format!("cannot load {}", module.display())
}

/// Loads one module; one that is there already is no error.
fn load(module: &Path) -> std::io::Result<()> {
    let file = File::open(module)?;
    let flags = match module.extension().is_some_and(|e| e == "ko") {
        true => 0,
        false => MODULE_INIT_COMPRESSED_FILE,
    };
    // SAFETY: the descriptor is open and the parameters are a string that ends with a zero.
    let done = unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            file.as_raw_fd(),
            c"".as_ptr(),
            flags,
        )
    };
    let error = std::io::Error::last_os_error();
    if done != 0 && error.raw_os_error() != Some(libc::EEXIST) {
        return Err(error);
    }
    Ok(())
}
