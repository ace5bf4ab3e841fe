//! The command line of `bench run` and `bench capacity`.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{RangedU64ValueParser, ValueParser};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command as Clap, value_parser};
use serde_json::{Map, Value};

use super::bench::{output_arguments, report_files};
use crate::bench::capacity::presets;
use crate::bench::load::conversations::Conversations;
use crate::bench::load::pictures::Mix;
use crate::bench::load::trace::Trace;
use crate::bench::load::{Arrivals, Lengths};
use crate::bench::options::{Axis, CapacityOptions, LoadOptions, Offer, RunOptions};
use crate::bench::render::ReportFiles;
use crate::bench::results::{Api, Metric, Objective};

/// Points of one `bench run`.
const MAX_POINTS: usize = 64;
const MAX_USERS: u64 = 60_000;
const MAX_RATE: f64 = 100_000.0;
/// A day; longer runs want another tool.
const MAX_SECONDS: f64 = 86_400.0;
/// No limit is longer, in milliseconds.
const MAX_LIMIT_MS: f64 = 3_600_000.0;
/// Ports of one address.
const MAX_OPEN: u64 = 60_000;

const TARGET: &str = "Server";
const LOAD: &str = "Load";
const OBJECTIVES: &str = "Objectives";
const MEASUREMENT: &str = "Measurement";

fn argument(heading: &'static str, name: &'static str, value: &'static str, help: &str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name(value)
        .help(help.to_owned())
        .help_heading(heading)
}

fn parsed<T: FromStr + Clone + Send + Sync + 'static>() -> ValueParser
where
    T::Err: std::fmt::Display,
{
    ValueParser::from(|text: &str| text.parse::<T>().map_err(|error| error.to_string()))
}

/// A number within two ends.
fn number(min: f64, max: f64) -> ValueParser {
    ValueParser::from(move |text: &str| {
        let number = text
            .parse::<f64>()
            .ok()
            .filter(|number| (min..=max).contains(number));
        number.ok_or_else(|| format!("write a number from {min} to {max}"))
    })
}

fn percent(text: &str) -> Result<f64, String> {
    let text = text.strip_suffix('%').unwrap_or(text).trim();
    let number = text
        .parse::<f64>()
        .ok()
        .filter(|number| (0.1..=100.0).contains(number));
    number
        .map(|number| number / 100.0)
        .ok_or_else(|| "write a percentage from 0.1 to 100".to_owned())
}

fn count(min: u64, max: u64) -> RangedU64ValueParser<u64> {
    RangedU64ValueParser::<u64>::new().range(min..=max)
}

/// `bench run`, with the settings of a service of its own.
pub(super) fn run_command(settings: impl IntoIterator<Item = Arg>) -> Clap {
    Clap::new("run")
        .about("Offer a server a load and say what became of it")
        .after_help(HELP)
        .args([
            argument(LOAD, "rate", "REQUESTS/S,..", "Open loop: so many requests come, whatever happens; several for several points")
                .value_delimiter(',')
                .value_parser(number(0.001, MAX_RATE)),
            argument(LOAD, "users", "COUNT,..", "Closed loop: so many users ask, wait, think and ask again")
                .value_delimiter(',')
                .value_parser(count(1, MAX_USERS)),
            argument(LOAD, "trace", "FILE", "Requests come as they did once: JSON lines with `timestamp` in ms (Mooncake's), or lines of seconds[,prompt tokens[,new tokens]]")
                .value_parser(value_parser!(PathBuf)),
            argument(MEASUREMENT, "duration", "SECONDS", "Length of each measured window")
                .default_value("60")
                .value_parser(number(0.5, MAX_SECONDS)),
            argument(MEASUREMENT, "repeats", "COUNT", "Points of each load")
                .default_value("1")
                .value_parser(count(1, 100)),
        ])
        .args(load_arguments())
        .args(output_arguments())
        .args(settings)
}

/// `bench capacity`, likewise.
pub(super) fn capacity_command(settings: impl IntoIterator<Item = Arg>) -> Clap {
    Clap::new("capacity")
        .about("Search for the number of users that a server carries within objectives, and for what stops more")
        .after_help(HELP)
        .args([
            argument(MEASUREMENT, "by", "users|rate", "What is searched for: users who wait and think, or requests a second that come whatever happens")
                .default_value("users")
                .value_parser(["users", "rate"])
                .hide_possible_values(true),
            argument(MEASUREMENT, "precision", "PERCENT", "How wide the interval may be")
                .default_value("5%")
                .value_parser(ValueParser::from(percent)),
            argument(MEASUREMENT, "repeats", "COUNT", "Searches, one after another; how far their answers lie apart goes into the interval")
                .default_value("1")
                .value_parser(count(1, 100)),
            argument(MEASUREMENT, "start", "LOAD", "Where the search begins")
                .default_value("4")
                .value_parser(number(0.001, MAX_RATE)),
            argument(MEASUREMENT, "max", "LOAD", "The greatest load that is tried")
                .default_value("10000")
                .value_parser(number(0.001, MAX_RATE)),
            argument(MEASUREMENT, "point-seconds", "SECONDS", "How long a point may be measured; longer where a good answer may take longer")
                .default_value("180")
                .value_parser(number(1.0, MAX_SECONDS)),
            argument(MEASUREMENT, "time-limit", "SECONDS", "How long all of it may take; the interval is then as wide as it is")
                .default_value("3600")
                .value_parser(number(1.0, MAX_SECONDS)),
            argument(MEASUREMENT, "max-points", "COUNT", "Points at most")
                .default_value("60")
                .value_parser(count(1, 1_000)),
        ])
        .args(load_arguments())
        .args(output_arguments())
        .args(settings)
}

const HELP: &str = "Without --url, a service with the given settings is started for as long as it is measured.\n\
    How it is measured, and when a figure is void: docs/benchmark.md.";

fn load_arguments() -> Vec<Arg> {
    let file = |heading, name, help| {
        argument(heading, name, "FILE", help).value_parser(value_parser!(PathBuf))
    };
    let limit = |name, help: &str| {
        argument(
            OBJECTIVES,
            name,
            "MS",
            &format!("{help} [default: the preset's; 0: none]"),
        )
        .value_parser(number(0.0, MAX_LIMIT_MS))
    };
    let lengths =
        |name, help| argument(LOAD, name, "LENGTHS", help).value_parser(parsed::<Lengths>());
    vec![
        argument(TARGET, "url", "URL", "The server, such as http://127.0.0.1:8080 [default: one of our own]")
            .value_parser(ValueParser::from(url)),
        file(TARGET, "target-key-file", "The file with the server's API key"),
        argument(TARGET, "target-model", "NAME", "The model, as requests name it [default: the server's first]"),
        argument(TARGET, "api", "chat|completions|images|native", "The interface [default: chat; for pictures native, of other servers images]")
            .value_parser(["chat", "completions", "images", "native"])
            .hide_possible_values(true),
        argument(TARGET, "extra-body", "JSON", "Fields for every request, over ours")
            .value_parser(ValueParser::from(object)),
        argument(TARGET, "respect-eos", "", "Let answers end by themselves instead of asking for `ignore_eos`, which not every server knows")
            .action(ArgAction::SetTrue),
        argument(TARGET, "server-pid", "PID", "The server's process, if it runs on this machine and is not ours")
            .value_parser(count(1, u64::from(u32::MAX))),
        argument(TARGET, "server-note", "NAME=VALUE", "A setting of the server, for the report; may be repeated")
            .action(ArgAction::Append)
            .value_parser(ValueParser::from(note)),
        argument(TARGET, "price-per-hour", "AMOUNT", "Price of the server, for the cost of tokens and pictures")
            .value_parser(number(0.0, 1e9)),
        argument(TARGET, "currency", "NAME", "What the price is in").default_value("USD"),
        argument(OBJECTIVES, "preset", "NAME", &format!("Objectives and a load that goes with them: {}", presets::NAMES.join(", ")))
            .default_value("chat")
            .value_parser(presets::NAMES)
            .hide_possible_values(true),
        limit("ttft-ms", "Limit of the time to the first token"),
        limit("tpot-ms", "Limit of a request's mean time per token after the first"),
        limit("e2e-ms", "Limit of the time to the end of the answer"),
        limit("stall-ms", "Limit of the longest gap within an answer"),
        limit("preview-ms", "Limit of the time to the first preview of a picture"),
        argument(OBJECTIVES, "good-share", "PERCENT", "Share of requests that keep all limits [default: the preset's]")
            .value_parser(ValueParser::from(percent)),
        lengths("input-tokens", "Prompt tokens: N, uniform:MIN,MAX, normal:MEAN,DEVIATION[,MIN,MAX], lognormal:MEDIAN,SIGMA[,MIN,MAX] or file:PATH"),
        lengths("output-tokens", "New tokens, likewise"),
        file(LOAD, "conversations", "Questions, and the lengths of answers, from a file in ShareGPT's format"),
        argument(LOAD, "prefix-hit-rate", "PERCENT", "Share of prompt tokens that the server is to find in its prefix cache; without, no two prompts begin alike")
            .value_parser(ValueParser::from(percent)),
        argument(LOAD, "prefixes", "COUNT", "How many different beginnings there are")
            .default_value("4")
            .value_parser(count(1, 1_000_000)),
        argument(LOAD, "image-size", "WIDTHxHEIGHT[=WEIGHT],..", "A mix of sizes [default: the model's]")
            .value_parser(ValueParser::from(|text: &str| Mix::sizes(text).map_err(|error| error.to_string()))),
        argument(LOAD, "image-steps", "STEPS[=WEIGHT],..", "A mix of step counts [default: 20]")
            .value_parser(ValueParser::from(|text: &str| Mix::steps(text).map_err(|error| error.to_string()))),
        argument(LOAD, "image-guidance", "SCALE", "Guidance [default: the model's]").value_parser(number(0.0, 100.0)),
        argument(LOAD, "arrivals", "constant|poisson|gamma:SHAPE", "How an open loop's requests are spread")
            .default_value("poisson")
            .value_parser(parsed::<Arrivals>()),
        argument(LOAD, "think-seconds", "SECONDS", "Mean of a user's exponential time between an answer and the next question [default: the preset's]")
            .value_parser(number(0.0, 3600.0)),
        argument(LOAD, "turns", "COUNT", "Questions of a conversation, each with all before it in the prompt")
            .default_value("1")
            .value_parser(count(1, 64)),
        argument(LOAD, "seed", "NUMBER", "Of everything that is drawn").default_value("0").value_parser(value_parser!(u64)),
        argument(LOAD, "salt", "TEXT", "Stands in every prompt, so that no cache knows it [default: fresh]")
            .value_parser(ValueParser::from(salt)),
        argument(MEASUREMENT, "warm-up", "SECONDS", "Load before anything counts, at least")
            .default_value("2")
            .value_parser(number(0.0, MAX_SECONDS)),
        argument(MEASUREMENT, "timeout", "SECONDS", "A request that takes longer is given up, and bad")
            .default_value("120")
            .value_parser(number(0.1, MAX_SECONDS)),
        argument(MEASUREMENT, "max-open-requests", "COUNT", "Requests in flight at most; a run that wants more is void")
            .default_value("10000")
            .value_parser(count(1, MAX_OPEN)),
        argument(MEASUREMENT, "label", "TEXT", "A name for the report"),
        argument(MEASUREMENT, "planted-lag-ms", "MS", "Send each request so late: a fault, to see that it is seen")
            .default_value("0")
            .value_parser(count(0, 60_000))
            .hide(true),
    ]
}

fn url(text: &str) -> Result<String, String> {
    match text.strip_prefix("http://") {
        Some(rest) if !rest.is_empty() => Ok(text.to_owned()),
        _ => Err(
            "write http://HOST:PORT; for https, let a proxy on this machine speak it".to_owned(),
        ),
    }
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("write a JSON object: {error}"))
}

fn note(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn salt(text: &str) -> Result<String, String> {
    match text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        true => Ok(text.to_owned()),
        false => Err("write up to 64 letters and digits".to_owned()),
    }
}

fn wrong(message: impl std::fmt::Display) -> clap::Error {
    clap::Error::raw(ErrorKind::ValueValidation, format!("{message}\n"))
}

/// What the arguments of `bench run` say.
///
/// # Errors
/// A file cannot be used, or there is not exactly one kind of load.
pub(super) fn run(matches: &ArgMatches) -> Result<(RunOptions, ReportFiles), clap::Error> {
    let rates: Option<Vec<f64>> = matches
        .get_many("rate")
        .map(|rates| rates.copied().collect());
    let users: Option<Vec<u64>> = matches
        .get_many("users")
        .map(|users| users.copied().collect());
    let offer = match (rates, users, matches.get_one::<PathBuf>("trace")) {
        (Some(rates), None, None) => Offer::Rates(rates),
        (None, Some(users), None) => {
            Offer::Users(users.into_iter().map(|users| users as u32).collect())
        }
        (None, None, Some(path)) => Offer::Trace(Trace::read(path).map_err(wrong)?),
        _ => return Err(wrong("give one of --rate, --users and --trace")),
    };
    let points = match &offer {
        Offer::Rates(rates) => rates.len(),
        Offer::Users(users) => users.len(),
        Offer::Trace(_) => 1,
    };
    if points > MAX_POINTS {
        return Err(wrong(format!(
            "{points} loads are listed; at most {MAX_POINTS} are measured"
        )));
    }
    let options = RunOptions {
        load: load(matches)?,
        offer,
        duration: seconds("duration", matches),
        repeats: whole("repeats", matches) as u32,
    };
    Ok((options, report_files(matches)))
}

/// What the arguments of `bench capacity` say.
///
/// # Errors
/// A file cannot be used.
pub(super) fn capacity(
    matches: &ArgMatches,
) -> Result<(CapacityOptions, ReportFiles), clap::Error> {
    let options = CapacityOptions {
        load: load(matches)?,
        axis: match matches.get_one::<String>("by").map(String::as_str) {
            Some("rate") => Axis::Rate,
            _ => Axis::Users,
        },
        precision: real("precision", matches),
        repeats: whole("repeats", matches) as u32,
        start: real("start", matches),
        max: real("max", matches),
        point: seconds("point-seconds", matches),
        time_limit: seconds("time-limit", matches),
        max_points: whole("max-points", matches) as usize,
    };
    if options.max < options.start {
        return Err(wrong("--max is below --start"));
    }
    Ok((options, report_files(matches)))
}

fn real(name: &str, matches: &ArgMatches) -> f64 {
    *matches.get_one(name).expect("it has a default")
}

fn whole(name: &str, matches: &ArgMatches) -> u64 {
    *matches.get_one(name).expect("it has a default")
}

fn seconds(name: &str, matches: &ArgMatches) -> Duration {
    Duration::from_secs_f64(real(name, matches))
}

fn load(matches: &ArgMatches) -> Result<LoadOptions, clap::Error> {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let some = |name: &str| matches.get_one::<f64>(name).copied();
    let conversations = matches
        .get_one::<PathBuf>("conversations")
        .map(|path| Conversations::read(Path::new(path)));
    let limits = [
        ("ttft-ms", Metric::TimeToFirstToken),
        ("tpot-ms", Metric::TimePerOutputToken),
        ("e2e-ms", Metric::EndToEnd),
        ("stall-ms", Metric::LongestStall),
        ("preview-ms", Metric::TimeToFirstPreview),
    ];
    let limits = limits.into_iter().filter_map(|(name, metric)| {
        Some(Objective {
            metric,
            limit_ms: some(name)?,
        })
    });
    Ok(LoadOptions {
        url: text("url"),
        key_file: matches.get_one("target-key-file").cloned(),
        target_model: text("target-model"),
        api: text("api").map(|name| match name.as_str() {
            "completions" => Api::OpenaiCompletions,
            "images" => Api::OpenaiImages,
            "native" => Api::Native,
            _ => Api::OpenaiChat,
        }),
        preset: text("preset").expect("it has a default"),
        limits: limits.collect(),
        good_share: some("good-share"),
        input_tokens: matches.get_one("input-tokens").cloned(),
        output_tokens: matches.get_one("output-tokens").cloned(),
        conversations: conversations.transpose().map_err(wrong)?,
        prefix_share: some("prefix-hit-rate").unwrap_or(0.0),
        prefixes: whole("prefixes", matches) as u32,
        sizes: matches.get_one("image-size").cloned(),
        steps: matches.get_one("image-steps").cloned(),
        guidance_scale: some("image-guidance"),
        arrivals: *matches.get_one("arrivals").expect("it has a default"),
        think_seconds: some("think-seconds"),
        turns: whole("turns", matches) as u32,
        seed: whole("seed", matches),
        salt: text("salt"),
        warm_up: seconds("warm-up", matches),
        timeout: seconds("timeout", matches),
        max_open_requests: whole("max-open-requests", matches) as usize,
        respect_eos: matches.get_flag("respect-eos"),
        extra_body: matches.get_one("extra-body").cloned().unwrap_or_default(),
        server_process: matches.get_one::<u64>("server-pid").map(|pid| *pid as u32),
        price_per_hour: some("price-per-hour"),
        currency: text("currency").expect("it has a default"),
        label: text("label"),
        server_notes: matches
            .get_many("server-note")
            .into_iter()
            .flatten()
            .cloned()
            .collect(),
        planted_lag: Duration::from_millis(whole("planted-lag-ms", matches)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_line(line: &str) -> Result<RunOptions, String> {
        let words = std::iter::once("run").chain(line.split_whitespace());
        let matches = run_command([])
            .try_get_matches_from(words)
            .map_err(|error| error.to_string())?;
        run(&matches)
            .map(|(options, _)| options)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_line_is_read_as_it_is_written() {
        let line = "--url http://h:1 --rate 1,2.5 --preset interactive --ttft-ms 300 --good-share 95 \
                    --input-tokens normal:100,10 --arrivals gamma:0.5 --prefix-hit-rate 50% --turns 3 \
                    --server-note threads=2 --extra-body {\"top_k\":1} --respect-eos";
        let options = run_line(line).unwrap();
        assert_eq!(options.offer, Offer::Rates(vec![1.0, 2.5]));
        let load = options.load;
        assert_eq!(
            (load.good_share, load.prefix_share, load.turns),
            (Some(0.95), 0.5, 3)
        );
        let limit = Objective {
            metric: Metric::TimeToFirstToken,
            limit_ms: 300.0,
        };
        assert_eq!((load.limits, load.respect_eos), (vec![limit], true));
        assert_eq!(load.server_notes, [("threads".to_owned(), "2".to_owned())]);
        assert_eq!(load.extra_body["top_k"], 1);
        let words = [
            "capacity",
            "--by",
            "rate",
            "--precision",
            "2%",
            "--repeats",
            "3",
            "--max",
            "9",
        ];
        let matches = capacity_command([]).try_get_matches_from(words).unwrap();
        let (options, files) = capacity(&matches).unwrap();
        assert_eq!(
            (
                options.axis,
                options.precision,
                options.repeats,
                options.max
            ),
            (Axis::Rate, 0.02, 3, 9.0)
        );
        assert_eq!(files, ReportFiles::default());
    }

    #[test]
    fn wrong_lines_are_refused() {
        for (line, expected) in [
            ("", "one of --rate, --users and --trace"),
            ("--rate 1 --users 1", "one of --rate, --users and --trace"),
            ("--rate 0", "0.001"),
            ("--users 0", "1..=60000"),
            ("--users 1 --url https://x", "http://HOST:PORT"),
            ("--users 1 --input-tokens x", "lognormal"),
            ("--users 1 --good-share 0", "percentage"),
            ("--users 1 --extra-body []", "JSON object"),
            ("--users 1 --salt a/b", "letters and digits"),
            ("--users 1 --preset other", "other"),
            ("--trace /none", "/none"),
            ("--users 1 --conversations /none", "/none"),
        ] {
            let error = run_line(line).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
