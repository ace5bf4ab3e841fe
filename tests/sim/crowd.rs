//! Many users at once: turns between them, classes of priority, and limits of their own.

use std::time::Duration;

use girandole::engine::{EngineConfig, Reject};
use girandole::events::EventKind;
use girandole::job::{Job, Priority, TextJob, UserId};
use girandole::scheduler::{Batching, Fairness};
use girandole::time::Time;

use crate::order::Who;
use crate::random::Random;
use crate::world::{Action, World, config, prompt, script};

const COSTS: &str =
    "cost = { step_micros = 4000, iterate_row_micros = 500, begin_token_micros = 1000 }";

const HEAVY: UserId = UserId(1_000);

fn text(name: &str, max_tokens: u32) -> Job {
    Job::Text(TextJob::greedy(prompt(name), max_tokens))
}

fn user(number: u64) -> Who {
    Who {
        user: UserId(number),
        ..Who::default()
    }
}

fn with_fairness(batch_size: u32, batching: Batching, fairness: Fairness) -> EngineConfig {
    let mut config = config(batch_size, batching);
    config.scheduler.fairness = fairness;
    config
}

/// Fifty users with a request each, beside one with two hundred.
struct Crowd {
    batching: Batching,
    batch_size: u32,
    /// When the fifty begin to come, and how far apart.
    from: Duration,
    gap: Duration,
    /// Whether requests differ in length.
    mixed: bool,
}

/// How long each of the fifty waited, and how long the longest row held its slot.
struct Waits {
    of_fifty: Vec<Duration>,
    turn: Duration,
}

impl Crowd {
    fn world(&self, with_heavy: bool) -> World {
        let mut world = World::new(config(self.batch_size, self.batching), &script(COSTS));
        let mut random = Random(5);
        let length = |random: &mut Random| match self.mixed {
            true => 2 + random.below(20) as u32,
            false => 10,
        };
        let heavy: Vec<u32> = (0..200).map(|_| length(&mut random)).collect();
        let fifty: Vec<u32> = (0..50).map(|_| length(&mut random)).collect();
        for length in heavy.iter().filter(|_| with_heavy) {
            let action = Action::SubmitAs {
                who: user(HEAVY.0),
                job: text("heavy", *length),
                deadline: None,
            };
            world.at(Time::ZERO, action);
        }
        for (number, length) in (0..).zip(&fifty) {
            let action = Action::SubmitAs {
                who: user(u64::from(number)),
                job: text("light", *length),
                deadline: None,
            };
            world.at(Time::ZERO + self.from + self.gap * number, action);
        }
        world.run();
        world.check_at_rest();
        world
    }

    fn run(&self, with_heavy: bool) -> Waits {
        let world = self.world(with_heavy);
        let book = world.book.borrow();
        let mut waits = Waits {
            of_fifty: Vec::new(),
            turn: Duration::ZERO,
        };
        for (_, sent) in &book.sent {
            let started = sent.log.started_at().expect("it started");
            let held = sent.log.closed_at().expect("it ended") - started;
            waits.turn = waits.turn.max(held);
            if sent.who.user != HEAVY {
                waits.of_fifty.push(started - sent.at);
            }
        }
        waits
    }

    /// The longest of the fifty's waits beyond those that they have without the one user, in turns.
    fn longest_delay_in_turns(&self) -> f64 {
        let (with, without) = (self.run(true), self.run(false));
        let delays = with.of_fifty.iter().zip(&without.of_fifty);
        let longest = delays
            .map(|(with, without)| with.saturating_sub(*without))
            .max();
        longest.unwrap().as_secs_f64() / with.turn.as_secs_f64()
    }
}

/// Acceptance line 8 of the hosted demo.
#[test]
fn fifty_users_are_not_delayed_by_one_with_two_hundred_by_more_than_a_turn() {
    for batching in [Batching::Continuous, Batching::Dynamic] {
        for batch_size in [1, 4, 16] {
            // Batches that end as a whole are other ones if somebody else is in the first: with rows of
            // different length that may cost or save anything.
            for mixed in [false, batching == Batching::Continuous] {
                for from in [0, 333] {
                    let crowd = Crowd {
                        batching,
                        batch_size,
                        from: Duration::from_millis(from),
                        gap: Duration::ZERO,
                        mixed,
                    };
                    let turns = crowd.longest_delay_in_turns();
                    let what = format!("{batching:?}, {batch_size} rows, at {from} ms, {mixed}");
                    assert!(turns <= 1.0, "{what}: {turns} turns");
                }
            }
        }
    }
}

/// However they come: while one of the fifty waits, the one of many has a turn at most.
#[test]
fn nobody_waits_for_two_turns_of_one_user() {
    for batch_size in [1, 4, 16] {
        for gap in [5, 20, 50, 200] {
            let crowd = Crowd {
                batching: Batching::Continuous,
                batch_size,
                from: Duration::from_millis(500),
                gap: Duration::from_millis(gap),
                mixed: false,
            };
            let world = crowd.world(true);
            let book = world.book.borrow();
            let times = |heavy: bool| {
                let of = book.sent.iter().map(|(_, sent)| sent);
                of.filter(move |sent| (sent.who.user == HEAVY) == heavy)
                    .map(|sent| (sent.at, sent.log.started_at().expect("it started")))
            };
            for (came, started) in times(false) {
                let turns = times(true).filter(|(_, turn)| came <= *turn && *turn < started);
                let turns = turns.count();
                assert!(turns <= 1, "{batch_size} rows, {gap} ms: {turns} turns");
            }
        }
    }
}

#[test]
fn a_user_of_many_goes_on_while_others_keep_coming() {
    let mut world = World::new(config(4, Batching::Continuous), &script(COSTS));
    for _ in 0..100 {
        let action = Action::SubmitAs {
            who: user(HEAVY.0),
            job: text("heavy", 30),
            deadline: None,
        };
        world.at(Time::ZERO, action);
    }
    // Newcomers, each with one request, nearly as fast as requests are served.
    for number in 0..600 {
        let action = Action::SubmitAs {
            who: user(number),
            job: text("light", 30),
            deadline: None,
        };
        world.at(Time::from_millis(number * 60), action);
    }
    world.run();
    let book = world.book.borrow();
    let times = |heavy: bool| {
        let of = book.sent.iter().map(|(_, sent)| sent);
        let of = of.filter(move |sent| (sent.who.user == HEAVY) == heavy);
        let times = of.map(|sent| (sent.at, sent.log.started_at().expect("it started")));
        times.collect::<Vec<_>>()
    };
    let (heavy, others) = (times(true), times(false));
    for turns in heavy.windows(2) {
        let (turn, next) = (turns[0].1, turns[1].1);
        let between = |(_, at): &&(Time, Time)| turn <= *at && *at < next;
        let between = others.iter().filter(between).count();
        // Seventeen a second come, and twenty can be served: one row in six or seven is left to it, and it never
        // waits for twice as many.
        assert!(between <= 13, "{between} turns of others");
    }
    assert_eq!(heavy.len(), 100);
}

#[test]
fn who_cancels_pays_for_nothing() {
    let mut world = World::new(config(1, Batching::Continuous), &script(COSTS));
    let first = world.send_as(user(1), text("first", 20));
    for _ in 0..50 {
        world.send_as(user(1), text("cancelled", 500));
    }
    world.turn();
    for back in 0..50 {
        world.at(world.now(), Action::Cancel { back });
    }
    world.run_until(Time::from_millis(50));
    let other = world.send_as(user(2), text("other", 20));
    let again = world.send_as(user(1), text("again", 20));
    let more = world.send_as(user(2), text("more", 20));
    world.run();
    let starts = [first, other, again, more].map(|log| log.started_at().unwrap());
    assert!(starts.is_sorted(), "{starts:?}");
}

/// When a request of each class starts, all sent to a full engine, and what came between.
#[test]
fn the_more_urgent_starts_first() {
    let mut world = World::new(config(1, Batching::Continuous), &script(COSTS));
    world.send_as(user(0), text("running", 20));
    world.run_until(Time::from_millis(60));
    let classes = [Priority::Batch, Priority::Normal, Priority::Interactive];
    let logs = classes.map(|priority| {
        let who = Who {
            user: UserId(1),
            priority,
        };
        world.send_as(who, text("waiting", 20))
    });
    world.run();
    let [batch, normal, interactive] = logs.map(|log| log.started_at().unwrap());
    assert!(interactive < normal && normal < batch);
}

#[test]
fn nobody_starves_behind_the_more_urgent() {
    let ageing = Duration::from_secs(2);
    let fairness = Fairness {
        priority_ageing: ageing,
        ..Fairness::default()
    };
    for batching in [Batching::Continuous, Batching::Dynamic] {
        let config = with_fairness(2, batching, fairness.clone());
        let mut world = World::new(config, &script(COSTS));
        let low = [Priority::Batch, Priority::Normal];
        // The urgent come faster than they are served, for half a minute.
        for number in 0..600 {
            let at = Time::from_millis(number * 50);
            let urgent = |priority| Who {
                user: UserId(number),
                priority,
            };
            let action = |who| Action::SubmitAs {
                who,
                job: text("one of many", 30),
                deadline: None,
            };
            world.at(at, action(urgent(Priority::Interactive)));
            if number % 100 == 10 {
                for priority in low {
                    world.at(at, action(urgent(priority)));
                }
            }
        }
        world.run_until(Time::from_millis(30_000));
        let book = world.book.borrow();
        let lower = book
            .sent
            .iter()
            .filter(|(_, sent)| sent.who.priority != Priority::Interactive);
        for (_, sent) in lower {
            if sent.at + ageing + Duration::from_secs(2) > world.now() {
                continue;
            }
            let waited = sent.log.started_at().map(|started| started - sent.at);
            let longest = ageing + Duration::from_secs(2);
            assert!(
                waited.is_some_and(|waited| waited <= longest),
                "{:?} {waited:?}",
                sent.who
            );
            // Neither is it as good as being urgent.
            assert!(waited >= Some(ageing), "{:?} {waited:?}", sent.who);
        }
    }
}

#[test]
fn limits_of_one_user_are_theirs_alone() {
    let fairness = Fairness {
        max_waiting_per_user: Some(3),
        max_running_per_user: Some(2),
        ..Fairness::default()
    };
    let config = with_fairness(8, Batching::Continuous, fairness);
    let mut world = World::new(config, &script(COSTS));
    for _ in 0..6 {
        let action = Action::SubmitAs {
            who: user(1),
            job: text("many", 40),
            deadline: None,
        };
        world.at(Time::ZERO, action);
    }
    let action = Action::SubmitAs {
        who: user(2),
        job: text("one", 40),
        deadline: None,
    };
    world.at(Time::from_millis(30), action);
    world.run_until(Time::from_millis(60));
    assert_eq!(world.book.borrow().refused, 1);
    assert_eq!(world.engine.scheduler().running_rows(), 3);
    assert_eq!(world.engine.scheduler().waiting_rows(), 3);
    let refused = world.handle.reserve(UserId(1), 1, 1);
    assert!(matches!(
        refused,
        Err(Reject::UserQueueFull { limit: 3, .. })
    ));
    world.run();
    world.check_at_rest();
}

/// What was told of the order comes true; of the time, too, but for those who could have come before and did not.
#[test]
fn places_are_those_of_the_fair_order() {
    let mut world = World::new(config(4, Batching::Continuous), &script(COSTS));
    world.send_as(user(0), text("to learn from", 60));
    world.run();
    let mut random = Random(3);
    let mut sent = Vec::new();
    for _ in 0..60 {
        // One has most of it.
        let who = user(if random.one_in(3) {
            1 + random.below(8)
        } else {
            HEAVY.0
        });
        sent.push((
            world.now(),
            world.send_as(who, text("waiting", 80 + random.below(40) as u32)),
        ));
        if random.one_in(4) {
            world.run_until(world.now() + Duration::from_millis(random.below(200)));
        }
    }
    let order = |log: &crate::log::Log| log.started_at();
    world.run();
    // The last to have come know everybody who starts before them.
    let (at, log) = &sent[sent.len() - 1];
    let told = log.events().into_iter().find_map(|event| match event {
        EventKind::Queued { position, eta, .. } => Some((position, eta)),
        _ => None,
    });
    let (position, eta) = told.expect("it was told");
    let started = order(log).unwrap();
    let before = sent
        .iter()
        .filter(|(_, other)| order(other).unwrap() >= *at && order(other).unwrap() < started)
        .count();
    assert!(
        (position as usize).abs_diff(before) <= 3,
        "{position} and {before}"
    );
    // Everybody came within two seconds, and then nobody did: that could not be known, and others would have gone before.
    let (eta, waited) = (eta.unwrap().as_secs_f64(), (started - *at).as_secs_f64());
    let share = eta / waited;
    assert!((1.0..1.6).contains(&share), "told {eta}, waited {waited}");
    // A silence tells: what is said last is right.
    let last = log
        .timed()
        .into_iter()
        .rev()
        .find_map(|(at, event)| match event {
            EventKind::Queued { eta, .. } => Some(at + eta.expect("steps were measured")),
            _ => None,
        });
    let seconds = |time: Time| (time - Time::ZERO).as_secs_f64();
    let off = seconds(last.expect("it was told")) - seconds(started);
    assert!(off.abs() < 0.25, "told at last: {off} s off");
}
