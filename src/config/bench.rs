//! The command line of `bench`: what is to be measured. Which model, and how it is set up, are settings
//! like those of `serve`.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command as Clap, value_parser};

use super::load_bench;
use super::resolve::MAX_ROWS;
use crate::bench::compare::CompareOptions;
use crate::bench::options::{CapacityOptions, RunOptions};
use crate::bench::render::{ReportFiles, ReportOptions};
use crate::bench::{EngineBench, ReportFormat};

/// Levels of one kind.
const MAX_LEVELS: usize = 32;
/// No model that we know goes further.
const MAX_PROMPT: u64 = 1 << 20;
const MAX_STEPS: u64 = 10_000;
const MAX_REPEATS: u64 = 100;
const MAX_POINT_SECONDS: u64 = 3600;
/// Pixels along an edge.
const MAX_EDGE: u32 = 8192;

/// Percent; whoever allows more wants no comparison.
const MAX_ALLOWED: f64 = 1000.0;

const HEADING: &str = "Measurement";
const OUTPUT_HEADING: &str = "Report";

/// What to measure.
#[derive(Clone, Debug, PartialEq)]
pub enum BenchCommand {
    /// The engine, without HTTP.
    Engine(EngineBench),
    /// A server under a given load, and where the report goes.
    Run(Box<RunOptions>, ReportFiles),
    /// How much load a server carries, and where the report goes.
    Capacity(Box<CapacityOptions>, ReportFiles),
    /// Two finished reports against each other.
    Compare(CompareOptions),
    /// A finished report in other forms.
    Report(ReportOptions),
}

/// `bench`, whose subcommands take `settings` too, or those of `serving` where they serve themselves.
pub(super) fn command(
    settings: impl IntoIterator<Item = Arg>,
    serving: impl Fn() -> Vec<Arg>,
) -> Clap {
    Clap::new("bench")
        .about("Measure what this machine gives")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommand(
            Clap::new("engine")
                .about("Measure a model without HTTP: prefill, decode, and where the time goes; denoising, decoding and encoding of pictures")
                .args(engine_arguments())
                .args(settings),
        )
        .subcommand(load_bench::run_command(serving()))
        .subcommand(load_bench::capacity_command(serving()))
        .subcommand(compare_command())
        .subcommand(report_command())
}

fn report_file(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .value_name("FILE.json")
        .required(true)
        .value_parser(value_parser!(PathBuf))
        .help(help)
}

fn compare_command() -> Clap {
    Clap::new("compare")
        .about("Compare two reports and mark what differs beyond their intervals")
        .after_help(
            "Exit code: 0 if nothing is worse, 1 if something is, 2 if the reports cannot be compared.",
        )
        .args([
            report_file("before", "The report to measure by, as --json wrote it"),
            report_file("after", "The report to judge"),
            Arg::new("allow")
                .long("allow")
                .value_name("PERCENT")
                .default_value("0")
                .value_parser(percent)
                .help("How much worse a figure may be"),
            Arg::new("all")
                .long("all")
                .action(ArgAction::SetTrue)
                .help("Show the figures that do not differ, too"),
            Arg::new("format")
                .long("format")
                .value_name("table|json")
                .default_value("table")
                .value_parser(["table", "json"])
                .hide_possible_values(true)
                .help("What goes to stdout"),
        ])
}

fn report_command() -> Clap {
    Clap::new("report")
        .about("Write a finished report in other forms; without any, as Markdown to stdout")
        .arg(report_file("report", "A report, as --json wrote it"))
        .args(output_arguments())
}

/// Where a report goes: the same for all commands that make one.
pub(super) fn output_arguments() -> [Arg; 5] {
    let file = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help(help)
            .help_heading(OUTPUT_HEADING)
    };
    [
        file("report-html", "Write one self-contained page here"),
        file(
            "json",
            "Write everything as JSON here, for `bench compare` and `bench report`",
        ),
        file("csv", "Write a line per point here"),
        file(
            "markdown",
            "Write the answer and the points as Markdown here",
        ),
        file(
            "vllm-json",
            "Write a line per point here, in the schema of `vllm bench serve`",
        ),
    ]
}

/// What [`output_arguments`] say.
pub(super) fn report_files(matches: &ArgMatches) -> ReportFiles {
    let file = |name: &str| matches.get_one::<PathBuf>(name).cloned();
    ReportFiles {
        html: file("report-html"),
        json: file("json"),
        csv: file("csv"),
        markdown: file("markdown"),
        vllm_json: file("vllm-json"),
    }
}

/// `5` -> 0.05
fn percent(text: &str) -> Result<f64, String> {
    let percent = text.trim_end_matches('%').trim().parse::<f64>().ok();
    percent
        .filter(|percent| (0.0..=MAX_ALLOWED).contains(percent))
        .map(|percent| percent / 100.0)
        .ok_or_else(|| format!("write a number from 0 to {MAX_ALLOWED}"))
}

fn engine_arguments() -> [Arg; 10] {
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
            "Prompt lengths to measure (text)",
        ))
        .value_parser(number(1..=MAX_PROMPT)),
        list(argument(
            "rows",
            "ROWS,..",
            "1,2,4,8,16,32,64",
            "Numbers of rows that decode together, or share a denoising step",
        ))
        .value_parser(number(1..=MAX_ROWS)),
        argument(
            "context",
            "TOKENS",
            "128",
            "Tokens in each row's K/V before it decodes (text)",
        )
        .value_parser(number(1..=MAX_PROMPT)),
        argument(
            "steps",
            "COUNT",
            "32",
            "Decode steps of a repeat; of pictures, the most samples of a point",
        )
        .value_parser(number(1..=MAX_STEPS)),
        argument(
            "repeats",
            "COUNT",
            "3",
            "How often each level is measured (text); medians are shown",
        )
        .value_parser(number(1..=MAX_REPEATS)),
        Arg::new("size")
            .long("size")
            .value_name("WIDTHxHEIGHT")
            .value_parser(size)
            .action(ArgAction::Append)
            .help("Pixels of a picture; may be repeated [default: the model's own]")
            .help_heading(HEADING),
        argument(
            "point-seconds",
            "SECONDS",
            "20",
            "How long each figure of an image model may take; one sample is always taken",
        )
        .value_parser(number(1..=MAX_POINT_SECONDS)),
        argument(
            "seed",
            "NUMBER",
            "0",
            "Seed of the random prompts, or of the pictures",
        )
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
        "run" => load_bench::run(matches)
            .map(|(options, files)| BenchCommand::Run(Box::new(options), files)),
        "capacity" => load_bench::capacity(matches)
            .map(|(options, files)| BenchCommand::Capacity(Box::new(options), files)),
        "compare" => Ok(BenchCommand::Compare(compare(matches))),
        "report" => Ok(BenchCommand::Report(ReportOptions {
            report: path("report", matches),
            files: report_files(matches),
        })),
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
        sizes: {
            let sizes: Vec<(u32, u32)> = matches
                .get_many("size")
                .into_iter()
                .flatten()
                .copied()
                .collect();
            limited("size", sizes)?
        },
        point_seconds: number("point-seconds"),
        seed: *matches.get_one("seed").expect("it has a default"),
        format: match matches.get_one::<String>("format").map(String::as_str) {
            Some("json") => ReportFormat::Json,
            _ => ReportFormat::Table,
        },
        json: matches.get_one("json").cloned(),
    })
}

fn compare(matches: &ArgMatches) -> CompareOptions {
    CompareOptions {
        before: path("before", matches),
        after: path("after", matches),
        allowed: *matches.get_one("allow").expect("it has a default"),
        all: matches.get_flag("all"),
        json: matches
            .get_one::<String>("format")
            .is_some_and(|format| format == "json"),
    }
}

fn path(name: &str, matches: &ArgMatches) -> PathBuf {
    matches
        .get_one::<PathBuf>(name)
        .cloned()
        .expect("clap asks for it")
}

fn levels(name: &str, matches: &ArgMatches) -> Result<Vec<u32>, clap::Error> {
    let levels: Vec<u32> = matches
        .get_many(name)
        .into_iter()
        .flatten()
        .copied()
        .collect();
    limited(name, levels)
}

fn limited<T>(name: &str, levels: Vec<T>) -> Result<Vec<T>, clap::Error> {
    match levels.len() {
        0..=MAX_LEVELS => Ok(levels),
        count => Err(clap::Error::raw(
            ErrorKind::TooManyValues,
            format!("--{name} lists {count} levels; at most {MAX_LEVELS} are measured\n"),
        )),
    }
}

/// `512x768` -> its numbers.
fn size(text: &str) -> Result<(u32, u32), String> {
    let edge = |text: &str| {
        let edge = text.trim().parse().ok();
        edge.filter(|edge| (1..=MAX_EDGE).contains(edge))
    };
    text.split_once('x')
        .and_then(|(width, height)| Some((edge(width)?, edge(height)?)))
        .ok_or_else(|| format!("write WIDTHxHEIGHT, each from 1 to {MAX_EDGE} pixels"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_is_a_share() {
        for (text, share) in [("0", 0.0), ("5", 0.05), ("2.5%", 0.025), ("1000", 10.0)] {
            assert_eq!(percent(text), Ok(share));
        }
        for wrong in ["", "-1", "x", "1001", "nan", "inf"] {
            assert!(percent(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_size_is_two_numbers() {
        assert_eq!(size("512x768"), Ok((512, 768)));
        for wrong in ["512", "512x", "0x8", "8x8193", "8x8x8", "-8x8", "512X512"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
