//! Uploads, and pictures made of them.

use std::time::Duration;

use girandole::api::EdgeConfig;
use girandole::api::gradio::GradioConfig;
use serde_json::json;

use crate::PICTURES;
use crate::client::Gradio;
use crate::service::{Service, Setup};

async fn service(gradio: GradioConfig) -> Service {
    Service::start(Setup {
        script: PICTURES,
        edge: EdgeConfig {
            gradio,
            ..EdgeConfig::default()
        },
        ..Setup::default()
    })
    .await
}

/// A picture of one colour.
fn png(size: u32) -> Vec<u8> {
    let picture = image::RgbImage::from_pixel(size, size, image::Rgb([9, 8, 7]));
    let mut file = std::io::Cursor::new(Vec::new());
    picture
        .write_to(&mut file, image::ImageFormat::Png)
        .unwrap();
    file.into_inner()
}

#[tokio::test]
async fn a_picture_is_made_of_an_upload_and_of_a_result() {
    let service = service(GradioConfig::default()).await;
    let gradio = Gradio::new(&service);
    let file = png(64);
    let reply = gradio
        .upload(&[("../../a b.png", &file), ("x", &file)])
        .await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let paths = reply.body.as_array().unwrap().clone();
    let path = paths[0].as_str().unwrap();
    assert!(path.starts_with("uploads/") && path.ends_with(".png") && paths.len() == 2);
    let (status, kind, bytes) = gradio.file(path).await;
    assert_eq!(
        (status, kind.as_str(), bytes),
        (200, "image/png", file.clone())
    );

    let meta = json!({"_type": "gradio.FileData"});
    let id = gradio
        .join("img2img", json!([{"path": path, "meta": meta}, "x"]))
        .await;
    let messages = gradio.all().await;
    let completed = &messages[messages.len() - 2].data;
    let drawn = completed["output"]["data"][0][0]["image"].clone();
    assert_eq!(drawn["path"], format!("requests/{id}/images/0.png"));
    // What came out goes in again, by its path or by its address; and so does a picture in Base64.
    let address = json!({"path": drawn["url"], "url": drawn["url"], "meta": meta});
    use base64::Engine;
    let data = base64::engine::general_purpose::STANDARD.encode(&file);
    let data = json!({"url": format!("data:image/png;base64,{data}"), "path": null});
    for image in [drawn, address, data] {
        gradio
            .join("img2img", json!([image, "x", null, 64, 64]))
            .await;
        let messages = gradio.all().await;
        assert_eq!(messages[messages.len() - 2].data["success"], true);
    }
}

#[tokio::test]
async fn uploads_are_pictures_within_bounds() {
    let file = png(64);
    let service = service(GradioConfig {
        max_uploads: 2,
        max_upload_bytes: 3 * file.len(),
        ..GradioConfig::default()
    })
    .await;
    let gradio = Gradio::new(&service);
    for bytes in [&b"GIF89a"[..], b"<svg/>", b"", b"\x7fELF"] {
        let reply = gradio.upload(&[("a.png", bytes)]).await;
        assert_eq!((reply.status, &reply.body["field"]), (422, &json!("files")));
    }
    let reply = gradio.upload(&[]).await;
    assert_eq!(reply.status, 422);
    let large: Vec<u8> = [file.clone(), vec![0; 3 * file.len()]].concat();
    let reply = gradio.upload(&[("a", &large)]).await;
    assert_eq!(
        (reply.status, &reply.body["code"]),
        (503, &json!("uploads_full"))
    );
    let reply = gradio
        .upload(&[("a", &file), ("b", &file), ("c", &file)])
        .await;
    assert_eq!(reply.status, 503, "all or none");
    let first = gradio.upload(&[("a", &file), ("b", &file)]).await;
    assert_eq!(first.status, 200);
    let reply = gradio.upload(&[("c", &file)]).await;
    assert_eq!(reply.status, 503);
    assert!(reply.retry_after.is_some());
    assert_eq!(gradio.file(first.body[0].as_str().unwrap()).await.0, 200);
}

#[tokio::test]
async fn uploads_are_forgotten_in_time() {
    let service = service(GradioConfig {
        upload_ttl: Duration::ZERO,
        ..GradioConfig::default()
    })
    .await;
    let gradio = Gradio::new(&service);
    let reply = gradio.upload(&[("a", &png(8))]).await;
    assert_eq!(gradio.file(reply.body[0].as_str().unwrap()).await.0, 404);
}
