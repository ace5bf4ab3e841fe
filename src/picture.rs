//! Pixels on their way between a model and a client.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// A picture in 8-bit sRGB, row by row from the top, without alpha.
pub struct Picture {
    width: u32,
    height: u32,
    /// height × width × 3 bytes.
    rgb: Vec<u8>,
    encoded: Mutex<Vec<(Encoding, Arc<[u8]>)>>,
}

/// How a picture is written as a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// The format.
    pub format: PictureFormat,
    /// Quality of a JPEG, 1 to 100; without meaning for the others, which lose nothing.
    pub quality: u8,
    /// Pixels of the file, where it is not the picture's own size.
    pub size: Option<(u32, u32)>,
    /// What is written beside the pixels: the web UI's `parameters`.
    pub parameters: Option<Arc<str>>,
}

/// A file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PictureFormat {
    /// Loses nothing.
    Png,
    /// Small, with a quality.
    Jpeg,
    /// Here the lossless kind.
    WebP,
}

/// A picture is written in so many ways at most before the first is forgotten: each costs as much
/// memory as its file.
const MAX_ENCODINGS: usize = 4;

impl Picture {
    /// A picture of these bytes.
    ///
    /// # Panics
    /// If there are not `3 * width * height` of them.
    pub fn new(width: u32, height: u32, rgb: Vec<u8>) -> Self {
        let pixels = width as usize * height as usize;
        assert_eq!(rgb.len(), 3 * pixels, "three bytes for each pixel");
        Picture {
            width,
            height,
            rgb,
            encoded: Mutex::default(),
        }
    }

    /// In pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// In pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// height × width × 3 bytes.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// The picture as a file: made by `encode` when first asked for, and kept for others who ask for the
    /// same.
    ///
    /// # Errors
    /// Whatever `encode` reports.
    pub fn encoded<E>(
        &self,
        encoding: &Encoding,
        encode: impl FnOnce(&Self) -> Result<Vec<u8>, E>,
    ) -> Result<Arc<[u8]>, E> {
        // Held while encoding: two readers who come at once would do the work twice otherwise.
        let mut kept = self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = kept.iter().find(|(known, _)| known == encoding) {
            return Ok(Arc::clone(bytes));
        }
        let bytes: Arc<[u8]> = encode(self)?.into();
        if kept.len() == MAX_ENCODINGS {
            kept.remove(0);
        }
        kept.push((encoding.clone(), Arc::clone(&bytes)));
        Ok(bytes)
    }
}

impl fmt::Debug for Picture {
    /// Shows no pixel: what users draw does not belong into logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Picture({} x {})", self.width, self.height)
    }
}

impl PartialEq for Picture {
    fn eq(&self, other: &Self) -> bool {
        (self.width, self.height, &self.rgb) == (other.width, other.height, &other.rgb)
    }
}

/// Where to draw anew: one byte for each pixel, 0 keeps it and 255 draws it.
#[derive(PartialEq)]
pub struct Mask {
    width: u32,
    height: u32,
    values: Vec<u8>,
}

impl Mask {
    /// A mask of these bytes.
    ///
    /// # Panics
    /// If there are not `width * height` of them.
    pub fn new(width: u32, height: u32, values: Vec<u8>) -> Self {
        let pixels = width as usize * height as usize;
        assert_eq!(values.len(), pixels, "a byte for each pixel");
        Mask {
            width,
            height,
            values,
        }
    }

    /// In pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// In pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// height × width bytes.
    pub fn values(&self) -> &[u8] {
        &self.values
    }
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mask({} x {})", self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(quality: u8) -> Encoding {
        Encoding {
            format: PictureFormat::Png,
            quality,
            size: None,
            parameters: None,
        }
    }

    #[test]
    fn a_file_is_made_once_and_few_are_kept() {
        let picture = Picture::new(1, 2, vec![7; 6]);
        let mut made = 0;
        let mut ask = |quality| {
            let bytes = picture.encoded(&png(quality), |picture| {
                made += 1;
                Ok::<_, ()>(vec![quality, picture.rgb()[0]])
            });
            assert_eq!(*bytes.unwrap(), [quality, 7]);
            made
        };
        assert_eq!(ask(1), 1);
        assert_eq!(ask(1), 1);
        for quality in 2..=5 {
            ask(quality);
        }
        assert_eq!(ask(5), 5);
        assert_eq!(ask(1), 6);
        let failed: Result<_, &str> = picture.encoded(&png(9), |_| Err("no room"));
        assert_eq!(failed, Err("no room"));
    }

    #[test]
    #[should_panic(expected = "three bytes for each pixel")]
    fn a_picture_is_whole() {
        Picture::new(2, 2, vec![0; 11]);
    }
}
