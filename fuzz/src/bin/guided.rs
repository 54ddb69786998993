//! libFuzzer's driver for the target that the environment names. `./x fuzz` builds and runs it.
#![no_main]

use std::sync::OnceLock;
use tests::failing::Failing;

#[global_allocator]
static HEAP: Failing = Failing;

static TARGET: OnceLock<&fuzz::Target> = OnceLock::new();

fn target() -> &'static fuzz::Target {
    TARGET.get_or_init(|| {
        let name = std::env::var("HSAVE_FUZZ_TARGET").expect("HSAVE_FUZZ_TARGET names a target");
        fuzz::target(&name).expect("HSAVE_FUZZ_TARGET names a target that there is")
    })
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::run(target(), bytes));
