//! Every field at its edges. The tokenizer's tokens are bytes, so a prompt has as many as letters.

use serde_json::{Map, Value, json};

use super::*;

const CONTEXT: u32 = 100;

fn intake() -> TextIntake {
    TextIntake {
        tokenizer: Arc::new(TextTokenizer::bytes(300)),
        template: None,
        max_context: CONTEXT,
        defaults: TextDefaults::default(),
        limits: TextLimits {
            max_choices: 4,
            max_prompt_bytes: 1_000,
            max_stop_strings: 2,
            max_stop_bytes: 5,
            max_stop_token_ids: 2,
            max_logit_bias: 2,
            max_top_logprobs: 3,
            ..TextLimits::default()
        },
    }
}

/// The job of a prompt of ten tokens with these fields.
fn job_with(intake: &TextIntake, fields: Value) -> Result<TextJob, Invalid> {
    let Value::Object(members) = fields else {
        unreachable!("fields are an object");
    };
    let mut fields = Fields::of(members);
    let mut draft = TextDraft::new(Prompt::Text("0123456789".into()));
    draft.best_of = fields.count("best_of")?;
    draft.logprobs = fields.count("logprobs")?;
    draft.read_shared(&mut fields)?;
    fields.finish()?;
    intake.job(draft)
}

#[test]
fn values_beyond_their_limits_are_refused_by_name() {
    let check = |field: &str, values: &[Value]| {
        for value in values {
            let fields = Value::Object(Map::from_iter([(field.to_owned(), value.clone())]));
            let invalid = job_with(&intake(), fields)
                .expect_err(&format!("{field} = {value} must be refused"));
            assert_eq!(invalid.field, field, "{value}: {invalid}");
            assert!(invalid.message.starts_with(field), "{invalid}");
        }
    };
    let huge = json!(1_000_000_000_000_000_000_u64);
    let counts = |values: &[Value]| {
        let wrong = [
            json!(-1),
            json!(1.5),
            json!("1"),
            json!(true),
            json!([1]),
            json!(1e300),
            huge.clone(),
        ];
        [&wrong, values].concat()
    };
    check("n", &counts(&[json!(0), json!(5)]));
    check("best_of", &counts(&[json!(0), json!(5)]));
    check(
        "max_tokens",
        &counts(&[json!(0), json!(91), json!(u32::MAX)]),
    );
    check("min_tokens", &counts(&[json!(91), json!(101)]));
    check("logprobs", &counts(&[json!(4)]));
    check("prompt_logprobs", &counts(&[json!(4)]));
    check(
        "truncate_prompt_tokens",
        &[json!(0), json!(-2), json!(0.5), json!("all")],
    );
    check(
        "top_k",
        &[json!(-2), json!(301), json!(0.5), json!("1"), huge.clone()],
    );
    check("seed", &[json!(0.5), json!("1"), json!(1e30)]);

    let numbers = |values: &[Value]| {
        let wrong = [
            json!("0.5"),
            json!(true),
            json!([0.5]),
            json!(1e300),
            json!(-1e300),
        ];
        [&wrong, values].concat()
    };
    check("temperature", &numbers(&[json!(-0.01), json!(2.01)]));
    check("top_p", &numbers(&[json!(0), json!(-0.1), json!(1.01)]));
    check("typical_p", &numbers(&[json!(0), json!(-0.1), json!(1.01)]));
    check("min_p", &numbers(&[json!(-0.01), json!(1.01)]));
    check("presence_penalty", &numbers(&[json!(-2.01), json!(2.01)]));
    check("frequency_penalty", &numbers(&[json!(-2.01), json!(2.01)]));
    check(
        "repetition_penalty",
        &numbers(&[json!(0), json!(-1), json!(10.1)]),
    );

    check(
        "logit_bias",
        &[
            json!({"300": 1}),
            json!({"-1": 1}),
            json!({"a": 1}),
            json!({"1": 100.1}),
            json!({"1": -1e300}),
            json!({"1": "1"}),
            json!({"1": 1, "2": 1, "3": 1}),
            json!([1]),
        ],
    );
    check(
        "stop",
        &[
            json!(""),
            json!(["a", ""]),
            json!("sixsix"),
            json!(["a", "b", "c"]),
            json!([1]),
            json!(1),
        ],
    );
    check(
        "stop_token_ids",
        &[
            json!([300]),
            json!([1, 2, 3]),
            json!([-1]),
            json!(["1"]),
            json!(1),
            json!([huge]),
        ],
    );
    for field in [
        "ignore_eos",
        "include_stop_str_in_output",
        "skip_special_tokens",
        "add_special_tokens",
    ] {
        check(field, &[json!(0), json!("true"), json!([])]);
    }
    check(
        "cache_salt",
        &[json!(""), json!(1), json!(["s"]), json!("s".repeat(257))],
    );
    // Who asks is not for a body to say.
    check("tenant", &[json!("alice")]);
    check("no_such_field", &[json!(0)]);
}

#[test]
fn values_at_their_limits_are_taken() {
    let fields = json!({
        "n": 2, "best_of": 4, "max_tokens": 90, "min_tokens": 90, "ignore_eos": true,
        "temperature": 2, "top_p": 1, "top_k": 300, "min_p": 1.0, "typical_p": 1e-300,
        "presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 10,
        "logit_bias": {"0": -100, "299": 100}, "seed": -1,
        "stop": ["12345", "a"], "stop_token_ids": [0, 299],
        "include_stop_str_in_output": true, "skip_special_tokens": false,
        "logprobs": 3, "prompt_logprobs": 0, "cache_salt": "s",
    });
    let job = job_with(&intake(), fields).expect("all at their limits");
    let expected = TextJob {
        prompt: Arc::from("0123456789".bytes().map(u32::from).collect::<Vec<u32>>()),
        rows: 4,
        max_tokens: 90,
        min_tokens: 90,
        ignore_eos: true,
        stop: Arc::from(["12345".to_owned(), "a".to_owned()]),
        stop_token_ids: Arc::from([0, 299]),
        include_stop_str_in_output: true,
        skip_special_tokens: false,
        sampling: crate::job::Sampling {
            temperature: 2.0,
            top_p: 1.0,
            top_k: 300,
            min_p: 1.0,
            // Not zero, which would mean something else.
            typical_p: f32::MIN_POSITIVE,
            presence_penalty: -2.0,
            frequency_penalty: 2.0,
            repetition_penalty: 10.0,
            logit_bias: Arc::from([(0, -100.0), (299, 100.0)]),
            seed: u64::MAX,
        },
        logprobs: Some(3),
        prompt_logprobs: Some(0),
        cache_salt: salt::cache_salt(None, Some("s")).expect("one byte"),
    };
    assert_eq!(job, expected);
    for top_k in [0, -1] {
        let job = job_with(&intake(), json!({"top_k": top_k})).expect("switched off");
        assert_eq!(job.sampling.top_k, 0);
    }
}

#[test]
fn what_is_left_out_comes_from_the_model() {
    let mut intake = intake();
    intake.defaults = TextDefaults {
        temperature: 0.6,
        top_p: 0.9,
        top_k: 20,
        min_p: 0.05,
        typical_p: 0.8,
        repetition_penalty: 1.1,
        max_tokens: Some(7),
    };
    let job = job_with(&intake, json!({})).expect("nothing is required");
    let sampling = &job.sampling;
    assert_eq!(
        (sampling.temperature, sampling.top_p, sampling.top_k),
        (0.6, 0.9, 20)
    );
    assert_eq!(
        (
            sampling.min_p,
            sampling.typical_p,
            sampling.repetition_penalty
        ),
        (0.05, 0.8, 1.1)
    );
    assert_eq!((job.max_tokens, job.rows, job.logprobs), (7, 1, None));
    let other = job_with(&intake, json!({})).expect("nothing is required");
    assert_ne!(
        sampling.seed, other.sampling.seed,
        "each gets a seed of its own"
    );
    assert!(sampling.seed < 1 << 53, "a double must hold it");
}

#[test]
fn new_tokens_fill_what_the_context_leaves() {
    let fill = |fields: Value| job_with(&intake(), fields).map(|job| job.max_tokens);
    assert_eq!(fill(json!({})), Ok(90));
    assert_eq!(fill(json!({"max_tokens": 1})), Ok(1));
    // Nothing but the prompt's own log-probabilities is asked for.
    assert_eq!(fill(json!({"max_tokens": 0, "prompt_logprobs": 0})), Ok(0));
    let too_long = fill(json!({"max_tokens": 91})).expect_err("91 + 10 > 100");
    assert_eq!(too_long.kind, InvalidKind::ContextLength);
    assert_eq!(
        too_long.message,
        "max_tokens is 91, which with a prompt of 10 tokens exceeds the model's context of 100 tokens"
    );

    let mut capped = intake();
    capped.limits.max_new_tokens = Some(20);
    let cap = |fields: Value| job_with(&capped, fields).map(|job| job.max_tokens);
    assert_eq!(cap(json!({})), Ok(20));
    assert_eq!(
        cap(json!({"max_tokens": 21}))
            .expect_err("above the cap")
            .message,
        "max_tokens must be between 1 and 20"
    );
    assert_eq!(cap(json!({"min_tokens": 20})), Ok(20));
    assert_eq!(
        cap(json!({"min_tokens": 21}))
            .expect_err("above the cap")
            .field,
        "min_tokens"
    );
}

#[test]
fn a_dialects_own_default_is_cut_to_the_context() {
    let make = |letters: usize, min_tokens: Option<u64>| {
        let draft = TextDraft {
            default_max_tokens: Some(16),
            min_tokens,
            ..TextDraft::new(Prompt::Text("x".repeat(letters)))
        };
        intake().job(draft).map(|job| job.max_tokens)
    };
    assert_eq!(make(10, None), Ok(16));
    assert_eq!(make(90, None), Ok(10));
    assert_eq!(make(10, Some(30)), Ok(30), "at least 30 means more than 16");
    assert_eq!(
        make(100, None).expect_err("no room").kind,
        InvalidKind::ContextLength
    );
}

#[test]
fn prompts_are_held_against_context_and_vocabulary() {
    let check = |prompt: Prompt, kind: InvalidKind, message: &str| {
        let invalid = intake().job(TextDraft::new(prompt)).expect_err(message);
        assert_eq!((invalid.kind, invalid.message.as_str()), (kind, message));
    };
    check(
        Prompt::Text("x".repeat(101)),
        InvalidKind::ContextLength,
        "prompt has 101 tokens; the model's context is 100 tokens",
    );
    check(
        Prompt::Text("x".repeat(100)),
        InvalidKind::ContextLength,
        "prompt has 100 tokens, which leaves no room for a new one in the model's context of 100 tokens",
    );
    check(
        Prompt::Text("x".repeat(1_001)),
        InvalidKind::Value,
        "prompt holds 1001 bytes; the limit is 1000 (max_prompt_bytes)",
    );
    check(
        Prompt::Tokens(vec![1, 300]),
        InvalidKind::Value,
        "prompt holds token id 300; the vocabulary has 300 ids, from 0",
    );
    check(
        Prompt::Text(String::new()),
        InvalidKind::Value,
        "prompt must hold at least one token",
    );
    check(
        Prompt::Tokens(vec![]),
        InvalidKind::Value,
        "prompt must hold at least one token",
    );
    check(
        Prompt::Chat(ChatPrompt::new(json!([{"role": "user", "content": "x"}]))),
        InvalidKind::Unsupported,
        "messages cannot be rendered: the model has no chat template",
    );
}

#[test]
fn a_prompt_may_be_cut_at_its_front() {
    let make = |keep: i64, max_tokens: Option<u64>| {
        let draft = TextDraft {
            truncate_prompt_tokens: Some(keep),
            max_tokens,
            ..TextDraft::new(Prompt::Tokens((0..200).collect()))
        };
        intake().job(draft)
    };
    let job = make(3, None).expect("three tokens fit");
    assert_eq!(
        (&job.prompt[..], job.max_tokens),
        (&[197, 198, 199][..], 97)
    );
    let job = make(-1, Some(40)).expect("as many as fit");
    assert_eq!((job.prompt.len(), job.max_tokens), (60, 40));
    let job = make(-1, None).expect("as many as fit");
    assert_eq!((job.prompt.len(), job.max_tokens), (99, 1));
    assert_eq!(
        make(150, None).expect_err("too many").kind,
        InvalidKind::ContextLength
    );
}

#[test]
fn ranking_needs_log_probabilities() {
    let logprobs = |fields: Value| job_with(&intake(), fields).map(|job| (job.rows, job.logprobs));
    assert_eq!(logprobs(json!({"n": 2})), Ok((2, None)));
    assert_eq!(logprobs(json!({"n": 2, "best_of": 2})), Ok((2, None)));
    assert_eq!(logprobs(json!({"n": 2, "best_of": 3})), Ok((3, Some(0))));
    assert_eq!(
        logprobs(json!({"best_of": 3, "logprobs": 2})),
        Ok((3, Some(2)))
    );
    let invalid = logprobs(json!({"n": 3, "best_of": 2})).expect_err("fewer than n");
    assert_eq!(invalid.message, "best_of is 2, which is less than n, 3");
}
