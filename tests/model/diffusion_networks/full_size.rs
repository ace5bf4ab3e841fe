//! Stable Diffusion 1.5 at its full size. Not part of a test run: 4.3 GB of random weights are made by
//! `tests/goldens/check_full_size.py make FOLDER` first. Then
//!
//!     GIRANDOLE_SD15_FULL=FOLDER cargo test --test model full_size -- --ignored --nocapture

use std::path::PathBuf;

use candle_core::Device;
use girandole::model::diffusion::clip::ClipText;
use girandole::model::diffusion::config::StableDiffusionConfig;
use girandole::model::diffusion::unet::{UNet, UNetConditions};
use girandole::model::diffusion::vae::{DEFAULT_MEMORY_LIMIT, Vae};
use girandole::model::diffusion::weights::Weights;

use super::fixture::{Goldens, assert_close, difference, values};

#[test]
#[ignore = "needs 4.3 GB of weights, made by tests/goldens/check_full_size.py"]
fn full_size_sd15_equals_diffusers() {
    let folder = std::env::var("GIRANDOLE_SD15_FULL").expect("the folder of the weights");
    let folder = PathBuf::from(folder);
    let config = StableDiffusionConfig::read(&folder).expect("valid");
    let goldens = Goldens::at(&folder.join("golden.safetensors"));
    let weights = |component: &str| {
        Weights::open(&folder.join(component), None, &Device::Cpu).expect("weights")
    };

    let text = ClipText::new(&config.text_encoders[0], &weights("text_encoder")).expect("valid");
    let output = text.forward(&goldens.ids("text.ids"), 0).expect("valid");
    let expected = goldens.get("text.last");
    eprintln!("text: {:e}", difference(&output.last, &expected));
    assert_close(&output.last, &expected, 2e-5, "text");
    drop(text);

    let vae = Vae::new(&config.vae, &weights("vae"), DEFAULT_MEMORY_LIMIT).expect("valid");
    let decoded = vae.decode(&goldens.picture("vae.latents")).expect("valid");
    let expected = goldens.picture("vae.decoded");
    eprintln!("decoded: {:e}", difference(&decoded, &expected));
    assert_close(&decoded, &expected, 2e-5, "decoded");
    let moments = vae
        .encode(&expected.clamp(-1f32, 1f32).expect("small"))
        .expect("valid");
    for (name, found) in [("mean", &moments.mean), ("logvar", &moments.log_variance)] {
        let expected = goldens.picture(&format!("vae.{name}"));
        eprintln!("{name}: {:e}", difference(found, &expected));
        assert_close(found, &expected, 1e-4, name);
    }
    drop(vae);

    let unet = UNet::new(&config.unet, &weights("unet")).expect("valid");
    let timesteps = values(&goldens.get("unet.timesteps"));
    let timesteps: Vec<f64> = timesteps.into_iter().map(f64::from).collect();
    let context = goldens.get("unet.context");
    for size in ["32x32", "64x64"] {
        let conditions = UNetConditions {
            timesteps: &timesteps,
            context: &context,
            added: None,
            guidance: None,
        };
        let x = goldens.picture(&format!("unet.{size}.sample"));
        let output = unet.forward(&x, conditions).expect("valid");
        let expected = goldens.picture(&format!("unet.{size}.output"));
        eprintln!("unet {size}: {:e}", difference(&output, &expected));
        assert_close(&output, &expected, 5e-5, size);
    }
}
