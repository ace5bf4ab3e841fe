//! `/sdapi/v1/png-info`: what a picture was made of, as its file tells.

use std::io::Cursor;

use axum::Json;
use axum::body::Bytes;
use serde_json::{Map, Value, json};

use super::WebUiError;
use crate::api::blocking::on_blocking_pool;
use crate::api::picture_file::PARAMETERS;
use crate::intake::picture_file::PictureFile;
use crate::intake::{Fields, Invalid, InvalidKind};

/// Bytes of all texts of one file together, unpacked: a small file can hold very long ones.
const MAX_TEXT_BYTES: usize = 1 << 20;
/// Texts of one file.
const MAX_TEXTS: usize = 64;

/// Reads the texts of a PNG file, none of its pixels.
#[utoipa::path(post, path = "/sdapi/v1/png-info", tag = "web UI",
    responses(
        (status = 200, description = "`info`: the text; `parameters`: its parts; `items`: other texts"),
        (status = 400, description = "no PNG file"),
    ))]
pub(super) async fn read(body: Bytes) -> Result<Json<Value>, WebUiError> {
    let answer = on_blocking_pool(move || answer(&body)).await?;
    Ok(Json(answer))
}

fn answer(body: &[u8]) -> Result<Value, Invalid> {
    let mut fields = Fields::parse(body)?;
    let missing = || Invalid::new(InvalidKind::Missing, "image", "is missing");
    let image = fields.string("image")?.ok_or_else(missing)?;
    fields.finish()?;
    let file = PictureFile::from_text("image", image.trim())?;
    let mut items = texts(file.bytes())?;
    let info = match items.remove(PARAMETERS) {
        Some(Value::String(text)) => text,
        _ => String::new(),
    };
    let parameters = parsed(&info);
    Ok(json!({"info": info, "items": items, "parameters": parameters}))
}

/// The texts before the pixels, by keyword.
///
/// # Errors
/// No PNG file, a damaged one, or one with too much text.
fn texts(file: &[u8]) -> Result<Map<String, Value>, Invalid> {
    let wrong = |message: &str| Invalid::value("image", message);
    let reader = png::Decoder::new(Cursor::new(file))
        .read_info()
        .map_err(|_| wrong("must be a PNG file"))?;
    let info = reader.info();
    let (latin, packed, utf8) = (
        &info.uncompressed_latin1_text,
        &info.compressed_latin1_text,
        &info.utf8_text,
    );
    if latin.len() + packed.len() + utf8.len() > MAX_TEXTS {
        return Err(wrong(&format!("has more than {MAX_TEXTS} texts")));
    }
    let mut texts = Map::new();
    let mut left = MAX_TEXT_BYTES;
    let too_long = || {
        let message =
            format!("has a damaged text, or more than {MAX_TEXT_BYTES} bytes of text in all");
        wrong(&message)
    };
    let mut take = |keyword: &str, text: String| {
        left = left
            .checked_sub(keyword.len() + text.len())
            .ok_or_else(too_long)?;
        texts.insert(keyword.to_owned(), text.into());
        Ok(left)
    };
    let mut room = MAX_TEXT_BYTES;
    for chunk in latin {
        room = take(&chunk.keyword, chunk.text.clone())?;
    }
    for chunk in packed {
        let mut chunk = chunk.clone();
        let unpacked = chunk.decompress_text_with_limit(room);
        let text = unpacked.and_then(|()| chunk.get_text());
        room = take(&chunk.keyword, text.map_err(|_| too_long())?)?;
    }
    for chunk in utf8 {
        let mut chunk = chunk.clone();
        let unpacked = chunk.decompress_text_with_limit(room);
        let text = unpacked.and_then(|()| chunk.get_text());
        room = take(&chunk.keyword, text.map_err(|_| too_long())?)?;
    }
    Ok(texts)
}

/// The parts of a text in the web UI's grammar: the prompt, `Negative prompt:`, and a last line of at least
/// three `Name: value` pairs. Sizes are given as two numbers as well.
fn parsed(text: &str) -> Map<String, Value> {
    let mut parts = Map::new();
    let text = text.trim();
    if text.is_empty() {
        return parts;
    }
    let (above, last) = text.rsplit_once('\n').unwrap_or(("", text));
    let mut pairs = pairs(last);
    let words = match pairs.len() {
        3.. => above,
        _ => {
            pairs.clear();
            text
        }
    };
    let (mut prompt, mut negative, mut in_negative) = (Vec::new(), Vec::new(), false);
    for line in words.lines().map(str::trim) {
        let line = match line.strip_prefix("Negative prompt:") {
            Some(rest) => {
                in_negative = true;
                rest.trim()
            }
            None => line,
        };
        match in_negative {
            true => negative.push(line),
            false => prompt.push(line),
        }
    }
    parts.insert("Prompt".to_owned(), prompt.join("\n").into());
    parts.insert("Negative prompt".to_owned(), negative.join("\n").into());
    for (name, value) in pairs {
        match size(&value) {
            Some((width, height)) => {
                parts.insert(format!("{name}-1"), width.into());
                parts.insert(format!("{name}-2"), height.into());
            }
            None => {
                parts.insert(name, value.into());
            }
        }
    }
    parts
}

/// `WxH`, both still as text.
fn size(value: &str) -> Option<(&str, &str)> {
    let (width, height) = value.split_once('x')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(width) && is_number(height)).then_some((width, height))
}

/// `Name: value, Name: "value, in quotes"`; what fits no pair is left out.
fn pairs(line: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut rest = line;
    while let Some((name, value)) = rest.split_once(':') {
        let value = value.trim_start();
        let quoted = value
            .starts_with('"')
            .then(|| {
                let mut stream = serde_json::Deserializer::from_str(value).into_iter::<String>();
                let text = stream.next()?.ok()?;
                let after = value[stream.byte_offset()..].trim_start();
                (after.is_empty() || after.starts_with(',')).then_some((text, after))
            })
            .flatten();
        let (value, after) = match quoted {
            Some(found) => found,
            None => {
                let end = value.find(',').unwrap_or(value.len());
                (value[..end].trim_end().to_owned(), &value[end..])
            }
        };
        rest = after.strip_prefix(',').unwrap_or(after);
        let name = name.rsplit(',').next().unwrap_or(name).trim();
        let is_name = |letter: char| letter.is_alphanumeric() || " _-/".contains(letter);
        if name.chars().count() > 1 && name.chars().all(is_name) {
            pairs.push((name.to_owned(), value));
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(&str, &str)]) {
        let expected: Map<String, Value> = expected
            .iter()
            .map(|(name, value)| ((*name).to_owned(), Value::from(*value)))
            .collect();
        assert_eq!(parsed(text), expected, "{text}");
    }

    /// A PNG file of one pixel with so many texts of so many letters each.
    fn file_with_texts(count: usize, letters: usize, packed: bool) -> Vec<u8> {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, 1, 1);
        for index in 0..count {
            let (keyword, text) = (format!("text {index}"), "x".repeat(letters));
            match packed {
                true => encoder.add_ztxt_chunk(keyword, text),
                false => encoder.add_text_chunk(keyword, text),
            }
            .expect("a text that a PNG can hold");
        }
        let mut writer = encoder.write_header().expect("a header");
        writer.write_image_data(&[0]).expect("one pixel");
        writer.finish().expect("the end");
        file
    }

    #[test]
    fn all_texts_of_a_file_share_one_limit() {
        for packed in [false, true] {
            let few = texts(&file_with_texts(3, 300_000, packed)).expect("below a megabyte");
            assert_eq!(few.len(), 3);
            let refused = texts(&file_with_texts(8, 300_000, packed)).expect_err("too much");
            assert!(refused.message.contains("1048576"), "{refused}");
        }
    }

    #[test]
    fn a_text_falls_into_its_parts() {
        check("", &[]);
        check(
            "a fox\nby night\nNegative prompt: blur,\nnoise\nSteps: 20, Sampler: Euler a, CFG scale: 7.5, \
             Seed: 1, Size: 512x768, Model: \"a, b: c\", Version: girandole 0.1.0",
            &[
                ("Prompt", "a fox\nby night"),
                ("Negative prompt", "blur,\nnoise"),
                ("Steps", "20"),
                ("Sampler", "Euler a"),
                ("CFG scale", "7.5"),
                ("Seed", "1"),
                ("Size-1", "512"),
                ("Size-2", "768"),
                ("Model", "a, b: c"),
                ("Version", "girandole 0.1.0"),
            ],
        );
        // Fewer than three pairs are part of the prompt.
        check(
            "a clock: noon, a cat: asleep",
            &[
                ("Prompt", "a clock: noon, a cat: asleep"),
                ("Negative prompt", ""),
            ],
        );
        // An open quote is an ordinary letter.
        check(
            "x\nSteps: 2, Seed: 3, Model: \"open, Eta: 1",
            &[
                ("Prompt", "x"),
                ("Negative prompt", ""),
                ("Steps", "2"),
                ("Seed", "3"),
                ("Model", "\"open"),
                ("Eta", "1"),
            ],
        );
    }
}
