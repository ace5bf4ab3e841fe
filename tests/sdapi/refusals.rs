//! What is refused, by name, and what passes because it asks for nothing.

use serde_json::{Value, json};

use crate::INSTANT;
use crate::service::{ALICE, Service, png};

const TEXT: &str = "/sdapi/v1/txt2img";
const IMAGE: &str = "/sdapi/v1/img2img";

/// Everything that `webuiapi` sends unasked with `txt2img`.
fn unasked() -> Value {
    let fields = r#"{
        "enable_hr": false, "hr_scale": 2, "hr_upscaler": "Latent", "hr_second_pass_steps": 0,
        "hr_resize_x": 0, "hr_resize_y": 0, "hr_checkpoint_name": null, "hr_sampler_name": null,
        "hr_scheduler": null, "hr_prompt": "", "hr_negative_prompt": "", "denoising_strength": 0.7,
        "firstphase_width": 0, "firstphase_height": 0, "prompt": "a fox", "styles": [], "seed": -1,
        "subseed": -1, "subseed_strength": 0.0, "seed_resize_from_h": 0, "seed_resize_from_w": 0,
        "batch_size": 1, "n_iter": 1, "steps": 4, "cfg_scale": 7.0, "width": 64, "height": 64,
        "restore_faces": false, "tiling": false, "do_not_save_samples": false,
        "do_not_save_grid": false, "negative_prompt": "", "eta": 1.0, "s_churn": 0, "s_tmax": 0,
        "s_tmin": 0, "s_noise": 1, "override_settings": {},
        "override_settings_restore_afterwards": true, "sampler_name": "Euler a",
        "scheduler": "automatic", "sampler_index": "Euler a", "script_name": null,
        "script_args": [], "send_images": true, "save_images": false, "alwayson_scripts": {}
    }"#;
    serde_json::from_str(fields).expect("JSON")
}

/// What it sends with `img2img`.
fn unasked_with_picture() -> Value {
    let mut body = unasked();
    for name in ["enable_hr", "hr_scale", "hr_upscaler", "firstphase_width"] {
        body.as_object_mut().expect("an object").remove(name);
    }
    let more = json!({
        "init_images": [png(64, 64, [1, 2, 3])], "mask": png(64, 64, [255; 3]), "resize_mode": 0,
        "denoising_strength": 0.75, "mask_blur": 4, "inpainting_fill": 0, "inpaint_full_res": true,
        "inpaint_full_res_padding": 0, "inpainting_mask_invert": 0, "initial_noise_multiplier": 1,
        "image_cfg_scale": 1.5, "include_init_images": false,
    });
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

async fn check(path: &str, body: Value, cases: &[(&str, Value, &str)]) {
    let service = Service::start(INSTANT).await;
    let client = service.client(1, None);
    let good = client.post(path, &body).await;
    assert_eq!(good.status, 200, "{}", good.body);
    for (name, value, field) in cases {
        let mut wrong = body.clone();
        wrong[*name] = value.clone();
        let reply = client.post(path, &wrong).await;
        let case = format!("{name} = {value}: {}", reply.body);
        assert_eq!(reply.status, 400, "{case}");
        assert_eq!(reply.body["field"], *field, "{case}");
        let detail = reply.body["detail"].as_str().expect("a text");
        assert!(detail.starts_with(field), "{case}");
        assert_eq!(reply.body["errors"], detail, "{case}");
        assert!(reply.body["error"].is_string(), "{case}");
        assert_eq!(reply.body["body"], "", "{case}");
    }
}

#[tokio::test]
async fn a_drawing_from_words_is_refused_by_name() {
    let long_name = "x".repeat(257);
    let cases = [
        ("prompt", json!(3), "prompt"),
        ("prompt", json!("x".repeat(300)), "prompt"),
        ("prompt", json!("a fox <lora:fur:1>"), "prompt"),
        (
            "negative_prompt",
            json!("<hypernet:fur:1>"),
            "negative_prompt",
        ),
        ("seed", json!(-2), "seed"),
        ("seed", json!(1.5), "seed"),
        ("seed", json!("1"), "seed"),
        ("steps", json!(0), "steps"),
        ("steps", json!(151), "steps"),
        ("steps", json!(-1), "steps"),
        ("steps", json!("4"), "steps"),
        ("cfg_scale", json!(-0.5), "cfg_scale"),
        ("cfg_scale", json!(31), "cfg_scale"),
        ("width", json!(0), "width"),
        ("width", json!(63), "width"),
        ("width", json!(1032), "width"),
        ("width", json!(1_000_000), "width"),
        ("height", json!(60), "height"),
        ("height", json!(-64), "height"),
        ("batch_size", json!(0), "batch_size"),
        ("batch_size", json!(7), "batch_size"),
        ("n_iter", json!(0), "n_iter"),
        ("n_iter", json!(7), "batch_size times n_iter"),
        ("n_iter", json!(u64::MAX), "batch_size times n_iter"),
        ("sampler_name", json!("Heun"), "sampler_name"),
        ("sampler_name", json!(0), "sampler_name"),
        ("scheduler", json!("Exponential"), "scheduler"),
        ("eta", json!(0.5), "eta"),
        ("eta", json!(-1), "eta"),
        ("enable_hr", json!(true), "enable_hr"),
        ("tiling", json!(true), "tiling"),
        ("restore_faces", json!(true), "restore_faces"),
        ("save_images", json!(true), "save_images"),
        ("styles", json!(["pretty"]), "styles"),
        ("subseed_strength", json!(0.5), "subseed_strength"),
        ("seed_resize_from_w", json!(512), "seed_resize_from_w"),
        ("s_churn", json!(1), "s_churn"),
        ("s_noise", json!(1.1), "s_noise"),
        ("s_min_uncond", json!(1), "s_min_uncond"),
        ("refiner_checkpoint", json!("x"), "refiner_checkpoint"),
        ("script_name", json!("x/y plot"), "script_name"),
        ("infotext", json!("Steps: 3"), "infotext"),
        (
            "alwayson_scripts",
            json!({"ControlNet": {"args": [{"model": "x"}]}}),
            "alwayson_scripts.ControlNet",
        ),
        (
            "override_settings",
            json!({"CLIP_stop_at_last_layers": 2}),
            "override_settings.CLIP_stop_at_last_layers",
        ),
        (
            "override_settings",
            json!({"samples_format": "jpg"}),
            "override_settings.samples_format",
        ),
        (
            "override_settings",
            json!({"what": 1}),
            "override_settings.what",
        ),
        ("force_task_id", json!(long_name), "force_task_id"),
        ("force_task_id", json!(3), "force_task_id"),
        ("send_images", json!("no"), "send_images"),
        ("distilled_cfg_scale", json!(3.5), "distilled_cfg_scale"),
        ("init_images", json!([png(8, 8, [0; 3])]), "init_images"),
    ];
    check(TEXT, unasked(), &cases).await;
}

#[tokio::test]
async fn a_drawing_from_a_picture_is_refused_by_name() {
    let small = png(64, 64, [0; 3]);
    let cases = [
        ("init_images", Value::Null, "init_images"),
        ("init_images", json!([]), "init_images"),
        ("init_images", json!(small), "init_images"),
        ("init_images", json!([1]), "init_images"),
        ("init_images", json!([small, small]), "init_images"),
        ("init_images", json!(["@@@"]), "init_images"),
        ("init_images", json!(["aGVsbG8="]), "init_images"),
        (
            "init_images",
            json!(["http://localhost/picture.png"]),
            "init_images",
        ),
        (
            "init_images",
            json!([png(1024, 512, [0; 3])]),
            "init_images",
        ),
        ("mask", json!("aGVsbG8="), "mask"),
        ("mask", json!(3), "mask"),
        ("denoising_strength", json!(1.5), "denoising_strength"),
        ("denoising_strength", json!(-0.1), "denoising_strength"),
        ("inpainting_mask_invert", json!(2), "inpainting_mask_invert"),
        ("mask_blur", json!(8), "mask_blur"),
        ("inpainting_fill", json!(2), "inpainting_fill"),
        ("resize_mode", json!(1), "resize_mode"),
        (
            "initial_noise_multiplier",
            json!(0.9),
            "initial_noise_multiplier",
        ),
        ("include_init_images", json!(1), "include_init_images"),
    ];
    check(IMAGE, unasked_with_picture(), &cases).await;
}

#[tokio::test]
async fn what_asks_for_nothing_passes() {
    let service = Service::start(INSTANT).await;
    let client = service.client(1, None);
    for (name, value) in [
        ("eta", json!(0)),
        ("disable_extra_networks", json!(true)),
        (
            "alwayson_scripts",
            json!({"ADetailer": {"args": [false]}, "ControlNet": {"args": []}}),
        ),
        (
            "override_settings",
            json!({"CLIP_stop_at_last_layers": 1.0, "sd_vae": "Automatic"}),
        ),
        (
            "override_settings",
            json!({"sd_model_checkpoint": "more/pictures"}),
        ),
        ("scheduler", json!("Automatic")),
        ("script_name", json!("")),
        ("subseed", json!(17)),
        ("hr_upscaler", json!("R-ESRGAN 4x+")),
    ] {
        let mut body = unasked();
        body["sampler_name"] = json!("DDIM");
        body[name] = value.clone();
        client.draw(&body).await;
    }
    // With its syntax switched off, it is words.
    let body = json!({"prompt": "<lora:fur:1>", "disable_extra_networks": true});
    client.draw(&body).await;
}

#[tokio::test]
async fn the_samplers_index_counts_where_there_is_no_name() {
    let service = Service::start(INSTANT).await;
    let client = service.client(1, None);
    let body = json!({"prompt": "a fox", "sampler_index": "Euler"});
    let reply = client.draw(&body).await;
    assert_eq!(reply.info()["sampler_name"], "Euler");
    let wrong = json!({"prompt": "a fox", "sampler_index": "Heun"});
    let reply = client.post(TEXT, &wrong).await;
    assert_eq!(
        (reply.status, &reply.body["field"]),
        (400, &json!("sampler_index"))
    );
}

#[tokio::test]
async fn ddim_takes_its_eta() {
    let service = Service::start(INSTANT).await;
    let client = service.client(1, None);
    let mut body = unasked();
    body["sampler_name"] = json!("DDIM");
    let reply = client.draw(&body).await;
    let text = reply.info()["infotexts"][0].to_string();
    assert!(text.contains("Eta DDIM: 1"), "{text}");
    body["eta"] = json!(2);
    let reply = client.post(TEXT, &body).await;
    assert_eq!((reply.status, &reply.body["field"]), (400, &json!("eta")));
}

#[tokio::test]
async fn errors_before_any_handler_have_the_same_shape() {
    let keys = format!("alice {ALICE}");
    let service = Service::start_with(INSTANT, 8, &keys).await;
    let stranger = service.client(1, None);
    let alice = service.client(1, Some(ALICE));
    let shape = |reply: &crate::service::Reply| {
        assert!(reply.body["detail"].is_string(), "{}", reply.body);
        reply.status
    };
    assert_eq!(shape(&stranger.get("/sdapi/v1/samplers").await), 401);
    assert_eq!(
        shape(&stranger.post("/internal/progress", &json!({})).await),
        401
    );
    assert_eq!(shape(&alice.get("/sdapi/v1/nothing").await), 404);
    assert_eq!(shape(&alice.get(TEXT).await), 405);
    assert_eq!(shape(&alice.post(TEXT, &json!([])).await), 400);
    assert_eq!(
        shape(
            &alice
                .get("/sdapi/v1/progress?skip_current_image=perhaps")
                .await
        ),
        400
    );
    assert_eq!(shape(&alice.get("/sdapi/v1/progress?what=1").await), 400);
    assert_eq!(alice.get("/sdapi/v1/samplers").await.status, 200);
    // Basic is for these clients alone.
    assert_eq!(alice.get("/v1/models").await.status, 401);
}

#[tokio::test]
async fn what_is_no_png_file_has_no_parameters() {
    let service = Service::start(INSTANT).await;
    let client = service.client(1, None);
    for image in [json!("aGVsbG8="), json!("@"), Value::Null] {
        let reply = client
            .post("/sdapi/v1/png-info", &json!({"image": image}))
            .await;
        assert_eq!((reply.status, &reply.body["field"]), (400, &json!("image")));
    }
    let plain = png(8, 8, [1, 2, 3]);
    let reply = client
        .post("/sdapi/v1/png-info", &json!({"image": plain}))
        .await;
    assert_eq!(
        reply.body,
        json!({"info": "", "items": {}, "parameters": {}})
    );
}
