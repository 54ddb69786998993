//! How much longer the scenarios take: by what each took the last time on this machine, or else by the table, and by how fast those
//! were that are done.

use crate::{env::Env, job::Job, proc};
use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

/// The scenarios of one run.
pub struct Progress {
    start: Instant,
    /// Seconds that are expected of each that is not done.
    left: BTreeMap<String, f32>,
    /// All of them at the start.
    all: (usize, f32),
}

impl Progress {
    pub fn new(env: &Env, jobs: &[Job]) -> Self {
        let expected = |job: &Job| {
            let before = fs::read_to_string(known(env, job)).ok().and_then(|text| text.trim().parse().ok());
            (job.name(), before.unwrap_or(job.scenario.seconds as f32))
        };
        Self::of(jobs.iter().map(expected).collect())
    }

    fn of(left: BTreeMap<String, f32>) -> Self {
        let all = (left.len(), left.values().sum());
        Self { start: Instant::now(), left, all }
    }

    /// What is to be done, in words, if so many run at a time.
    pub fn begin(&self, parallel: usize) -> String {
        format!("{} scenarios, about {:.0} minutes", self.all.0, self.all.1 / parallel as f32 / 60.0)
    }

    /// One is done, and took so long: what is left, in words.
    pub fn done(&mut self, env: &Env, job: &Job, took: Duration) -> String {
        self.left.remove(&job.name());
        // Without it the next estimate is worse, and nothing else.
        let _ = proc::write_if_changed(&known(env, job), took.as_secs_f32().to_string().as_bytes());
        self.left_after(self.start.elapsed())
    }

    /// The rest goes as fast as what is done went, whatever the machine is and however many run beside each other.
    fn left_after(&self, elapsed: Duration) -> String {
        let rest = self.left.values().fold(0.0_f32, |sum, seconds| sum + seconds);
        let done = (self.all.1 - rest).max(1.0);
        let minutes = elapsed.as_secs_f32() * rest / done / 60.0;
        format!("{} of {} scenarios done, about {minutes:.0} minutes left", self.all.0 - self.left.len(), self.all.0)
    }
}

/// Where is kept how many seconds one took the last time.
fn known(env: &Env, job: &Job) -> PathBuf {
    env.cache.join("took").join(job.name().replace(' ', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_goes_as_fast_as_what_is_done() {
        let expected = [("a", 10.0), ("b", 30.0), ("c", 20.0)].map(|(name, seconds)| (name.to_owned(), seconds));
        let mut progress = Progress::of(expected.into());
        assert_eq!(progress.begin(1), "3 scenarios, about 1 minutes");
        progress.left.remove("a");
        // A sixth of it took two minutes.
        let said = progress.left_after(Duration::from_secs(120));
        assert_eq!(said, "1 of 3 scenarios done, about 10 minutes left");
    }
}
