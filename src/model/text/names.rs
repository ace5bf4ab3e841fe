//! Where each part of a decoder lies in a file: tensor names of GGUF and of Hugging Face's
//! safetensors, and which rows of a fused tensor belong to which part.

use std::fmt;

use super::config::{DecoderConfig, Family};

/// A weight matrix, `(rows, columns)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Matrix {
    /// Token embeddings.
    Embedding,
    /// The output head, if it is not the embedding.
    Head,
    /// A layer's query projection.
    Query,
    /// A layer's key projection.
    Key,
    /// A layer's value projection.
    Value,
    /// What brings attention back to the residual stream.
    AttentionOutput,
    /// The feed-forward layer's gate.
    Gate,
    /// The feed-forward layer's other half.
    Up,
    /// What brings the feed-forward layer back to the residual stream.
    Down,
}

/// A norm's weight vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Norm {
    /// Before the output head.
    Final,
    /// Before attention.
    Attention,
    /// On each query head.
    Query,
    /// On each key head.
    Key,
    /// After attention.
    PostAttention,
    /// Before the feed-forward layer.
    FeedForward,
    /// After the feed-forward layer.
    PostFeedForward,
}

/// How a file names its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// llama.cpp's names.
    Gguf,
    /// The names that transformers writes.
    HuggingFace,
}

/// Rows of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The tensor's name, without `.weight` or `.bias`.
    pub stem: String,
    /// The first row that belongs to the part.
    pub first_row: usize,
    /// How many rows belong to it.
    pub rows: usize,
    /// Rows of the whole tensor.
    pub total_rows: usize,
    /// Columns.
    pub columns: usize,
    /// The rows hold this many heads whose rotary pairs lie side by side and are to be put half a
    /// head apart (llama.cpp's order for the `llama` architecture).
    pub interleaved_heads: Option<usize>,
}

impl Place {
    /// Name of the weight tensor.
    pub fn weight(&self) -> String {
        format!("{}.weight", self.stem)
    }

    /// Name of the bias tensor.
    pub fn bias(&self) -> String {
        format!("{}.bias", self.stem)
    }

    /// The tensor's row that becomes row `row` of the part.
    pub fn source_row(&self, row: usize) -> usize {
        let row = match self.interleaved_heads {
            None => row,
            Some(heads) => {
                let head_dim = self.rows / heads;
                let (head, element) = (row / head_dim, row % head_dim);
                let half = head_dim / 2;
                head * head_dim + 2 * (element % half) + element / half
            }
        };
        self.first_row + row
    }

    /// Whether the part is the whole tensor, row by row.
    pub fn is_whole(&self) -> bool {
        self.rows == self.total_rows && self.interleaved_heads.is_none()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.stem)
    }
}

impl Naming {
    /// Where a matrix lies. `layer` is ignored for those outside the layers.
    pub fn matrix(self, config: &DecoderConfig, matrix: Matrix, layer: usize) -> Place {
        let (rows, columns) = shape(config, matrix);
        let whole = |stem: String| Place {
            stem,
            first_row: 0,
            rows,
            total_rows: rows,
            columns,
            interleaved_heads: None,
        };
        if let Some((stem, first_row, total_rows)) = self.fused(config, matrix) {
            return Place {
                first_row,
                total_rows,
                ..whole(self.in_layer(layer, stem))
            };
        }
        match self.outside_layers(matrix) {
            Some(stem) => whole(stem.into()),
            None => Place {
                interleaved_heads: self.interleaved_heads(config, matrix),
                ..whole(self.in_layer(layer, self.stem(matrix)))
            },
        }
    }

    /// Name of a norm's weights. `layer` is ignored for [`Norm::Final`].
    pub fn norm(self, family: Family, norm: Norm, layer: usize) -> String {
        let stem = match (self, norm) {
            (Naming::Gguf, Norm::Final) => return "output_norm.weight".into(),
            (Naming::HuggingFace, Norm::Final) => return "model.norm.weight".into(),
            (Naming::Gguf, Norm::Attention) => "attn_norm",
            (Naming::Gguf, Norm::Query) => "attn_q_norm",
            (Naming::Gguf, Norm::Key) => "attn_k_norm",
            (Naming::Gguf, Norm::PostAttention) => "post_attention_norm",
            (Naming::Gguf, Norm::FeedForward) => "ffn_norm",
            (Naming::Gguf, Norm::PostFeedForward) => "post_ffw_norm",
            (Naming::HuggingFace, Norm::Attention) => "input_layernorm",
            (Naming::HuggingFace, Norm::Query) => "self_attn.q_norm",
            (Naming::HuggingFace, Norm::Key) => "self_attn.k_norm",
            // The same name means the norm before the feed-forward layer in all other families.
            (Naming::HuggingFace, Norm::PostAttention) => "post_attention_layernorm",
            (Naming::HuggingFace, Norm::FeedForward) if family.is_gemma() => {
                "pre_feedforward_layernorm"
            }
            (Naming::HuggingFace, Norm::FeedForward) => "post_attention_layernorm",
            (Naming::HuggingFace, Norm::PostFeedForward) => "post_feedforward_layernorm",
        };
        format!("{}.weight", self.in_layer(layer, stem))
    }

    fn in_layer(self, layer: usize, stem: &str) -> String {
        match self {
            Naming::Gguf => format!("blk.{layer}.{stem}"),
            Naming::HuggingFace => format!("model.layers.{layer}.{stem}"),
        }
    }

    fn outside_layers(self, matrix: Matrix) -> Option<&'static str> {
        match (self, matrix) {
            (Naming::Gguf, Matrix::Embedding) => Some("token_embd"),
            (Naming::Gguf, Matrix::Head) => Some("output"),
            (Naming::HuggingFace, Matrix::Embedding) => Some("model.embed_tokens"),
            (Naming::HuggingFace, Matrix::Head) => Some("lm_head"),
            _ => None,
        }
    }

    fn stem(self, matrix: Matrix) -> &'static str {
        match (self, matrix) {
            (Naming::Gguf, Matrix::Query) => "attn_q",
            (Naming::Gguf, Matrix::Key) => "attn_k",
            (Naming::Gguf, Matrix::Value) => "attn_v",
            (Naming::Gguf, Matrix::AttentionOutput) => "attn_output",
            (Naming::Gguf, Matrix::Gate) => "ffn_gate",
            (Naming::Gguf, Matrix::Up) => "ffn_up",
            (Naming::Gguf, Matrix::Down) => "ffn_down",
            (Naming::HuggingFace, Matrix::Query) => "self_attn.q_proj",
            (Naming::HuggingFace, Matrix::Key) => "self_attn.k_proj",
            (Naming::HuggingFace, Matrix::Value) => "self_attn.v_proj",
            (Naming::HuggingFace, Matrix::AttentionOutput) => "self_attn.o_proj",
            (Naming::HuggingFace, Matrix::Gate) => "mlp.gate_proj",
            (Naming::HuggingFace, Matrix::Up) => "mlp.up_proj",
            (Naming::HuggingFace, Matrix::Down) => "mlp.down_proj",
            (_, Matrix::Embedding | Matrix::Head) => {
                unreachable!("named by outside_layers")
            }
        }
    }

    /// Phi-3 keeps query, key and value in one tensor, and gate and up in another: the tensor, the
    /// part's first row, and the tensor's rows.
    fn fused(self, config: &DecoderConfig, matrix: Matrix) -> Option<(&'static str, usize, usize)> {
        if config.family != Family::Phi3 {
            return None;
        }
        let (qkv, gate_up) = match self {
            Naming::Gguf => ("attn_qkv", "ffn_up"),
            Naming::HuggingFace => ("self_attn.qkv_proj", "mlp.gate_up_proj"),
        };
        let (query, kv, up) = (
            config.query_size(),
            config.kv_size(),
            config.intermediate_size,
        );
        match matrix {
            Matrix::Query => Some((qkv, 0, query + 2 * kv)),
            Matrix::Key => Some((qkv, query, query + 2 * kv)),
            Matrix::Value => Some((qkv, query + kv, query + 2 * kv)),
            Matrix::Gate => Some((gate_up, 0, 2 * up)),
            Matrix::Up => Some((gate_up, up, 2 * up)),
            _ => None,
        }
    }

    fn interleaved_heads(self, config: &DecoderConfig, matrix: Matrix) -> Option<usize> {
        if self != Naming::Gguf || config.family != Family::Llama {
            return None;
        }
        match matrix {
            Matrix::Query => Some(config.heads),
            Matrix::Key => Some(config.kv_heads),
            _ => None,
        }
    }
}

/// Rows and columns of a matrix.
fn shape(config: &DecoderConfig, matrix: Matrix) -> (usize, usize) {
    let hidden = config.hidden_size;
    match matrix {
        Matrix::Embedding | Matrix::Head => (config.vocab_size, hidden),
        Matrix::Query => (config.query_size(), hidden),
        Matrix::Key | Matrix::Value => (config.kv_size(), hidden),
        Matrix::AttentionOutput => (hidden, config.query_size()),
        Matrix::Gate | Matrix::Up => (config.intermediate_size, hidden),
        Matrix::Down => (hidden, config.intermediate_size),
    }
}

/// Whether a tensor that no part of the decoder uses may lie in the file all the same: tables that
/// are computed here, a tied head written out once more, and the half of an image model that sees.
pub fn is_expendable(name: &str, config: &DecoderConfig) -> bool {
    let tied_head = config.tied_head && name == "lm_head.weight";
    let computed = name.ends_with("rotary_emb.inv_freq") || name.starts_with("rope_f");
    let vision = [
        "vision_tower.",
        "multi_modal_projector.",
        "model.vision_tower.",
        "model.multi_modal_projector.",
    ]
    .iter()
    .any(|prefix| name.starts_with(prefix));
    tied_head || computed || vision
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::text::config::hugging_face;

    fn config(family: &str) -> DecoderConfig {
        hugging_face::parse(&json!({
            "model_type": family, "hidden_size": 64, "intermediate_size": 96,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "num_hidden_layers": 2, "vocab_size": 320, "max_position_embeddings": 256,
        }))
        .expect("valid")
    }

    #[test]
    fn phi_3s_parts_tile_its_fused_tensors() {
        let config = config("phi3");
        let place = |matrix| Naming::HuggingFace.matrix(&config, matrix, 1);
        let qkv = [Matrix::Query, Matrix::Key, Matrix::Value].map(place);
        let mut next = 0;
        for part in &qkv {
            assert_eq!(part.weight(), "model.layers.1.self_attn.qkv_proj.weight");
            assert_eq!(part.first_row, next);
            next += part.rows;
        }
        assert_eq!(next, qkv[0].total_rows);
        assert_eq!(place(Matrix::Up).first_row, 96);
        assert_eq!(place(Matrix::Up).total_rows, 192);
    }

    #[test]
    fn interleaved_rows_are_put_half_a_head_apart() {
        let config = config("llama");
        let place = Naming::Gguf.matrix(&config, Matrix::Key, 0);
        let rows: Vec<_> = (0..place.rows).map(|row| place.source_row(row)).collect();
        assert_eq!(rows[..8], [0, 2, 4, 6, 1, 3, 5, 7]);
        assert_eq!(rows[8..], [8, 10, 12, 14, 9, 11, 13, 15]);
        assert!(
            Naming::HuggingFace
                .matrix(&config, Matrix::Key, 0)
                .is_whole()
        );
    }
}
