//! `multipart/form-data` (RFC 7578), of a body that is there as a whole: its size has been held against
//! `max_body_bytes`, and its parts are slices of it.

use axum::body::Bytes;

use crate::intake::{Invalid, InvalidKind};

/// One part of a form.
#[derive(Debug)]
pub(super) struct Part {
    /// The field's name.
    pub(super) name: String,
    /// It came with a file name.
    pub(super) is_file: bool,
    /// What it holds.
    pub(super) content: Bytes,
}

/// More fields than any form has.
const MAX_PARTS: usize = 64;
/// The head of a part: its name, its file's name, its type.
const MAX_HEAD_BYTES: usize = 4 << 10;
/// RFC 2046's limit of a boundary.
const MAX_BOUNDARY_BYTES: usize = 70;

/// Whether a body of this type is a form.
pub(super) fn is_form(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default();
    kind.trim().eq_ignore_ascii_case("multipart/form-data")
}

/// The parts of a form.
///
/// # Errors
/// No form of this type; too many parts; a part without a name.
pub(super) fn parse(content_type: &str, body: &Bytes) -> Result<Vec<Part>, Invalid> {
    let boundary = parameter(content_type, "boundary")
        .filter(|boundary| (1..=MAX_BOUNDARY_BYTES).contains(&boundary.len()))
        .ok_or_else(|| wrong("the form's content type has no boundary"))?;
    let delimiter = format!("\r\n--{boundary}").into_bytes();
    // The first delimiter may stand at the very beginning, without a line's end before it.
    let mut at = match body.strip_prefix(&delimiter[2..]) {
        Some(_) => delimiter.len() - 2,
        None => find(body, &delimiter, 0).ok_or_else(broken)? + delimiter.len(),
    };
    let mut parts = Vec::new();
    loop {
        if body[at..].starts_with(b"--") {
            return Ok(parts);
        }
        // A delimiter's line may end in blanks.
        let line_end = find(body, b"\r\n", at).ok_or_else(broken)?;
        if body[at..line_end].iter().any(|byte| !b" \t".contains(byte)) {
            return Err(broken());
        }
        if parts.len() == MAX_PARTS {
            return Err(wrong(&format!("the form has more than {MAX_PARTS} parts")));
        }
        let end = find(body, &delimiter, line_end).ok_or_else(broken)?;
        parts.push(part(body, line_end, end)?);
        at = end + delimiter.len();
    }
}

/// The part between the end of its delimiter's line and the next delimiter.
fn part(body: &Bytes, start: usize, end: usize) -> Result<Part, Invalid> {
    let head_end = find(&body[..end], b"\r\n\r\n", start).ok_or_else(broken)?;
    if head_end - start > MAX_HEAD_BYTES {
        return Err(wrong(&format!(
            "a part of the form has a head of more than {MAX_HEAD_BYTES} bytes"
        )));
    }
    let head = std::str::from_utf8(&body[start..head_end])
        .map_err(|_| wrong("a part of the form has a head that is no UTF-8"))?;
    let disposition = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("content-disposition"))
        .map(|(_, value)| value)
        .ok_or_else(|| wrong("a part of the form has no content-disposition"))?;
    let name = parameter(disposition, "name")
        .filter(|name| !name.is_empty())
        .ok_or_else(|| wrong("a part of the form has no name"))?;
    Ok(Part {
        name,
        is_file: parameter(disposition, "filename").is_some()
            || parameter(disposition, "filename*").is_some(),
        content: body.slice(head_end + 4..end),
    })
}

/// A parameter of a header's value, such as `name` in `form-data; name="x"`.
fn parameter(header: &str, wanted: &str) -> Option<String> {
    let (_, mut rest) = header.split_once(';')?;
    loop {
        let (name, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let (value, left) = match after.strip_prefix('"') {
            Some(quoted) => quoted_text(quoted)?,
            None => {
                let end = after.find(';').unwrap_or(after.len());
                (after[..end].trim_end().to_owned(), &after[end..])
            }
        };
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = left.trim_start().strip_prefix(';')?;
    }
}

/// A text up to its closing quote, and what comes after that.
fn quoted_text(quoted: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            // Browsers escape quotes as %22, others with a backslash; a lone one is a Windows path's.
            '\\' if quoted[at + 1..].starts_with(['"', '\\']) => {
                value.extend(characters.next().map(|(_, escaped)| escaped));
            }
            character => value.push(character),
        }
    }
    None
}

fn find(bytes: &[u8], wanted: &[u8], from: usize) -> Option<usize> {
    let first = *wanted.first()?;
    let mut at = from;
    loop {
        at += bytes.get(at..)?.iter().position(|byte| *byte == first)?;
        if bytes[at..].starts_with(wanted) {
            return Some(at);
        }
        at += 1;
    }
}

fn wrong(message: &str) -> Invalid {
    Invalid::new(InvalidKind::Body, "", message)
}

fn broken() -> Invalid {
    wrong("the form is not closed by its boundary, or breaks off within a part")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=XX";

    fn parsed(body: &str) -> Vec<(String, bool, Vec<u8>)> {
        let parts = parse(TYPE, &Bytes::from(body.to_owned())).expect(body);
        parts
            .into_iter()
            .map(|part| (part.name, part.is_file, part.content.to_vec()))
            .collect()
    }

    #[test]
    fn parts_are_cut_at_the_boundary_and_nowhere_else() {
        let body = "preamble\r\n--XX\r\nContent-Disposition: form-data; name=\"prompt\"\r\n\r\na --XX b\r\n-XX\
                    \r\n--XX  \r\ncontent-type: image/png\r\nCONTENT-DISPOSITION: form-data; \
                    filename=\"C:\\x;y=\\\"z\\\".png\"; name=image\r\n\r\n\r\n\r\n\r\n--XX--\r\nepilogue";
        assert_eq!(
            parsed(body),
            [
                ("prompt".to_owned(), false, b"a --XX b\r\n-XX".to_vec()),
                ("image".to_owned(), true, b"\r\n\r\n".to_vec()),
            ]
        );
        assert_eq!(parsed("--XX--"), []);
        let empty = "--XX\r\nContent-Disposition: form-data; name=\"a[]\"\r\n\r\n\r\n--XX--";
        assert_eq!(parsed(empty), [("a[]".to_owned(), false, Vec::new())]);
    }

    fn refused(content_type: &str, body: &str) -> String {
        let invalid = parse(content_type, &Bytes::from(body.to_owned())).expect_err(body);
        assert_eq!(
            (invalid.kind, invalid.field.as_str()),
            (InvalidKind::Body, "")
        );
        invalid.message
    }

    #[test]
    fn a_broken_form_is_refused() {
        let head = "--XX\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n";
        for body in [
            "",
            "--X",
            "--XX",
            "--XX\r\n",
            "--XXY\r\n--XX--",
            head,
            &format!("{head}text"),
            &format!("{head}text\r\n--XX"),
            &format!("{head}text\r\n--XX\r\n"),
            "--XX\r\nContent-Disposition: form-data; name=\"a\"\r\n--XX--",
        ] {
            assert!(
                refused(TYPE, body).contains("not closed by its boundary"),
                "{body:?}"
            );
        }
        for (disposition, expected) in [
            ("", "has no content-disposition"),
            ("Content-Disposition: form-data", "has no name"),
            ("Content-Disposition: form-data; name=\"\"", "has no name"),
            ("Content-Disposition: form-data; name=\"open", "has no name"),
        ] {
            let body = format!("--XX\r\nX: y\r\n{disposition}\r\n\r\n\r\n--XX--");
            assert!(refused(TYPE, &body).contains(expected), "{disposition}");
        }
        let many = format!("{head}x\r\n").repeat(65) + "--XX--";
        assert_eq!(refused(TYPE, &many), "the form has more than 64 parts");
        let long = head.replace("name=", &format!("{}; name=", "y".repeat(5_000)));
        assert!(refused(TYPE, &format!("{long}\r\n--XX--")).contains("4096 bytes"));
        for content_type in ["multipart/form-data", "multipart/form-data; boundary=\"\""] {
            assert!(refused(content_type, head).contains("no boundary"));
        }
        assert!(is_form("Multipart/Form-Data; boundary=x"));
        assert!(!is_form("application/json"));
    }
}
