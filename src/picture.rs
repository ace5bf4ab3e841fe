//! Pixels on their way between a model and a client.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A picture in 8-bit sRGB, row by row from the top, without alpha.
pub struct Picture {
    width: u32,
    height: u32,
    /// height × width × 3 bytes.
    rgb: Vec<u8>,
    /// The way in which it was asked for last.
    written: Mutex<Option<Arc<Written>>>,
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

/// A way in which a picture was asked for, with the file once it has been made.
struct Written {
    encoding: Encoding,
    file: Mutex<Option<Arc<[u8]>>>,
}

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
            written: Mutex::default(),
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

    /// Bytes of memory that it may take: its pixels, and a file, which seldom takes more than they do.
    pub fn memory_bytes(&self) -> usize {
        2 * self.rgb.len()
    }

    /// The picture as a file: made by `encode` when first asked for, and kept for others who ask for the
    /// same, until somebody asks for another. Not kept is what takes more memory than is counted: files of
    /// another size than the picture's, or with a long text.
    ///
    /// # Errors
    /// Whatever `encode` reports.
    pub fn encoded<E>(
        &self,
        encoding: &Encoding,
        encode: impl FnOnce(&Self) -> Result<Vec<u8>, E>,
    ) -> Result<Arc<[u8]>, E> {
        let text_bytes = encoding.parameters.as_ref().map_or(0, |text| text.len());
        if encoding.size.is_some() || text_bytes > self.rgb.len() {
            return encode(self).map(Arc::from);
        }
        let written = self.written_as(encoding);
        // Held while encoding: two readers who come at once for the same would do the work twice otherwise.
        let mut file = lock(&written.file);
        if let Some(file) = &*file {
            return Ok(Arc::clone(file));
        }
        let bytes: Arc<[u8]> = encode(self)?.into();
        *file = Some(Arc::clone(&bytes));
        Ok(bytes)
    }

    fn written_as(&self, encoding: &Encoding) -> Arc<Written> {
        let mut latest = lock(&self.written);
        if let Some(known) = latest.as_ref().filter(|known| known.encoding == *encoding) {
            return Arc::clone(known);
        }
        let written = Arc::new(Written {
            encoding: encoding.clone(),
            file: Mutex::default(),
        });
        *latest = Some(Arc::clone(&written));
        written
    }
}

/// What is behind these locks is valid after every statement, so a panic elsewhere does no harm.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn a_file_is_made_once_and_one_is_kept() {
        let picture = Picture::new(1, 2, vec![7; 6]);
        let mut made = 0;
        let mut ask = |encoding: Encoding| {
            let quality = encoding.quality;
            let bytes = picture.encoded(&encoding, |picture| {
                made += 1;
                Ok::<_, ()>(vec![quality, picture.rgb()[0]])
            });
            assert_eq!(*bytes.unwrap(), [quality, 7]);
            made
        };
        assert_eq!(ask(png(1)), 1);
        assert_eq!(ask(png(1)), 1);
        assert_eq!(ask(png(2)), 2);
        assert_eq!(ask(png(1)), 3);
        // What is not counted is not kept, and drives nothing out.
        let enlarged = || Encoding {
            size: Some((64, 64)),
            ..png(3)
        };
        assert_eq!([ask(enlarged()), ask(enlarged())], [4, 5]);
        let wordy = || Encoding {
            parameters: Some("longer than it".into()),
            ..png(4)
        };
        assert_eq!([ask(wordy()), ask(wordy())], [6, 7]);
        assert_eq!(ask(png(1)), 7);
        let failed: Result<_, &str> = picture.encoded(&png(9), |_| Err("no room"));
        assert_eq!(failed, Err("no room"));
    }

    #[test]
    fn one_way_of_writing_does_not_wait_for_another() {
        let picture = Picture::new(1, 1, vec![7; 3]);
        let outer = picture.encoded(&png(1), |picture| {
            let inner = picture.encoded(&png(2), |_| Ok::<_, ()>(vec![2]));
            Ok::<_, ()>(vec![1, inner.unwrap()[0]])
        });
        assert_eq!(*outer.unwrap(), [1, 2]);
    }

    #[test]
    #[should_panic(expected = "three bytes for each pixel")]
    fn a_picture_is_whole() {
        Picture::new(2, 2, vec![0; 11]);
    }
}
