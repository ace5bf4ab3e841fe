//! Random traffic from a printed seed: whatever comes, the invariants hold after every step.

use std::time::Duration;

use girandole::batch::FinishReason;
use girandole::engine::EngineConfig;
use girandole::events::FailureKind;
use girandole::job::{Job, Priority, Sampling, TextJob, UserId};
use girandole::model::scripted::{FaultScript, Script};
use girandole::scheduler::{Batching, Fairness, SchedulerConfig};
use girandole::time::Time;

use crate::order::Who;
use crate::world::{Action, Sent, World, prompt, script};

const SEEDS: u64 = 400;

/// Small, seeded, good enough (SplitMix64, Steele et al. 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    /// Small numbers are likelier.
    pub(crate) fn skewed(&mut self, limit: u64) -> u64 {
        let inner = 1 + self.below(limit);
        self.below(inner)
    }
}

/// Names the seed when a check has failed.
pub(crate) struct Named(pub(crate) u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat with GIRANDOLE_SIM_SEED={}", self.0);
        }
    }
}

pub(crate) fn random_config(random: &mut Random) -> EngineConfig {
    EngineConfig {
        devices: 1,
        scheduler: SchedulerConfig {
            batch_size: 1 + random.below(12) as u32,
            max_queue_delay: Duration::from_millis(random.below(40)),
            batching: match random.one_in(3) {
                true => Batching::Dynamic,
                false => Batching::Continuous,
            },
            step_budget: Duration::from_millis(20 + random.below(100)),
            fairness: Fairness {
                max_waiting_per_user: random.one_in(4).then(|| random.below(20) as u32),
                max_running_per_user: random.one_in(4).then(|| 1 + random.below(4) as u32),
                priority_ageing: Duration::from_millis(random.skewed(5_000)),
                max_remembered_users: random.below(10) as usize,
            },
        },
        max_queued_requests: random.below(60) as u32,
        max_queued_tokens: 500 + random.below(20_000),
        max_queued_source_bytes: 1 << 30,
    }
}

fn random_script(random: &mut Random) -> Script {
    let scarce = match random.one_in(4) {
        true => format!(
            "out_of_memory_above_rows = {}\nout_of_memory_above_tokens = {}\n",
            1 + random.below(8),
            1 + random.below(200),
        ),
        false => String::new(),
    };
    let mut toml = format!(
        "[model]\nmemory_units = {}\ncached_prompt_tokens = {}\nkeys = {}\n{scarce}\
         [cost]\nstep_micros = {}\niterate_row_micros = {}\nbegin_token_micros = {}\n\
         [output]\nat_least = 2\nat_most = {}\n\
         [[fault]]\nprompt_contains = 'poison'\nnan_at_token = 4\n",
        20 + random.below(200),
        random.below(3) * 16,
        1 + random.below(3),
        random.below(10_000),
        random.below(2_000),
        random.below(3_000),
        2 + random.below(150),
    );
    if random.one_in(4) {
        let kind = ["panic_at_step", "fail_step_at", "out_of_memory_at_step"];
        let kind = kind[random.below(3) as usize];
        toml += &format!("[[fault]]\n{kind} = {}\n", 1 + random.below(200));
    }
    script(&toml)
}

fn random_job(random: &mut Random, number: u64) -> Job {
    let mut text = format!("{number} ");
    if random.one_in(15) {
        text += "poison ";
    }
    text += &"abcdefgh".repeat(random.skewed(60) as usize);
    Job::Text(TextJob {
        rows: match random.one_in(6) {
            true => 1 + random.below(5) as u32,
            false => 1,
        },
        sampling: Sampling {
            seed: random.next(),
            ..Sampling::default()
        },
        ..TextJob::greedy(prompt(&text), 1 + random.skewed(200) as u32)
    })
}

/// Requests made by `job` come, and some of them are cancelled, at random times.
pub(crate) fn plan_traffic(
    random: &mut Random,
    world: &World,
    job: impl Fn(&mut Random, u64) -> Job,
) {
    let mut time = Time::ZERO;
    let gap = 1 + random.below(60_000);
    let (users, classes) = (1 + random.below(6), 1 + random.below(3));
    for number in 0..20 + random.below(80) {
        if !random.one_in(4) {
            time = time + Duration::from_micros(random.skewed(4 * gap));
        }
        let job = job(random, number);
        let deadline = random
            .one_in(8)
            .then(|| Duration::from_millis(random.below(2_000)));
        // Some have much more to ask for than others.
        let who = Who {
            user: UserId(random.skewed(users)),
            priority: Priority::ALL[(1 + random.below(classes) as usize) % 3],
        };
        world.at(time, Action::SubmitAs { who, job, deadline });
        if random.one_in(4) {
            time = time + Duration::from_micros(random.skewed(gap));
            let back = random.skewed(12) as usize;
            world.at(
                time,
                match random.one_in(3) {
                    true => Action::Abandon { back },
                    false => Action::Cancel { back },
                },
            );
        }
    }
}

/// What a request's log must say in the end.
fn check_end(world: &World, script: &Script, sent: &Sent) {
    let alone = world.alone(script, &sent.job);
    let prompt = &sent.job.text().prompt;
    let poisoned = String::from_utf8(prompt.iter().map(|&id| id as u8).collect())
        .unwrap()
        .contains("poison");
    for (row, alone) in (0..).zip(&alone) {
        let said = sent.log.text(row);
        match sent.log.reason(row) {
            Some(FinishReason::Stop | FinishReason::Length) => assert_eq!(said, *alone),
            Some(FinishReason::Cancelled) => assert!(sent.cancelled && alone.starts_with(&said)),
            None => assert!(sent.log.failure().is_some() && alone.starts_with(&said)),
        }
    }
    match sent.log.failure() {
        Some(FailureKind::DeadlineExceeded) => assert!(sent.log.closed_at() >= sent.deadline),
        Some(FailureKind::Abandoned) => assert!(sent.cancelled),
        Some(FailureKind::Row) => {
            let too_large = sent.log.started_at().is_none();
            assert!(poisoned || too_large);
        }
        Some(FailureKind::Step) => {
            let hopeless = world.book.borrow().scarcity.hopeless;
            assert!(hopeless > 0 || script.faults.iter().any(is_fatal));
        }
        Some(other) => panic!("{other:?}"),
        None => {}
    }
}

/// Whether it fails whole passes.
fn is_fatal(fault: &FaultScript) -> bool {
    fault.panic_at_step.or(fault.fail_step_at).is_some()
}

/// Lack of memory fails nobody but rows that had a pass to themselves and the least to do in it.
fn check_scarcity(world: &World, script: &Script) {
    let book = world.book.borrow();
    if script.faults.iter().any(is_fatal) {
        return;
    }
    let failures = book.sent.iter().map(|(_, sent)| sent.log.failure());
    let of_steps = failures.filter(|failure| *failure == Some(FailureKind::Step));
    // Who was cancelled meanwhile is not told.
    assert!(of_steps.count() <= book.scarcity.hopeless);
}

/// No pass with decoding rows is stretched by prompts beyond the budget, once costs are known.
fn check_budget(world: &World, config: &EngineConfig, script: &Script) {
    let book = world.book.borrow();
    if book.scarcity.failures > 0 {
        // Costs are not learnt from passes that were tried again.
        return;
    }
    let budget = config.scheduler.step_budget;
    let mixed = book
        .passes
        .iter()
        .skip(100)
        .filter(|pass| pass.iterate_rows() > 0 && pass.begin_work() > 0);
    for pass in mixed {
        let decoding =
            script.cost.step_micros + pass.iterate_rows() as u64 * script.cost.iterate_row_micros;
        let least = Duration::from_micros(decoding) + budget / 4;
        let unit = Duration::from_micros(script.cost.begin_token_micros);
        let allowed = budget.max(least).mul_f64(1.3) + unit;
        assert!(pass.took <= allowed, "{pass:?} over {allowed:?}");
    }
}

fn run(seed: u64) -> usize {
    let _named = Named(seed);
    let mut random = Random(seed);
    let config = random_config(&mut random);
    let script = random_script(&mut random);
    let mut world = World::new(config.clone(), &script);
    plan_traffic(&mut random, &world, random_job);
    world.run();
    world.check_at_rest();
    for (_, sent) in &world.book.borrow().sent {
        check_end(&world, &script, sent);
    }
    check_scarcity(&world, &script);
    check_budget(&world, &config, &script);
    world.book.borrow().passes.len()
}

/// Runs every seed, or the one that was asked for; each returns its number of steps.
pub(crate) fn run_seeds(seeds: u64, run: fn(u64) -> usize) {
    if let Ok(seed) = std::env::var("GIRANDOLE_SIM_SEED") {
        run(seed.parse().expect("GIRANDOLE_SIM_SEED is a number"));
        return;
    }
    let steps: usize = (0..seeds).map(run).sum();
    assert!(steps > 10_000, "{steps} steps are too few to mean anything");
}

#[test]
fn random_traffic_keeps_every_invariant() {
    run_seeds(SEEDS, run);
}
