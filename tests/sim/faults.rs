//! What goes wrong stays where it went wrong.

use std::time::Duration;

use girandole::events::FailureKind;
use girandole::job::{Job, TextJob};
use girandole::scheduler::Batching;
use girandole::time::Time;

use crate::gallery::picture;
use crate::world::{Action, World, config, prompt, script};

const COSTS: &str =
    "cost = { step_micros = 4000, iterate_row_micros = 500, begin_token_micros = 1000 }";

fn job(text: &str, max_tokens: u32) -> TextJob {
    TextJob::greedy(prompt(text), max_tokens)
}

/// Four requests share a batch in which a fault is planted; returns how each ended. Afterwards the
/// engine must still work.
fn failures(fault: &str) -> [Option<FailureKind>; 4] {
    let planted = script(&format!("{COSTS}\n[[fault]]\n{fault}"));
    let mut world = World::new(config(4, Batching::Continuous), &planted);
    let jobs = ["one", "two poison", "three", "four"].map(|text| job(text, 30));
    let logs = jobs.map(|job| world.submit(job));
    world.run();
    let after = world.submit(job("after all", 10));
    world.run();
    assert_eq!(after.failure(), None, "the engine goes on");
    world.check_at_rest();
    let book = world.book.borrow();
    for (_, sent) in &book.sent {
        let alone = &world.alone(&planted, &sent.job)[0];
        let said = sent.log.text(0);
        assert!(alone.starts_with(&said));
        assert_eq!(said.len() < alone.len(), sent.log.failure().is_some());
    }
    logs.map(|log| log.failure())
}

#[test]
fn nan_fails_its_row_only() {
    let failed = failures("prompt_contains = 'poison'\nnan_at_token = 7");
    assert_eq!(failed, [None, Some(FailureKind::Row), None, None]);
}

#[test]
fn a_panic_or_an_error_in_a_step_fails_that_pass_only() {
    for fault in [
        "panic_at_step = 9",
        "fail_step_at = 9",
        "out_of_memory_at_step = 9",
    ] {
        assert_eq!(failures(fault), [Some(FailureKind::Step); 4], "{fault}");
    }
}

#[test]
fn out_of_memory_fails_those_who_just_came() {
    let planted = script(&format!("{COSTS}\n[[fault]]\nout_of_memory_at_step = 20"));
    let mut world = World::new(config(4, Batching::Continuous), &planted);
    let running = world.submit(job("running", 60));
    // The window of 20 ms, a prompt, and steps of 4.5 ms up to the nineteenth.
    while world.book.borrow().passes.len() < 19 {
        let soon = world.now() + Duration::from_millis(1);
        world.run_until(soon);
    }
    let newcomer = world.submit(job("newcomer", 60));
    world.run();
    assert_eq!(running.failure(), None);
    assert_eq!(newcomer.failure(), Some(FailureKind::Step));
}

#[test]
fn out_of_memory_over_pictures_fails_the_youngest_and_lets_newcomers_be() {
    let planted = script(
        "image = { out_of_memory_above = 3 }\n\
         cost = { step_micros = 10000, iterate_row_micros = 10000, begin_token_micros = 2000 }",
    );
    let mut world = World::new(config(6, Batching::Continuous), &planted);
    let drawn = ["one", "two", "three"].map(|text| world.draw(picture(text, 40)));
    world.run_until(Time::from_millis(300));
    // Its beginning fits; with its first step memory runs out, while the next begins.
    let fourth = world.draw(picture("four", 40));
    while fourth.started_at().is_none() {
        world.turn();
    }
    let fifth = world.draw(picture("five", 40));
    world.run();
    world.check_at_rest();
    for log in &drawn {
        assert_eq!(log.failure(), None);
    }
    // Both came last in turn. Afterwards there is room again.
    assert_eq!(fourth.failure(), Some(FailureKind::Step));
    assert_eq!(fifth.failure(), Some(FailureKind::Step));
    let after = world.draw(picture("after", 4));
    world.run();
    assert_eq!(after.failure(), None);
}

#[test]
fn a_row_that_fails_takes_its_siblings_along() {
    let planted = script(&format!(
        "{COSTS}\n[[fault]]\nprompt_contains = 'poison'\nnan_at_token = 3"
    ));
    let mut world = World::new(config(3, Batching::Continuous), &planted);
    let poisoned = world.submit(TextJob {
        rows: 5,
        ..job("poison", 50)
    });
    let other = world.submit(job("other", 50));
    world.run();
    world.check_at_rest();
    assert_eq!(poisoned.failure(), Some(FailureKind::Row));
    assert_eq!(other.failure(), None);
}

#[test]
fn a_stall_delays_and_nothing_else() {
    assert_eq!(
        failures("stall_at_step = { step = 5, millis = 3000 }"),
        [None; 4]
    );
}

#[test]
fn a_storm_of_cancels_leaves_nothing_behind_and_nobody_else_touched() {
    let planted = script(COSTS);
    let mut world = World::new(config(16, Batching::Continuous), &planted);
    for i in 0..600_u64 {
        let time = Time::from_millis(i);
        let job = job(
            &format!("request {i} {}", "x".repeat((i % 50) as usize)),
            80,
        );
        world.at(
            time,
            Action::Submit {
                job: Job::Text(job),
                deadline: None,
            },
        );
        if i % 6 != 0 {
            let back = (i % 4) as usize;
            world.at(
                time,
                match i % 2 {
                    0 => Action::Cancel { back },
                    _ => Action::Abandon { back },
                },
            );
        }
    }
    world.run();
    world.check_at_rest();
    let book = world.book.borrow();
    let mut untouched = 0;
    for (_, sent) in &book.sent {
        if !sent.cancelled {
            untouched += 1;
            assert_eq!(sent.log.text(0), world.alone(&planted, &sent.job)[0]);
        }
    }
    assert!(untouched > 100, "{untouched} of {}", book.sent.len());
}
