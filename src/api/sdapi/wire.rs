//! The bodies of this dialect. Those of requests are for readers of the API's description only: a body is
//! read field by field, see [`super`].

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// A drawing from words. Further fields of the web UI are accepted in their neutral form.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TextToImageBody {
    /// What to draw.
    prompt: String,
    /// What not to draw; needs a `cfg_scale` above 1.
    negative_prompt: Option<String>,
    /// -1 draws one.
    seed: Option<i64>,
    /// Denoising steps.
    steps: Option<u32>,
    /// How closely to keep to the prompt; 1 or less switches guidance off.
    cfg_scale: Option<f32>,
    /// In pixels.
    width: Option<u32>,
    /// In pixels.
    height: Option<u32>,
    /// Pictures at once.
    batch_size: Option<u32>,
    /// So many times; all are drawn together.
    n_iter: Option<u32>,
    /// A name from `/sdapi/v1/samplers`.
    sampler_name: Option<String>,
    /// `Automatic` or `Karras`.
    scheduler: Option<String>,
    /// The share of fresh noise in DDIM's steps.
    eta: Option<f32>,
    /// Whether the answer has the pictures in it.
    send_images: Option<bool>,
    /// Names the task for `progress` and `interrupt`.
    force_task_id: Option<String>,
    /// `{"sd_model_checkpoint": NAME}` takes another model.
    #[schema(value_type = Option<Object>)]
    override_settings: Option<Value>,
}

/// A drawing from a picture: the fields of a drawing from words, and these.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ImageToImageBody {
    #[serde(flatten)]
    words: TextToImageBody,
    /// One picture in Base64, with or without `data:` before it.
    init_images: Vec<String>,
    /// How much of the schedule is run on it.
    denoising_strength: Option<f64>,
    /// Where this picture is white, it is drawn anew.
    mask: Option<String>,
    /// 1: where it is black.
    inpainting_mask_invert: Option<u8>,
    /// Repeat the pictures in the answer's `parameters`.
    include_init_images: Option<bool>,
}

/// What `txt2img` and `img2img` answer.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Reply {
    /// PNG files in Base64.
    pub(super) images: Vec<String>,
    /// The request's fields, and what was taken for those it left out.
    #[schema(value_type = Object)]
    pub(super) parameters: Map<String, Value>,
    /// An [`Info`] as a JSON string.
    pub(super) info: String,
}

/// What was drawn. Lists have an entry for each picture.
#[derive(Debug, Serialize)]
pub(super) struct Info<'a> {
    pub(super) prompt: &'a str,
    pub(super) all_prompts: Vec<&'a str>,
    pub(super) negative_prompt: &'a str,
    pub(super) all_negative_prompts: Vec<&'a str>,
    pub(super) seed: u64,
    pub(super) all_seeds: Vec<u64>,
    pub(super) subseed: i64,
    pub(super) all_subseeds: Vec<i64>,
    pub(super) subseed_strength: f32,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) sampler_name: &'a str,
    pub(super) cfg_scale: f32,
    pub(super) steps: u32,
    pub(super) batch_size: u64,
    pub(super) restore_faces: bool,
    pub(super) face_restoration_model: Option<&'a str>,
    pub(super) sd_model_name: &'a str,
    pub(super) sd_model_hash: &'a str,
    pub(super) sd_vae_name: Option<&'a str>,
    pub(super) sd_vae_hash: Option<&'a str>,
    pub(super) seed_resize_from_w: i32,
    pub(super) seed_resize_from_h: i32,
    pub(super) denoising_strength: Option<f64>,
    pub(super) extra_generation_params: Map<String, Value>,
    pub(super) index_of_first_image: u32,
    pub(super) infotexts: Vec<String>,
    pub(super) styles: Vec<&'a str>,
    pub(super) job_timestamp: String,
    pub(super) clip_skip: u32,
    pub(super) is_using_inpainting_conditioning: bool,
    pub(super) version: &'a str,
    /// Ours: the call was ended before all pictures were there.
    pub(super) interrupted: bool,
    /// Ours: by `skip`.
    pub(super) skipped: bool,
}

/// What `progress` answers.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ProgressReply {
    /// Between 0 and 1.
    pub(super) progress: f64,
    /// Seconds until all is drawn.
    pub(super) eta_relative: f64,
    pub(super) state: State,
    /// The newest preview: a PNG file in Base64.
    pub(super) current_image: Option<String>,
    /// For people.
    pub(super) textinfo: Option<String>,
}

/// Where a task is.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct State {
    pub(super) skipped: bool,
    pub(super) interrupted: bool,
    pub(super) stopping_generation: bool,
    /// The request's id, for the native API.
    pub(super) job: String,
    /// Pictures wanted; 0 if nothing runs.
    pub(super) job_count: u32,
    /// When it was accepted: seconds since the Unix epoch.
    pub(super) job_timestamp: String,
    /// Pictures finished.
    pub(super) job_no: u32,
    /// Steps done of the picture that has come farthest of those that are not finished.
    pub(super) sampling_step: u32,
    /// Steps of a picture.
    pub(super) sampling_steps: u32,
}

/// What `/internal/progress` answers.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TaskProgress {
    /// It runs.
    pub(super) active: bool,
    /// It waits.
    pub(super) queued: bool,
    /// Never.
    pub(super) paused: bool,
    /// It has ended.
    pub(super) completed: bool,
    /// Between 0 and 1.
    pub(super) progress: Option<f64>,
    /// Seconds until all is drawn.
    pub(super) eta: Option<f64>,
    /// A `data:` URL, if there is a newer preview than the client has.
    pub(super) live_preview: Option<String>,
    /// The number of the preview that the client now has.
    pub(super) id_live_preview: i64,
    /// For people.
    pub(super) textinfo: Option<String>,
}
