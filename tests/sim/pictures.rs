//! The rules for pictures, one by one: who shares a step, who is decoded when, what is promised.

use std::time::Duration;

use girandole::batch::Phase;
use girandole::events::{EventKind, FailureKind};
use girandole::job::{ImageJob, Job};
use girandole::scheduler::Batching;
use girandole::time::Time;

use crate::gallery::{picture, step_times, tokens};
use crate::log::Log;
use crate::world::{Action, World, config, script};

/// A step takes 10 ms and 10 ms for each picture, a decoding 40 ms.
const COSTS: &str = "image = {}\n\
    cost = { step_micros = 10000, iterate_row_micros = 10000, begin_token_micros = 2000 }";
const STEP_OF_ONE: Duration = Duration::from_millis(20);
const DECODING: Duration = Duration::from_millis(40);

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn guided(job: ImageJob) -> ImageJob {
    ImageJob {
        negative: Some(tokens("ugly")),
        guidance_scale: 7.5,
        ..job
    }
}

fn sized(width: u32, height: u32, job: ImageJob) -> ImageJob {
    ImageJob {
        width,
        height,
        ..job
    }
}

/// When the picture was there.
fn drawn_at(log: &Log) -> Time {
    let drawn = log.time_of(|kind| matches!(kind, EventKind::Image { .. }));
    drawn.expect("a picture")
}

/// The longest time between two steps of a picture.
fn longest_gap(log: &Log, choice: u32) -> Duration {
    let times = step_times(log, choice);
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    gaps.max().expect("two steps")
}

/// Acceptance line 3: requests with 4 and 50 steps share their passes.
#[test]
fn a_short_picture_joins_a_long_one_within_a_step_and_is_there_first() {
    let mut world = World::new(config(4, Batching::Continuous), &script(COSTS));
    let long = world.draw(picture("long", 50));
    world.run_until(Time::from_millis(200));
    let asked = world.now();
    let short = world.draw(picture("short", 4));
    world.run();
    world.check_at_rest();
    let started = short.started_at().unwrap();
    assert!(
        started - asked <= STEP_OF_ONE,
        "it waited for more than the pass that ran"
    );
    // It is begun in the pass after that, and takes its first step in the next.
    let first_step = step_times(&short, 0)[0];
    assert!(
        first_step - asked <= STEP_OF_ONE + ms(22) + ms(30),
        "{first_step}"
    );
    assert!(drawn_at(&short) < drawn_at(&long));
    let shared = |pass: &&crate::world::PassSeen| pass.iterate_rows() == 2;
    let book = world.book.borrow();
    assert_eq!(
        book.passes.iter().filter(shared).count(),
        4,
        "its steps are all shared"
    );
    assert_eq!(step_times(&long, 0).len(), 50);
}

#[test]
fn a_cancel_frees_its_slot_within_a_step() {
    let mut world = World::new(config(1, Batching::Continuous), &script(COSTS));
    let first = world.draw(guided(picture("first", 50)));
    let second = world.draw(picture("second", 3));
    world.at(Time::from_millis(205), Action::Cancel { back: 1 });
    world.run();
    let cancelled = first.closed_at().unwrap();
    assert!(
        cancelled - Time::from_millis(205) <= ms(30),
        "a step of two rows"
    );
    assert_eq!(second.started_at(), Some(cancelled));
    assert_eq!(
        first.time_of(|kind| matches!(kind, EventKind::Image { .. })),
        None
    );
    assert_eq!(step_times(&second, 0).len(), 3);
}

#[test]
fn decodings_are_metered() {
    let mut world = World::new(config(8, Batching::Continuous), &script(COSTS));
    let running = world.draw(picture("running", 60));
    world.run_until(Time::from_millis(100));
    // Six at once come to their end in the same step.
    let six = world.draw(ImageJob {
        images: 6,
        ..picture("six", 3)
    });
    world.run();
    assert!(longest_gap(&running, 0) <= ms(10 + 7 * 10 + 6 * 2) + DECODING);
    let book = world.book.borrow();
    let decodings: Vec<usize> = (0..book.passes.len())
        .filter(|&pass| book.passes[pass].rows[0].phase == Phase::Finish)
        .collect();
    assert_eq!(decodings.len(), 7);
    let six_of_them = &decodings[..6];
    let alternate = six_of_them.windows(2).all(|pair| pair[1] == pair[0] + 2);
    assert!(alternate, "{decodings:?}");
    let ends = (0..6).map(|choice| six.reason(choice));
    assert!(ends.clone().all(|end| end.is_some()));
}

#[test]
fn sizes_take_turns_and_decodings_have_one_of_their_own() {
    let mut world = World::new(config(12, Batching::Continuous), &script(COSTS));
    let sizes = [64, 96, 128];
    let large_group = ImageJob {
        images: 6,
        ..picture("six", 30)
    };
    let mut logs = vec![world.draw(large_group)];
    for size in sizes {
        logs.push(world.draw(sized(size, size, picture("one", 40))));
    }
    // Pictures of two steps come all the time, so that there is always something to decode.
    for i in 0..60 {
        let short = sized(sizes[i % 3], sizes[i % 3], picture("short", 2));
        world.at(
            Time::from_millis(200 + 97 * i as u64),
            Action::Submit {
                job: Job::Image(short),
                deadline: None,
            },
        );
    }
    world.run();
    world.check_at_rest();
    // A pass of each size, the slots' twelve rows divided among them, beginners, and one decoding.
    let round = 3 * ms(10) + 12 * ms(10) + 12 * ms(2) + DECODING;
    for log in logs {
        assert!(longest_gap(&log, 0) <= round, "{:?}", longest_gap(&log, 0));
    }
}

#[test]
fn a_newcomer_of_any_size_begins_in_the_next_pass_and_steps_within_a_round() {
    let mut world = World::new(config(12, Batching::Continuous), &script(COSTS));
    for size in [64, 96] {
        world.draw(sized(size, size, picture("running", 50)));
    }
    world.run_until(Time::from_millis(300));
    let before = world.book.borrow().passes.len();
    let newcomer = world.draw(sized(128, 64, picture("new", 5)));
    world.run_until(Time::from_millis(500));
    let book = world.book.borrow();
    let phases: Vec<Phase> = book.passes[before..before + 4]
        .iter()
        .map(|pass| pass.rows[0].phase)
        .collect();
    // Both others have theirs, then it its first step.
    let wanted = [Phase::Iterate, Phase::Begin, Phase::Iterate, Phase::Iterate];
    assert!(phases == wanted || phases[..3] == wanted[1..], "{phases:?}");
    assert!(!step_times(&newcomer, 0).is_empty());
}

#[test]
fn rows_beyond_a_passes_work_step_in_turn_and_at_one_pace() {
    let limited = script(&COSTS.replace("{}", "{ pass_work = 3 }"));
    let mut world = World::new(config(8, Batching::Continuous), &limited);
    let logs = [false, true, false, false, true].map(|with| {
        let job = picture("one", 12);
        world.draw(if with { guided(job) } else { job })
    });
    world.run();
    world.check_at_rest();
    {
        let book = world.book.borrow();
        let work = |pass: &crate::world::PassSeen| {
            let iterating = pass.rows.iter().filter(|row| row.phase == Phase::Iterate);
            iterating.map(|row| row.work).sum::<u32>()
        };
        assert_eq!(book.passes.iter().map(work).max(), Some(3));
    }
    // Seven units in passes of three, nobody overtaking: each has its next step within three passes.
    {
        let book = world.book.borrow();
        let steps = book.passes.iter().filter(|pass| pass.iterate_rows() > 0);
        let steps: Vec<_> = steps.collect();
        for slot in 0..5 {
            let took_part = |pass: &&crate::world::PassSeen| {
                pass.rows.iter().any(|row| {
                    row.phase == Phase::Iterate && row.slot == girandole::batch::Slot(slot)
                })
            };
            let own: Vec<usize> = (0..steps.len())
                .filter(|at| took_part(&steps[*at]))
                .collect();
            assert_eq!(own.len(), 12);
            assert!(own.windows(2).all(|pair| pair[1] - pair[0] <= 3), "{own:?}");
        }
    }
    // Nobody is more than two steps ahead of anybody: one, and one that was taken while others began.
    let times = logs.each_ref().map(|log| step_times(log, 0));
    for step in 2..12 {
        let first = times.iter().map(|times| times[step]).min();
        let last = times.iter().map(|times| times[step - 2]).max();
        assert!(last <= first, "step {step}: {last:?} after {first:?}");
    }
}

#[test]
fn a_dynamic_batch_takes_one_size_and_ends_with_its_last_decoding() {
    let mut world = World::new(config(4, Batching::Dynamic), &script(COSTS));
    let sizes = [64, 96, 64, 96, 64];
    let logs = sizes.map(|size| world.draw(sized(size, size, picture("one", 5))));
    world.run();
    world.check_at_rest();
    let starts = logs.each_ref().map(|log| log.started_at().unwrap());
    assert_eq!(
        starts,
        [0, 3, 0, 3, 0].map(|log| match log {
            0 => starts[0],
            other => starts[other],
        })
    );
    let last_of_first = [0, 2, 4].map(|log| logs[log].closed_at().unwrap());
    assert_eq!(Some(&starts[1]), last_of_first.iter().max());
    let book = world.book.borrow();
    let decodings = book
        .passes
        .iter()
        .filter(|pass| pass.rows[0].phase == Phase::Finish);
    assert_eq!(decodings.count(), 5);
}

#[test]
fn a_picture_that_is_only_decoded_takes_no_step() {
    let source = girandole::job::SourceImage {
        picture: std::sync::Arc::new(girandole::picture::Picture::new(
            64,
            64,
            vec![1; 3 * 64 * 64],
        )),
        strength: 0.01,
        mask: None,
    };
    let mut world = World::new(config(1, Batching::Continuous), &script(COSTS));
    let log = world.draw(ImageJob {
        source: Some(source),
        ..picture("as it was", 20)
    });
    world.run();
    assert_eq!(step_times(&log, 0), []);
    assert_eq!(log.closed_at(), Some(Time::ZERO + ms(12) + DECODING));
}

#[test]
fn guidance_counts_as_two_rows() {
    let small = script(&format!("model.memory_units = 5\n{COSTS}"));
    let mut world = World::new(config(8, Batching::Continuous), &small);
    let logs = [true, true, false, false].map(|with| {
        let job = picture("one", 10);
        world.draw(if with { guided(job) } else { job })
    });
    world.run();
    let starts = logs.each_ref().map(|log| log.started_at().unwrap());
    assert_eq!(starts[..3], [starts[0]; 3]);
    assert_eq!(
        Some(starts[3]),
        logs[0].closed_at().min(logs[2].closed_at())
    );
    let tiny = script(&format!("model.memory_units = 1\n{COSTS}"));
    let mut world = World::new(config(8, Batching::Continuous), &tiny);
    let refused = world.draw(guided(picture("too much", 10)));
    let taken = world.draw(picture("enough", 10));
    world.run();
    assert_eq!(refused.failure(), Some(FailureKind::Row));
    let Some(EventKind::Failed { failure, .. }) = refused.events().pop() else {
        panic!("not failed");
    };
    assert!(failure.message.contains("needs 2") && failure.message.contains("has 1"));
    assert_eq!(taken.failure(), None);
}
