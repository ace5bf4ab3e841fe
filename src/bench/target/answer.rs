//! Reads an answer as it comes in: what was told when, with as little parsing as that takes. A frame costs two or
//! three searches; only those that tell usage are parsed.

use serde::Deserialize;

use super::observation::{End, ErrorKind, Observation};
use super::sse::{Lines, after, field, says_something};
use crate::bench::results::Api;
use crate::time::Time;

/// Of the frames of pictures, which hold their bytes, so much is read.
const PICTURE_HEAD: usize = 512;
/// Of all other frames.
const TEXT_HEAD: usize = 64 << 10;
/// Of an answer's text, kept for the next turn.
const MAX_KEPT_TEXT: usize = 256 << 10;

/// What one piece of the stream brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// Text, or a step of a picture: what a user sees move.
    pub(super) content: bool,
    /// Microseconds since the content before it, if there was any.
    pub(super) gap_micros: Option<u64>,
}

/// An answer that is being read.
#[derive(Debug)]
pub(super) struct Answer {
    api: Api,
    draws: bool,
    lines: Lines,
    reading: Reading,
    seen: Observation,
    /// New tokens that were asked for.
    asked_tokens: u32,
}

/// What lines change.
#[derive(Debug, Default)]
struct Reading {
    /// The last `event:` line.
    event: Vec<u8>,
    content: bool,
    preview: bool,
    /// Tokens told one by one.
    tokens: u32,
    usage: Option<Usage>,
    finished: bool,
    finished_for_length: bool,
    failed: Option<End>,
    images: u32,
    /// The answer's text, if it is kept.
    text: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Usage {
    #[serde(default, alias = "input_tokens")]
    prompt_tokens: u32,
    #[serde(default, alias = "output_tokens")]
    completion_tokens: u32,
    /// Ours.
    cached_tokens: Option<u32>,
    #[serde(default)]
    prompt_tokens_details: Option<PromptDetails>,
    #[serde(default)]
    images: u32,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u32>,
}

#[derive(Deserialize)]
struct WithUsage {
    usage: Usage,
}

impl Answer {
    pub(super) fn new(
        api: Api,
        draws: bool,
        asked_tokens: u32,
        keep_text: bool,
        seen: Observation,
    ) -> Self {
        let head = if draws { PICTURE_HEAD } else { TEXT_HEAD };
        let reading = Reading {
            text: keep_text.then(String::new),
            ..Reading::default()
        };
        Answer {
            api,
            draws,
            lines: Lines::new(head),
            reading,
            seen,
            asked_tokens,
        }
    }

    /// Takes what came at a time. What comes at once counts as one arrival.
    pub(super) fn read(&mut self, bytes: &[u8], at: Time) -> News {
        self.reading.content = false;
        self.reading.preview = false;
        let (api, draws, reading) = (self.api, self.draws, &mut self.reading);
        self.lines
            .feed(bytes, |line| reading.line(api, draws, line));
        if self.reading.preview {
            self.seen.first_preview.get_or_insert(at);
        }
        if !self.reading.content {
            return News::default();
        }
        let gap_micros = self
            .seen
            .last
            .map(|last| at.saturating_since(last).as_micros() as u64);
        if let Some(gap) = gap_micros {
            self.seen.longest_gap_micros = self.seen.longest_gap_micros.max(gap);
        }
        self.seen.first.get_or_insert(at);
        self.seen.last = Some(at);
        News {
            content: true,
            gap_micros,
        }
    }

    /// When the first text came.
    pub(super) fn first(&self) -> Option<Time> {
        self.seen.first
    }

    /// The answer is over; `broken` if the connection was. Also its text, if it was kept.
    pub(super) fn close(mut self, at: Time, broken: bool) -> (Observation, Option<String>) {
        let reading = self.reading;
        self.seen.end = at;
        if let Some(usage) = reading.usage {
            let details = usage
                .prompt_tokens_details
                .and_then(|details| details.cached_tokens);
            self.seen.prompt_tokens = Some(usage.prompt_tokens);
            self.seen.cached_tokens = usage.cached_tokens.or(details);
        }
        let told = reading.usage.map_or(0, |usage| usage.completion_tokens);
        self.seen.output_tokens = match () {
            () if self.draws => 0,
            () if told == 0 => reading.tokens,
            () => told,
        };
        self.seen.images = reading
            .images
            .max(reading.usage.map_or(0, |usage| usage.images));
        let short = !self.draws && told > 0 && told < self.asked_tokens;
        self.seen.ended = match reading.failed {
            Some(failed) => failed,
            // Without `[DONE]` the end of the body is the end of the stream.
            None if broken => End::Truncated,
            None if !reading.finished => End::NoFinishReason,
            None if reading.finished_for_length && short => End::Truncated,
            None => End::Completed,
        };
        (self.seen, reading.text)
    }

    /// The answer ended in a way that no stream tells.
    pub(super) fn fail(mut self, at: Time, ended: End) -> Observation {
        self.seen.end = at;
        self.seen.output_tokens = if self.draws { 0 } else { self.reading.tokens };
        self.seen.ended = ended;
        self.seen
    }
}

impl Reading {
    fn line(&mut self, api: Api, draws: bool, line: &[u8]) {
        match field(line) {
            None if line.is_empty() => self.event.clear(),
            None => {}
            Some((b"event", name)) => {
                self.event.clear();
                self.event.extend_from_slice(&name[..name.len().min(64)]);
            }
            Some((b"data", data)) => match (api, draws) {
                (Api::Native, _) => self.native(data),
                (_, true) => self.openai_picture(data),
                (_, false) => self.openai_text(data),
            },
            Some(_) => {}
        }
    }

    fn openai_text(&mut self, data: &[u8]) {
        if data == b"[DONE]" {
            return;
        }
        let said = [
            &b"\"content\":"[..],
            b"\"text\":",
            b"\"reasoning_content\":",
            b"\"reasoning\":",
        ]
        .into_iter()
        .any(|name| says_something(data, name));
        if said {
            self.content = true;
            self.tokens += 1;
            self.keep(data);
        }
        if let Some(reason) =
            after(data, b"\"finish_reason\":").filter(|value| value.starts_with(b"\""))
        {
            self.finished = true;
            self.finished_for_length = reason.starts_with(b"\"length\"");
        }
        self.usage(data);
        if after(data, b"\"error\":")
            .is_some_and(|value| matches!(value.first(), Some(b'{' | b'"')))
        {
            self.failed = Some(End::Error(ErrorKind::Told));
        }
    }

    fn usage(&mut self, data: &[u8]) {
        if !after(data, b"\"usage\":").is_some_and(|value| value.starts_with(b"{")) {
            return;
        }
        match serde_json::from_slice::<WithUsage>(data) {
            Ok(with) => self.usage = Some(with.usage),
            Err(_) => self.failed = Some(End::Error(ErrorKind::Protocol)),
        }
    }

    /// OpenAI's: the name of the event is told twice, and early in the data.
    fn openai_picture(&mut self, data: &[u8]) {
        let is = |event: &[u8], kind: &[u8]| event.ends_with(kind);
        let event = match self.event.is_empty() {
            false => self.event.clone(),
            true => after(data, b"\"type\":")
                .and_then(|value| value.strip_prefix(b"\""))
                .and_then(|value| value.split(|byte| *byte == b'"').next())
                .unwrap_or_default()
                .to_vec(),
        };
        if is(&event, b".progress") {
            self.step();
        } else if is(&event, b".partial_image") {
            (self.preview, self.content) = (true, true);
        } else if is(&event, b".completed") {
            (self.preview, self.content, self.finished) = (true, true, true);
            self.images += 1;
        } else if is(&event, b"error") || after(data, b"\"error\":").is_some() {
            self.failed = Some(End::Error(ErrorKind::Told));
        }
    }

    fn native(&mut self, data: &[u8]) {
        match &self.event[..] {
            b"text" => {
                self.content = true;
                self.tokens += count_tokens(data);
                self.keep(data);
                self.native_finish(data);
            }
            b"choice_finished" => self.native_finish(data),
            b"progress" => self.step(),
            b"preview" => self.preview = true,
            b"image" => {
                (self.preview, self.content, self.finished) = (true, true, true);
                self.images += 1;
            }
            b"finished" => {
                self.usage(data);
                self.event.clear();
            }
            b"failed" => self.failed = Some(End::Error(ErrorKind::Told)),
            _ => {}
        }
    }

    fn native_finish(&mut self, data: &[u8]) {
        if let Some(reason) =
            after(data, b"\"finish_reason\":").filter(|value| value.starts_with(b"\""))
        {
            self.finished = true;
            self.finished_for_length = reason.starts_with(b"\"length\"");
        }
    }

    fn step(&mut self) {
        self.content = true;
        self.tokens += 1;
    }

    fn keep(&mut self, data: &[u8]) {
        let Some(text) = self.text.as_mut().filter(|text| text.len() < MAX_KEPT_TEXT) else {
            return;
        };
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(data) else {
            return;
        };
        let choice = &value["choices"][0];
        let said = [&choice["delta"]["content"], &choice["text"]];
        text.extend(said.into_iter().filter_map(serde_json::Value::as_str));
    }
}

/// Entries of the first `"tokens":[..]`.
fn count_tokens(data: &[u8]) -> u32 {
    let Some(list) = after(data, b"\"tokens\":").and_then(|value| value.strip_prefix(b"[")) else {
        return 0;
    };
    let end = memchr::memchr(b']', list).unwrap_or(list.len());
    match list[..end].is_empty() {
        true => 0,
        false => memchr::memchr_iter(b',', &list[..end]).count() as u32 + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_millis(millis)
    }

    fn read(api: Api, draws: bool, pieces: &[(u64, &str)], broken: bool) -> Observation {
        let mut answer = Answer::new(api, draws, 3, false, Observation::new(0, at(0), at(1)));
        for (millis, piece) in pieces {
            answer.read(piece.as_bytes(), at(*millis));
        }
        answer.close(at(900), broken).0
    }

    const ROLE: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}],\"usage\":null}\n\n";
    const WORD: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":null}],\"usage\":null}\n\n";
    const STOP: &str =
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":null}\n\n";
    const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3,\
                         \"total_tokens\":10,\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\ndata: [DONE]\n\n";

    #[test]
    fn a_chat_is_timed_by_its_words() {
        let seen = read(
            Api::OpenaiChat,
            false,
            &[
                (10, ROLE),
                (100, WORD),
                (120, WORD),
                (320, WORD),
                (330, STOP),
                (331, USAGE),
            ],
            false,
        );
        assert_eq!((seen.first, seen.last), (Some(at(100)), Some(at(320))));
        assert_eq!(seen.longest_gap_micros, 200_000);
        assert_eq!(
            (seen.prompt_tokens, seen.cached_tokens, seen.output_tokens),
            (Some(7), Some(4), 3)
        );
        assert_eq!(seen.ended, End::Completed);
    }

    #[test]
    fn how_it_ended_is_told_apart() {
        let length = STOP.replace("stop", "length");
        let failed = "data: {\"error\":{\"message\":\"x\"}}\n\n";
        let short = USAGE.replace("_tokens\":3", "_tokens\":2");
        for (pieces, broken, expected) in [
            (vec![WORD, STOP], false, End::Completed),
            (vec![WORD, &length, USAGE], false, End::Completed),
            (vec![WORD, &length, &short], false, End::Truncated),
            (vec![WORD, STOP, &short], false, End::Completed),
            (vec![WORD, "data: [DONE]\n\n"], false, End::NoFinishReason),
            (vec![WORD], true, End::Truncated),
            (vec![WORD, failed], false, End::Error(ErrorKind::Told)),
        ] {
            let pieces: Vec<(u64, &str)> = pieces.into_iter().map(|piece| (5, piece)).collect();
            assert_eq!(
                read(Api::OpenaiChat, false, &pieces, broken).ended,
                expected,
                "{pieces:?}"
            );
        }
    }

    #[test]
    fn native_events_are_read_by_their_names() {
        let text = "id: 3\nevent: text\ndata: {\"choices\":[{\"index\":0,\"text\":\"ab\",\"tokens\":[5,6],\"finish_reason\":null}]}\n\n";
        let end = "event: choice_finished\ndata: {\"choices\":[{\"index\":0,\"text\":\"\",\"tokens\":[],\"finish_reason\":\"length\"}]}\n\n";
        let usage = "event: finished\ndata: {\"usage\":{\"prompt_tokens\":9,\"cached_tokens\":0,\"completion_tokens\":4}}\n\n";
        let queued = "event: queued\ndata: {\"position\":0}\n\nevent: started\ndata: {}\n\n";
        let seen = read(
            Api::Native,
            false,
            &[(10, queued), (20, text), (70, text), (71, end), (72, usage)],
            false,
        );
        assert_eq!((seen.first, seen.last), (Some(at(20)), Some(at(70))));
        assert_eq!(
            (seen.output_tokens, seen.cached_tokens, seen.ended),
            (4, Some(0), End::Completed)
        );
        assert_eq!(
            read(Api::Native, false, &[(20, text)], false).ended,
            End::NoFinishReason
        );
    }

    #[test]
    fn pictures_are_read_without_their_bytes() {
        let bytes = "A".repeat(3_000_000);
        let partial = format!(
            "event: image_generation.partial_image\ndata: {{\"type\":\"image_generation.partial_image\",\"b64_json\":\"{bytes}\"}}\n\n"
        );
        let done = format!(
            "data: {{\"type\": \"image_generation.completed\",\"b64_json\":\"{bytes}\"}}\n\n"
        );
        let seen = read(
            Api::OpenaiImages,
            true,
            &[(40, &partial), (90, &done)],
            false,
        );
        assert_eq!(
            (seen.first_preview, seen.last),
            (Some(at(40)), Some(at(90)))
        );
        assert_eq!((seen.images, seen.ended), (1, End::Completed));
        let step = "event: progress\ndata: {\"images\":[{\"index\":0,\"step\":1,\"steps\":4}]}\n\n";
        let image = "event: image\ndata: {\"images\":[{\"index\":0,\"url\":\"/x\"}]}\n\nevent: finished\ndata: {\"usage\":{\"prompt_tokens\":0,\"cached_tokens\":0,\"completion_tokens\":0,\"images\":1}}\n\n";
        let seen = read(
            Api::Native,
            true,
            &[(10, step), (20, step), (40, image)],
            false,
        );
        assert_eq!(
            (seen.first, seen.images, seen.output_tokens),
            (Some(at(10)), 1, 0)
        );
        assert_eq!(
            (seen.first_preview, seen.ended),
            (Some(at(40)), End::Completed)
        );
    }
}
