//! Each target with the inputs that are kept, and with some that nobody has chosen.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use tests::failing::Failing;
use tests::random::Random;

#[global_allocator]
static HEAP: Failing = Failing;

/// Random inputs for each target.
const RANDOM: usize = 400;

fn kept(name: &str) {
    let target = fuzz::target(name).expect("a target");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(&folder).expect("inputs").map(|f| f.expect("a file").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no inputs", folder.display());
    for file in files {
        let bytes = fs::read(&file).expect("it can be read");
        assert!(bytes.len() <= target.longest, "{} is longer than its target takes", file.display());
        let ran = catch_unwind(AssertUnwindSafe(|| fuzz::run(target, &bytes)));
        assert!(ran.is_ok(), "./x fuzz --replay {}", file.display());
    }
}

/// What nobody has chosen, as long as half of what a target takes, with many small numbers.
fn random(name: &str) {
    let target = fuzz::target(name).expect("a target");
    let mut random = Random(0x5eed);
    for n in 0..RANDOM {
        let len = random.below(target.longest as u64 / 2) as usize;
        let small = random.below(4) != 0;
        let byte = |r: &mut Random| if small && r.below(2) == 0 { r.below(8) } else { r.below(256) } as u8;
        let bytes: Vec<u8> = (0..len).map(|_| byte(&mut random)).collect();
        let ran = catch_unwind(AssertUnwindSafe(|| fuzz::run(target, &bytes)));
        if ran.is_err() {
            let file = std::env::temp_dir().join(format!("hsave-{name}-{n}"));
            fs::write(&file, &bytes).expect("room for what failed");
            panic!("./x fuzz --target {name} --replay {}", file.display());
        }
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(mod $name {
            #[test]
            fn kept() {
                super::kept(stringify!($name));
            }
            #[test]
            fn random() {
                super::random(stringify!($name));
            }
        })*
        #[test]
        fn all_of_them() {
            assert_eq!(fuzz::TARGETS.map(|t| t.name), [$(stringify!($name)),*]);
        }
    };
}
targets! { ioctls emulator walk lapic chips states ghcb }
