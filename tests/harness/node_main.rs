//! The driver as a program of this package, so that tests can start it.

fn main() -> std::process::ExitCode {
    fs_driver::cli::main(std::env::args_os())
}
