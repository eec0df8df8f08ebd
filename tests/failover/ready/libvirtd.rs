//! `kvm` with a real libvirt on each node, and a guest that counts on its disk.
//!
//! A machine's libvirt is in its process namespace, so it and what it has started end with the
//! machine. It has a mount namespace of its own, in which it finds its directories, users and
//! devices, and the folder at the same path as the other one's.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use harness::program::require;
use harness::{process, wait_until};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};

use super::kvm::{counts, folder, furnish, heard, last, live_through};
use super::{NAME, becomes, running, said, wait};
use crate::PATIENCE;
use crate::stage::{Machine, Stage, executable, write};

/// The numbers of the user that the guests of each node run as: as it came when it was made.
const USERS: [(&str, u32); 2] = [("a", 64055), ("b", 64056)];

/// How long `virsh` may take for one answer, in seconds.
const ANSWER: &str = "60";

/// Behind the machine's directory: what starts its libvirt, and stays.
const START: &str = r#"set -e
own=$1/libvirt user=$2
for directory in etc lib cache log; do
    at=/$directory
    [ $directory = etc ] || at=/var/$directory
    mkdir -p "$own/$directory" "$at/libvirt"
    mount --bind "$own/$directory" "$at/libvirt"
done
# Without a driver for mandatory access control, as where there is none, and without virtlogd.
printf '%s\n' 'security_driver = "none"' 'stdio_handler = "file"' >"$own/etc/qemu.conf"
for file in passwd group; do
    grep -v ^libvirt-qemu: /etc/$file >"$own/$file" || :
done
echo "libvirt-qemu:x:$user:$user::/:/bin/false" >>"$own/passwd"
echo "libvirt-qemu:x:$user:" >>"$own/group"
for file in passwd group; do
    mount --bind "$own/$file" /etc/$file
done
mount -t tmpfs run /run
# When it was booted.
cp "$own/utmp" /run/utmp
mount -t proc proc /proc
# No hardware of this machine: a guest is emulated as well as where there is no more.
mkdir -p "$own/dev"
mount -t tmpfs dev "$own/dev"
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/ptmx "$own/dev"
mkdir "$own/dev/pts" "$own/dev/shm"
umount -l -R /dev
mount --rbind "$own/dev" /dev
mount -t devpts devpts /dev/pts
# What is mounted in the machine's directory later is seen here, too.
mount --rbind "$1" /mnt
exec "$3" --config "$own/libvirtd.conf" --pid-file "$own/pid"
"#;

/// The guest, with its folder at the path that it has on both nodes.
const DOMAIN: &str = r#"<domain type='qemu'>
  <name>db</name>
  <memory unit='MiB'>256</memory>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>/mnt/db/kernel</kernel>
    <initrd>/mnt/db/initramfs</initrd>
    <cmdline>console=ttyS0 quiet panic=-1 rdinit=/init</cmdline>
  </os>
  <features><acpi/></features>
  <on_reboot>destroy</on_reboot>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source file='/mnt/db/disk.img'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <serial type='file'><source path='/mnt/db/console' append='on'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
"#;

/// What the kernel's `utmp(5)` has of a boot: both machines were switched on in the same second.
fn booted() -> Vec<u8> {
    const BOOT_TIME: u16 = 2;
    const SECOND: u32 = 1_700_000_000;
    let mut record = vec![0; 384];
    record[..2].copy_from_slice(&BOOT_TIME.to_le_bytes());
    record[340..344].copy_from_slice(&SECOND.to_le_bytes());
    record
}

fn system(name: &str, package: &str) -> String {
    let program = require(name, package, &["/usr/sbin".into()]);
    program.display().to_string()
}

/// Makes a machine's libvirt, and starts it.
fn install(machine: &Machine) {
    let home = machine.home();
    mount_bind(home, home).unwrap();
    mount_change(home, MountPropagationFlags::SHARED).unwrap();
    let own = home.join("libvirt");
    let sockets = own.join("sockets");
    let text = [
        format!("unix_sock_dir = \"{}\"", sockets.display()),
        "auth_unix_ro = \"none\"".into(),
        "auth_unix_rw = \"none\"".into(),
        "log_outputs = \"3:stderr\"".into(),
        // The two are on one machine, and ask its board for this otherwise.
        format!("host_uuid = \"{}\"", uuid(machine)),
    ];
    std::fs::create_dir_all(&sockets).unwrap();
    write(&own.join("libvirtd.conf"), &(text.join("\n") + "\n"));
    std::fs::write(own.join("utmp"), booted()).unwrap();
    let uri = format!(
        "qemu+unix:///system?socket={}/libvirt-sock",
        sockets.display()
    );
    let virsh = system("virsh", "libvirt-clients");
    executable(
        &machine.tools().join("virsh"),
        &format!("#!/bin/sh\nLIBVIRT_DEFAULT_URI='{uri}' exec {virsh} \"$@\"\n"),
    );
    boot(machine);
}

fn user(machine: &Machine) -> u32 {
    let home = machine.home();
    let named = USERS.iter().find(|(name, _)| home.ends_with(name));
    named.unwrap().1
}

fn uuid(machine: &Machine) -> String {
    format!("00000000-0000-4000-8000-{:012}", user(machine))
}

/// Starts a machine's libvirt; it ends with the machine.
fn boot(machine: &Machine) {
    system("qemu-system-x86_64", "qemu-system-x86");
    let log = File::options()
        .append(true)
        .create(true)
        .open(machine.home().join("libvirt.log"))
        .unwrap();
    let mut command = machine.entering();
    command
        .args(["unshare", "--mount", "--propagation", "slave"])
        .args(["sh", "-c", START, "libvirt"])
        .arg(machine.home())
        .arg(user(machine).to_string())
        .arg(system("libvirtd", "libvirt-daemon"))
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    let mut started = process::start(command).unwrap();
    // It ends with its machine, and somebody has to take note.
    std::thread::spawn(move || started.wait());
    let answers = || virsh(machine, &["uri"]).0;
    assert!(wait_until(PATIENCE, answers), "{}", complaints(machine));
}

/// What libvirt complains about.
fn complaints(machine: &Machine) -> String {
    let read = |path: &Path| {
        let text = std::fs::read(path).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    };
    let home = machine.home();
    format!(
        "--- libvirt\n{}\n--- its guest\n{}",
        read(&home.join("libvirt.log")),
        read(&home.join("libvirt/log/qemu/db.log"))
    )
}

/// What libvirt says on a machine, and whether it is content.
fn virsh(machine: &Machine, arguments: &[&str]) -> (bool, String) {
    let output = Command::new("timeout")
        .args(["--kill-after=5", ANSWER])
        .arg(machine.tools().join("virsh"))
        .args(arguments)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    (output.status.success(), text)
}

fn told(machine: &Machine, arguments: &[&str]) -> String {
    let (good, text) = virsh(machine, arguments);
    assert!(good, "{arguments:?}: {text}\n{}", complaints(machine));
    text
}

/// A pair with a guest that counts, on A.
fn running_in_libvirt(define: impl Fn(&Machine)) -> Stage {
    running("kvm", &["VIA=libvirt"], &[], |stage| {
        install(&stage.a);
        install(&stage.b);
        furnish(&folder(&stage.a));
        define(&stage.a);
    })
}

#[test]
fn a_machine_in_libvirt_whose_node_goes_is_on_the_other_one_with_all_its_guest_synced() {
    let mut stage = running_in_libvirt(|a| {
        // By hand, on this node alone.
        let file = a.home().join("made.xml");
        write(&file, DOMAIN);
        told(a, &["define", file.to_str().unwrap()]);
    });
    live_through(&mut stage, boot);
}

#[test]
fn what_is_changed_of_a_machine_in_libvirt_is_on_the_other_node_and_its_files_owners_as_well() {
    let mut stage = running_in_libvirt(|a| write(&folder(a).join("domain.xml"), DOMAIN));
    let owner = |machine: &Machine| {
        let disk = std::fs::metadata(folder(machine).join("disk.img")).unwrap();
        (disk.uid(), disk.gid())
    };
    counts(&stage.a);
    assert_eq!(owner(&stage.a), (64055, 64055));

    // It is switched off behind the module's back.
    becomes(&stage.a, "custom.vm", "up");
    told(&stage.a, &["destroy", NAME]);
    counts(&stage.a);
    assert!(
        said(&stage.a).contains("is shut off (destroyed)"),
        "{}",
        said(&stage.a)
    );
    wait(&stage.a, "PRIM");
    assert_eq!(heard(&folder(&stage.a), "found").len(), 2);

    // Its operator calls it something else and gives it more memory, and the node goes.
    let changed = told(&stage.a, &["dumpxml", "--inactive", NAME]);
    let changed = changed
        .replace("</name>", "</name><title>a larger one</title>")
        .replace(">262144<", ">300032<");
    let file = stage.a.home().join("changed.xml");
    write(&file, &changed);
    told(&stage.a, &["define", file.to_str().unwrap()]);
    let kept = || {
        let text = std::fs::read_to_string(folder(&stage.a).join("domain.xml"));
        text.is_ok_and(|text| text.contains("a larger one"))
    };
    assert!(wait_until(PATIENCE, kept), "{}", said(&stage.a));
    stage.a.kill_everything();
    let told_of = last(&stage.a.home().join(".db.twinfold/data"));
    wait(&stage.b, "ALONE");
    counts(&stage.b);
    let found = heard(&folder(&stage.b), "found");
    assert!(found.len() == 3 && found[2] >= told_of, "{found:?}");
    let there = told(&stage.b, &["dumpxml", NAME]);
    assert!(there.contains("<title>a larger one</title>"), "{there}");
    assert!(there.contains(">300032</memory>"), "{there}");
    assert_eq!(owner(&stage.b), (64056, 64056));

    // Whoever had the disk before a guest did has it again, whatever nodes have gone meanwhile.
    boot(&stage.a);
    stage.a.start_daemon();
    wait(&stage.a, "SECOND");
    stage.b.must(&["stop", "-m", NAME]);
    wait_stopped(&stage.b);
    let disk = stage.b.home().join(".db.twinfold/data/disk.img");
    let disk = std::fs::metadata(disk).unwrap();
    assert_eq!((disk.uid(), disk.gid()), (0, 0));
}

fn wait_stopped(machine: &Machine) {
    let waited = ["waitstate", "-m", NAME, "STOP", "--timeout", "120"];
    let (code, _, err) = machine.cli(&waited);
    assert_eq!(code, 0, "{err}\n{}", said(machine));
}
