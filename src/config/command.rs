//! The command line: `serve` (also when no subcommand is given) and `models list | pull | verify`.

use clap::{Arg, ArgAction, ArgMatches, Command as Clap};

use super::layers::{self, Values};
use super::settings::{Kind, PROGRAM, SETTINGS, SOURCES, Setting};
use super::{Config, ConfigError};

/// What the user asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve models over HTTP.
    Serve,
    /// Look after models' files.
    Models(ModelsCommand),
}

/// What to do with models' files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelsCommand {
    /// Show the known ones.
    List,
    /// Fetch one.
    Pull(String),
    /// Check one against its digest, or `all` that are here.
    Verify(String),
}

/// A parsed command line.
#[derive(Debug)]
pub struct CommandLine {
    /// What to do.
    pub command: Command,
    flags: Values,
}

impl CommandLine {
    /// Reads the arguments of the process.
    ///
    /// # Errors
    /// A wrong argument, or `--help` and `--version`: clap's error knows what to print, and how to
    /// exit.
    pub fn parse(
        arguments: impl IntoIterator<Item = std::ffi::OsString>,
    ) -> Result<Self, clap::Error> {
        let matches = command().try_get_matches_from(arguments)?;
        let (command, matches) = match matches.subcommand() {
            None => (Command::Serve, &matches),
            Some(("serve", matches)) => (Command::Serve, matches),
            Some(("models", matches)) => {
                let (name, matches) = matches.subcommand().expect("clap asks for a subcommand");
                (Command::Models(models_command(name, matches)), matches)
            }
            Some((other, _)) => unreachable!("clap knows no subcommand {other}"),
        };
        Ok(CommandLine {
            command,
            flags: layers::flags(matches),
        })
    }

    /// Lays the flags over the environment, the file and the defaults, and judges the result.
    /// `variables` are all environment variables.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn resolve(&self, variables: &[(String, String)]) -> Result<Config, ConfigError> {
        super::resolve::resolve(self.flags.clone(), variables)
    }
}

fn models_command(name: &str, matches: &ArgMatches) -> ModelsCommand {
    let model = || {
        matches
            .get_one::<String>("name")
            .cloned()
            .expect("clap asks for it")
    };
    match name {
        "list" => ModelsCommand::List,
        "pull" => ModelsCommand::Pull(model()),
        "verify" => ModelsCommand::Verify(model()),
        other => unreachable!("clap knows no subcommand models {other}"),
    }
}

fn command() -> Clap {
    let serving = || SETTINGS.iter().map(argument);
    Clap::new("girandole")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Serves language models to many clients at once, from one batch.")
        .after_help(
            "Without a subcommand, girandole serves.\n\
             Every flag is also an environment variable (GIRANDOLE_BATCH_SIZE) and a key of the \
             configuration file (batch_size); flags win over variables, variables over the file.",
        )
        .args(serving())
        .args_conflicts_with_subcommands(true)
        .disable_help_subcommand(true)
        .subcommand(
            Clap::new("serve")
                .about("Serve models over HTTP (the default)")
                .args(serving()),
        )
        .subcommand(models())
}

fn models() -> Clap {
    let shared = || {
        SETTINGS
            .iter()
            .filter(|setting| [PROGRAM, SOURCES].contains(&setting.section))
            .filter(|setting| setting.key != "drain_timeout_ms")
            .map(argument)
    };
    let name = |help: &'static str| {
        Arg::new("name")
            .value_name("MODEL")
            .required(true)
            .help(help)
    };
    Clap::new("models")
        .about("List, fetch and check models")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommand(
            Clap::new("list")
                .about("Show the models known by name")
                .args(shared()),
        )
        .subcommand(
            Clap::new("pull")
                .about("Fetch a model, so that serving starts at once")
                .arg(name(
                    "A name from the list, or hf:OWNER/REPO[@REV][:FILE.gguf]",
                ))
                .args(shared()),
        )
        .subcommand(
            Clap::new("verify")
                .about("Check a model's file against its digest")
                .arg(name("A name from the list, or `all`"))
                .args(shared()),
        )
}

fn argument(setting: &Setting) -> Arg {
    let help = match setting.default {
        "" => setting.help.to_owned(),
        _ if setting.kind == Kind::Switch => setting.help.to_owned(),
        default => format!("{} [default: {default}]", setting.help),
    };
    // clap wants names that live as long as the program; they are few and made once.
    let argument = Arg::new(setting.key)
        .long(&*setting.flag().leak())
        .value_name(setting.value)
        .help(help)
        .help_heading(setting.section);
    match setting.kind {
        Kind::One => argument,
        Kind::Many => argument.action(ArgAction::Append),
        Kind::Switch => argument
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<CommandLine, clap::Error> {
        let words = std::iter::once("girandole").chain(line.split_whitespace());
        CommandLine::parse(words.map(Into::into))
    }

    #[test]
    fn the_command_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn serve_is_the_default() {
        for line in ["", "serve", "--port 0", "serve --port 0"] {
            assert_eq!(parse(line).unwrap().command, Command::Serve, "{line}");
        }
        let pull = Command::Models(ModelsCommand::Pull("x".into()));
        assert_eq!(parse("models pull x --offline").unwrap().command, pull);
        let verify = Command::Models(ModelsCommand::Verify("all".into()));
        assert_eq!(parse("models verify all").unwrap().command, verify);
        assert_eq!(
            parse("models list").unwrap().command,
            Command::Models(ModelsCommand::List)
        );
    }

    #[test]
    fn wrong_lines_are_refused() {
        for (line, expected) in [
            ("--batch-sise 1", "--batch-size"),
            ("models", "Usage"),
            ("models pull", "<MODEL>"),
            ("models list --batch-size 1", "--batch-size"),
            ("--port 1 models list", "subcommand"),
            ("serve x", "x"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
