//! `kvm`: a real guest in an emulated machine, which counts on its disk.

use std::path::Path;
use std::process::{Child, Command};

use harness::guest::kernel;
use harness::{process, wait_until};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use twinfold_controller::guest::{Archive, QEMU};

use super::{NAME, becomes, edit, running, said, wait};
use crate::PATIENCE;
use crate::stage::{Machine, Stage, controller, write};

/// Size of the guest's disk, in bytes.
const DISK: u64 = 64 << 20;

/// Numbers it is told of before something happens, each time.
const SOME: u64 = 50;

/// What the guest needs besides a disk.
const BUTTON: &[&str] = &["button", "evdev"];

/// As `qemu.options`, in its folder.
const OPTIONS: &str = "# a small one\n-accel tcg\n-machine pc\n-m 256\n-no-user-config\n-nodefaults\n\
    -no-reboot\n-display none\n-chardev file,id=console,path=console,append=on\n\
    -serial chardev:console\n-drive file=disk.img,format=raw,if=none,id=disk,cache=none\n\
    -device virtio-blk-pci,drive=disk\n\n-kernel kernel\n-initrd initramfs\n\
    -append console=ttyS0 quiet panic=-1 rdinit=/init";

/// The guest's disk, kernel and initramfs, in the folder that is to be replicated.
pub(super) fn furnish(folder: &Path) {
    let kernel = kernel(BUTTON).unwrap();
    std::fs::copy(&kernel.image, folder.join("kernel")).unwrap();
    let program = process::program("counter").unwrap();
    let archive = Archive::with_init(&program, &kernel.modules).unwrap();
    std::fs::write(folder.join("initramfs"), archive.finish()).unwrap();
    let disk = std::fs::File::create(folder.join("disk.img")).unwrap();
    disk.set_len(DISK).unwrap();
}

/// The numbers behind a word that the guest has said so far, on whichever node.
pub(super) fn heard(folder: &Path, word: &str) -> Vec<u64> {
    let text = std::fs::read(folder.join("console")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    // A line that is not ended is not said yet.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let said = whole.lines().filter_map(|line| {
        // The one before may have been cut off where its machine ended.
        let (_, said) = line.rsplit_once("counter: ")?;
        said.trim().strip_prefix(word)?.trim().parse().ok()
    });
    said.collect()
}

pub(super) fn folder(machine: &Machine) -> std::path::PathBuf {
    machine.home().join(NAME)
}

pub(super) fn last(folder: &Path) -> u64 {
    heard(folder, "written").last().copied().unwrap_or(0)
}

/// Waits until the guest has counted on, on this node.
pub(super) fn counts(machine: &Machine) {
    let folder = folder(machine);
    let from = last(&folder);
    let counts = || last(&folder) >= from + SOME;
    assert!(
        wait_until(PATIENCE * 2, counts),
        "{}\n{}",
        said(machine),
        String::from_utf8_lossy(&std::fs::read(folder.join("console")).unwrap_or_default())
    );
}

/// The option of the module becomes this, on both nodes.
fn set(stage: &Stage, name: &str, from: &str, to: &str) {
    let xml = stage.a.home().join("etc/modules/db/userconfig.xml");
    let value = |value: &str| format!("<macro name=\"{name}\" value=\"{value}\"/>");
    edit(&xml, &value(from), &value(to));
    stage.a.must(&["config", "-m", NAME]);
}

/// A machine is lost, saved, and stopped by its power button, in a module that runs on A. `boot`
/// starts what A has besides the daemon.
pub(super) fn live_through(stage: &mut Stage, boot: impl Fn(&Machine)) {
    counts(&stage.a);
    becomes(&stage.a, "custom.vm", "up");
    let boots = |folder: &Path| heard(folder, "found").len();
    assert_eq!(boots(&folder(&stage.a)), 1);

    // The node goes, and with it the machine.
    stage.a.kill_everything();
    let told = last(&stage.a.home().join(".db.twinfold/data"));
    wait(&stage.b, "ALONE");
    counts(&stage.b);
    let found = heard(&folder(&stage.b), "found");
    assert_eq!(found.len(), 2, "{}", said(&stage.b));
    assert!(
        found[1] >= told && told >= SOME,
        "{told} were synced, {} found",
        found[1]
    );

    boot(&stage.a);
    stage.a.start_daemon();
    wait(&stage.a, "SECOND");
    wait(&stage.b, "PRIM");
    // It moves back with its memory: its guest notices nothing.
    set(stage, "STOP", "powerdown", "save");
    stage.b.must(&["swap", "-m", NAME]);
    wait(&stage.a, "PRIM");
    wait(&stage.b, "SECOND");
    counts(&stage.a);
    assert_eq!(boots(&folder(&stage.a)), 2, "{}", said(&stage.b));
    let saved = folder(&stage.a).join("saved");
    assert!(!saved.exists(), "this memory fits once");

    // Its button is pressed, and it ends by itself.
    set(stage, "STOP", "save", "powerdown");
    stage.a.must(&["swap", "-m", NAME]);
    wait(&stage.b, "PRIM");
    wait(&stage.a, "SECOND");
    assert!(!said(&stage.a).contains("killed"), "{}", said(&stage.a));
    assert!(!said(&stage.a).contains("by force"), "{}", said(&stage.a));
}

#[test]
fn a_machine_in_qemu_whose_node_goes_is_on_the_other_one_with_all_its_guest_synced() {
    let mut stage = running("kvm", &["VIA=qemu"], &[], |stage| {
        let folder = folder(&stage.a);
        furnish(&folder);
        write(&folder.join("qemu.options"), OPTIONS);
    });
    live_through(&mut stage, |_| ());
}

/// QEMU without a machine; it ends with the test.
fn bare(directory: &Path, more: &[&str]) -> Child {
    let mut qemu = Command::new(QEMU);
    qemu.args(["-machine", "none", "-nodefaults", "-display", "none"])
        .args(["-qmp", "unix:qmp,server=on,wait=off"])
        .args(more)
        .current_dir(directory);
    process::start(qemu).unwrap()
}

/// What `twinfold monitor` says to QEMU: whether it was well, its output and its complaint.
fn tell(directory: &Path, words: &[&str]) -> (bool, String, String) {
    let mut command = Command::new(controller());
    command.args(["monitor", "qmp"]).args(words);
    let output = command.current_dir(directory).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    (output.status.success(), said, complaint)
}

/// The same, when it answers, waited for as `start_prim` does. QEMU (7.2) may crash when whoever
/// connects while it starts leaves without an answer.
fn listening(directory: &Path, more: &[&str]) -> Child {
    let mut child = bare(directory, more);
    let mut told = Default::default();
    let listens = || {
        told = tell(directory, &["status"]);
        // The file alone may be that of the one before.
        (told.0 && told.1 != "off") || child.try_wait().unwrap().is_some()
    };
    assert!(wait_until(PATIENCE, listens), "nobody listens");
    let ended = child.try_wait().unwrap();
    assert!(told.0 && ended.is_none(), "{told:?} {ended:?}");
    child
}

#[test]
fn what_scripts_say_to_qemu_has_an_end_whatever_qemu_does() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path();
    let tell = |words: &[&str]| tell(directory, words);
    assert_eq!(tell(&["status"]), (true, "off".into(), String::new()));

    let mut qemu = listening(directory, &[]);
    assert_eq!(tell(&["status"]).1, "running");
    let (good, _, why) = tell(&["save", "nowhere/saved"]);
    assert!(!good && why.contains("nowhere/saved"), "{why}");
    assert_eq!(tell(&["status"]).1, "running");
    assert!(tell(&["save", "saved"]).0);
    assert!(qemu.wait().unwrap().success());

    let mut qemu = listening(directory, &["-S", "-incoming", "exec:cat saved"]);
    assert!(tell(&["loaded"]).0);
    assert_eq!(tell(&["status"]).1, "paused");
    assert!(tell(&["cont"]).0);
    assert_eq!(tell(&["status"]).1, "running");
    assert!(tell(&["off"]).0);
    assert!(qemu.wait().unwrap().success());

    // What was saved is cut off: nobody waits for it without end.
    std::fs::write(directory.join("saved"), b"QEVM").unwrap();
    let mut qemu = bare(directory, &["-S", "-incoming", "exec:cat saved"]);
    assert!(!tell(&["loaded"]).0);
    assert!(!qemu.wait().unwrap().success());

    // One that hangs.
    let mut qemu = listening(directory, &[]);
    assert_eq!(tell(&["status"]).1, "running");
    crate::stage::kill(qemu.id() as i32, libc::SIGSTOP);
    // Until then it may answer.
    assert!(wait_until(PATIENCE, || process::is_stopped(qemu.id())));
    let (good, _, why) = tell(&["status"]);
    assert!(!good && why.contains("no answer"), "{why}");
    let (good, said, _) = tell(&["off"]);
    assert!(good && said.contains("QEMU is killed"), "{said}");
    assert!(!qemu.wait().unwrap().success());
    assert_eq!(tell(&["status"]), (true, "off".into(), String::new()));

    // One that has hung for so long that nobody gets through to it any more.
    let mut qemu = listening(directory, &[]);
    assert_eq!(tell(&["status"]).1, "running");
    crate::stage::kill(qemu.id() as i32, libc::SIGSTOP);
    // Until then it may let one in, and make room for the next.
    assert!(wait_until(PATIENCE, || process::is_stopped(qemu.id())));
    let mut waiting = Vec::new();
    loop {
        let flags = SocketFlags::NONBLOCK;
        let one = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let path = SocketAddrUnix::new(directory.join("qmp")).unwrap();
        if connect(&one, &path).is_err() {
            break;
        }
        waiting.push(one);
        assert!(waiting.len() < 10_000, "everybody gets through");
    }
    let (good, said, why) = tell(&["off"]);
    assert!(!good && why.contains("no answer"), "{good} {said} {why}");
    qemu.kill().unwrap();
    qemu.wait().unwrap();
}
