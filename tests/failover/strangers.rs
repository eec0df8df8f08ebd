//! Who is not let in: another user at the API, a stranger at the line to the peer.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use harness::wait_until;

use crate::PATIENCE;
use crate::stage::Stage;

/// Asks the API as a user; returns the first line of the answer.
fn ask_as(user: libc::uid_t, socket: PathBuf) -> String {
    let ask = move || {
        // SAFETY: as a system call it concerns this thread alone, which ends here.
        let rc = unsafe { libc::syscall(libc::SYS_setresuid, -1, user, -1) };
        assert_eq!(rc, 0);
        let mut stream = UnixStream::connect(socket).unwrap();
        stream
            .write_all(b"GET /api/v1/state HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.lines().next().unwrap_or_default().to_owned()
    };
    std::thread::spawn(ask).join().unwrap()
}

#[test]
fn another_user_is_refused_even_where_the_socket_can_be_reached() {
    let stage = Stage::new("");
    let socket = stage.a.socket();
    let open = |path: &Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    };
    open(&socket);
    open(socket.parent().unwrap());
    assert!(ask_as(0, socket.clone()).contains("200"));
    assert!(ask_as(65_534, socket).contains("403"));
}

#[test]
fn commands_of_a_stranger_are_not_heard() {
    let stage = Stage::new("");
    let network = stage.network.namespace(1).unwrap();
    let host = stage.network.address(0).ip();
    // The peer itself is heard.
    let heard = || stage.b.cli(&["-H", "a", "state"]).0 == 0;
    assert!(wait_until(PATIENCE, heard));
    let ask = move || {
        // SAFETY: only this thread, which ends here, changes its namespace.
        let rc = unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(rc, 0);
        let mut line = TcpStream::connect((host, 4801)).unwrap();
        line.set_read_timeout(Some(PATIENCE)).unwrap();
        line.write_all(b"GET /api/v1/state HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = Vec::new();
        // Broken off or closed: what counts is what was said.
        let _ = line.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let answer = std::thread::spawn(ask).join().unwrap();
    assert!(
        !answer.contains("HTTP") && !answer.contains("node"),
        "{answer}"
    );
}

#[test]
fn strangers_at_the_line_between_the_daemons_disturb_nothing() {
    let stage = Stage::running("isolation=\"wait\"");
    let network = stage.network.namespace(0).unwrap();
    let hosts = [0, 1].map(|n| stage.network.address(n).ip());
    let talk = move || {
        // SAFETY: only this thread, which ends here, changes its namespace.
        let rc = unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(rc, 0);
        let mut lines = Vec::new();
        for host in hosts {
            for n in 0..50 {
                // The odd one listens to what is said, the even one lets callers in.
                let Ok(mut line) = TcpStream::connect((host, 4800)) else {
                    continue;
                };
                match n % 3 {
                    0 => {}
                    1 => drop(line.write_all(&[0xff; 4096])),
                    _ => drop(line.write_all(b"GET / HTTP/1.1\r\n\r\n")),
                }
                lines.push(line);
            }
        }
        lines.len()
    };
    let connected = std::thread::spawn(talk).join().unwrap();
    assert!(connected > 0);
    for _ in 0..3 {
        stage.a.works();
    }
    let together = || stage.a.is("PRIM", "Ready") && stage.b.is("SECOND", "Ready");
    assert!(wait_until(PATIENCE, together));
    let shown = stage.a.must(&["state"]);
    assert!(shown.contains("lan net: heartbeats"), "{shown}");
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
}
