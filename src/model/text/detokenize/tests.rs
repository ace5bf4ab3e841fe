use proptest::prelude::*;

use super::*;

/// With the byte tokenizer, tokens are bytes.
fn detokenizer(stop: &[&str], keeps_stop: bool) -> Detokenizer {
    let job = TextJob {
        stop: stop.iter().map(ToString::to_string).collect(),
        include_stop_str_in_output: keeps_stop,
        ..TextJob::greedy([0], 1)
    };
    Detokenizer::new(Arc::new(TextTokenizer::bytes(257)), &job)
}

/// All the pieces, up to the stop or with what `finish` gives.
fn stream(detokenizer: &mut Detokenizer, bytes: &[u8], min_tokens: usize) -> (Vec<String>, bool) {
    let mut pieces = Vec::new();
    for (at, &byte) in bytes.iter().enumerate() {
        let piece = detokenizer.push(u32::from(byte), at >= min_tokens);
        pieces.push(piece.text);
        if piece.stopped {
            return (pieces, true);
        }
    }
    pieces.push(detokenizer.finish());
    (pieces, false)
}

/// The plain way: decode everything, then look for the stop string that ends first (of those, the
/// longest), among those that end after `min_tokens` bytes.
fn plain(bytes: &[u8], stop: &[String], min_tokens: usize, keeps_stop: bool) -> (String, bool) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let exempt = String::from_utf8_lossy(&bytes[..min_tokens.min(bytes.len())]).len();
    let found = stop
        .iter()
        .flat_map(|stop| {
            let starts =
                (0..text.len()).filter(|&at| text.as_bytes()[at..].starts_with(stop.as_bytes()));
            starts.map(|start| (start + stop.len(), start))
        })
        .filter(|&(end, _)| end > exempt)
        .min();
    match found {
        Some((end, start)) => {
            let kept = if keeps_stop { end } else { start };
            (text[..kept].to_owned(), true)
        }
        None => (text, false),
    }
}

/// Few letters, so that stop strings overlap and repeat; characters of every length.
fn letters(len: std::ops::Range<usize>) -> impl Strategy<Value = String> {
    prop::collection::vec(
        prop::sample::select(vec!['a', 'b', ' ', 'é', 'ê', '漢', '🙂', '🙃']),
        len,
    )
    .prop_map(|letters| letters.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_stream_equals_the_whole(
        text in letters(0..40),
        stop in prop::collection::vec(letters(1..5), 0..4),
        min_tokens in prop_oneof![Just(0_usize), 0_usize..60],
        keeps_stop: bool,
    ) {
        let borrowed: Vec<&str> = stop.iter().map(String::as_str).collect();
        let mut detokenizer = detokenizer(&borrowed, keeps_stop);
        // A minimum within a character has no counterpart in the plain way.
        let mut min_tokens = min_tokens.min(text.len());
        while !text.is_char_boundary(min_tokens) {
            min_tokens -= 1;
        }
        let (pieces, stopped) = stream(&mut detokenizer, text.as_bytes(), min_tokens);
        let wanted = plain(text.as_bytes(), &stop, min_tokens, keeps_stop);
        prop_assert_eq!((pieces.concat(), stopped), wanted);
        prop_assert_eq!(detokenizer.finish(), "");
    }

    #[test]
    fn any_bytes_become_what_the_whole_becomes(
        bytes in prop::collection::vec(prop_oneof![
            any::<u8>(),
            prop::sample::select(vec![0xF0_u8, 0x9F, 0x99, 0x82, 0xE2, 0x80, 0xC3, b'a']),
        ], 0..60),
    ) {
        let (pieces, _) = stream(&mut detokenizer(&[], false), &bytes, 0);
        prop_assert_eq!(pieces.concat(), String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn exactly_what_may_begin_a_stop_is_held(text in letters(0..20), stop in prop::collection::vec(letters(2..5), 1..4)) {
        let borrowed: Vec<&str> = stop.iter().map(String::as_str).collect();
        let mut detokenizer = detokenizer(&borrowed, false);
        let mut out = String::new();
        for (at, &byte) in text.as_bytes().iter().enumerate() {
            let piece = detokenizer.push(u32::from(byte), true);
            out.push_str(&piece.text);
            if piece.stopped {
                break;
            }
            let Some(so_far) = text.get(..=at) else { continue };
            let held = (0..=so_far.len())
                .filter(|&from| so_far.is_char_boundary(from))
                .map(|from| &so_far[from..])
                .find(|end| stop.iter().any(|stop| stop.starts_with(end)))
                .unwrap_or("");
            prop_assert_eq!(format!("{out}{held}"), so_far);
        }
    }
}

#[test]
fn half_a_character_is_held_until_it_is_certain() {
    let mut row = detokenizer(&[], false);
    let mut push = |byte: u8| row.push(u32::from(byte), true).text;
    assert_eq!(
        [push(0xF0), push(0x9F), push(0x99), push(0x82)].concat(),
        "🙂"
    );
    // 0x9F can't go on after an ASCII letter: certain at once. 0xE2 0x80 may, until 'a' comes.
    assert_eq!(push(0x9F), "\u{FFFD}");
    assert_eq!(push(0xE2), "");
    assert_eq!(push(0x80), "");
    assert_eq!(push(b'a'), "\u{FFFD}a");
    assert_eq!(push(0xC3), "");
    assert_eq!(row.finish(), "\u{FFFD}");
}

#[test]
fn special_tokens_are_left_out_or_kept() {
    let text = |skip_special_tokens| {
        let job = TextJob {
            skip_special_tokens,
            ..TextJob::greedy([0], 1)
        };
        let mut row = Detokenizer::new(Arc::new(TextTokenizer::bytes(300)), &job);
        // 256 is the end of text, 299 is nothing, 300 is no token at all.
        [104, 256, 105, 299, 300]
            .map(|token| row.push(token, true).text)
            .concat()
    };
    assert_eq!(text(true), "hi");
    assert_eq!(text(false), "h<|endoftext|>i");
}

#[test]
fn a_stop_before_the_minimum_does_not_count_but_one_across_it_does() {
    let run = |min_tokens| {
        let (pieces, stopped) = stream(&mut detokenizer(&["END"], false), b"xENDyEND", min_tokens);
        (pieces.concat(), stopped)
    };
    assert_eq!(run(3), ("x".to_owned(), true));
    assert_eq!(run(4), ("xENDy".to_owned(), true));
    assert_eq!(run(8), ("xENDyEND".to_owned(), false));
}

#[test]
fn the_work_per_token_does_not_grow_with_the_text() {
    // A stop string that nearly matches all along: text goes out as soon as it is certain.
    let mut row = detokenizer(&["aaaaaaab"], false);
    for _ in 0..100_000 {
        row.push(u32::from(b'a'), true);
        assert!(row.held.len() <= 7);
    }
    assert_eq!(row.finish().len(), 7);
}
