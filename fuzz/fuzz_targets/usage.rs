//! libFuzzer's way into `outrigger_fuzz::usage`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| outrigger_fuzz::run(outrigger_fuzz::usage::target, data));
