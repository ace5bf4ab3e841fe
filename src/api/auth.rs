//! Who calls: API keys, kept as SHA-256 digests and compared in constant time; and where no keys are asked
//! for, the client's address.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::address::Network;
use super::error::{ApiError, ErrorShape};
use super::serve::PeerAddress;
use super::{AppState, admin, web};
use crate::job::{Priority, UserId};

/// Who calls. An extension of every HTTP request that passed the authentication layer.
///
/// Two are equal if the same requests belong to them. That follows from the key alone: where no keys are
/// asked for, the id of a request is what opens it, and a phone that has changed networks
/// may go on reading.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// The name of the key; `None` where no keys are asked for.
    key: Option<Arc<str>>,
    /// The client's address, if it came by a connection.
    address: Option<IpAddr>,
    /// With whom it shares its turns.
    user: UserId,
    /// The most urgent class that its requests may ask for.
    max_priority: Priority,
}

impl Caller {
    /// A caller of this key, from this address.
    #[cfg(test)]
    pub(super) fn new(key: Option<Arc<str>>, address: Option<IpAddr>) -> Self {
        Caller {
            key,
            address,
            ..Caller::default()
        }
    }

    /// The name of its key.
    pub fn key(&self) -> Option<&Arc<str>> {
        self.key.as_ref()
    }

    /// Its client's address.
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// The user that its requests count for: all who show its key, or else all who call from its
    /// address (of the sixth version, from its network of 64 bits).
    pub fn user(&self) -> UserId {
        self.user
    }

    /// The class of a request that asks for this one, or for none.
    ///
    /// # Errors
    /// 403: its requests may not be as urgent.
    pub fn priority(&self, asked: Option<Priority>) -> Result<Priority, ApiError> {
        let most = self.max_priority;
        match asked {
            Some(asked) if asked < most => Err(ApiError {
                field: Some("priority".into()),
                ..ApiError::new(
                    StatusCode::FORBIDDEN,
                    "priority_not_allowed",
                    format!(
                        "priority {} is more than this caller may ask for; at most {}",
                        asked.name(),
                        most.name()
                    ),
                )
            }),
            Some(asked) => Ok(asked),
            None => Ok(Priority::Normal.max(most)),
        }
    }
}

impl PartialEq for Caller {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Caller {}

impl Hash for Caller {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

/// Draws the numbers by which the engine knows users: other ones in each run, so that no name and no
/// address can be told from them.
#[derive(Default)]
pub(super) struct UserIds {
    hash: RandomState,
}

impl UserIds {
    fn of(&self, key: Option<&Arc<str>>, address: Option<IpAddr>) -> UserId {
        UserId(match (key, address) {
            (Some(key), _) => self.hash.hash_one(key),
            (None, Some(address)) => self.hash.hash_one(Network::of_user(address)),
            (None, None) => 0,
        })
    }
}

/// The keys that open the service.
#[derive(Clone, Default)]
pub struct ApiKeys {
    keys: Vec<ApiKey>,
    /// Those of operators. They open the operator's API and nothing else.
    admin: Option<Arc<ApiKeys>>,
}

#[derive(Clone)]
struct ApiKey {
    name: Arc<str>,
    digest: [u8; 32],
    /// Instead of the service's `max_priority`.
    max_priority: Option<Priority>,
}

/// Written before a digest in a key file.
const DIGEST_PREFIX: &str = "sha256:";
/// Written before a key's class of priority.
const PRIORITY_PREFIX: &str = "priority=";

impl ApiKeys {
    /// Reads a key file: one key a line, or `sha256:` and the 64 hexadecimal digits of its digest,
    /// optionally with a name and a space before it, and `priority=CLASS` after it: the most urgent class that
    /// its requests may ask for. Blank lines and `#` comments are skipped. A
    /// key without a name is called `key-N` by its line.
    ///
    /// # Errors
    /// The number of a line that cannot be read, and why. The message never holds a key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut keys: Vec<ApiKey> = Vec::new();
        for (line, number) in text.lines().zip(1u32..) {
            let mut words: Vec<&str> = line.split_whitespace().collect();
            let class = words
                .last()
                .and_then(|word| word.strip_prefix(PRIORITY_PREFIX));
            let max_priority = match class.map(Priority::from_name) {
                Some(None) => {
                    return Err(format!(
                        "line {number}: priority is one of interactive, normal, batch"
                    ));
                }
                Some(known) => {
                    words.pop();
                    known
                }
                None => None,
            };
            let (name, secret) = match words[..] {
                [] => continue,
                [comment, ..] if comment.starts_with('#') => continue,
                [secret] => (format!("key-{number}"), secret),
                [name, secret] => (name.to_owned(), secret),
                _ => {
                    return Err(format!(
                        "line {number}: a name and a key are two words at most"
                    ));
                }
            };
            let digest = digest_of(secret).map_err(|why| format!("line {number}: {why}"))?;
            if keys.iter().any(|other| *other.name == *name) {
                return Err(format!("line {number}: the name is used twice"));
            }
            keys.push(ApiKey {
                name: Arc::from(name),
                digest,
                max_priority,
            });
        }
        Ok(ApiKeys { keys, admin: None })
    }

    /// These, with keys for the operator's API, which is off without any.
    #[must_use]
    pub fn with_admin_keys(mut self, admin: ApiKeys) -> Self {
        self.admin = (!admin.is_empty()).then(|| Arc::new(admin));
        self
    }

    /// Whether an operator's key comes with the request.
    ///
    /// # Errors
    /// 404 if there are no such keys, 401 if this is none of them.
    pub(super) fn check_operator(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let admin = self.admin.as_ref().ok_or_else(|| {
            let message = "the operator's API is off: no admin_key_file is set";
            ApiError::new(StatusCode::NOT_FOUND, "admin_off", message)
        })?;
        let known = bearer(headers).is_some_and(|secret| admin.find(secret).is_some());
        known
            .then_some(())
            .ok_or_else(|| unauthorized(ErrorShape::Native))
    }

    /// Whether nobody is asked for a key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The key that this is. Looks at every one, whichever fits.
    fn find(&self, secret: &[u8]) -> Option<&ApiKey> {
        let digest: [u8; 32] = Sha256::digest(secret).into();
        let mut found = 0u32;
        let mut any = Choice::from(0);
        for (known, index) in self.keys.iter().zip(0u32..) {
            let equal = known.digest.ct_eq(&digest);
            found.conditional_assign(&index, equal);
            any |= equal;
        }
        bool::from(any).then(|| &self.keys[found as usize])
    }
}

fn digest_of(secret: &str) -> Result<[u8; 32], &'static str> {
    const LEAST_BYTES: usize = 16;
    let Some(hex) = secret.strip_prefix(DIGEST_PREFIX) else {
        if secret.len() < LEAST_BYTES {
            return Err("a key has at least 16 characters");
        }
        return Ok(Sha256::digest(secret.as_bytes()).into());
    };
    if hex.len() != 64 || !hex.is_ascii() {
        return Err("a digest has 64 hexadecimal digits");
    }
    let mut digest = [0; 32];
    for (byte, index) in digest.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&hex[index..index + 2], 16)
            .map_err(|_| "a digest has 64 hexadecimal digits")?;
    }
    Ok(digest)
}

/// Asks for a key, except of health checks, the pages and the operator's API, which asks for its own; and leaves the [`Caller`] with the request.
pub(super) async fn layer(
    State(state): State<Arc<AppState>>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    let open = path.starts_with("/health/") || web::is_page(path) || admin::is_admin(path);
    let key = if state.keys.is_empty() || open {
        None
    } else {
        let shape = ErrorShape::for_path(path);
        let headers = request.headers();
        let secret = match shape {
            // The web UI's clients know no other scheme.
            ErrorShape::WebUi => bearer(headers).map(Vec::from).or_else(|| basic(headers)),
            // The Python client's `token` comes under a name of its own.
            ErrorShape::Gradio => bearer(headers)
                .or_else(|| bearer_in(headers, GRADIO_AUTHORIZATION))
                .map(Vec::from),
            _ => bearer(headers).map(Vec::from),
        };
        match secret.and_then(|secret| state.keys.find(&secret)) {
            Some(key) => Some(key),
            None => return unauthorized(shape).into_response_as(shape),
        }
    };
    let peer = request.extensions().get::<PeerAddress>();
    let address = peer.map(|peer| state.config.proxies.client(peer.0, request.headers()));
    let name = key.map(|key| Arc::clone(&key.name));
    let caller = Caller {
        user: state.user_ids.of(name.as_ref(), address),
        max_priority: key
            .and_then(|key| key.max_priority)
            .unwrap_or(state.config.max_priority),
        key: name,
        address,
    };
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// Where Gradio's Python client puts its token.
const GRADIO_AUTHORIZATION: HeaderName = HeaderName::from_static("x-hf-authorization");

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    bearer_in(headers, AUTHORIZATION)
}

fn bearer_in(headers: &HeaderMap, name: HeaderName) -> Option<&[u8]> {
    let value = headers.get(name)?.as_bytes();
    let (scheme, secret) = value.split_at_checked("Bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"Bearer ")
        .then(|| secret.trim_ascii())
}

/// The password of `Basic`; the name before it can be any.
fn basic(headers: &HeaderMap) -> Option<Vec<u8>> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, pair) = value.split_at_checked("Basic ".len())?;
    if !scheme.eq_ignore_ascii_case(b"Basic ") {
        return None;
    }
    let mut pair = STANDARD.decode(pair.trim_ascii()).ok()?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(pair.split_off(colon + 1))
}

fn unauthorized(shape: ErrorShape) -> ApiError {
    let message = match shape {
        ErrorShape::WebUi => {
            "the header Authorization: Bearer KEY, or Basic with the key as the password, is missing \
             or its key is not known"
        }
        _ => "the header Authorization: Bearer KEY is missing or its key is not known",
    };
    ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
# who may call
alice alice-secret-0123456789

sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
";

    #[test]
    fn a_key_is_found_by_its_digest() {
        let keys = ApiKeys::parse(FILE).unwrap();
        let name = |secret: &str| Some(&*keys.find(secret.as_bytes())?.name);
        assert_eq!(name("alice-secret-0123456789"), Some("alice"));
        // The digest of "test".
        assert_eq!(name("test"), Some("key-4"));
        assert_eq!(name("alice"), None);
        assert_eq!(name(""), None);
        assert!(!keys.is_empty());
        assert!(ApiKeys::parse("\n# none\n").unwrap().is_empty());
    }

    #[test]
    fn a_key_may_have_a_class() {
        let file = "alice alice-secret-0123456789 priority=interactive\n\
                    bobs-secret-0123456789 priority=batch\n\
                    carol carols-secret-0123456789\n";
        let keys = ApiKeys::parse(file).unwrap();
        let class = |secret: &str| keys.find(secret.as_bytes()).unwrap().max_priority;
        assert_eq!(
            class("alice-secret-0123456789"),
            Some(Priority::Interactive)
        );
        assert_eq!(class("bobs-secret-0123456789"), Some(Priority::Batch));
        assert_eq!(class("carols-secret-0123456789"), None);
    }

    #[test]
    fn nobody_gets_more_than_their_class() {
        let of = |max_priority, asked| {
            let caller = Caller {
                max_priority,
                ..Caller::default()
            };
            caller
                .priority(asked)
                .map_err(|error| error.status.as_u16())
        };
        use Priority::{Batch, Interactive, Normal};
        assert_eq!(of(Interactive, None), Ok(Normal));
        assert_eq!(of(Interactive, Some(Interactive)), Ok(Interactive));
        assert_eq!(of(Normal, Some(Interactive)), Err(403));
        assert_eq!(of(Normal, Some(Batch)), Ok(Batch));
        assert_eq!(of(Batch, None), Ok(Batch));
        assert_eq!(of(Batch, Some(Normal)), Err(403));
    }

    #[test]
    fn a_user_is_a_key_or_an_address() {
        let ids = UserIds::default();
        let key = |name: &str| Some(Arc::from(name));
        let from = |text: &str| Some(text.parse().unwrap());
        let of = |key: Option<Arc<str>>, address| ids.of(key.as_ref(), address);
        assert_eq!(
            of(key("alice"), from("10.0.0.1")),
            of(key("alice"), from("10.0.0.2"))
        );
        assert_ne!(of(key("alice"), None), of(key("bob"), None));
        assert_ne!(of(None, from("10.0.0.1")), of(None, from("10.0.0.2")));
        assert_eq!(of(None, from("2001:db8::1")), of(None, from("2001:db8::2")));
    }

    #[test]
    fn a_bad_line_is_named_and_not_shown() {
        let check = |text: &str, expected: &str| {
            assert_eq!(ApiKeys::parse(text).err().as_deref(), Some(expected));
        };
        check("short", "line 1: a key has at least 16 characters");
        check("\nsha256:12", "line 2: a digest has 64 hexadecimal digits");
        check(
            &format!("sha256:{}", "g".repeat(64)),
            "line 1: a digest has 64 hexadecimal digits",
        );
        check("a b c", "line 1: a name and a key are two words at most");
        check(
            "a 0123456789abcdef priority=high",
            "line 1: priority is one of interactive, normal, batch",
        );
        check(
            "a 0123456789abcdef\na 0123456789abcdeg",
            "line 2: the name is used twice",
        );
    }

    #[test]
    fn the_scheme_is_bearer_in_any_case() {
        let check = |value: &str, expected: Option<&[u8]>| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            assert_eq!(bearer(&headers), expected, "{value}");
        };
        check("Bearer abc", Some(b"abc"));
        check("bearer  abc", Some(b"abc"));
        check("Basic abc", None);
        check("Bearer", None);
        check("abc", None);
    }

    #[test]
    fn the_password_of_basic_is_read() {
        let check = |value: &str, expected: Option<&[u8]>| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            assert_eq!(basic(&headers).as_deref(), expected, "{value}");
        };
        // "name:se:cret", ":x", and "none", which has no colon.
        check("Basic bmFtZTpzZTpjcmV0", Some(b"se:cret"));
        check("basic Ong=", Some(b"x"));
        check("Basic bm9uZQ==", None);
        check("Basic ???", None);
        check("Bearer bmFtZTpzZTpjcmV0", None);
    }
}
