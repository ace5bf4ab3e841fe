//! What the scheduler itself costs: a step of a full batch, and telling a long queue its places.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use girandole::batch::{BatchKey, Capacity, DeviceNumber, RowCost, StepPlan};
use girandole::job::{Priority, RequestId, UserId};
use girandole::scheduler::{Batching, Entry, Fairness, RowResult, Scheduler, SchedulerConfig};
use girandole::time::Time;

const KEY: BatchKey = BatchKey(0);

fn entry(number: u128, max_iterations: u32) -> Entry {
    Entry {
        request: RequestId::from_u128(number),
        user: UserId::default(),
        priority: Priority::Normal,
        rows: 1,
        key: KEY,
        cost: RowCost {
            iterate_work: 1,
            finish_work: 0,
            begin_work: 8,
            max_iterations,
            memory_units: 4,
        },
        deadline: None,
    }
}

/// A scheduler with `slots` rows that iterate, and `waiting` requests behind them.
fn busy(slots: u32, waiting: u32) -> (Scheduler, Time) {
    let config = SchedulerConfig {
        batch_size: slots,
        max_queue_delay: Duration::ZERO,
        batching: Batching::Continuous,
        step_budget: Duration::from_millis(50),
        fairness: Fairness::default(),
    };
    let capacity = Capacity {
        slots,
        memory_units: slots * 4,
    };
    let mut scheduler = Scheduler::new(config, capacity);
    let mut now = Time::ZERO;
    for number in 0..slots + waiting {
        scheduler.add(now, entry(u128::from(number), u32::MAX / 2));
    }
    while step(&mut scheduler, &mut now).run.len() < slots as usize {}
    step(&mut scheduler, &mut now);
    (scheduler, now)
}

fn step(scheduler: &mut Scheduler, now: &mut Time) -> StepPlan {
    let plan = scheduler.schedule(*now, DeviceNumber(0));
    *now = *now + Duration::from_micros(500);
    let results: Vec<RowResult> = plan
        .run
        .iter()
        .map(|planned| RowResult {
            slot: planned.slot,
            next: Some(KEY),
        })
        .collect();
    scheduler.update(*now, DeviceNumber(0), &plan.run, &results);
    plan
}

fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler/step");
    for slots in [16, 256] {
        let (mut scheduler, mut now) = busy(slots, 1_000);
        group.bench_function(BenchmarkId::from_parameter(slots), |bencher| {
            bencher.iter(|| black_box(step(&mut scheduler, &mut now)));
        });
    }
    group.finish();
}

fn surveys(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler/survey");
    for waiting in [100, 10_000] {
        let (mut scheduler, now) = busy(64, waiting);
        group.bench_function(BenchmarkId::from_parameter(waiting), |bencher| {
            bencher.iter(|| black_box(scheduler.survey(now)));
        });
    }
    group.finish();
}

fn comings_and_goings(criterion: &mut Criterion) {
    let (mut scheduler, now) = busy(64, 10_000);
    criterion.bench_function("scheduler/add and cancel behind 10000", |bencher| {
        bencher.iter(|| {
            let newcomer = entry(u128::MAX, 100);
            black_box(scheduler.add(now, newcomer));
            scheduler.cancel(newcomer.request);
        });
    });
}

/// When 16 pictures will be there, with 256 behind them: told after each of their steps.
fn endings(criterion: &mut Criterion) {
    let config = SchedulerConfig {
        batch_size: 16,
        max_queue_delay: Duration::ZERO,
        batching: Batching::Continuous,
        step_budget: Duration::from_millis(50),
        fairness: Fairness::default(),
    };
    let capacity = Capacity {
        slots: 16,
        memory_units: 32,
    };
    let mut scheduler = Scheduler::new(config, capacity);
    let mut now = Time::ZERO;
    for number in 0..272_u32 {
        let cost = RowCost {
            iterate_work: 1 + number % 2,
            finish_work: 3,
            begin_work: 1,
            max_iterations: 4 + number % 50,
            memory_units: 1 + number % 2,
        };
        let request = entry(u128::from(number), 0);
        scheduler.add(now, Entry { cost, ..request });
    }
    for _ in 0..4 {
        step(&mut scheduler, &mut now);
    }
    criterion.bench_function("scheduler/endings of 16 before 256", |bencher| {
        bencher.iter(|| black_box(scheduler.endings(now, DeviceNumber(0))));
    });
}

criterion_group!(benches, steps, surveys, comings_and_goings, endings);
criterion_main!(benches);
