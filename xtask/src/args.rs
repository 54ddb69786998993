//! The command line: one variant per command, each handed to the file that does it.

use crate::{
    bench, debian, differences,
    disk::DiskArgs,
    env::Env,
    fuzz, here,
    host::{self, Boot, Flavour},
    job,
    kernels::{self, Kernel},
    listing, module, package, panics, profile, prove, run,
    selection::Selection,
    strict::Processor,
    test, tidy, verify,
};
use anyhow::{Context, Result};
use clap::{Args as ClapArgs, Parser, Subcommand};
use std::{path::PathBuf, process::ExitCode, time::Duration};

#[derive(Parser)]
#[command(name = "x", about = "Builds, runs, tests and measures hsave", max_term_width = 100)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Start a Linux guest on hsave, in an emulated AMD machine
    Run {
        /// The emulated machine's kernel
        #[arg(long, default_value = "6.12")]
        kernel: Kernel,
        /// The guest's board, as QEMU's -M takes it: microvm, q35 or pc
        #[arg(long, default_value = "microvm", conflicts_with = "disk")]
        machine: String,
        /// Whose modules the emulated machine loads
        #[arg(long, default_value = "ours")]
        module: Flavour,
        /// Who emulates the AMD machine
        #[arg(long, default_value = "plain")]
        processor: Processor,
        /// On this machine instead: needs an AMD processor with SVM, and root
        #[arg(long, conflicts_with_all = ["kernel", "module", "processor"])]
        here: bool,
        /// Replace the engine under the guest ten times, while it counts on its console
        #[arg(long, conflicts_with_all = ["machine", "module", "here", "disk"])]
        upgrade: bool,
        #[command(flatten)]
        disk: DiskArgs,
    },
    /// Run the quick tests: rules, unit tests, modules for three kernels, scenarios in the emulated machine
    Test {
        /// Run everything (`--list --all` names it)
        #[arg(long)]
        all: bool,
        /// A comma-separated list of substrings; a test runs if its name contains one
        #[arg(long)]
        only: Option<String>,
        /// Only this kernel
        #[arg(long)]
        kernel: Option<Kernel>,
        /// Who emulates the AMD machine
        #[arg(long, default_value = "strict")]
        processor: Processor,
        /// Print the names of what would be run, and run none of it
        #[arg(long)]
        list: bool,
        /// On this machine instead, on stock's modules and on ours, with a report: needs an AMD processor with SVM, and root
        #[arg(long, conflicts_with_all = ["kernel", "processor", "list", "junit"])]
        here: bool,
        /// Write what came of each test into this file as JUnit XML, too
        #[arg(long, value_name = "FILE")]
        junit: Option<PathBuf>,
        /// Each emulated host runs for a quarter of the time only, as on a slow machine: nothing may come out differently
        #[arg(long, hide = true)]
        slow: bool,
    },
    /// Look for programs of bytes that break something, until it is stopped (docs/fuzzing.md)
    Fuzz {
        /// Stop after so many hours
        #[arg(long, default_value_t = 0.0, hide_default_value = true)]
        hours: f64,
        /// Only this target
        #[arg(long)]
        target: Option<String>,
        /// Do what this file says, and show it
        #[arg(long, value_name = "FILE")]
        replay: Option<PathBuf>,
        /// Say instead what all inputs reach, crate by crate
        #[arg(long)]
        coverage: bool,
        /// Take the smallest inputs that reach all of it into the tree instead
        #[arg(long, conflicts_with = "coverage")]
        keep: bool,
    },
    /// Check the project's rules that the compiler does not know
    Tidy {
        /// Write first what docs/vmm.md shows of the tests' tables
        #[arg(long)]
        write: bool,
    },
    /// List what can panic in the module
    Panics,
    /// Count host instructions per VM exit beside stock kvm-amd, and write docs/performance.md
    Bench {
        #[arg(long, default_value = "6.12")]
        kernel: Kernel,
        /// Who emulates the AMD machine
        #[arg(long, default_value = "strict")]
        processor: Processor,
        /// Fail if ours takes more than this fraction of stock anywhere
        #[arg(long)]
        most: Option<f64>,
        /// Add an estimate for a processor that saves the next RIP, without decoding on both sides
        #[arg(long)]
        with_nrips: bool,
        /// Show instead which functions one kind's instructions are in
        #[arg(long, value_name = "KIND")]
        profile: Option<String>,
        /// Whose modules are profiled
        #[arg(long, default_value = "ours", requires = "profile")]
        module: Flavour,
    },
    /// Build kvm.ko and kvm-amd.ko for prepared kernel headers
    Module {
        /// The kernel's build directory, such as /usr/src/linux-headers-VERSION
        #[arg(long, required_unless_present = "kernel")]
        kdir: Option<PathBuf>,
        /// A stock Debian kernel instead, its headers fetched into the cache
        #[arg(long, conflicts_with = "kdir")]
        kernel: Option<Kernel>,
        /// Where the two modules are put
        #[arg(long)]
        out: PathBuf,
        /// Build another engine of this name instead, to be loaded beside the first: for tests, with its memory laid out otherwise
        #[arg(long, value_name = "NAME")]
        engine: Option<String>,
    },
    /// Make the Debian packages hsave-dkms and hsave-tools
    Package {
        /// Where they are put
        #[arg(long, default_value = "target/packages")]
        out: PathBuf,
    },
    /// Prove the rules of the world switch on a built kvm-amd.ko
    Verify {
        module: PathBuf,
        /// Show the path that is nearly always taken
        #[arg(long)]
        listing: bool,
        /// Count its costly instructions
        #[arg(long)]
        costs: bool,
        /// Write what was found at each instruction into docs/world-switch.md
        #[arg(long)]
        document: bool,
    },
    /// Run all that proves the world switch, show what is caught, and time it
    Prove,
    /// Fetch Debian's kernels 6.1, 6.12 and 7.3 of the cloud flavour into the cache; whatever else a command needs it fetches itself
    Fetch {
        /// Look for newer packages than those in the cache
        #[arg(long)]
        refresh: bool,
    },
    /// Boot the emulated AMD host and run a script in it
    Host(HostArgs),
}

#[derive(ClapArgs)]
pub struct HostArgs {
    /// Who emulates the AMD machine
    #[arg(long, default_value = "plain")]
    processor: Processor,
    #[arg(long, default_value = "6.12")]
    kernel: Kernel,
    /// Whose kvm.ko and kvm-amd.ko are loaded
    #[arg(long, default_value = "ours")]
    module: Flavour,
    /// A directory with our modules, instead of building them
    #[arg(long)]
    modules: Option<PathBuf>,
    /// Processors for the script
    #[arg(long, default_value_t = 2)]
    smp: u32,
    /// Megabytes
    #[arg(long, default_value_t = 4096)]
    mem: u32,
    /// Virtual time counts instructions, of all processors together
    #[arg(long)]
    icount: bool,
    /// The processor model that is emulated
    #[arg(long, default_value = host::CPU)]
    cpu: String,
    /// Further words of its kernel's command line
    #[arg(long, default_value = "")]
    cmdline: String,
    /// Files to add, as PATH_IN_HOST=FILE
    #[arg(long)]
    file: Vec<String>,
    /// A module of the host's kernel more, with what it needs
    #[arg(long)]
    load: Vec<String>,
    /// Debian 13 with these packages installed, a comma-separated list, as a disk, /dev/sda
    #[arg(long, value_delimiter = ',')]
    debian: Vec<String>,
    /// An argument more for QEMU
    #[arg(long, allow_hyphen_values = true)]
    qemu: Vec<String>,
    /// Seconds
    #[arg(long, default_value_t = 300)]
    timeout: u64,
    /// All that this scenario has, and its script; of what stands here, only whose modules, which kernel and how long
    #[arg(long)]
    scenario: Option<String>,
    /// A script's file, or a command
    #[arg(last = true, required_unless_present = "scenario")]
    words: Vec<String>,
}

impl HostArgs {
    fn run(self, env: &Env) -> Result<ExitCode> {
        if let Some(name) = &self.scenario {
            let boot = job::alone(env, name, self.kernel, self.module, self.modules)?;
            return host::boot(env, &Boot { timeout: Duration::from_secs(self.timeout), ..boot }, self.processor);
        }
        let mut boot = Boot::new(self.kernel, self.module, "");
        (boot.ours, boot.smp, boot.memory, boot.icount) = (self.modules, self.smp, self.mem, self.icount);
        (boot.cpu, boot.timeout, boot.show) = (self.cpu, Duration::from_secs(self.timeout), true);
        (boot.cmdline, boot.qemu, boot.loaded) = (self.cmdline, self.qemu, self.load);
        if !self.debian.is_empty() {
            let packages: Vec<&str> = self.debian.iter().map(String::as_str).collect();
            boot.loaded.extend(debian::MODULES.map(str::to_owned));
            boot.drives.push(debian::disk(env, &packages)?);
        }
        for file in &self.file {
            let (to, from) = file.split_once('=').context("--file wants PATH_IN_HOST=FILE")?;
            boot.files.push((to.to_owned(), from.into()));
        }
        host::command(env, boot, self.processor, &self.words)
    }
}

impl Command {
    pub fn run(self) -> Result<ExitCode> {
        let env = Env::new()?;
        match self {
            Self::Run { kernel, processor, upgrade: true, .. } => return run::upgrade(&env, processor, kernel),
            Self::Run { kernel, machine, module, processor, here, disk, .. } => {
                return match (&disk.disk, here) {
                    (Some(image), false) => disk.emulated(&env, processor, kernel, module, image),
                    (Some(image), true) => disk.here(&env, image),
                    (None, false) => run::emulated(&env, processor, kernel, module, &machine),
                    (None, true) => run::here(&env, &machine),
                };
            }
            Self::Test { all, only, kernel, processor, slow, list: true, .. } => {
                listing::print(&Selection { all, only, kernel, processor, slow })?;
            }
            Self::Test { all, only, kernel, processor, slow, here: true, .. } => {
                return here::run(&env, &Selection { all, only, kernel, processor, slow });
            }
            Self::Test { all, only, kernel, processor, slow, junit, .. } => {
                return test::run(&env, &Selection { all, only, kernel, processor, slow }, junit.as_deref());
            }
            Self::Tidy { write } => {
                if write {
                    differences::write(&env)?;
                }
                tidy::run(&env)?;
            }
            Self::Fuzz { hours, target, replay, coverage, keep } => {
                return fuzz::run(&env, &fuzz::Options { hours, target, replay, coverage, keep });
            }
            Self::Panics => return panics::command(&env),
            Self::Bench { kernel, processor, module, profile: Some(kind), .. } => {
                return profile::run(&env, processor, kernel, module, &kind);
            }
            Self::Bench { kernel, processor, most, with_nrips, .. } => {
                return bench::run(&env, kernel, &bench::Options { processor, most, with_nrips });
            }
            Self::Module { kdir, kernel, out, engine } => {
                let kdir = match (kdir, kernel) {
                    (Some(kdir), _) => kdir,
                    (None, Some(kernel)) => kernels::fetch(&env, kernel)?.headers,
                    (None, None) => unreachable!("clap requires one of the two"),
                };
                match engine {
                    None => module::build(&env, &kdir, &out)?,
                    Some(name) => drop(module::build_engine(&env, &kdir, &out, &name)?),
                }
            }
            Self::Package { out } => drop(package::build(&env, &out)?),
            Self::Verify { module, document: true, .. } => verify::write_document(&env, &module)?,
            Self::Verify { module, listing, costs, .. } => verify::command(&module, listing, costs)?,
            Self::Prove => prove::run(&env)?,
            Self::Host(host) => return host.run(&env),
            Self::Fetch { refresh } => kernels::fetch_all(&env, refresh)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
