//! The prefix cache changes what is computed, and no bit of what is said.

use std::sync::Arc;

use candle_core::Device;
use girandole::batch::{Capacity, Next, Phase, PlannedRow, RowCost, RowOutcome, Slot};
use girandole::job::{CacheSalt, Job, Sampling, TextJob};
use girandole::model::device::{DeviceSpec, FloatType};
use girandole::model::loader::build;
use girandole::model::text::TextModel;
use girandole::model::text::decoder::Decoder;
use girandole::model::text::options::TextOptions;
use girandole::model::text::tokenizer::TextTokenizer;
use girandole::model::text::weights::safetensors::SafetensorsWeights;
use girandole::model::{Admitted, CacheReport, Model, ModelError};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::goldens::{config, fixture};
use crate::serving::{Guest, Said, alone, dummy_assets, run};

const SLOTS: u32 = 4;
/// Small enough that rows which come and go evict what others left.
const CACHE_TOKENS: u32 = 1_024;

/// Counts what a model finds in its prefix cache.
struct Counting {
    model: Box<dyn Model>,
    found: u32,
}

impl Model for Counting {
    fn capacity(&self) -> Capacity {
        self.model.capacity()
    }
    fn key(&self, job: &Job) -> girandole::batch::BatchKey {
        self.model.key(job)
    }
    fn cost(&self, job: &Job) -> RowCost {
        self.model.cost(job)
    }
    fn admit(&mut self, slot: Slot, job: &Arc<Job>, choice: u32) -> Result<Admitted, ModelError> {
        let admitted = self.model.admit(slot, job, choice)?;
        self.found += admitted.begin_work_done;
        Ok(admitted)
    }
    fn step(&mut self, rows: &[PlannedRow]) -> Result<Vec<RowOutcome>, ModelError> {
        self.model.step(rows)
    }
    fn retire(&mut self, slot: Slot) {
        self.model.retire(slot);
    }
    fn cache_report(&self) -> CacheReport {
        self.model.cache_report()
    }
}

/// Tokens that a row of this job would find; it takes nothing.
pub(crate) fn found(model: &mut dyn Model, job: &TextJob) -> u32 {
    let slot = Slot(0);
    let job = Arc::new(Job::Text(job.clone()));
    let admitted = model.admit(slot, &job, 0).expect("room for it");
    model.retire(slot);
    admitted.begin_work_done
}

fn options(kv_dtype: FloatType, prefix_cache_tokens: u32) -> TextOptions {
    TextOptions {
        kv_cache_tokens: Some(CACHE_TOKENS),
        prefix_cache_tokens: Some(prefix_cache_tokens),
        kv_dtype: Some(kv_dtype),
        ..crate::serving::options(SLOTS)
    }
}

/// The small random model.
fn dummy(dtype: FloatType, kv_dtype: FloatType, prefix_cache_tokens: u32) -> Box<dyn Model> {
    let folder = tempfile::tempdir().expect("a folder");
    let options = TextOptions {
        dtype: Some(dtype),
        ..options(kv_dtype, prefix_cache_tokens)
    };
    build(&dummy_assets(folder.path()), DeviceSpec::Cpu, &options).expect("weights")
}

fn plain_dummy(prefix_cache_tokens: u32) -> Box<dyn Model> {
    dummy(FloatType::F32, FloatType::F32, prefix_cache_tokens)
}

/// A family's fixture as a whole model, whose tokens are bytes.
fn family(name: &str, kv_dtype: FloatType, prefix_cache_tokens: u32) -> Box<dyn Model> {
    let config = config(name);
    let options = options(kv_dtype, prefix_cache_tokens);
    let kv = options.kv_shape(&config, DeviceSpec::Cpu).expect("valid");
    let mut source =
        SafetensorsWeights::open(&fixture(name), None, &Device::Cpu).expect("the fixture");
    let decoder = Decoder::load(&config, &mut source, &kv).expect("complete");
    let tokenizer = Arc::new(TextTokenizer::bytes(config.vocab_size as u32));
    let kept = options.prefix_cache_blocks(&kv);
    Box::new(TextModel::new(decoder, tokenizer, SLOTS, &kv, kept))
}

/// A job whose output shows the smallest change of any logit.
fn telling(prompt: impl Into<Arc<[u32]>>, max_tokens: u32) -> TextJob {
    TextJob {
        ignore_eos: true,
        logprobs: Some(3),
        ..TextJob::greedy(prompt, max_tokens)
    }
}

fn below(random: &mut ChaCha8Rng, limit: u32) -> u32 {
    random.next_u32() % limit
}

/// One of a few beginnings, cut anywhere, and an end of its own.
fn random_job(random: &mut ChaCha8Rng) -> TextJob {
    let beginning = below(random, 3);
    let mut prompt: Vec<u32> = (0..1 + below(random, 110))
        .map(|i| (i * 7 + beginning * 31) % 256)
        .collect();
    prompt.extend((0..below(random, 4)).map(|_| below(random, 256)));
    TextJob {
        prompt_logprobs: (below(random, 6) == 0).then_some(1),
        sampling: Sampling {
            temperature: [0.0, 1.0][below(random, 2) as usize],
            seed: u64::from(below(random, 3)),
            ..Sampling::default()
        },
        cache_salt: CacheSalt([below(random, 2) as u8; 32]),
        ..telling(prompt, 1 + below(random, 60))
    }
}

/// Guests who begin alike, alone and in company, in a model with a prefix cache, against each of them
/// alone in one without.
fn check_hits(caching: Box<dyn Model>, mut plain: Box<dyn Model>, seed: u64) {
    eprintln!("seed {seed}");
    let mut caching = Counting {
        model: caching,
        found: 0,
    };
    let random = &mut ChaCha8Rng::seed_from_u64(seed);
    let guests: Vec<Guest> = (0..20)
        .map(|_| Guest {
            chunk: 1 + below(random, 60),
            arrival: below(random, 60) as usize,
            ..Guest::new(below(random, SLOTS), random_job(random))
        })
        .collect();
    let together = run(&mut caching, &guests, |_| {});
    assert!(caching.found > 0, "some found something in company");
    let in_company = caching.found;
    for (guest, together) in guests.iter().zip(&together) {
        let job = guest.job.text();
        let expected = alone(&mut *plain, job.clone());
        assert!(expected.end.is_some());
        assert_eq!(*together, expected);
        assert_eq!(alone(&mut caching, job.clone()), expected);
    }
    assert!(caching.found > in_company, "and alone");
    assert!(caching.cache_report().evicted > 0, "not all could be kept");
}

#[test]
fn hits_change_no_bit_whatever_the_types() {
    use FloatType::{BF16, F16, F32};
    for (seed, (dtype, kv_dtype)) in
        (0..).zip([(F32, F32), (F32, F16), (F16, F16), (BF16, F32), (BF16, F16)])
    {
        let model = |prefix_cache_tokens| dummy(dtype, kv_dtype, prefix_cache_tokens);
        check_hits(model(256), model(0), seed);
    }
}

#[test]
fn hits_change_no_bit_with_sliding_windows() {
    for (seed, name) in (20..).zip(["mistral", "gemma2", "gemma3"]) {
        for kv_dtype in [FloatType::F32, FloatType::F16] {
            let model = |prefix_cache_tokens| family(name, kv_dtype, prefix_cache_tokens);
            check_hits(model(256), model(0), seed);
        }
    }
}

#[test]
fn what_was_said_is_found_when_the_chat_goes_on() {
    let mut model = plain_dummy(CACHE_TOKENS);
    let mut plain = plain_dummy(0);
    let mut prompt: Vec<u32> = (0..50).collect();
    for turn in 0..4 {
        let job = telling(prompt.clone(), 45);
        let said = alone(&mut *model, job.clone());
        assert_eq!(said, alone(&mut *plain, job), "turn {turn}");
        prompt.extend(&said.tokens);
        // The last token was never fed to the model.
        let stored = prompt.len() - 1;
        prompt.extend([1, 2, 3]);
        let found = found(&mut *model, &telling(prompt.clone(), 45));
        assert_eq!(found as usize, stored / 32 * 32, "turn {turn}");
    }
}

#[test]
fn a_whole_prompt_is_never_found() {
    let mut model = plain_dummy(CACHE_TOKENS);
    let job = |length: u32| telling((0..length).collect::<Vec<u32>>(), 5);
    let first = alone(&mut *model, job(96));
    for (length, expected) in [(96, 64), (97, 96), (64, 32), (33, 32), (32, 0), (1, 0)] {
        assert_eq!(
            found(&mut *model, &job(length)),
            expected,
            "{length} tokens"
        );
    }
    assert_eq!(alone(&mut *model, job(96)), first);
}

#[test]
fn tenants_find_nothing_of_each_other() {
    let mut model = plain_dummy(CACHE_TOKENS);
    let job = |salt: u8| TextJob {
        cache_salt: CacheSalt([salt; 32]),
        ..telling((0..100).collect::<Vec<u32>>(), 40)
    };
    let first = alone(&mut *model, job(1));
    assert_eq!(found(&mut *model, &job(2)), 0);
    assert_eq!(alone(&mut *model, job(2)), first);
    assert_eq!(found(&mut *model, &job(1)), 96);
    assert_eq!(found(&mut *model, &job(2)), 96);
    assert_eq!(found(&mut *model, &job(3)), 0);
}

#[test]
fn a_scored_prompt_is_computed_and_found_by_others() {
    let mut model = plain_dummy(CACHE_TOKENS);
    let job = telling((0..100).collect::<Vec<u32>>(), 10);
    let scored = TextJob {
        prompt_logprobs: Some(2),
        ..job.clone()
    };
    let first = alone(&mut *model, scored.clone());
    assert_eq!(first.prompt.len(), 100);
    assert_eq!(found(&mut *model, &scored), 0);
    assert_eq!(alone(&mut *model, scored), first);
    assert_eq!(found(&mut *model, &job), 96);
}

#[test]
fn rows_that_start_together_keep_one_copy() {
    let mut model = plain_dummy(CACHE_TOKENS);
    let job = telling((0..100).collect::<Vec<u32>>(), 20);
    let guests: Vec<Guest> = (0..SLOTS)
        .map(|slot| Guest::new(slot, job.clone()))
        .collect();
    let said: Vec<Said> = run(&mut *model, &guests, |_| {});
    let expected = alone(&mut *plain_dummy(0), job);
    assert!(said.iter().all(|said| *said == expected));
    // 119 tokens were stored: 3 whole blocks of one greedy text, not of four.
    assert_eq!(model.cache_report().memory_units, 3);
}

#[test]
fn off_means_off() {
    let mut model = plain_dummy(0);
    let job = telling((0..100).collect::<Vec<u32>>(), 40);
    let first = alone(&mut *model, job.clone());
    assert_eq!(found(&mut *model, &job), 0);
    assert_eq!(alone(&mut *model, job), first);
    assert_eq!(model.cache_report(), CacheReport::default());
}

#[test]
fn what_is_kept_is_bounded_and_stands_in_nobodys_way() {
    let mut model = plain_dummy(320);
    let job = |first: u32| {
        telling(
            (first..first + 100).map(|i| i % 256).collect::<Vec<u32>>(),
            100,
        )
    };
    for first in 0..10 {
        alone(&mut *model, job(first * 20));
        assert!(model.cache_report().memory_units <= 10);
    }
    assert_eq!(model.cache_report().memory_units, 10);
    // Each takes half of all blocks.
    let half = Arc::new(Job::Text(telling(vec![1; 12], 500)));
    assert_eq!(
        model.cost(&half).memory_units * 2,
        model.capacity().memory_units
    );
    for slot in 0..2 {
        model.admit(Slot(slot), &half, 0).expect("its share");
    }
    assert_eq!(model.cache_report().memory_units, 0);
}

#[test]
fn a_row_that_failed_leaves_nothing_behind() {
    let mut model = crate::poison::model_with_nan_embedding(7, SLOTS);
    let well: Vec<u32> = (10..80).collect();
    let ill: Vec<u32> = well.iter().copied().chain([7; 40]).collect();
    let safe = |prompt: &[u32]| TextJob {
        sampling: Sampling {
            logit_bias: Arc::from([(7, -100.0)]),
            ..Sampling::default()
        },
        ..telling(prompt.to_vec(), 5)
    };
    let expected = alone(&mut *model, safe(&well));
    assert_eq!(found(&mut *model, &safe(&well)), 64);
    let in_chunks = Guest {
        chunk: 16,
        ..Guest::new(0, safe(&ill))
    };
    let failed = run(&mut *model, &[in_chunks], |_| {}).remove(0);
    assert!(matches!(failed.end, Some(Next::Fail(_))), "{failed:?}");
    assert_eq!(found(&mut *model, &safe(&ill)), 0);
    assert_eq!(alone(&mut *model, safe(&well)), expected);
    assert_eq!(found(&mut *model, &safe(&well)), 64);
}

#[test]
fn a_row_that_leaves_early_leaves_what_it_stored() {
    let mut model = plain_dummy(CACHE_TOKENS);
    let job = telling((0..200).collect::<Vec<u32>>(), 40);
    let expected = alone(&mut *plain_dummy(0), job.clone());
    let text = Arc::new(Job::Text(job.clone()));
    model.admit(Slot(2), &text, 0).expect("room for it");
    let chunk = PlannedRow {
        slot: Slot(2),
        phase: Phase::Begin,
        work: 70,
    };
    model.step(&[chunk]).expect("a pass");
    // While it runs, another begins where it is.
    assert_eq!(found(&mut *model, &job), 64);
    model.retire(Slot(2));
    assert_eq!(found(&mut *model, &job), 64);
    assert_eq!(alone(&mut *model, job), expected);
}
