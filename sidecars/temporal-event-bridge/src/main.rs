//! The binary; everything is in the library, so that the CLI can run the same daemon.

// Requests are allocated by the threads that serve and freed by the one that writes, which the C library's
// allocator is slow at (ADR 0011).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    temporal_event_bridge::main_with_args(std::env::args_os().collect())
}
