//! How many threads Candle's own kernels use. Candle reads that from the environment only.

/// The variables that Candle and rayon read when they first start a thread.
const VARIABLES: [&str; 2] = ["CANDLE_NUM_THREADS", "RAYON_NUM_THREADS"];

/// Tells Candle and rayon to use `threads` threads, where the user has not told them otherwise.
/// Returns whether it could: only on Linux, and only while the process has no second thread, so call
/// it first thing in `main`.
pub fn set_candle_threads(threads: usize) -> bool {
    if !is_single_threaded() {
        return false;
    }
    for name in VARIABLES {
        if std::env::var_os(name).is_none() {
            // SAFETY: writing the environment races with reads of other threads, and there are none.
            #[expect(unsafe_code, reason = "Candle has no other way to be told")]
            unsafe {
                std::env::set_var(name, threads.to_string());
            }
        }
    }
    true
}

/// Every thread has an entry in this folder.
fn is_single_threaded() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_more_threads_is_left_alone() {
        let before = VARIABLES.map(std::env::var_os);
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(!set_candle_threads(3)));
        });
        assert_eq!(VARIABLES.map(std::env::var_os), before);
    }
}
