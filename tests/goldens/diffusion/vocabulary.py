"""A CLIP byte-pair vocabulary of 700 entries, laid out as CLIP's own: 256 byte symbols, the same with `</w>`, one entry per
merge, `<|startoftext|>`, `<|endoftext|>`. The merges are learnt from the words below."""

import collections
import json

from transformers import CLIPTokenizer

SIZE = 700
START, END = SIZE - 2, SIZE - 1
WORDS = """
a red apple on a white table, a green pear on a blue background, a photo of a cat, a photograph of an astronaut riding a
horse, a painting of a fox in the style of van gogh, the quick brown fox jumps over the lazy dog, a cup of coffee beside a
book, a yellow circle and a purple square, a small house with a garden under the stars, highly detailed digital painting,
concept art, soft light, sharp focus, trending illustration, oil on canvas, watercolour of a lighthouse by the sea, an old
man with a beard, portrait of a woman reading, a bowl of oranges, flat icon on a plain background, mountain lake at
sunrise, city street at night in the rain, steam train, sailing boat, tall tree, bright flower, wooden chair, black and
white drawing, low quality, blurry, deformed, text, watermark, best quality, masterpiece, dramatic lighting, wide angle
"""


def byte_symbols():
    """GPT-2's printable stand-in for each byte, in the order in which CLIP's vocabulary lists them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def learn(count):
    words = collections.Counter()
    for word in WORDS.replace(",", " , ").split():
        words[(*word[:-1], word[-1] + "</w>")] += 1
    merges = []
    while len(merges) < count:
        pairs = collections.Counter()
        for word, times in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += times
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        merged = collections.Counter()
        for word, times in words.items():
            parts, index = [], 0
            while index < len(word):
                if word[index : index + 2] == best:
                    parts.append(word[index] + word[index + 1])
                    index += 2
                else:
                    parts.append(word[index])
                    index += 1
            merged[tuple(parts)] += times
        words = merged
    return merges


def entries():
    symbols = byte_symbols()
    merges = learn(SIZE - 2 * len(symbols) - 2)
    names = symbols + [symbol + "</w>" for symbol in symbols] + ["".join(pair) for pair in merges]
    vocabulary = {name: index for index, name in enumerate([*names, "<|startoftext|>", "<|endoftext|>"])}
    assert len(vocabulary) == SIZE
    return vocabulary, merges


def clip_tokenizer(pad):
    vocabulary, merges = entries()
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=77)


def save(folder, pad, with_tokenizer_json):
    """Writes vocab.json and merges.txt, as the published models have them, and tokenizer.json when asked."""
    clip_tokenizer(pad).save_pretrained(folder)
    vocabulary, merges = entries()
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":")))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    if not with_tokenizer_json:
        (folder / "tokenizer.json").unlink()
