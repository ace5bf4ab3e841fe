//! API keys: who may call. Kept as SHA-256 digests, compared in constant time.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::error::{ApiError, ErrorShape};
use super::{AppState, admin, web};

/// Who calls: the name of the key, or nobody where no keys are asked for. An extension of every
/// HTTP request that passed the authentication layer; requests belong to their caller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Caller(pub Option<Arc<str>>);

/// The keys that open the service.
#[derive(Clone, Default)]
pub struct ApiKeys {
    keys: Vec<(Arc<str>, [u8; 32])>,
    /// Those of operators. They open the operator's API and nothing else.
    admin: Option<Arc<ApiKeys>>,
}

/// Written before a digest in a key file.
const DIGEST_PREFIX: &str = "sha256:";

impl ApiKeys {
    /// Reads a key file: one key a line, or `sha256:` and the 64 hexadecimal digits of its digest,
    /// optionally with a name and a space before it. Blank lines and `#` comments are skipped. A
    /// key without a name is called `key-N` by its line.
    ///
    /// # Errors
    /// The number of a line that cannot be read, and why. The message never holds a key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut keys: Vec<(Arc<str>, [u8; 32])> = Vec::new();
        for (line, number) in text.lines().zip(1u32..) {
            let words: Vec<&str> = line.split_whitespace().collect();
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
            if keys.iter().any(|(other, _)| **other == *name) {
                return Err(format!("line {number}: the name is used twice"));
            }
            keys.push((Arc::from(name), digest));
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
        let known = bearer(headers).is_some_and(|secret| admin.caller(secret).is_some());
        known
            .then_some(())
            .ok_or_else(|| unauthorized(ErrorShape::Native))
    }

    /// Whether nobody is asked for a key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The caller whose key this is. Looks at every key, whichever fits.
    fn caller(&self, secret: &[u8]) -> Option<Caller> {
        let digest: [u8; 32] = Sha256::digest(secret).into();
        let mut found = 0u32;
        let mut any = Choice::from(0);
        for ((_, known), index) in self.keys.iter().zip(0u32..) {
            let equal = known.ct_eq(&digest);
            found.conditional_assign(&index, equal);
            any |= equal;
        }
        bool::from(any).then(|| Caller(Some(Arc::clone(&self.keys[found as usize].0))))
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
    let caller = if state.keys.is_empty() || open {
        Caller::default()
    } else {
        let shape = ErrorShape::for_path(path);
        let headers = request.headers();
        let secret = match shape {
            // The web UI's clients know no other scheme.
            ErrorShape::WebUi => bearer(headers).map(Vec::from).or_else(|| basic(headers)),
            _ => bearer(headers).map(Vec::from),
        };
        match secret.and_then(|secret| state.keys.caller(&secret)) {
            Some(caller) => caller,
            None => return unauthorized(shape).into_response_as(shape),
        }
    };
    request.extensions_mut().insert(caller);
    next.run(request).await
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
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
        let name = |secret: &str| keys.caller(secret.as_bytes()).and_then(|caller| caller.0);
        assert_eq!(name("alice-secret-0123456789").as_deref(), Some("alice"));
        // The digest of "test".
        assert_eq!(name("test").as_deref(), Some("key-4"));
        assert_eq!(name("alice"), None);
        assert_eq!(name(""), None);
        assert!(!keys.is_empty());
        assert!(ApiKeys::parse("\n# none\n").unwrap().is_empty());
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
