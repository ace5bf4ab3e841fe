//! What is drawn, and what the answer says of it.

use serde_json::{Value, json};

use crate::INSTANT;
use crate::service::{Service, png};

#[tokio::test]
async fn a_drawing_tells_what_it_is_made_of() {
    let service = Service::start(INSTANT).await;
    let client = service.client(1, None);
    let reply = client
        .draw(&json!({
            "prompt": "a red fox", "negative_prompt": "blur, noise", "steps": 3, "cfg_scale": 7.5,
            "seed": 5, "width": 64, "height": 32, "sampler_name": "Euler a",
        }))
        .await;
    assert_eq!(reply.images(), 1);
    let (width, height, _) = reply.pixels(0);
    assert_eq!((width, height), (64, 32));
    let version = concat!("girandole ", env!("CARGO_PKG_VERSION"));
    let text = format!(
        "a red fox\nNegative prompt: blur, noise\nSteps: 3, Sampler: Euler a, CFG scale: 7.5, Seed: 5, \
         Size: 64x32, Model: pictures, Version: {version}"
    );
    let info = reply.info();
    for (name, expected) in [
        ("prompt", json!("a red fox")),
        ("all_prompts", json!(["a red fox"])),
        ("negative_prompt", json!("blur, noise")),
        ("all_negative_prompts", json!(["blur, noise"])),
        ("seed", json!(5)),
        ("all_seeds", json!([5])),
        ("width", json!(64)),
        ("height", json!(32)),
        ("sampler_name", json!("Euler a")),
        ("cfg_scale", json!(7.5)),
        ("steps", json!(3)),
        ("batch_size", json!(1)),
        ("sd_model_name", json!("pictures")),
        ("denoising_strength", Value::Null),
        ("index_of_first_image", json!(0)),
        ("infotexts", json!([text])),
        ("clip_skip", json!(1)),
        ("version", json!(version)),
        ("interrupted", json!(false)),
        ("skipped", json!(false)),
    ] {
        assert_eq!(info[name], expected, "{name}");
    }
    let told = client
        .post("/sdapi/v1/png-info", &json!({"image": reply.image(0)}))
        .await;
    assert_eq!(told.body["info"], text.as_str());
    assert_eq!(told.body["items"], json!({}));
    assert_eq!(told.body["parameters"]["Seed"], "5");
    assert_eq!(told.body["parameters"]["Size-2"], "32");
    assert_eq!(told.body["parameters"]["Negative prompt"], "blur, noise");
    // The request is one like any other.
    let native = client
        .get(&format!("/api/v1/requests/{}", reply.request_id))
        .await;
    assert_eq!(
        (native.status, &native.body["state"]),
        (200, &json!("finished"))
    );
}

#[tokio::test]
async fn what_is_left_out_is_the_models_default_and_told() {
    let service = Service::start(INSTANT).await;
    let client = service.client(1, None);
    let reply = client
        .draw(&json!({"prompt": "a fox", "steps": null}))
        .await;
    let (width, height, _) = reply.pixels(0);
    assert_eq!((width, height), (64, 64));
    for (name, expected) in [
        ("prompt", json!("a fox")),
        ("steps", json!(4)),
        ("cfg_scale", json!(7.5)),
        ("width", json!(64)),
        ("sampler_name", json!("DDIM")),
        ("scheduler", json!("Automatic")),
        ("seed", json!(-1)),
        ("n_iter", json!(1)),
    ] {
        assert_eq!(reply.body["parameters"][name], expected, "{name}");
    }
    let seed = |reply: &crate::service::Reply| reply.info()["seed"].as_u64().expect("a seed");
    let again = client.draw(&json!({"prompt": "a fox", "seed": -1})).await;
    assert_ne!(seed(&reply), seed(&again), "a fresh seed is drawn");
    let same = client
        .draw(&json!({"prompt": "a fox", "seed": seed(&reply)}))
        .await;
    assert_eq!(same.image(0), reply.image(0));
}

#[tokio::test]
async fn picture_i_has_the_seed_plus_i() {
    let service = Service::start(INSTANT).await;
    let client = service.client(1, None);
    let body = |seed: u64, batch_size: u64, rounds: u64| json!({"prompt": "a fox", "seed": seed, "batch_size": batch_size, "n_iter": rounds});
    let four = client.draw(&body(5, 2, 2)).await;
    assert_eq!(four.info()["all_seeds"], json!([5, 6, 7, 8]));
    assert_eq!(four.info()["batch_size"], 2);
    assert_eq!(four.images(), 4);
    for index in 0..4 {
        let alone = client.draw(&body(5 + index as u64, 1, 1)).await;
        assert_eq!(alone.image(0), four.image(index), "{index}");
    }
    assert_ne!(four.pixels(0), four.pixels(1));
}

#[tokio::test]
async fn the_same_is_drawn_as_natively() {
    let service = Service::start(INSTANT).await;
    let client = service.client(1, None);
    let source = png(40, 40, [200, 30, 10]);
    let words = json!({
        "prompt": "a red fox", "negative_prompt": "blur", "steps": 7, "seed": 11, "cfg_scale": 3,
        "width": 48, "height": 80, "sampler_name": "Euler",
    });
    let words_natively = json!({
        "model": "pictures", "prompt": "a red fox", "negative_prompt": "blur", "steps": 7, "seed": 11,
        "guidance_scale": 3, "width": 48, "height": 80, "schedule": "euler",
    });
    let mut picture = words.clone();
    picture["init_images"] = json!([source]);
    picture["denoising_strength"] = json!(0.6);
    picture["mask"] = json!(png(40, 40, [255; 3]));
    let mut picture_natively = words_natively.clone();
    picture_natively["image"] = json!(source);
    picture_natively["strength"] = json!(0.6);
    picture_natively["mask"] = picture["mask"].clone();
    for (path, body, natively) in [
        ("/sdapi/v1/txt2img", words, words_natively),
        ("/sdapi/v1/img2img", picture, picture_natively),
    ] {
        let reply = client.post(path, &body).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let native = client.post("/api/v1/requests", &natively).await;
        assert_eq!(native.status, 201, "{}", native.body);
        let id = native.request_id;
        client.get(&format!("/api/v1/requests/{id}?wait=10")).await;
        let file = client
            .file(&format!("/api/v1/requests/{id}/images/0"))
            .await;
        // The whole files: the pixels, and what they are made of.
        assert_eq!(file, reply.image(0), "{path}");
    }
}

#[tokio::test]
async fn the_pictures_can_be_fetched_again() {
    let service = Service::start(INSTANT).await;
    let client = service.client(1, None);
    let body = json!({"prompt": "a fox", "batch_size": 2});
    let reply = client.draw(&body).await;
    for index in 0..2 {
        let path = format!("/api/v1/requests/{}/images/{index}", reply.request_id);
        assert_eq!(client.file(&path).await, reply.image(index));
    }
}

#[tokio::test]
async fn a_picture_is_drawn_from_a_picture() {
    let service = Service::start(INSTANT).await;
    let client = service.client(1, None);
    let source = png(96, 64, [10, 200, 30]);
    let body = |image: &str| json!({"prompt": "a fox", "seed": 3, "init_images": [image], "denoising_strength": 0.5});
    let bare = client.post("/sdapi/v1/img2img", &body(&source)).await;
    assert_eq!(bare.status, 200, "{}", bare.body);
    // Where no size is given, the source's counts.
    let (width, height, _) = bare.pixels(0);
    assert_eq!((width, height), (96, 64));
    assert_eq!(bare.info()["denoising_strength"], 0.5);
    assert!(
        bare.info()["infotexts"][0]
            .as_str()
            .is_some_and(|text| text.contains("Denoising strength: 0.5"))
    );
    assert_eq!(bare.body["parameters"]["init_images"], Value::Null);
    let url = format!("data:image/png;base64,{source}");
    let prefixed = client.post("/sdapi/v1/img2img", &body(&url)).await;
    assert_eq!(prefixed.image(0), bare.image(0));
    let mut keeping = body(&source);
    keeping["include_init_images"] = json!(true);
    let kept = client.post("/sdapi/v1/img2img", &keeping).await;
    assert_eq!(kept.body["parameters"]["init_images"], json!([source]));
}

#[tokio::test]
async fn a_mask_is_taken_and_what_was_not_done_is_told() {
    let service = Service::start(INSTANT).await;
    let client = service.client(1, None);
    let mut body = json!({
        "prompt": "a fox", "init_images": [png(64, 64, [10, 200, 30])], "mask": png(64, 64, [255; 3]),
        "inpainting_mask_invert": 1, "mask_blur": 4, "inpainting_fill": 0, "inpaint_full_res": true,
        "inpaint_full_res_padding": 32, "resize_mode": 0, "image_cfg_scale": 1.5,
        "initial_noise_multiplier": 1,
    });
    let reply = client.post("/sdapi/v1/img2img", &body).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let parameters = &reply.body["parameters"];
    for (name, expected) in [
        ("mask", Value::Null),
        ("mask_blur", json!(0)),
        ("inpainting_fill", json!(1)),
        ("inpaint_full_res", json!(false)),
        ("inpainting_mask_invert", json!(1)),
    ] {
        assert_eq!(parameters[name], expected, "{name}");
    }
    // Without a mask they have no effect, whatever they are.
    body["mask"] = Value::Null;
    body["mask_blur"] = json!(17);
    let reply = client.post("/sdapi/v1/img2img", &body).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.body["parameters"]["mask_blur"], 17);
}

#[tokio::test]
async fn pictures_may_be_left_out_of_the_answer() {
    let service = Service::start(INSTANT).await;
    let client = service.client(1, None);
    let reply = client
        .draw(&json!({"prompt": "a fox", "seed": 1, "batch_size": 2, "send_images": false}))
        .await;
    assert_eq!(reply.images(), 0);
    assert_eq!(reply.info()["all_seeds"], json!([1, 2]));
}

#[tokio::test]
async fn an_idempotency_key_repeats_the_answer() {
    let service = Service::start(INSTANT).await;
    let client = service.client(1, None);
    let body = json!({"prompt": "a fox", "force_task_id": "one"});
    let key = [("idempotency-key", "k")];
    let first = client.post_with("/sdapi/v1/txt2img", &body, &key).await;
    let again = client.post_with("/sdapi/v1/txt2img", &body, &key).await;
    assert_eq!(again.request_id, first.request_id);
    assert_eq!(again.body, first.body);
    let other = json!({"prompt": "a dog"});
    let mistake = client.post_with("/sdapi/v1/txt2img", &other, &key).await;
    assert_eq!(mistake.status, 422);
}
