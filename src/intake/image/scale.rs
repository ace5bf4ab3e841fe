//! Pictures and masks, brought to the size that is drawn.

use std::sync::Arc;

use image::imageops::{FilterType, resize};
use image::{GrayImage, RgbImage};

use crate::picture::{Mask, Picture};

/// Lanczos, as the reference pipelines do. The whole picture is kept: other proportions stretch it.
pub(super) fn picture(picture: &Arc<Picture>, width: u32, height: u32) -> Arc<Picture> {
    if (picture.width(), picture.height()) == (width, height) {
        return Arc::clone(picture);
    }
    let pixels = RgbImage::from_raw(picture.width(), picture.height(), picture.rgb().to_vec())
        .expect("a picture is whole");
    let scaled = resize(&pixels, width, height, FilterType::Lanczos3);
    Arc::new(Picture::new(width, height, scaled.into_raw()))
}

/// The nearest value: a mask has no shades.
pub(super) fn mask(mask: &Arc<Mask>, width: u32, height: u32) -> Arc<Mask> {
    if (mask.width(), mask.height()) == (width, height) {
        return Arc::clone(mask);
    }
    let values = GrayImage::from_raw(mask.width(), mask.height(), mask.values().to_vec())
        .expect("a mask is whole");
    let scaled = resize(&values, width, height, FilterType::Nearest);
    Arc::new(Mask::new(width, height, scaled.into_raw()))
}
