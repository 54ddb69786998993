//! What time it is in the emulated host, asked of its QEMU: the limit of a wait is in that time, so that it does not matter how
//! fast this machine is.
//!
//! The emulated clock of the board starts at midnight and follows the emulator's virtual time (`-rtc clock=vm`), whatever
//! the kernel in it does. It is asked for over two named pipes, which may lie at any path.

use crate::proc;
use anyhow::Result;
use std::{
    fs::File,
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::Command,
    time::Duration,
};

/// Of open(2), on this architecture.
const O_NONBLOCK: i32 = 0o4000;

/// Arguments of QEMU for a monitor in the directory of a run, and for the clock.
pub fn arguments(dir: &Path) -> [String; 6] {
    [
        "-rtc".to_owned(),
        "base=2026-01-01T00:00:00,clock=vm".to_owned(),
        "-chardev".to_owned(),
        format!("pipe,id=control,path={}", dir.join("control").display()),
        "-mon".to_owned(),
        "chardev=control,mode=control".to_owned(),
    ]
}

/// A QEMU that answers.
pub struct GuestTime {
    to: File,
    from: File,
    /// What has come of an answer.
    partial: Vec<u8>,
    now: Duration,
}

impl GuestTime {
    /// Makes the pipes; to be called before QEMU starts.
    pub fn new(dir: &Path) -> Result<Self> {
        let [input, output] = ["control.in", "control.out"].map(|name| dir.join(name));
        proc::run(Command::new("mkfifo").arg(&input).arg(&output))?;
        // Opened for both, a pipe needs nobody at its other end yet.
        let open = |path: &Path| File::options().read(true).write(true).custom_flags(O_NONBLOCK).open(path);
        let mut time = Self { to: open(&input)?, from: open(&output)?, partial: Vec::new(), now: Duration::ZERO };
        time.send(r#"{"execute":"qmp_capabilities"}"#);
        Ok(time)
    }

    /// A full pipe means that QEMU does not listen; then there is no news.
    fn send(&mut self, command: &str) {
        let _ = self.to.write_all(format!("{command}\n").as_bytes());
    }

    /// The time since power-on, in whole seconds, as of the last answer; asks for the next one.
    pub fn poll(&mut self) -> Duration {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = self.from.read(&mut buffer) {
            self.partial.extend_from_slice(&buffer[..count]);
        }
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            if let Some(time) = time_of_day(&String::from_utf8_lossy(&line)) {
                self.now = time;
            }
        }
        self.send(r#"{"execute":"qom-get","arguments":{"path":"/machine","property":"rtc-time"}}"#);
        self.now
    }
}

/// The time in an answer: since the first of the month, which is that of power-on.
fn time_of_day(answer: &str) -> Option<Duration> {
    let field = |name: &str| -> Option<u64> {
        let rest = answer.split_once(&format!("\"{name}\":"))?.1.trim_start();
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let days = field("tm_mday")?.checked_sub(1)?;
    Some(Duration::from_secs(((days * 24 + field("tm_hour")?) * 60 + field("tm_min")?) * 60 + field("tm_sec")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_in_the_answer() {
        let answer =
            r#"{"return": {"tm_sec": 5, "tm_hour": 1, "tm_mday": 2, "tm_year": 126, "tm_mon": 0, "tm_min": 2}}"#;
        assert_eq!(time_of_day(answer), Some(Duration::from_secs(86_400 + 3_600 + 120 + 5)));
        assert_eq!(time_of_day(r#"{"return": {}}"#), None);
        assert_eq!(time_of_day(r#"{"QMP": {"version": {}}}"#), None);
    }
}
