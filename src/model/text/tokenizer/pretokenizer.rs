//! Pre-tokenizers of byte-level vocabularies: how a text is cut before merging, by the names that
//! GGUF files use (`tokenizer.ggml.pre`).
//!
//! The expressions are those of the models' own `tokenizer.json` files; which name stands for which
//! is llama.cpp's convention (`src/llama-vocab.cpp`). Each expression in turn cuts the pieces that
//! the ones before it left; what none matches stays a piece of its own.

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

use super::TokenizerError;

/// How a text is cut, and what else the name implies.
#[derive(Clone, Copy, Debug)]
pub(super) struct PreTokenizer {
    patterns: &'static [&'static str],
    /// A piece that is a token as a whole is not merged from its bytes.
    pub(super) ignore_merges: bool,
    /// Texts start with the beginning-of-text token, unless the file says otherwise.
    pub(super) adds_beginning: bool,
}

impl PreTokenizer {
    /// The pre-tokenizer of this name; without a name, the one that llama.cpp takes then.
    ///
    /// # Errors
    /// An unknown name. Guessing would give a model that answers, but badly.
    pub(super) fn named(name: Option<&str>) -> Result<Self, TokenizerError> {
        let cut = |patterns| PreTokenizer {
            patterns,
            ignore_merges: false,
            adds_beginning: false,
        };
        Ok(match name.unwrap_or("default") {
            "default" => cut(&DEFAULT),
            "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling"
            | "gigachat" | "a.x-4.0" | "mellum" | "exaone4" => cut(&[GPT2]),
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone"
            | "minerva-7b" | "mellum2" => cut(&[DIGIT, GPT2]),
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral"
            | "midm-2.0" | "lfm2" => PreTokenizer {
                ignore_merges: true,
                adds_beginning: true,
                ..cut(&[LLAMA3])
            },
            "smaug-bpe" | "dbrx" | "chatglm-bpe" => cut(&[LLAMA3]),
            "glm4" => PreTokenizer {
                ignore_merges: true,
                ..cut(&[LLAMA3])
            },
            "qwen2" | "deepseek-r1-qwen" | "stablelm2" | "megrez" | "hunyuan" | "kormo"
            | "solar-open" | "grok-2" => cut(&[QWEN2]),
            "qwen35" => cut(&[QWEN35]),
            "tekken" => PreTokenizer {
                ignore_merges: true,
                adds_beginning: true,
                ..cut(&[TEKKEN])
            },
            "gpt-4o" | "llama4" | "kanana2" => cut(&[GPT4O]),
            "deepseek-llm" => cut(&DEEPSEEK_LLM),
            "deepseek-coder" => cut(&DEEPSEEK_CODER),
            "deepseek-v3" | "hunyuan-dense" => cut(&DEEPSEEK_V3),
            "falcon" => cut(&FALCON),
            "seed-coder" => cut(&[SEED_CODER]),
            other => {
                return Err(TokenizerError(format!(
                    "unknown pre-tokenizer {other:?} (tokenizer.ggml.pre)"
                )));
            }
        })
    }

    /// The pre-tokenizer as the `tokenizers` crate runs it: the cuts, then bytes as characters.
    pub(super) fn splitter(self) -> Result<PreTokenizerWrapper, TokenizerError> {
        let mut steps = self
            .patterns
            .iter()
            .map(|&pattern| {
                let pattern = SplitPattern::Regex(pattern.to_owned());
                Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                    .map(PreTokenizerWrapper::from)
                    .map_err(|error| TokenizerError(format!("pre-tokenizer: {error}")))
            })
            .collect::<Result<Vec<_>, _>>()?;
        steps.push(ByteLevel::new(false, false, false).into());
        Ok(Sequence::new(steps).into())
    }
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Digits one by one.
const DIGIT: &str = r"\p{N}";

const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// Qwen2's with combining marks counted as letters.
const QWEN35: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}",
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const SEED_CODER: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// What llama.cpp takes for files that were made before pre-tokenizers had names.
const DEFAULT: [&str; 4] = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"];

const FALCON: [&str; 3] = [r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"];

/// Chinese, Japanese and Korean characters as the older DeepSeek models have them, ranges and all.
const DEEPSEEK_CJK: &str = r"[\u{4E00}-\u{9FA5}\u{800}-\u{4E00}\u{AC00}-\u{D7FF}]+";

const DEEPSEEK_LLM: [&str; 6] = [
    r"[\r\n]",
    concat!(
        r"\s?[",
        // Cased letters, as listed in the model's own file.
        r"A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}",
        r"\u{295}-\u{2AF}\u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}",
        r"\u{388}-\u{38A}\u{38C}\u{38E}-\u{3A1}\u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}",
        r"\u{531}-\u{556}\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}",
        r"\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}\u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}",
        r"\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}",
        r"\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}",
        r"\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}",
        r"\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}",
        r"\u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}",
        r"\u{2145}-\u{2149}\u{214E}\u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}",
        r"\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\u{A680}-\u{A69B}\u{A722}-\u{A76F}",
        r"\u{A771}-\u{A787}\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}",
        r"\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}\u{10400}-\u{1044F}\u{104B0}-\u{104D3}",
        r"\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}",
        r"\u{1E900}-\u{1E943}",
        r"]+"
    ),
    concat!(
        r"\s?[!-/:-~\u{FF01}-\u{FF0F}\u{FF1A}-\u{FF5E}",
        r"\u{2018}-\u{201F}\u{3000}-\u{3002}]+"
    ),
    r"\s+$",
    DEEPSEEK_CJK,
    r"\p{N}+",
];

const DEEPSEEK_CODER: [&str; 5] = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, DIGIT];

const DEEPSEEK_V3: [&str; 3] = [
    r"\p{N}{1,3}",
    r"[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+",
    concat!(
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}\~][A-Za-z]+"##,
        r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    fn check(name: &str, text: &str, pieces: &[&str]) {
        let splitter = PreTokenizer::named(Some(name))
            .and_then(PreTokenizer::splitter)
            .expect("the name is known and its expressions are valid");
        let mut cut = PreTokenizedString::from(text);
        splitter
            .pre_tokenize(&mut cut)
            .expect("any text can be cut");
        let found: Vec<&str> = cut
            .get_splits(OffsetReferential::Original, OffsetType::Byte)
            .into_iter()
            .map(|(_, (start, end), _)| &text[start..end])
            .collect();
        assert_eq!(found, pieces, "{name}");
    }

    #[test]
    fn digits_are_cut_as_each_model_was_trained() {
        let text = "in 2024 it's";
        check(
            "smollm",
            text,
            &["in", " ", "2", "0", "2", "4", " it", "'s"],
        );
        check("gpt-2", text, &["in", " 2024", " it", "'s"]);
        check("llama-bpe", text, &["in", " ", "202", "4", " it", "'s"]);
        check("qwen2", text, &["in", " ", "2", "0", "2", "4", " it", "'s"]);
        check("falcon", text, &["in", " ", "202", "4", " it", "'", "s"]);
    }

    #[test]
    fn white_space_and_case_are_cut_as_each_model_was_trained() {
        check("smollm", "a  b\n\nc", &["a", " ", " b", "\n", "\n", "c"]);
        check("qwen2", "a  b\n\nc", &["a", " ", " b", "\n\n", "c"]);
        check("llama3", "I'LL  \n x", &["I", "'LL", "  \n", " x"]);
        check("tekken", "camelCase", &["camel", "Case"]);
        check("gpt-4o", "We'Ve 1234", &["We'Ve", " ", "123", "4"]);
        check("qwen35", "कि", &["कि"]);
        check("qwen2", "कि", &["क", "ि"]);
    }

    #[test]
    fn every_name_compiles_and_an_unknown_one_is_named() {
        for name in [
            "default",
            "deepseek-llm",
            "deepseek-coder",
            "deepseek-v3",
            "falcon",
            "seed-coder",
            "gpt-4o",
            "tekken",
            "qwen35",
            "glm4",
            "dbrx",
            "command-r",
            "stablelm2",
        ] {
            check(name, "", &[]);
            let pre_tokenizer = PreTokenizer::named(Some(name)).expect("a known name");
            assert!(pre_tokenizer.splitter().is_ok(), "{name}");
        }
        let error = PreTokenizer::named(Some("nosuch")).unwrap_err();
        assert!(error.to_string().contains("nosuch"));
    }
}
