//! GPT-2's byte alphabet: vocabularies of the byte-level kind write each byte as one printable
//! character.

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
}
