//! From events to OpenAI's image events.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{ImageShape, UsageBody, size_of};
use crate::api::error::{ApiError, ErrorShape};
use crate::api::milliseconds;
use crate::api::openai::ReplyShape;
use crate::api::openai::stream::cancelled;
use crate::api::picture_file::{DEFAULT_QUALITY, name_of};
use crate::api::picture_parameters::PictureParameters;
use crate::api::requests::Request;
use crate::api::sse::{Dialect, Frame, PICTURE, numbered};
use crate::batch::FinishReason;
use crate::events::{Event, EventKind};
use crate::picture::{Encoding, Picture};
use crate::time::Time;

/// One stream's state: what has been told so far.
pub(in crate::api) struct ImageDialect {
    shape: ImageShape,
    parameters: Arc<PictureParameters>,
    created: u64,
    accepted_at: Time,
    /// Partial images told of each picture.
    partials: Vec<u32>,
    /// Some picture was cancelled: the stream ends with an error, not with silence.
    cancelled: bool,
    /// Everything up to this event has been said.
    covered: u64,
}

/// The events' names, of generations and of edits.
struct Names {
    partial: &'static str,
    completed: &'static str,
    queued: &'static str,
    started: &'static str,
    progress: &'static str,
}

const GENERATION: Names = Names {
    partial: "image_generation.partial_image",
    completed: "image_generation.completed",
    queued: "image_generation.queued",
    started: "image_generation.started",
    progress: "image_generation.progress",
};

const EDIT: Names = Names {
    partial: "image_edit.partial_image",
    completed: "image_edit.completed",
    queued: "image_edit.queued",
    started: "image_edit.started",
    progress: "image_edit.progress",
};

impl ImageDialect {
    /// For a reader of `request`.
    ///
    /// # Panics
    /// If it draws nothing.
    pub(in crate::api) fn of(request: &Request) -> Self {
        let shape = request.openai.as_ref().and_then(ReplyShape::images);
        let shape = shape.cloned().unwrap_or_else(ImageShape::foreign);
        let parameters = request.picture.as_ref().expect("an image request");
        Self::new(
            shape,
            Arc::clone(parameters),
            request.created,
            request.accepted_at,
        )
    }

    fn new(
        shape: ImageShape,
        parameters: Arc<PictureParameters>,
        created: u64,
        accepted_at: Time,
    ) -> Self {
        ImageDialect {
            shape,
            partials: vec![0; parameters.images as usize],
            parameters,
            created,
            accepted_at,
            cancelled: false,
            covered: 0,
        }
    }

    fn names(&self) -> &'static Names {
        match self.shape.is_edit {
            true => &EDIT,
            false => &GENERATION,
        }
    }

    fn frame(&mut self, event: &Event) -> Option<Frame> {
        let names = self.names();
        match &event.kind {
            EventKind::Preview {
                choice,
                picture,
                kept: true,
                ..
            } => {
                let told = self.partials.get_mut(*choice as usize)?;
                let partial_image_index = *told;
                *told += 1;
                let mut data = self.picture_data(names.partial, event, *choice);
                data["partial_image_index"] = partial_image_index.into();
                let encoding = self.preview_encoding();
                Some(frame(names.partial, &data, Some((picture, encoding))))
            }
            EventKind::Image {
                choice,
                picture,
                seed,
            } => {
                let mut data = self.picture_data(names.completed, event, *choice);
                data["seed"] = (*seed).into();
                let used =
                    UsageBody::new(self.parameters.prompt_tokens, self.parameters.iterations);
                data["usage"] = serde_json::to_value(used).expect("plain data");
                let ImageShape {
                    format, quality, ..
                } = self.shape;
                let encoding = self.parameters.encoding(format, quality, *seed);
                Some(frame(names.completed, &data, Some((picture, encoding))))
            }
            EventKind::ChoiceFinished { reason, .. } => {
                self.cancelled |= *reason == FinishReason::Cancelled;
                None
            }
            EventKind::Failed { failure, .. } => Some(error_frame(&ApiError::from(failure))),
            EventKind::Finished { .. } => self.cancelled.then(|| error_frame(&cancelled())),
            kind => self.progress_frame(kind),
        }
    }

    /// What only those are told who ask for it.
    fn progress_frame(&self, kind: &EventKind) -> Option<Frame> {
        if !self.shape.include_progress {
            return None;
        }
        let names = self.names();
        let (name, data) = match kind {
            EventKind::Queued {
                position,
                waiting,
                eta,
            } => (
                names.queued,
                json!({
                    "type": names.queued,
                    "position": position,
                    "waiting": waiting,
                    "eta_ms": eta.map(milliseconds),
                }),
            ),
            EventKind::Started => (names.started, json!({"type": names.started})),
            EventKind::Progress {
                choice,
                step,
                steps,
                eta,
            } => (
                names.progress,
                json!({
                    "type": names.progress,
                    "image_index": choice,
                    "step": step,
                    "steps": steps,
                    "eta_ms": eta.map(milliseconds),
                }),
            ),
            _ => return None,
        };
        Some(frame(name, &data, None))
    }

    /// What partial and completed pictures have in common.
    fn picture_data(&self, name: &str, event: &Event, choice: u32) -> Value {
        let since = event.at.saturating_since(self.accepted_at);
        json!({
            "type": name,
            "b64_json": PICTURE,
            "created_at": self.created + since.as_secs(),
            "size": size_of(&self.parameters),
            "quality": "auto",
            "background": "opaque",
            "output_format": name_of(self.shape.format),
            "image_index": choice,
        })
    }

    /// A partial image has the picture's own size.
    fn preview_encoding(&self) -> Encoding {
        Encoding {
            format: self.shape.format,
            quality: self.shape.quality.min(DEFAULT_QUALITY),
            size: Some((self.parameters.width, self.parameters.height)),
            parameters: None,
        }
    }
}

fn frame(event: &'static str, data: &Value, picture: Option<(&Arc<Picture>, Encoding)>) -> Frame {
    Frame {
        id: 0,
        event: Some(event),
        data: data.to_string(),
        pictures: picture
            .map(|(picture, encoding)| (Arc::clone(picture), encoding))
            .into_iter()
            .collect(),
    }
}

fn error_frame(error: &ApiError) -> Frame {
    let mut data = error.body(ErrorShape::OpenAi);
    data["type"] = "error".into();
    frame("error", &data, None)
}

impl Dialect for ImageDialect {
    fn name(&self) -> &'static str {
        "openai"
    }

    fn frames(&mut self, events: &[Event]) -> Vec<Frame> {
        let mut frames = Vec::new();
        for group in events.chunk_by(|one, next| one.seq == next.seq) {
            let said = group.iter().filter_map(|event| self.frame(event)).collect();
            frames.extend(numbered(said, &mut self.covered, group[0].seq));
        }
        frames
    }

    /// The last partial images and the pictures, or an error.
    fn terminal_frames(&self) -> u32 {
        1 + self.parameters.images.min(8)
    }
}

#[cfg(test)]
mod tests;
