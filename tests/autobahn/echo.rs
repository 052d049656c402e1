//! The relay with the feature `echo-endpoint`, for `tests/autobahn/run`. An example so that no build
//! of the relay itself can pick the feature up.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    rheostr::cli::main()
}
