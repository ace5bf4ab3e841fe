//! The program as a user meets it: its command line, its configuration, where it gets models from,
//! how it starts and ends. Nothing here reaches beyond this machine: `python3` and the hub are
//! stand-ins.

mod bench;
mod configuration;
mod gpu_check;
mod hub;
mod measured;
mod prefix_cache;
mod reports;
mod sandbox;
mod service;
mod sources;
