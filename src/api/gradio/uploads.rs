//! Pictures that clients have uploaded, until they are used or too old: bounded in number and in bytes.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Bytes;
use axum::http::StatusCode;
use uuid::Uuid;

use super::GradioConfig;
use crate::api::auth::Caller;
use crate::api::error::ApiError;
use crate::picture::PictureFormat;
use crate::time::{Clock, RealClock, Time};

/// One uploaded file.
#[derive(Clone)]
pub(super) struct Upload {
    /// As it came in.
    pub(super) bytes: Bytes,
    /// By its first bytes.
    pub(super) format: PictureFormat,
    owner: Caller,
}

/// All uploaded files.
pub(super) struct Uploads {
    config: GradioConfig,
    clock: Arc<RealClock>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    by_id: HashMap<u128, Upload>,
    /// Oldest first.
    order: VecDeque<(Time, u128)>,
    bytes: usize,
}

impl Uploads {
    /// The folder under which clients are told their paths. There is no such folder.
    pub(super) const FOLDER: &str = "uploads/";

    pub(super) fn new(config: GradioConfig, clock: Arc<RealClock>) -> Self {
        Uploads {
            config,
            clock,
            kept: Mutex::default(),
        }
    }

    /// Keeps files, all or none, and returns their ids.
    ///
    /// # Errors
    /// 503 if there is no room for them.
    pub(super) fn keep(
        &self,
        owner: &Caller,
        files: Vec<(PictureFormat, Bytes)>,
    ) -> Result<Vec<u128>, ApiError> {
        let now = self.clock.now();
        let bytes: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
        let mut kept = self.lock();
        self.forget_old(&mut kept, now);
        let (most, most_bytes) = (self.config.max_uploads, self.config.max_upload_bytes);
        let refusal = if kept.by_id.len() + files.len() > most {
            Some(format!("{most} files are kept (gradio_max_uploads)"))
        } else if kept.bytes + bytes > most_bytes {
            Some(format!(
                "files of {most_bytes} bytes are kept (gradio_max_upload_bytes)"
            ))
        } else {
            None
        };
        if let Some(limit) = refusal {
            let oldest = kept.order.front().map_or(now, |(at, _)| *at);
            let room_at = oldest + self.config.upload_ttl;
            let message = format!("there is no room for more uploads: at most {limit}");
            return Err(
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "uploads_full", message)
                    .retry_after(room_at.saturating_since(now)),
            );
        }
        let ids = files.into_iter().map(|(format, bytes)| {
            // Nobody guesses it: 74 of its bits are random.
            let id = Uuid::now_v7().as_u128();
            let owner = owner.clone();
            kept.bytes += bytes.len();
            kept.order.push_back((now, id));
            kept.by_id.insert(
                id,
                Upload {
                    bytes,
                    format,
                    owner,
                },
            );
            id
        });
        Ok(ids.collect())
    }

    /// The caller's upload of this id.
    pub(super) fn get(&self, id: u128, caller: &Caller) -> Option<Upload> {
        let mut kept = self.lock();
        self.forget_old(&mut kept, self.clock.now());
        let upload = kept.by_id.get(&id)?;
        (upload.owner == *caller).then(|| upload.clone())
    }

    /// Forgets what is too old.
    pub(super) fn sweep(&self) {
        let now = self.clock.now();
        self.forget_old(&mut self.lock(), now);
    }

    fn forget_old(&self, kept: &mut Kept, now: Time) {
        while let Some((at, id)) = kept.order.front().copied()
            && now.saturating_since(at) >= self.config.upload_ttl
        {
            kept.order.pop_front();
            if let Some(upload) = kept.by_id.remove(&id) {
                kept.bytes -= upload.bytes.len();
            }
        }
    }

    /// What is behind the lock is valid after every statement.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
