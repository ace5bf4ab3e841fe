"""200 prompts and their CLIP token ids with the vocabulary of vocabulary.py: `clip_tokens.json`.

    prompts   a list of { "text", "ids" }: all ids without truncation or padding, between `<|startoftext|>` and
              `<|endoftext|>`
    decoded   a list of { "ids", "text" }: what the tokenizer's decode gives without the special tokens

The ids padded to 77 are in `<model>.components.safetensors`.
"""

import json
import random

from . import vocabulary

WRITTEN = [
    "",
    " ",
    "\n\t ",
    "a",
    "A",
    "a red apple on a white table",
    "A RED Apple On A White TABLE",
    "  leading,   inner\t\tand trailing   ",
    "line one\nline two\r\nline three",
    "a photo of a cat, trending on artstation, 8k, hdr, (masterpiece:1.3), [blurry], ((sharp))",
    "it's the fox's den; they're here, we've won, i'm in, you'll see, he'd go, don't, o'clock, rock'n'roll",
    "IT'S THEY'RE DON'T",
    "\u2019curly\u2019 \u201cquotes\u201d \u2014 dash \u2013 en \u2026 ellipsis",
    "3.14159 and 2,000,000 and 1/2 and 50% and $9.99 and #1 and 10:30",
    "1234567890",
    "x2 4k 8k 3d h2o",
    "\u00bd \u00b2 \u2168 \u0663 \u096a",
    "!!! ??? ... ,,, ;;; ::: --- ___ ~~~",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "a-b_c/d\\e|f",
    "caf\u00e9 na\u00efve r\u00e9sum\u00e9 \u00fcber stra\u00dfe \u00c5ngstr\u00f6m \u0141\u00f3d\u017a",
    "cafe\u0301 nai\u0308ve (decomposed)",
    "\u212b \ufb01ne \u017f \u0130stanbul \u1e9e",
    "\u041a\u0440\u0430\u0441\u043d\u043e\u0435 \u044f\u0431\u043b\u043e\u043a\u043e \u043d\u0430 \u0441\u0442\u043e\u043b\u0435",
    "\u039a\u03cc\u03ba\u03ba\u03b9\u03bd\u03bf \u03bc\u03ae\u03bb\u03bf \u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2",
    "\u7ea2\u8272\u7684\u82f9\u679c\u5728\u767d\u8272\u7684\u684c\u5b50\u4e0a",
    "\u8d64\u3044\u308a\u3093\u3054\u3068\u767d\u3044\u30c6\u30fc\u30d6\u30eb",
    "\ube68\uac04 \uc0ac\uacfc",
    "\u062a\u0641\u0627\u062d\u0629 \u062d\u0645\u0631\u0627\u0621 \u05ea\u05e4\u05d5\u05d7 \u05d0\u05d3\u05d5\u05dd",
    "\u0932\u093e\u0932 \u0938\u0947\u092c \u0e41\u0e2d\u0e1b\u0e40\u0e1b\u0e34\u0e49\u0e25\u0e2a\u0e35\u0e41\u0e14\u0e07",
    "\U0001f34e",
    "\U0001f34e\U0001f34f \u2764\ufe0f \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd",
    "cat\U0001f431cat",
    "a\u00a0b\u2003c\u200bd\u3000e\ufefff",
    "\u0000 \u0007 \u001b[31m \u007f",
    "zero\u200dwidth\u00adsoft",
    "\u202eright to left\u202c",
    "z\u0335\u0321a\u0334l\u0337g\u0338o",
    "<|startoftext|>",
    "<|endoftext|>",
    "before <|endoftext|> after",
    "<|startoftext|>a cat<|endoftext|>",
    "<|StartOfText|> <|endoftext",
    "</w> <pad> <unk> [MASK]",
    "\u2581 \u0120 \u010a",
    "the" * 40,
    "the " * 120,
    "a highly detailed digital painting of a lighthouse by the sea, " * 8,
    "x" * 500,
    "\U0001f431" * 30,
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "e" * 3 + "E" * 3 + "\u00e9" * 3,
]


def prompts():
    """The written ones, and mixtures of them up to 200."""
    chance = random.Random(77)
    words = vocabulary.WORDS.replace(",", "").split()
    pieces = ["'s", "!", "...", "42", "\u00e9t\u00e9", "\U0001f600", "(", ")", ":1.2", "\u4e2d", "'LL", "-", "\u0416", "\n", "  "]
    found = list(WRITTEN)
    while len(found) < 200:
        text = ""
        for _ in range(chance.randint(1, 30)):
            word = chance.choice(words)
            word = chance.choice([word, word, word, word.upper(), word.capitalize(), word[::-1], chance.choice(pieces)])
            text += word + chance.choice([" ", " ", " ", "", ", ", "  "])
        found.append(text)
    return found


def make(home):
    tokenizer = vocabulary.clip_tokenizer("<|endoftext|>")
    rows = [dict(text=text, ids=tokenizer(text).input_ids) for text in prompts()]
    decoded = [
        dict(ids=row["ids"], text=tokenizer.decode(row["ids"], skip_special_tokens=True))
        for row in rows[5:12]
    ]
    lines = ",\n".join(json.dumps(row) for row in rows)
    more = ",\n".join(json.dumps(row) for row in decoded)
    (home / "clip_tokens.json").write_text('{"prompts":[\n' + lines + '\n],\n"decoded":[\n' + more + "\n]}\n")
    longest = max(len(row["ids"]) for row in rows)
    print(f"{len(rows)} prompts, the longest of {longest} tokens")
