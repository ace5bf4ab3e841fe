//! Planted faults are seen: a small server that does wrong on purpose, and a client made slow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{Measured, Plan, PointSpec, Session, SessionConfig, Unwatched};
use crate::bench::load::asks::Load;
use crate::bench::load::{Arrivals, Lengths, Pattern, TextLoad};
use crate::bench::results::{Api, Metric, Objective, Objectives, Outcome};
use crate::bench::target::TargetConfig;
use crate::time::{Clock, RealClock, Time};

/// What the server does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Nothing,
    /// Answers nobody from so many milliseconds after its first request for so long.
    Stall {
        from_ms: u64,
        for_ms: u64,
    },
    /// Refuses one request of so many.
    Refuse(u64),
    /// Ends one stream of so many without a finish reason.
    NoReason(u64),
    /// Closes one connection of so many within its answer.
    BreakOff(u64),
    /// Says that most of the prompt was in its cache.
    Warm,
}

/// Answers every chat with five words, 2 ms apart.
async fn answer(
    mut stream: TcpStream,
    fault: Fault,
    counted: Arc<AtomicU64>,
    (clock, began): (Arc<RealClock>, Time),
) {
    let mut request = Vec::new();
    let mut piece = [0; 4096];
    // Small bodies come in one piece, or in few; their end is the end of the JSON.
    while !request.ends_with(b"}") && !request.starts_with(b"GET ") {
        match stream.read(&mut piece).await {
            Ok(0) | Err(_) => return,
            Ok(count) => request.extend_from_slice(&piece[..count]),
        }
    }
    let mut send = async |text: &str| stream.write_all(text.as_bytes()).await.is_ok();
    let closing = "connection: close\r\n\r\n";
    if request.starts_with(b"GET ") {
        send(&format!(
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n{closing}"
        ))
        .await;
        return;
    }
    // The first ones only tell about the server.
    let number = counted.fetch_add(1, Ordering::Relaxed).saturating_sub(4);
    let is_hit = |every: u64| number > 0 && number.is_multiple_of(every);
    if let Fault::Stall { from_ms, for_ms } = fault {
        let (from, to) = (
            began + Duration::from_millis(from_ms),
            began + Duration::from_millis(from_ms + for_ms),
        );
        if (from..to).contains(&clock.now()) {
            tokio::time::sleep_until(clock.instant(to).into()).await;
        }
    }
    if matches!(fault, Fault::Refuse(every) if is_hit(every)) {
        send(&format!(
            "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n{closing}"
        ))
        .await;
        return;
    }
    let length = if matches!(fault, Fault::BreakOff(every) if is_hit(every)) {
        "content-length: 100000\r\n"
    } else {
        ""
    };
    send(&format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n{length}{closing}"
    ))
    .await;
    for _ in 0..5 {
        send(
            "data: {\"choices\":[{\"delta\":{\"content\":\"word \"},\"finish_reason\":null}]}\n\n",
        )
        .await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    if !length.is_empty() {
        return;
    }
    if !matches!(fault, Fault::NoReason(every) if is_hit(every)) {
        send("data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n").await;
    }
    let cached = if fault == Fault::Warm { 60 } else { 0 };
    send(&format!(
        "data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":100,\"completion_tokens\":5,\
         \"prompt_tokens_details\":{{\"cached_tokens\":{cached}}}}}}}\n\ndata: [DONE]\n\n"
    ))
    .await;
}

/// Serves on a thread of its own until the test's process ends.
fn serve(fault: Fault) -> String {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            sender.send(listener.local_addr().unwrap()).unwrap();
            let counted = Arc::new(AtomicU64::new(0));
            let clock = Arc::new(RealClock::start());
            let mut began = None;
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // The clock of a stall starts with the load.
                if counted.load(Ordering::Relaxed) >= 4 {
                    began.get_or_insert(clock.now());
                }
                let began = began.unwrap_or(clock.now());
                let fault = if counted.load(Ordering::Relaxed) >= 4 {
                    fault
                } else {
                    Fault::Nothing
                };
                tokio::spawn(answer(
                    stream,
                    fault,
                    Arc::clone(&counted),
                    (Arc::clone(&clock), began),
                ));
            }
        });
    });
    format!("http://{}", receiver.recv().unwrap())
}

fn measured(fault: Fault, planted_lag: Duration, limit_ms: f64, seconds: u64) -> Measured {
    let lengths = Lengths::Fixed(5);
    let session = Session::open(SessionConfig {
        target: TargetConfig {
            url: serve(fault),
            key: None,
            model: "m".to_owned(),
            api: Api::OpenaiChat,
            draws: false,
            ignore_eos: false,
            extra_body: Default::default(),
            timeout: Duration::from_secs(20),
            planted_lag,
        },
        load: Load::Text(TextLoad {
            input_tokens: Lengths::Fixed(20),
            output_tokens: lengths,
            conversations: None,
            prefix_share: 0.0,
            prefixes: 1,
        }),
        salt: "s".to_owned(),
        objectives: Objectives {
            preset: None,
            limits: vec![Objective {
                metric: Metric::TimeToFirstToken,
                limit_ms,
            }],
            good_share: 0.99,
        },
        timeout: Duration::from_secs(20),
        max_open_requests: 1_000,
        server_process: None,
        price_per_hour: None,
    })
    .unwrap();
    let spec = PointSpec {
        pattern: Pattern::Open {
            rate: 50.0,
            arrivals: Arrivals::Constant,
        },
        purpose: "asked",
        repeat: 0,
        seed: 1,
        ramp: Duration::ZERO,
        warm_up: Duration::from_millis(100),
        plan: Plan::Fixed {
            measured: Duration::from_secs(seconds),
        },
    };
    session.measure(&spec, &mut Unwatched).unwrap()
}

/// Long enough for any machine: only what is planted counts.
const AMPLE_MS: f64 = 600_000.0;

#[test]
fn a_stall_is_seen_by_all_who_should_have_started_in_it() {
    let measured = measured(
        Fault::Stall {
            from_ms: 1_000,
            for_ms: 2_000,
        },
        Duration::ZERO,
        AMPLE_MS,
        5,
    );
    let first = measured.point.latencies.time_to_first_token.unwrap();
    // A fifth of all requests was due within the two seconds, and waited for one on average: a client that waited
    // for its answers would have seen one slow request.
    assert!(first.p90.unwrap().value > 500.0, "{first:?}");
    assert!(first.max.unwrap() > 1_900.0, "{first:?}");
    let waited = measured
        .point
        .timeline
        .seconds
        .iter()
        .map(|second| second.open_streams)
        .max()
        .unwrap();
    assert!(waited >= 40, "{waited} streams were open at most");
}

#[test]
fn a_slow_client_makes_a_run_void() {
    let measured = measured(Fault::Nothing, Duration::from_millis(40), 2_000.0, 1);
    let verdict = measured.point.verdict;
    assert_eq!(verdict.outcome, Outcome::Void);
    assert!(
        verdict.reasons[0].starts_with("the client was slow: requests were sent"),
        "{verdict:?}"
    );
    assert!(
        measured
            .point
            .latencies
            .client_lag
            .unwrap()
            .p50
            .unwrap()
            .value
            >= 40.0
    );
}

#[test]
fn bad_ends_are_counted_by_their_kind() {
    for fault in [Fault::Refuse(20), Fault::NoReason(20), Fault::BreakOff(20)] {
        let measured = measured(fault, Duration::ZERO, AMPLE_MS, 4);
        let counts = &measured.point.counts;
        let found = match fault {
            Fault::Refuse(_) => counts.refused,
            Fault::NoReason(_) => counts.no_finish_reason,
            _ => counts.truncated,
        };
        // One in twenty of two hundred, wherever the window begins.
        assert!((7..=11).contains(&found), "{fault:?}: {counts:?}");
        assert_eq!(counts.bad(), found, "{fault:?}: {counts:?}");
        assert_eq!(measured.tally.bad, found);
        assert_eq!(measured.point.verdict.outcome, Outcome::Fail, "{fault:?}");
    }
}

#[test]
fn a_warm_cache_is_labelled() {
    let measured = measured(Fault::Warm, Duration::ZERO, AMPLE_MS, 1);
    let point = measured.point;
    let cache = point.cache.unwrap();
    assert!(
        !cache.wanted && cache.cached_tokens * 10 >= cache.prompt_tokens * 5,
        "{cache:?}"
    );
    assert!(
        point
            .verdict
            .reasons
            .iter()
            .any(|reason| reason.starts_with("warm cache: 60 %")),
        "{:?}",
        point.verdict
    );
}
