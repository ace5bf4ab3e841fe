use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, GrayAlphaImage, ImageEncoder, Luma, LumaA, RgbImage, RgbaImage};

use super::*;

/// Two pixels: red, and green with half of its opacity.
fn rgba() -> RgbaImage {
    RgbaImage::from_raw(2, 1, vec![255, 0, 0, 255, 0, 255, 0, 128]).expect("8 bytes")
}

fn file(picture: &DynamicImage, format: ImageFormat) -> PictureFile {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).expect("it is encoded");
    PictureFile::new(bytes.into_inner())
}

fn png(picture: impl Into<DynamicImage>) -> PictureFile {
    file(&picture.into(), ImageFormat::Png)
}

#[test]
fn what_is_transparent_is_put_on_white() {
    for format in [ImageFormat::Png, ImageFormat::WebP] {
        let picture = file(&rgba().into(), format)
            .picture("image", 2)
            .expect("sound");
        assert_eq!((picture.width(), picture.height()), (2, 1));
        assert_eq!(picture.rgb(), [255, 0, 0, 127, 255, 127]);
    }
}

#[test]
fn every_kind_of_png_is_read() {
    let gray = image::ImageBuffer::<Luma<u16>, _>::from_raw(1, 1, vec![0x8000_u16]).expect("one");
    let read = |picture: DynamicImage| {
        png(picture)
            .picture("image", 9)
            .expect("sound")
            .rgb()
            .to_vec()
    };
    assert_eq!(read(gray.into()), [128; 3]);
    assert_eq!(
        read(GrayAlphaImage::from_pixel(1, 1, LumaA([9, 0])).into()),
        [255; 3]
    );
}

/// A JPEG of 3 x 1 pixels, black, black and white, with an EXIF block that says this of its orientation.
fn jpeg(orientation: u8) -> PictureFile {
    let exif = [
        b"II*\0\x08\0\0\0\x01\0".as_slice(),
        &[0x12, 0x01, 3, 0, 1, 0, 0, 0, orientation, 0, 0, 0],
        &[0; 4],
    ]
    .concat();
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut bytes, 100);
    encoder.set_exif_metadata(exif).expect("JPEGs hold EXIF");
    let mut pixels = [0; 24 * 8 * 3];
    for row in pixels.chunks_exact_mut(24 * 3) {
        row[16 * 3..].fill(255);
    }
    encoder
        .write_image(&pixels, 24, 8, ExtendedColorType::Rgb8)
        .expect("it is encoded");
    PictureFile::new(bytes)
}

#[test]
fn a_photograph_is_turned_as_its_camera_says() {
    for (orientation, size, white) in [
        (1, (24, 8), (23, 0)),
        (3, (24, 8), (0, 0)),
        (6, (8, 24), (0, 23)),
        (8, (8, 24), (0, 0)),
    ] {
        let picture = jpeg(orientation).picture("image", 192).expect("sound");
        assert_eq!((picture.width(), picture.height()), size, "{orientation}");
        let at = 3 * (white.1 * picture.width() + white.0) as usize;
        assert!(picture.rgb()[at] > 250, "{orientation}");
        let whites = picture.rgb().iter().filter(|value| **value > 250).count();
        assert_eq!(whites, 64 * 3, "{orientation}");
    }
}

#[test]
fn masks_say_in_three_ways_what_is_drawn() {
    let two = |left: [u8; 2], right: [u8; 2]| {
        png(GrayAlphaImage::from_raw(2, 1, [left, right].concat()).expect("4 bytes"))
    };
    let check = |file: &PictureFile, drawn, expected: [u8; 2]| {
        let file = file.clone();
        let mask = MaskFile { file, drawn }.mask("mask", 2).expect("sound");
        assert_eq!(mask.values(), expected, "{drawn:?}");
    };
    let opaque = two([128, 255], [127, 255]);
    check(&opaque, DrawnWhere::White, [255, 0]);
    check(&opaque, DrawnWhere::Black, [0, 255]);
    check(&opaque, DrawnWhere::Transparent, [0, 0]);
    let half = two([255, 127], [255, 128]);
    check(&half, DrawnWhere::Transparent, [255, 0]);
    check(&half, DrawnWhere::White, [0, 255]);
}

#[test]
fn a_pictures_own_transparency_can_be_its_mask() {
    let (picture, mask) = png(rgba()).picture_and_mask("image", 2).expect("sound");
    assert_eq!(picture.rgb()[..3], [255, 0, 0]);
    // 128 of 255 is still there.
    assert_eq!(mask, None);
    let mut clear = rgba();
    clear.get_pixel_mut(0, 0).0[3] = 0;
    let (picture, mask) = png(clear).picture_and_mask("image", 2).expect("sound");
    assert_eq!(picture.rgb()[..3], [255; 3]);
    assert_eq!(mask.expect("a hole").values(), [255, 0]);
    let (_, mask) = png(RgbImage::new(2, 1))
        .picture_and_mask("image", 2)
        .expect("sound");
    assert_eq!(mask, None);
}

fn bytes_of(file: &PictureFile) -> Vec<u8> {
    file.0.to_vec()
}

#[test]
fn text_holds_a_file_in_base64() {
    for text in [
        "AQIDBA==",
        "AQIDBA",
        "AQID\r\nBA==\n",
        "data:image/png;base64,AQIDBA==",
        "DATA:;base64,AQIDBA",
    ] {
        let file = PictureFile::from_text("image", text)
            .unwrap_or_else(|invalid| panic!("{text}: {invalid}"));
        assert_eq!(bytes_of(&file), [1, 2, 3, 4], "{text}");
    }
    assert_eq!(
        format!("{:?}", PictureFile::new(vec![1, 2])),
        "PictureFile(2 bytes)"
    );
}

#[test]
fn an_address_is_not_fetched() {
    for text in [
        "http://127.0.0.1/x.png",
        "HTTPS://example.org",
        "file:///etc/passwd",
    ] {
        let invalid = PictureFile::from_text("image", text).expect_err(text);
        assert_eq!(invalid.kind, InvalidKind::Unsupported);
        assert!(
            invalid.message.starts_with("image is an address"),
            "{invalid}"
        );
    }
    for text in [
        "data:image/png,xyz",
        "not base64!",
        "data:image/png;base64,%%%",
    ] {
        let invalid = PictureFile::from_text("image", text).expect_err(text);
        assert_eq!(
            (invalid.kind, invalid.field.as_str()),
            (InvalidKind::Value, "image")
        );
    }
}

/// The message of a file that is refused, with a limit of four pixels.
fn refused(bytes: Vec<u8>) -> String {
    let invalid = PictureFile::new(bytes)
        .picture("image", 4)
        .expect_err("refused");
    assert_eq!(invalid.field, "image");
    invalid.message
}

#[test]
fn what_is_no_picture_is_refused() {
    let sound = bytes_of(&png(RgbImage::new(2, 2)));
    assert!(PictureFile::new(sound.clone()).picture("image", 4).is_ok());
    for wrong in [
        vec![],
        b"GIF89a\x01\0\x01\0".to_vec(),
        b"BM".to_vec(),
        b"hello".to_vec(),
    ] {
        assert_eq!(refused(wrong), "image must be a PNG, JPEG or WebP file");
    }
    for length in 8..sound.len() - 12 {
        assert_eq!(
            refused(sound[..length].to_vec()),
            "image is a damaged file",
            "{length}"
        );
    }
    assert_eq!(
        refused(b"\xFF\xD8\xFF\xE0".to_vec()),
        "image is a damaged file"
    );
    assert_eq!(
        refused(b"RIFF\x04\0\0\0WEBP".to_vec()),
        "image is a damaged file"
    );
    let opaque = MaskFile {
        file: png(RgbImage::new(2, 2)),
        drawn: DrawnWhere::Transparent,
    };
    let invalid = opaque.mask("mask", 4).expect_err("no alpha");
    assert_eq!(
        invalid.message,
        "mask must have an alpha channel: what is transparent is drawn anew"
    );
}

/// A PNG that claims this size in its header and has no pixels at all.
fn claim(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = bytes_of(&png(RgbImage::new(1, 1)));
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let sum = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum: u32, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xEDB8_8320 & (sum & 1).wrapping_neg())
        })
    })
}

#[test]
fn the_header_is_judged_before_the_pixels() {
    assert_eq!(
        refused(claim(5, 1)),
        "image has 5 x 1 pixels; the limit is 4 in all (max_source_pixels)"
    );
    assert_eq!(
        refused(claim(100_000, 100_000)),
        "image has 100000 x 100000 pixels; the limit is 4 in all (max_source_pixels)"
    );
    assert_eq!(refused(claim(0, 1)), "image is a damaged file");
    assert_eq!(refused(claim(2, 2)), "image is a damaged file");
}
