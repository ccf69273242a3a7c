//! libFuzzer's way into `outrigger_fuzz::http_server`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| outrigger_fuzz::run(outrigger_fuzz::http_server::target, data));
