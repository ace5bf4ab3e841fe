//! `gpu-check`, as a user without a card meets it.

use serde_json::Value;

use crate::sandbox::Sandbox;

#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_without_cards_says_which_one_is_needed() {
    let sandbox = Sandbox::new();
    let ended = sandbox.run("gpu-check --json out.json");
    ended.expect(
        2,
        &["device cuda:0 needs a build with the feature \"cuda\", which this one lacks"],
    );
    assert_eq!(ended.stdout, "");
    assert!(!sandbox.path("out.json").exists(), "nothing was checked");
}

#[test]
fn the_processor_is_checked_against_itself() {
    let sandbox = Sandbox::new();
    let ended = sandbox.run("gpu-check --device cpu --json out.json --log-level warn");
    ended.expect(0, &[]);
    for expected in ["gpu-check", "device      cpu", "copy", "all is well"] {
        assert!(ended.stdout.contains(expected), "{}", ended.stdout);
    }
    let json = std::fs::read_to_string(sandbox.path("out.json")).unwrap();
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["schema"], "girandole.gpu-check");
    assert_eq!(report["schema_version"], 1);
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.iter().all(|check| check["verdict"] == "well"));
    for group in ["kernel", "model", "graph"] {
        assert!(
            checks.iter().any(|check| check["group"] == group),
            "{group}"
        );
    }
}

#[test]
fn a_word_that_names_no_device_is_refused() {
    let sandbox = Sandbox::new();
    let ended = sandbox.run("gpu-check --device tpu");
    ended.expect(
        2,
        &["\"tpu\" is not a device; write cpu, cuda:N or metal:N"],
    );
}
