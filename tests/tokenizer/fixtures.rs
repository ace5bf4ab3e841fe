//! The archive of vocabularies and cases.

use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::sync::{Arc, LazyLock};

use candle_core::quantized::gguf_file::{Content, Value};
use girandole::model::text::tokenizer::TextTokenizer;
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use zip::ZipArchive;

pub(crate) type Metadata = HashMap<String, Value>;

/// `goldens.zip`, opened.
pub(crate) struct Fixtures(ZipArchive<Cursor<&'static [u8]>>);

impl Fixtures {
    pub(crate) fn open() -> Self {
        let archive: &[u8] = include_bytes!("../fixtures/tokenizer/goldens.zip");
        Fixtures(ZipArchive::new(Cursor::new(archive)).expect("the archive is whole"))
    }

    fn bytes(&mut self, name: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut file = self.0.by_name(name).expect(name);
        file.read_to_end(&mut bytes).expect(name);
        bytes
    }

    pub(crate) fn json<T: DeserializeOwned>(mut self, name: &str) -> T {
        serde_json::from_slice(&self.bytes(name)).expect(name)
    }

    pub(crate) fn gguf(mut self, name: &str) -> Content {
        Content::read(&mut Cursor::new(self.bytes(name))).expect(name)
    }

    pub(crate) fn gguf_tokenizer(self, name: &str) -> TextTokenizer {
        self.gguf_tokenizer_with(name, |_| {})
    }

    /// The tokenizer of a file whose metadata is changed first.
    pub(crate) fn gguf_tokenizer_with(
        self,
        name: &str,
        change: impl FnOnce(&mut Metadata),
    ) -> TextTokenizer {
        let mut content = self.gguf(name);
        change(&mut content.metadata);
        TextTokenizer::from_gguf(&content).expect(name)
    }

    /// A folder with the `tokenizer.json` of `name`.
    pub(crate) fn folder(mut self, name: &str) -> TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let bytes = self.bytes(&format!("{name}/tokenizer.json"));
        std::fs::write(folder.path().join("tokenizer.json"), bytes).expect("a writable folder");
        folder
    }
}

/// SmolLM2's tokenizer, built once.
pub(crate) fn smollm2() -> Arc<TextTokenizer> {
    static TOKENIZER: LazyLock<Arc<TextTokenizer>> =
        LazyLock::new(|| Arc::new(Fixtures::open().gguf_tokenizer("smollm2.gguf")));
    Arc::clone(&TOKENIZER)
}
