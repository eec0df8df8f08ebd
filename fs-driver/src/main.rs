//! `twinfold-fs`: the driver of one replicated folder, by hand.

fn main() -> std::process::ExitCode {
    fs_driver::cli::main(std::env::args_os())
}
