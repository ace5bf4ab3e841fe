//! A step of a model as one order to the device: recorded once, then given whole.
//!
//! A step is hundreds of small kernels, and telling the card of each takes the host longer than many of them run. A
//! CUDA graph is all of them in one call. What is recorded is fixed: addresses, shapes and numbers. So the body of
//! a step takes whatever changes from tensors that are filled in place before it, writes its results into such, and drops
//! all else that it makes. There is one recording for each shape; it is made when the shape is met for the second
//! time, after a first time that loaded the kernels and uploaded what never changes. A device that cannot record runs
//! the body as it is; and when a recording fails, all do from then on.

use std::cell::Cell;

use candle_core::{Device, Result};

/// Whether steps are recorded.
#[derive(Debug)]
pub struct GraphSwitch {
    on: Cell<bool>,
}

impl GraphSwitch {
    /// On, if that is wanted and the device can record.
    pub fn new(wanted: bool, device: &Device) -> Self {
        GraphSwitch {
            on: Cell::new(wanted && cfg!(feature = "cuda") && device.is_cuda()),
        }
    }

    /// Whether steps are recorded, or will be.
    pub fn is_on(&self) -> bool {
        self.on.get()
    }
}

/// A step of one shape.
#[derive(Default)]
pub struct StepGraph {
    stage: Stage<imp::Recording>,
}

impl StepGraph {
    /// Runs `body` on the device, as it is or as it was recorded. It is called at most twice, and not at all once it is recorded.
    ///
    /// # Errors
    /// What `body` reports, or the device about the recording.
    pub fn run(
        &mut self,
        switch: &GraphSwitch,
        device: &Device,
        body: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        match imp::Recorder::of(device) {
            Some(recorder) => self.stage.run(switch, &recorder, body),
            None => body(),
        }
    }
}

/// How a device records.
trait Record {
    type Recording;

    /// Runs `body` so that it can be recorded afterwards.
    fn rehearse(&self, body: &dyn Fn() -> Result<()>) -> Result<()>;

    /// Records `body` without running it.
    fn record(&self, body: &dyn Fn() -> Result<()>) -> Result<Self::Recording>;

    /// Runs what was recorded.
    fn play(&self, recording: &Self::Recording) -> Result<()>;
}

/// How far a step is.
#[derive(Default)]
enum Stage<Recording> {
    #[default]
    New,
    Rehearsed,
    Recorded(Recording),
}

impl<Recording> Stage<Recording> {
    fn run(
        &mut self,
        switch: &GraphSwitch,
        recorder: &impl Record<Recording = Recording>,
        body: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        if !switch.is_on() {
            return body();
        }
        match self {
            Stage::New => {
                recorder.rehearse(body)?;
                *self = Stage::Rehearsed;
                Ok(())
            }
            Stage::Rehearsed => match recorder.record(body) {
                Ok(recording) => {
                    recorder.play(&recording)?;
                    *self = Stage::Recorded(recording);
                    Ok(())
                }
                Err(error) => {
                    switch.on.set(false);
                    let error = super::advice::explained(&error.to_string());
                    tracing::warn!(
                        error,
                        "a step cannot be recorded as a CUDA graph: none is any more"
                    );
                    body()
                }
            },
            Stage::Recorded(recording) => recorder.play(recording),
        }
    }
}

#[cfg(feature = "cuda")]
mod imp {
    use std::sync::Arc;

    use candle_core::cuda_backend::cudarc::driver::{CudaGraph, CudaStream, sys};
    use candle_core::{CudaDevice, Device, Error, Result};

    use super::Record;

    /// A recorded step.
    pub(super) type Recording = CudaGraph;

    /// Records what is told to a card's one stream.
    pub(super) struct Recorder<'a> {
        device: &'a CudaDevice,
        stream: Arc<CudaStream>,
    }

    impl<'a> Recorder<'a> {
        pub(super) fn of(device: &'a Device) -> Option<Self> {
            match device {
                Device::Cuda(device) => Some(Recorder {
                    stream: device.cuda_stream(),
                    device,
                }),
                _ => None,
            }
        }

        fn try_record(&self, body: &dyn Fn() -> Result<()>) -> Result<CudaGraph> {
            // Small uploads, of shapes above all, stay on the card from the rehearsal on. What is missing is an error.
            let _cache = self.device.enable_cuda_graph_htod_cache();
            // Other threads' calls neither join the recording nor spoil it.
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            self.stream.begin_capture(mode).map_err(Error::wrap)?;
            let told = body();
            // In any case: the stream does nothing before.
            let ended = self.stream.end_capture(auto_free());
            told?;
            match ended.map_err(Error::wrap)? {
                Some(graph) => Ok(graph),
                None => candle_core::bail!("nothing was recorded"),
            }
        }
    }

    /// What a step takes from the pool is given back before it is run the next time.
    fn auto_free() -> sys::CUgraphInstantiate_flags {
        sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH
    }

    impl Record for Recorder<'_> {
        type Recording = CudaGraph;

        fn rehearse(&self, body: &dyn Fn() -> Result<()>) -> Result<()> {
            let _cache = self.device.enable_cuda_graph_htod_cache();
            body()
        }

        fn record(&self, body: &dyn Fn() -> Result<()>) -> Result<CudaGraph> {
            self.try_record(body).inspect_err(|_| {
                // What was dropped while the recording was no good left a note, which the next call would find.
                let _ = self.stream.context().check_err();
            })
        }

        fn play(&self, graph: &CudaGraph) -> Result<()> {
            graph.launch().map_err(Error::wrap)
        }
    }
}

#[cfg(not(feature = "cuda"))]
mod imp {
    use std::convert::Infallible;

    use candle_core::{Device, Result};

    use super::Record;

    /// There is none.
    pub(super) type Recording = Infallible;

    /// There is none.
    pub(super) enum Recorder {}

    impl Recorder {
        pub(super) fn of(_device: &Device) -> Option<Self> {
            None
        }
    }

    impl Record for Recorder {
        type Recording = Infallible;

        fn rehearse(&self, _body: &dyn Fn() -> Result<()>) -> Result<()> {
            match *self {}
        }

        fn record(&self, _body: &dyn Fn() -> Result<()>) -> Result<Infallible> {
            match *self {}
        }

        fn play(&self, recording: &Infallible) -> Result<()> {
            match *recording {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::cell::RefCell;

    /// Notes what it is told; fails to record, or to play, if it is to.
    #[derive(Default)]
    struct Notes {
        told: RefCell<Vec<&'static str>>,
        cannot_record: bool,
        cannot_play: bool,
    }

    impl Notes {
        fn note(&self, word: &'static str) {
            self.told.borrow_mut().push(word);
        }
    }

    impl Record for Notes {
        type Recording = u8;

        fn rehearse(&self, body: &dyn Fn() -> Result<()>) -> Result<()> {
            self.note("rehearse");
            body()
        }

        fn record(&self, body: &dyn Fn() -> Result<()>) -> Result<u8> {
            self.note("record");
            if self.cannot_record {
                candle_core::bail!("no");
            }
            body().map(|()| 7)
        }

        fn play(&self, recording: &u8) -> Result<()> {
            assert_eq!(*recording, 7);
            self.note("play");
            match self.cannot_play {
                true => candle_core::bail!("out of memory"),
                false => Ok(()),
            }
        }
    }

    fn on() -> GraphSwitch {
        GraphSwitch {
            on: Cell::new(true),
        }
    }

    /// What is told to the device in so many steps of one shape.
    fn told(notes: &Notes, switch: &GraphSwitch, steps: usize) -> Vec<&'static str> {
        let mut stage = Stage::default();
        let body = || {
            notes.note("body");
            Ok(())
        };
        for _ in 0..steps {
            let ran = stage.run(switch, notes, &body);
            assert_eq!(
                ran.is_err(),
                notes.cannot_play && notes.told.borrow().ends_with(&["play"])
            );
        }
        notes.told.take()
    }

    #[test]
    fn a_step_is_recorded_when_it_comes_again_and_played_from_then_on() {
        let switch = on();
        let told = told(&Notes::default(), &switch, 4);
        assert_eq!(
            told,
            ["rehearse", "body", "record", "body", "play", "play", "play"]
        );
        assert!(switch.is_on());
    }

    #[test]
    fn what_cannot_be_recorded_is_run_as_it_is_and_nothing_is_recorded_any_more() {
        let notes = Notes {
            cannot_record: true,
            ..Notes::default()
        };
        let switch = on();
        assert_eq!(
            told(&notes, &switch, 4),
            ["rehearse", "body", "record", "body", "body", "body"]
        );
        assert!(!switch.is_on());
        assert_eq!(told(&notes, &switch, 2), ["body", "body"], "another shape");
    }

    #[test]
    fn an_error_of_the_device_is_told_and_ends_nothing() {
        let notes = Notes {
            cannot_play: true,
            ..Notes::default()
        };
        let switch = on();
        let told = told(&notes, &switch, 3);
        // Not known to be good, it is recorded once more.
        assert_eq!(
            told,
            [
                "rehearse", "body", "record", "body", "play", "record", "body", "play"
            ]
        );
        assert!(switch.is_on());
    }

    #[test]
    fn the_cpu_records_nothing() {
        let switch = GraphSwitch::new(true, &Device::Cpu);
        assert!(!switch.is_on());
        let calls = Cell::new(0);
        let body = || {
            calls.set(calls.get() + 1);
            Ok(())
        };
        let mut step = StepGraph::default();
        for _ in 0..3 {
            step.run(&switch, &Device::Cpu, &body).expect("it runs");
        }
        assert_eq!(calls.get(), 3);
    }
}
