//! The mixed load of `benches/eta.py` on virtual time, shared among users who take turns: what each request is told
//! first comes true, though others may come later and go before it.

use girandole::events::EventKind;
use girandole::job::{Job, TextJob, UserId};
use girandole::scheduler::Batching;
use girandole::time::Time;

use crate::order::Who;
use crate::random::Random;
use crate::world::{Action, World, config, prompt, script};

/// Two hundred requests, in bursts, at first more than can be served.
const LOAD: &str = include_str!("../../benches/peers/eta_load.json");
const ROWS: u32 = 4;
const COSTS: &str = "cost = { step_micros = 19600, iterate_row_micros = 100 }";
/// As long as the longest request of the load: what those allow who do not say how much they want.
const LONGEST: u64 = 200;

/// A crowd that asks for the load.
struct Crowd {
    users: u64,
    /// Whether clients say how long the answer gets.
    said: bool,
    seed: u64,
}

impl Crowd {
    fn world(&self) -> World {
        let lengths = match self.said {
            true => String::new(),
            false => format!("\noutput = {{ at_least = 10, at_most = {LONGEST} }}"),
        };
        let model = script(&format!("{COSTS}{lengths}"));
        let mut world = World::new(config(ROWS, Batching::Continuous), &model);
        let mut random = Random(self.seed);
        let load: serde_json::Value = serde_json::from_str(LOAD).expect("the load");
        let requests = load["requests"].as_array().expect("requests");
        for (number, request) in requests.iter().enumerate() {
            let millis = request["at_ms"].as_u64().expect("a time");
            let tokens = match self.said {
                true => request["tokens"].as_u64().expect("a length"),
                false => LONGEST,
            };
            let text = prompt(&format!("request {number}"));
            let action = Action::SubmitAs {
                who: Who {
                    user: UserId(random.below(self.users)),
                    ..Who::default()
                },
                job: Job::Text(TextJob::greedy(text, tokens as u32)),
                deadline: None,
            };
            world.at(Time::from_millis(millis), action);
        }
        world.run();
        world.check_at_rest();
        world
    }

    /// By how much the first ETA of each request was off, as a share of its wait, the smallest first: as
    /// `benches/eta.py` counts it.
    fn errors(&self) -> Vec<f64> {
        let world = self.world();
        let book = world.book.borrow();
        let mut errors = Vec::new();
        for (_, sent) in book.sent.iter().skip(10) {
            let first = sent
                .log
                .timed()
                .into_iter()
                .find_map(|(at, event)| match event {
                    EventKind::Queued { eta, .. } => Some((at, eta)),
                    _ => None,
                });
            let Some((at, Some(eta))) = first else {
                continue;
            };
            let waited = sent.log.started_at().expect("it started") - at;
            let waited = waited.as_secs_f64();
            let off = (eta.as_secs_f64() - waited).abs();
            errors.push(off / waited.max(1.0));
        }
        errors.sort_by(f64::total_cmp);
        errors
    }
}

fn check(users: u64, said: bool, median: f64, p90: f64) {
    for seed in 0..5 {
        let crowd = Crowd { users, said, seed };
        let errors = crowd.errors();
        let of = |share: f64| errors[(share * errors.len() as f64) as usize];
        let what = format!("{users} users, said: {said}, seed {seed}");
        assert!(errors.len() > 150, "{what}: {} were told", errors.len());
        assert!(of(0.5) < median, "{what}: median {:.3}", of(0.5));
        assert!(of(0.9) < p90, "{what}: 90th percentile {:.3}", of(0.9));
    }
}

#[test]
fn what_a_crowd_is_told_first_comes_true() {
    for users in [1, 5, 20, 100] {
        check(users, true, 0.2, 0.5);
    }
}

#[test]
fn where_lengths_are_learned_it_is_right_by_half() {
    for users in [1, 20] {
        check(users, false, 0.25, 0.65);
    }
}
