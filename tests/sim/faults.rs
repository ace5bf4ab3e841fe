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
    for fault in ["panic_at_step = 9", "fail_step_at = 9"] {
        assert_eq!(failures(fault), [Some(FailureKind::Step); 4], "{fault}");
    }
}

#[test]
fn a_pass_that_finds_no_memory_is_tried_again_with_less_and_fails_nobody() {
    for fault in ["out_of_memory_at_step = 9", "out_of_memory_at_step = 1"] {
        assert_eq!(failures(fault), [None; 4], "{fault}");
    }
}

#[test]
fn only_the_row_that_is_too_much_alone_fails() {
    // The second asks for more than there is from its third pass on, whoever is with it.
    let failed = failures("prompt_contains = 'poison'\nout_of_memory_from_step = 3");
    assert_eq!(failed, [None, Some(FailureKind::Step), None, None]);
}

/// How eight streams and a long prompt fare where memory holds so many rows and prompt tokens: the passes
/// that failed, and those that ran.
fn passes_where_memory_holds(rows: u32, tokens: u32) -> (usize, usize) {
    let small = script(&format!(
        "[model]\nout_of_memory_above_rows = {rows}\nout_of_memory_above_tokens = {tokens}\n\
         [cost]\nstep_micros = 4000\niterate_row_micros = 500\nbegin_token_micros = 100"
    ));
    let mut world = World::new(config(9, Batching::Continuous), &small);
    let streams = (0..8).map(|i| world.submit(job(&format!("stream {i}"), 300)));
    let mut logs: Vec<_> = streams.collect();
    world.run_until(Time::from_millis(500));
    logs.push(world.submit(job(&"long ".repeat(300), 40)));
    world.run();
    world.check_at_rest();
    for log in &logs {
        assert_eq!(log.failure(), None);
    }
    let book = world.book.borrow();
    let failed = book.scarcity.failures;
    (failed, book.passes.len() - failed)
}

#[test]
fn passes_are_planned_smaller_for_a_while_after_memory_ran_out() {
    let (failed, ran) = passes_where_memory_holds(100, 100_000);
    assert_eq!(failed, 0);
    assert!(ran < 400, "{ran} passes");
    for (rows, tokens) in [(8, 50), (3, 1_000), (1, 1)] {
        let (failed, ran) = passes_where_memory_holds(rows, tokens);
        assert!(failed > 0, "it was scarce");
        // The limit doubles every ten seconds, and each doubling may be one too many.
        assert!(
            failed * 20 < ran,
            "{failed} of {ran} passes failed with {rows} rows"
        );
    }
}

#[test]
fn pictures_that_do_not_fit_a_pass_together_take_turns() {
    let planted = script(
        "image = { out_of_memory_above = 3 }\n\
         cost = { step_micros = 10000, iterate_row_micros = 10000, begin_token_micros = 2000 }",
    );
    let mut world = World::new(config(6, Batching::Continuous), &planted);
    let drawn: Vec<_> = (0..6)
        .map(|i| world.draw(picture(&format!("picture {i}"), 40)))
        .collect();
    world.run();
    world.check_at_rest();
    for log in &drawn {
        assert_eq!(log.failure(), None);
    }
    // At one pace: nobody is drawn while others have hardly begun.
    let ends: Vec<Time> = drawn.iter().filter_map(|log| log.closed_at()).collect();
    let apart = *ends.iter().max().unwrap() - *ends.iter().min().unwrap();
    assert!(apart < Duration::from_millis(1_000), "{apart:?}");
    assert!(world.book.borrow().scarcity.failures <= 3);
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
