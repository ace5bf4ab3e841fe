//! OpenAI's images: `/v1/images/generations` and `/v1/images/edits`.

use crate::picture::PictureFormat;

/// How the reply to an image request is to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageShape {
    /// It begins from a picture: its events have other names.
    pub(super) is_edit: bool,
    /// The files' format.
    pub(super) format: PictureFormat,
    /// Of a JPEG, 1 to 100.
    pub(super) quality: u8,
    /// Tell the place in the queue and each step too.
    pub(super) include_progress: bool,
}
