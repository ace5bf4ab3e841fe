//! The decoder against references: Candle's stock models, transformers' recorded outputs, and itself in
//! other company.

mod decoding;
mod goldens;
mod smollm2;
