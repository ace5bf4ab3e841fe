//! The command line: `serve` (also when no subcommand is given), `models list | pull | verify`,
//! `bench engine | run | capacity | compare | report` and `gpu-check`.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command as Clap, value_parser};

use super::bench::{self, BenchCommand};
use super::layers::{self, Values};
use super::settings::{Kind, LISTENING, MODELS, PROGRAM, SETTINGS, SOURCES, Setting};
use super::{Config, ConfigError};
use crate::gpu_check::GpuCheck;
use crate::model::device::DeviceSpec;

/// What the user asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Serve models over HTTP.
    Serve,
    /// Look after models' files.
    Models(ModelsCommand),
    /// Measure.
    Bench(BenchCommand),
    /// Check a card.
    GpuCheck(GpuCheck),
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
            Some(("bench", matches)) => {
                let (name, matches) = matches.subcommand().expect("clap asks for a subcommand");
                (Command::Bench(bench::parse(name, matches)?), matches)
            }
            Some(("gpu-check", matches)) => {
                let device = matches.get_one("card").expect("it has a default");
                let check = GpuCheck {
                    device: *device,
                    json: matches.get_one("json").cloned(),
                };
                (Command::GpuCheck(check), matches)
            }
            Some((other, _)) => unreachable!("clap knows no subcommand {other}"),
        };
        Ok(CommandLine {
            command,
            flags: layers::flags(matches),
        })
    }

    /// The flags as environment variables: for a service of our own that is to have the same settings.
    pub fn variables(&self) -> Vec<(String, String)> {
        self.flags.variables()
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
        .subcommand(bench::command(
            settings_of(&[MODELS, SOURCES, PROGRAM]),
            serving_measured,
        ))
        .subcommand(gpu_check())
}

fn gpu_check() -> Clap {
    Clap::new("gpu-check")
        .about("Check what a card computes against the processor, and measure its limits")
        .after_help(
            "Exit code: 0 if all is well, 1 if something differs or fails, 2 if there is no card that this build \
             can use.",
        )
        .args([
            // Not the setting of this name: its default is another.
            Arg::new("card")
                .long("device")
                .value_name("cuda:N|metal:N|cpu")
                .default_value("cuda:0")
                .value_parser(|text: &str| text.parse::<DeviceSpec>())
                .help("What to check"),
            Arg::new("json")
                .long("json")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("Write everything that was found as JSON here"),
        ])
        .args(settings_of(&[PROGRAM]))
        .args(
            SETTINGS
                .iter()
                .filter(|setting| setting.key == "compute_threads")
                .map(argument),
        )
}

/// The settings of these sections, without those that only a service needs.
fn settings_of(sections: &[&str]) -> Vec<Arg> {
    SETTINGS
        .iter()
        .filter(|setting| sections.contains(&setting.section))
        .filter(|setting| setting.key != "drain_timeout_ms")
        .map(argument)
        .collect()
}

/// The settings of a service that is started to be measured: all but where it listens.
fn serving_measured() -> Vec<Arg> {
    SETTINGS
        .iter()
        .filter(|setting| setting.section != LISTENING)
        .map(argument)
        .collect()
}

fn models() -> Clap {
    let shared = || settings_of(&[PROGRAM, SOURCES]);
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
    use crate::bench::ReportFormat;

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
    fn a_card_is_checked_unless_another_device_is_named() {
        let check = |line: &str| match parse(line).unwrap().command {
            Command::GpuCheck(check) => check,
            other => panic!("{other:?}"),
        };
        let usual = check("gpu-check");
        assert_eq!((usual.device, usual.json), (DeviceSpec::Cuda(0), None));
        let other = check("gpu-check --device cuda:3 --json a.json --compute-threads 2");
        assert_eq!(other.device, DeviceSpec::Cuda(3));
        assert_eq!(other.json, Some("a.json".into()));
    }

    #[test]
    fn measurements_have_levels_of_their_own_and_settings_like_serving() {
        let engine = |line: &str| match parse(line).unwrap().command {
            Command::Bench(BenchCommand::Engine(options)) => options,
            other => panic!("{other:?}"),
        };
        let usual = engine("bench engine");
        assert_eq!(usual.prefill, [128, 512, 2048]);
        assert_eq!(usual.rows, [1, 2, 4, 8, 16, 32, 64]);
        assert_eq!((usual.context, usual.steps, usual.repeats), (128, 32, 3));
        assert_eq!((usual.format, &usual.json), (ReportFormat::Table, &None));
        let other = engine(
            "bench engine --prefill 7 --rows 3,1 --context 9 --steps 2 --repeats 1 --seed 5 \
             --format json --json out.json --model x.gguf --load-format dummy --compute-threads 2 \
             --kv-dtype f16 --device cpu --max-context 99 --log-level warn",
        );
        assert_eq!(
            (&other.prefill[..], &other.rows[..]),
            (&[7][..], &[3, 1][..])
        );
        assert_eq!((other.context, other.steps, other.repeats), (9, 2, 1));
        assert_eq!((other.seed, other.format), (5, ReportFormat::Json));
        assert_eq!(other.json, Some("out.json".into()));
    }

    #[test]
    fn finished_reports_are_compared_and_written_again() {
        let command = |line: &str| match parse(line).unwrap().command {
            Command::Bench(command) => command,
            other => panic!("{other:?}"),
        };
        let BenchCommand::Compare(usual) = command("bench compare a.json b.json") else {
            panic!("it compares");
        };
        assert_eq!(
            (usual.before, usual.after),
            ("a.json".into(), "b.json".into())
        );
        assert_eq!((usual.allowed, usual.all, usual.json), (0.0, false, false));
        let line = "bench compare a.json b.json --allow 5 --all --format json";
        let BenchCommand::Compare(other) = command(line) else {
            panic!("it compares");
        };
        assert_eq!((other.allowed, other.all, other.json), (0.05, true, true));
        let line = "bench report a.json --report-html a.html --csv a.csv --vllm-json v.json";
        let BenchCommand::Report(report) = command(line) else {
            panic!("it writes");
        };
        assert_eq!(report.files.html, Some("a.html".into()));
        assert_eq!(report.files.csv, Some("a.csv".into()));
        assert_eq!(report.files.vllm_json, Some("v.json".into()));
        assert_eq!((report.files.json, report.files.markdown), (None, None));
    }

    #[test]
    fn wrong_lines_are_refused() {
        let many = format!("bench engine --rows {}", vec!["1"; 33].join(","));
        for (line, expected) in [
            ("--batch-sise 1", "--batch-size"),
            ("models", "Usage"),
            ("models pull", "<MODEL>"),
            ("models list --batch-size 1", "--batch-size"),
            ("--port 1 models list", "subcommand"),
            ("serve x", "x"),
            ("bench", "Usage"),
            ("bench engine --rows 0", "0 is not in 1..=4096"),
            ("bench engine --rows 1,,2", "--rows"),
            ("bench engine --rows 4097", "4097 is not in 1..=4096"),
            ("bench engine --prefill 8,x", "--prefill"),
            ("bench engine --prefill=", "--prefill"),
            ("bench engine --context 1048577", "--context"),
            ("bench engine --steps 10001", "1..=10000"),
            ("bench engine --repeats 0", "1..=100"),
            ("bench engine --seed -1", "-1"),
            ("bench engine --format csv", "table, json"),
            ("bench engine --batch-size 1", "--batch-size"),
            ("bench engine --port 1", "--port"),
            ("bench compare a.json", "<FILE.json>"),
            ("bench compare a.json b.json --allow -1", "-1"),
            ("bench compare a.json b.json --allow x", "from 0 to 1000"),
            ("bench compare a.json b.json --model x", "--model"),
            ("bench report", "<FILE.json>"),
            ("gpu-check --device gpu", "write cpu, cuda:N or metal:N"),
            ("gpu-check --model x", "--model"),
            (&many, "--rows lists 33 levels; at most 32"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
