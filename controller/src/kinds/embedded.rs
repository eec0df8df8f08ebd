//! The files of the kinds, from `controller/modules`.

/// A kind of module.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    /// `userconfig.xml`.
    pub(super) config: &'static str,
    pub(super) readme: &'static str,
    pub(super) scripts: &'static [Script],
}

/// A file in `bin`.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) name: &'static str,
    pub(super) text: &'static str,
    /// Others are read by those that are.
    pub(super) executable: bool,
}

macro_rules! kind {
    ($name:literal, scripts $scripts:tt, read by them $read:tt) => {
        Kind {
            name: $name,
            config: include_str!(concat!("../../modules/", $name, "/userconfig.xml")),
            readme: include_str!(concat!("../../modules/", $name, "/README.md")),
            scripts: scripts!($name, $scripts, $read),
        }
    };
}

macro_rules! scripts {
    ($name:literal, [$($script:literal),*], [$($read:literal),*]) => {
        &[
            $(script!($name, $script, true),)*
            $(script!($name, $read, false),)*
        ]
    };
}

macro_rules! script {
    ($name:literal, $script:literal, $executable:literal) => {
        Script {
            name: $script,
            text: include_str!(concat!("../../modules/", $name, "/bin/", $script)),
            executable: $executable,
        }
    };
}

/// All of them.
pub(super) const KINDS: &[Kind] = &[
    kind!(
        "mirror",
        scripts ["prestart", "start_prim", "stop_prim", "check_services"],
        read by them []
    ),
    kind!(
        "kvm",
        scripts ["prestart", "start_prim", "stop_prim", "check_vm"],
        read by them ["vm"]
    ),
    kind!(
        "postgresql",
        scripts ["prestart", "start_prim", "stop_prim", "check_server"],
        read by them ["server"]
    ),
];
