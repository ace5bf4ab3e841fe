//! Text generation: the decoder, its paged cache, sampling, tokenizing and detokenizing.

pub mod chat_template;
pub mod detokenize;
pub mod sampling;
pub mod tokenizer;
