//! UNets against diffusers, at four timesteps in one call.

use candle_core::{DType, Device, Tensor};
use girandole::kernels::image::geglu;
use girandole::model::diffusion::config::unet::SIZE_IDS;
use girandole::model::diffusion::time_embedding::{AddedConditions, Sinusoids};
use girandole::model::diffusion::unet::recorded::RecordedUNet;
use girandole::model::diffusion::unet::{UNet, UNetConditions};
use girandole::model::diffusion::weights::Weights;

use super::fixture::{
    Goldens, MODELS, assert_close, bits, config, difference, row, rows, unet, values, weights,
};

/// The conditions of the goldens' four rows.
struct FourRows {
    timesteps: Vec<f64>,
    context: Tensor,
    pooled: Option<Tensor>,
    size_ids: Vec<[f64; SIZE_IDS]>,
}

impl FourRows {
    fn of(goldens: &Goldens) -> Self {
        let timesteps = values(&goldens.get("unet.timesteps"));
        let is_xl = goldens.has("unet.pooled");
        let size_ids = match is_xl {
            false => Vec::new(),
            true => {
                let ids = values(&goldens.get("unet.time_ids"));
                let (rows, _) = ids.as_chunks::<SIZE_IDS>();
                rows.iter().map(|row| row.map(f64::from)).collect()
            }
        };
        FourRows {
            timesteps: timesteps.into_iter().map(f64::from).collect(),
            context: goldens.get("unet.context"),
            pooled: is_xl.then(|| goldens.get("unet.pooled")),
            size_ids,
        }
    }

    fn choose(&self, order: &[usize]) -> Self {
        FourRows {
            timesteps: order.iter().map(|&row| self.timesteps[row]).collect(),
            context: rows(&self.context, order),
            pooled: self.pooled.as_ref().map(|pooled| rows(pooled, order)),
            size_ids: match self.pooled {
                Some(_) => order.iter().map(|&row| self.size_ids[row]).collect(),
                None => Vec::new(),
            },
        }
    }

    fn conditions(&self) -> UNetConditions<'_> {
        UNetConditions {
            timesteps: &self.timesteps,
            context: &self.context,
            added: self.pooled.as_ref().map(|pooled| AddedConditions {
                pooled,
                size_ids: &self.size_ids,
            }),
            guidance: None,
        }
    }
}

#[test]
fn predictions_at_four_timesteps_equal_diffusers() {
    for model in MODELS {
        let goldens = Goldens::of(model);
        let unet = unet(model);
        let mut four = FourRows::of(&goldens);
        // Even sizes, odd ones that are rounded up going down, and two chunks of text.
        for size in ["8x8", "9x11", "18x22"] {
            let x = goldens.picture(&format!("unet.{size}.sample"));
            let output = unet.forward(&x, four.conditions()).expect(model);
            let expected = goldens.picture(&format!("unet.{size}.output"));
            assert_close(&output, &expected, 2e-5, &format!("{model} {size}"));
        }
        four.context = goldens.get("unet.154.context");
        let x = goldens.picture("unet.8x8.sample");
        let output = unet.forward(&x, four.conditions()).expect(model);
        let expected = goldens.picture("unet.154.output");
        assert_close(&output, &expected, 2e-5, &format!("{model} two chunks"));
    }
}

#[test]
fn passes_in_memory_that_stays_where_it_is_are_the_same_passes() {
    for model in MODELS {
        let goldens = Goldens::of(model);
        let plain = unet(model);
        let in_place = RecordedUNet::new(unet(model), &Device::Cpu, true);
        let four = FourRows::of(&goldens);
        let orders: [&[usize]; 6] = [&[0], &[1], &[2, 3], &[0], &[3, 2], &[0, 1, 2, 3]];
        for order in orders {
            for size in ["8x8", "9x11", "8x8"] {
                let x = rows(&goldens.picture(&format!("unet.{size}.sample")), order);
                let chosen = four.choose(order);
                let expected = plain.forward(&x, chosen.conditions()).expect(model);
                let first = in_place.forward_in_place(&x, chosen.conditions());
                let first = first.expect(model);
                // Another pass of the shape leaves what was given out alone.
                let zeros = x.zeros_like().expect("small");
                let other = in_place.forward_in_place(&zeros, chosen.conditions());
                assert_ne!(bits(&other.expect(model)), bits(&expected));
                assert_eq!(bits(&first), bits(&expected), "{model} {order:?} {size}");
                let eager = in_place.forward(&x, chosen.conditions()).expect(model);
                assert_eq!(bits(&eager), bits(&expected));
            }
        }
    }
}

#[test]
fn time_embeddings_equal_diffusers() {
    for model in MODELS {
        let goldens = Goldens::of(model);
        let timesteps = values(&goldens.get("time.timesteps"));
        let numbers: Vec<f64> = timesteps.into_iter().map(f64::from).collect();
        let config = config(model).unet;
        let sinusoids = Sinusoids {
            width: config.levels[0].channels,
            flip_sin_to_cos: config.flip_sin_to_cos,
            freq_shift: config.freq_shift as f32,
        };
        let waves = sinusoids.embed(&numbers, &Device::Cpu).expect("small");
        // Angles near 1000 are apart by 6e-5 in f32, and two libraries' powers may differ by one such step.
        assert_close(&waves, &goldens.get("time.sinusoids"), 7e-5, model);
        if config.added.is_none() {
            let found = unet(model)
                .time_embedding()
                .forward(&numbers, None, None)
                .expect("valid");
            assert_close(&found, &goldens.get("time.embedding"), 5e-5, model);
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_company() {
    for model in MODELS {
        let goldens = Goldens::of(model);
        let unet = unet(model);
        let four = FourRows::of(&goldens);
        let x = goldens.picture("unet.9x11.sample");
        let together = unet.forward(&x, four.conditions()).expect(model);
        for order in [
            &[0][..],
            &[1],
            &[2],
            &[3],
            &[3, 1],
            &[2, 0, 3],
            &[1, 1, 1, 2, 0],
        ] {
            let chosen = four.choose(order);
            let output = unet
                .forward(&rows(&x, order), chosen.conditions())
                .expect(model);
            for (place, &index) in order.iter().enumerate() {
                let (found, expected) = (row(&output, place), row(&together, index));
                assert_eq!(
                    bits(&found),
                    bits(&expected),
                    "{model}, row {index} of {order:?}"
                );
            }
        }
    }
}

#[test]
fn fault_3_the_number_of_groups_is_honoured() {
    let model = "sdxl-tiny";
    let goldens = Goldens::of(model);
    let mut config = config(model).unet;
    assert_ne!(
        config.norm_num_groups, 32,
        "the golden above is for another number"
    );
    let four = FourRows::of(&goldens);
    let x = goldens.picture("unet.8x8.sample");
    config.norm_num_groups = 8;
    let other = UNet::new(&config, &weights(model, "unet", None)).expect("valid");
    let output = other.forward(&x, four.conditions()).expect("valid");
    assert!(difference(&output, &goldens.picture("unet.8x8.output")) > 1e-2);
}

#[test]
fn fault_5_half_precision_weights_stay_close() {
    for model in MODELS {
        let goldens = Goldens::of(model);
        let four = FourRows::of(&goldens);
        let x = goldens.picture("unet.8x8.sample");
        let expected = goldens.picture("unet.8x8.output");
        let size = values(&expected)
            .into_iter()
            .fold(0f32, |a, b| a.max(b.abs()));
        for (dtype, bound) in [(DType::F16, 1e-2), (DType::BF16, 3e-2)] {
            let weights = weights(model, "unet", Some(dtype));
            let unet = UNet::new(&config(model).unet, &weights).expect(model);
            let output = unet.forward(&x, four.conditions()).expect(model);
            assert_close(
                &output,
                &expected,
                bound * size,
                &format!("{model} {dtype:?}"),
            );
        }
    }
}

#[test]
fn fault_6_gates_are_exact() {
    // Values of 1 and gates of ±1: the form with tanh would be 1.5e-4 away.
    let x = Tensor::new(&[[[1f32, 1.0, 1.0, -1.0]]], &Device::Cpu).expect("small");
    let expected = Tensor::new(&[[[0.841_344_7_f32, -0.158_655_25]]], &Device::Cpu).expect("small");
    assert_close(&geglu(&x).expect("valid"), &expected, 1e-6, "gates");
}

#[test]
fn fault_7_sdxl_depends_on_pooled_text_and_picture_sizes() {
    let model = "sdxl-tiny";
    let goldens = Goldens::of(model);
    let unet = unet(model);
    let x = goldens.picture("unet.8x8.sample");
    let mut four = FourRows::of(&goldens);
    let output = unet.forward(&x, four.conditions()).expect("valid");
    four.size_ids[1][0] += 64.0;
    let resized = unet.forward(&x, four.conditions()).expect("valid");
    assert_eq!(bits(&row(&output, 0)), bits(&row(&resized, 0)));
    assert!(difference(&row(&output, 1), &row(&resized, 1)) > 1e-4);
    let mut without = four.conditions();
    without.added = None;
    let error = unet
        .forward(&x, without)
        .expect_err("pooled text is missing");
    assert!(error.to_string().contains("pooled text"), "{error}");

    // The embedding itself, which diffusers' is recorded of: what the timestep alone does not explain.
    let four = FourRows::of(&goldens);
    let conditions = four.conditions();
    let both = unet
        .time_embedding()
        .forward(conditions.timesteps, None, conditions.added)
        .expect("valid");
    let times = values(&goldens.get("time.timesteps"));
    let at = |timestep: f32| times.iter().position(|time| *time == timestep);
    let (late, early) = (at(999.0).expect("recorded"), at(37.0).expect("recorded"));
    let expected = goldens.get("unet.added");
    for (index, recorded) in [(0, late), (2, early)] {
        let time = row(&goldens.get("time.embedding"), recorded);
        let expected = (time + row(&expected, index)).expect("one shape");
        assert_close(&row(&both, index), &expected, 5e-5, "sum of embeddings");
    }
}

#[test]
fn a_distilled_models_guidance_is_embedded() {
    let mut config = config("sd15-tiny").unet;
    config.time_cond_proj_dim = Some(16);
    let weights = Weights::dummy(3, "unet", None, &Device::Cpu);
    let unet = UNet::new(&config, &weights).expect("valid");
    let goldens = Goldens::of("sd15-tiny");
    let four = FourRows::of(&goldens);
    let x = goldens.picture("unet.8x8.sample");
    let mut conditions = four.conditions();
    assert!(unet.forward(&x, conditions).is_err(), "it needs a scale");
    conditions.guidance = Some(&[6.5, 6.5, 7.0, 1.0]);
    let first = unet.forward(&x, conditions).expect("valid");
    assert!(values(&first).iter().all(|value| value.is_finite()));
    conditions.guidance = Some(&[6.5, 3.0, 7.0, 1.0]);
    let second = unet.forward(&x, conditions).expect("valid");
    assert_eq!(bits(&row(&first, 0)), bits(&row(&second, 0)));
    assert_ne!(bits(&row(&first, 1)), bits(&row(&second, 1)));
}

#[test]
fn fault_10_shapes_that_do_not_fit_are_errors() {
    let goldens = Goldens::of("sd15-tiny");
    let unet = unet("sd15-tiny");
    let four = FourRows::of(&goldens);
    let x = goldens.picture("unet.8x8.sample");
    let refused = |x: &Tensor, conditions: UNetConditions<'_>| {
        assert!(unet.forward(x, conditions).is_err());
    };
    refused(&row(&x, 0), four.conditions());
    refused(&x.narrow(3, 0, 3).expect("3 channels"), four.conditions());
    refused(&x.narrow(1, 0, 0).expect("no lines"), four.conditions());
    let mut conditions = four.conditions();
    conditions.timesteps = &[1.0];
    refused(&x, conditions);
    let narrow = four.context.narrow(2, 0, 8).expect("narrower");
    conditions = four.conditions();
    conditions.context = &narrow;
    refused(&x, conditions);
    let one_pixel = x
        .narrow(1, 0, 1)
        .and_then(|x| x.narrow(2, 0, 1))
        .expect("a pixel");
    let output = unet.forward(&one_pixel.contiguous().expect("small"), four.conditions());
    assert_eq!(output.expect("any size").dims(), [4, 1, 1, 4]);
}
