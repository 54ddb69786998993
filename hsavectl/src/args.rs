//! The command line.

use crate::{choose::Choice, modules::Pair, system::Result, upgrade::Upgrade};
use lexopt::prelude::*;
use std::ffi::OsString;

/// What is to be done.
pub enum Command {
    Use(Choice),
    Status,
    Report,
    /// With the name of one that is to be current.
    Engines(Option<String>),
    Vms,
    Upgrade(Upgrade),
    Help,
    Version,
}

/// What was typed.
pub struct Args {
    pub command: Command,
    pub json: bool,
}

pub const HELP: &str = "\
Usage: hsavectl COMMAND [OPTION]...

Which pair of modules serves /dev/kvm, what it does, and how it is replaced.

  use stock|hsave [--next-boot]
        make the kernel's own modules or hsave's serve /dev/kvm, now and after each boot; refuses while
        anybody has a VM. --next-boot leaves the modules in memory alone
  status
        which pair serves, which the next boot loads, and who has VMs
  engines [--current NAME]
        the engines that are loaded, and how many VMs each has; --current gives new VMs to another one
  vms   the VMs and the engine of each
  upgrade [--vm PID] [--to ENGINE] [--dry-run]
        hand running VMs over to another engine, by default to the one that new VMs get
  report
        what a bug report needs: versions, processor, kernel, mitigations, parameters, statistics, the
        kernel's words on KVM; nothing that guests hold

  --json      print data as JSON (not with `use`)
  --help, --version

Exit status: 0 done, 1 it failed or was refused, 2 the command line is wrong. See hsavectl(8), hsave(7).";

/// Reads the words behind the program's name.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Args> {
    read(lexopt::Parser::from_args(words)).map_err(|error| format!("{error}; `hsavectl --help` shows what there is"))
}

fn read(mut parser: lexopt::Parser) -> std::result::Result<Args, lexopt::Error> {
    let mut command: Option<Command> = None;
    let mut json = false;
    while let Some(arg) = parser.next()? {
        match (&mut command, arg) {
            (_, Long("json")) => json = true,
            (_, Short('h') | Long("help")) => command = Some(Command::Help),
            (_, Short('V') | Long("version")) => command = Some(Command::Version),
            (Some(Command::Help | Command::Version), _) => {}
            (None, Value(word)) => {
                command = Some(match word.string()?.as_str() {
                    "use" => Command::Use(Choice { pair: pair(&parser.value()?.string()?)?, next_boot: false }),
                    "status" => Command::Status,
                    "report" => Command::Report,
                    "engines" => Command::Engines(None),
                    "vms" => Command::Vms,
                    "upgrade" => Command::Upgrade(Upgrade::default()),
                    "help" => Command::Help,
                    other => return Err(format!("there is no command '{other}'").into()),
                });
            }
            (Some(Command::Use(choice)), Long("next-boot")) => choice.next_boot = true,
            (Some(Command::Engines(current)), Long("current")) => *current = Some(name(parser.value()?.string()?)?),
            (Some(Command::Upgrade(upgrade)), Long("vm")) => upgrade.vm = Some(parser.value()?.parse()?),
            (Some(Command::Upgrade(upgrade)), Long("to")) => upgrade.to = Some(name(parser.value()?.string()?)?),
            (Some(Command::Upgrade(upgrade)), Long("dry-run")) => upgrade.dry_run = true,
            (_, other) => return Err(other.unexpected()),
        }
    }
    if json && matches!(command, Some(Command::Use(_))) {
        return Err("--json is for commands that print data".into());
    }
    let command = command.ok_or("no command was given")?;
    Ok(Args { command, json })
}

fn pair(word: &str) -> std::result::Result<Pair, lexopt::Error> {
    match word {
        "stock" => Ok(Pair::Stock),
        "hsave" => Ok(Pair::Hsave),
        other => Err(format!("`use` takes stock or hsave, not '{other}'").into()),
    }
}

/// An engine's name as the kernel spells it: of what modules are called, which no path can be made of.
fn name(word: String) -> std::result::Result<String, lexopt::Error> {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if word.is_empty() || !word.chars().all(fine) {
        return Err(format!("'{word}' is no name of an engine").into());
    }
    Ok(word.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Args> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn good_and_bad_lines() {
        let Ok(Args { command: Command::Upgrade(upgrade), json: true }) =
            parsed("--json upgrade --vm=42 --to hsave-0_2 --dry-run")
        else {
            panic!("not understood")
        };
        assert_eq!((upgrade.vm, upgrade.to.as_deref(), upgrade.dry_run), (Some(42), Some("hsave_0_2"), true));
        assert!(matches!(
            parsed("use stock --next-boot").unwrap().command,
            Command::Use(Choice { next_boot: true, .. })
        ));
        assert!(matches!(parsed("vms --help").unwrap().command, Command::Help));
        for (line, word) in [
            ("", "no command"),
            ("use", "missing argument"),
            ("use intel", "stock or hsave"),
            ("use stock --json", "--json"),
            ("fly", "no command 'fly'"),
            ("status --vm 1", "--vm"),
            ("upgrade --vm x", "x"),
            ("upgrade --to ../../x", "no name of an engine"),
            ("vms more", "more"),
        ] {
            let why = parsed(line).err().unwrap();
            assert!(why.contains(word) && why.ends_with("`hsavectl --help` shows what there is"), "{line}: {why}");
        }
    }
}
