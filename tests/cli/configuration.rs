//! The command line and the layers of configuration, as far as they show from outside.

use crate::sandbox::Sandbox;

#[test]
fn help_can_be_read() {
    let sandbox = Sandbox::new();
    for line in ["--help", "serve --help"] {
        let ended = sandbox.run(line);
        ended.expect(0, &[]);
        for expected in [
            "Models:",
            "Batching:",
            "Listening:",
            "--batch-size <ROWS>",
            "Rows that run at once [default: 16]",
            "--batching <continuous|dynamic>",
            "--max-queue-delay-ms <MS>",
            "--max-queued-requests <ROWS>",
            "--api-key-file <FILE>",
            "--config <FILE>",
        ] {
            assert!(
                ended.stdout.contains(expected),
                "{expected} is not in\n{}",
                ended.stdout
            );
        }
        let widest = ended.stdout.lines().map(str::len).max();
        assert!(widest <= Some(100), "a line of {widest:?} characters");
    }
    let models = sandbox.run("models --help");
    for expected in ["list", "pull", "verify"] {
        assert!(models.stdout.contains(expected), "{}", models.stdout);
    }
}

#[test]
fn what_cannot_be_used_ends_the_start_with_code_2() {
    let sandbox = Sandbox::new();
    for (line, file, variable, expected) in [
        ("--batch-sise 4", "", None, "--batch-size"),
        (
            "--batch-size 0",
            "",
            None,
            "must be a whole number from 1 to 4096",
        ),
        ("--host 0.0.0.0", "", None, "api_key_file"),
        (
            "--devices cuda:0,cuda:0",
            "",
            None,
            "devices = \"cuda:0,cuda:0\" (from --devices) must be a list that names cuda:0 once",
        ),
        (
            "",
            "devices = ['cpu', 'tpu']",
            None,
            "must be a list of cpu, cuda:N or metal:N",
        ),
        ("--model no-such-model", "", None, "smollm2-135m-instruct"),
        ("", "batch_sise = 4", None, "did you mean batch_size?"),
        ("", "batch_size = 0", None, "in the configuration file"),
        (
            "",
            "",
            Some("GIRANDOLE_BATCH_SISE"),
            "did you mean GIRANDOLE_BATCH_SIZE?",
        ),
        ("", "", Some("GIRANDOLE_PORT"), "from GIRANDOLE_PORT"),
        ("--config missing.toml", "", None, "missing.toml"),
    ] {
        sandbox.write("girandole.toml", file);
        let config = match line.contains("--config") {
            true => "",
            false => "--config girandole.toml",
        };
        let mut command = sandbox.command(&format!("{line} {config}"));
        if let Some(variable) = variable {
            command.env(variable, "nonsense");
        }
        let ended = crate::sandbox::Ended::from(command.output().unwrap());
        ended.expect(2, &[expected]);
        assert!(ended.stdout.is_empty(), "{}", ended.stdout);
    }
}

#[test]
fn a_key_file_without_a_key_opens_nothing() {
    let sandbox = Sandbox::new();
    sandbox.write("keys", "# none yet\n\n");
    sandbox
        .run("--port 0 --model scripted:x.toml --api-key-file keys")
        .expect(1, &["holds no key"]);
    sandbox
        .run("--port 0 --model scripted:x.toml --api-key-file missing")
        .expect(1, &["missing"]);
}
