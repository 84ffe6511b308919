//! A step: a command that is shown on stderr before it is executed.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Output};

use anyhow::Context;

use crate::workspace;

/// A command, ready to be shown and executed.
#[derive(Debug)]
pub(crate) struct Step {
    command: Command,
    environment: String,
}

/// A step ended with a status other than 0. Whoever ran has said why.
#[derive(Debug)]
pub(crate) struct Ended {
    /// What ran.
    pub(crate) what: String,
    /// Its exit status.
    pub(crate) status: u8,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ended with status {}", self.what, self.status)
    }
}

impl std::error::Error for Ended {}

impl Step {
    /// A program, run where the user stands, so that relative paths stay true.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            command: Command::new(program),
            environment: String::new(),
        }
    }

    /// The cargo that started us, run at the workspace's root.
    pub(crate) fn cargo() -> Self {
        let mut step = Self::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        step.command.current_dir(workspace::root());
        step
    }

    /// Adds one argument.
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub(crate) fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of the environment, and shows it.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, &value);
        self.environment += &format!("{name}={} ", quoted(value.as_ref()));
        self
    }

    /// Hides variables of the environment.
    pub(crate) fn without_env(mut self, names: &[&str]) -> Self {
        for name in names {
            self.command.env_remove(name);
        }
        self
    }

    /// Shows the step on stderr.
    pub(crate) fn echo(&self) {
        eprintln!("+ {self}");
    }

    /// The command itself, for who must start it in a way of their own.
    pub(crate) fn command(&mut self) -> &mut Command {
        &mut self.command
    }

    /// Shows and runs it; its status, whatever it is.
    pub(crate) fn status(mut self) -> anyhow::Result<u8> {
        self.echo();
        let status = self
            .command
            .status()
            .with_context(|| format!("cannot start `{self}`"))?;
        Ok(number(status))
    }

    /// Shows and runs it; a status other than 0 is an error.
    pub(crate) fn check(self) -> anyhow::Result<()> {
        let what = self.to_string();
        match self.status()? {
            0 => Ok(()),
            status => Err(Ended { what, status }.into()),
        }
    }

    /// Shows and runs it, and keeps what it prints on stdout; a status other than 0 is an error.
    pub(crate) fn stdout(mut self) -> anyhow::Result<Vec<u8>> {
        self.echo();
        self.command.stderr(std::process::Stdio::inherit());
        let output = self.output()?;
        match number(output.status) {
            0 => Ok(output.stdout),
            status => Err(Ended {
                what: self.to_string(),
                status,
            }
            .into()),
        }
    }

    /// Runs it without showing it, and keeps what it prints.
    pub(crate) fn output(&mut self) -> anyhow::Result<Output> {
        self.command
            .output()
            .with_context(|| format!("cannot start `{self}`"))
    }

    /// Shows it and becomes it: signals and the exit status are its own from here on. Returns
    /// only if it cannot be started.
    pub(crate) fn exec(mut self) -> anyhow::Error {
        self.echo();
        let error = self.command.exec();
        anyhow::Error::new(error).context(format!("cannot start `{self}`"))
    }
}

impl fmt::Display for Step {
    /// As one would type it: paths relative where they lie below, arguments quoted where a shell
    /// asks for it, a program from elsewhere (cargo) by its name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = Path::new(workspace::shown(self.command.get_program()));
        let name = if program.is_absolute() {
            program.file_name()
        } else {
            None
        };
        write!(
            f,
            "{}{}",
            self.environment,
            quoted(name.unwrap_or(program.as_os_str()))
        )?;
        self.command
            .get_args()
            .try_for_each(|arg| write!(f, " {}", quoted(workspace::shown(arg))))
    }
}

/// An exit status as a shell gives it: 128 and the signal's number for who died by one.
pub(crate) fn number(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, signal) => 128 | u8::try_from(signal.unwrap_or(0)).unwrap_or(0),
    }
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_shown_as_one_would_type_it() {
        let step = Step::new("/some/where/exitvisor")
            .args(["run", "--cmdline", "queries=5 it's", ""])
            .env("A", "b c");
        assert_eq!(
            step.to_string(),
            r"A='b c' exitvisor run --cmdline 'queries=5 it'\''s' ''"
        );
    }

    #[test]
    fn statuses_are_a_shells() {
        assert_eq!(number(ExitStatus::from_raw(69 << 8)), 69);
        assert_eq!(number(ExitStatus::from_raw(9)), 137);
    }
}
