use super::*;

const HOUR: Duration = Duration::from_secs(3_600);

fn json_body(value: &Value) -> Body {
    Body::parse("application/json", &Bytes::from(value.to_string())).expect("an object")
}

fn edit(value: &Value) -> Result<Call, Invalid> {
    read(json_body(value), Route::Edits, HOUR)
}

/// A form of these parts; those with a name that begins with `@` are files.
fn form(parts: &[(&str, &str)]) -> Result<Body, Invalid> {
    let mut body = String::new();
    for (name, content) in parts {
        let (name, file) = match name.strip_prefix('@') {
            Some(name) => (name, "; filename=\"x.png\""),
            None => (*name, ""),
        };
        body += &format!(
            "--B\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n{content}\r\n"
        );
    }
    body += "--B--\r\n";
    Body::parse("multipart/form-data; boundary=B", &Bytes::from(body))
}

#[test]
fn a_form_says_the_same_as_json() {
    let of_form = form(&[
        ("prompt", "7"),
        ("n", "2"),
        ("size", "64x32"),
        ("seed", "-1"),
        ("guidance_scale", "1.5"),
        ("stream", "true"),
        ("partial_images", "3"),
        ("stream_options[include_progress]", "true"),
        ("output_format", "jpeg"),
        ("output_compression", "0"),
        ("scheduler", "euler"),
        ("num_inference_steps", "9"),
        ("user", "12"),
        ("@image[]", "\u{1}\u{2}\u{3}"),
        ("@mask", "\u{4}"),
    ]);
    let of_form = read(of_form.expect("a form"), Route::Edits, HOUR).expect("sound");
    let of_json = edit(&json!({
        "prompt": "7", "n": 2, "size": "64x32", "seed": -1, "guidance_scale": 1.5, "stream": true,
        "partial_images": 3, "stream_options": {"include_progress": true}, "output_format": "jpeg",
        "output_compression": 0, "scheduler": "euler", "num_inference_steps": 9, "user": "12",
        "images": [{"image_url": "data:image/png;base64,AQID"}], "mask": {"image_url": "data:;base64,BA=="},
    }))
    .expect("sound");
    let renamed = ImageDraft {
        names: of_form.draft.names,
        ..of_json.draft.clone()
    };
    assert_eq!(of_form.draft, renamed);
    assert_eq!(of_form.shape, of_json.shape);
    assert_eq!(of_json.draft.names.source, "images");
    assert_eq!(
        (of_form.draft.width, of_form.draft.height),
        (Some(64), Some(32))
    );
    assert_eq!(of_form.draft.previews, PreviewDraft::Count(3));
    assert_eq!(of_form.shape.quality, 1);
    assert!(of_form.stream && of_form.shape.include_progress && of_form.shape.is_edit);
    assert!(!of_form.draft.source_alpha_is_mask);
    assert_eq!(of_form.draft.seed, Some(u64::MAX));
}

#[test]
fn a_pictures_own_transparency_counts_where_there_is_no_mask() {
    let call = edit(&json!({"prompt": "x", "image": ["AQID"]})).expect("sound");
    assert!(call.draft.source_alpha_is_mask);
    assert_eq!(call.draft.source, Some(PictureFile::new(vec![1, 2, 3])));
    assert_eq!(call.draft.mask, None);
}

#[test]
fn forms_are_refused_by_name() {
    let check = |parts: &[(&str, &str)], field: &str, kind| {
        let invalid = form(parts)
            .and_then(|body| read(body, Route::Edits, HOUR))
            .expect_err(field);
        assert_eq!(
            (invalid.field.as_str(), invalid.kind),
            (field, kind),
            "{invalid}"
        );
    };
    let (value, unknown, unsupported) = (
        InvalidKind::Value,
        InvalidKind::Unknown,
        InvalidKind::Unsupported,
    );
    let base = [("prompt", "x"), ("@image", "y")];
    let with = |more: &[(&'static str, &'static str)]| [&base, more].concat();
    check(&with(&[("n", "1"), ("n", "2")]), "n", value);
    check(&with(&[("n", "two")]), "n", value);
    check(&with(&[("n", "")]), "n", value);
    check(&with(&[("prompts", "x")]), "prompts", unknown);
    check(&with(&[("@sound", "x")]), "sound", unknown);
    check(&with(&[("@image", "x")]), "image", unsupported);
    check(&with(&[("@mask", "x"), ("@mask", "x")]), "mask", value);
    check(
        &with(&[("stream_options", "1"), ("stream_options[x]", "1")]),
        "stream_options[x]",
        value,
    );
    check(
        &with(&[("stream", "true"), ("stream_options[x]", "1")]),
        "stream_options.x",
        unknown,
    );
    check(&[("prompt", "x")], "image", InvalidKind::Missing);
    check(&[("@image", "x")], "prompt", InvalidKind::Missing);
}

#[test]
fn a_form_is_known_again_whatever_its_boundary() {
    let identity = |boundary: &str, content: &str| {
        let head = "Content-Disposition: form-data; name=\"prompt\"";
        let body = format!("--{boundary}\r\n{head}\r\n\r\n{content}\r\n--{boundary}--");
        let content_type = format!("multipart/form-data; boundary={boundary}");
        Body::parse(&content_type, &Bytes::from(body))
            .expect("a form")
            .identity
    };
    assert_eq!(identity("B", "x"), identity("CC", "x"));
    assert_ne!(identity("B", "x"), identity("B", "y"));
}
