//! Pictures in whole replies: what the files hold, and how edits come in.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, ImageFormat, Rgba, RgbaImage};
use serde_json::{Value, json};

use crate::service::{Reply, Service};
use crate::{DRAWS, ECHO};

pub(crate) const GENERATIONS: &str = "/v1/images/generations";
pub(crate) const EDITS: &str = "/v1/images/edits";

pub(crate) fn decoded(base64: &Value) -> Vec<u8> {
    let text = base64.as_str().expect("a string");
    STANDARD.decode(text).expect("Base64")
}

/// Width, height and format of a file.
pub(crate) fn kind(file: &[u8]) -> (u32, u32, ImageFormat) {
    let format = image::guess_format(file).expect("a known format");
    let picture = image::load_from_memory(file).expect("a sound file");
    (picture.width(), picture.height(), format)
}

pub(crate) fn pixels(file: &[u8]) -> Vec<u8> {
    image::load_from_memory(file)
        .expect("a sound file")
        .into_rgb8()
        .into_raw()
}

/// A PNG of one colour.
pub(crate) fn png(width: u32, height: u32, colour: [u8; 4]) -> Vec<u8> {
    let mut file = std::io::Cursor::new(Vec::new());
    let picture = DynamicImage::from(RgbaImage::from_pixel(width, height, Rgba(colour)));
    picture
        .write_to(&mut file, ImageFormat::Png)
        .expect("encoded");
    file.into_inner()
}

pub(crate) fn data_url(file: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(file))
}

fn served(reply: Reply) -> Value {
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.body
}

/// What a PNG's `parameters` say.
fn parameters(file: &[u8]) -> String {
    let reader = png::Decoder::new(std::io::Cursor::new(file))
        .read_info()
        .expect("a PNG");
    let texts = &reader.info().uncompressed_latin1_text;
    let text = texts.iter().find(|chunk| chunk.keyword == "parameters");
    text.expect("it has parameters").text.clone()
}

#[tokio::test]
async fn a_reply_holds_every_picture_and_its_account() {
    let service = Service::start(DRAWS).await;
    let body = json!({"prompt": "a fox", "n": 2, "size": "64x32", "seed": 7, "steps": 5, "model": "model/one"});
    let reply = service.post(GENERATIONS, body.to_string()).await;
    let body = served(reply);
    assert!(body["created"].as_u64() > Some(1_700_000_000));
    let said = (&body["size"], &body["output_format"], &body["background"]);
    assert_eq!(said, (&json!("64x32"), &json!("png"), &json!("opaque")));
    let data = body["data"].as_array().expect("a list");
    assert_eq!(data.len(), 2);
    for (entry, seed) in data.iter().zip([7, 8]) {
        let file = decoded(&entry["b64_json"]);
        assert_eq!(kind(&file), (64, 32, ImageFormat::Png));
        assert_eq!(entry["seed"], json!(seed));
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            parameters(&file),
            format!(
                "a fox\nSteps: 5, Sampler: DDIM, CFG scale: 7.5, Seed: {seed}, Size: 64x32, \
                 Model: model/one, Version: girandole {version}"
            )
        );
    }
    let usage = &body["usage"];
    assert_eq!(usage["output_tokens"], json!(10));
    let text_tokens = usage["input_tokens_details"]["text_tokens"]
        .as_u64()
        .expect("a number");
    assert!(text_tokens > 0);
    assert_eq!(usage["input_tokens"], json!(text_tokens));
    assert_eq!(usage["total_tokens"], json!(text_tokens + 10));
}

#[tokio::test]
async fn the_same_seed_draws_the_same_whatever_it_is_asked_with() {
    let service = Service::start(DRAWS).await;
    let draw = async |fields: Value| {
        let body = served(service.post(GENERATIONS, fields.to_string()).await);
        decoded(&body["data"][0]["b64_json"])
    };
    let plain = draw(json!({"prompt": "a", "seed": 3})).await;
    assert_eq!(draw(json!({"prompt": "a", "seed": 3, "n": 4})).await, plain);
    let second = draw(json!({"prompt": "a", "seed": 2, "n": 2, "num_inference_steps": 4})).await;
    assert_ne!(second, plain);
    let all_defaults = json!({
        "prompt": "a", "seed": 3, "size": "auto", "quality": "auto", "style": "vivid",
        "background": "opaque", "moderation": "low", "user": "me", "output_format": "png",
        "output_compression": 100, "response_format": "b64_json", "stream": false, "partial_images": 0,
        "negative_prompt": "", "scheduler": "ddim", "guidance_scale": 7.5, "steps": 4,
        "num_inference_steps": 4, "n": 1, "deadline_ms": 9_000, "strength": null, "model": null,
    });
    assert_eq!(draw(all_defaults).await, plain);
    // Without a seed each draws its own.
    let body = json!({"prompt": "a"});
    assert_ne!(draw(body.clone()).await, draw(body).await);
}

#[tokio::test]
async fn formats_and_addresses() {
    let service = Service::start(DRAWS).await;
    let pixels_of_png = {
        let body = json!({"prompt": "a", "seed": 1});
        let body = served(service.post(GENERATIONS, body.to_string()).await);
        pixels(&decoded(&body["data"][0]["b64_json"]))
    };
    for (name, format, content_type) in [
        ("png", ImageFormat::Png, "image/png"),
        ("webp", ImageFormat::WebP, "image/webp"),
        ("jpeg", ImageFormat::Jpeg, "image/jpeg"),
    ] {
        let mut body = json!({"prompt": "a", "seed": 1, "output_format": name});
        let reply = served(service.post(GENERATIONS, body.to_string()).await);
        assert_eq!(reply["output_format"], json!(name));
        let file = decoded(&reply["data"][0]["b64_json"]);
        assert_eq!(kind(&file), (64, 64, format));
        if name != "jpeg" {
            assert_eq!(pixels(&file), pixels_of_png);
        }
        body["response_format"] = json!("url");
        let reply = served(service.post(GENERATIONS, body.to_string()).await);
        assert!(reply["data"][0].get("b64_json").is_none());
        let url = reply["data"][0]["url"].as_str().expect("a string");
        assert_eq!(
            service.file(url).await,
            (200, content_type.to_owned(), file)
        );
    }
    let mut sizes = Vec::new();
    for compression in [0, 50, 100] {
        let body = json!({"prompt": "a", "seed": 1, "output_format": "jpeg", "output_compression": compression});
        let reply = served(service.post(GENERATIONS, body.to_string()).await);
        sizes.push(decoded(&reply["data"][0]["b64_json"]).len());
    }
    assert!(sizes.is_sorted() && sizes[0] < sizes[2], "{sizes:?}");
}

/// A form with files, as clients send it.
fn form(texts: &[(&str, &str)], files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    let mut part = |head: String, content: &[u8]| {
        body.extend_from_slice(b"--frontier\r\nContent-Disposition: form-data; ");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(b"\r\n\r\n");
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    };
    for (name, text) in texts {
        part(format!("name=\"{name}\""), text.as_bytes());
    }
    for (name, file) in files {
        part(
            format!("name=\"{name}\"; filename=\"a.png\"\r\nContent-Type: image/png"),
            file,
        );
    }
    body.extend_from_slice(b"--frontier--\r\n");
    body
}

const FORM: &str = "multipart/form-data; boundary=frontier";

#[tokio::test]
async fn a_form_and_json_edit_alike() {
    let service = Service::start(DRAWS).await;
    let image = png(40, 24, [10, 20, 30, 255]);
    let mask = png(40, 24, [0, 0, 0, 0]);
    let texts = [
        ("prompt", "a hat"),
        ("seed", "4"),
        ("strength", "0.5"),
        ("steps", "8"),
    ];
    let files: [(&str, &[u8]); 2] = [("image", &image), ("mask", &mask)];
    let of_form = served(service.post_as(EDITS, FORM, form(&texts, &files)).await);
    // The source's own size, and half of the steps.
    assert_eq!(of_form["size"], json!("40x24"));
    assert_eq!(of_form["usage"]["output_tokens"], json!(4));
    let mut body = json!({
        "prompt": "a hat", "seed": 4, "strength": 0.5, "steps": 8,
        "images": [{"image_url": data_url(&image)}], "mask": {"image_url": data_url(&mask)},
    });
    let of_json = served(service.post(EDITS, body.to_string()).await);
    assert_eq!(of_json["data"], of_form["data"]);
    body["size"] = json!("64x64");
    let resized = served(service.post(EDITS, body.to_string()).await);
    assert_eq!(
        kind(&decoded(&resized["data"][0]["b64_json"])),
        (64, 64, ImageFormat::Png)
    );
    let text = parameters(&decoded(&resized["data"][0]["b64_json"]));
    assert!(text.contains("Denoising strength: 0.5"), "{text}");
}

/// A source that is too large to be drawn keeps its proportions.
#[tokio::test]
async fn a_large_source_is_brought_to_what_can_be_drawn() {
    let service = Service::start(DRAWS).await;
    let body = json!({"prompt": "x", "image": data_url(&png(400, 200, [1, 2, 3, 255]))});
    let reply = served(service.post(EDITS, body.to_string()).await);
    // 16,384 pixels at most, in multiples of 8.
    assert_eq!(reply["size"], json!("176x88"));
}

#[tokio::test]
async fn models_tell_what_they_make() {
    let service = Service::start(DRAWS).await;
    let reply = service.get("/v1/models").await;
    assert_eq!(reply.body["data"][0]["task"], json!("image"));
    let reply = service.get("/api/v1/models").await;
    assert_eq!(reply.body["models"][0]["task"], json!("image"));
    let service = Service::start(ECHO).await;
    let reply = service.get("/v1/models/model/one").await;
    assert_eq!(reply.body["task"], json!("text"));
}
