//! The binary; everything is in the library, so that the CLI can do the same.

fn main() -> std::process::ExitCode {
    lago_seeder::main_with_args(std::env::args_os().collect())
}
