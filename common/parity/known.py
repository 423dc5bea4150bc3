"""Known answers: what the shared generator, the tokenizer, the batches and the initial weights must say for ever.

They were computed once and are written down here. A change of NumPy, or of our own code, that alters one of them would
silently change every recorded run, so it must fail. An entry may only change together with a note in CHANGELOG.md.
"""

import hashlib

import numpy as np

# Random123's published answers (Salmon et al. 2011, kat_vectors): (key, counter, the two words).
CIPHER = (
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
)

# What `jax.random` (threefry2x32, partitionable) gives for seed 42: the first words, the first of two split keys, and
# the key after fold_in(7), read with jax 0.10.2.
WORDS = (0x7D1C13A2, 0xAE0730D9, 0x9DC3F9F9, 0x8F9EC1D7)
SPLIT = (0x6D3E048F, 0x1022172D)
FOLDED = (0x97D0552F, 0x51BF719F)
MANY_WORDS = (4, 12, 64, 64), "05c1d7b82bd10f36"  # shape, and the start of the SHA-256 of the words of seed 42

# Text with one to four bytes per character, controls, a combining mark and a joined emoji; SHA-256 of its ids as
# little-endian int32, from `common.tokenizers.Bytes`.
TEXT = "Parallax\t\x00\x7f\n\u00e9\u0301\u0416\u05d0\u0e01\u2028\u4e16\u754c\ufffd\U0001d11e\U0001f469\u200d\U0001f52c"
IDS = "bf2d0c61185b31deac996d323194b3b8c203201270a1aadffbd47c2a8ebb9dab"

# Batches(Windows(ids, 8, stride 5), batch 3, seed 7, accumulate 2), where ids are the 301 words of address (7, DATA)
# modulo 256: SHA-256 over inputs, then targets, as little-endian int32, of the first 25 steps (three epochs).
CORPUS, LENGTH, STRIDE, BATCH, ACCUMULATE, SEED, STEPS = 301, 8, 5, 3, 2, 7, 25
BATCHES = "af16f805fce0a3b200d1c55704ece47330ad13ad33474196c92b901443f9dec0"

# `params.initialise` of the preset with each seed: SHA-256 over name and little-endian float32 bytes of every tensor,
# in the order of the table. NumPy's Philox and its normal distribution are part of this.
PRESET, SEEDS = "nano", (0, 2**32 - 1)
INITIAL = "1ceaf7b03124fa5164fd4fa63d9040631fd8e3b7ef72abfd5ff26e409a0c0d01"

# Rows of a query projection whose rotary pairs lie side by side, in the order in which pairs lie half a width apart:
# (rows, head_dim, width) and the order, counted by hand.
PAIRS = (
    ((6, 6, None), (0, 2, 4, 1, 3, 5)),
    ((12, 6, 4), (0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11)),
)

# Rows for fine-tuning, and SHA-256 of what `common.data` makes of them by bytes, as `common/parity/tuning.py` asks.
ROWS = (
    {"instruction": "Add.", "input": "2 and 3", "output": "5", "chosen": "It is 5.", "rejected": "No."},
    {"instruction": "Name a colour.", "input": "", "output": "Red, say.", "chosen": "Red.", "rejected": "\u00c9, red?"},
    {"instruction": "Greet", "input": "\u4e16", "output": "Hello", "chosen": "Hello to you!", "rejected": "Hell"},
)
END = 7
LABELLED = "6621f741fa17a0b993bb16a9a03c4b11fd565e2b964aa4bc46ae77b8b8af027d"
INSTRUCTIONS = "db7beee1342f5f5928d4b288b7df63acf6aef252f92942fa7e5f43939402d523"
PAIRS_OF_ANSWERS = "541797f9599a1ffd12fe058e7a6418b13adb30364f9727e7acc872f8f9479861"
ADAPTERS = "cc82941050578a01a37fbc7934caf1b56090a8aeb7f102ff8bd9a47925ee5fb4"

# SHA-256 over names and arrays (bytes, scales, weights) of what a base in 4 bits keeps of the matrices of
# `common/parity/four_bits.py`; the codebook in it is the published one (tests/finetune/test_quantise_bits.py).
FOUR_BITS = {
    "nf4": "d6ea4f2f2015ef2b62054c4c382acd2600204b23b13523865873cbcad27e840a",
    "nf4_double": "80d440b87ab606386f79ded4592947678cf41a3363d5c2f83e08854fcb2500a8",
}

# (ids, end, tokens that do not count, longest, whether the end counts); by hand: tokens, targets, whether one is cut.
SHIFTED = (
    (([5, 6, 8], 9, 0, None, True), ((5, 6, 8, 9), (6, 8, 9), False)),
    (([5, 6, 8], 9, 2, None, True), ((5, 6, 8, 9), (-100, 8, 9), False)),
    (([5, 6, 8], 9, 2, None, False), ((5, 6, 8, 9), (-100, 8, -100), False)),
    (([5, 6, 8, 4], 9, 1, 2, True), ((5, 6, 8), (6, 8), True)),
    (([5, 6, 8, 4], 9, 1, 3, False), ((5, 6, 8, 4), (6, 8, 4), False)),
)


def sha256(*parts: bytes | str | np.ndarray) -> str:
    """One hash over texts and arrays (little-endian, C order), one after the other."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            part = np.ascontiguousarray(part.astype(part.dtype.newbyteorder("<"), copy=False)).tobytes()
        total.update(part.encode() if isinstance(part, str) else part)
    return total.hexdigest()
