//! Pictures as clients get them: PNG, JPEG, WebP. Encoding takes a core for milliseconds, so it is done
//! on the blocking pool, once for each picture and encoding.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::webp::WebPEncoder;
use image::imageops::{FilterType, resize};
use image::{ExtendedColorType, ImageEncoder, RgbImage};

use super::blocking::encode_on_blocking_pool;
use super::error::ApiError;
use crate::picture::{Encoding, Picture, PictureFormat};

/// Quality of a JPEG where none is asked for.
pub(crate) const DEFAULT_QUALITY: u8 = 90;

/// The keyword under which the web UI looks for what a picture was made of.
pub(crate) const PARAMETERS: &str = "parameters";

/// Previews are small, a pixel for each place of the latent, and told as they are: clients scale.
pub(crate) fn preview_encoding() -> Encoding {
    Encoding {
        format: PictureFormat::Png,
        quality: DEFAULT_QUALITY,
        size: None,
        parameters: None,
    }
}

/// The most pixels of a side that the formats can write.
pub(crate) fn max_side(format: PictureFormat) -> u32 {
    match format {
        PictureFormat::Png => i32::MAX.cast_unsigned(),
        PictureFormat::Jpeg => u32::from(u16::MAX),
        PictureFormat::WebP => (1 << 14) - 1,
    }
}

/// The format of this name, as clients write it.
pub(crate) fn format_of(name: &str) -> Option<PictureFormat> {
    match name {
        "png" => Some(PictureFormat::Png),
        "jpeg" | "jpg" => Some(PictureFormat::Jpeg),
        "webp" => Some(PictureFormat::WebP),
        _ => None,
    }
}

/// Its name as OpenAI's clients write it.
pub(crate) fn name_of(format: PictureFormat) -> &'static str {
    match format {
        PictureFormat::Png => "png",
        PictureFormat::Jpeg => "jpeg",
        PictureFormat::WebP => "webp",
    }
}

/// Its media type.
pub(crate) fn media_type_of(format: PictureFormat) -> &'static str {
    match format {
        PictureFormat::Png => "image/png",
        PictureFormat::Jpeg => "image/jpeg",
        PictureFormat::WebP => "image/webp",
    }
}

/// The picture as a file, made on the blocking pool or found there.
///
/// # Errors
/// The format cannot hold it; see [`max_side`].
pub(crate) async fn encoded(
    picture: &Arc<Picture>,
    encoding: Encoding,
) -> Result<Arc<[u8]>, ApiError> {
    let picture = Arc::clone(picture);
    encode_on_blocking_pool(move || file_of(&picture, &encoding)).await
}

/// The picture as a file in Base64, made on the blocking pool.
///
/// # Errors
/// As [`encoded`].
pub(crate) async fn in_base64(
    picture: &Arc<Picture>,
    encoding: Encoding,
) -> Result<String, ApiError> {
    let picture = Arc::clone(picture);
    encode_on_blocking_pool(move || file_of(&picture, &encoding).map(|file| STANDARD.encode(file)))
        .await
}

/// The picture as a file. Takes time: for the blocking pool.
///
/// # Errors
/// As [`encoded`].
pub(crate) fn file_of(picture: &Picture, encoding: &Encoding) -> Result<Arc<[u8]>, ApiError> {
    picture.encoded(encoding, |picture| encode(picture, encoding))
}

fn encode(picture: &Picture, encoding: &Encoding) -> Result<Vec<u8>, ApiError> {
    let (width, height) = encoding.size.unwrap_or((picture.width(), picture.height()));
    let most = max_side(encoding.format);
    if width.max(height) > most {
        let name = name_of(encoding.format);
        return Err(ApiError::invalid(
            "format",
            format!("format {name} holds at most {most} pixels a side; this is {width} x {height}"),
        ));
    }
    let pixels = scaled(picture, width, height);
    let written = match encoding.format {
        PictureFormat::Png => png(&pixels, width, height, encoding),
        PictureFormat::Jpeg => {
            let mut file = Vec::new();
            let quality = encoding.quality.clamp(1, 100);
            JpegEncoder::new_with_quality(&mut file, quality)
                .write_image(&pixels, width, height, ExtendedColorType::Rgb8)
                .map(|()| file)
                .map_err(|error| error.to_string())
        }
        PictureFormat::WebP => {
            let mut file = Vec::new();
            WebPEncoder::new_lossless(&mut file)
                .write_image(&pixels, width, height, ExtendedColorType::Rgb8)
                .map(|()| file)
                .map_err(|error| error.to_string())
        }
    };
    written.map_err(|error| {
        tracing::error!(error, "a picture could not be encoded");
        ApiError::internal()
    })
}

/// The picture's pixels, brought to another size where that is asked for: previews have a pixel for each
/// place of the latent, and are smoothed.
fn scaled(picture: &Picture, width: u32, height: u32) -> Cow<'_, [u8]> {
    if (picture.width(), picture.height()) == (width, height) {
        return Cow::Borrowed(picture.rgb());
    }
    let pixels = RgbImage::from_raw(picture.width(), picture.height(), picture.rgb().to_vec())
        .expect("a picture is whole");
    Cow::Owned(resize(&pixels, width, height, FilterType::Triangle).into_raw())
}

fn png(pixels: &[u8], width: u32, height: u32, encoding: &Encoding) -> Result<Vec<u8>, String> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // A preview lives for a blink.
    encoder.set_compression(match encoding.size {
        Some(_) => png::Compression::Fast,
        None => png::Compression::Balanced,
    });
    let write = || {
        if let Some(text) = &encoding.parameters {
            let (keyword, text) = (PARAMETERS.to_owned(), text.to_string());
            // As Pillow does for the web UI: Latin-1 where it can be, else UTF-8 in the newer chunk.
            match text.chars().all(|character| u32::from(character) < 256) {
                true => encoder.add_text_chunk(keyword, text)?,
                false => encoder.add_itxt_chunk(keyword, text)?,
            }
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(pixels)?;
        writer.finish()
    };
    let written: Result<(), png::EncodingError> = write();
    written.map_err(|error| error.to_string())?;
    Ok(file)
}

#[cfg(test)]
mod tests;
