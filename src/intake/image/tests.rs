use std::io::Cursor;

use image::{DynamicImage, ImageFormat, RgbaImage};

use super::*;
use crate::intake::picture_file::{DrawnWhere, MaskFile, PictureFile};
use crate::model::scripted::{SIZE_FACTOR, ScriptedFrontend};

fn intake() -> ImageIntake {
    ImageIntake {
        frontend: Arc::new(ScriptedFrontend),
        size_factor: SIZE_FACTOR,
        defaults: ImageDefaults::default(),
        limits: ImageLimits {
            max_image_pixels: 512 * 512,
            ..ImageLimits::default()
        },
    }
}

/// A file of this size whose left half is red and whose right half is clear.
fn file(width: u32, height: u32) -> PictureFile {
    let pixels = RgbaImage::from_fn(width, height, |x, _| {
        let left = x < width / 2;
        image::Rgba([255, 0, 0, if left { 255 } else { 0 }])
    });
    let mut file = Cursor::new(Vec::new());
    DynamicImage::from(pixels)
        .write_to(&mut file, ImageFormat::Png)
        .expect("encoded");
    PictureFile::new(file.into_inner())
}

fn job(draft: ImageDraft) -> ImageJob {
    intake().job(draft).expect("sound")
}

#[test]
fn what_is_left_out_takes_the_defaults() {
    let draft = ImageDraft::new("a fox");
    let (one, other) = (job(draft.clone()), job(draft));
    assert_eq!((one.width, one.height, one.images), (512, 512, 1));
    assert_eq!((one.steps, one.guidance_scale), (20, 7.5));
    assert!(one.negative.is_some() && one.source.is_none());
    assert_ne!(one.seed, other.seed);
    // Seeds that are drawn survive clients that keep numbers as doubles, or as 32 bits.
    assert!(one.seed <= u64::from(u32::MAX));
}

#[test]
fn guidance_of_one_or_less_costs_one_row() {
    for (guidance_scale, rows) in [(0.0, 1), (1.0, 1), (1.01, 2)] {
        let draft = ImageDraft {
            guidance_scale: Some(guidance_scale),
            ..ImageDraft::new("a")
        };
        assert_eq!(job(draft).forward_rows(), rows, "{guidance_scale}");
    }
}

#[test]
fn a_sources_size_is_taken_as_far_as_it_can_be_drawn() {
    for (source, expected) in [
        ((512, 512), (512, 512)),
        ((515, 130), (512, 128)),
        ((1_024, 1_024), (512, 512)),
        ((1_024, 256), (1_024, 256)),
        ((2_048, 512), (1_024, 256)),
        ((3, 3), (8, 8)),
        ((4_000, 1), (4_000, 8)),
        ((1, 60_000), (8, 32_768)),
    ] {
        let most = 512 * 512;
        let size = fitted(source, 8, most, most / 8);
        assert_eq!(size, expected, "{source:?}");
        assert!(size.0 * size.1 <= most);
        let narrow = fitted(source, 8, most, 260);
        assert!(narrow.0 <= 256 && narrow.1 <= 256, "{narrow:?}");
    }
}

#[test]
fn source_and_mask_are_brought_to_the_size_that_is_drawn() {
    let draft = ImageDraft {
        width: Some(16),
        height: Some(8),
        source: Some(file(64, 64)),
        mask: Some(MaskFile {
            file: file(64, 64),
            drawn: DrawnWhere::Transparent,
        }),
        strength: Some(0.5),
        ..ImageDraft::new("a")
    };
    let made = job(draft.clone());
    assert_eq!(made.iterations(), 10);
    let source = made.source.expect("a source");
    assert_eq!((source.picture.width(), source.picture.height()), (16, 8));
    assert_eq!(source.picture.rgb()[..3], [255, 0, 0]);
    assert_eq!(source.picture.rgb()[45..48], [255, 255, 255]);
    let mask = source.mask.expect("a mask");
    assert_eq!((mask.width(), mask.height()), (16, 8));
    assert_eq!(mask.values()[..16], [[0; 8], [255; 8]].concat());
    // Its own transparency is a mask only where that is meant.
    for meant in [false, true] {
        let alone = ImageDraft {
            mask: None,
            source_alpha_is_mask: meant,
            ..draft.clone()
        };
        let source = job(alone).source.expect("a source");
        assert_eq!(source.mask == Some(Arc::clone(&mask)), meant);
    }
}

#[test]
fn previews_are_evenly_spaced_and_bounded() {
    let shown = |count, steps| match previews(PreviewDraft::Count(count), steps) {
        Previews::After(steps) => steps.to_vec(),
        Previews::None => Vec::new(),
        Previews::Latest => panic!("a count was asked for"),
    };
    assert_eq!(shown(0, 20), Vec::<u32>::new());
    assert_eq!(shown(1, 20), [10]);
    assert_eq!(shown(3, 20), [5, 10, 15]);
    assert_eq!(shown(3, 4), [1, 2, 3]);
    assert_eq!(shown(3, 2), [1]);
    assert_eq!(shown(3, 1), Vec::<u32>::new());
    assert_eq!(shown(u32::MAX, 4), [1, 2, 3]);
    assert_eq!(previews(PreviewDraft::Latest, 4), Previews::Latest);
    assert_eq!(previews(PreviewDraft::None, 4), Previews::None);
}

#[test]
fn names_of_the_dialect_stand_in_errors() {
    let draft = ImageDraft {
        names: FieldNames {
            width: "size",
            height: "size",
            steps: "num_inference_steps",
            ..FieldNames::default()
        },
        ..ImageDraft::new("a")
    };
    let refused = |draft: ImageDraft| intake().job(draft).expect_err("refused").message;
    let wide = ImageDraft {
        width: Some(1_024),
        height: Some(1_024),
        ..draft.clone()
    };
    assert_eq!(
        refused(wide),
        "size asks for 1024 x 1024 = 1048576 pixels; the limit is 262144 (max_image_pixels)"
    );
    let long = ImageDraft {
        steps: Some(151),
        ..draft.clone()
    };
    assert_eq!(
        refused(long),
        "num_inference_steps is 151; it must be 1 to 150 (max_steps)"
    );
    let nan = ImageDraft {
        guidance_scale: Some(f64::NAN),
        ..draft
    };
    assert_eq!(
        refused(nan),
        "guidance_scale is NaN; it must be 0 to 30 (max_guidance_scale)"
    );
}

#[test]
fn defaults_stay_within_the_limits() {
    let limits = ImageLimits {
        max_image_pixels: 512 * 512,
        max_steps: 20,
        max_guidance_scale: 5.0,
        ..ImageLimits::default()
    };
    let defaults = ImageDefaults {
        width: 1_024,
        height: 1_024,
        steps: 50,
        ..ImageDefaults::default()
    };
    let within = defaults.clone().within(&limits, 64);
    assert_eq!((within.width, within.height), (512, 512));
    assert_eq!((within.steps, within.guidance_scale), (20, 5.0));
    assert_eq!(
        defaults.clone().within(&ImageLimits::default(), 64),
        defaults
    );
}

/// The scripted frontend of a network with positions for so many pixels.
struct Narrow(u32);

impl ImageFrontend for Narrow {
    fn tokenize(&self, prompt: &str, max_chunks: usize) -> Result<Vec<PromptTokens>, String> {
        ScriptedFrontend.tokenize(prompt, max_chunks)
    }

    fn schedule(&self, name: Option<&str>) -> Result<(ScheduleName, bool), String> {
        ScriptedFrontend.schedule(name)
    }

    fn max_edge(&self) -> u32 {
        self.0
    }

    fn schedule_names(&self) -> Vec<(&'static str, &'static str)> {
        ScriptedFrontend.schedule_names()
    }

    fn check(&self, job: &ImageJob) -> Result<(), String> {
        ScriptedFrontend.check(job)
    }
}

#[test]
fn an_edge_behind_the_networks_positions_is_refused() {
    let intake = ImageIntake {
        frontend: Arc::new(Narrow(512)),
        ..intake()
    };
    let asking = |width, height| {
        let draft = ImageDraft {
            width: Some(width),
            height: Some(height),
            ..ImageDraft::new("a")
        };
        intake.job(draft)
    };
    assert!(asking(512, 256).is_ok());
    for (width, height, field) in [(1_024, 64, "width"), (64, 520, "height")] {
        let error = asking(width, height).expect_err("too long");
        assert_eq!(error.field, field);
        assert!(error.message.contains("8 to 512"), "{}", error.message);
    }
    // A source's own size is brought within it.
    let job = intake.job(ImageDraft {
        source: Some(file(1_024, 256)),
        ..ImageDraft::new("a")
    });
    let job = job.expect("sound");
    assert_eq!((job.width, job.height), (512, 256));
}

#[test]
fn an_eta_that_nothing_reads_is_refused() {
    let asking = |schedule: &str, eta| {
        let draft = ImageDraft {
            schedule: Some(schedule.to_owned()),
            eta: Some(eta),
            ..ImageDraft::new("a")
        };
        intake().job(draft)
    };
    assert_eq!(asking("ddim", 0.5).expect("sound").eta, 0.5);
    assert!(asking("euler", 0.0).is_ok());
    let error = asking("euler", 0.5).expect_err("euler has none");
    assert_eq!(error.field, "eta");
    assert!(
        error.message.contains("only ddim reads it"),
        "{}",
        error.message
    );
}
