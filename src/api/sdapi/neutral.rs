//! Fields of the web UI that this service does not serve: accepted in the form that asks for nothing,
//! refused by name in any other.
//!
//! Clients send all of them, with the web UI's defaults. Three of these defaults would change an
//! inpainted picture: `mask_blur` 4 (softens the seam), `inpainting_fill` 0 (paints over the masked part
//! first) and `inpaint_full_res` true (draws the masked part alone, enlarged). They say nothing of
//! what the user wants, so they are accepted as they are sent unasked; the answer's `parameters` tell
//! what was done instead (0, 1 and false), and values other than these are refused.

use serde_json::{Value, json};

use crate::intake::{Fields, Invalid, InvalidKind, shortened};

/// Those of the second pass, which has no effect without `enable_hr`; those that limit `s_churn`, which
/// must be 0; the guidance of models that edit by instruction; records that only the web UI keeps.
const WITHOUT_EFFECT: [&str; 21] = [
    "hr_scale",
    "hr_upscaler",
    "hr_second_pass_steps",
    "hr_resize_x",
    "hr_resize_y",
    "hr_checkpoint_name",
    "hr_sampler_name",
    "hr_scheduler",
    "hr_prompt",
    "hr_negative_prompt",
    "firstphase_width",
    "firstphase_height",
    "subseed",
    "s_tmin",
    "s_tmax",
    "refiner_switch_at",
    "image_cfg_scale",
    "inpaint_full_res_padding",
    "do_not_save_samples",
    "do_not_save_grid",
    // Without a script there is nothing to read them.
    "script_args",
];

/// Reads what both endpoints know and do not serve.
///
/// # Errors
/// A field asks for something.
pub(super) fn read(fields: &mut Fields) -> Result<(), Invalid> {
    for name in WITHOUT_EFFECT {
        fields.take(name);
    }
    only(
        fields,
        vec![
            ("enable_hr", vec![json!(false)]),
            ("tiling", vec![json!(false)]),
            ("restore_faces", vec![json!(false)]),
            // The service keeps no gallery.
            ("save_images", vec![json!(false)]),
            ("styles", vec![json!([])]),
            ("subseed_strength", zero()),
            ("seed_resize_from_h", absent_or_none()),
            ("seed_resize_from_w", absent_or_none()),
            ("s_churn", zero()),
            ("s_noise", one()),
            ("s_min_uncond", zero()),
            ("refiner_checkpoint", vec![json!(""), json!("None")]),
            ("script_name", vec![json!(""), json!("None")]),
            ("infotext", vec![json!("")]),
            ("comments", vec![json!({})]),
            ("firstpass_image", vec![]),
            ("initial_noise_multiplier", one()),
        ],
    )?;
    read_scripts(fields)
}

/// Reads what changes how a masked part is drawn.
///
/// # Errors
/// A field asks for something that is not served.
pub(super) fn read_inpainting(fields: &mut Fields, masked: bool) -> Result<(), Invalid> {
    let table = vec![
        (
            "mask_blur",
            vec![json!(4), json!(4.0), json!(0), json!(0.0)],
        ),
        (
            "mask_blur_x",
            vec![json!(4), json!(4.0), json!(0), json!(0.0)],
        ),
        (
            "mask_blur_y",
            vec![json!(4), json!(4.0), json!(0), json!(0.0)],
        ),
        ("mask_round", vec![json!(true)]),
        ("inpainting_fill", vec![json!(0), json!(1)]),
        (
            "inpaint_full_res",
            vec![json!(true), json!(false), json!(0), json!(1)],
        ),
        ("latent_mask", vec![]),
    ];
    match masked {
        true => only(fields, table)?,
        // Without a mask they have no effect.
        false => table.iter().for_each(|(name, _)| {
            fields.take(name);
        }),
    }
    // The picture is stretched, as by 0. The others crop it, fill it up, or stretch its latent.
    only(fields, vec![("resize_mode", vec![json!(0)])])
}

fn zero() -> Vec<Value> {
    vec![json!(0), json!(0.0)]
}

fn one() -> Vec<Value> {
    vec![json!(1), json!(1.0)]
}

fn absent_or_none() -> Vec<Value> {
    vec![json!(0), json!(-1)]
}

fn only(fields: &mut Fields, table: Vec<(&str, Vec<Value>)>) -> Result<(), Invalid> {
    table
        .iter()
        .try_for_each(|(name, accepted)| fields.only(name, accepted))
}

/// Extensions run as scripts. One that is told nothing, or `false`, does nothing.
fn read_scripts(fields: &mut Fields) -> Result<(), Invalid> {
    let scripts = fields.object("alwayson_scripts")?.unwrap_or_default();
    for (name, script) in scripts {
        let idle = match script.get("args") {
            None | Some(Value::Null) => true,
            Some(Value::Array(args)) => args.iter().all(|arg| *arg == json!(false)),
            Some(_) => false,
        };
        if !idle {
            let name = shortened(&name);
            return Err(Invalid::new(
                InvalidKind::Unsupported,
                format!("alwayson_scripts.{name}"),
                "is not supported by this service",
            ));
        }
    }
    Ok(())
}
