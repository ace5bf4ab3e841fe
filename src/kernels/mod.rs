//! What stock Candle lacks, and the one home of `unsafe`.
