//! `/sdapi/v1/options`, which clients use to ask for the model and to change it.
//!
//! The web UI's options are everybody's. Here the only one that can be changed is the model
//! (`sd_model_checkpoint`), and a change counts for later calls of the same caller alone, which is known as
//! [`super`] says. The service keeps all its models ready, so nothing is loaded.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;
use axum::extract::State;
use axum::{Extension, Json};
use serde_json::{Map, Value, json};

use super::WebUiError;
use super::who::Who;
use crate::api::error::ApiError;
use crate::api::{AppState, ServedModel};
use crate::intake::{Fields, Intake, Invalid, InvalidKind};

const MODEL: &str = "sd_model_checkpoint";
/// Which of the text encoder's layers is read, the last being 1. For one call only.
const CLIP_LAYER: &str = "CLIP_stop_at_last_layers";

/// Choices kept; the oldest is forgotten first.
const MAX_CHOICES: usize = 1_000;

/// Which model each caller has chosen.
#[derive(Default)]
pub(super) struct ChosenModels {
    /// The oldest choice first.
    choices: Mutex<VecDeque<(Who, Arc<ServedModel>)>>,
}

impl ChosenModels {
    /// The caller's model for calls that name none: its choice, else the first that draws.
    ///
    /// # Errors
    /// No model draws.
    pub(super) fn of(&self, state: &AppState, who: &Who) -> Result<Arc<ServedModel>, ApiError> {
        let choices = self.choices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, model)) = choices.iter().find(|(chooser, _)| chooser == who) {
            return Ok(Arc::clone(model));
        }
        image_models(state).next().cloned().ok_or_else(|| {
            let none = ApiError::unknown_model();
            ApiError {
                message: "no model of this service draws pictures".to_owned(),
                ..none
            }
        })
    }

    fn choose(&self, who: Who, model: Arc<ServedModel>) {
        let mut choices = self.choices.lock().unwrap_or_else(PoisonError::into_inner);
        choices.retain(|(chooser, _)| *chooser != who);
        if choices.len() == MAX_CHOICES {
            choices.pop_front();
        }
        choices.push_back((who, model));
    }
}

/// The models that draw.
pub(super) fn image_models(state: &AppState) -> impl Iterator<Item = &Arc<ServedModel>> {
    state
        .models
        .iter()
        .filter(|model| matches!(model.intake, Intake::Image(_)))
}

/// The options as they are: what cannot be changed, and the model.
fn options(model: &ServedModel) -> Map<String, Value> {
    let options = json!({
        MODEL: model.name,
        "sd_checkpoint_hash": "",
        "sd_vae": "Automatic",
        CLIP_LAYER: 1,
        "samples_format": "png",
        "enable_pnginfo": true,
        "samples_save": false,
        "grid_save": false,
        "return_grid": false,
        "return_mask": false,
        "return_mask_composite": false,
        "live_previews_enable": true,
        "live_previews_image_format": "png",
        "show_progress_every_n_steps": 1,
        "eta_noise_seed_delta": 0,
        "initial_noise_multiplier": 1.0,
        "img2img_fix_steps": false,
        "img2img_color_correction": false,
        "token_merging_ratio": 0.0,
        "use_old_emphasis_implementation": false,
        "enable_emphasis": true,
        "filter_nsfw": false,
        "sd_lora": "None",
        "sd_hypernetwork": "None",
    });
    match options {
        Value::Object(options) => options,
        _ => unreachable!("it is written as an object"),
    }
}

/// What a call's options come to.
pub(super) struct Chosen {
    /// The model.
    pub(super) model: Arc<ServedModel>,
    /// Layers left out at the end of the text encoders, where the call says.
    pub(super) clip_skip: Option<u64>,
}

/// Reads options that a call brings: another model, another layer of the text encoder, and others as they are
/// anyway.
///
/// # Errors
/// A model that nobody serves, or that draws nothing; another option, or another value.
pub(super) fn read(
    state: &AppState,
    mut fields: Fields,
    model: &Arc<ServedModel>,
) -> Result<Chosen, ApiError> {
    let model = match fields.string(MODEL)?.filter(|name| !name.is_empty()) {
        None => Arc::clone(model),
        Some(name) => {
            let unknown = || ApiError {
                field: Some(MODEL.to_owned()),
                message: format!("{MODEL} names no model of this service; see /sdapi/v1/sd-models"),
                ..ApiError::unknown_model()
            };
            let found = image_models(state).find(|model| model.name == name);
            Arc::clone(found.ok_or_else(unknown)?)
        }
    };
    let most = u64::from(model.intake.image()?.frontend.max_clip_skip()) + 1;
    // Whole numbers may be written either way.
    let clip_skip = match fields.number(CLIP_LAYER)? {
        None => None,
        Some(layer) if layer.fract() == 0.0 && (1.0..=most as f64).contains(&layer) => {
            Some(layer as u64 - 1)
        }
        Some(layer) => {
            let message =
                format!("is {layer}; it must be a whole number, 1 to {most}, for this model");
            return Err(Invalid::value(fields.full_name(CLIP_LAYER), message).into());
        }
    };
    for (name, value) in options(&model) {
        let mut accepted = vec![value];
        // Whole numbers may be written either way.
        if let Some(number) = accepted[0].as_f64() {
            accepted.push(json!(number));
            accepted.push(json!(number as i64));
            accepted.dedup();
        }
        fields.only(&name, &accepted)?;
    }
    fields.finish()?;
    Ok(Chosen { model, clip_skip })
}

/// The options, with the caller's model.
#[utoipa::path(get, path = "/sdapi/v1/options", tag = "web UI",
    responses((status = 200, description = "name to value; the model is `sd_model_checkpoint`")))]
pub(super) async fn show(
    State(state): State<Arc<AppState>>,
    Extension(chosen): Extension<Arc<ChosenModels>>,
    who: Who,
) -> Result<Json<Map<String, Value>>, WebUiError> {
    let model = chosen.of(&state, &who)?;
    Ok(Json(options(&model)))
}

/// Chooses the model for later calls of this caller.
///
/// Other options are accepted as they are, and refused by name otherwise.
#[utoipa::path(post, path = "/sdapi/v1/options", tag = "web UI",
    responses(
        (status = 200, description = "null"),
        (status = 400, description = "an option that cannot be changed; it is named"),
        (status = 404, description = "there is no such model"),
    ))]
pub(super) async fn choose(
    State(state): State<Arc<AppState>>,
    Extension(chosen): Extension<Arc<ChosenModels>>,
    who: Who,
    body: Bytes,
) -> Result<Json<Value>, WebUiError> {
    let model = chosen.of(&state, &who)?;
    let asked = read(&state, Fields::parse(&body)?, &model)?;
    if asked.clip_skip.is_some_and(|layers| layers > 0) {
        return Err(ApiError::from(Invalid::new(
            InvalidKind::Unsupported,
            CLIP_LAYER,
            "can be set for a single call only, in its override_settings",
        ))
        .into());
    }
    chosen.choose(who, asked.model);
    Ok(Json(Value::Null))
}
