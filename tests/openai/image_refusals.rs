//! What is refused of image requests, field by field.

use serde_json::{Value, json};

use crate::images::{EDITS, GENERATIONS, data_url, png};
use crate::service::{MAX_DEADLINE, Service};
use crate::{DRAWS, ECHO};

/// The smallest body that is served, with these fields put in.
fn body(path: &str, fields: &Value) -> Value {
    let mut body = json!({"prompt": "hi"});
    if path == EDITS {
        body["image"] = json!(data_url(&png(16, 16, [9, 9, 9, 255])));
    }
    let members = body.as_object_mut().expect("an object");
    members.extend(fields.as_object().expect("an object").clone());
    body
}

/// Sends a body that is refused with a 400, and checks which field and code it names, and what it says.
async fn check(service: &Service, path: &str, fields: &Value, param: &str, code: &str, says: &str) {
    let reply = service.post(path, body(path, fields).to_string()).await;
    let error = &reply.body["error"];
    let shown: String = fields.to_string().chars().take(200).collect();
    let said = (
        reply.status,
        &error["param"],
        &error["code"],
        &error["type"],
    );
    let expected = (
        400,
        &json!(param),
        &json!(code),
        &json!("invalid_request_error"),
    );
    assert_eq!(said, expected, "{path} {shown}: {error}");
    let message = error["message"].as_str().expect("a message");
    assert!(message.starts_with(param), "{message} names {param}");
    assert!(message.contains(says), "{shown}: {message} says {says}");
}

#[tokio::test]
async fn values_beyond_their_limits() {
    let service = Service::start(DRAWS).await;
    let deadline = MAX_DEADLINE.as_millis() as u64 + 1;
    let whole = "must be a whole number";
    for (name, value, says) in [
        ("prompt", json!(5), "must be a string"),
        (
            "prompt",
            json!("x".repeat(1_001)),
            "1001 bytes long; the limit is 1000",
        ),
        ("negative_prompt", json!(["x"]), "must be a string"),
        (
            "negative_prompt",
            json!("x".repeat(1_001)),
            "the limit is 1000",
        ),
        ("n", json!(0), "is 0; it must be 1 to 6"),
        ("n", json!(7), "is 7; it must be 1 to 6"),
        ("n", json!(1e30), whole),
        ("n", json!("1"), whole),
        ("n", json!(u64::MAX), "it must be 1 to 6"),
        ("size", json!("big"), "such as 512x512"),
        ("size", json!("64"), "such as 512x512"),
        ("size", json!("64X64"), "such as 512x512"),
        ("size", json!("64x+64"), "such as 512x512"),
        ("size", json!("64x64x64"), "such as 512x512"),
        ("size", json!("99999999999999999999x8"), "such as 512x512"),
        ("size", json!(64), "must be a string"),
        ("size", json!("60x64"), "has 60, which is no multiple of 8"),
        ("size", json!("64x0"), "is 0; it must be 8 to 2048"),
        ("size", json!("64x4096"), "is 4096; it must be 8 to 2048"),
        (
            "size",
            json!("128x136"),
            "asks for 128 x 136 = 17408 pixels; the limit is 16384",
        ),
        ("output_format", json!("gif"), "must be png, jpeg or webp"),
        ("output_format", json!(1), "must be a string"),
        ("output_compression", json!(101), "must be 0 to 100"),
        ("output_compression", json!(-1), whole),
        ("response_format", json!("b64"), "must be b64_json or url"),
        ("stream", json!("yes"), "must be true or false"),
        ("partial_images", json!(1), "only when stream is true"),
        ("partial_images", json!(4), "must be 0 to 3"),
        ("stream_options", json!({}), "only when stream is true"),
        ("steps", json!(0), "is 0; it must be 1 to 50"),
        ("steps", json!(51), "is 51; it must be 1 to 50"),
        ("steps", json!(1.5), whole),
        (
            "num_inference_steps",
            json!(51),
            "is 51; it must be 1 to 50",
        ),
        ("num_inference_steps", json!("4"), whole),
        ("guidance_scale", json!(-0.5), "is -0.5; it must be 0 to 30"),
        ("guidance_scale", json!(31), "is 31; it must be 0 to 30"),
        ("guidance_scale", json!("7"), "must be a number"),
        ("scheduler", json!("magic"), "is no schedule of this model"),
        ("scheduler", json!(1), "must be a string"),
        (
            "seed",
            json!(0.5),
            "must be a whole number of at most 64 bits",
        ),
        (
            "seed",
            json!("1"),
            "must be a whole number of at most 64 bits",
        ),
        (
            "seed",
            json!(1e25),
            "must be a whole number of at most 64 bits",
        ),
        ("user", json!(1), "must be a string"),
        ("deadline_ms", json!(0), "must be between 1 and"),
        ("deadline_ms", json!(deadline), "must be between 1 and"),
    ] {
        for path in [GENERATIONS, EDITS] {
            check(
                &service,
                path,
                &json!({name: value}),
                name,
                "invalid_value",
                says,
            )
            .await;
        }
    }
    for path in [GENERATIONS, EDITS] {
        let fields = json!({"steps": 3, "num_inference_steps": 4});
        check(
            &service,
            path,
            &fields,
            "num_inference_steps",
            "invalid_value",
            "must equal steps",
        )
        .await;
        let fields = json!({"guidance_scale": 1, "negative_prompt": "x"});
        check(
            &service,
            path,
            &fields,
            "negative_prompt",
            "invalid_value",
            "guidance_scale above 1",
        )
        .await;
        let long = "x".repeat(300);
        let code = "context_length_exceeded";
        check(
            &service,
            path,
            &json!({"prompt": long}),
            "prompt",
            code,
            "the limit is 225",
        )
        .await;
        check(
            &service,
            path,
            &json!({"prompt": null}),
            "prompt",
            "missing_field",
            "is required",
        )
        .await;
    }
}

#[tokio::test]
async fn fields_that_ask_for_what_is_not_served() {
    let service = Service::start(DRAWS).await;
    let code = "unsupported_field";
    for (name, value) in [
        ("quality", json!("high")),
        ("quality", json!("hd")),
        ("style", json!("natural")),
        ("background", json!("transparent")),
        ("moderation", json!("strict")),
        ("output_compression", json!(50)),
    ] {
        for path in [GENERATIONS, EDITS] {
            check(&service, path, &json!({name: value}), name, code, "").await;
        }
    }
    check(
        &service,
        EDITS,
        &json!({"input_fidelity": "high"}),
        "input_fidelity",
        code,
        "",
    )
    .await;
    let fields = json!({"stream": true, "response_format": "url"});
    check(
        &service,
        GENERATIONS,
        &fields,
        "response_format",
        code,
        "in a stream",
    )
    .await;
    let reply = service.post("/v1/images/variations", "{}").await;
    assert_eq!(
        (reply.status, &reply.body["error"]["code"]),
        (404, &json!("unsupported_endpoint"))
    );
}

#[tokio::test]
async fn fields_that_nobody_knows() {
    let service = Service::start(DRAWS).await;
    let code = "unknown_field";
    for path in [GENERATIONS, EDITS] {
        check(&service, path, &json!({"promt": "x"}), "promt", code, "").await;
        let fields = json!({"stream": true, "stream_options": {"include_usage": true}});
        check(
            &service,
            path,
            &fields,
            "stream_options.include_usage",
            code,
            "",
        )
        .await;
    }
    for name in ["image", "mask", "images", "input_fidelity"] {
        check(
            &service,
            GENERATIONS,
            &json!({name: "AAAA"}),
            name,
            code,
            "",
        )
        .await;
    }
}

#[tokio::test]
async fn pictures_that_cannot_be_used() {
    let service = Service::start(DRAWS).await;
    let small = data_url(&png(16, 16, [0, 0, 0, 0]));
    let wide = data_url(&png(8, 16, [0, 0, 0, 0]));
    let huge = data_url(&png(400, 251, [0, 0, 0, 255]));
    let mut broken = png(16, 16, [1, 2, 3, 255]);
    broken.truncate(broken.len() - 20);
    let (invalid, unsupported) = ("invalid_value", "unsupported_field");
    for (fields, param, code, says) in [
        (
            json!({"image": null}),
            "image",
            "missing_field",
            "is required",
        ),
        (
            json!({"image": []}),
            "image",
            "missing_field",
            "is required",
        ),
        (json!({"image": 5}), "image", invalid, "must be a string"),
        (json!({"image": "!"}), "image", invalid, "neither Base64"),
        (
            json!({"image": "AAAA"}),
            "image",
            invalid,
            "must be a PNG, JPEG or WebP file",
        ),
        (
            json!({"image": data_url(&broken)}),
            "image",
            invalid,
            "is a damaged file",
        ),
        (
            json!({"image": huge}),
            "image",
            invalid,
            "400 x 251 pixels; the limit is 100000 in all (max_source_pixels)",
        ),
        (
            json!({"image": "https://example.org/a.png"}),
            "image",
            unsupported,
            "addresses are not fetched",
        ),
        (
            json!({"image": [small, small]}),
            "image",
            unsupported,
            "one at a time",
        ),
        (
            json!({"images": [{"image_url": small}]}),
            "images",
            invalid,
            "excludes image",
        ),
        (
            json!({"image": null, "images": [{"file_id": "file-1"}]}),
            "images",
            unsupported,
            "file_id",
        ),
        (
            json!({"image": null, "images": [{"image_url": 5}]}),
            "images",
            invalid,
            "image_url",
        ),
        (
            json!({"image": null, "images": ["AAAA"]}),
            "images",
            invalid,
            "must be an object",
        ),
        (
            json!({"image": null, "images": {}}),
            "images",
            invalid,
            "must be a list",
        ),
        (
            json!({"image": null, "images": []}),
            "images",
            "missing_field",
            "is required",
        ),
        (
            json!({"image": null, "images": [{"image_url": "http://x/"}]}),
            "images",
            unsupported,
            "not fetched",
        ),
        (
            json!({"image": null, "images": [{"image_url": small, "x": 1}]}),
            "images.x",
            "unknown_field",
            "",
        ),
        (
            json!({"mask": "AAAA"}),
            "mask",
            invalid,
            "must be a PNG, JPEG or WebP file",
        ),
        (
            json!({"mask": 5}),
            "mask",
            invalid,
            "must be an object with image_url",
        ),
        (
            json!({"mask": wide}),
            "mask",
            invalid,
            "has 8 x 16 pixels; it must have as many as image, 16 x 16",
        ),
        (
            json!({"strength": -0.1}),
            "strength",
            invalid,
            "is -0.1; it must be 0 to 1",
        ),
        (
            json!({"strength": 1.1}),
            "strength",
            invalid,
            "is 1.1; it must be 0 to 1",
        ),
        (
            json!({"strength": "1"}),
            "strength",
            invalid,
            "must be a number",
        ),
    ] {
        check(&service, EDITS, &fields, param, code, says).await;
    }
    check(
        &service,
        GENERATIONS,
        &json!({"strength": 0.5}),
        "strength",
        invalid,
        "needs image",
    )
    .await;
}

#[tokio::test]
async fn a_model_of_the_other_kind() {
    let draws = Service::start(DRAWS).await;
    let chat = json!({"model": "model/one", "messages": [{"role": "user", "content": "hi"}]});
    let reply = draws.post("/v1/chat/completions", chat.to_string()).await;
    let says = "model names a model that draws pictures and continues no texts";
    assert_eq!(
        (reply.status, &reply.body["error"]["message"]),
        (400, &json!(says))
    );
    let says = "continues texts and draws no pictures";
    let writes = Service::start(ECHO).await;
    check(
        &writes,
        GENERATIONS,
        &json!({}),
        "model",
        "invalid_value",
        says,
    )
    .await;
    let reply = draws
        .post(GENERATIONS, r#"{"prompt": "x", "model": "other"}"#)
        .await;
    assert_eq!(
        (reply.status, &reply.body["error"]["code"]),
        (404, &json!("model_not_found"))
    );
}

#[tokio::test]
async fn forms_that_cannot_be_read() {
    let service = Service::start(DRAWS).await;
    for (content_type, body, says) in [
        ("multipart/form-data", "--x--", "has no boundary"),
        (
            "multipart/form-data; boundary=x",
            "",
            "not closed by its boundary",
        ),
        (
            "multipart/form-data; boundary=x",
            "--x\r\n\r\n\r\n--x--",
            "content-disposition",
        ),
        ("application/json", "--x--", "the body is no JSON"),
    ] {
        let reply = service.post_as(EDITS, content_type, body.into()).await;
        let error = &reply.body["error"];
        assert_eq!(
            (reply.status, &error["code"]),
            (400, &json!("invalid_body")),
            "{error}"
        );
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains(says), "{message}");
    }
}
