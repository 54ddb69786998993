//! Which of the tests are wanted.

use crate::{
    kernels::{self, Kernel},
    strict::Processor,
};

/// Which of the tests to run.
#[derive(Clone)]
pub struct Selection {
    /// What takes long as well.
    pub all: bool,
    /// A comma-separated list of substrings; what has one in its name is run.
    pub only: Option<String>,
    /// Only this kernel.
    pub kernel: Option<Kernel>,
    /// Who emulates the host.
    pub processor: Processor,
    /// Each emulated host runs for a quarter of the time only.
    pub slow: bool,
}

/// What needs no module, when it is asked for by name.
const WITHOUT_MODULES: [&str; 9] =
    ["tidy", "clippy", "cargo-test", "miri", "oldest-rust", "operator", "chroot", "packages", "strict-checks"];

impl Selection {
    pub fn needs_modules(&self) -> bool {
        let without = |only: &str| WITHOUT_MODULES.iter().any(|name| only.starts_with(name));
        self.only.as_ref().is_none_or(|only| !only.split(',').all(without))
    }

    pub fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.split(',').any(|only| name.contains(only)))
    }

    /// Whether it is asked for by its whole name.
    pub fn names(&self, name: &str) -> bool {
        self.only.as_ref().is_some_and(|only| only.split(',').any(|only| name == only))
    }

    pub fn kernels(&self) -> Vec<Kernel> {
        let others = kernels::OTHERS.into_iter().filter(|other| self.all || self.kernel == Some(*other));
        kernels::ALL.into_iter().chain(others).filter(|kernel| self.kernel.is_none_or(|only| only == *kernel)).collect()
    }

    /// The packages are dear: with all, or when asked for.
    pub fn wants_packages(&self, name: &str) -> bool {
        self.wants(name) && (self.all || self.only.is_some())
    }

    /// So are whole runs on plain machines.
    pub fn wants_chroots(&self) -> bool {
        self.all || self.only.as_deref().is_some_and(|only| only.split(',').any(|only| only.starts_with("chroot")))
    }
}
