//! Who calls, as far as this dialect has to tell callers apart.

use std::convert::Infallible;
use std::net::IpAddr;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::api::auth::Caller;

/// A caller: its key, or, where no keys are asked for, the address that it calls from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Who {
    caller: Caller,
    address: Option<IpAddr>,
}

impl Who {
    /// A key tells enough: its owner may call from anywhere.
    pub(super) fn new(caller: Caller) -> Self {
        let address = caller.address().filter(|_| caller.key().is_none());
        Who { caller, address }
    }

    /// Whose requests these are for the rest of the service.
    pub(super) fn caller(&self) -> Caller {
        self.caller.clone()
    }
}

impl<S: Sync> FromRequestParts<S> for Who {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let caller = parts.extensions.get::<Caller>().cloned();
        Ok(Who::new(caller.unwrap_or_default()))
    }
}
