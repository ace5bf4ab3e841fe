//! Random pictures from a printed seed: sizes, step counts, guidance, sources, cancels and deadlines in
//! every mixture, and each picture is what it would be if it were alone.

use std::sync::Arc;

use girandole::batch::{Emission, FinishReason, Next, Phase, PlannedRow, Slot};
use girandole::events::{EventKind, FailureKind};
use girandole::job::{ImageJob, Job, Previews, PromptTokens, ScheduleName, SourceImage};
use girandole::model::Model;
use girandole::model::image_frontend::ImageFrontend;
use girandole::model::scripted::{Script, ScriptedFrontend, ScriptedImageModel};
use girandole::picture::Picture;

use crate::log::Log;
use crate::random::{Named, Random, plan_traffic, random_config, run_seeds};
use crate::world::{Sent, World, script};

const SEEDS: u64 = 300;

/// One picture of 64 x 64 pixels, without guidance.
pub(crate) fn picture(prompt: &str, steps: u32) -> ImageJob {
    ImageJob {
        width: 64,
        height: 64,
        images: 1,
        prompt: tokens(prompt),
        negative: None,
        negative_given: false,
        guidance_scale: 1.0,
        clip_skip: 0,
        steps,
        schedule: ScheduleName::Ddim,
        karras: false,
        eta: 0.0,
        seed: 7,
        source: None,
        previews: Previews::None,
    }
}

/// A prompt, as the scripted model reads it.
pub(crate) fn tokens(prompt: &str) -> Arc<[PromptTokens]> {
    let read = ScriptedFrontend.tokenize(prompt, 4);
    read.expect("a short prompt").into()
}

/// What a row says in a world of its own: its previews, by step, and its picture.
type Alone = (Vec<(u32, Arc<Picture>)>, Arc<Picture>);

fn alone(script: &Script, job: &Arc<Job>, choice: u32) -> Alone {
    let mut model = ScriptedImageModel::new(script.clone(), Box::new(|_| ())).expect("a script");
    let cost = model.cost(job);
    model.admit(Slot(0), job, choice).expect("an empty slot");
    let iterations = job.image().iterations();
    let mut previews = Vec::new();
    for pass in 0..=iterations + 1 {
        let (phase, work) = match pass {
            0 => (Phase::Begin, cost.begin_work),
            _ if pass <= iterations => (Phase::Iterate, cost.iterate_work),
            _ => (Phase::Finish, cost.finish_work),
        };
        let planned = PlannedRow {
            slot: Slot(0),
            phase,
            work,
        };
        let outcome = model.step(&[planned]).expect("a pass").remove(0);
        assert_eq!(
            outcome.next == Next::Finish(FinishReason::Stop),
            phase == Phase::Finish
        );
        for emission in outcome.emitted {
            match emission {
                Emission::Preview { step, picture } => previews.push((step, picture)),
                Emission::Image { picture, .. } => return (previews, picture),
                _ => {}
            }
        }
    }
    panic!("it drew nothing");
}

fn random_script(random: &mut Random) -> Script {
    let pass_work = match random.one_in(3) {
        true => format!("pass_work = {}\n", 1 + random.below(12)),
        false => String::new(),
    };
    let scarce = match random.one_in(3) {
        true => format!("out_of_memory_above = {}\n", 1 + random.below(6)),
        false => String::new(),
    };
    script(&format!(
        "[model]\nmemory_units = {}\n\
         [image]\niterate_work = {}\nfinish_work = {}\n{pass_work}{scarce}\
         [cost]\nstep_micros = {}\niterate_row_micros = {}\nbegin_token_micros = {}\n",
        1 + random.below(30),
        1 + random.below(4),
        1 + random.below(20),
        random.below(10_000),
        random.below(4_000),
        random.below(20_000),
    ))
}

fn random_job(random: &mut Random, number: u64) -> Job {
    let sizes = [64, 64, 96, 128];
    let size = |random: &mut Random| sizes[random.below(4) as usize];
    let (width, height) = (size(random), size(random));
    let steps = match random.one_in(3) {
        true => 1 + random.below(4) as u32,
        false => 1 + random.skewed(50) as u32,
    };
    let source = random.one_in(4).then(|| SourceImage {
        picture: Arc::new(Picture::new(
            width,
            height,
            vec![9; (3 * width * height) as usize],
        )),
        // Less than a step is possible: it is only decoded.
        strength: (1 + random.below(100)) as f64 / 100.0,
        mask: None,
    });
    Job::Image(ImageJob {
        width,
        height,
        images: match random.one_in(5) {
            true => 1 + random.below(4) as u32,
            false => 1,
        },
        negative: random.one_in(2).then(|| tokens("ugly")),
        seed: random.next(),
        source,
        previews: match random.below(3) {
            0 => Previews::None,
            1 => Previews::Latest,
            _ => Previews::After([1, 1 + steps / 2].into()),
        },
        ..picture(&format!("number {number}"), steps)
    })
}

/// What a request's log must say in the end.
fn check_end(script: &Script, sent: &Sent) {
    let image = sent.job.image();
    let events = sent.log.events();
    let (mut steps, mut images) = (0, 0);
    for choice in 0..image.images {
        let (previews, drawing) = alone(script, &sent.job, choice);
        let said = of_choice(&events, choice);
        let done = said.iter().filter(is_progress).count() as u32;
        let drawn = said
            .iter()
            .position(|kind| matches!(kind, EventKind::Image { .. }));
        steps += done;
        images += u32::from(drawn.is_some());
        let seen: Vec<(u32, Arc<Picture>)> = said
            .iter()
            .filter_map(|kind| match kind {
                EventKind::Preview { step, picture, .. } => Some((*step, Arc::clone(picture))),
                _ => None,
            })
            .collect();
        assert_eq!(
            seen[..],
            previews[..seen.len()],
            "it looks different in company"
        );
        match sent.log.reason(choice) {
            Some(FinishReason::Stop) => {
                assert_eq!(done, image.iterations());
                assert_eq!(seen.len(), previews.len());
                assert_eq!(
                    drawn,
                    Some(said.len() - 2),
                    "the picture comes last, then the end"
                );
                let Some(EventKind::Image { picture, seed, .. }) = said.get(said.len() - 2) else {
                    panic!("no picture");
                };
                assert_eq!((picture, *seed), (&drawing, image.seed_of(choice)));
            }
            Some(FinishReason::Cancelled) => assert!(sent.cancelled && drawn.is_none()),
            Some(FinishReason::Length) => panic!("a picture has no length"),
            None => assert!(sent.log.failure().is_some() && drawn.is_none()),
        }
    }
    let (Some(EventKind::Finished { usage }) | Some(EventKind::Failed { usage, .. })) =
        events.last()
    else {
        panic!("no terminal event");
    };
    assert_eq!((usage.denoising_steps, usage.images), (steps, images));
    check_failure(script, sent);
}

fn check_failure(script: &Script, sent: &Sent) {
    match sent.log.failure() {
        None => {}
        Some(FailureKind::DeadlineExceeded) => assert!(sent.log.closed_at() >= sent.deadline),
        Some(FailureKind::Abandoned) => assert!(sent.cancelled),
        Some(FailureKind::Row) => {
            let needed = sent.job.image().forward_rows();
            assert!(needed > script.model.memory_units && sent.log.started_at().is_none());
        }
        Some(other) => panic!("{other:?}"),
    }
}

fn is_progress(kind: &&EventKind) -> bool {
    matches!(kind, EventKind::Progress { .. })
}

/// What a log says of one choice, in order.
fn of_choice(events: &[EventKind], wanted: u32) -> Vec<EventKind> {
    let about = |kind: &&EventKind| match kind {
        EventKind::Progress { choice, .. }
        | EventKind::Preview { choice, .. }
        | EventKind::Image { choice, .. }
        | EventKind::ChoiceFinished { choice, .. } => *choice == wanted,
        _ => false,
    };
    events.iter().filter(about).cloned().collect()
}

/// When each step of a picture was done.
pub(crate) fn step_times(log: &Log, choice: u32) -> Vec<girandole::time::Time> {
    let of = |kind: &EventKind| match kind {
        EventKind::Progress { choice, .. } => Some(*choice),
        _ => None,
    };
    let events = log.timed();
    let steps = events.iter().filter(|(_, kind)| of(kind) == Some(choice));
    steps.map(|(at, _)| *at).collect()
}

fn run(seed: u64) -> usize {
    let _named = Named(seed);
    let mut random = Random(seed);
    let config = random_config(&mut random);
    let script = random_script(&mut random);
    let mut world = World::new(config, &script);
    plan_traffic(&mut random, &world, random_job);
    world.run();
    world.check_at_rest();
    for (_, sent) in &world.book.borrow().sent {
        check_end(&script, sent);
    }
    world.book.borrow().passes.len()
}

#[test]
fn random_pictures_keep_every_invariant() {
    run_seeds(SEEDS, run);
}

#[test]
fn cancelled_and_late_pictures_are_among_them() {
    let mut ends = [0; 4];
    for seed in 0..20 {
        let mut random = Random(seed);
        let config = random_config(&mut random);
        let script = random_script(&mut random);
        let mut world = World::new(config, &script);
        plan_traffic(&mut random, &world, random_job);
        world.run();
        for (_, sent) in &world.book.borrow().sent {
            let end = match (sent.log.failure(), sent.log.reason(0)) {
                (None, Some(FinishReason::Stop)) => 0,
                (None, _) => 1,
                (Some(FailureKind::DeadlineExceeded), _) => 2,
                (Some(_), _) => 3,
            };
            ends[end] += 1;
        }
    }
    assert!(ends.iter().all(|&count| count >= 20), "{ends:?}");
}
