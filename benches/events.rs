//! What one event costs: appending to a shared log, reading it back, coalescing, pacing.
#![allow(missing_docs, reason = "criterion's macros")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use girandole::events::coalesce::coalesce;
use girandole::events::pacer::{Pacer, Urgency};
use girandole::events::store::{EventStore, Retention, SharedLog};
use girandole::events::{EventKind, EventSink};
use girandole::job::RequestId;
use girandole::time::{ManualClock, Time};

fn text(choice: u32) -> EventKind {
    EventKind::Text {
        choice,
        text: " light".into(),
        tokens: vec![1_234],
        logprobs: Vec::new(),
    }
}

fn log_of(events: u32, choices: u32) -> Arc<SharedLog> {
    let store = EventStore::new(Retention::default(), Arc::new(ManualClock::default()));
    let log = store.open(RequestId::from_u128(1));
    for event in 0..events {
        log.append(Time::ZERO, text(event % choices));
    }
    log
}

fn events(criterion: &mut Criterion) {
    criterion.bench_function("append one token", |bencher| {
        bencher.iter_batched_ref(
            || log_of(0, 1),
            |log| log.append(Time::ZERO, text(0)),
            BatchSize::SmallInput,
        );
    });
    let long = log_of(4_000, 1);
    criterion.bench_function("read 4000 events", |bencher| {
        bencher.iter(|| black_box(long.read_from(1)));
    });
    for choices in [1, 4] {
        let frame = log_of(16, choices).read_from(1);
        criterion.bench_function(&format!("coalesce 16 events of {choices}"), |bencher| {
            bencher.iter_batched(|| frame.clone(), coalesce, BatchSize::SmallInput);
        });
    }
    criterion.bench_function("pace one frame", |bencher| {
        let mut pacer = Pacer::new(20, 3);
        bencher.iter(|| {
            let at = pacer.ready_at(Urgency::Routine);
            pacer.said(at);
            at
        });
    });
}

criterion_group!(benches, events);
criterion_main!(benches);
