use image::{ImageFormat, load_from_memory_with_format};

use super::*;

fn encoding(format: PictureFormat) -> Encoding {
    Encoding {
        format,
        quality: DEFAULT_QUALITY,
        size: None,
        parameters: None,
    }
}

/// Every pixel another colour.
fn picture(width: u32, height: u32) -> Picture {
    let values = (0..width * height).flat_map(|index| [index as u8, (index / 7) as u8, 200]);
    Picture::new(width, height, values.collect())
}

fn read(file: &[u8], format: ImageFormat) -> Vec<u8> {
    let decoded = load_from_memory_with_format(file, format).expect("it is such a file");
    decoded.into_rgb8().into_raw()
}

#[test]
fn two_formats_lose_nothing_and_one_little() {
    let picture = picture(16, 9);
    let file = |format| file_of(&picture, &encoding(format)).expect("encoded");
    assert_eq!(
        read(&file(PictureFormat::Png), ImageFormat::Png),
        picture.rgb()
    );
    assert_eq!(
        read(&file(PictureFormat::WebP), ImageFormat::WebP),
        picture.rgb()
    );
    let flat = Picture::new(16, 16, vec![90; 768]);
    let file = |quality| {
        let encoding = Encoding {
            quality,
            ..encoding(PictureFormat::Jpeg)
        };
        file_of(&flat, &encoding).expect("encoded")
    };
    let decoded = read(&file(100), ImageFormat::Jpeg);
    assert!(decoded.iter().all(|value| value.abs_diff(90) <= 1));
    assert_ne!(file(100), file(10));
    assert_eq!(file(0), file(1));
}

#[test]
fn a_preview_is_brought_to_size() {
    let encoding = Encoding {
        size: Some((32, 24)),
        ..encoding(PictureFormat::Png)
    };
    let small = Picture::new(4, 3, vec![77; 36]);
    let file = file_of(&small, &encoding).expect("encoded");
    assert_eq!(read(&file, ImageFormat::Png), vec![77; 32 * 24 * 3]);
}

/// What a PNG says in chunks of this kind.
fn chunks<'a>(file: &'a [u8], kind: &[u8; 4]) -> Vec<&'a [u8]> {
    let mut found = Vec::new();
    let mut rest = &file[8..];
    while let Some((head, tail)) = rest.split_at_checked(8) {
        let length = u32::from_be_bytes(head[..4].try_into().expect("four bytes")) as usize;
        if &head[4..] == kind {
            found.push(&tail[..length]);
        }
        rest = &tail[length + 4..];
    }
    found
}

#[test]
fn parameters_are_latin_1_where_they_can_be() {
    let written = |text: &str| {
        let encoding = Encoding {
            parameters: Some(text.into()),
            ..encoding(PictureFormat::Png)
        };
        file_of(&picture(2, 2), &encoding)
            .expect("encoded")
            .to_vec()
    };
    let file = written("caf\u{e9}\nSteps: 20");
    assert_eq!(chunks(&file, b"tEXt"), [b"parameters\0caf\xe9\nSteps: 20"]);
    assert!(chunks(&file, b"iTXt").is_empty());
    let file = written("\u{732b}\nSteps: 20");
    assert!(chunks(&file, b"tEXt").is_empty());
    let expected = [
        "parameters\0\0\0\0\0".as_bytes(),
        "\u{732b}\nSteps: 20".as_bytes(),
    ]
    .concat();
    assert_eq!(chunks(&file, b"iTXt"), [expected]);
    let plain = file_of(&picture(2, 2), &encoding(PictureFormat::Png)).expect("encoded");
    assert!(chunks(&plain, b"tEXt").is_empty() && chunks(&plain, b"iTXt").is_empty());
}

#[test]
fn a_side_too_long_for_the_format_is_refused() {
    let long = Picture::new(16_384, 1, vec![0; 3 * 16_384]);
    let error = file_of(&long, &encoding(PictureFormat::WebP)).expect_err("too long");
    assert_eq!(
        error.message,
        "format webp holds at most 16383 pixels a side; this is 16384 x 1"
    );
    assert!(file_of(&long, &encoding(PictureFormat::Png)).is_ok());
}
