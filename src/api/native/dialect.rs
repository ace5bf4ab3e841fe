//! The native stream: one named event for each kind of news.
//!
//! `queued` {position, waiting, eta_ms}, `started` {}, `prompt_logprobs`, `text` {choices},
//! `choice_finished` {choices}, and last `finished` {usage} or `failed` {error, usage}. Of pictures
//! `progress`, `preview` and `image`, each with {images}.

use serde::Serialize;
use serde_json::json;

use super::gather::Gathered;
use super::wire::{
    ChoicesFrame, FailedFrame, FinishedFrame, PromptLogprobsFrame, Queued, UsageBody,
};
use super::wire_image::{DrawnImage, ImagesFrame, PreviewBody, ProgressBody};
use crate::api::error::{ApiError, ErrorShape};
use crate::api::picture_file::DEFAULT_QUALITY;
use crate::api::requests::Request;
use crate::api::sse::{Dialect, Frame, PICTURE, numbered};
use crate::events::{Event, EventKind};
use crate::job::RequestId;
use crate::picture::{Encoding, PictureFormat};

/// See the module.
pub(super) struct NativeDialect {
    id: RequestId,
    /// Whether the client asked for log-probabilities of new tokens.
    logprobs: bool,
    /// Everything up to this event has been said.
    covered: u64,
}

impl Dialect for NativeDialect {
    fn name(&self) -> &'static str {
        "native"
    }

    /// Events of one number were merged across each other and go into one frame.
    fn frames(&mut self, events: &[Event]) -> Vec<Frame> {
        let mut frames = Vec::new();
        for group in events.chunk_by(|one, next| one.seq == next.seq) {
            let said = match group.iter().any(|event| is_of_pictures(&event.kind)) {
                true => self.picture_frames(group),
                false => vec![self.frame(group)],
            };
            frames.extend(numbered(said, &mut self.covered, group[0].seq));
        }
        frames
    }

    /// The last text (or picture), the end of the answer, the end of the request.
    fn terminal_frames(&self) -> u32 {
        3
    }
}

/// Whether the event is told in a frame of pictures.
fn is_of_pictures(kind: &EventKind) -> bool {
    matches!(
        kind,
        EventKind::Progress { .. } | EventKind::Preview { .. } | EventKind::Image { .. }
    )
}

impl NativeDialect {
    /// For a reader of `request`.
    pub(super) fn of(request: &Request) -> Self {
        NativeDialect {
            id: request.id,
            logprobs: request.logprobs,
            covered: 0,
        }
    }

    /// What pictures have come to, one frame for each kind of news: how far, what they look like, which
    /// are there, which have ended.
    fn picture_frames(&self, group: &[Event]) -> Vec<Frame> {
        let id = group[0].seq;
        let mut progress = Vec::new();
        let mut previews = Vec::new();
        let mut shown = Vec::new();
        let mut drawn = Vec::new();
        let mut ends = Vec::new();
        for event in group {
            match &event.kind {
                EventKind::Progress {
                    choice,
                    step,
                    steps,
                    eta,
                } => progress.push(ProgressBody {
                    index: *choice,
                    step: *step,
                    steps: *steps,
                    eta_ms: eta.map(crate::api::milliseconds),
                }),
                EventKind::Preview {
                    choice,
                    step,
                    picture,
                    ..
                } => {
                    previews.push(PreviewBody {
                        index: *choice,
                        step: *step,
                        width: picture.width(),
                        height: picture.height(),
                        url: format!("data:image/png;base64,{PICTURE}"),
                    });
                    shown.push((std::sync::Arc::clone(picture), preview_encoding()));
                }
                EventKind::Image {
                    choice,
                    picture,
                    seed,
                } => drawn.push(DrawnImage::new(self.id, *choice, picture, *seed)),
                _ => ends.push(event.clone()),
            }
        }
        let mut frames = Vec::new();
        if !progress.is_empty() {
            frames.push(frame(id, "progress", &ImagesFrame { images: progress }));
        }
        if !previews.is_empty() {
            let previews = frame(id, "preview", &ImagesFrame { images: previews });
            frames.push(Frame {
                pictures: shown,
                ..previews
            });
        }
        if !drawn.is_empty() {
            frames.push(frame(id, "image", &ImagesFrame { images: drawn }));
        }
        if !ends.is_empty() {
            frames.push(self.output_frame(id, &ends));
        }
        frames
    }

    fn frame(&self, group: &[Event]) -> Frame {
        let id = group[0].seq;
        match &group[0].kind {
            EventKind::Queued {
                position,
                waiting,
                eta,
            } => frame(id, "queued", &queued(*position, *waiting, *eta)),
            EventKind::Started => frame(id, "started", &json!({})),
            EventKind::Finished { usage } => {
                let usage = UsageBody::from(*usage);
                frame(id, "finished", &FinishedFrame { usage })
            }
            EventKind::Failed { failure, usage } => {
                let data = FailedFrame {
                    error: ApiError::from(failure).body(ErrorShape::Native)["error"].take(),
                    usage: (*usage).into(),
                };
                frame(id, "failed", &data)
            }
            EventKind::Text { .. }
            | EventKind::Progress { .. }
            | EventKind::Preview { .. }
            | EventKind::Image { .. }
            | EventKind::ChoiceFinished { .. }
            | EventKind::PromptLogprobs { .. } => self.output_frame(id, group),
        }
    }

    fn output_frame(&self, id: u64, group: &[Event]) -> Frame {
        let mut gathered = Gathered::new(self.logprobs);
        for event in group {
            gathered.add(event);
        }
        let said = |wanted: fn(&EventKind) -> bool| group.iter().any(|event| wanted(&event.kind));
        if gathered.choices.is_empty() {
            let prompt_logprobs = gathered.prompt_logprobs.unwrap_or_default();
            let data = PromptLogprobsFrame { prompt_logprobs };
            return frame(id, "prompt_logprobs", &data);
        }
        let name = match said(|kind| matches!(kind, EventKind::Text { .. })) {
            true => "text",
            false => "choice_finished",
        };
        let data = ChoicesFrame {
            choices: gathered.choices.into_values().collect(),
            prompt_logprobs: gathered.prompt_logprobs,
        };
        frame(id, name, &data)
    }
}

/// Previews are small, and told as they are: browsers scale.
pub(in crate::api) fn preview_encoding() -> Encoding {
    Encoding {
        format: PictureFormat::Png,
        quality: DEFAULT_QUALITY,
        size: None,
        parameters: None,
    }
}

/// A place in the queue, as it stands on the wire.
pub(super) fn queued(position: u32, waiting: u32, eta: Option<std::time::Duration>) -> Queued {
    Queued {
        position,
        waiting,
        eta_ms: eta.map(crate::api::milliseconds),
    }
}

fn frame(id: u64, event: &'static str, data: &impl Serialize) -> Frame {
    Frame {
        id,
        event: Some(event),
        data: serde_json::to_string(data).expect("wire types have string keys only"),
        pictures: Vec::new(),
    }
}
