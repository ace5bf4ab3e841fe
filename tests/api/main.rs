//! The HTTP edge from outside: a scripted model behind the real engine, spoken to on a free port.

mod crowd;
mod devices;
mod disconnects;
mod edges;
mod load;
mod pages;
mod picture_refusals;
mod pictures;
mod requests;
mod service;
mod session;
mod streams;
