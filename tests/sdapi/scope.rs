//! Whose progress is told, and whose drawing ends.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::service::{ALICE, BOB, Client, GRACE, Reply, Service, pixels};
use crate::{INSTANT, STEADY};

/// More than seven seconds of steps: it ends only when it is stopped.
const LONG_STEPS: u64 = 150;

fn long(task_id: Option<&str>) -> Value {
    json!({"prompt": "a fox", "seed": 1, "steps": LONG_STEPS, "cfg_scale": 1, "force_task_id": task_id})
}

/// Begins a drawing that is answered later.
fn begin(client: &Client, body: Value) -> JoinHandle<Reply> {
    let client = client.clone();
    tokio::spawn(async move { client.post("/sdapi/v1/txt2img", &body).await })
}

async fn ended(drawing: JoinHandle<Reply>) -> Reply {
    let reply = tokio::time::timeout(Duration::from_secs(2), drawing).await;
    reply.expect("it has ended").expect("it has an answer")
}

fn is_interrupted(reply: &Reply) {
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.info()["interrupted"], true);
}

#[tokio::test]
async fn a_key_sees_and_stops_its_own_alone() {
    let keys = format!("alice {ALICE}\nbob {BOB}");
    let service = Service::start_with(STEADY, 8, &keys).await;
    // From the same address: the key tells them apart.
    let alice = service.client(1, Some(ALICE));
    let bob = service.client(1, Some(BOB));
    let of_alice = begin(&alice, long(None));
    let seen = alice.until_running("").await;
    assert_eq!(seen["state"]["job_count"], 1);
    assert_eq!(seen["state"]["sampling_steps"], LONG_STEPS);
    assert_eq!(bob.progress("").await["state"]["job_count"], 0);
    bob.interrupt("").await;
    let of_bob = begin(&bob, long(None));
    let of_him = bob.until_running("").await;
    assert_ne!(of_him["state"]["job"], seen["state"]["job"]);
    alice.interrupt("").await;
    is_interrupted(&ended(of_alice).await);
    assert_eq!(
        bob.progress("").await["state"]["job"],
        of_him["state"]["job"]
    );
    assert!(!of_bob.is_finished());
    assert_eq!(alice.progress("").await["state"]["job_count"], 0);
    bob.interrupt("").await;
    is_interrupted(&ended(of_bob).await);
}

#[tokio::test]
async fn without_keys_an_address_sees_its_own_alone() {
    let service = Service::start(STEADY).await;
    let near = service.client(1, None);
    let far = service.client(2, None);
    let of_near = begin(&near, long(None));
    near.until_running("").await;
    assert_eq!(far.progress("").await["state"]["job_count"], 0);
    far.interrupt("").await;
    let of_far = begin(&far, long(None));
    far.until_running("").await;
    far.interrupt("").await;
    is_interrupted(&ended(of_far).await);
    assert!(!of_near.is_finished());
    near.interrupt("").await;
    is_interrupted(&ended(of_near).await);
}

#[tokio::test]
async fn a_task_id_tells_tasks_of_one_address_apart() {
    let service = Service::start(STEADY).await;
    let client = service.client(1, None);
    let one = begin(&client, long(Some("one")));
    let other = begin(&client, long(Some("other")));
    let of_one = client.until_running("?id_task=one").await;
    let of_other = client.until_running("?id_task=other").await;
    assert_ne!(of_one["state"]["job"], of_other["state"]["job"]);
    // Whoever gives no name reaches nobody who gave one, and is told so.
    assert_eq!(client.progress("").await["state"]["job_count"], 0);
    let refused = client.post("/sdapi/v1/interrupt", &Value::Null).await;
    assert_eq!(
        (refused.status, &refused.body["field"]),
        (400, &json!("id_task"))
    );
    let unnamed = begin(&client, long(None));
    client.until_running("").await;
    client.interrupt("").await;
    is_interrupted(&ended(unnamed).await);
    client.interrupt("?id_task=nobody").await;
    assert!(!one.is_finished() && !other.is_finished());
    client.interrupt("?id_task=other").await;
    is_interrupted(&ended(other).await);
    assert!(!one.is_finished());
    let skip = client
        .post("/sdapi/v1/skip?id_task=one", &Value::Null)
        .await;
    assert_eq!(skip.status, 200);
    let one = ended(one).await;
    is_interrupted(&one);
    assert_eq!(one.info()["skipped"], true);
}

#[tokio::test]
async fn of_several_the_oldest_is_meant() {
    let service = Service::start(STEADY).await;
    let client = service.client(1, None);
    let first = begin(&client, long(None));
    let job = client.until_running("").await["state"]["job"].clone();
    let second = begin(&client, long(None));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(client.progress("").await["state"]["job"], job);
    client.interrupt("").await;
    is_interrupted(&ended(first).await);
    assert!(!second.is_finished());
    let next = client.until_running("").await["state"]["job"].clone();
    assert_ne!(next, job);
    client.interrupt("").await;
    is_interrupted(&ended(second).await);
}

#[tokio::test]
async fn an_interrupted_drawing_gives_what_was_finished() {
    // One row at a time: the first picture is finished before the second is begun.
    let service = Service::start_with(STEADY, 1, "").await;
    let client = service.client(1, None);
    let body = json!({"prompt": "a fox", "seed": 7, "steps": 20, "cfg_scale": 1, "batch_size": 3});
    let drawing = begin(&client, body);
    loop {
        let progress = client.until_running("").await;
        let state = &progress["state"];
        let (done, step) = (state["job_no"].as_f64(), state["sampling_step"].as_f64());
        let (done, step) = (done.expect("a number"), step.expect("a number"));
        let share = progress["progress"].as_f64().expect("a number");
        assert!(
            (share - (done + step / 20.0) / 3.0).abs() < 1e-9,
            "{progress}"
        );
        if done == 1.0 {
            // What has not begun counts as well: about 40 steps at 20 a second.
            let eta = progress["eta_relative"].as_f64().expect("a number");
            assert!(eta > 1.0, "{progress}");
            break;
        }
    }
    client.interrupt("").await;
    let reply = ended(drawing).await;
    is_interrupted(&reply);
    assert_eq!(reply.images(), 1);
    let info = reply.info();
    assert_eq!(info["all_seeds"], json!([7]));
    assert_eq!(info["infotexts"].as_array().expect("a list").len(), 1);
    // It is the whole picture, not a preview of it.
    let whole = service
        .client(2, None)
        .draw(&json!({"prompt": "a fox", "seed": 7, "steps": 20, "cfg_scale": 1}))
        .await;
    assert_eq!(whole.pixels(0), reply.pixels(0));
}

#[tokio::test]
async fn progress_shows_the_latest_preview() {
    let service = Service::start(STEADY).await;
    let client = service.client(1, None);
    let drawing = begin(&client, long(None));
    client.until_running("").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let progress = client.progress("?skip_current_image=false").await;
    let (width, height, _) = pixels(progress["current_image"].as_str().expect("a picture"));
    // A pixel for each place of the latent.
    assert_eq!((width, height), (8, 8));
    let share = progress["progress"].as_f64().expect("a number");
    let step = progress["state"]["sampling_step"]
        .as_u64()
        .expect("a number");
    assert!(
        (share - step as f64 / LONG_STEPS as f64).abs() < 1e-9,
        "{progress}"
    );
    // 20 steps a second, or fewer on a busy machine.
    let eta = progress["eta_relative"].as_f64().expect("a number");
    let left = (LONG_STEPS - step) as f64 / 20.0;
    assert!((0.5 * left..5.0 * left).contains(&eta), "{eta} for {left}");
    let without = client.progress("?skip_current_image=true").await;
    assert_eq!(without["current_image"], Value::Null);
    assert!(without["state"]["sampling_step"].as_u64() > Some(0));
    client.interrupt("").await;
    is_interrupted(&ended(drawing).await);
}

#[tokio::test]
async fn the_page_of_the_web_ui_follows_a_task() {
    let service = Service::start_with(STEADY, 1, "").await;
    let client = service.client(1, None);
    let ask = async |id: &str, seen: i64| {
        let body = json!({"id_task": id, "id_live_preview": seen});
        let reply = client.post("/internal/progress", &body).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.body
    };
    let unknown = ask("one", -1).await;
    for name in ["active", "queued", "completed", "paused"] {
        assert_eq!(unknown[name], false, "{name}");
    }
    let one = begin(&client, long(Some("one")));
    client.until_running("?id_task=one").await;
    let two = begin(&client, long(Some("two")));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let running = ask("one", -1).await;
    assert_eq!(
        (&running["active"], &running["queued"]),
        (&json!(true), &json!(false))
    );
    assert!(running["progress"].as_f64() > Some(0.0));
    let shown = running["live_preview"].as_str().expect("a preview");
    assert!(shown.starts_with("data:image/png;base64,"));
    let number = running["id_live_preview"].as_i64().expect("a number");
    let waiting = ask("two", -1).await;
    assert_eq!(
        (&waiting["active"], &waiting["queued"]),
        (&json!(false), &json!(true))
    );
    assert_eq!(waiting["textinfo"], "Queued, 0 ahead");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(ask("one", number).await["id_live_preview"].as_i64() > Some(number));
    client.interrupt("?id_task=two").await;
    client.interrupt("?id_task=one").await;
    is_interrupted(&ended(one).await);
    is_interrupted(&ended(two).await);
    let complete = ask("one", number).await;
    assert_eq!(
        (&complete["active"], &complete["completed"]),
        (&json!(false), &json!(true))
    );
}

#[tokio::test]
async fn a_drawing_whose_client_has_gone_is_given_up() {
    let service = Service::start(STEADY).await;
    let client = service.client(1, None);
    let drawing = begin(&client, long(None));
    let job = client.until_running("").await["state"]["job"].clone();
    drawing.abort();
    let path = format!("/api/v1/requests/{}", job.as_str().expect("an id"));
    // This does not count as reading it, so it is given up all the same.
    let gone = async {
        while client.progress("").await["state"]["job_count"] != 0 {
            tokio::time::sleep(GRACE / 10).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(5), gone).await;
    assert!(waited.is_ok(), "it is given up long before it could end");
    let status = client.get(&path).await;
    assert_eq!(status.body["state"], "failed", "{}", status.body);
    assert_eq!(status.body["error"]["code"], "abandoned");
}

#[tokio::test]
async fn a_cancel_by_the_native_api_ends_it_as_well() {
    let service = Service::start(STEADY).await;
    let client = service.client(1, None);
    let drawing = begin(&client, long(None));
    let job = client.until_running("").await["state"]["job"].clone();
    let model = service.state.model(Some("pictures")).expect("it is served");
    let id = job.as_str().expect("an id").parse().expect("an id");
    model.engine.cancel(id);
    let reply = ended(drawing).await;
    is_interrupted(&reply);
    assert_eq!(reply.info()["skipped"], false);
}

#[tokio::test]
async fn nothing_is_told_where_nothing_runs() {
    let service = Service::start(INSTANT).await;
    let client = service.client(1, None);
    client.draw(&json!({"prompt": "a fox"})).await;
    let idle = client.progress("").await;
    assert_eq!(idle["progress"], 0.0);
    assert_eq!(idle["eta_relative"], 0.0);
    assert_eq!(idle["state"]["job_count"], 0);
    assert_eq!(idle["current_image"], Value::Null);
    client.interrupt("").await;
}
