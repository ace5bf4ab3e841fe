//! Conversations from a file in ShareGPT's format.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::LoadError;

/// Conversations kept of a file.
const MAX_CONVERSATIONS: usize = 100_000;
/// The largest file that is read, in bytes.
const MAX_BYTES: u64 = 2 << 30;

/// One question and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// What the user said.
    pub question: String,
    /// Bytes of what was answered.
    pub answer_bytes: usize,
}

/// All that a file holds; at least one conversation, each of at least one exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversations {
    /// The file, for the report.
    pub name: String,
    /// Each.
    pub all: Arc<[Vec<Exchange>]>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    conversations: Vec<Said>,
}

#[derive(Deserialize)]
struct Said {
    from: String,
    value: String,
}

impl Conversations {
    /// Reads a JSON array of `{"conversations": [{"from": "human" | "gpt", "value": ".."}, ..]}`. What is not a
    /// question followed by its answer is left out.
    ///
    /// # Errors
    /// The file cannot be read, is too large, of another shape, or holds no question with an answer.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        let name = path.display().to_string();
        let size = std::fs::metadata(path)
            .map_err(LoadError::read(path))?
            .len();
        if size > MAX_BYTES {
            return Err(LoadError::wrong(format!(
                "{name} has {size} bytes; at most {MAX_BYTES} are read"
            )));
        }
        let text = std::fs::read_to_string(path).map_err(LoadError::read(path))?;
        let entries: Vec<Entry> = serde_json::from_str(&text)
            .map_err(|error| LoadError::wrong(format!("{name}: {error}")))?;
        let all: Vec<Vec<Exchange>> = entries
            .into_iter()
            .map(|entry| exchanges(&entry.conversations))
            .filter(|exchanges| !exchanges.is_empty())
            .take(MAX_CONVERSATIONS)
            .collect();
        match all.is_empty() {
            true => Err(LoadError::wrong(format!(
                "{name} holds no question with an answer"
            ))),
            false => Ok(Conversations {
                name,
                all: all.into(),
            }),
        }
    }
}

fn exchanges(said: &[Said]) -> Vec<Exchange> {
    let is = |said: &Said, names: [&str; 2]| names.contains(&said.from.as_str());
    let said: Vec<&Said> = said.iter().filter(|said| said.from != "system").collect();
    said.windows(2)
        .filter(|pair| is(pair[0], ["human", "user"]) && is(pair[1], ["gpt", "assistant"]))
        .filter(|pair| !pair[0].value.is_empty() && !pair[1].value.is_empty())
        .map(|pair| Exchange {
            question: pair[0].value.clone(),
            answer_bytes: pair[1].value.len(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_with_answers_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("share.json");
        let text = r#"[{"id": "1", "conversations": [{"from": "system", "value": "s"},
            {"from": "human", "value": "a?"}, {"from": "gpt", "value": "bcd"},
            {"from": "human", "value": "e?"}, {"from": "gpt", "value": ""}]},
            {"id": "2"}, {"conversations": [{"from": "gpt", "value": "x"}]}]"#;
        std::fs::write(&path, text).unwrap();
        let read = Conversations::read(&path).unwrap();
        let exchange = Exchange {
            question: "a?".into(),
            answer_bytes: 3,
        };
        assert_eq!(read.all[..], [vec![exchange]]);
        std::fs::write(&path, "[{}]").unwrap();
        assert!(Conversations::read(&path).is_err());
    }
}
