//! What a pass asks of the machine: bytes to read and numbers to multiply, whatever the time it takes.
//!
//! Counted is what cannot be left out: every weight once a pass, as it is packed (includes tile padding),
//! the keys and values that a row sees once, and the products. Norms, rotary embedding, sampling and
//! activations, which stay in the caches, are left out; so are the rows of the embedding table.

use std::ops::{Add, AddAssign};

use super::config::DecoderConfig;
use crate::kernels::linear::{Arithmetic, Linear};

/// What some linear layers ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinearWork {
    /// Bytes of packed weights, read once a pass; the padding of their tiles included.
    pub weight_bytes: u64,
    /// Multiply-adds of 8-bit integers for each row.
    pub integer_products: u64,
    /// Multiply-adds of floating-point numbers for each row.
    pub float_products: u64,
}

impl LinearWork {
    /// What these layers ask for.
    pub fn of<'a>(layers: impl IntoIterator<Item = &'a Linear>) -> Self {
        let mut work = LinearWork::default();
        for layer in layers {
            let products = (layer.in_features() * layer.out_features()) as u64;
            work.weight_bytes += layer.weight_bytes() as u64;
            match layer.arithmetic() {
                Arithmetic::Integer => work.integer_products += products,
                Arithmetic::Float => work.float_products += products,
            }
        }
        work
    }

    /// Multiply-adds for each row.
    pub fn products(&self) -> u64 {
        self.integer_products + self.float_products
    }
}

impl Add for LinearWork {
    type Output = LinearWork;
    fn add(self, other: LinearWork) -> LinearWork {
        LinearWork {
            weight_bytes: self.weight_bytes + other.weight_bytes,
            integer_products: self.integer_products + other.integer_products,
            float_products: self.float_products + other.float_products,
        }
    }
}

/// What a decoder asks for, token by token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecoderWork {
    /// Layers that every token passes.
    pub every_token: LinearWork,
    /// Layers that only tokens pass whose logits are wanted: the last feed-forward layer and the head.
    pub wanted_tokens: LinearWork,
    /// How far each layer sees.
    windows: Vec<Option<usize>>,
    /// Multiply-adds of a token with one position that it sees, in one layer.
    products_per_seen: u64,
    /// Bytes of keys and values of one position in one layer.
    kv_bytes_per_seen: u64,
}

/// What one pass asks for. Operations count two for each multiply-add.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassWork {
    /// Bytes of weights.
    pub weight_bytes: u64,
    /// Bytes of keys and values.
    pub kv_bytes: u64,
    /// Operations on 8-bit integers.
    pub integer_operations: u64,
    /// Operations on floating-point numbers, those of attention included.
    pub float_operations: u64,
}

impl AddAssign for PassWork {
    fn add_assign(&mut self, other: PassWork) {
        self.weight_bytes += other.weight_bytes;
        self.kv_bytes += other.kv_bytes;
        self.integer_operations += other.integer_operations;
        self.float_operations += other.float_operations;
    }
}

impl DecoderWork {
    /// For a decoder of this shape. A number of the K/V cache takes `kv_bytes` bytes.
    pub fn new(
        config: &DecoderConfig,
        every_token: LinearWork,
        wanted_tokens: LinearWork,
        kv_bytes: usize,
    ) -> Self {
        DecoderWork {
            every_token,
            wanted_tokens,
            windows: config.layers.iter().map(|layer| layer.window).collect(),
            products_per_seen: (2 * config.heads * config.head_dim) as u64,
            kv_bytes_per_seen: (2 * config.kv_heads * config.head_dim * kv_bytes) as u64,
        }
    }

    /// Multiply-adds of the linear layers for a token whose logits are wanted.
    pub fn products_per_token(&self) -> u64 {
        self.every_token.products() + self.wanted_tokens.products()
    }

    /// Bytes of weights that a pass reads.
    pub fn weight_bytes(&self) -> u64 {
        self.every_token.weight_bytes + self.wanted_tokens.weight_bytes
    }

    /// A pass in which each of `rows` rows decodes one token at `position`.
    pub fn decode(&self, rows: u32, position: usize) -> PassWork {
        let rows = u64::from(rows);
        let (seen, read) = self.seen(position, 1);
        PassWork {
            weight_bytes: self.weight_bytes(),
            kv_bytes: rows * read * self.kv_bytes_per_seen,
            integer_operations: 2
                * rows
                * (self.every_token.integer_products + self.wanted_tokens.integer_products),
            float_operations: 2
                * rows
                * (self.every_token.float_products
                    + self.wanted_tokens.float_products
                    + seen * self.products_per_seen),
        }
    }

    /// A pass over a whole prompt of one row, of whose tokens the last one's logits are wanted.
    pub fn prefill(&self, tokens: u32) -> PassWork {
        let (seen, read) = self.seen(0, tokens as usize);
        let tokens = u64::from(tokens);
        let (every, wanted) = (&self.every_token, &self.wanted_tokens);
        PassWork {
            weight_bytes: self.weight_bytes(),
            kv_bytes: read * self.kv_bytes_per_seen,
            integer_operations: 2 * (tokens * every.integer_products + wanted.integer_products),
            float_operations: 2
                * (tokens * every.float_products
                    + wanted.float_products
                    + seen * self.products_per_seen),
        }
    }

    /// Over all layers, for `tokens` tokens of a row from position `first` on: pairs of a token and a
    /// position that it sees, and positions that anybody sees.
    fn seen(&self, first: usize, tokens: usize) -> (u64, u64) {
        let (mut pairs, mut read) = (0, 0);
        for window in &self.windows {
            let window = window.unwrap_or(usize::MAX);
            pairs += (first..first + tokens)
                .map(|position| (position + 1).min(window) as u64)
                .sum::<u64>();
            let earliest = (first + 1).saturating_sub(window);
            read += (first + tokens - earliest) as u64;
        }
        (pairs, read)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::text::config::hugging_face;

    fn linear(integer_products: u64, float_products: u64, weight_bytes: u64) -> LinearWork {
        LinearWork {
            weight_bytes,
            integer_products,
            float_products,
        }
    }

    /// Two layers, four heads of 16, two of keys and values; keys and values in two bytes.
    fn decoder(window: Option<usize>) -> DecoderWork {
        let mut config = hugging_face::parse(&json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
            "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
            "vocab_size": 256, "max_position_embeddings": 512,
        }))
        .expect("valid");
        config.layers[1].window = window;
        DecoderWork::new(&config, linear(1000, 10, 600), linear(0, 500, 2000), 2)
    }

    #[test]
    fn rows_share_the_weights_and_nothing_else() {
        let one = decoder(None).decode(1, 9);
        assert_eq!(one.weight_bytes, 2600);
        assert_eq!(one.integer_operations, 2 * 1000);
        // Two layers see ten positions of 64 numbers, for queries times keys and for weights times values.
        assert_eq!(one.float_operations, 2 * (510 + 2 * 10 * 2 * 64));
        assert_eq!(one.kv_bytes, 2 * 10 * 2 * 32 * 2);
        let five = decoder(None).decode(5, 9);
        assert_eq!(five.weight_bytes, one.weight_bytes);
        assert_eq!(five.kv_bytes, 5 * one.kv_bytes);
        assert_eq!(five.integer_operations, 5 * one.integer_operations);
        assert_eq!(five.float_operations, 5 * one.float_operations);
    }

    #[test]
    fn a_window_hides_what_lies_before_it() {
        let work = decoder(Some(4));
        assert_eq!(work.seen(9, 1), (10 + 4, 10 + 4));
        assert_eq!(work.seen(1, 1), (2 + 2, 2 + 2));
        assert_eq!(work.seen(0, 6), (21 + (1 + 2 + 3 + 4 + 4 + 4), 6 + 6));
    }

    #[test]
    fn a_prompt_asks_for_logits_once() {
        let pass = decoder(None).prefill(3);
        assert_eq!(pass.integer_operations, 2 * 3000);
        assert_eq!(pass.float_operations, 2 * (30 + 500 + 2 * 6 * 2 * 64));
        assert_eq!(pass.kv_bytes, 2 * 3 * 2 * 32 * 2);
    }
}
