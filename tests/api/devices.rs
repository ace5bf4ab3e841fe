//! One model on two devices: what clients and operators see of it, also when one of them fails.

use girandole::api::native::wire::{Reason, State};
use girandole::api::ops::Load;

use crate::service::{Service, Setup, body, eventually, said};

const FAULTY: &str = r#"
[cost]
tokens_per_second = 200.0
[output]
kind = "text"
text = "Light upon light. "
[[fault]]
device = 1
fail_steps_from = 20
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_run_on_both_and_are_cancelled_on_either() {
    let service = Service::start(Setup {
        devices: 2,
        batch_size: 2,
        ..Setup::default()
    })
    .await;
    let models = service.client.models().await.unwrap();
    assert_eq!(models.models[0].devices, ["cpu:0", "cpu:1"]);
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(service.submit(&body("Hold", 5_000)).await);
    }
    let load = async || -> Load { service.client.load().await.unwrap() };
    eventually("all four run, two on each", async || {
        let load = load().await;
        let devices = &load.models[0].devices;
        devices.iter().all(|device| device.running_rows == 2)
    })
    .await;
    let seen = load().await.models.remove(0);
    assert_eq!((seen.running_rows, seen.slots), (4, 4));
    let units = |of: fn(&girandole::api::ops::DeviceLoad) -> u32| -> u32 {
        seen.devices.iter().map(of).sum()
    };
    assert_eq!(
        units(|device| device.memory_units_used),
        seen.memory_units_used
    );
    assert_eq!(
        units(|device| device.memory_units_total),
        seen.memory_units_total
    );
    let waiting = service.submit(&body("Wait", 4)).await;
    let status = service
        .client
        .status(&waiting, std::time::Duration::ZERO)
        .await;
    assert_eq!(status.unwrap().state, State::Queued);
    for id in &held {
        service.client.cancel(id).await.unwrap();
    }
    for id in &held {
        let reason = service.ended(id).await.choices[0].finish_reason;
        assert_eq!(reason, Some(Reason::Cancelled));
    }
    assert_eq!(service.ended(&waiting).await.choices[0].text, said(4));
    service.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_fails_is_shown_and_the_other_serves_on() {
    let service = Service::start(Setup {
        script: FAULTY,
        devices: 2,
        batch_size: 2,
        ..Setup::default()
    })
    .await;
    let failed = async || {
        let load = service.client.load().await.unwrap();
        let device = load.models[0].devices[1].clone();
        (device.state == "failed").then_some(device.reason)
    };
    let mut errors = Vec::new();
    for _ in 0..100 {
        if failed().await.is_some() {
            break;
        }
        let mut ids = Vec::new();
        for _ in 0..3 {
            ids.push(service.submit(&body("Say", 15)).await);
        }
        for id in ids {
            errors.extend(service.ended(&id).await.error);
        }
    }
    let reason = failed().await.flatten().expect("it is given up");
    assert_eq!(
        reason,
        "device cpu:1: 3 passes in a row failed: a planted device error"
    );
    assert!(
        !errors.is_empty()
            && errors
                .iter()
                .all(|error| error.to_string().contains("planted"))
    );
    let readiness = service.client.readiness().await.unwrap();
    assert!(readiness.ready, "{readiness:?}");
    let load = service.client.load().await.unwrap();
    assert_eq!(
        (load.models[0].slots, load.models[0].state.as_str()),
        (2, "ready")
    );
    for _ in 0..6 {
        let id = service.submit(&body("Say", 15)).await;
        assert_eq!(service.ended(&id).await.choices[0].text, said(15));
    }
}
