//! CLIP text encoders against transformers.

use candle_core::{DType, Device};
use girandole::model::diffusion::clip::ClipText;
use girandole::model::diffusion::config::clip::ClipConfig;
use girandole::model::diffusion::config::fields::read_object;
use girandole::model::diffusion::weights::Weights;

use super::fixture::{
    Goldens, MODELS, assert_close, bits, config, difference, folder, row, text, weights,
};

/// Every encoder of the tiny models: the model, its number there, and its goldens' prefix.
fn encoders() -> Vec<(&'static str, usize, &'static str)> {
    let first = MODELS.map(|model| (model, 0, "text"));
    first
        .into_iter()
        .chain([("sdxl-tiny", 1, "text_2")])
        .collect()
}

#[test]
fn states_equal_transformers() {
    for (model, index, prefix) in encoders() {
        let goldens = Goldens::of(model);
        let ids = goldens.ids(&format!("{prefix}.ids"));
        let output = text(model, index).forward(&ids, 0).expect(model);
        let expect = |name: &str, found, bound| {
            let name = format!("{prefix}.{name}");
            assert_close(
                found,
                &goldens.get(&name),
                bound,
                &format!("{model} {name}"),
            );
        };
        expect("last", &output.last, 1e-5);
        expect("penultimate", &output.penultimate, 1e-5);
        match goldens.has(&format!("{prefix}.embeds")) {
            true => expect("embeds", &output.pooled, 1e-5),
            false => expect("pooled", &output.pooled, 1e-5),
        }
    }
}

#[test]
fn newer_models_encoders_equal_transformers() {
    for (model, component, prefix, projects) in [
        ("flux-tiny", "text_encoder", "text", false),
        ("sd3-tiny", "text_encoder", "text", true),
        ("sd3-tiny", "text_encoder_2", "text_2", true),
    ] {
        let object = read_object(&folder(model).join(component).join("config.json")).expect(model);
        let config = ClipConfig::parse("config.json", &object, projects).expect(model);
        let encoder = ClipText::new(&config, &weights(model, component, None)).expect(model);
        let goldens = Goldens::of(model);
        let ids = goldens.ids(&format!("{prefix}.ids"));
        let output = encoder.forward(&ids, 0).expect(model);
        let pooled = if projects { "embeds" } else { "pooled" };
        for (name, found) in [
            ("last", &output.last),
            ("penultimate", &output.penultimate),
            (pooled, &output.pooled),
        ] {
            let name = format!("{prefix}.{name}");
            assert_close(found, &goldens.get(&name), 1e-5, &format!("{model} {name}"));
        }
    }
}

#[test]
fn fault_1_any_batch_of_prompts_is_encoded_and_rows_do_not_depend_on_it() {
    for (model, index, prefix) in encoders() {
        let encoder = text(model, index);
        let ids = Goldens::of(model).ids(&format!("{prefix}.ids"));
        let together = encoder.forward(&ids, 0).expect(model);
        for batch in [1, 2, 3] {
            let order: Vec<usize> = (0..batch)
                .map(|place| (place * 2 + 1) % ids.len())
                .collect();
            let chosen: Vec<_> = order.iter().map(|&index| ids[index].clone()).collect();
            let output = encoder.forward(&chosen, 0).expect(model);
            for (place, &index) in order.iter().enumerate() {
                for (found, expected) in [
                    (&output.last, &together.last),
                    (&output.penultimate, &together.penultimate),
                    (&output.pooled, &together.pooled),
                ] {
                    assert_eq!(
                        bits(&row(found, place)),
                        bits(&row(expected, index)),
                        "{model}"
                    );
                }
            }
        }
    }
}

#[test]
fn skipping_a_layer_gives_the_state_before_it_with_the_final_norm() {
    let (model, prefix) = ("sd15-tiny", "text");
    let encoder = text(model, 0);
    let ids = Goldens::of(model).ids(&format!("{prefix}.ids"));
    let all = encoder.forward(&ids, 0).expect("valid");
    let skipped = encoder.forward(&ids, 1).expect("valid");
    assert_eq!(
        bits(&skipped.pooled),
        bits(&all.pooled),
        "of the last layer"
    );
    // An encoder that has one layer less gives that as its last state.
    let mut shorter = config(model).text_encoders[0].clone();
    shorter.layers -= 1;
    let shorter = ClipText::new(&shorter, &weights(model, "text_encoder", None)).expect("valid");
    let shorter = shorter.forward(&ids, 0).expect("valid");
    assert_eq!(bits(&skipped.last), bits(&shorter.last));
    assert_eq!(bits(&skipped.penultimate), bits(&shorter.penultimate));
    let layers = encoder.config().layers;
    assert!(encoder.forward(&ids, layers - 1).is_ok());
    assert!(encoder.forward(&ids, layers).is_err());
}

#[test]
fn fault_10_bad_ids_are_errors() {
    let encoder = text("sd15-tiny", 0);
    for ids in [
        vec![],
        vec![vec![]],
        vec![vec![1; 78]],
        vec![vec![1; 77], vec![1; 76]],
        vec![vec![u32::MAX; 77]],
    ] {
        assert!(encoder.forward(&ids, 0).is_err());
    }
    assert!(encoder.forward(&[vec![1, 2, 3]], 0).is_ok());
}

#[test]
fn random_weights_give_finite_states() {
    let config = &config("sdxl-tiny").text_encoders[1];
    for dtype in [None, Some(DType::F16), Some(DType::BF16)] {
        let weights = Weights::dummy(7, "text_encoder", dtype, &Device::Cpu);
        let output = ClipText::new(config, &weights)
            .and_then(|encoder| Ok(encoder.forward(&[vec![5; 77]], 0)?))
            .expect("valid");
        assert!(difference(&output.last, &output.last.zeros_like().expect("zeros")) < 100.0);
    }
}
