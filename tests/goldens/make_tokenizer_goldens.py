"""Makes tests/fixtures/tokenizer: small vocabularies, texts, and the ids that reference tokenizers
give for them; chat templates and what Hugging Face's `apply_chat_template` renders from them.

    python3 tests/goldens/make_tokenizer_goldens.py SMOLLM2.gguf

Needs: gguf, llama-cpp-python, sentencepiece, tokenizers, transformers, jinja2. Deterministic for
given versions of these; the versions used stand in the fixtures' README.
"""

import io
import json
import random
import sys
import tempfile
import zipfile
from pathlib import Path

import gguf
import llama_cpp
import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "tokenizer"

# The first article of the Universal Declaration of Human Rights (public domain), and some code.
SENTENCES = [
    "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft begabt.",
    "Todos los seres humanos nacen libres e iguales en dignidad y derechos, ¿verdad? ¡Claro!",
    "Все люди рождаются свободными и равными в своём достоинстве и правах.",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心。",
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi.",
    "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. İstanbul'da IŞIK.",
    "fn main() {\n    let xs: Vec<u32> = (0..10).map(|x| x * 2).collect();\n    println!(\"{xs:?}\");\n}\n",
    "def f(x, *args, **kwargs):\n\tif x is None:\n\t\treturn {'a': [1, 2.5e-3], \"b\": args}\n\r\n",
    "SELECT * FROM t WHERE a >= 10 AND b != 'x''y';-- comment\n#include <stdio.h>\n<div class=\"x\">&amp;</div>",
]

FRAGMENTS = [
    # digits
    "0", "7", "42", "123", "1234", "1234567", "3.14159", "1,000,000", "0x1F", "٣٤٥", "४२", "²³", "Ⅷ", "½", "①②",
    # white space
    " ", "  ", "   ", "        ", "\t", "\t\t", "\n", "\n\n", "\n \n", " \n", "\r\n", "\r", "\u00a0", "\u3000",
    "\u2028", "\u200b", "\ufeff", "\x0b", "\x0c", "\x85", "\u1680", "\u2003 ",
    # contractions, case
    "I'm", "we'LL", "it'S", "don't", "they'Ve", "'ſ", "'tis", "O'Neil", "''''", "camelCaseHTTP", "SHOUT", "ΑΣ", "ǅ",
    # punctuation, symbols
    "...", "?!", "—", "“quoted”", "«»", "$5", "€", "a+b=c", "~^|`", "#!/bin/sh", "://", "\\n", "*/", "。", "、", "…",
    # emoji, flags, combining, joiners
    "🙂", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "👍🏽", "e\u0301", "a\u0308\u0323", "ก็", "क्षि", "한국", "\u1112\u1161\u11ab", "ﬁ", "Ａｂ１",
    # rare and broken
    "\ufffd", "\x00", "\x01", "\x7f", "\U0010ffff", "\ue000", "𝔘𝔫𝔦", "𐍈", "🜁", "\u202e", "ꙮ", "𠀀", "ﷺ",
    # words
    "Hello", " world", "user", "assistant", "the", " the", "The", "tokenizer", " antidisestablishmentarianism", "naïve",
    "▁", "▁x", "Ġ", "Ċ", "<0x0A>", "<", ">", "<|", "|>", "<|im", "im_end|>", "<s", "</s", "[INST]",
]


def texts(special, count, seed):
    """`count` texts: whole sentences, their beginnings and ends, and chains of fragments."""
    chance = random.Random(seed)
    found = ["", " ", "  ", "\n", "Hello", " Hello", "Hello world", "a", "user"]
    found += special + [f" {each} " for each in special] + [f"x{each}y\n{each}{each}" for each in special]
    found += SENTENCES + FRAGMENTS + [" " + each for each in FRAGMENTS]
    found += [" " * n + "x" for n in range(1, 20)] + ["\n" * n for n in range(1, 9)] + ["a" * n for n in range(1, 30)]
    found = dict.fromkeys(found)
    while len(found) < count:
        kind = chance.random()
        if kind < 0.2:
            sentence = chance.choice(SENTENCES)
            start = chance.randrange(len(sentence))
            found[sentence[start : start + chance.randrange(1, 60)]] = None
        elif kind < 0.3:
            # Any assigned or unassigned character, now and then.
            characters = [chance.choice([chance.randrange(0x20, 0xD800), chance.randrange(0x10000, 0x1FB00)])
                          for _ in range(chance.randrange(1, 6))]
            found["".join(map(chr, characters))] = None
        else:
            pool = FRAGMENTS + special * 3 if chance.random() < 0.3 else FRAGMENTS
            found["".join(chance.choice(pool) for _ in range(chance.randrange(2, 9)))] = None
    return list(found)[:count]


def write_gguf(path, architecture, entries):
    """A GGUF file with metadata only. `entries`: key -> (kind, value)."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, (kind, value) in entries.items():
        getattr(writer, f"add_{kind}")(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


class LlamaCpp:
    """llama.cpp's tokenizer for a GGUF file, of which it reads the vocabulary only."""

    def __init__(self, path):
        self.model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False, n_ctx=8)

    def encode(self, text, add_special=False):
        return self.model.tokenize(text.encode(), add_bos=add_special, special=True)


# --- SmolLM2 -----------------------------------------------------------------------------------


def smollm2(source, folder):
    """SmolLM2's own vocabulary, and llama.cpp's ids."""
    fields = gguf.GGUFReader(source).fields
    value = lambda name: fields[name].contents()
    entries = {
        "tokenizer.ggml.model": ("string", value("tokenizer.ggml.model")),
        "tokenizer.ggml.pre": ("string", value("tokenizer.ggml.pre")),
        "tokenizer.ggml.tokens": ("array", value("tokenizer.ggml.tokens")),
        "tokenizer.ggml.token_type": ("array", value("tokenizer.ggml.token_type")),
        "tokenizer.ggml.merges": ("array", value("tokenizer.ggml.merges")),
        "tokenizer.ggml.add_bos_token": ("bool", value("tokenizer.ggml.add_bos_token")),
        "tokenizer.ggml.add_space_prefix": ("bool", value("tokenizer.ggml.add_space_prefix")),
        "tokenizer.ggml.bos_token_id": ("uint32", value("tokenizer.ggml.bos_token_id")),
        "tokenizer.ggml.eos_token_id": ("uint32", value("tokenizer.ggml.eos_token_id")),
        "tokenizer.ggml.unknown_token_id": ("uint32", value("tokenizer.ggml.unknown_token_id")),
        "tokenizer.chat_template": ("string", value("tokenizer.chat_template")),
    }
    path = folder / "smollm2.gguf"
    write_gguf(path, "llama", entries)
    # The whole file is the reference, so that the cut-down one is checked too.
    reference = LlamaCpp(source)
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start|>user\nHi<|im_end|>\n", "<repo_name>"]
    cases = texts(special, 3000, seed=1)
    return path, {"texts": cases, "ids": [reference.encode(text) for text in cases]}


# --- byte-level BPE under every pre-tokenizer ------------------------------------------------------

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
SYMBOLS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"

DEEPSEEK_CASED = "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"

# Name in GGUF files -> expressions as published in the models' tokenizer.json, ignore_merges.
# None: there is no such file to go by, and llama.cpp alone is the reference.
PRE_TOKENIZERS = {
    "gpt-2": ([GPT2], False),
    "smollm": ([r"\p{N}", GPT2], False),
    "llama-bpe": ([f"{CONTRACTIONS}|{WORDS}|\\p{{N}}{{1,3}}{SYMBOLS}{TAIL}"], True),
    "smaug-bpe": ([f"{CONTRACTIONS}|{WORDS}|\\p{{N}}{{1,3}}{SYMBOLS}{TAIL}"], False),
    "qwen2": ([f"{CONTRACTIONS}|{WORDS}|\\p{{N}}{SYMBOLS}{TAIL}"], False),
    "qwen35": ([rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*{TAIL}"], False),
    "tekken": ([rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{TAIL}"], True),
    "gpt-4o": ([rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{TAIL}"], False),
    "deepseek-coder": ([r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"], False),
    "seed-coder": ([rf"{CONTRACTIONS}|{WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+{TAIL}"], False),
    "default": (None, False),
    "falcon": (None, False),
    "deepseek-llm": ([r"[\r\n]", rf"\s?[{DEEPSEEK_CASED}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", "[一-龥ࠀ-一가-퟿]+", r"\p{N}+"], False),
    "deepseek-v3": (None, False),
}


def byte_level(folder):
    """One small vocabulary; its ids under every pre-tokenizer."""
    trained = tokenizers.Tokenizer(models.BPE())
    # Trained with few cuts, so that tokens cross what the other pre-tokenizers cut.
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\S+\s*|\s+"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)])
    special = ["<|begin|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>"]
    trained.train_from_iterator(
        SENTENCES * 3 + FRAGMENTS * 4 + [f"{n}{n + 1} {n}" for n in range(200)],
        trainers.BpeTrainer(vocab_size=1500, special_tokens=special, show_progress=False,
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    model = json.loads(trained.to_str())["model"]
    tokens = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    # Matched when written out, but part of the text; and one that nothing ever makes.
    user_defined, unused = ["<tool>", "two words"], ["<unused0>"]
    types = [3] * len(special) + [1] * (len(tokens) - len(special)) + [4] * len(user_defined) + [5]
    tokens += user_defined + unused
    entries = {
        "tokenizer.ggml.model": ("string", "gpt2"),
        "tokenizer.ggml.pre": ("string", "gpt-2"),
        "tokenizer.ggml.tokens": ("array", tokens),
        "tokenizer.ggml.token_type": ("array", types),
        "tokenizer.ggml.merges": ("array", [" ".join(merge) for merge in model["merges"]]),
        "tokenizer.ggml.bos_token_id": ("uint32", 0),
        "tokenizer.ggml.eos_token_id": ("uint32", 2),
    }
    path = folder / "byte-level.gguf"
    write_gguf(path, "llama", entries)

    cases = texts(special + user_defined + unused, 700, seed=2)
    ids, disagreements = {}, {}
    for name, (patterns, ignore_merges) in PRE_TOKENIZERS.items():
        variant = folder / "variant.gguf"
        write_gguf(variant, "llama", {**entries, "tokenizer.ggml.pre": ("string", name)})
        llama = LlamaCpp(variant)
        ids[name] = [llama.encode(text) for text in cases]
        if patterns is None:
            continue
        fast = tokenizers.Tokenizer(models.BPE(
            vocab=model["vocab"] | {token: len(model["vocab"]) + i for i, token in enumerate(user_defined + unused)},
            merges=[tuple(merge) for merge in model["merges"]], ignore_merges=ignore_merges))
        fast.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
            + [pre_tokenizers.ByteLevel(False, use_regex=False)])
        fast.add_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        fast.add_tokens([AddedToken(token, special=False, normalized=False) for token in user_defined])
        hugging_face = [fast.encode(text).ids for text in cases]
        differ = [i for i in range(len(cases)) if hugging_face[i] != ids[name][i]]
        disagreements[name] = [cases[i] for i in differ]
        # The models were trained with Hugging Face's tokenizer: where the two differ, it is right.
        ids[name] = hugging_face
    for name, differing in disagreements.items():
        print(f"{name}: llama.cpp and Hugging Face differ in {len(differing)} of {len(cases)} texts", differing[:4])
    return path, {"texts": cases, "ids": ids}


# --- SentencePiece -----------------------------------------------------------------------------------


def sentencepiece_bpe(folder):
    """A small SentencePiece model as llama.cpp's converter would write it; llama.cpp's ids."""
    trained = io.BytesIO()
    user_defined, control = ["<tool>", "    "], ["<|user|>", "<|end|>", "<|endoftext|>"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3 + FRAGMENTS[:20]), model_writer=trained, model_type="bpe", vocab_size=1200,
        byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, allow_whitespace_only_pieces=True, user_defined_symbols=[each.replace(" ", "▁") for each in user_defined], control_symbols=control,
        num_threads=1, minloglevel=2)
    model = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    tokens, scores, types = [], [], []
    for i in range(model.vocab_size()):
        piece = model.id_to_piece(i)
        kind = 2 if model.is_unknown(i) else 3 if model.is_control(i) else 5 if model.is_unused(i) else 6 if model.is_byte(i) else 1
        if piece.replace("▁", " ") in user_defined:
            kind, piece = 4, piece.replace("▁", " ")
        tokens.append(piece)
        scores.append(model.get_score(i))
        types.append(kind)
    entries = {
        "tokenizer.ggml.model": ("string", "llama"),
        "tokenizer.ggml.tokens": ("array", tokens),
        "tokenizer.ggml.scores": ("array", scores),
        "tokenizer.ggml.token_type": ("array", types),
        "tokenizer.ggml.bos_token_id": ("uint32", 1),
        "tokenizer.ggml.eos_token_id": ("uint32", 2),
        "tokenizer.ggml.unknown_token_id": ("uint32", 0),
        "tokenizer.ggml.add_space_prefix": ("bool", True),
    }
    path = folder / "sentencepiece.gguf"
    write_gguf(path, "llama", entries)
    cases = texts(["<s>", "</s>", "<unk>"] + control + user_defined, 1500, seed=3)

    with_prefix = LlamaCpp(path)
    variant = folder / "variant.gguf"
    write_gguf(variant, "llama", {**entries, "tokenizer.ggml.add_space_prefix": ("bool", False)})
    without_prefix = LlamaCpp(variant)
    phi3 = folder / "phi3.gguf"
    write_gguf(phi3, "phi3", {"general.name": ("string", "phi3"), **entries})
    stripping = LlamaCpp(phi3)

    ids = {
        "prefix": [with_prefix.encode(text) for text in cases],
        "framed": [with_prefix.encode(text, add_special=True) for text in cases],
        "plain": [without_prefix.encode(text) for text in cases],
        "phi3": [stripping.encode(text) for text in cases],
    }
    # Two references must agree where both know the text: SentencePiece takes no control tokens from a
    # text, and keeps user-defined ones from a space before what follows.
    names = ["<s>", "</s>", "<unk>"] + control + user_defined
    common = [i for i, text in enumerate(cases) if text and not any(name in text for name in names) and "<0x" not in text and "▁" not in text and "\x00" not in text]
    differ = [cases[i] for i in common if model.encode(cases[i]) != ids["prefix"][i]]
    print(f"sentencepiece: llama.cpp and SentencePiece differ in {len(differ)} of {len(common)} texts", differ[:4])
    return path, {"texts": cases, "ids": ids}


# --- folders in Hugging Face's layout ------------------------------------------------------------------


def folders(folder, byte_level_gguf, sentencepiece_gguf):
    """tokenizer.json in the two usual builds: byte-level, and SentencePiece's pieces as merges."""
    fields = gguf.GGUFReader(byte_level_gguf).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    # A part of the vocabulary will do.
    merges = merges[:400]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(dict.fromkeys(alphabet + ["".join(merge) for merge in merges]))}
    plain = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    plain.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PRE_TOKENIZERS["llama-bpe"][0][0]), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)])
    plain.decoder = decoders.ByteLevel()
    plain.add_tokens([AddedToken(t, special=True, normalized=False) for t in ["<|begin|>", "<|eot_id|>", "<|end|>"]])
    plain.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    begin = plain.token_to_id("<|begin|>")
    plain.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A <|begin|> $B", special_tokens=[("<|begin|>", begin)])])
    plain.enable_truncation(5)

    fields = gguf.GGUFReader(sentencepiece_gguf).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()[:800]
    types = fields["tokenizer.ggml.token_type"].contents()
    vocab = {token: i for i, token in enumerate(tokens)}
    pairs = [(a, b) for token in tokens for a, b in ((token[:i], token[i:]) for i in range(1, len(token))) if a in vocab and b in vocab]
    pairs = [pair for pair in pairs if types[vocab["".join(pair)]] == 1]
    pairs.sort(key=lambda pair: vocab["".join(pair)])
    pieces = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    pieces.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pieces.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    pieces.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ["<unk>", "<s>", "</s>"]])
    pieces.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])

    made = {}
    for name, built, special in [("byte-level", plain, ["<|begin|>", "<|eot_id|>", "<tool>"]), ("sentencepiece", pieces, ["<s>", "</s>"])]:
        (folder / f"{name}.json").write_text(built.to_str(), encoding="utf-8")
        built.no_truncation()
        cases = texts(special, 500, seed=4)
        ids = [built.encode(text).ids for text in cases]
        made[name] = {
            "texts": cases,
            "ids": ids,
            "decoded": [built.decode(each, skip_special_tokens=True) for each in ids],
            "decoded_special": [built.decode(each, skip_special_tokens=False) for each in ids],
        }
    return [folder / "byte-level.json", folder / "sentencepiece.json"], made


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        smollm2_path, smollm2_cases = smollm2(sys.argv[1], folder)
        byte_level_path, byte_level_cases = byte_level(folder)
        sentencepiece_path, sentencepiece_cases = sentencepiece_bpe(folder)
        folder_paths, folder_cases = folders(folder, byte_level_path, sentencepiece_path)
        files = {
            "smollm2.gguf": smollm2_path.read_bytes(),
            "smollm2.json": smollm2_cases,
            "byte-level.gguf": byte_level_path.read_bytes(),
            "byte-level.json": byte_level_cases,
            "sentencepiece.gguf": sentencepiece_path.read_bytes(),
            "sentencepiece.json": sentencepiece_cases,
            "folder-byte-level/tokenizer.json": folder_paths[0].read_bytes(),
            "folder-byte-level.json": folder_cases["byte-level"],
            "folder-sentencepiece/tokenizer.json": folder_paths[1].read_bytes(),
            "folder-sentencepiece.json": folder_cases["sentencepiece"],
        }
    with zipfile.ZipFile(OUT / "goldens.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in files.items():
            if not isinstance(content, bytes):
                content = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
            # A fixed date, so that the same content makes the same archive.
            archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED, 9)
    print((OUT / "goldens.zip").stat().st_size, "bytes")


main()
