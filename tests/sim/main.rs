//! The engine under simulation: the real scheduler, engine and logs with a scripted model, on time
//! that is moved by hand; and on its thread, with real time, what only a thread can get wrong.
//!
//! `GIRANDOLE_SIM_SEED=n cargo test --test sim random` repeats one run of the random traffic.

mod crowd;
mod crowd_forecasts;
mod devices;
mod faults;
mod fleet;
mod forecasts;
mod gallery;
mod log;
mod order;
mod pictures;
mod random;
mod rules;
mod scarcity;
mod several;
mod threaded;
mod watched;
mod world;
