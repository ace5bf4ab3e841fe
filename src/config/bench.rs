//! The command line of `bench`: what is to be measured. Which model, and how it is set up, are settings
//! like those of `serve`.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command as Clap, value_parser};

use super::resolve::MAX_ROWS;
use crate::bench::{EngineBench, ReportFormat};

/// Levels of one kind.
const MAX_LEVELS: usize = 32;
/// No model that we know goes further.
const MAX_PROMPT: u64 = 1 << 20;
const MAX_STEPS: u64 = 10_000;
const MAX_REPEATS: u64 = 100;

const HEADING: &str = "Measurement";

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BenchCommand {
    /// The engine, without HTTP.
    Engine(EngineBench),
}

/// `bench`, whose subcommands take `settings` too.
pub(super) fn command(settings: impl IntoIterator<Item = Arg>) -> Clap {
    Clap::new("bench")
        .about("Measure what this machine gives")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommand(
            Clap::new("engine")
                .about("Measure a model without HTTP: prefill, decode, and where the time goes")
                .args(engine_arguments())
                .args(settings),
        )
}

fn engine_arguments() -> [Arg; 8] {
    let argument = |name: &'static str, value: &'static str, default: &'static str, help: &str| {
        Arg::new(name)
            .long(name)
            .value_name(value)
            .default_value(default)
            .help(help.to_owned())
            .help_heading(HEADING)
    };
    let number = |range| RangedU64ValueParser::<u32>::new().range(range);
    let list = |argument: Arg| argument.value_delimiter(',').action(ArgAction::Set);
    [
        list(argument(
            "prefill",
            "TOKENS,..",
            "128,512,2048",
            "Prompt lengths to measure",
        ))
        .value_parser(number(1..=MAX_PROMPT)),
        list(argument(
            "rows",
            "ROWS,..",
            "1,2,4,8,16,32,64",
            "Numbers of rows that decode together",
        ))
        .value_parser(number(1..=MAX_ROWS)),
        argument(
            "context",
            "TOKENS",
            "128",
            "Tokens in each row's K/V before it decodes",
        )
        .value_parser(number(1..=MAX_PROMPT)),
        argument("steps", "COUNT", "32", "Decode steps of a repeat")
            .value_parser(number(1..=MAX_STEPS)),
        argument(
            "repeats",
            "COUNT",
            "3",
            "How often each level is measured; medians are shown",
        )
        .value_parser(number(1..=MAX_REPEATS)),
        argument("seed", "NUMBER", "0", "Seed of the random prompts")
            .value_parser(value_parser!(u64)),
        argument("format", "table|json", "table", "What goes to stdout")
            .value_parser(["table", "json"])
            .hide_possible_values(true),
        Arg::new("json")
            .long("json")
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("Write the JSON here, too")
            .help_heading(HEADING),
    ]
}

/// What the arguments of a `bench` subcommand say.
///
/// # Errors
/// There are more levels than anybody waits for.
pub(super) fn parse(name: &str, matches: &ArgMatches) -> Result<BenchCommand, clap::Error> {
    match name {
        "engine" => Ok(BenchCommand::Engine(engine(matches)?)),
        other => unreachable!("clap knows no subcommand bench {other}"),
    }
}

fn engine(matches: &ArgMatches) -> Result<EngineBench, clap::Error> {
    let number = |name: &str| *matches.get_one::<u32>(name).expect("it has a default");
    Ok(EngineBench {
        prefill: levels("prefill", matches)?,
        rows: levels("rows", matches)?,
        context: number("context"),
        steps: number("steps"),
        repeats: number("repeats"),
        seed: *matches.get_one("seed").expect("it has a default"),
        format: match matches.get_one::<String>("format").map(String::as_str) {
            Some("json") => ReportFormat::Json,
            _ => ReportFormat::Table,
        },
        json: matches.get_one("json").cloned(),
    })
}

fn levels(name: &str, matches: &ArgMatches) -> Result<Vec<u32>, clap::Error> {
    let levels: Vec<u32> = matches
        .get_many(name)
        .into_iter()
        .flatten()
        .copied()
        .collect();
    match levels.len() {
        0..=MAX_LEVELS => Ok(levels),
        count => Err(clap::Error::raw(
            ErrorKind::TooManyValues,
            format!("--{name} lists {count} levels; at most {MAX_LEVELS} are measured\n"),
        )),
    }
}
