//! What the edge knows of each request whose log is kept: its model, its owner, who reads it.

use std::sync::Arc;

use super::ServedModel;
use super::auth::Caller;
use super::openai::StreamShape;
use crate::job::RequestId;

/// One accepted request.
pub struct Request {
    /// Its id.
    pub id: RequestId,
    /// The model it was sent to.
    pub model: Arc<ServedModel>,
    /// Whose it is; nobody else can see it.
    pub owner: Caller,
    /// When it was accepted: seconds since the Unix epoch.
    pub created: u64,
    /// Answers wanted (`n`; its rows may be more, see `best_of`).
    pub choices: u32,
    /// How its stream looks in OpenAI's dialect, if it came in by that.
    pub openai: Option<StreamShape>,
}

impl Request {
    /// Says that somebody reads this request, until the guard is dropped. Held by streams, by long
    /// polls and by handlers that wait for the end.
    pub fn reader(self: &Arc<Self>) -> Reader {
        todo!()
    }
}

/// Somebody reads a request.
pub struct Reader {}

/// All of them.
#[derive(Default)]
pub struct Requests {}
