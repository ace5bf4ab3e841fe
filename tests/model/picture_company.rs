//! Random company: whatever arrives, leaves and is cancelled around it, and however steps, schedules, sizes
//! and guidance mix, a picture is the one that its request draws alone, bit for bit.

use std::io::Cursor;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use girandole::engine::turn::{Engine, Turn, unthreaded};
use girandole::engine::{EngineConfig, EngineHandle, Observer, Submission};
use girandole::events::{EventKind, EventSink};
use girandole::intake::picture_file::{DrawnWhere, MaskFile, PictureFile};
use girandole::intake::{ImageDefaults, ImageDraft, ImageIntake, ImageLimits};
use girandole::job::{Job, Priority, RequestId, UserId};
use girandole::model::device::DeviceSpec;
use girandole::model::diffusion::loader::{DiffusionAssets, build, load_assets};
use girandole::model::image_frontend::ImageFrontend;
use girandole::picture::Picture;
use girandole::scheduler::{Batching, Fairness, SchedulerConfig};
use girandole::time::{Clock, ManualClock, Time};
use image::{DynamicImage, GrayImage, ImageFormat, RgbImage};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::pictures::{draw, options};

/// Worlds to run; each prints its seed if it fails.
const SEEDS: u64 = 200;
const SLOTS: u32 = 4;

#[derive(Default)]
struct Log(Mutex<Vec<EventKind>>);

impl EventSink for Log {
    fn append(&self, _at: Time, kind: EventKind) {
        self.0.lock().expect("nobody panicked").push(kind);
    }
}

impl Log {
    fn events(&self) -> Vec<EventKind> {
        self.0.lock().expect("nobody panicked").clone()
    }

    fn is_closed(&self) -> bool {
        self.events().last().is_some_and(EventKind::is_terminal)
    }

    fn pictures(&self) -> Vec<(u32, Arc<Picture>)> {
        let of = |event: EventKind| match event {
            EventKind::Image {
                choice, picture, ..
            } => Some((choice, picture)),
            _ => None,
        };
        self.events().into_iter().filter_map(of).collect()
    }

    fn steps(&self, choice: u32) -> u32 {
        let of = |event: &EventKind| matches!(event, EventKind::Progress { choice: of, .. } if *of == choice);
        self.events().iter().filter(|event| of(event)).count() as u32
    }
}

struct Quiet;
impl Observer for Quiet {}

fn assets() -> DiffusionAssets {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/diffusion/sd15-tiny");
    load_assets(&folder, None).expect("the model is sound")
}

fn intake(assets: &DiffusionAssets) -> ImageIntake {
    ImageIntake {
        frontend: Arc::clone(&assets.frontend) as Arc<dyn ImageFrontend>,
        size_factor: assets.size_factor,
        defaults: ImageDefaults::default(),
        limits: ImageLimits::default(),
    }
}

/// A job of its own kind for each number: sizes, schedules, steps, guidance, sources, prompts of one window
/// and of two.
fn job(intake: &ImageIntake, number: u64) -> Job {
    const SCHEDULES: [&str; 7] = [
        "ddim",
        "ddpm",
        "euler",
        "euler a",
        "dpm++ 2m karras",
        "unipc",
        "lcm",
    ];
    let mut draw = ChaCha8Rng::seed_from_u64(number);
    let mut below = |limit: u64| draw.next_u64() % limit;
    let mut draft = ImageDraft::new(format!(
        "picture {number} ({}:1.2)",
        "word ".repeat(below(40) as usize)
    ));
    let (width, height) = [(64, 64), (64, 64), (48, 80), (64, 40)][below(4) as usize];
    (draft.width, draft.height) = (Some(width), Some(height));
    draft.steps = Some(1 + below(6));
    draft.schedule = Some(SCHEDULES[below(7) as usize].to_owned());
    draft.n = Some(1 + below(2));
    draft.seed = Some(below(1 << 40));
    let guided = below(2) == 1;
    draft.guidance_scale = Some(if guided { 1.5 + below(8) as f64 } else { 1.0 });
    if guided && below(2) == 1 {
        draft.negative_prompt = Some("blurry".to_owned());
    }
    if draft.schedule.as_deref() == Some("ddim") {
        draft.eta = Some(below(2) as f64 / 2.0);
    }
    if below(3) == 0 {
        let bytes = (0..3 * width * height).map(|_| below(256) as u8).collect();
        let pixels = RgbImage::from_raw(width as u32, height as u32, bytes).expect("whole");
        draft.source = Some(file(&pixels.into()));
        draft.strength = Some([0.5, 0.8, 1.0][below(3) as usize]);
        draft.steps = Some(2 + below(4));
        if below(2) == 0 {
            let values = (0..width * height)
                .map(|at| (at % width < width / 2) as u8 * 255)
                .collect();
            let pixels = GrayImage::from_raw(width as u32, height as u32, values).expect("whole");
            draft.mask = Some(MaskFile {
                file: file(&pixels.into()),
                drawn: DrawnWhere::White,
            });
        }
    }
    Job::Image(intake.job(draft).expect("the draft is sound"))
}

fn file(pixels: &DynamicImage) -> PictureFile {
    let mut bytes = Cursor::new(Vec::new());
    pixels
        .write_to(&mut bytes, ImageFormat::Png)
        .expect("memory can be written to");
    PictureFile::new(bytes.into_inner())
}

struct World {
    clock: Arc<ManualClock>,
    handle: EngineHandle,
    engine: Engine,
}

impl World {
    fn new(assets: &DiffusionAssets, batching: Batching) -> Self {
        let clock = Arc::new(ManualClock::default());
        let config = EngineConfig {
            devices: 1,
            scheduler: SchedulerConfig {
                batch_size: SLOTS,
                max_queue_delay: Duration::from_millis(2),
                batching,
                step_budget: Duration::from_millis(50),
                fairness: Fairness::default(),
            },
            max_queued_requests: 64,
            max_queued_tokens: 1 << 20,
            max_queued_source_bytes: 1 << 30,
        };
        let model = build(assets, DeviceSpec::Cpu, &options(SLOTS)).expect("the model loads");
        let (handle, engine) = unthreaded(
            "tiny",
            config,
            Arc::clone(&clock) as Arc<dyn Clock>,
            Arc::new(Quiet),
            Box::new(model),
        );
        World {
            clock,
            handle,
            engine,
        }
    }

    fn send(&self, id: u128, job: &Arc<Job>) -> Arc<Log> {
        let log = Arc::new(Log::default());
        let permit = self
            .handle
            .reserve(UserId::default(), job.rows(), 1)
            .expect("room");
        let submission = Submission {
            id: RequestId::from_u128(id),
            job: Arc::clone(job),
            log: Arc::clone(&log) as Arc<dyn EventSink>,
            deadline: None,
            priority: Priority::Normal,
        };
        self.handle.submit(permit, submission).expect("room");
        log
    }

    /// One turn, a millisecond of virtual time, and on to the next time that anything is due.
    fn turn(&mut self) -> Turn {
        let clock = Arc::clone(&self.clock);
        clock.advance(Duration::from_millis(1));
        let turn = self.engine.turn(clock.as_ref());
        if let Turn::Sleep(until) = turn {
            clock.advance_to(until);
        }
        turn
    }
}

#[test]
fn a_picture_in_random_company_is_the_picture_alone() {
    const KINDS: u64 = 24;
    let assets = assets();
    let intake = intake(&assets);
    let jobs: Vec<Arc<Job>> = (0..KINDS)
        .map(|kind| Arc::new(job(&intake, kind)))
        .collect();
    let mut single = build(&assets, DeviceSpec::Cpu, &options(1)).expect("the model loads");
    let alone: Vec<Vec<Picture>> = jobs
        .iter()
        .map(|job| {
            (0..job.rows())
                .map(|choice| draw(&mut single, job, choice).0)
                .collect()
        })
        .collect();
    let mut worlds =
        [Batching::Continuous, Batching::Dynamic].map(|batching| World::new(&assets, batching));
    let (mut drawn, mut cancelled) = (0, 0);
    for seed in 0..SEEDS {
        let mut random = ChaCha8Rng::seed_from_u64(1_000 + seed);
        let mut below = |limit: u64| random.next_u64() % limit;
        let world = &mut worlds[(seed % 4 == 3) as usize];
        let mut sent: Vec<(usize, u128, Arc<Log>, bool)> = Vec::new();
        let requests = 3 + below(4);
        let mut idle_turns = 0;
        while (sent.len() as u64) < requests || sent.iter().any(|(_, _, log, _)| !log.is_closed()) {
            if (sent.len() as u64) < requests && below(2) == 0 {
                let kind = below(KINDS) as usize;
                let id = u128::from(seed * 100 + sent.len() as u64 + 1);
                sent.push((kind, id, world.send(id, &jobs[kind]), false));
            }
            if below(12) == 0 && !sent.is_empty() {
                let chosen = below(sent.len() as u64) as usize;
                let (_, id, log, was_cancelled) = &mut sent[chosen];
                if !log.is_closed() {
                    world.handle.cancel(RequestId::from_u128(*id));
                    *was_cancelled = true;
                }
            }
            idle_turns = match world.turn() {
                Turn::Again => 0,
                _ => idle_turns + 1,
            };
            assert!(idle_turns < 1_000, "seed {seed}: the engine stands still");
        }
        for (kind, id, log, was_cancelled) in &sent {
            let job = jobs[*kind].image();
            let pictures = log.pictures();
            for (choice, picture) in &pictures {
                let equal = **picture == alone[*kind][*choice as usize];
                assert!(
                    equal,
                    "seed {seed}, request {id}, kind {kind}, picture {choice}"
                );
                assert_eq!(
                    log.steps(*choice),
                    job.iterations(),
                    "seed {seed}, request {id}"
                );
            }
            drawn += pictures.len();
            cancelled += usize::from(*was_cancelled);
            let events = log.events();
            let finished = matches!(events.last(), Some(EventKind::Finished { .. }));
            assert!(finished, "seed {seed}, request {id}: {:?}", events.last());
            assert!(
                *was_cancelled || pictures.len() as u32 == job.images,
                "seed {seed}, request {id}: {} pictures of {}",
                pictures.len(),
                job.images
            );
        }
    }
    assert!(
        drawn > 800 && cancelled > 50,
        "{drawn} drawn, {cancelled} cancelled"
    );
}

#[test]
fn a_short_picture_joins_a_long_one_at_its_next_step_and_ends_first() {
    let assets = assets();
    let intake = intake(&assets);
    let make = |steps| {
        let mut draft = ImageDraft::new("a lamp");
        (draft.width, draft.height) = (Some(64), Some(64));
        (draft.steps, draft.seed) = (Some(steps), Some(steps));
        Arc::new(Job::Image(intake.job(draft).expect("sound")))
    };
    let (long, short) = (make(50), make(4));
    let mut world = World::new(&assets, Batching::Continuous);
    let long_log = world.send(1, &long);
    while long_log.steps(0) < 10 {
        world.turn();
    }
    let short_log = world.send(2, &short);
    let mut joined_after = None;
    while !short_log.is_closed() {
        let before = (long_log.steps(0), short_log.steps(0));
        world.turn();
        if before.1 == 0 && short_log.steps(0) == 1 {
            // In one and the same pass: both have moved on.
            assert_eq!(long_log.steps(0), before.0 + 1);
            joined_after = Some(before.0 - 10);
        }
    }
    // One pass reads its prompt beside the long one's step; it is part of the next.
    assert_eq!(joined_after, Some(1));
    assert!(
        !long_log.is_closed() && long_log.steps(0) < 20,
        "{}",
        long_log.steps(0)
    );

    // A cancel is heeded before the next step.
    let at_cancel = long_log.steps(0);
    world.handle.cancel(RequestId::from_u128(1));
    world.turn();
    assert!(long_log.is_closed());
    assert_eq!(long_log.steps(0), at_cancel);
    assert_eq!(world.engine.scheduler().running_rows(), 0);
}
