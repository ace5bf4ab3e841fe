//! The `girandole` program.

fn main() {}
