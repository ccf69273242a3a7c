//! The binary; everything is in the library, so that the CLI can run the same daemon.

fn main() -> std::process::ExitCode {
    lago_webhook_processor::main_with_args(std::env::args_os().collect())
}
