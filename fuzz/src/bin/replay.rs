//! Does what the files say: `replay TARGET FILE...`; `replay --list` says which targets there are. With HSAVE_FUZZ_SHOW in the environment, `ioctls` prints each step.

use std::process::ExitCode;
use tests::failing::Failing;

#[global_allocator]
static HEAP: Failing = Failing;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--list") {
        for target in &fuzz::TARGETS {
            println!("{}\t{}\t{}", target.name, target.longest, target.what);
        }
        return ExitCode::SUCCESS;
    }
    let target = words.first().and_then(|name| fuzz::target(name));
    let (Some(target), Some(files)) = (target, words.get(1..)) else {
        let names: Vec<&str> = fuzz::TARGETS.iter().map(|t| t.name).collect();
        eprintln!("replay TARGET FILE...; targets are {}", names.join(", "));
        return ExitCode::FAILURE;
    };
    for file in files {
        let bytes = match std::fs::read(file) {
            Ok(bytes) => bytes,
            Err(why) => {
                eprintln!("{file}: {why}");
                return ExitCode::FAILURE;
            }
        };
        println!("{file}: {} bytes", bytes.len());
        fuzz::run(target, &bytes);
    }
    ExitCode::SUCCESS
}
