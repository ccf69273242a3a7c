//! libFuzzer's way into `outrigger_fuzz::identity`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| outrigger_fuzz::run(outrigger_fuzz::identity::target, data));
