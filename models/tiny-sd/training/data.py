"""Coloured shapes: scenes, captions, drawings and the guide latents of the bundled picture model.

A scene is a dict: `objects`, one or two of (shape, colour), `layout`, `size`, `background`. `caption` words it, `place`
gives each object a centre and a radius, `draw` makes the picture and `GeometryBank.latents` its latents without drawing it.

The picture is 128 px square, the latents 4 x 16 x 16: each latent pixel stands for one 8 x 8 cell. See `guide`.
"""

import json
import pathlib
import random

import numpy as np

SIZE = 128
CELL = 8
GRID = SIZE // CELL

SHAPES = ["circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring"]
PALETTE = {
    "red": (220, 40, 40),
    "orange": (250, 135, 20),
    "yellow": (255, 220, 50),
    "green": (40, 160, 70),
    "blue": (40, 90, 220),
    "purple": (130, 60, 180),
    "pink": (255, 150, 195),
    "brown": (120, 72, 40),
    "black": (20, 20, 20),
    "white": (250, 250, 250),
}
COLOURS = list(PALETTE)
SIZES = ["medium", "small", "large"]
LAYOUTS = ["centre", "left", "right", "top", "bottom", "beside", "above"]
POSITION_WORDS = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
RADIUS = {"small": 18.0, "medium": 30.0, "large": 46.0}
PAIR_RADIUS = 24.0
OFFSET = 24.0
PAIR_OFFSET = 30.0

# What the text encoder is taught to tell from a caption, and in how many classes; 0 stands for "not said".
ATTRIBUTES = {
    "shape_1": len(SHAPES) + 1,
    "colour_1": len(COLOURS) + 1,
    "shape_2": len(SHAPES) + 1,
    "colour_2": len(COLOURS) + 1,
    "background": len(COLOURS) + 1,
    "size": len(SIZES) + 1,
    "layout": len(LAYOUTS) + 1,
}


# --- scenes and their words -------------------------------------------------------------------------------------------


def random_scene(rng: random.Random) -> dict:
    background = rng.choice(COLOURS)
    others = [colour for colour in COLOURS if colour != background]
    if rng.random() < 0.25:
        layout = rng.choice(["beside", "above"])
        objects = [(rng.choice(SHAPES), rng.choice(others)) for _ in range(2)]
        size = "medium"
    else:
        objects = [(rng.choice(SHAPES), rng.choice(others))]
        size = rng.choices(SIZES, [3, 1, 1])[0]
        layout = rng.choices(LAYOUTS[:5], [6, 1, 1, 1, 1])[0] if size != "large" else "centre"
    return {"objects": objects, "layout": layout, "size": size, "background": background}


def article(word: str) -> str:
    return "an" if word[0] in "aeio" else "a"


def caption(scene: dict, rng: random.Random | None = None) -> str:
    """The scene in words; without `rng` in its plainest form."""
    pick = (lambda options: rng.choice(options)) if rng else (lambda options: options[0])
    background = scene["background"]

    def noun(index: int) -> str:
        shape, colour = scene["objects"][index]
        size = scene["size"] + " " if scene["size"] != "medium" else ""
        words = f"{size}{colour} {shape}"
        return f"{article(words)} {words}"

    if scene["layout"] == "beside":
        subject = f"{noun(0)} {pick(['and', 'and', 'beside', 'next to'])} {noun(1)}"
    elif scene["layout"] == "above":
        subject = f"{noun(0)} {pick(['above', 'above', 'over'])} {noun(1)}"
    else:
        subject = noun(0)
        if scene["layout"] in POSITION_WORDS:
            subject += " " + POSITION_WORDS[scene["layout"]]
        elif rng and rng.random() < 0.1:
            subject += pick([" in the centre", " in the middle"])
    if rng and rng.random() < 0.2:
        subject = pick(["a drawing of ", "a picture of ", "an image of "]) + subject
    elif rng and rng.random() < 0.15:
        subject = subject.split(" ", 1)[1]
    if background == "white" and rng and rng.random() < 0.3:
        return subject
    comma = "," if scene["layout"] in POSITION_WORDS else ""
    ends = [f"{comma} on {article(background)} {background} background"]
    ends += ends + [f", {background} background", f"{comma} on {background}"]
    text = subject + pick(ends)
    if rng and rng.random() < 0.1:
        text += "."
    return text


def labels(scene: dict | None) -> list[int]:
    """Class per attribute, in the order of ATTRIBUTES; `None` is the empty prompt."""
    if scene is None:
        return [0] * len(ATTRIBUTES)
    (shape, colour), *rest = scene["objects"]
    second = (SHAPES.index(rest[0][0]) + 1, COLOURS.index(rest[0][1]) + 1) if rest else (0, 0)
    return [
        SHAPES.index(shape) + 1,
        COLOURS.index(colour) + 1,
        *second,
        COLOURS.index(scene["background"]) + 1,
        SIZES.index(scene["size"]) + 1,
        LAYOUTS.index(scene["layout"]) + 1,
    ]


def kinds(scene: dict) -> list[tuple[str, str]]:
    """Per object: which radius it has and where it lies, the keys of the geometry bank."""
    if scene["layout"] == "beside":
        return [("pair", "first-left"), ("pair", "second-right")]
    if scene["layout"] == "above":
        return [("pair", "first-top"), ("pair", "second-bottom")]
    return [(scene["size"], scene["layout"])]


def place(size: str, position: str, rng: random.Random) -> tuple[float, float, float]:
    """Centre x, centre y and radius in px, a little off the nominal ones, so that a seed makes a difference."""
    radius = (PAIR_RADIUS if size == "pair" else RADIUS[size]) * rng.uniform(0.95, 1.05)
    offset = PAIR_OFFSET if size == "pair" else OFFSET
    step = 2.0 if size == "pair" else 4.0
    x = SIZE / 2 + rng.uniform(-step, step) + offset * (position.endswith("right") - position.endswith("left"))
    y = SIZE / 2 + rng.uniform(-step, step) + offset * (position.endswith("bottom") - position.endswith("top"))
    return x, y, radius


# --- drawing ----------------------------------------------------------------------------------------------------------


def polygon_distance(x: np.ndarray, y: np.ndarray, corners: list[tuple[float, float]]) -> np.ndarray:
    """Signed distance to a convex polygon's edges; corners clockwise on the screen, where y grows downwards."""
    distance = np.full_like(x, -np.inf)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1]):
        length = np.hypot(x1 - x0, y1 - y0)
        distance = np.maximum(distance, ((x - x0) * (y1 - y0) - (y - y0) * (x1 - x0)) / length)
    return distance


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """Distance in px to the shape's outline, negative inside; x and y from its centre, y downwards."""
    if shape == "circle":
        return np.hypot(x, y) - r
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.85 * r
    if shape == "triangle":
        return polygon_distance(x, y, [(0.0, -r), (r, 0.8 * r), (-r, 0.8 * r)])
    if shape == "diamond":
        return (abs(x) * 1.0 + abs(y) - 1.1 * r) / np.sqrt(2.0)
    if shape == "cross":
        upright = np.maximum(abs(x) - 0.33 * r, abs(y) - r)
        across = np.maximum(abs(x) - r, abs(y) - 0.33 * r)
        return np.minimum(upright, across)
    if shape == "ring":
        return abs(np.hypot(x, y) - 0.74 * r) - 0.26 * r
    if shape == "heart":
        # A square on its corner with a half disc on each upper side.
        h = 0.83 * r
        y = y - 0.1 * h
        lobe = np.hypot(abs(x) - h / 2, y + h / 2) - h / np.sqrt(2.0)
        return np.minimum(lobe, (abs(x) + abs(y) - h) / np.sqrt(2.0))
    if shape == "star":
        # One of ten mirrored wedges: the line from a tip to the notch beside it.
        wedge = np.pi / 5
        angle = np.arctan2(x, -y)
        angle = abs((angle + wedge) % (2 * wedge) - wedge)
        along, aside = np.hypot(x, y) * np.cos(angle), np.hypot(x, y) * np.sin(angle)
        tip, notch = 1.1 * r, 0.5 * r
        nx, ny = notch * np.cos(wedge), notch * np.sin(wedge)
        length = np.hypot(nx - tip, ny)
        return ((along - tip) * ny - aside * (nx - tip)) / length
    raise ValueError(f"unknown shape {shape}")


def coverage(shape: str, x: float, y: float, radius: float, size: int = SIZE) -> np.ndarray:
    """How much of each pixel the shape covers, (size, size) f32 in 0..1."""
    pixels = np.arange(size, dtype=np.float32) + 0.5
    grid_x, grid_y = np.meshgrid(pixels - x, pixels - y)
    return np.clip(0.5 - signed_distance(shape, grid_x, grid_y, radius), 0.0, 1.0).astype(np.float32)


def draw(scene: dict, rng: random.Random) -> np.ndarray:
    """The picture, (128, 128, 3) f32 in 0..255."""
    picture = np.tile(np.array(PALETTE[scene["background"]], np.float32), (SIZE, SIZE, 1))
    for (shape, colour), (size, position) in zip(scene["objects"], kinds(scene)):
        mask = coverage(shape, *place(size, position, rng))[..., None]
        picture = picture * (1 - mask) + np.array(PALETTE[colour], np.float32) * mask
    return picture


# --- guide latents ----------------------------------------------------------------------------------------------------

# Brightness, red against blue, green against both, of a cell's mean colour in -1..1: three axes that vary about equally.
COLOUR_AXES = np.array([[1 / 3, 1 / 3, 1 / 3], [0.5, 0.0, -0.5], [-0.25, 0.5, -0.25]], np.float32)
# Mean and spread of the four channels over the scenes above (`python data.py` prints them). Roughness is 0 nearly
# everywhere and high on outlines, so that its unit is wider than its spread.
GUIDE_MEAN = np.array([0.0, 0.18, -0.055, 0.07], np.float32)
GUIDE_SPREAD = np.array([0.475, 0.47, 0.24, 0.3], np.float32)


def guide(picture: np.ndarray) -> np.ndarray:
    """Latents that the encoder is taught to give, (.., 4, H/8, W/8), from a picture (.., H, W, 3) in 0..255.

    Three channels are each cell's mean colour, the fourth its roughness: the root of the colour variance inside the
    cell, 0 where it is plain. All are normalised to about zero mean and unit spread.
    """
    x = np.asarray(picture, np.float32) / 127.5 - 1.0
    *lead, height, width, _ = x.shape
    cells = x.reshape(*lead, height // CELL, CELL, width // CELL, CELL, 3)
    mean = cells.mean(axis=(-4, -2))
    rough = np.sqrt(np.maximum(cells.var(axis=(-4, -2)).sum(-1), 0.0))
    raw = np.concatenate([mean @ COLOUR_AXES.T, rough[..., None]], -1)
    return np.moveaxis((raw - GUIDE_MEAN) / GUIDE_SPREAD, -1, -3)


class GeometryBank:
    """Pooled coverages of many placements of every shape, so that a scene's guide latents cost microseconds."""

    def __init__(self, variants: int = 64, seed: int = 1):
        rng = random.Random(seed)
        spots = [(size, layout) for size in SIZES for layout in LAYOUTS[:5] if size != "large" or layout == "centre"]
        spots += [("pair", p) for p in ("first-left", "second-right", "first-top", "second-bottom")]
        self.variants = variants
        self.mean, self.variance = {}, {}
        for shape in SHAPES:
            for spot in spots:
                masks = np.stack([coverage(shape, *place(*spot, rng)) for _ in range(variants)])
                cells = masks.reshape(variants, GRID, CELL, GRID, CELL)
                self.mean[shape, spot] = cells.mean(axis=(2, 4))
                self.variance[shape, spot] = cells.var(axis=(2, 4))

    def latents(self, scene: dict, rng: random.Random) -> np.ndarray:
        """(4, 16, 16) f32; equal to `guide` of a drawing, since no cell holds parts of two objects."""
        background = np.array(PALETTE[scene["background"]], np.float32) / 127.5 - 1.0
        mean = np.tile(background, (GRID, GRID, 1))
        variance = np.zeros((GRID, GRID), np.float32)
        for (shape, colour), spot in zip(scene["objects"], kinds(scene)):
            index = rng.randrange(self.variants)
            delta = np.array(PALETTE[colour], np.float32) / 127.5 - 1.0 - background
            mean = mean + self.mean[shape, spot][index][..., None] * delta
            variance = variance + self.variance[shape, spot][index] * float(delta @ delta)
        raw = np.concatenate([mean @ COLOUR_AXES.T, np.sqrt(variance)[..., None]], -1)
        return np.moveaxis((raw - GUIDE_MEAN) / GUIDE_SPREAD, -1, 0).astype(np.float32)


# --- tokenizer --------------------------------------------------------------------------------------------------------


def byte_symbols() -> list[str]:
    """GPT-2's and CLIP's printable stand-ins for the 256 bytes, in CLIP's order."""
    kept = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    symbols = {byte: chr(byte) for byte in kept}
    for byte in range(256):
        if byte not in symbols:
            symbols[byte] = chr(256 + len(symbols) - len(kept))
    return [symbols[byte] for byte in kept] + [symbols[b] for b in range(256) if b not in kept]


def train_merges(words: dict[str, int]) -> list[tuple[str, str]]:
    """Byte-pair merges, the most frequent pair first, until every word is one symbol."""
    pieces = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges = []
    while True:
        counts: dict[tuple[str, str], int] = {}
        for word, symbols in pieces.items():
            for pair in zip(symbols, symbols[1:]):
                counts[pair] = counts.get(pair, 0) + words[word]
        if not counts:
            return merges
        best = max(sorted(counts), key=counts.get)
        merges.append(best)
        for word, symbols in pieces.items():
            joined, index = [], 0
            while index < len(symbols):
                if tuple(symbols[index : index + 2]) == best:
                    joined.append(best[0] + best[1])
                    index += 2
                else:
                    joined.append(symbols[index])
                    index += 1
            pieces[word] = joined


def write_tokenizer(folder: pathlib.Path) -> None:
    """vocab.json, merges.txt, tokenizer.json and the two configurations that transformers' CLIPTokenizer reads."""
    rng = random.Random(7)
    words: dict[str, int] = {}
    for _ in range(4000):
        for word in caption(random_scene(rng), rng).replace(",", " ").replace(".", " ").split():
            words[word] = words.get(word, 0) + 1
    merges = train_merges(words)
    symbols = byte_symbols()
    entries = symbols + [symbol + "</w>" for symbol in symbols] + ["".join(pair) for pair in merges]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    assert len(vocabulary) == len(entries)
    start, end = len(entries) - 2, len(entries) - 1

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = lambda content, index: {
        "id": index, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False, "special": True,
    }
    split = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special("<|startoftext|>", start), special("<|endoftext|>", end)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": split}, "behavior": "Removed", "invert": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ]},
        "post_processor": {"type": "RobertaProcessing", "sep": ["<|endoftext|>", end], "cls": ["<|startoftext|>", start],
                           "trim_offsets": False, "add_prefix_space": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<|endoftext|>", "continuing_subword_prefix": "",
                  "end_of_word_suffix": "</w>", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocabulary, "merges": [f"{a} {b}" for a, b in merges]},
    }, ensure_ascii=False))
    tokens = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
              "pad_token": "<|endoftext|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens, indent=2) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, "errors": "replace",
         "add_prefix_space": False, **tokens}, indent=2) + "\n")


if __name__ == "__main__":
    rng, bank = random.Random(3), GeometryBank(16)
    GUIDE_MEAN[:], GUIDE_SPREAD[:] = 0.0, 1.0
    sample = np.stack([bank.latents(random_scene(rng), rng) for _ in range(4000)])
    print("mean", sample.mean((0, 2, 3)).round(3), "spread", sample.std((0, 2, 3)).round(3), "largest", sample.max((0, 2, 3)))
    for _ in range(12):
        print(caption(random_scene(rng), rng))
