//! Image autoencoders against diffusers, whole and in tiles.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use girandole::model::diffusion::config::fields::read_object;
use girandole::model::diffusion::config::vae::VaeConfig;
use girandole::model::diffusion::vae::tiny::TinyDecoder;
use girandole::model::diffusion::vae::{DEFAULT_MEMORY_LIMIT, Vae};
use girandole::model::diffusion::weights::Weights;

use super::fixture::{
    Goldens, MODELS, assert_close, bits, config, difference, fixtures, folder, row, rows, vae,
    values, weights,
};

/// A latent of this size, repeatable.
fn latent(height: usize, width: usize, channels: usize) -> Tensor {
    let count = height * width * channels;
    let values: Vec<f32> = (0..count)
        .map(|index| ((index * 7919 % 1013) as f32 / 1013.0 - 0.5) * 4.0)
        .collect();
    Tensor::from_vec(values, (1, height, width, channels), &Device::Cpu).expect("small")
}

#[test]
fn pictures_and_latents_equal_diffusers() {
    for model in MODELS.into_iter().chain(["flux-tiny", "sd3-tiny"]) {
        let goldens = Goldens::of(model);
        let object = read_object(&folder(model).join("vae/config.json")).expect(model);
        let config = VaeConfig::parse("vae/config.json", &object).expect(model);
        let weights = weights(model, "vae", None);
        let vae = Vae::new(&config, &weights, DEFAULT_MEMORY_LIMIT).expect(model);
        for size in ["8x8", "5x7"] {
            let latents = goldens.picture(&format!("vae.{size}.latents"));
            let decoded = vae.decode(&latents).expect(model);
            let expected = goldens.picture(&format!("vae.{size}.decoded"));
            assert_close(
                &decoded,
                &expected,
                2e-5,
                &format!("{model} {size} decoded"),
            );
            let image = goldens.picture(&format!("vae.{size}.image"));
            let moments = vae.encode(&image).expect(model);
            for (name, found) in [("mean", &moments.mean), ("logvar", &moments.log_variance)] {
                let expected = goldens.picture(&format!("vae.{size}.{name}"));
                assert_close(found, &expected, 1e-4, &format!("{model} {size} {name}"));
            }
        }
    }
}

#[test]
fn scaling_undoes_itself_and_uses_the_models_own_factor() {
    let vae = vae("sdxl-tiny");
    let x = latent(4, 4, 4);
    let scaled = vae.scale(&x).expect("small");
    let expected = (&x * 0.13025).expect("small");
    assert_close(&scaled, &expected, 1e-7, "SDXL's factor, not SD 1.5's");
    assert_close(&vae.unscale(&scaled).expect("small"), &x, 1e-6, "back");
}

#[test]
fn a_row_does_not_depend_on_its_company() {
    for model in MODELS {
        let vae = vae(model);
        let latents = latent(12, 15, 4)
            .reshape((3, 4, 15, 4))
            .expect("three rows");
        let together = vae.decode(&latents).expect(model);
        let encoded = vae.encode(&together).expect(model);
        for order in [&[1][..], &[2, 0], &[0, 0, 1, 2]] {
            let decoded = vae.decode(&rows(&latents, order)).expect(model);
            let mean = vae.encode(&rows(&together, order)).expect(model).mean;
            for (place, &index) in order.iter().enumerate() {
                assert_eq!(bits(&row(&decoded, place)), bits(&row(&together, index)));
                assert_eq!(bits(&row(&mean, place)), bits(&row(&encoded.mean, index)));
            }
        }
    }
}

#[test]
fn a_picture_too_large_for_the_limit_is_cut_into_tiles_that_meet() {
    let model = "sd15-tiny";
    let config = config(model).vae;
    let whole = vae(model);
    let limit = whole.decode_bytes(24, 24);
    let tiled = Vae::new(&config, &weights(model, "vae", None), limit).expect(model);
    // Fits: no tiles.
    let x = latent(24, 24, 4);
    let small = tiled.decode(&x).expect("valid");
    assert_eq!(bits(&small), bits(&whole.decode(&x).expect("valid")));
    // One latent more: tiles, of which none takes more than the limit.
    assert!(whole.decode_bytes(24, 61) > limit);
    for (height, width) in [(24, 25), (61, 24), (50, 61)] {
        assert!(tiled.decode_bytes(height, width) <= limit);
        // A smooth latent, as those of pictures are, so that seams would show.
        let x = latent(height, width, 4).zeros_like().expect("small");
        let expected = whole.decode(&x).expect("valid");
        let found = tiled.decode(&x).expect("valid");
        assert_eq!(found.dims(), expected.dims());
        assert!(values(&found).iter().all(|value| value.is_finite()));
        let spread = difference(&expected, &expected.zeros_like().expect("small"));
        let apart: f32 = values(&found)
            .iter()
            .zip(values(&expected))
            .map(|(a, b)| (a - b).abs())
            .sum::<f32>()
            / found.elem_count() as f32;
        assert!(apart < 0.1 * spread, "{apart} of {spread}");
        let encoded = tiled.encode(&expected).expect("valid").mean;
        assert_eq!(encoded.dims(), [1, height, width, 4]);
    }
    // Tiles do not depend on the company either.
    let x = latent(24, 50, 4).reshape((2, 12, 50, 4)).expect("two rows");
    let both = tiled.decode(&x).expect("valid");
    let second = tiled.decode(&row(&x, 1)).expect("valid");
    assert_eq!(bits(&row(&both, 1)), bits(&second));
}

#[test]
fn names_and_shapes_of_older_files_are_read() {
    let model = "sdxl-tiny";
    let path = folder(model).join("vae/diffusion_pytorch_model.safetensors");
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).expect("the fixture");
    let renamed: HashMap<String, Tensor> = tensors
        .into_iter()
        .map(|(name, tensor)| {
            let mut old = name.clone();
            for (new_part, old_part) in [
                (".to_q.", ".query."),
                (".to_k.", ".key."),
                (".to_v.", ".value."),
                (".to_out.0.", ".proj_attn."),
            ] {
                old = old.replace(new_part, old_part);
            }
            let tensor = match old != name && name.ends_with("weight") {
                true => tensor
                    .unsqueeze(2)
                    .and_then(|t| t.unsqueeze(3))
                    .expect("rank 4"),
                false => tensor,
            };
            (old, tensor)
        })
        .collect();
    let ranks = renamed
        .iter()
        .filter(|(name, _)| name.ends_with("proj_attn.weight"));
    assert_eq!(
        ranks.map(|(_, tensor)| tensor.rank()).collect::<Vec<_>>(),
        [4, 4]
    );
    let old = tempfile::tempdir().expect("a folder");
    let path = old.path().join("diffusion_pytorch_model.safetensors");
    candle_core::safetensors::save(&renamed, path).expect("written");
    let weights = Weights::open(old.path(), None, &Device::Cpu).expect("just written");
    let old = Vae::new(&config(model).vae, &weights, DEFAULT_MEMORY_LIMIT).expect("old names");
    let x = latent(4, 4, 4);
    let expected = vae(model).decode(&x).expect("valid");
    assert_eq!(bits(&old.decode(&x).expect("valid")), bits(&expected));
}

#[test]
fn half_precision_files_are_read() {
    let model = "sd15-tiny";
    let x = latent(4, 4, 4);
    let expected = vae(model).decode(&x).expect("valid");
    for (dtype, bound) in [(DType::F16, 1e-2), (DType::BF16, 8e-2)] {
        let weights = weights(model, "vae", Some(dtype));
        let half = Vae::new(&config(model).vae, &weights, DEFAULT_MEMORY_LIMIT).expect("valid");
        assert_close(
            &half.decode(&x).expect("valid"),
            &expected,
            bound,
            "half precision",
        );
    }
}

#[test]
fn fault_10_shapes_that_do_not_fit_are_errors() {
    let vae = vae("sd15-tiny");
    assert!(vae.decode(&latent(4, 4, 3)).is_err());
    assert!(vae.decode(&latent(0, 4, 4)).is_err());
    for (height, width) in [(8, 0), (9, 8), (8, 3)] {
        assert!(vae.encode(&latent(height, width, 3)).is_err());
    }
    assert!(vae.encode(&latent(8, 8, 4)).is_err());
}

#[test]
fn the_small_decoder_equals_diffusers_and_rows_do_not_depend_on_company() {
    let decoder = TinyDecoder::open(&folder("taesd-tiny"), None, &Device::Cpu).expect("valid");
    let goldens = Goldens::at(&fixtures().join("taesd-tiny.safetensors"));
    let latents = goldens.picture("latents");
    let decoded = decoder.decode(&latents).expect("valid");
    assert_close(&decoded, &goldens.picture("decoded"), 1e-5, "decoded");
    let second = decoder.decode(&row(&latents, 1)).expect("valid");
    assert_eq!(bits(&row(&decoded, 1)), bits(&second));
    assert!(decoder.decode(&latent(4, 4, 3)).is_err());
    assert!(decoder.decode(&latent(0, 4, 4)).is_err());
}

#[test]
fn a_limit_below_the_smallest_tile_is_refused() {
    let model = "sd15-tiny";
    let config = config(model).vae;
    let least = vae(model).decode_bytes(16, 16);
    let of = |limit| Vae::new(&config, &weights(model, "vae", None), limit);
    let small = of(least).expect("one tile fits");
    assert!(small.decode_bytes(64, 64) <= least);
    let error = of(least - 1).err().expect("no tile fits").to_string();
    for named in [
        "decode_memory_bytes".to_owned(),
        (least - 1).to_string(),
        least.to_string(),
    ] {
        assert!(error.contains(&named), "{error}");
    }
}
