//! With whom a request shares the cached tokens of its prompt.

use sha2::{Digest, Sha256};

use super::Invalid;
use crate::job::CacheSalt;

/// The longest `cache_salt`. It is digested at once and kept nowhere, so this is no setting.
const MAX_SALT_BYTES: usize = 256;

/// One digest for who asks and what salt they gave: equal only where both are equal, so a tenant can
/// neither name nor guess its way into another's cache.
///
/// # Errors
/// A salt that is empty or too long.
pub(super) fn cache_salt(tenant: Option<&str>, salt: Option<&str>) -> Result<CacheSalt, Invalid> {
    if salt.is_some_and(|salt| !(1..=MAX_SALT_BYTES).contains(&salt.len())) {
        let message = format!("must be 1 to {MAX_SALT_BYTES} bytes long");
        return Err(Invalid::value("cache_salt", message));
    }
    let mut digest = Sha256::new();
    for part in [tenant, salt] {
        // The length says where a part ends; one that is absent differs from every other.
        let length = part.map_or(u64::MAX, |part| part.len() as u64);
        digest.update(length.to_le_bytes());
        digest.update(part.unwrap_or_default());
    }
    Ok(CacheSalt(digest.finalize().into()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn equal_only_where_tenant_and_salt_are_equal() {
        let parts = [None, Some("a"), Some("b"), Some("ab")];
        let mut seen = HashMap::new();
        for tenant in parts {
            for salt in parts {
                let made = cache_salt(tenant, salt).expect("valid");
                assert_eq!(
                    cache_salt(tenant, salt),
                    Ok(made),
                    "it is the same every time"
                );
                let earlier = seen.insert(made.0, (tenant, salt));
                assert_eq!(earlier, None, "{tenant:?} {salt:?}");
            }
        }
    }

    #[test]
    fn a_salt_has_a_length() {
        for (salt, accepted) in [
            (String::new(), false),
            ("s".into(), true),
            ("s".repeat(256), true),
            ("s".repeat(257), false),
            ("é".repeat(129), false),
        ] {
            let made = cache_salt(None, Some(&salt));
            assert_eq!(made.is_ok(), accepted, "{} bytes", salt.len());
            if let Err(invalid) = made {
                assert_eq!(invalid.field, "cache_salt");
                assert_eq!(invalid.message, "cache_salt must be 1 to 256 bytes long");
            }
        }
    }

    #[test]
    fn what_it_is_made_of_is_not_shown() {
        let salt = cache_salt(Some("alice"), Some("pepper")).expect("valid");
        assert_eq!(format!("{salt:?}"), "CacheSalt(..)");
    }
}
