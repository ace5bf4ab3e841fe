//! API keys.

use std::sync::Arc;

/// Who calls: the name of the key, or nobody where no keys are asked for. An extension of every
/// HTTP request that passed the authentication layer; requests belong to their caller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Caller(pub Option<Arc<str>>);

/// The keys that open the service, as SHA-256 digests.
#[derive(Clone, Default)]
pub struct ApiKeys {}

impl ApiKeys {
    /// Reads a key file: one key a line, or `sha256:` and 64 hexadecimal digits, either after an
    /// optional `name=`; blank lines and `#` comments are skipped.
    ///
    /// # Errors
    /// The number of a line that cannot be read.
    pub fn parse(_text: &str) -> Result<Self, String> {
        todo!()
    }
    /// Whether nobody is asked for a key.
    pub fn is_empty(&self) -> bool {
        todo!()
    }
}
