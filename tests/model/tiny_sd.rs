//! The bundled model: it draws what it is asked for, judged by the rule of its model card, and as diffusers does.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor, safetensors};
use girandole::intake::{ImageDefaults, ImageDraft, ImageIntake, ImageLimits};
use girandole::job::Job;
use girandole::model::device::DeviceSpec;
use girandole::model::diffusion::loader::{DiffusionAssets, build, load_assets};
use girandole::model::diffusion::random::NoiseUse;
use girandole::model::image_frontend::ImageFrontend;
use girandole::picture::Picture;
use image::GenericImageView;
use serde_json::Value;

use crate::pictures::{draw, options};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn folder() -> PathBuf {
    root().join("models/tiny-sd")
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect("the file is there")).expect("JSON")
}

fn job(assets: &DiffusionAssets, prompt: &str, steps: u64, guidance: f64, seed: u64) -> Arc<Job> {
    let intake = ImageIntake {
        frontend: Arc::clone(&assets.frontend) as Arc<dyn ImageFrontend>,
        size_factor: assets.size_factor,
        defaults: ImageDefaults {
            width: assets.size.0,
            height: assets.size.1,
            ..ImageDefaults::default()
        },
        limits: ImageLimits::default(),
    };
    let mut draft = ImageDraft::new(prompt);
    (draft.steps, draft.guidance_scale, draft.seed) = (Some(steps), Some(guidance), Some(seed));
    Arc::new(Job::Image(intake.job(draft).expect("the draft is sound")))
}

type Colour = [f32; 3];

/// The rule of the model card.
struct Judge {
    palette: Vec<(String, Colour)>,
    /// Name, then 32 × 32 points.
    templates: Vec<(String, Vec<bool>)>,
    points: usize,
    least_overlap: f64,
    frame: u32,
}

/// A part of a picture.
#[derive(Clone, Copy)]
struct Region {
    left: u32,
    top: u32,
    width: u32,
    height: u32,
}

impl Judge {
    fn read() -> Self {
        let card = json(&folder().join("shapes.json"));
        let colour = |value: &Value| {
            let channel = |index: usize| value[index].as_f64().expect("a number") as f32;
            [channel(0), channel(1), channel(2)]
        };
        let object = |name: &str| card[name].as_object().expect("an object");
        let lines = |value: &Value| -> Vec<bool> {
            let lines = value.as_array().expect("lines").iter();
            lines
                .flat_map(|line| line.as_str().expect("a line").chars().map(|c| c == '#'))
                .collect()
        };
        Judge {
            palette: object("palette")
                .iter()
                .map(|(name, value)| (name.clone(), colour(value)))
                .collect(),
            templates: object("templates")
                .iter()
                .map(|(name, value)| (name.clone(), lines(value)))
                .collect(),
            points: card["points"].as_u64().expect("a number") as usize,
            least_overlap: card["least_overlap"].as_f64().expect("a number"),
            frame: card["frame_px"].as_u64().expect("a number") as u32,
        }
    }

    fn nearest(&self, colour: Colour) -> &str {
        let (name, _) = self
            .palette
            .iter()
            .min_by(|(_, one), (_, other)| {
                distance(*one, colour).total_cmp(&distance(*other, colour))
            })
            .expect("there are colours");
        name
    }

    fn colour(&self, name: &str) -> Colour {
        let known = self.palette.iter().find(|(known, _)| known == name);
        known.expect("a known colour").1
    }

    /// What is wrong with a picture of these (colour, shape, region) on this background; `None` if nothing.
    fn fault(
        &self,
        picture: &Picture,
        objects: &[(&str, &str, Region)],
        ground: &str,
    ) -> Option<String> {
        let (width, height, frame) = (picture.width(), picture.height(), self.frame);
        let mut edge: Vec<Colour> = Vec::new();
        for y in 0..height {
            for x in 0..width {
                if x < frame || y < frame || x >= width - frame || y >= height - frame {
                    edge.push(pixel(picture, x, y));
                }
            }
        }
        let background = median(&edge);
        if self.nearest(background) != ground {
            return Some(format!("the background is {}", self.nearest(background)));
        }
        objects.iter().find_map(|(colour, shape, region)| {
            self.object_fault(picture, *region, background, colour, shape)
        })
    }

    fn object_fault(
        &self,
        picture: &Picture,
        region: Region,
        background: Colour,
        colour: &str,
        shape: &str,
    ) -> Option<String> {
        let (width, height) = (region.width as usize, region.height as usize);
        let at = |x: usize, y: usize| pixel(picture, region.left + x as u32, region.top + y as u32);
        let reach = distance(self.colour(colour), background) / 2.0;
        let far = |x: usize, y: usize| distance(at(x, y), background) > reach;
        // Specks go: of 3 x 3 pixels at least 5 must be foreground.
        let mask: Vec<bool> = (0..width * height)
            .map(|index| {
                let (x, y) = (index % width, index / width);
                let around = (y.max(1) - 1..(y + 2).min(height))
                    .flat_map(|y| (x.max(1) - 1..(x + 2).min(width)).map(move |x| (x, y)));
                around.filter(|&(x, y)| far(x, y)).count() >= 5
            })
            .collect();
        let inside: Vec<(usize, usize)> = (0..width * height)
            .filter(|&index| mask[index])
            .map(|index| (index % width, index / width))
            .collect();
        if inside.len() < 50 {
            return Some(format!("there is no {colour} {shape}"));
        }
        let seen: Vec<Colour> = inside.iter().map(|&(x, y)| at(x, y)).collect();
        let seen = self.nearest(median(&seen));
        if seen != colour {
            return Some(format!("the {shape} is {seen}, not {colour}"));
        }
        let box_of = |side: fn(&(usize, usize)) -> usize| {
            let sides = || inside.iter().map(side);
            let first = sides().min().expect("it is not empty");
            (first, sides().max().expect("it is not empty") + 1 - first)
        };
        let ((left, wide), (top, high)) = (box_of(|p| p.0), box_of(|p| p.1));
        let sample = |index: usize, length: usize| {
            ((index as f64 + 0.5) * length as f64 / self.points as f64) as usize
        };
        let points: Vec<bool> = (0..self.points * self.points)
            .map(|index| {
                let (x, y) = (index % self.points, index / self.points);
                mask[(top + sample(y, high)) * width + left + sample(x, wide)]
            })
            .collect();
        let overlap = |template: &[bool]| {
            let pairs = || points.iter().zip(template);
            let both = pairs().filter(|(one, other)| **one && **other).count();
            let either = pairs().filter(|(one, other)| **one || **other).count();
            both as f64 / either as f64
        };
        let (best, most) = self
            .templates
            .iter()
            .map(|(name, template)| (name, overlap(template)))
            .max_by(|(_, one), (_, other)| one.total_cmp(other))
            .expect("there are templates");
        let wrong = best != shape || most < self.least_overlap;
        wrong.then(|| format!("the {shape} looks like a {best} ({most:.2})"))
    }
}

fn pixel(picture: &Picture, x: u32, y: u32) -> Colour {
    let at = 3 * (y * picture.width() + x) as usize;
    let rgb = &picture.rgb()[at..at + 3];
    [0, 1, 2].map(|channel: usize| f32::from(rgb[channel]))
}

fn distance(one: Colour, other: Colour) -> f32 {
    let squares = one.iter().zip(other).map(|(a, b)| (a - b) * (a - b));
    squares.sum::<f32>().sqrt()
}

fn median(colours: &[Colour]) -> Colour {
    [0, 1, 2].map(|channel: usize| {
        let mut values: Vec<f32> = colours.iter().map(|colour| colour[channel]).collect();
        values.sort_by(f32::total_cmp);
        let middle = values.len() / 2;
        match values.len() % 2 {
            0 => (values[middle - 1] + values[middle]) / 2.0,
            _ => values[middle],
        }
    })
}

/// Of so many prompts, at least 95 of 100 must come out.
const LEAST_SHARE: f64 = 0.95;

#[test]
fn what_is_asked_for_is_drawn() {
    const COLOURS: [&str; 10] = [
        "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white",
    ];
    const SHAPES: [&str; 8] = [
        "circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring",
    ];
    let judge = Judge::read();
    let assets = load_assets(&folder(), None).expect("the model is sound");
    let mut model = build(&assets, DeviceSpec::Cpu, &options(1)).expect("the model loads");
    let (mut faults, mut prompts) = (Vec::new(), 0);
    // Every shape in every colour, each on another background.
    for (index, shape) in SHAPES.iter().enumerate() {
        for (number, colour) in COLOURS.iter().enumerate() {
            let ground = COLOURS[(number + 1 + index) % COLOURS.len()];
            let prompt = format!("a {colour} {shape} on a {ground} background");
            let prompt = prompt.replace("a orange", "an orange");
            let job = job(&assets, &prompt, 20, 5.0, prompts);
            let (picture, _) = draw(&mut model, &job, 0);
            let whole = Region {
                left: 0,
                top: 0,
                width: picture.width(),
                height: picture.height(),
            };
            prompts += 1;
            if let Some(fault) = judge.fault(&picture, &[(colour, shape, whole)], ground) {
                faults.push(format!("{prompt}: {fault}"));
            }
        }
    }
    let right = 1.0 - faults.len() as f64 / prompts as f64;
    assert!(
        right >= LEAST_SHARE,
        "{right:.3} of {prompts}: {}",
        faults.join("; ")
    );
}

#[test]
fn its_pictures_are_diffusers_pictures() {
    let fixtures = root().join("tests/fixtures/diffusion/tiny-sd");
    let golden = json(&fixtures.join("golden.json"));
    let tensors = safetensors::load(fixtures.join("latents.safetensors"), &Device::Cpu);
    let initial: Tensor = tensors.expect("latents")["initial"].clone();
    let initial = initial.permute((0, 2, 3, 1)).expect("rank 4");
    let sheet = image::open(fixtures.join("pictures.png")).expect("a picture");
    let assets = load_assets(&folder(), None).expect("the model is sound");
    let prompts = golden["prompts"].as_array().expect("prompts");
    for case in golden["cases"].as_array().expect("cases") {
        let number = |name: &str| case[name].as_f64().expect("a number");
        for (column, prompt) in prompts.iter().enumerate() {
            let latent = initial.get(column).and_then(|latent| latent.contiguous());
            let latent: Vec<f32> = latent.unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let noise = move |_: u64, _: NoiseUse, values: &mut [f32]| {
                values.copy_from_slice(&latent);
            };
            let model = build(&assets, DeviceSpec::Cpu, &options(1)).expect("the model loads");
            let mut model = model.with_noise(Box::new(noise));
            let prompt = prompt.as_str().expect("a prompt");
            let job = job(
                &assets,
                prompt,
                number("steps") as u64,
                number("guidance"),
                0,
            );
            let (picture, _) = draw(&mut model, &job, 0);
            let (width, height) = (picture.width(), picture.height());
            let row = number("row") as u32;
            let tile = sheet.view(column as u32 * width, row * height, width, height);
            let off = tile
                .to_image()
                .pixels()
                .zip(picture.rgb().chunks(3))
                .flat_map(|(expected, ours)| (0..3).map(move |c| expected[c].abs_diff(ours[c])))
                .max();
            assert!(off <= Some(2), "{prompt}, {}: {off:?}/255", case["name"]);
        }
    }
}
