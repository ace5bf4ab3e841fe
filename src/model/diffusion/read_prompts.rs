//! Prompts read lately, so that who asks again, or asks for the same negative prompt as everybody, need not wait.

use std::sync::Arc;

use super::ReadPrompt;
use super::denoiser::Conditioning;

/// Prompts that are kept, whatever room they take: each is looked at when another comes.
const MAX_PROMPTS: usize = 256;

/// What the text encoders made of prompts, the latest used last, within so many bytes.
pub(super) struct ReadPrompts {
    kept: Vec<ReadPrompt>,
    max_bytes: usize,
}

impl ReadPrompts {
    /// Keeps at most so many bytes of states.
    pub(super) fn new(max_bytes: usize) -> Self {
        ReadPrompts {
            kept: Vec::new(),
            max_bytes,
        }
    }

    /// What that prompt became, if it is still there.
    pub(super) fn find(
        &mut self,
        is_same: impl Fn(&ReadPrompt) -> bool,
    ) -> Option<Arc<Conditioning>> {
        let place = self.kept.iter().position(is_same)?;
        let read = self.kept.remove(place);
        let conditioning = Arc::clone(&read.conditioning);
        self.kept.push(read);
        Some(conditioning)
    }

    /// Keeps one more; those that nobody has asked for the longest go for it. One that is too large is not kept.
    pub(super) fn keep(&mut self, read: ReadPrompt) {
        let bytes = read.conditioning.bytes();
        if bytes > self.max_bytes {
            return;
        }
        let mut held: usize = self.kept.iter().map(|read| read.conditioning.bytes()).sum();
        while held > self.max_bytes - bytes || self.kept.len() == MAX_PROMPTS {
            held -= self.kept.remove(0).conditioning.bytes();
        }
        self.kept.push(read);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::model::diffusion::denoiser::PromptSide;

    fn read(chunks: usize, tokens: usize) -> ReadPrompt {
        let context = Tensor::zeros((1, tokens, 8), DType::F32, &Device::Cpu).expect("small");
        ReadPrompt {
            prompt: Vec::new().into(),
            side: PromptSide::Positive,
            chunks,
            given: false,
            clip_skip: 0,
            conditioning: Arc::new(Conditioning {
                context,
                pooled: None,
            }),
        }
    }

    #[test]
    fn the_least_lately_used_go_when_bytes_run_out() {
        // Four of one token.
        let mut prompts = ReadPrompts::new(4 * 32);
        for chunks in 0..4 {
            prompts.keep(read(chunks, 1));
        }
        let is_kept = |prompts: &mut ReadPrompts, chunks: usize| {
            prompts.find(|read| read.chunks == chunks).is_some()
        };
        assert!(
            is_kept(&mut prompts, 0),
            "all fit, and the first is now the latest"
        );
        prompts.keep(read(4, 2));
        let kept = [3, 0, 4].map(|chunks| is_kept(&mut prompts, chunks));
        assert_eq!(kept, [true; 3]);
        assert!(!is_kept(&mut prompts, 1) && !is_kept(&mut prompts, 2));
        // Nothing is thrown out for what cannot be kept.
        prompts.keep(read(5, 5));
        assert!(!is_kept(&mut prompts, 5) && is_kept(&mut prompts, 4));
        let mut none = ReadPrompts::new(0);
        none.keep(read(0, 1));
        assert!(!is_kept(&mut none, 0));
    }

    #[test]
    fn so_many_prompts_at_most_are_kept() {
        let mut prompts = ReadPrompts::new(usize::MAX);
        for chunks in 0..=MAX_PROMPTS {
            prompts.keep(read(chunks, 1));
        }
        assert!(prompts.find(|read| read.chunks == 0).is_none());
        assert!(prompts.find(|read| read.chunks == 1).is_some());
    }
}
