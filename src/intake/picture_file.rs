//! Pictures as clients send them: PNG, JPEG or WebP, as data only. An address is never fetched.
//!
//! The header is read, and held against `max_source_pixels`, before any pixel is decoded; decoding then
//! has a bound on its memory.

use std::fmt;
use std::io::Cursor;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::{Invalid, InvalidKind};
use crate::picture::{Mask, Picture, PictureFormat};

/// A picture's file as it came in. Nothing of it has been looked at.
#[derive(Clone, PartialEq, Eq)]
pub struct PictureFile(Bytes);

/// A mask's file, and how it is to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaskFile {
    /// The file.
    pub file: PictureFile,
    /// Where it says that something is to be drawn.
    pub drawn: DrawnWhere,
}

/// Which of a mask's places are drawn anew. A place is one or the other: what is half is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrawnWhere {
    /// Where it is white, as the web UI and diffusers have it. What is transparent counts as black.
    White,
    /// Where it is black.
    Black,
    /// Where it is transparent, as OpenAI's API has it.
    Transparent,
}

/// From here on a place of a mask is drawn.
const DRAWN_FROM: u8 = 128;

/// A pixel may take 16 bits in each of four channels, and decoders keep a second copy for a while.
const BYTES_A_PIXEL: u64 = 2 * 8;
/// Beside the pixels: profiles, text chunks, tables.
const BYTES_BESIDE: u64 = 8 << 20;

/// Both the padded and the bare kind: clients send either.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl fmt::Debug for PictureFile {
    /// Shows no content: what users send does not belong into logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PictureFile({} bytes)", self.0.len())
    }
}

impl PictureFile {
    /// The bytes of a file.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        PictureFile(bytes.into())
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// A file in Base64, bare or as a `data:` URL.
    ///
    /// # Errors
    /// Something else, such as an address.
    pub fn from_text(field: &str, text: &str) -> Result<Self, Invalid> {
        let lower = |prefix: &str| {
            text.get(..prefix.len())
                .is_some_and(|head| head.eq_ignore_ascii_case(prefix))
        };
        if ["http:", "https:", "file:", "ftp:"].into_iter().any(lower) {
            return Err(Invalid::new(
                InvalidKind::Unsupported,
                field,
                "is an address, and addresses are not fetched: send the picture itself in Base64",
            ));
        }
        let data = match lower("data:") {
            false => text,
            true => text
                .split_once(";base64,")
                .map(|(_, data)| data)
                .ok_or_else(|| Invalid::value(field, "must be a data: URL in Base64"))?,
        };
        // Some clients break the lines.
        let decoded = match data.bytes().any(|byte| byte.is_ascii_whitespace()) {
            false => BASE64.decode(data),
            true => {
                let joined: Vec<u8> = data
                    .bytes()
                    .filter(|byte| !byte.is_ascii_whitespace())
                    .collect();
                BASE64.decode(joined)
            }
        };
        decoded
            .map(PictureFile::new)
            .map_err(|_| Invalid::value(field, "is neither Base64 nor a data: URL"))
    }

    /// The picture, turned as its EXIF orientation says, on white where it is transparent. Takes time:
    /// for the blocking pool.
    ///
    /// # Errors
    /// No file of the three kinds, a damaged one, or more than `max_pixels`.
    pub fn picture(&self, field: &str, max_pixels: u32) -> Result<Picture, Invalid> {
        Ok(on_white(self.decoded(field, max_pixels)?))
    }

    /// The same, and a mask where parts of it are transparent: these are to be drawn.
    ///
    /// # Errors
    /// As [`picture`](Self::picture).
    pub fn picture_and_mask(
        &self,
        field: &str,
        max_pixels: u32,
    ) -> Result<(Picture, Option<Mask>), Invalid> {
        let decoded = self.decoded(field, max_pixels)?;
        let mask = decoded
            .color()
            .has_alpha()
            .then(|| mask(&decoded, DrawnWhere::Transparent))
            .filter(|mask| mask.values().contains(&255));
        Ok((on_white(decoded), mask))
    }

    /// What kind of file it is, by its first bytes; its name counts for nothing.
    ///
    /// # Errors
    /// None of the three kinds.
    pub fn format(&self, field: &str) -> Result<PictureFormat, Invalid> {
        match image::guess_format(&self.0) {
            Ok(ImageFormat::Png) => Ok(PictureFormat::Png),
            Ok(ImageFormat::Jpeg) => Ok(PictureFormat::Jpeg),
            Ok(ImageFormat::WebP) => Ok(PictureFormat::WebP),
            _ => Err(Invalid::value(field, WRONG_FORMAT)),
        }
    }

    fn decoded(&self, field: &str, max_pixels: u32) -> Result<DynamicImage, Invalid> {
        let wrong = |message: &str| Invalid::value(field, message);
        let format = match self.format(field)? {
            PictureFormat::Png => ImageFormat::Png,
            PictureFormat::Jpeg => ImageFormat::Jpeg,
            PictureFormat::WebP => ImageFormat::WebP,
        };
        let reader = ImageReader::with_format(Cursor::new(&self.0), format);
        let mut decoder = reader.into_decoder().map_err(|_| wrong(DAMAGED))?;
        let (width, height) = decoder.dimensions();
        let pixels = u64::from(width) * u64::from(height);
        if pixels > u64::from(max_pixels) {
            return Err(Invalid::value(
                field,
                format!(
                    "has {width} x {height} pixels; the limit is {max_pixels} in all (max_source_pixels)"
                ),
            ));
        }
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(pixels * BYTES_A_PIXEL + BYTES_BESIDE);
        decoder.set_limits(limits).map_err(|_| wrong(DAMAGED))?;
        let orientation = decoder.orientation().map_err(|_| wrong(DAMAGED))?;
        let mut decoded = DynamicImage::from_decoder(decoder).map_err(|_| wrong(DAMAGED))?;
        decoded.apply_orientation(orientation);
        Ok(decoded)
    }
}

const WRONG_FORMAT: &str = "must be a PNG, JPEG or WebP file";
const DAMAGED: &str = "is a damaged file";

impl MaskFile {
    /// The mask: 255 where something is to be drawn, 0 elsewhere. Takes time: for the blocking pool.
    ///
    /// # Errors
    /// As [`PictureFile::picture`]; and a file without transparency where that is what counts.
    pub fn mask(&self, field: &str, max_pixels: u32) -> Result<Mask, Invalid> {
        let decoded = self.file.decoded(field, max_pixels)?;
        if self.drawn == DrawnWhere::Transparent && !decoded.color().has_alpha() {
            return Err(Invalid::value(
                field,
                "must have an alpha channel: what is transparent is drawn anew",
            ));
        }
        Ok(mask(&decoded, self.drawn))
    }
}

fn on_white(decoded: DynamicImage) -> Picture {
    let (width, height) = (decoded.width(), decoded.height());
    if !decoded.color().has_alpha() {
        return Picture::new(width, height, decoded.into_rgb8().into_raw());
    }
    let rgba = decoded.into_rgba8();
    let mut rgb = Vec::with_capacity(rgba.len() / 4 * 3);
    for pixel in rgba.as_raw().chunks_exact(4) {
        let alpha = u32::from(pixel[3]);
        for &value in &pixel[..3] {
            // Rounded to the nearest.
            rgb.push(((u32::from(value) * alpha + 255 * (255 - alpha) + 127) / 255) as u8);
        }
    }
    Picture::new(width, height, rgb)
}

fn mask(decoded: &DynamicImage, drawn: DrawnWhere) -> Mask {
    let (width, height) = (decoded.width(), decoded.height());
    let values = decoded
        .to_luma_alpha8()
        .as_raw()
        .chunks_exact(2)
        .map(|pixel| {
            let white = u32::from(pixel[0]) * u32::from(pixel[1]) / 255;
            let is_drawn = match drawn {
                DrawnWhere::White => white >= u32::from(DRAWN_FROM),
                DrawnWhere::Black => white < u32::from(DRAWN_FROM),
                DrawnWhere::Transparent => pixel[1] < DRAWN_FROM,
            };
            if is_drawn { 255 } else { 0 }
        })
        .collect();
    Mask::new(width, height, values)
}

#[cfg(test)]
mod tests;
