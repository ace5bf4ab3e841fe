//! What a request's events are in Gradio's words: messages for a session's stream, or the named events of
//! `/call`.
//!
//! Of what a request makes, the first message tells the full value and each later one what has changed
//! since the one before, as this reader had it. `/call` tells full values always.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::diff::{append, diff};
use super::files::{FilePath, file_data};
use crate::api::requests::Request;
use crate::api::sse::{Dialect, Frame, numbered};
use crate::events::{Event, EventKind, Failure};
use crate::job::RequestId;
use crate::time::Time;

/// What the stream looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `queue/data`: messages with the event's id, diffs.
    Session,
    /// `call/{api}/{id}`: named events with full values.
    Call,
}

/// See the module.
pub(super) struct GradioDialect {
    id: RequestId,
    form: Form,
    outputs: Outputs,
    /// Something of the outputs has been said.
    generating: bool,
    /// When it began.
    started: Option<Time>,
    /// How far each picture has come.
    progress: BTreeMap<u32, (u32, u32)>,
    /// Everything up to this event has been said.
    covered: u64,
}

/// What is made, and how much of it this reader has been told.
pub(super) enum Outputs {
    /// One text.
    Text {
        /// So far.
        text: String,
        /// Bytes of it that were said.
        said: usize,
    },
    /// A gallery and the seed of its first picture.
    Pictures {
        /// Where files are found.
        address: Arc<str>,
        /// The first picture's.
        seed: u64,
        /// The entry of each picture that can be seen.
        gallery: BTreeMap<u32, Value>,
        /// The gallery as it was said.
        said: Value,
    },
}

impl Outputs {
    /// Those of a request that has made nothing yet. `address` is where its client reaches the service.
    pub(super) fn of(request: &Request, address: Arc<str>) -> Self {
        match &request.picture {
            None => Outputs::Text {
                text: String::new(),
                said: 0,
            },
            Some(parameters) => Outputs::Pictures {
                address,
                seed: parameters.seed,
                gallery: BTreeMap::new(),
                said: Value::Null,
            },
        }
    }

    /// Takes in what an event says. Whether anything has changed.
    pub(super) fn take(&mut self, id: RequestId, kind: &EventKind) -> bool {
        match (self, kind) {
            (Outputs::Text { text, .. }, EventKind::Text { text: more, .. }) => {
                text.push_str(more);
                !more.is_empty()
            }
            (
                Outputs::Pictures {
                    address, gallery, ..
                },
                EventKind::Preview { choice, step, .. },
            ) => {
                let path = FilePath::Preview(id, *choice, *step);
                gallery.insert(*choice, entry(address, path, None));
                true
            }
            (
                Outputs::Pictures {
                    address, gallery, ..
                },
                EventKind::Image { choice, seed, .. },
            ) => {
                let path = FilePath::Picture(id, *choice);
                gallery.insert(*choice, entry(address, path, Some(*seed)));
                true
            }
            _ => false,
        }
    }

    /// The values in full, one for each output.
    pub(super) fn values(&self) -> Vec<Value> {
        match self {
            Outputs::Text { text, .. } => vec![text.as_str().into()],
            Outputs::Pictures { seed, gallery, .. } => {
                vec![gallery.values().cloned().collect(), (*seed).into()]
            }
        }
    }

    /// What has changed since the last call, one list of edits for each output.
    fn changes(&mut self) -> Vec<Value> {
        match self {
            Outputs::Text { text, said } => {
                let suffix = &text[std::mem::replace(said, text.len())..];
                vec![match suffix.is_empty() {
                    true => json!([]),
                    false => json!([append(suffix)]),
                }]
            }
            Outputs::Pictures { gallery, said, .. } => {
                let full: Value = gallery.values().cloned().collect();
                let edits = diff(said, &full);
                *said = full;
                vec![edits.into(), json!([])]
            }
        }
    }

    /// As [`values`](Self::values), and counts them as said.
    fn said_in_full(&mut self) -> Vec<Value> {
        self.changes();
        self.values()
    }
}

/// A picture of a gallery.
fn entry(address: &str, path: FilePath, seed: Option<u64>) -> Value {
    json!({
        "image": file_data(address, path),
        "caption": seed.map(|seed| format!("seed {seed}")),
    })
}

impl Dialect for GradioDialect {
    fn name(&self) -> &'static str {
        "gradio"
    }

    /// Events of one number were merged across each other and go into one frame.
    fn frames(&mut self, events: &[Event]) -> Vec<Frame> {
        let mut frames = Vec::new();
        for group in events.chunk_by(|one, next| one.seq == next.seq) {
            let said = self.frame(group).into_iter().collect();
            frames.extend(numbered(said, &mut self.covered, group[0].seq));
        }
        frames
    }

    /// The last of the outputs, and that they are complete.
    fn terminal_frames(&self) -> u32 {
        2
    }
}

impl GradioDialect {
    /// For a reader of `request` who reaches the service at `address`.
    pub(super) fn of(request: &Request, address: Arc<str>, form: Form) -> Self {
        GradioDialect {
            id: request.id,
            form,
            outputs: Outputs::of(request, address),
            generating: false,
            started: None,
            progress: BTreeMap::new(),
            covered: 0,
        }
    }

    fn frame(&mut self, group: &[Event]) -> Option<Frame> {
        let mut generated = false;
        let mut advanced = false;
        for event in group {
            match &event.kind {
                EventKind::Queued {
                    position,
                    waiting,
                    eta,
                } => return Some(self.estimation(*position, *waiting, *eta)),
                EventKind::Started => {
                    self.started = Some(event.at);
                    return self.starts();
                }
                EventKind::Finished { .. } => return Some(self.completed(event.at)),
                EventKind::Failed { failure, .. } => return Some(self.failed(failure)),
                EventKind::Progress {
                    choice,
                    step,
                    steps,
                    ..
                } => {
                    self.progress.insert(*choice, (*step, *steps));
                    advanced = true;
                }
                EventKind::Text { .. }
                | EventKind::Preview { .. }
                | EventKind::Image { .. }
                | EventKind::PromptLogprobs { .. }
                | EventKind::ChoiceFinished { .. } => {
                    generated |= self.outputs.take(self.id, &event.kind);
                }
            }
        }
        match (generated, advanced) {
            (true, _) => Some(self.generating(group.last()?.at)),
            (false, true) => Some(self.advanced()),
            (false, false) => None,
        }
    }

    fn estimation(&self, rank: u32, queue_size: u32, eta: Option<Duration>) -> Frame {
        let rank_eta = eta.map(|eta| eta.as_secs_f64());
        let body = json!({"rank": rank, "queue_size": queue_size, "rank_eta": rank_eta});
        self.told("estimation", body)
    }

    /// `/call` has no event for it.
    fn starts(&self) -> Option<Frame> {
        (self.form == Form::Session).then(|| self.told("process_starts", json!({"eta": null})))
    }

    fn advanced(&self) -> Frame {
        self.told(
            "progress",
            json!({"progress_data": progress(&self.progress)}),
        )
    }

    fn generating(&mut self, at: Time) -> Frame {
        let first = !std::mem::replace(&mut self.generating, true);
        if self.form == Form::Call {
            let values = Value::from(self.outputs.values());
            return frame(Some("generating"), &values);
        }
        let data = match first {
            true => self.outputs.said_in_full(),
            false => self.outputs.changes(),
        };
        let mut body = json!({
            "output": self.output(data, true, at),
            "success": true,
            "time_limit": null,
        });
        if !self.progress.is_empty() {
            body["progress_data"] = progress(&self.progress);
        }
        self.told("process_generating", body)
    }

    /// Also after a cancel: then the values are the last ones.
    fn completed(&self, at: Time) -> Frame {
        let values = self.outputs.values();
        if self.form == Form::Call {
            return frame(Some("complete"), &values.into());
        }
        let body = json!({"output": self.output(values, false, at), "success": true});
        self.told("process_completed", body)
    }

    fn failed(&self, failure: &Failure) -> Frame {
        let output = error_output(&failure.message);
        match self.form {
            Form::Call => frame(Some("error"), &output),
            Form::Session => self.told(
                "process_completed",
                json!({"output": output, "success": false}),
            ),
        }
    }

    fn output(&self, data: Vec<Value>, is_generating: bool, at: Time) -> Value {
        let duration = self
            .started
            .map(|started| at.saturating_since(started).as_secs_f64());
        json!({
            "data": data,
            "is_generating": is_generating,
            "duration": duration,
            "render_config": null,
            "changed_state_ids": [],
        })
    }

    fn told(&self, name: &'static str, mut body: Value) -> Frame {
        if self.form == Form::Call {
            return frame(Some(name), &body);
        }
        let rest = std::mem::take(body.as_object_mut().expect("an object"));
        let mut message = message(name, &self.id.to_string());
        message.as_object_mut().expect("an object").extend(rest);
        frame(None, &message)
    }
}

fn message(name: &str, event_id: &str) -> Value {
    json!({"msg": name, "event_id": event_id})
}

/// The last message of an event that has come to nothing.
pub(super) fn failed_message(event_id: &str, text: &str) -> Value {
    let mut message = message("process_completed", event_id);
    message["output"] = error_output(text);
    message["success"] = false.into();
    message
}

/// The Python client takes these fields for arguments of its exception, and no others.
fn error_output(text: &str) -> Value {
    json!({"error": text, "title": "Error", "duration": 10, "visible": true})
}

/// A unit for each picture.
fn progress(pictures: &BTreeMap<u32, (u32, u32)>) -> Value {
    let several = pictures.len() > 1;
    pictures
        .iter()
        .map(|(choice, (step, steps))| {
            let desc = several.then(|| format!("picture {}", choice + 1));
            json!({"index": step, "length": steps, "unit": "steps", "progress": null, "desc": desc})
        })
        .collect()
}

fn frame(event: Option<&'static str>, data: &Value) -> Frame {
    Frame {
        id: 0,
        event,
        data: data.to_string(),
        pictures: Vec::new(),
    }
}
