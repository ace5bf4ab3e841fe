//! The engine under simulation and on its thread.

mod threaded;
