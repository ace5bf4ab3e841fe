//! What can be called: endpoints with their parameters, read off the served models.
//!
//! A text model has `/generate`, and `/chat` if it knows messages; an image model has `/txt2img` and
//! `/img2img`. The first model of a kind has the plain names. Where several of a kind are served, each has
//! a name of its own besides, the plain one with the model's behind it: `/chat_smollm2_135m_instruct`.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::ServedModel;
use crate::intake::{ImageIntake, Intake, TextIntake};

/// What an endpoint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Answers a message.
    Chat,
    /// Continues a text.
    Generate,
    /// Draws from words.
    TextToImage,
    /// Draws from a picture.
    ImageToImage,
}

/// One endpoint.
pub(super) struct Endpoint {
    /// Its number: clients call it `fn_index`.
    pub(super) fn_index: usize,
    /// Its name, without a slash.
    pub(super) api_name: String,
    /// What it does.
    pub(super) task: Task,
    /// With which model.
    pub(super) model: Arc<ServedModel>,
    /// What it takes, in order.
    pub(super) parameters: Vec<Parameter>,
}

/// A parameter of an endpoint.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parameter {
    /// By which clients name it.
    pub(super) name: &'static str,
    /// For people.
    pub(super) label: &'static str,
    /// What kind of value it takes.
    pub(super) component: Component,
    /// What it is if it is left out; `None` if it must not be.
    pub(super) default: Option<Value>,
}

/// The kinds of values, by the Gradio component that shows them.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Component {
    /// A string.
    Textbox,
    /// A number.
    Number,
    /// Any JSON.
    Json,
    /// One of these strings.
    Dropdown(Vec<String>),
    /// A picture's file.
    Image,
    /// A list of pictures' files with captions.
    Gallery,
}

impl Task {
    const ALL: [Task; 4] = [
        Task::Chat,
        Task::Generate,
        Task::TextToImage,
        Task::ImageToImage,
    ];

    /// The plain name of the endpoint.
    pub(super) fn name(self) -> &'static str {
        match self {
            Task::Chat => "chat",
            Task::Generate => "generate",
            Task::TextToImage => "txt2img",
            Task::ImageToImage => "img2img",
        }
    }

    /// What it gives back: label and kind of each output.
    pub(super) fn outputs(self) -> &'static [(&'static str, Component)] {
        match self {
            Task::Chat => &[("Response", Component::Textbox)],
            Task::Generate => &[("Text", Component::Textbox)],
            Task::TextToImage | Task::ImageToImage => &[
                ("Pictures", Component::Gallery),
                ("Seed", Component::Number),
            ],
        }
    }

    /// What it takes, if the model can do it.
    fn parameters(self, intake: &Intake) -> Option<Vec<Parameter>> {
        match (self, intake) {
            (Task::Chat, Intake::Text(text)) => text.template.as_ref().map(|_| chat(text)),
            (Task::Generate, Intake::Text(text)) => Some(generate(text)),
            (Task::TextToImage, Intake::Image(image)) => Some(text_to_image(image)),
            (Task::ImageToImage, Intake::Image(image)) => Some(image_to_image(image)),
            _ => None,
        }
    }
}

/// All endpoints of these models.
pub(super) fn endpoints(models: &[Arc<ServedModel>]) -> Vec<Arc<Endpoint>> {
    let mut endpoints: Vec<Arc<Endpoint>> = Vec::new();
    let mut names = HashSet::new();
    for task in Task::ALL {
        let able: Vec<_> = models
            .iter()
            .filter_map(|model| Some((model, task.parameters(&model.intake)?)))
            .collect();
        let plain = able.first().map(|first| (first, task.name().to_owned()));
        let several = able.len() > 1;
        let own = able
            .iter()
            .filter(|_| several)
            .map(|one| (one, own_name(task, &one.0.name)));
        for ((model, parameters), name) in plain.into_iter().chain(own) {
            // Two models' names may differ in nothing but their punctuation.
            let mut api_name = name.clone();
            let mut number = 2;
            while !names.insert(api_name.clone()) {
                api_name = format!("{name}_{number}");
                number += 1;
            }
            endpoints.push(Arc::new(Endpoint {
                fn_index: endpoints.len(),
                api_name,
                task,
                model: Arc::clone(model),
                parameters: parameters.clone(),
            }));
        }
    }
    endpoints
}

/// Letters, digits and underscores: one segment of a path, and a name in every language.
fn own_name(task: Task, model: &str) -> String {
    let plain = |character: char| match character.is_ascii_alphanumeric() {
        true => character.to_ascii_lowercase(),
        false => '_',
    };
    let model: String = model.chars().map(plain).collect();
    format!("{}_{model}", task.name())
}

fn required(name: &'static str, label: &'static str, component: Component) -> Parameter {
    Parameter {
        name,
        label,
        component,
        default: None,
    }
}

fn optional(
    name: &'static str,
    label: &'static str,
    component: Component,
    default: impl Into<Value>,
) -> Parameter {
    Parameter {
        default: Some(default.into()),
        ..required(name, label, component)
    }
}

/// 0.7 and not 0.699999988079071.
fn short(number: f32) -> Value {
    json!(number.to_string().parse::<f64>().unwrap_or_default())
}

/// In the order of `gr.ChatInterface`'s own endpoint with the additional inputs of Gradio's chat template, so
/// that calls by position go on to work; `seed` and `history` come after them.
fn chat(intake: &TextIntake) -> Vec<Parameter> {
    let mut parameters = vec![
        required("message", "Message", Component::Textbox),
        optional("system_message", "System message", Component::Textbox, ""),
    ];
    parameters.extend(sampling(intake));
    let history = optional("history", "History", Component::Json, json!([]));
    parameters.push(history);
    parameters
}

fn generate(intake: &TextIntake) -> Vec<Parameter> {
    let mut parameters = vec![required("prompt", "Prompt", Component::Textbox)];
    parameters.extend(sampling(intake));
    parameters
}

fn sampling(intake: &TextIntake) -> [Parameter; 4] {
    let defaults = &intake.defaults;
    let number = Component::Number;
    [
        optional(
            "max_tokens",
            "Max new tokens",
            number.clone(),
            defaults.max_tokens,
        ),
        optional(
            "temperature",
            "Temperature",
            number.clone(),
            short(defaults.temperature),
        ),
        optional("top_p", "Top-p", number.clone(), short(defaults.top_p)),
        optional("seed", "Seed", number, Value::Null),
    ]
}

fn text_to_image(intake: &ImageIntake) -> Vec<Parameter> {
    let defaults = &intake.defaults;
    let mut parameters = vec![required("prompt", "Prompt", Component::Textbox)];
    parameters.extend(drawing(intake, Some((defaults.width, defaults.height))));
    parameters
}

fn image_to_image(intake: &ImageIntake) -> Vec<Parameter> {
    let mut parameters = vec![
        required("image", "Image", Component::Image),
        required("prompt", "Prompt", Component::Textbox),
    ];
    parameters.extend(drawing(intake, None));
    parameters.push(optional(
        "strength",
        "Strength",
        Component::Number,
        intake.defaults.strength,
    ));
    parameters
}

/// Without a size of the model's own, that of the picture counts.
fn drawing(intake: &ImageIntake, size: Option<(u32, u32)>) -> [Parameter; 8] {
    let defaults = &intake.defaults;
    let number = || Component::Number;
    let names = intake.frontend.schedule_names();
    let schedules = names.iter().map(|(_, name)| (*name).to_owned()).collect();
    [
        optional(
            "negative_prompt",
            "Negative prompt",
            Component::Textbox,
            Value::Null,
        ),
        optional("width", "Width", number(), size.map(|size| size.0)),
        optional("height", "Height", number(), size.map(|size| size.1)),
        optional("steps", "Steps", number(), defaults.steps),
        optional(
            "guidance_scale",
            "Guidance scale",
            number(),
            short(defaults.guidance_scale),
        ),
        optional(
            "schedule",
            "Schedule",
            Component::Dropdown(schedules),
            Value::Null,
        ),
        optional("seed", "Seed", number(), Value::Null),
        optional("count", "Pictures", number(), 1),
    ]
}
