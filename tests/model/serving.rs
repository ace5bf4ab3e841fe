//! Drives a whole text model the way the engine does, step by step.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use girandole::batch::{Emission, Next, Phase, PlannedRow, Slot, TokenLogprob};
use girandole::job::{Job, TextJob};
use girandole::model::Model;
use girandole::model::device::{DeviceSpec, FloatType};
use girandole::model::loader::{TextAssets, build, load_assets};
use girandole::model::manifest::ModelFiles;
use girandole::model::text::options::TextOptions;

/// More steps than any test needs: a row that never ends is a failure.
const MAX_STEPS: usize = 2000;

/// What a row said, and how it ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Said {
    pub(crate) text: String,
    pub(crate) tokens: Vec<u32>,
    /// Bits of the log-probabilities of each token and its rivals.
    pub(crate) logprob_bits: Vec<u32>,
    pub(crate) prompt: Vec<TokenLogprobBits>,
    pub(crate) end: Option<Next>,
}

/// A [`TokenLogprob`] whose equality is that of bits.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TokenLogprobBits {
    pub(crate) token: u32,
    pub(crate) bits: u32,
    pub(crate) top: Vec<(u32, u32)>,
}

impl From<&TokenLogprob> for TokenLogprobBits {
    fn from(logprob: &TokenLogprob) -> Self {
        TokenLogprobBits {
            token: logprob.token,
            bits: logprob.logprob.to_bits(),
            top: logprob
                .top
                .iter()
                .map(|(token, _, logprob)| (*token, logprob.to_bits()))
                .collect(),
        }
    }
}

/// A row on its way through a model.
pub(crate) struct Guest {
    pub(crate) job: Arc<Job>,
    pub(crate) slot: Slot,
    /// Prompt tokens a step.
    pub(crate) chunk: u32,
    /// The step at which it comes.
    pub(crate) arrival: usize,
    /// The step at which it is retired, whatever it is doing.
    pub(crate) departure: Option<usize>,
}

impl Guest {
    pub(crate) fn new(slot: u32, job: TextJob) -> Self {
        Guest {
            job: Arc::new(Job::Text(job)),
            slot: Slot(slot),
            chunk: u32::MAX,
            arrival: 0,
            departure: None,
        }
    }
}

/// Runs the guests to their ends. `shuffle` orders the rows of each pass.
pub(crate) fn run(
    model: &mut dyn Model,
    guests: &[Guest],
    mut shuffle: impl FnMut(&mut Vec<PlannedRow>),
) -> Vec<Said> {
    let mut said = vec![Said::default(); guests.len()];
    // Guest by slot, with the prompt tokens that are left.
    let mut present: BTreeMap<Slot, (usize, u32)> = BTreeMap::new();
    let mut to_come: Vec<usize> = (0..guests.len()).collect();
    for step in 0..MAX_STEPS {
        to_come.retain(|&guest| {
            let Guest { job, slot, .. } = &guests[guest];
            if guests[guest].arrival > step || present.contains_key(slot) {
                return true;
            }
            let admitted = model.admit(*slot, job, 0).expect("room for the guest");
            let rest = model.cost(job).begin_work - admitted.begin_work_done;
            present.insert(*slot, (guest, rest));
            false
        });
        present.retain(|slot, (guest, _)| {
            let stays = guests[*guest].departure.is_none_or(|at| step < at);
            if !stays {
                model.retire(*slot);
            }
            stays
        });
        if present.is_empty() {
            if to_come.is_empty() {
                return said;
            }
            continue;
        }
        let mut plan: Vec<PlannedRow> = present
            .iter_mut()
            .map(|(slot, (guest, rest))| {
                let work = guests[*guest].chunk.min(*rest);
                let (phase, work) = match *rest {
                    0 => (Phase::Iterate, 1),
                    _ => (Phase::Begin, work),
                };
                *rest -= work.min(*rest);
                PlannedRow {
                    slot: *slot,
                    phase,
                    work,
                }
            })
            .collect();
        shuffle(&mut plan);
        let outcomes = model.step(&plan).expect("a pass");
        assert_eq!(
            outcomes.iter().map(|o| o.slot).collect::<Vec<_>>(),
            plan.iter().map(|p| p.slot).collect::<Vec<_>>(),
            "outcomes come in the plan's order"
        );
        for outcome in outcomes {
            let guest = present[&outcome.slot].0;
            let said = &mut said[guest];
            for emission in &outcome.emitted {
                listen(said, emission);
            }
            if !matches!(outcome.next, Next::Continue(_)) {
                said.end = Some(outcome.next);
                present.remove(&outcome.slot);
                model.retire(outcome.slot);
            }
        }
    }
    panic!("the rows never ended");
}

fn listen(said: &mut Said, emission: &Emission) {
    match emission {
        Emission::Text {
            text,
            tokens,
            logprobs,
        } => {
            said.text.push_str(text);
            said.tokens.extend(tokens);
            for logprob in logprobs {
                let bits = TokenLogprobBits::from(logprob);
                said.logprob_bits.push(bits.bits);
                said.logprob_bits
                    .extend(bits.top.iter().map(|(_, bits)| bits));
            }
        }
        Emission::PromptLogprobs(list) => said.prompt.extend(list.iter().map(Into::into)),
        drawn => panic!("a text model said {drawn:?}"),
    }
}

/// One job alone in slot 0, its prompt in one piece.
pub(crate) fn alone(model: &mut dyn Model, job: TextJob) -> Said {
    run(model, &[Guest::new(0, job)], |_| {}).remove(0)
}

/// A small model with random weights, whose tokens are bytes.
pub(crate) fn dummy_assets(folder: &Path) -> TextAssets {
    let config = folder.join("config.json");
    std::fs::write(
        &config,
        r#"{"model_type": "qwen3", "hidden_size": 64, "intermediate_size": 128,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "num_hidden_layers": 2, "vocab_size": 272, "max_position_embeddings": 512}"#,
    )
    .expect("the folder can be written");
    load_assets(&ModelFiles::Dummy { config, seed: 11 }).expect("a known family")
}

/// Options for so many slots.
pub(crate) fn options(batch_size: u32) -> TextOptions {
    TextOptions {
        batch_size,
        ..TextOptions::default()
    }
}

/// The same without a prefix cache: what a row alone is compared with has to be computed.
pub(crate) fn plain_options(batch_size: u32) -> TextOptions {
    TextOptions {
        prefix_cache_tokens: Some(0),
        ..options(batch_size)
    }
}

/// The small random model with weights of this type.
pub(crate) fn dummy_model(dtype: FloatType, batch_size: u32) -> Box<dyn Model> {
    build_dummy(dtype, options(batch_size))
}

/// The same without a prefix cache.
pub(crate) fn plain_dummy_model(dtype: FloatType, batch_size: u32) -> Box<dyn Model> {
    build_dummy(dtype, plain_options(batch_size))
}

fn build_dummy(dtype: FloatType, options: TextOptions) -> Box<dyn Model> {
    let folder = tempfile::tempdir().expect("a folder");
    let assets = dummy_assets(folder.path());
    let options = TextOptions {
        dtype: Some(dtype),
        ..options
    };
    build(&assets, DeviceSpec::Cpu, &options).expect("weights")
}
