//! A machine of the demonstration: a network and a process namespace, in which the daemon of
//! this very program runs a module. It is spoken to as an operator would.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fs_driver::control;
use fs_driver::store::Layout;
use rustix::mount::UnmountFlags;

use super::lan::{self, INTERFACE, Lan};
use super::nodes::{self, State};
use super::stage::Stage;
use super::writers::{Team, Writer};

/// The module.
pub(crate) const MODULE: &str = "demo";

/// The controller's port and the driver's.
const PORT: u16 = 4800;
const DATA: u16 = 4810;

/// Both machines share one disk here, which may be busy. A line that is silent for three quarters
/// of the first one is lost: for as long as heartbeats may be missed.
const DEADLINES: [&str; 6] = [
    "--stall-ms",
    "4000",
    "--op-ms",
    "20000",
    "--sync-ms",
    "40000",
];

/// How long a command may take; it may wait for a state.
const COMMAND: Duration = Duration::from_secs(360);

/// The first process of a machine, which takes note of the end of those whose parent has ended.
const INIT: &str = r#""$@" & while :; do sleep 1000; done"#;

/// The application is at work as long as somebody tells the writers so.
const START: &str = "#!/bin/sh\necho >\"$DEMO_HOME/application\"\n";
const STOP: &str = r#"#!/bin/sh
rm -f "$DEMO_HOME/application"
while [ -e "$DEMO_HOME/working" ]; do sleep 0.02; done
"#;

/// One machine.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) name: &'static str,
    pub(crate) end: usize,
    pub(crate) folder: PathBuf,
    home: PathBuf,
    network: File,
    layout: Layout,
    /// The process that holds its process namespace, and the first one in that.
    running: Option<(u32, u32)>,
    stage: Arc<Stage>,
}

impl Machine {
    /// Makes one, without power.
    pub(crate) fn new(stage: &Arc<Stage>, lan: &Lan, end: usize) -> Result<Machine> {
        let name = ["node-a", "node-b"][end];
        let home = stage.directory().join(name);
        let folder = home.join("folder");
        for made in [&home, &folder, &home.join("etc")] {
            std::fs::create_dir(made).with_context(|| format!("cannot make {}", made.display()))?;
        }
        let layout = Layout::new(fs_driver::setup::default_base(&folder)?);
        stage.note_file(control::socket_path(&layout));
        Ok(Machine {
            name,
            end,
            folder,
            home,
            network: lan.of(end)?,
            layout,
            running: None,
            stage: stage.clone(),
        })
    }

    /// This program, on this machine.
    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let me = std::env::current_exe().context("cannot find this program's own file")?;
        let mut command = Command::new(me);
        command.arg("--home").arg(&self.home).args(arguments);
        command.env_remove("TWINFOLD_LOG");
        lan::enter(&mut command, &self.network)?;
        Ok(command)
    }

    fn log_of(&self, what: &str) -> PathBuf {
        self.home.join(format!("{what}.log"))
    }

    /// Begins a command that takes its time: its process, and where it says something.
    pub(crate) fn begin(&self, arguments: &[&str]) -> Result<(u32, PathBuf)> {
        let log = self.log_of(arguments[0]);
        // What was said before is another command's.
        let _ = std::fs::remove_file(&log);
        Ok((self.stage.spawn(self.command(arguments)?, &log)?, log))
    }

    /// Waits for its end; what it said.
    pub(crate) fn finish(&self, (process, log): (u32, PathBuf), what: &str) -> Result<String> {
        let status = self.stage.wait(process, COMMAND)?;
        let said = std::fs::read_to_string(&log)
            .with_context(|| format!("cannot read {}", log.display()))?;
        if !status.success() {
            let (name, said) = (self.name, said.trim());
            bail!(
                "`twinfold {what}` failed on {name}: {said}{}",
                self.last_words()
            );
        }
        Ok(said)
    }

    /// Runs a command to its end; what it said.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String> {
        self.finish(self.begin(arguments)?, &arguments.join(" "))
    }

    /// Waits for a state of the module.
    pub(crate) fn wait(&self, state: &str, status: &str) -> Result<()> {
        let timeout = ["--timeout", "300"];
        let what = ["waitstate", "-m", MODULE, state, "--status", status];
        self.run(&[&what[..], &timeout].concat()).map(drop)
    }

    /// Power comes, and with it the daemon.
    pub(crate) fn start(&mut self, lan: &Lan) -> Result<()> {
        lan.power(self.end, true)?;
        let me = std::env::current_exe().context("cannot find this program's own file")?;
        let mut command = Command::new("unshare");
        command.args([
            "--pid",
            "--fork",
            "--kill-child=KILL",
            "--",
            "sh",
            "-c",
            INIT,
        ]);
        command.arg("init").arg(me).arg("--home").arg(&self.home);
        command.arg("daemon").env("DEMO_HOME", &self.home);
        command.env_remove("TWINFOLD_LOG");
        lan::enter(&mut command, &self.network)?;
        let holder = self.stage.spawn(command, &self.log_of("daemon"))?;
        let children = format!("/proc/{holder}/task/{holder}/children");
        let until = Instant::now() + COMMAND;
        let socket = self.home.join("run/twinfold.sock");
        loop {
            let text = std::fs::read_to_string(&children).unwrap_or_default();
            let init = text.split_whitespace().next().and_then(|p| p.parse().ok());
            if let Some(init) = init
                && std::os::unix::net::UnixStream::connect(&socket).is_ok()
            {
                self.stage.note_process(init);
                self.running = Some((holder, init));
                return Ok(());
            }
            if let Some(status) = self.stage.ended(holder)? {
                bail!("{} ended: {status}{}", self.name, self.last_words());
            }
            if Instant::now() > until {
                bail!(
                    "the daemon of {} does not answer{}",
                    self.name,
                    self.last_words()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The power goes: everything that runs is killed, and nothing is heard of it. At once.
    pub(crate) fn cut(&self, lan: &Lan) -> Result<()> {
        let (holder, _) = self.running.context("the machine has no power")?;
        self.stage.kill(holder)?;
        lan.power(self.end, false)
    }

    /// Waits until everything that was killed is gone, and takes away what it left mounted.
    pub(crate) fn bury(&mut self) -> Result<()> {
        let (holder, init) = self.running.take().context("the machine has no power")?;
        self.stage.wait(holder, COMMAND)?;
        self.stage.wait_for_the_end(init)?;
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        let _ = rustix::mount::unmount(&self.folder, flags);
        for gone in ["application", "working"] {
            let _ = std::fs::remove_file(self.home.join(gone));
        }
        Ok(())
    }

    /// Fails if what has to run has ended.
    pub(crate) fn check(&self) -> Result<()> {
        let (holder, _) = self.running.context("the machine has no power")?;
        match self.stage.ended(holder)? {
            Some(status) => bail!("{} ended: {status}{}", self.name, self.last_words()),
            None => Ok(()),
        }
    }

    /// What its driver says of itself, if it answers.
    pub(crate) fn state(&self) -> Option<State> {
        nodes::ask(&self.layout).ok().flatten()
    }

    /// Whether the module's scripts have said that the application is to work here.
    pub(crate) fn is_to_work(&self) -> bool {
        self.home.join("application").exists()
    }

    /// Waits for that.
    pub(crate) fn wait_for_work(&self, wanted: bool, deadline: Duration) -> Result<()> {
        let until = Instant::now() + deadline;
        while self.is_to_work() != wanted {
            self.check()?;
            if Instant::now() > until {
                let what = if wanted { "started" } else { "stopped" };
                let (name, words) = (self.name, self.last_words());
                bail!("the application on {name} is not {what} after {deadline:?}{words}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Sets the writers to work here.
    pub(crate) fn work(&self, team: Vec<Writer>) -> Result<Team> {
        std::fs::write(self.home.join("working"), "")?;
        Team::start(team, &self.folder)
    }

    /// They do not work here any more.
    pub(crate) fn rests(&self) -> std::io::Result<()> {
        std::fs::remove_file(self.home.join("working"))
    }

    /// The stored copy itself.
    pub(crate) fn data(&self) -> PathBuf {
        self.layout.data()
    }

    /// The ends of its logs.
    pub(crate) fn last_words(&self) -> String {
        let daemon = nodes::end_of(&self.log_of("daemon"), self.name);
        let driver = self.home.join("log").join(MODULE).join("driver.log");
        daemon + &nodes::end_of(&driver, &format!("{}'s driver", self.name))
    }

    /// Makes the folder, whose copy is good here or comes from the other one.
    fn init(&self, whose: &str, peer_id: &str) -> Result<()> {
        let text = |path: &Path| path.display().to_string();
        let (folder, etc) = (text(&self.folder), text(&self.home.join("etc")));
        let at = |end: usize| format!("{}:{DATA}", lan::machine(end));
        let (listen, peer) = (at(self.end), at(1 - self.end));
        let mut all = vec!["fs", "init", &folder, whose, "--name", MODULE];
        all.extend(["--identity", &etc, "--listen", &listen, "--peer", &peer]);
        all.extend(["--peer-id", peer_id]);
        all.extend(DEADLINES);
        self.run(&all).map(drop)
    }

    /// Writes what an operator would.
    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.home.join("etc").join(name);
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
            std::fs::write(&path, text)?;
            // A script is a program.
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Two machines get to know each other by a token.
pub(crate) fn pair(a: &Machine, b: &Machine) -> Result<()> {
    let node = |m: &Machine| {
        let address = lan::machine(m.end);
        format!("<node name=\"{}\" addr=\"{address}\"/>", m.name)
    };
    let lans = format!("<lan name=\"net\">{}{}</lan>", node(a), node(b));
    a.write(
        "cluster.xml",
        &format!("<cluster><lans port=\"{PORT}\">{lans}</lans></cluster>"),
    )?;
    let init = a.begin(&["cluster", "init", "--node", a.name])?;
    let until = Instant::now() + COMMAND;
    let token = loop {
        let said = std::fs::read_to_string(&init.1).unwrap_or_default();
        let whole = said.rfind('\n').map_or("", |end| &said[..end]);
        let told = |l: &str| l.strip_prefix("twinfold cluster join ").map(str::to_owned);
        if let Some(token) = whole.lines().find_map(told) {
            break token;
        }
        if Instant::now() > until || a.stage.ended(init.0)?.is_some() {
            bail!("`twinfold cluster init` prints no token: {said}");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    b.run(&["cluster", "join", &token])?;
    a.finish(init, "cluster init").map(drop)
}

/// Makes the folder on both machines; the data is that of the first one.
pub(crate) fn make_folders(a: &Machine, b: &Machine) -> Result<()> {
    let identity = |m: &Machine| m.run(&["cluster", "identity"]);
    let ids = (identity(a)?, identity(b)?);
    a.init("--good-copy", ids.1.trim())?;
    b.init("--from-peer", ids.0.trim())
}

/// Configures the module on a machine, and so on both.
pub(crate) fn configure(a: &Machine) -> Result<()> {
    let (witness, address) = (lan::user(), lan::of_application());
    let text = format!(
        r#"<safe>
  <service mode="mirror" boot="on" isolation="wait">
    <heart timeout="3s"/>
    <rfs><replicated dir="%DEMO_HOME%/folder"/></rfs>
    <vip><interface_list><interface name="{INTERFACE}"><real_interface>
      <virtual_addr addr="{address}"/>
    </real_interface></interface></interface_list></vip>
    <check><splitbrain ident="user" exec="ping" arg="{witness}"/></check>
  </service>
</safe>
"#
    );
    let module = format!("modules/{MODULE}");
    a.write(&format!("{module}/userconfig.xml"), &text)?;
    a.write(&format!("{module}/bin/start_prim"), START)?;
    a.write(&format!("{module}/bin/stop_prim"), STOP)?;
    a.run(&["config", "-m", MODULE]).map(drop)
}
