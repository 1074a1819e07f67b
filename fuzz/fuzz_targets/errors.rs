//! libFuzzer main of [`fuzz::errors`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::errors(data));
