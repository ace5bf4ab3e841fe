//! `bench run` and `bench capacity` against services of their own with scripted models, from end to end.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::sandbox::{Ended, Sandbox, wait_until};

/// 10 ms and 2 ms a row: 30 ms a token of five rows.
const SCRIPT: &str = "[cost]\nstep_micros = 10_000\niterate_row_micros = 2_000\n";

/// Short answers, ample limits for any machine.
const LOAD: &str = "--model scripted:script.toml --think-seconds 0 --input-tokens 32 --output-tokens 8 --warm-up 0.2 \
                    --ttft-ms 600000 --tpot-ms 0 --log-level warn --json out.json";

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("script.toml", SCRIPT);
    sandbox
}

fn report(sandbox: &Sandbox) -> Value {
    let text = std::fs::read_to_string(sandbox.path("out.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_load_is_measured_on_a_service_of_its_own() {
    let sandbox = sandbox();
    let ended = sandbox.run(&format!("bench run {LOAD} --users 3 --duration 2"));
    ended.expect(0, &["measuring"]);
    assert!(
        ended.stdout.contains("| 3 users | undecided |"),
        "{}",
        ended.stdout
    );
    let report = report(&sandbox);
    let point = &report["points"][0];
    assert!(
        point["counts"]["completed"].as_u64().unwrap() >= 3,
        "{point:#}"
    );
    assert_eq!(point["counts"]["completed"], point["counts"]["due"]);
    for metric in [
        "client_lag",
        "reading_lag",
        "time_to_first_token",
        "step_gap",
        "end_to_end",
    ] {
        let count = point["latencies"][metric]["count"].as_u64();
        assert!(count > Some(0), "{metric}: {}", point["latencies"]);
    }
    assert!(point["devices"]["server"]["cores"].as_f64().unwrap() > 0.0);
    let warnings = report["warnings"].to_string();
    assert!(
        warnings.contains("1 of 1 points saw fewer than the 500"),
        "{warnings}"
    );
}

#[test]
fn what_was_measured_before_a_signal_is_kept() {
    let sandbox = sandbox();
    let mut bench = Bench::start(&sandbox, "--users 1 --duration 0.5 --repeats 60");
    bench.waits_for("1 user: ");
    bench.signal("INT");
    let ended = bench.end();
    ended.expect(1, &["stopped"]);
    let report = report(&sandbox);
    let points = report["points"].as_array().unwrap().len();
    assert!((1..60).contains(&points), "{points} points");
    let warnings = report["warnings"].to_string();
    assert!(
        warnings.contains(&format!("stopped: {points} of 60")),
        "{warnings}"
    );
}

#[test]
fn its_service_ends_with_it() {
    for signal in ["TERM", "KILL"] {
        let sandbox = sandbox();
        let mut bench = Bench::start(&sandbox, "--users 1 --duration 60");
        bench.waits_for("warming up");
        let server = bench.server();
        bench.signal(signal);
        // It has the other end of this pipe as long as it runs.
        let ended = bench.end();
        assert_ne!(ended.code, Some(0), "{}", ended.stderr);
        wait_until(|| has_ended(&server));
    }
}

/// A measurement that runs; ended when dropped.
struct Bench {
    child: Child,
    stderr: PathBuf,
}

impl Bench {
    fn start(sandbox: &Sandbox, line: &str) -> Self {
        let stderr = sandbox.write("stderr.txt", "");
        let mut command = sandbox.command(&format!("bench run {LOAD} {line}"));
        command
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&stderr).unwrap());
        Bench {
            child: command.spawn().unwrap(),
            stderr,
        }
    }

    fn told(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap()
    }

    fn waits_for(&mut self, words: &str) {
        wait_until(|| self.told().contains(words));
    }

    fn signal(&self, name: &str) {
        let process = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &process]).status();
        assert!(status.unwrap().success());
    }

    /// The process of its service.
    fn server(&self) -> String {
        let id = self.child.id();
        let folders = std::fs::read_dir(format!("/proc/{id}/task")).unwrap();
        let children = folders.map(|thread| {
            let path = thread.unwrap().path().join("children");
            std::fs::read_to_string(path).unwrap_or_default()
        });
        let all: String = children.collect();
        all.split_whitespace()
            .next()
            .expect("it has a service")
            .to_owned()
    }

    fn end(mut self) -> Ended {
        let code = self.child.wait().unwrap().code();
        Ended {
            code,
            stdout: String::new(),
            stderr: self.told(),
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Gone, or a zombie that nobody has buried.
fn has_ended(process: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"));
    stat.map_or(true, |stat| {
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('Z'))
    })
}
