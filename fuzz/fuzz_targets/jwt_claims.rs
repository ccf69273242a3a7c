//! libFuzzer's way into `outrigger_fuzz::jwt_claims`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| outrigger_fuzz::run(outrigger_fuzz::jwt_claims::target, data));
