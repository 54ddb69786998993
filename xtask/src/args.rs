//! The command line: one variant per command, each handed to the file that does it.

use crate::{
    bench,
    env::Env,
    host::{self, Boot, Flavour},
    kernels::{self, Kernel},
    module, panics, profile, prove, run,
    strict::Processor,
    test::{self, Selection},
    tidy, verify,
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
        #[arg(long, default_value = "microvm")]
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
    },
    /// Run all tests: rules, unit tests, modules for three kernels, scenarios in the emulated machine
    Test {
        /// With what takes long: Miri, all of the kernel's own KVM selftests, QEMU with every board, interrupt controller,
        /// firmware and number of vCPUs, and `./x run` and `./x test` in chroots of a plain Debian 12 and 13
        #[arg(long)]
        all: bool,
        /// Only the tests whose name contains this, or one of these, which commas part
        #[arg(long)]
        only: Option<String>,
        /// Only this kernel
        #[arg(long)]
        kernel: Option<Kernel>,
        /// Who emulates the AMD machine
        #[arg(long, default_value = "strict")]
        processor: Processor,
        /// Each emulated host runs for a quarter of the time only, as on a slow machine: nothing may come out differently
        #[arg(long, hide = true)]
        slow: bool,
    },
    /// Check the rules of the house that the compiler does not know
    Tidy,
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
        /// Draw docs/performance.svg too
        #[arg(long)]
        plot: bool,
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
    },
    /// Prove the rules of the world switch on a built kvm.ko
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
    /// Fetch the Debian kernels and tools that the tests use into the cache
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
    /// An argument more for QEMU
    #[arg(long, allow_hyphen_values = true)]
    qemu: Vec<String>,
    /// Seconds
    #[arg(long, default_value_t = 300)]
    timeout: u64,
    /// A script's file, or a command
    #[arg(last = true, required = true)]
    words: Vec<String>,
}

impl HostArgs {
    fn run(self, env: &Env) -> Result<ExitCode> {
        let mut boot = Boot::new(self.kernel, self.module, "");
        (boot.ours, boot.smp, boot.memory, boot.icount) = (self.modules, self.smp, self.mem, self.icount);
        (boot.cpu, boot.timeout, boot.show) = (self.cpu, Duration::from_secs(self.timeout), true);
        (boot.cmdline, boot.qemu) = (self.cmdline, self.qemu);
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
            Self::Run { kernel, machine, module, processor, here: false } => {
                return run::emulated(&env, processor, kernel, module, &machine);
            }
            Self::Run { machine, here: true, .. } => return run::here(&env, &machine),
            Self::Test { all, only, kernel, processor, slow } => {
                return test::run(&env, &Selection { all, only, kernel, processor, slow });
            }
            Self::Tidy => tidy::run(&env)?,
            Self::Panics => return panics::command(&env),
            Self::Bench { kernel, processor, module, profile: Some(kind), .. } => {
                return profile::run(&env, processor, kernel, module, &kind);
            }
            Self::Bench { kernel, processor, most, with_nrips, plot, .. } => {
                return bench::run(&env, kernel, &bench::Options { processor, most, with_nrips, plot });
            }
            Self::Module { kdir, kernel, out } => {
                let kdir = match (kdir, kernel) {
                    (Some(kdir), _) => kdir,
                    (None, Some(kernel)) => kernels::fetch(&env, kernel)?.headers,
                    (None, None) => unreachable!("clap requires one of the two"),
                };
                module::build(&env, &kdir, &out)?;
            }
            Self::Verify { module, document: true, .. } => verify::write_document(&env, &module)?,
            Self::Verify { module, listing, costs, .. } => verify::command(&module, listing, costs)?,
            Self::Prove => prove::run(&env)?,
            Self::Host(host) => return host.run(&env),
            Self::Fetch { refresh } => kernels::fetch_all(&env, refresh)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
