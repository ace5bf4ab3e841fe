//! The pages, `/` and `/admin`: static files, compiled into the program.
//!
//! Everything that a page loads comes from here, under a path that holds the digest of all files; so a
//! browser may keep them for good and never mixes two versions.

use std::io::Write;
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::Bytes;
use axum::extract::Path;
use axum::http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
    IF_NONE_MATCH, REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

use super::AppState;
use super::error::ApiError;

const HOME: &str = "/";
const ADMIN: &str = "/admin";
const ASSET: &str = "/assets/{version}/{file}";
const ASSETS_PREFIX: &str = "/assets/";

/// Stands in the pages for the digest of all files.
const VERSION_PLACE: &str = "{version}";

/// Nothing but our own files runs or is shown; what a model says never becomes markup, since the pages make
/// none from text (`require-trusted-types-for` has the browser hold them to it).
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../web/", $name)))),*]
    };
}

const FILES: &[(&str, &str)] = files![
    "admin.css",
    "admin.js",
    "api.js",
    "app.js",
    "chat.js",
    "conversation.js",
    "controls.css",
    "controls.js",
    "dom.js",
    "feed.js",
    "icon.svg",
    "images.js",
    "layout.css",
    "markdown.js",
    "messages.css",
    "patience.js",
    "picture.js",
    "pictures.css",
    "plot.js",
    "storage.js",
    "theme.css",
    "theme.js",
];
const HOME_PAGE: &str = include_str!("../web/index.html");
const ADMIN_PAGE: &str = include_str!("../web/admin.html");

/// A file as it is sent.
struct Asset {
    name: &'static str,
    media_type: &'static str,
    tag: String,
    plain: Bytes,
    gzip: Bytes,
}

/// All files, with the digest of all of them.
struct Site {
    version: String,
    home: Asset,
    admin: Asset,
    assets: Vec<Asset>,
}

static SITE: LazyLock<Site> = LazyLock::new(|| {
    let mut digest = Sha256::new();
    for (name, text) in FILES {
        digest.update(name);
        digest.update([0]);
        digest.update(text);
        digest.update([0]);
    }
    let version = hexadecimal(&digest.finalize());
    let page = |name, text: &str| asset(name, &text.replace(VERSION_PLACE, &version));
    Site {
        home: page("index.html", HOME_PAGE),
        admin: page("admin.html", ADMIN_PAGE),
        assets: FILES.iter().map(|(name, text)| asset(name, text)).collect(),
        version,
    }
});

fn asset(name: &'static str, text: &str) -> Asset {
    let media_type = match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    };
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    let gzip = gzip
        .write_all(text.as_bytes())
        .and_then(|()| gzip.finish())
        .expect("writing to memory does not fail");
    Asset {
        name,
        media_type,
        tag: format!("\"{}\"", hexadecimal(&Sha256::digest(text))),
        plain: Bytes::copy_from_slice(text.as_bytes()),
        gzip: gzip.into(),
    }
}

/// Enough of a digest to tell files apart.
fn hexadecimal(digest: &[u8]) -> String {
    digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The routes of this file.
pub(super) fn routes() -> Router<Arc<AppState>> {
    Router::new()
        .route(HOME, get(home))
        .route(ADMIN, get(admin))
        .route(ASSET, get(file))
}

/// Whether this path is a page's or one of its files, which everybody may have: they hold no secret, and a
/// browser that has no key yet needs them to ask for one.
pub(super) fn is_page(path: &str) -> bool {
    path == HOME || path == ADMIN || path.starts_with(ASSETS_PREFIX)
}

async fn home(headers: HeaderMap) -> Response {
    answer(&SITE.home, &headers, "no-cache")
}

async fn admin(headers: HeaderMap) -> Response {
    answer(&SITE.admin, &headers, "no-cache")
}

async fn file(
    Path((version, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let asset = SITE.assets.iter().find(|asset| asset.name == name);
    let asset = asset.ok_or_else(|| {
        let message = "there is no such file of the page";
        ApiError::new(StatusCode::NOT_FOUND, "path_not_found", message)
    })?;
    // A page of another version gets today's file, and must ask again tomorrow.
    let cache = match version == SITE.version {
        true => "public, max-age=31536000, immutable",
        false => "no-cache",
    };
    Ok(answer(asset, &headers, cache))
}

fn answer(asset: &Asset, request: &HeaderMap, cache: &'static str) -> Response {
    let names = |header: HeaderName, wanted: &str| {
        request.get_all(header).iter().any(|value| {
            let mut parts = value.to_str().unwrap_or_default().split(',');
            parts.any(|part| part.trim().trim_start_matches("W/") == wanted)
        })
    };
    let mut response = match names(IF_NONE_MATCH, &asset.tag) {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => {
            let gzip = names(ACCEPT_ENCODING, "gzip");
            let body = if gzip { &asset.gzip } else { &asset.plain };
            let mut response = body.clone().into_response();
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(asset.media_type));
            if gzip {
                headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
            response
        }
    };
    let tag = HeaderValue::from_str(&asset.tag).expect("digits are a valid header value");
    let headers = response.headers_mut();
    headers.insert(ETAG, tag);
    for (name, value) in [
        (CACHE_CONTROL, cache),
        (VARY, "accept-encoding"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_name_only_files_that_are_there() {
        for page in [HOME_PAGE, ADMIN_PAGE] {
            let mut named = 0;
            for (_, rest) in page
                .match_indices(VERSION_PLACE)
                .map(|(at, place)| page[at..].split_at(place.len()))
            {
                let name = rest
                    .trim_start_matches('/')
                    .split('"')
                    .next()
                    .unwrap_or_default();
                assert!(FILES.iter().any(|(file, _)| *file == name), "{name}");
                named += 1;
            }
            assert!(named > 3, "{named} files");
        }
        let imported = |text: &str| -> Vec<String> {
            let names = text.split("from \"./").skip(1);
            names
                .filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()))
                .collect()
        };
        for (file, text) in FILES {
            for name in imported(text) {
                assert!(
                    FILES.iter().any(|(other, _)| *other == name),
                    "{file}: {name}"
                );
            }
        }
    }

    #[test]
    fn the_files_keep_to_the_policy() {
        for (name, text) in FILES
            .iter()
            .chain(&[("index.html", HOME_PAGE), ("admin.html", ADMIN_PAGE)])
        {
            for wrong in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                " style=\"",
                "onclick=",
                "<style",
            ] {
                assert!(!text.contains(wrong), "{name} has {wrong}");
            }
            // A scheme alone is no host: the Markdown looks for some.
            let own = text.replace("http://www.w3.org/", "");
            let hosts = own.split("://").skip(1);
            let named = |rest: &str| rest.starts_with(|first: char| first.is_alphanumeric());
            assert!(!hosts.into_iter().any(named), "{name} names another host");
        }
    }
}
