//! The rules, one by one: when a batch starts, what a step may cost, who is told what.

use std::time::Duration;

use girandole::batch::FinishReason;
use girandole::engine::Reject;
use girandole::engine::turn::Turn;
use girandole::events::{EventKind, FailureKind};
use girandole::job::{Job, TextJob, UserId};
use girandole::scheduler::Batching;
use girandole::time::Time;

use crate::world::{Action, World, config, prompt, script};

fn job(text: &str, max_tokens: u32) -> TextJob {
    TextJob::greedy(prompt(text), max_tokens)
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const COSTS: &str =
    "cost = { step_micros = 4000, iterate_row_micros = 500, begin_token_micros = 1000 }";

/// `arrivals` come 1 ms apart to an idle engine with room for four; returns when each is started,
/// in milliseconds.
fn starts(batching: Batching, arrivals: u64) -> Vec<u64> {
    let mut world = World::new(config(4, batching), &script(COSTS));
    for i in 0..arrivals {
        let action = Action::Submit {
            job: Job::Text(job("hello", 40)),
            deadline: None,
        };
        world.at(Time::from_millis(i), action);
    }
    world.run();
    world.check_at_rest();
    let book = world.book.borrow();
    let started = book.sent.iter().map(|(_, sent)| sent.log.started_at());
    started.map(|at| at.unwrap().as_micros() / 1000).collect()
}

#[test]
fn an_idle_engine_starts_when_its_batch_is_full_or_the_window_is_over() {
    for batching in [Batching::Continuous, Batching::Dynamic] {
        assert_eq!(
            starts(batching, 1),
            [20],
            "{batching:?}: one waits out its window"
        );
        assert_eq!(
            starts(batching, 3),
            [20, 20, 20],
            "{batching:?}: B-1 wait it out"
        );
        assert_eq!(
            starts(batching, 4),
            [3, 3, 3, 3],
            "{batching:?}: the filling one starts all"
        );
    }
}

#[test]
fn one_too_many_starts_when_a_slot_is_free_or_when_the_batch_has_ended() {
    for batching in [Batching::Continuous, Batching::Dynamic] {
        let mut world = World::new(config(4, batching), &script(COSTS));
        let lengths = [5, 40, 40, 40, 5];
        let logs = lengths.map(|length| world.submit(job("hello", length)));
        world.run();
        let started = logs.each_ref().map(|log| log.started_at().unwrap());
        assert_eq!(started[..4], [Time::ZERO; 4]);
        let waits_for = match batching {
            Batching::Continuous => &logs[0],
            // The batch ends with its longest row; the one left is alone, its window long over.
            Batching::Dynamic => &logs[3],
        };
        assert_eq!(Some(started[4]), waits_for.closed_at(), "{batching:?}");
    }
}

#[test]
fn a_busy_engine_lets_newcomers_join_at_the_next_step_or_not_at_all() {
    for batching in [Batching::Continuous, Batching::Dynamic] {
        let mut world = World::new(config(4, batching), &script(COSTS));
        let first = world.submit(job("hello", 100));
        world.run_until(Time::from_millis(100));
        let asked = world.now();
        let second = world.submit(job("hello", 10));
        world.run();
        let started = second.started_at().unwrap();
        match batching {
            Batching::Continuous => assert!(started - asked <= ms(5), "{started}"),
            // It has waited out its window by then.
            Batching::Dynamic => assert_eq!(Some(started), first.closed_at()),
        }
    }
}

#[test]
fn a_request_of_many_rows_fills_a_batch_by_itself() {
    let mut world = World::new(config(4, Batching::Continuous), &script(COSTS));
    let log = world.submit(TextJob {
        rows: 6,
        ..job("hello", 10)
    });
    world.run();
    assert_eq!(log.started_at(), Some(Time::ZERO));
    assert!((0..6).all(|choice| log.reason(choice) == Some(FinishReason::Length)));
    let texts: std::collections::BTreeSet<String> = (0..6).map(|row| log.text(row)).collect();
    assert_eq!(texts.len(), 6, "each row says something else");
}

/// Acceptance line 5 on virtual time: the longest gap that eight streams see while a long prompt is
/// thrown in.
fn longest_gap(costs: &str, warm: bool) -> Duration {
    let mut world = World::new(config(16, Batching::Continuous), &script(costs));
    let streams: Vec<_> = (0..8)
        .map(|i| {
            let text = format!("{i}{}", "x".repeat(if warm { 50 } else { 1 }));
            world.submit(job(&text, 2_000))
        })
        .collect();
    world.run_until(Time::from_millis(1_500));
    let long = world.submit(job(&"y".repeat(1_500), 20));
    let thrown = world.now();
    world.run();
    assert_eq!(long.reason(0), Some(FinishReason::Length));
    let gaps = streams.iter().flat_map(|log| {
        let times = log.token_times();
        let gaps: Vec<Duration> = times
            .windows(2)
            .filter(|pair| pair[1] > thrown)
            .map(|pair| pair[1] - pair[0])
            .collect();
        gaps
    });
    gaps.max().unwrap()
}

#[test]
fn a_long_prompt_stalls_nobody_for_longer_than_the_budget() {
    let budget = ms(50);
    // Prefill at 3 ms, 1 ms and 50 us a token; a machine whose decoding alone exceeds the budget.
    for (costs, allowed) in [
        (
            "cost = { step_micros = 10000, iterate_row_micros = 2000, begin_token_micros = 3000 }",
            budget.mul_f64(1.1),
        ),
        (COSTS, budget.mul_f64(1.1)),
        (
            "cost = { step_micros = 500, iterate_row_micros = 100, begin_token_micros = 50 }",
            budget.mul_f64(1.1),
        ),
        (
            "cost = { step_micros = 60000, iterate_row_micros = 2000, begin_token_micros = 3000 }",
            ms(76) + budget.mul_f64(0.3),
        ),
    ] {
        let gap = longest_gap(costs, true);
        assert!(gap <= allowed, "{costs}: {gap:?}");
        // Before a prompt of that size has been seen, chunks only double.
        let gap = longest_gap(costs, false);
        assert!(gap < 2 * budget + ms(50), "{costs}, cold: {gap:?}");
    }
}

#[test]
fn a_prompt_alone_takes_a_few_budgets_at_once_and_no_more() {
    let mut world = World::new(config(4, Batching::Continuous), &script(COSTS));
    world.submit(job(&"z".repeat(4_000), 2));
    world.run();
    let book = world.book.borrow();
    let longest = book.passes.iter().map(|pass| pass.took).max().unwrap();
    assert!(longest > ms(150) && longest <= ms(210), "{longest:?}");
    assert!(book.passes.len() < 30, "{} passes", book.passes.len());
}

#[test]
fn prompts_share_a_step_first_come_first() {
    let mut world = World::new(config(8, Batching::Continuous), &script(COSTS));
    let logs = [60, 60, 60, 60].map(|length| world.submit(job(&"p".repeat(length), 5)));
    world.run();
    let starts = logs.each_ref().map(|log| log.token_times()[0]);
    assert!(starts.is_sorted(), "{starts:?}");
    let book = world.book.borrow();
    assert!(book.passes.iter().any(|pass| pass.rows.len() > 1));
}

#[test]
fn prompt_tokens_found_in_a_cache_are_not_computed() {
    let cached = script(&format!("model.cached_prompt_tokens = 64\n{COSTS}"));
    let mut world = World::new(config(4, Batching::Continuous), &cached);
    let log = world.submit(job(&"c".repeat(100), 5));
    let all = world.submit(job(&"c".repeat(30), 5));
    world.run();
    let computed: u32 = world
        .book
        .borrow()
        .passes
        .iter()
        .map(|pass| pass.begin_work())
        .sum();
    assert_eq!(
        computed,
        36 + 1,
        "the last token of a prompt is always computed"
    );
    for (log, tokens) in [(log, 64), (all, 29)] {
        let Some(EventKind::Finished { usage }) = log.events().pop() else {
            panic!("not finished");
        };
        assert_eq!((usage.cached_tokens, usage.completion_tokens), (tokens, 5));
    }
}

#[test]
fn memory_is_reserved_whole_and_nobody_overtakes() {
    // Ten units: the first row takes six, the second needs six, the third would fit beside the first.
    let small = script(&format!("model.memory_units = 10\n{COSTS}"));
    let mut world = World::new(config(4, Batching::Continuous), &small);
    let [large, also_large, little, too_large] =
        [180, 180, 20, 400].map(|tokens| world.submit(job("hello", tokens)));
    world.run();
    world.check_at_rest();
    assert_eq!(also_large.started_at(), large.closed_at());
    assert_eq!(little.started_at(), also_large.started_at());
    assert_eq!(too_large.failure(), Some(FailureKind::Row));
    let Some(EventKind::Failed { failure, .. }) = too_large.events().pop() else {
        panic!("not failed");
    };
    assert!(failure.message.contains("10"), "{}", failure.message);
}

#[test]
fn deadlines_end_waiting_and_running_requests() {
    let mut world = World::new(config(1, Batching::Continuous), &script(COSTS));
    for deadline in [None, Some(ms(300)), Some(ms(100))] {
        let job = Job::Text(job("hello", if deadline.is_none() { 40 } else { 1_000 }));
        world.at(Time::ZERO, Action::Submit { job, deadline });
    }
    world.run();
    let book = world.book.borrow();
    let logs: Vec<_> = book.sent.iter().map(|(_, sent)| &sent.log).collect();
    assert_eq!(logs[0].failure(), None);
    assert_eq!(logs[1].failure(), Some(FailureKind::DeadlineExceeded));
    assert!(logs[1].started_at().is_some());
    assert_eq!(logs[2].failure(), Some(FailureKind::DeadlineExceeded));
    assert_eq!(logs[2].started_at(), None);
    for (log, deadline) in [(logs[1], 300), (logs[2], 100)] {
        let late = log.closed_at().unwrap() - Time::from_millis(deadline);
        assert!(late <= ms(10), "{late:?}");
    }
}

#[test]
fn a_drained_engine_finishes_what_it_has() {
    let mut world = World::new(config(2, Batching::Continuous), &script(COSTS));
    let logs = [20, 20, 20].map(|length| world.submit(job("hello", length)));
    world.turn();
    world.handle.drain(Time::FAR_FUTURE);
    assert_eq!(
        world.handle.reserve(UserId::default(), 1, 1).err(),
        Some(Reject::Draining)
    );
    world.run();
    assert_eq!(world.turn(), Turn::Stopped);
    assert!(
        logs.iter()
            .all(|log| log.reason(0) == Some(FinishReason::Length))
    );
}

#[test]
fn a_drain_is_heeded_whenever_it_comes() {
    // Within the last pass above all: nothing wakes the engine after that.
    for at in 0..60 {
        let mut world = World::new(config(2, Batching::Continuous), &script(COSTS));
        let log = world.submit(job("hello", 5));
        world.at(Time::from_millis(at), Action::Drain);
        assert_eq!(world.run(), Turn::Stopped, "drained at {at} ms");
        assert_eq!(log.reason(0), Some(FinishReason::Length));
        assert!(world.now() <= Time::from_millis(60));
    }
}

#[test]
fn what_is_left_at_the_drain_deadline_is_shut_down() {
    let mut world = World::new(config(2, Batching::Continuous), &script(COSTS));
    let logs = [10, 5_000, 5_000].map(|length| world.submit(job("hello", length)));
    world.turn();
    world.handle.drain(Time::from_millis(900));
    world.handle.drain(Time::from_millis(500));
    world.run();
    assert_eq!(
        logs.map(|log| log.failure()),
        [
            None,
            Some(FailureKind::Shutdown),
            Some(FailureKind::Shutdown)
        ]
    );
    assert!(world.now() - Time::from_millis(500) <= ms(10));
    assert_eq!(world.turn(), Turn::Stopped);
}

#[test]
fn groups_that_cannot_share_a_pass_take_turns() {
    let keyed = script(&format!("model.keys = 3\n{COSTS}"));
    let mut world = World::new(config(12, Batching::Continuous), &keyed);
    let logs: Vec<_> = (0..12)
        .map(|i| world.submit(job(&format!("prompt {i}"), 50)))
        .collect();
    world.run();
    let gaps = logs.iter().flat_map(|log| {
        let times = log.token_times();
        let gaps: Vec<Duration> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        gaps
    });
    // Three groups' passes of at most twelve rows, and prompts in the first of them.
    assert!(gaps.max().unwrap() <= 3 * ms(62), "a group starved");
}

#[test]
fn prompts_of_one_group_do_not_starve_another() {
    let keyed = script(&format!("model.keys = 2\n{COSTS}"));
    let mut world = World::new(config(12, Batching::Continuous), &keyed);
    let stream = world.submit(job("a stream", 500));
    world.run_until(Time::from_millis(200));
    // Some of them are of the other group, and the budget is too small for all of them at once.
    for i in 0..8 {
        world.submit(job(&format!("{i} {}", "x".repeat(800)), 5));
    }
    world.run();
    let times = stream.token_times();
    let longest = times.windows(2).map(|pair| pair[1] - pair[0]).max();
    // One pass of its own group with prompts in it, one of the other that only has prompts.
    assert!(longest <= Some(ms(50 + 200).mul_f64(1.1)), "{longest:?}");
}

#[test]
fn places_and_estimates_are_told_rarely_and_come_true() {
    let mut world = World::new(config(4, Batching::Continuous), &script(COSTS));
    // Learn what a step costs first.
    world.submit(job("hello", 60));
    world.run();
    let sent = world.now();
    let logs: Vec<_> = (0..40)
        .map(|i| world.submit(job(&format!("request {i}"), 100 + 10 * (i % 7))))
        .collect();
    world.run();
    for (i, log) in logs.iter().enumerate() {
        let events = log.events();
        let told: Vec<_> = events
            .iter()
            .filter_map(|event| match event {
                EventKind::Queued { position, eta, .. } => Some((*position, *eta)),
                _ => None,
            })
            .collect();
        assert_eq!(told[0].0 as usize, i);
        let waited = log.started_at().unwrap() - sent;
        assert!(told.len() as u64 <= 1 + waited.as_secs(), "told too often");
        if i >= 8 {
            let eta = told[0].1.expect("costs are known").as_secs_f64();
            let error = eta / waited.as_secs_f64() - 1.0;
            assert!(
                error.abs() < 0.25,
                "request {i}: told {eta}, waited {waited:?}"
            );
        }
    }
}

#[test]
fn the_engine_takes_no_more_than_it_was_allowed() {
    let mut config = config(2, Batching::Continuous);
    config.max_queued_requests = 3;
    config.max_queued_tokens = 100;
    let world = World::new(config, &script(COSTS));
    let permits: Vec<_> = (0..5)
        .map(|_| world.handle.reserve(UserId::default(), 1, 10).unwrap())
        .collect();
    let Err(Reject::QueueFull {
        what,
        limit,
        retry_after,
    }) = world.handle.reserve(UserId::default(), 1, 10)
    else {
        panic!("a sixth was taken");
    };
    assert_eq!((what, limit), ("max_queued_requests", 3));
    assert!(retry_after >= Duration::from_secs(1));
    drop(permits);
    let mut large = world
        .handle
        .reserve(UserId::default(), 1, 500)
        .expect("an empty engine takes it");
    assert!(matches!(
        world.handle.reserve(UserId::default(), 1, 1),
        Err(Reject::QueueFull {
            what: "max_queued_tokens",
            limit: 100,
            ..
        })
    ));
    large.settle(90);
    assert!(world.handle.reserve(UserId::default(), 1, 10).is_ok());
}
