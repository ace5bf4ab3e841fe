//! A UNet whose passes of few rows are recorded on a card.
//!
//! A pass of few rows is over before the host has told the card of all its kernels; one of many keeps the card busy
//! for longer. So only the former are recorded, each shape by itself and without padding, which would cost as much as a
//! picture.

use std::cell::RefCell;

use candle_core::{Device, Tensor};

use super::{UNet, UNetConditions, UNetInputs};
use crate::model::device::graph::{GraphSwitch, StepGraph};

/// Rows, guided ones counting twice, up to which a pass is recorded.
const MOST_RECORDED_ROWS: usize = 4;
/// Shapes that are recorded; the one that was not met for longest makes room. Each keeps memory for its activations.
const MOST_RECORDED_SHAPES: usize = 8;

/// A UNet with the passes that were recorded of it.
pub struct RecordedUNet {
    unet: UNet,
    device: Device,
    switch: GraphSwitch,
    /// The shape met last comes last.
    passes: RefCell<Vec<RecordedPass>>,
}

/// A pass of one shape, in memory that stays where it is.
struct RecordedPass {
    inputs: UNetInputs,
    /// (rows, h, w, out) f32
    output: Tensor,
    graph: StepGraph,
}

impl RecordedUNet {
    /// A UNet on its device. `record`: if the device can.
    pub fn new(unet: UNet, device: &Device, record: bool) -> Self {
        RecordedUNet {
            unet,
            switch: GraphSwitch::new(record, device),
            device: device.clone(),
            passes: RefCell::default(),
        }
    }

    /// As [`UNet::forward`].
    ///
    /// # Errors
    /// As [`UNet::forward`].
    pub fn forward(
        &self,
        x: &Tensor,
        conditions: UNetConditions<'_>,
    ) -> candle_core::Result<Tensor> {
        let inputs = self.unet.inputs(x, conditions)?;
        if !self.switch.is_on() || x.dim(0)? > MOST_RECORDED_ROWS {
            return self.unet.run(&inputs);
        }
        self.run_in_place(&inputs)
    }

    /// The pass, computed where it can be recorded.
    fn run_in_place(&self, inputs: &UNetInputs) -> candle_core::Result<Tensor> {
        let mut passes = self.passes.borrow_mut();
        let mut pass = match passes
            .iter()
            .position(|pass| same_shapes(&pass.inputs, inputs))
        {
            Some(index) => passes.remove(index),
            None => self.new_pass(inputs)?,
        };
        for (place, values) in pass.inputs.tensors().zip(inputs.tensors()) {
            place.slice_set(&values.contiguous()?, 0, 0)?;
        }
        let (places, output) = (&pass.inputs, &pass.output);
        let body = || output.slice_set(&self.unet.run(places)?.contiguous()?, 0, 0);
        pass.graph.run(&self.switch, &self.device, &body)?;
        // The next pass of this shape writes over it.
        let output = pass.output.copy()?;
        if passes.len() >= MOST_RECORDED_SHAPES {
            passes.remove(0);
        }
        passes.push(pass);
        Ok(output)
    }

    fn new_pass(&self, inputs: &UNetInputs) -> candle_core::Result<RecordedPass> {
        let (rows, height, width, _) = inputs.x.dims4()?;
        let shape = (rows, height, width, self.unet.config().out_channels);
        Ok(RecordedPass {
            inputs: inputs.copy()?,
            output: Tensor::zeros(shape, candle_core::DType::F32, &self.device)?,
            graph: StepGraph::default(),
        })
    }

    /// The same pass in memory that stays where it is, on any device.
    ///
    /// # Errors
    /// As [`UNet::forward`].
    pub fn forward_in_place(
        &self,
        x: &Tensor,
        conditions: UNetConditions<'_>,
    ) -> candle_core::Result<Tensor> {
        self.run_in_place(&self.unet.inputs(x, conditions)?)
    }
}

fn same_shapes(one: &UNetInputs, other: &UNetInputs) -> bool {
    let shapes = |inputs: &UNetInputs| -> Vec<Vec<usize>> {
        inputs
            .tensors()
            .map(|tensor| tensor.dims().to_vec())
            .collect()
    };
    shapes(one) == shapes(other)
}
