//! `twinfold`: see [`twinfold_controller::cli`].

fn main() -> std::process::ExitCode {
    twinfold_controller::cli::main()
}
