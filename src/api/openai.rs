//! OpenAI's dialect. (Owned by helper "openai"; this stand-in is replaced when branches meet.)

use super::requests::Request;
use super::sse::Dialect;

/// How a request's stream is to look in OpenAI's dialect: kept with the request, so that the
/// stream can be resumed.
#[derive(Clone, Debug)]
pub struct StreamShape {}

/// OpenAI's frames for a request, whichever dialect it came in by.
pub fn dialect_for(_request: &Request) -> Box<dyn Dialect> {
    todo!()
}
