//! The controller, for tests that run it as a process.

fn main() -> std::process::ExitCode {
    twinfold_controller::cli::main()
}
