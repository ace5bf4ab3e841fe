//! How vocabularies write bytes: as one printable character each (GPT-2's alphabet), or by their
//! number (`<0x0A>`, SentencePiece's byte tokens).

/// The byte that `character` stands for, if it is of the alphabet: itself where it is printable, else
/// counted from U+0100 on (the table of GPT-2's `encoder.py`).
fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    let byte = match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// The bytes that `token` spells; its own UTF-8 if one of its characters is not of the alphabet
/// (added tokens are written plainly).
pub(super) fn bytes_of(token: &str) -> Vec<u8> {
    token
        .chars()
        .map(byte_of)
        .collect::<Option<Vec<u8>>>()
        .unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The byte that a byte token names by its number.
pub(super) fn named_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_number = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_number.then(|| u8::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_character_of_its_own() {
        let mut bytes: Vec<u8> = ('\0'..='\u{1000}').filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=u8::MAX).collect::<Vec<u8>>());
        let known = [
            ('Ġ', b' '),
            ('Ċ', b'\n'),
            ('ĉ', b'\t'),
            ('~', b'~'),
            ('Ń', 0xAD),
            ('ł', 0xA0),
        ];
        for (character, byte) in known {
            assert_eq!(byte_of(character), Some(byte));
        }
    }

    #[test]
    fn a_token_outside_the_alphabet_is_its_own_text() {
        assert_eq!(bytes_of("Ġhi"), b" hi");
        assert_eq!(bytes_of("two words"), b"two words");
        assert_eq!(bytes_of("<｜end▁of｜>"), "<｜end▁of｜>".as_bytes());
    }

    #[test]
    fn byte_tokens_name_their_byte() {
        assert_eq!(named_byte("<0x0A>"), Some(b'\n'));
        assert_eq!(named_byte("<0xff>"), Some(0xFF));
        for other in ["<0x0>", "<0x+1>", "<0x0AA>", "0x0A", "<0xé>"] {
            assert_eq!(named_byte(other), None, "{other}");
        }
    }
}
