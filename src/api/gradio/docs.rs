//! This dialect's part of `/openapi.json`.

use serde_json::Value;
use utoipa::{OpenApi, ToSchema};

use super::{call, data, describe, files, join};

/// What `queue/join` takes. Further fields are passed over.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body that is read field by field")]
pub(super) struct JoinBody {
    /// Arguments, by position.
    #[schema(value_type = Vec<Object>)]
    data: Vec<Value>,
    /// The endpoint's number in `/config`.
    fn_index: u64,
    /// Drawn by the client; its stream is asked for by it.
    session_hash: String,
}

/// What `cancel` takes. Further fields are passed over.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body that is read field by field")]
pub(super) struct CancelBody {
    /// Which event.
    event_id: String,
}

/// What `call` and `run` take. Further fields are passed over.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body that is read field by field")]
pub(super) struct CallBody {
    /// Arguments, by position.
    #[schema(value_type = Vec<Object>)]
    data: Vec<Value>,
}

#[derive(OpenApi)]
#[openapi(
    paths(
        describe::config,
        describe::info,
        join::join,
        data::stream,
        join::cancel,
        call::by_position,
        call::by_name,
        call::events,
        call::run,
        files::upload,
    ),
    tags((name = "gradio", description = "for clients of Gradio applications: gradio_client, @gradio/client"))
)]
struct Description;

/// See the module.
pub(in crate::api) fn description() -> utoipa::openapi::OpenApi {
    Description::openapi()
}
