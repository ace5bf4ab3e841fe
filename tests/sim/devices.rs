//! One queue before several devices: what everybody may expect of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use girandole::batch::DeviceNumber;
use girandole::scheduler::{Batching, Fairness, SchedulerConfig};
use girandole::time::Time;

use crate::fleet::{Asked, Fleet, Seen, cost};
use crate::random::Random;

const MEMORY: u32 = 1_000;

fn config(batch_size: u32, batching: Batching) -> SchedulerConfig {
    SchedulerConfig {
        batch_size,
        max_queue_delay: Duration::from_millis(20),
        batching,
        step_budget: Duration::from_millis(50),
        fairness: Fairness::default(),
    }
}

fn asked(at_ms: u64, user: u64, max_iterations: u32) -> Asked {
    Asked {
        at: Time::from_millis(at_ms),
        user,
        rows: 1,
        cost: cost(10, max_iterations),
        prefix: Vec::new(),
    }
}

/// Ten blocks that only this conversation begins with.
fn conversation(number: u64) -> Vec<u64> {
    (0..10).map(|block| number * 100 + block).collect()
}

fn random_traffic(random: &mut Random, with_prefixes: bool) -> Vec<Asked> {
    let pause = 1 + random.below(60);
    let mut at = 0;
    (0..150)
        .map(|_| {
            // Quiet times and bursts.
            at += match random.below(10) {
                0 => 40 * pause,
                1..=4 => 0,
                _ => random.below(pause + 1),
            };
            Asked {
                rows: 1 + (random.below(12) / 9) as u32 * random.below(6) as u32,
                cost: cost(1 + random.below(40) as u32, 1 + random.below(60) as u32),
                prefix: match with_prefixes {
                    true => conversation(random.below(7)),
                    false => Vec::new(),
                },
                ..asked(at, random.below(9), 1)
            }
        })
        .collect()
}

#[test]
fn nothing_is_lost_and_no_device_idles_while_somebody_waits() {
    for seed in 0..60 {
        let mut random = Random(1_000 + seed);
        let devices = 1 + random.below(4) as usize;
        let batching = match random.below(3) {
            0 => Batching::Dynamic,
            _ => Batching::Continuous,
        };
        let with_prefixes = random.below(2) == 0;
        let mut config = config(1 + random.below(6) as u32, batching);
        if random.below(3) == 0 {
            config.fairness.max_running_per_user = Some(1 + random.below(4) as u32);
        }
        let limit = config.fairness.max_running_per_user;
        let budget = config.step_budget;
        let slowness: Vec<u32> = (0..devices).map(|_| 1 + random.below(3) as u32).collect();
        eprintln!("seed {seed}: {config:?} {slowness:?} {with_prefixes}");
        let mut fleet = Fleet::new(config, &slowness, MEMORY);
        fleet.ask(random_traffic(&mut random, with_prefixes));
        fleet.run();
        // A row may be left to the device that knows its prompt, for as long as a step should take.
        let allowed = if with_prefixes {
            budget
        } else {
            Duration::ZERO
        };
        assert!(fleet.longest_idle <= allowed, "{:?}", fleet.longest_idle);
        assert!(limit.is_none_or(|limit| fleet.most_of_a_user <= limit));
    }
}

#[test]
fn a_burst_is_shared_out() {
    for (devices, requests, wanted) in [(2, 16, 8), (2, 8, 4), (4, 32, 8), (2, 2, 1), (4, 4, 1)] {
        let slowness = vec![1; devices];
        let mut fleet = Fleet::new(config(16, Batching::Continuous), &slowness, MEMORY);
        fleet.ask((0..requests).map(|user| asked(0, user, 50)));
        fleet.run_until(Time::from_millis(30));
        let rows = fleet.rows();
        // Two of sixteen are no clear difference.
        let is_fair = rows.iter().all(|rows| rows.abs_diff(wanted) <= 2);
        assert!(
            is_fair && rows.iter().all(|rows| *rows > 0),
            "{requests}: {rows:?}"
        );
        fleet.run();
    }
}

/// Rows of the one user that were started between a request's coming and its start.
fn turns_of(fleet: &Fleet, heavy: u64, of: &Seen) -> usize {
    let (started, _) = of.started.expect("it started");
    let heavies = fleet.seen.iter().filter(|seen| seen.asked.user == heavy);
    let starts = heavies.filter_map(|seen| seen.started);
    starts
        .filter(|(at, _)| of.asked.at < *at && *at < started)
        .count()
}

#[test]
fn users_take_turns_over_all_devices() {
    const HEAVY: u64 = 1_000;
    for devices in [1, 2, 4] {
        for batch_size in [1, 4, 16] {
            let slowness = vec![1; devices];
            let mut fleet = Fleet::new(config(batch_size, Batching::Continuous), &slowness, MEMORY);
            fleet.ask((0..300).map(|_| asked(0, HEAVY, 10)));
            fleet.ask((0..50).map(|user| asked(100 + 7 * user, user, 10)));
            fleet.run();
            for seen in fleet.seen.iter().filter(|seen| seen.asked.user != HEAVY) {
                let turns = turns_of(&fleet, HEAVY, seen);
                assert!(turns <= 1, "{devices} of {batch_size} rows: {turns} turns");
            }
        }
    }
}

#[test]
fn a_limit_of_a_user_is_one_of_all_devices_and_nobody_looks_in_vain_for_long() {
    let mut config = config(4, Batching::Continuous);
    config.fairness.max_running_per_user = Some(3);
    let mut fleet = Fleet::new(config, &[1, 1, 1], MEMORY);
    fleet.ask((0..60).map(|_| asked(0, 1, 20)));
    fleet.run();
    assert_eq!(fleet.most_of_a_user, 3);
    let passes = 60 * 21 * 3;
    assert!(fleet.looks < passes, "{} looks", fleet.looks);
}

/// Of the requests that go on with a conversation, the share that came to a device which had some of it before.
fn found_again(devices: usize, are_known: bool) -> f64 {
    const CONVERSATIONS: u64 = 60;
    let slowness = vec![1; devices];
    let mut fleet = Fleet::new(config(16, Batching::Continuous), &slowness, MEMORY);
    let mut random = Random(devices as u64);
    let mut at = 0;
    fleet.ask((0..360).map(|_| {
        at += 10 + random.below(30);
        let number = random.below(CONVERSATIONS);
        Asked {
            prefix: match are_known {
                true => conversation(number),
                false => Vec::new(),
            },
            ..asked(at, number, 20)
        }
    }));
    fleet.run();
    let mut homes: BTreeMap<u64, BTreeSet<DeviceNumber>> = BTreeMap::new();
    let (mut found, mut again) = (0, 0);
    for seen in &fleet.seen {
        let (_, device) = seen.started.expect("it started");
        let homes = homes.entry(seen.asked.user).or_default();
        again += u32::from(!homes.is_empty());
        found += u32::from(!homes.insert(device));
    }
    let used: BTreeSet<_> = homes.values().flatten().collect();
    assert_eq!(used.len(), devices, "all of them work");
    f64::from(found) / f64::from(again)
}

#[test]
fn a_conversation_goes_on_where_it_began() {
    for devices in [2, 3, 4] {
        let (known, unknown) = (found_again(devices, true), found_again(devices, false));
        let said = format!("{devices} devices: {known:.2}, by chance {unknown:.2}");
        assert!(known > 0.93 && known > unknown + 0.05, "{said}");
    }
}

#[test]
fn a_beginning_that_all_share_does_not_leave_a_device_idle() {
    let mut fleet = Fleet::new(config(16, Batching::Continuous), &[1, 1], MEMORY);
    fleet.ask((0..40).map(|user| Asked {
        prefix: conversation(1),
        ..asked(30 * user, user, 100)
    }));
    fleet.run_until(Time::from_millis(600));
    let rows = fleet.rows();
    assert!(rows.iter().sum::<usize>() > 10, "{rows:?}");
    assert!(rows[0].abs_diff(rows[1]) <= 3, "{rows:?}");
    fleet.run();
}

#[test]
fn a_device_that_fails_takes_its_rows_along_and_no_others() {
    let mut fleet = Fleet::new(config(4, Batching::Continuous), &[1, 1], MEMORY);
    fleet.ask((0..20).map(|user| asked(0, user, 30)));
    fleet.run_until(Time::from_millis(60));
    assert_eq!(fleet.rows(), [4, 4]);
    fleet.close(0);
    fleet.ask((20..30).map(|user| asked(400, user, 5)));
    fleet.run();
    assert_eq!(fleet.lost.len(), 4);
    let ended = fleet.seen.iter().filter(|seen| seen.ended == 1).count();
    assert_eq!(ended, 26);
}

#[test]
fn places_and_starts_are_told_over_all_devices() {
    let mut fleet = Fleet::new(config(4, Batching::Continuous), &[1, 1, 1], MEMORY);
    // What a step costs is learnt from these.
    fleet.ask((0..60).map(|user| asked(0, user, 20)));
    let from = Time::from_millis(400);
    fleet.ask((0..60).map(|user| asked(400, 100 + user, 20)));
    fleet.run();
    let waiting: Vec<&Seen> = fleet
        .seen
        .iter()
        .filter(|seen| seen.asked.at == from)
        .collect();
    let mut off = Vec::new();
    for (before, seen) in waiting.iter().enumerate() {
        let ahead = waiting[0].place.position + before as u32;
        assert_eq!(seen.place.position, ahead);
        let (started, _) = seen.started.expect("it started");
        let told = seen.place.eta.expect("costs are known");
        let wait = (started - from).as_secs_f64();
        off.push((told - from).as_secs_f64() / wait);
    }
    let (least, most) = off.iter().fold((f64::MAX, 0.0_f64), |(least, most), off| {
        (least.min(*off), most.max(*off))
    });
    assert!(
        least > 0.7 && most < 1.3,
        "of what it took: {least} to {most}"
    );
}
