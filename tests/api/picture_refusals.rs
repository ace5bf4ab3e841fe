//! What the native API refuses of image requests, field by field.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, ImageFormat, RgbImage};
use reqwest::Method;
use serde_json::{Value, json};

use crate::pictures::{DRAWS, start};
use crate::service::{INSTANT, Service};

async fn check(service: &Service, fields: &Value, field: &str, code: &str, says: &str) {
    let mut body = json!({"prompt": "hi"});
    let members = body.as_object_mut().expect("an object");
    members.extend(fields.as_object().expect("an object").clone());
    let call = service
        .client
        .call(Method::POST, "/api/v1/requests")
        .json(&body);
    let response = call.send().await.expect("an answer");
    let status = response.status().as_u16();
    let error = response.json::<Value>().await.expect("JSON")["error"].take();
    let shown: String = fields.to_string().chars().take(200).collect();
    assert_eq!(
        (status, &error["field"], &error["code"]),
        (400, &json!(field), &json!(code)),
        "{shown}: {error}"
    );
    let message = error["message"].as_str().expect("a message");
    assert!(
        message.starts_with(field) && message.contains(says),
        "{shown}: {message}"
    );
}

fn png(width: u32, height: u32) -> String {
    let mut file = std::io::Cursor::new(Vec::new());
    let picture = DynamicImage::from(RgbImage::new(width, height));
    picture
        .write_to(&mut file, ImageFormat::Png)
        .expect("encoded");
    STANDARD.encode(file.into_inner())
}

#[tokio::test]
async fn every_field_of_pictures() {
    let service = start(DRAWS).await;
    let invalid = "invalid_value";
    let whole = "must be a whole number";
    for (name, value, says) in [
        ("prompt", json!(5), "must be a string"),
        ("negative_prompt", json!(5), "must be a string"),
        ("width", json!(0), "is 0; it must be 8 to"),
        ("width", json!(60), "has 60, which is no multiple of 8"),
        ("width", json!(-8), whole),
        ("width", json!("64"), whole),
        ("width", json!(u64::MAX), "it must be 8 to"),
        (
            "width",
            json!(32_768),
            "= 2097152 pixels; the limit is 1048576 (max_image_pixels)",
        ),
        ("height", json!(7), "is 7; it must be 8 to"),
        ("height", json!(65.5), whole),
        ("n", json!(0), "is 0; it must be 1 to 10"),
        ("n", json!(11), "is 11; it must be 1 to 10 (max_images)"),
        ("steps", json!(0), "is 0; it must be 1 to 150"),
        (
            "steps",
            json!(151),
            "is 151; it must be 1 to 150 (max_steps)",
        ),
        ("steps", json!(true), whole),
        ("guidance_scale", json!(-1), "is -1; it must be 0 to 30"),
        (
            "guidance_scale",
            json!(1e300),
            "it must be 0 to 30 (max_guidance_scale)",
        ),
        ("guidance_scale", json!([]), "must be a number"),
        ("schedule", json!("none"), "is no schedule of this model"),
        ("schedule", json!(1), "must be a string"),
        ("karras", json!("yes"), "must be true or false"),
        ("eta", json!(-0.1), "it must be 0 to 1"),
        ("eta", json!(1.1), "it must be 0 to 1"),
        (
            "seed",
            json!(1.5),
            "must be a whole number of at most 64 bits",
        ),
        (
            "seed",
            json!("7"),
            "must be a whole number of at most 64 bits",
        ),
        ("strength", json!(0.5), "needs image"),
        ("mask", json!(png(8, 8)), "needs image"),
        ("mask", json!("!"), "neither Base64"),
        ("image", json!(5), "must be a string"),
        ("image", json!("!"), "neither Base64"),
        (
            "image",
            json!(STANDARD.encode("GIF89a")),
            "must be a PNG, JPEG or WebP file",
        ),
        (
            "previews",
            json!("all"),
            "must be true, false, or a whole number",
        ),
        (
            "previews",
            json!(-1),
            "must be true, false, or a whole number",
        ),
        ("deadline_ms", json!(0), "must be between 1 and"),
        ("detach", json!(1), "must be true or false"),
    ] {
        check(&service, &json!({name: value}), name, invalid, says).await;
    }
    let image = png(16, 16);
    for (fields, field, says) in [
        (
            json!({"image": image, "strength": 1.01}),
            "strength",
            "it must be 0 to 1",
        ),
        (
            json!({"image": image, "mask": png(8, 8)}),
            "mask",
            "it must have as many as image",
        ),
        (
            json!({"image": png(5_000, 5_000)}),
            "image",
            "the limit is 16777216 in all",
        ),
        (
            json!({"steps": 60, "previews": 51}),
            "previews",
            "asks for 51; the limit is 50 (max_previews)",
        ),
        (
            json!({"guidance_scale": 1, "negative_prompt": "x"}),
            "negative_prompt",
            "above 1",
        ),
    ] {
        check(&service, &fields, field, invalid, says).await;
    }
    check(
        &service,
        &json!({"image": "http://x/"}),
        "image",
        "unsupported_field",
        "not fetched",
    )
    .await;
    check(
        &service,
        &json!({"prompt": null}),
        "prompt",
        "missing_field",
        "is required",
    )
    .await;
    for name in ["max_tokens", "tokens", "messages", "size", "scheduler"] {
        check(&service, &json!({name: 1}), name, "unknown_field", "").await;
    }
    // A count beyond the steps costs nothing and is served.
    let call = service.client.call(Method::POST, "/api/v1/requests");
    let body = json!({"prompt": "x", "steps": 3, "previews": u64::MAX});
    assert_eq!(
        call.json(&body).send().await.expect("an answer").status(),
        201
    );
}

#[tokio::test]
async fn a_text_model_knows_no_pictures() {
    let service = start(INSTANT).await;
    for name in ["width", "steps", "image", "previews", "guidance_scale"] {
        check(&service, &json!({name: 8}), name, "unknown_field", "").await;
    }
}
