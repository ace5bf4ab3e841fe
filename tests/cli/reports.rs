//! `bench report` and `bench compare`, on the reports that `tests/goldens/make_bench_reports.py` made up.

use std::path::{Path, PathBuf};

use girandole::bench::render;
use roxmltree::Document;
use serde_json::Value;

use crate::sandbox::{Ended, Sandbox};

/// With this variable set, goldens are written instead of compared; look at what `git diff` says then.
const WRITE: &str = "GIRANDOLE_WRITE_GOLDENS";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/bench")
        .join(name)
}

#[track_caller]
fn matches_golden(golden: &Path, found: &str) {
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(golden, found).unwrap();
    }
    let expected = std::fs::read_to_string(golden).unwrap_or_default();
    if let Some((number, (expected, found))) = expected
        .lines()
        .chain([""])
        .zip(found.lines().chain([""]))
        .enumerate()
        .find(|(_, (expected, found))| expected != found)
    {
        panic!(
            "{}:{}: expected\n{expected}\nand found\n{found}\n({WRITE}=1 writes it anew)",
            golden.display(),
            number + 1
        );
    }
    assert_eq!(expected.len(), found.len(), "{}", golden.display());
}

/// All forms of a fixture's report.
fn written(name: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    let report = fixture(name);
    let line = format!(
        "bench report {} --report-html r.html --json r.json --csv r.csv --markdown r.md --vllm-json v.json",
        report.display()
    );
    sandbox.run(&line).expect(0, &[]);
    sandbox
}

fn text(sandbox: &Sandbox, name: &str) -> String {
    std::fs::read_to_string(sandbox.path(name)).unwrap()
}

#[test]
fn every_form_is_as_its_golden() {
    for name in ["text", "images"] {
        let sandbox = written(&format!("{name}.json"));
        for (made, golden) in [("r.md", "md"), ("r.csv", "csv"), ("v.json", "vllm.jsonl")] {
            matches_golden(&fixture(&format!("{name}.{golden}")), &text(&sandbox, made));
        }
        let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let original = std::fs::read_to_string(fixture(&format!("{name}.json"))).unwrap();
        let (again, original) = (read(&text(&sandbox, "r.json")), read(&original));
        assert_eq!(
            without_nulls(again),
            without_nulls(original),
            "{name}: JSON keeps everything"
        );
    }
}

/// What nobody told may be left out or null.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let told = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(
                told.map(|(name, value)| (name, without_nulls(value)))
                    .collect(),
            )
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

#[test]
fn without_a_file_markdown_goes_to_stdout() {
    let ended = Sandbox::new().run(&format!("bench report {}", fixture("text.json").display()));
    ended.expect(0, &[]);
    let golden = std::fs::read_to_string(fixture("text.md")).unwrap();
    assert_eq!(ended.stdout.trim_end(), golden.trim_end());
}

#[test]
fn csv_has_as_many_cells_in_every_line() {
    let sandbox = written("images.json");
    let csv = text(&sandbox, "r.csv");
    let mut widths = Vec::new();
    let (mut cells, mut quoted) = (1, false);
    for character in csv.chars() {
        match character {
            '"' => quoted = !quoted,
            ',' if !quoted => cells += 1,
            '\n' if !quoted => {
                widths.push(cells);
                cells = 1;
            }
            _ => {}
        }
    }
    assert_eq!(widths.len(), 3, "a head and two points");
    assert!(
        widths
            .iter()
            .all(|width| *width == widths[0] && *width > 60),
        "{widths:?}"
    );
    // A reason of the fixture begins like a formula.
    assert!(
        csv.contains("\"'=at most 60 % of requests are good, \"\"99 %\"\" are wanted\""),
        "{csv}"
    );
}

#[test]
fn the_page_is_well_formed_and_needs_nothing_else() {
    for name in ["text.json", "images.json"] {
        let sandbox = written(name);
        let page = text(&sandbox, "r.html");
        let body = page.strip_prefix("<!DOCTYPE html>\n").unwrap();
        let document = Document::parse(body).unwrap();
        for node in document.descendants().filter(roxmltree::Node::is_element) {
            let element = node.tag_name().name();
            for forbidden in [
                "script", "link", "img", "iframe", "object", "embed", "base", "form", "a",
            ] {
                assert_ne!(element, forbidden, "{name}");
            }
            for attribute in node.attributes() {
                let attribute = attribute.name();
                let fetches = [
                    "src",
                    "srcset",
                    "href",
                    "action",
                    "data",
                    "poster",
                    "background",
                    "style",
                ];
                assert!(
                    !fetches.contains(&attribute),
                    "{name}: {element} {attribute}"
                );
                assert!(
                    !attribute.starts_with("on"),
                    "{name}: {element} {attribute}"
                );
            }
        }
        let style = document
            .descendants()
            .find(|node| node.has_tag_name(tag("style")))
            .unwrap();
        let style = style.text().unwrap();
        for forbidden in ["url(", "@import", "image("] {
            assert!(!style.contains(forbidden), "{name}: {forbidden}");
        }
        let policy = document
            .descendants()
            .find(|node| node.attribute("http-equiv") == Some("Content-Security-Policy"));
        assert!(
            policy
                .unwrap()
                .attribute("content")
                .unwrap()
                .starts_with("default-src 'none'")
        );
        assert!(
            !page.contains("NaN") && !page.contains("inf\""),
            "{name}: a number that is none"
        );
    }
}

const fn tag(name: &'static str) -> (&'static str, &'static str) {
    ("http://www.w3.org/1999/xhtml", name)
}

#[test]
fn the_page_says_what_the_report_says() {
    let sandbox = written("text.json");
    let page = text(&sandbox, "r.html");
    let document = Document::parse(page.strip_prefix("<!DOCTYPE html>\n").unwrap()).unwrap();
    let said = |name: &'static str| -> Vec<String> {
        let all = document
            .descendants()
            .filter(|node| node.has_tag_name(tag(name)));
        all.map(|node| {
            node.descendants()
                .filter_map(|inner| inner.text())
                .collect()
        })
        .collect()
    };
    assert!(
        said("h1")[0].starts_with("46 users (95 % interval 44 to 48)"),
        "{:?}",
        said("h1")
    );
    let headings = said("h2").join("\n");
    for heading in [
        "Throughput against latency",
        "Percentiles over load",
        "Timeline at 46 users",
        "All points",
    ] {
        assert!(headings.contains(heading), "{heading} is not in {headings}");
    }
    // Two limits, the good requests and the trade, six latencies, and six strips for each of three
    // timelines.
    let figures = document
        .descendants()
        .filter(|node| node.has_tag_name(tag("figure")));
    assert_eq!(figures.count(), 2 + 2 + 6 + 3 * 6);
    let rows = document
        .descendants()
        .filter(|node| node.attribute("class") == Some("void"));
    assert_eq!(rows.count(), 1, "one point is void");
    assert!(page.contains("knee: 46 users") && page.contains("limit 500 ms"));
    // Of both sides.
    let folded = said("pre").join("\n");
    for setting in [
        "\"precision\": 0.05",
        "\"step_budget_ms\": 50",
        "<b>somebody</b>",
    ] {
        assert!(folded.contains(setting), "{setting} is not in {folded}");
    }
}

#[test]
fn what_a_server_says_is_text() {
    let page = text(&written("images.json"), "r.html");
    assert!(page.contains("&lt;/title&gt;&lt;script&gt;alert(1)"));
    assert!(!page.contains("<script") && !page.contains("<i>images"));
    let markdown = text(&written("images.json"), "r.md");
    assert!(!markdown.contains("<script") && markdown.contains("&lt;script&gt;"));
}

#[test]
fn the_schema_is_the_committed_one_and_fits() {
    let schema = render::json_schema();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/bench-report.schema.json");
    matches_golden(
        &golden,
        &(serde_json::to_string_pretty(&schema).unwrap() + "\n"),
    );
    for name in ["text.json", "images.json"] {
        let report = text(&written(name), "r.json");
        let report: Value = serde_json::from_str(&report).unwrap();
        let mut wrong = Vec::new();
        check(&schema, &schema, &report, "", &mut wrong);
        assert!(wrong.is_empty(), "{name}: {wrong:#?}");

        let mut spoilt = report.clone();
        spoilt["points"][0]["counts"]["due"] = Value::from("many");
        spoilt["points"][0]["surprise"] = Value::from(1);
        let mut wrong = Vec::new();
        check(&schema, &schema, &spoilt, "", &mut wrong);
        let expected = [
            "/points/0/counts/due: is no integer",
            "/points/0: does not know surprise",
        ];
        assert_eq!(wrong, expected, "the check itself can fail");
    }
}

/// As much of JSON Schema as ours uses. Stricter in one thing: fields that it does not know are wrong.
fn check(root: &Value, schema: &Value, value: &Value, path: &str, wrong: &mut Vec<String>) {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = root.pointer(reference.strip_prefix('#').unwrap()).unwrap();
        return check(root, target, value, path, wrong);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let fits = |choice: &&Value| {
            let mut wrong = Vec::new();
            check(root, choice, value, path, &mut wrong);
            wrong.is_empty()
        };
        let count = choices.iter().filter(fits).count();
        if count != 1 {
            wrong.push(format!("{path}: fits {count} of its choices"));
        }
        return;
    }
    for (keyword, allowed) in [
        ("const", vec![&schema["const"]]),
        ("enum", all(&schema["enum"])),
    ] {
        if schema.get(keyword).is_some() && !allowed.contains(&value) {
            wrong.push(format!("{path}: is {value}"));
        }
    }
    let types = match &schema["type"] {
        Value::Null => return,
        Value::Array(types) => types.iter().collect(),
        one => vec![one],
    };
    let is = |name: &str| match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{path}: what is {other}?"),
    };
    if !types.iter().any(|name| is(name.as_str().unwrap())) {
        return wrong.push(format!("{path}: is no {}", types[0].as_str().unwrap()));
    }
    for (index, item) in all(value).into_iter().enumerate() {
        check(
            root,
            &schema["items"],
            item,
            &format!("{path}/{index}"),
            wrong,
        );
    }
    for (name, field) in value.as_object().into_iter().flatten() {
        match (
            schema["properties"].get(name),
            schema.get("additionalProperties"),
        ) {
            (Some(known), _) | (None, Some(known)) => {
                check(root, known, field, &format!("{path}/{name}"), wrong);
            }
            (None, None) => wrong.push(format!("{path}: does not know {name}")),
        }
    }
    for name in all(&schema["required"]) {
        if value.get(name.as_str().unwrap()).is_none() {
            wrong.push(format!("{path}: lacks {name}"));
        }
    }
}

fn all(value: &Value) -> Vec<&Value> {
    value.as_array().into_iter().flatten().collect()
}

fn compare(sandbox: &Sandbox, line: &str) -> Ended {
    sandbox.run(&format!("bench compare {line}"))
}

#[test]
fn a_comparison_has_an_exit_code() {
    let sandbox = Sandbox::new();
    let original = std::fs::read_to_string(fixture("text.json")).unwrap();
    sandbox.write("a.json", &original);
    // Every point and the capacity a tenth slower, with intervals of a hundredth.
    let mut slower: Value = serde_json::from_str(&original).unwrap();
    for point in slower["points"].as_array_mut().unwrap() {
        let rate = &mut point["throughput"]["output_tokens_per_second"];
        let value = rate["value"].as_f64().unwrap() * 0.9;
        *rate = serde_json::json!({"value": value, "low": value * 0.99, "high": value * 1.01});
    }
    sandbox.write("slower.json", slower.to_string());
    let same = compare(&sandbox, "a.json a.json");
    same.expect(0, &[]);
    assert!(
        same.stdout.contains("no regression: of "),
        "{}",
        same.stdout
    );
    let worse = compare(&sandbox, "a.json slower.json");
    worse.expect(1, &[]);
    assert!(
        worse.stdout.contains("throughput, tokens/s  "),
        "{}",
        worse.stdout
    );
    assert!(worse.stdout.contains("-10.0 %  WORSE"), "{}", worse.stdout);
    assert!(
        !worse.stdout.contains("end to end"),
        "only what differs is shown"
    );
    compare(&sandbox, "a.json slower.json --allow 12").expect(0, &[]);
    let better = compare(&sandbox, "slower.json a.json --all");
    better.expect(0, &[]);
    assert!(better.stdout.contains("better") && better.stdout.contains("end to end"));
    let json = compare(&sandbox, "a.json slower.json --format json");
    json.expect(1, &[]);
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["judgement"], "regression");
}

#[test]
fn what_cannot_be_compared_is_said() {
    let sandbox = Sandbox::new();
    for name in ["text.json", "images.json"] {
        sandbox.write(name, std::fs::read(fixture(name)).unwrap());
    }
    sandbox.write(
        "other.json",
        "{\"schema\": \"girandole.bench.engine\", \"schema_version\": 1}",
    );
    sandbox.write(
        "newer.json",
        "{\"schema\": \"girandole.bench\", \"schema_version\": 2}",
    );
    sandbox.write("broken.json", "{");
    let differ = compare(&sandbox, "text.json images.json");
    differ.expect(2, &[]);
    assert!(
        differ
            .stdout
            .contains("not comparable: kinds of answer differ"),
        "{}",
        differ.stdout
    );
    for (name, problem) in [
        (
            "other.json",
            "its schema is \"girandole.bench.engine\", not \"girandole.bench\"",
        ),
        ("newer.json", "its schema_version is 2, not 1"),
        (
            "broken.json",
            "broken.json is no report of girandole bench run or capacity",
        ),
        ("none.json", "cannot read none.json"),
    ] {
        compare(&sandbox, &format!("text.json {name}")).expect(2, &[problem]);
        sandbox
            .run(&format!("bench report {name}"))
            .expect(1, &[problem]);
    }
    let lost = sandbox.run("bench report text.json --csv no/where.csv --markdown here.md");
    lost.expect(1, &["cannot write no/where.csv"]);
    assert!(
        text(&sandbox, "here.md").contains("46 users"),
        "the other report is written"
    );
}

#[test]
fn finished_reports_need_no_settings() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.command(&format!("bench report {}", fixture("text.json").display()));
    let ended: Ended = command
        .env("GIRANDOLE_BATCH_SIZE", "none")
        .output()
        .unwrap()
        .into();
    ended.expect(0, &[]);
}
