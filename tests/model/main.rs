//! The decoder against references (Candle's stock models, transformers' recorded outputs), and the whole
//! text model against itself in other company.

mod company;
mod decoding;
mod diffusion_advice;
mod diffusion_flow;
mod diffusion_folders;
mod diffusion_networks;
mod gguf_files;
mod goldens;
mod loading;
mod picture_company;
mod pictures;
mod poison;
mod prefixes;
mod rows;
mod schedules;
mod serving;
mod single_file;
mod smollm2;
mod tiny_sd;
