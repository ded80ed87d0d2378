"""Makes tests/data/tokenizer: texts, and the token ids that reference tokenizers give them.

    pip install gguf==0.19.0 tokenizers llama-cpp-python==0.3.36
    python tools/make_tokenizer_goldens.py [--count 2000] [--seed 1] [--out tests/data/tokenizer]

The vocabularies come from GGUF files in the cache folder ($KIGO_CACHE, else $XDG_CACHE_HOME/kigo, else ~/.cache/kigo)
that `make fetch` fills. Each text is encoded by Hugging Face tokenizers, set up as the model's tokenizer.json has it,
and by llama.cpp. Where the two differ Hugging Face counts; differences are counted and printed. There are three kinds:
a byte that the vocabulary lacks is left out before merging (llama.cpp: after); </s> is an ordinary token of Qwen2
(llama.cpp: a control token); the white space that Phi-3's special tokens swallow is Unicode's (llama.cpp: ASCII's).

Files: texts.json is an array of strings. <name>.ids has for each text, in LEB128 numbers: n * 2 + d, then n ids with
special tokens parsed; when d is 1, m and m ids with them not parsed, which is the same list otherwise.
long.json has for texts that a rule describes the number of ids and their FNV-1a hash (each id as 4 bytes, little-endian).
"""

import argparse
import json
import os
import random
import unicodedata
from pathlib import Path

import llama_cpp
from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

MODELS = {
    "smollm": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "gpt-2": "vocabs/ggml-vocab-gpt-2.gguf",
    "qwen2": "vocabs/ggml-vocab-qwen2.gguf",
    "llama-bpe": "vocabs/ggml-vocab-llama-bpe.gguf",
    "llama-spm": "vocabs/ggml-vocab-llama-spm.gguf",
    "phi-3": "vocabs/ggml-vocab-phi-3.gguf",
}
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4


def cache() -> Path:
    if "KIGO_CACHE" in os.environ:
        return Path(os.environ["KIGO_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kigo"


class HuggingFace:
    """The tokenizer of a GGUF file, with and without its control tokens in the text."""

    def __init__(self, path: Path):
        fields = GGUFReader(path).fields
        self.field = lambda key: fields[key].contents() if key in fields else None
        self.tokens = self.field("tokenizer.ggml.tokens")
        self.types = self.field("tokenizer.ggml.token_type")
        self.lanes = {parse: self.build(parse) for parse in (False, True)}

    def build(self, parse_special: bool) -> Tokenizer:
        vocab = {token: id for id, token in enumerate(self.tokens)}
        if self.field("tokenizer.ggml.model") == "gpt2":
            pre = self.field("tokenizer.ggml.pre")
            merges = [tuple(merge.split(" ")) for merge in self.field("tokenizer.ggml.merges")]
            tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=pre == "llama-bpe"))
            tokenizer.pre_tokenizer = self.byte_level(pre)
        else:
            merges = self.sentencepiece_merges(vocab)
            tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
            steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            tokenizer.normalizer = normalizers.Sequence(steps)
        phi3 = "phi3" in (self.field("general.name") or "").lower()
        for token, type in zip(self.tokens, self.types):
            # Phi-3's </s> is user-defined in the GGUF file and a control token in its tokenizer.json.
            type = CONTROL if (token, type) == ("</s>", USER_DEFINED) else type
            if type == USER_DEFINED or (parse_special and type in (CONTROL, UNKNOWN)):
                rstrip = phi3 and token not in ("<unk>", "<s>", "<|endoftext|>")
                tokenizer.add_tokens([AddedToken(token, rstrip=rstrip, normalized=False, special=False)])
        assert tokenizer.get_vocab_size() == len(vocab)
        return tokenizer

    @staticmethod
    def byte_level(pre: str):
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre in ("gpt-2", "smollm"))
        if pre == "gpt-2":
            return byte_level
        if pre == "smollm":
            return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        split = pre_tokenizers.Split(Regex(CL100K % {"qwen2": 1, "llama-bpe": 3}[pre]), "isolated")
        return pre_tokenizers.Sequence([split, byte_level])

    def sentencepiece_merges(self, vocab: dict) -> list:
        """All pairs of pieces that make a piece, best score first, as the conversion of transformers does it."""
        scores = self.field("tokenizer.ggml.scores")
        merges = []
        for piece, id in vocab.items():
            parts = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if self.types[id] == NORMAL]
            parts = [(l, r) for l, r in parts if l in vocab and r in vocab]
            merges += [(-scores[id], vocab[l], vocab[r], l, r) for l, r in parts]
        return [(l, r) for _, _, _, l, r in sorted(merges)]

    def encode(self, text: str, parse_special: bool) -> list:
        return self.lanes[parse_special].encode(text, add_special_tokens=False).ids


class LlamaCpp:
    def __init__(self, path: Path):
        self.model = llama_cpp.Llama(model_path=str(path), vocab_only=True, verbose=False)

    def encode(self, text: str, parse_special: bool) -> list:
        # The binding takes "" for its own default.
        return self.model.tokenize(text.encode(), add_bos=False, special=parse_special) if text else []


class Texts:
    """Seeded random texts, mostly short, mostly nasty."""

    SPACES = " \t\n\r\x0b\x0c\x85\xa0\u1680\u2000\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
    NOT_QUITE_SPACES = "\u200b\u200c\u200d\u2060\ufeff\u180e\xad"
    WORDS = (
        "the of and Hello world naïve façade Straße ÉCOLE Здравствуйте мир Ελληνικά עברית العربية हिन्दी ภาษาไทย "
        "日本語 中文字符 한국어 ქართული tokenization unbelievable GPU iPhone15 x86_64 3.14159 1,000,000 2nd snake_case "
        "camelCase HTTPServer ▁ ▁the Ġ Ċ don't I'LL we've they're O'Neil rock'n'roll 'tis Ⅻ ½ ٣٤٥ १२३ ²"
    ).split()
    CONTRACTIONS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'RE", "'Ll", "'lL", "'\u017f", "''s", "'x", "’s"]
    CODE = ["def f(x):\n    return x**2\n", "if (a&&b) {\n\t\tc++;\n}\r\n", "<div class=\"a\">&nbsp;</div>", "{\"k\": [1, 2.5e-3]}",
            "#include <stdio.h>\n", "SELECT * FROM t WHERE a='b';", "https://a.b/c?d=e&f=%20", "/* ==== */", "\\n\\t\\x00", "$$\\frac{a}{b}$$"]
    EMOJI = ["👨‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇫🇷", "😀", "❤️", "1️⃣", "🫠", "☃", "🧑🏿‍🚀"]
    MARKS = ["e\u0301", "a\u0308\u0304", "Z\u0351\u036b\u0343", "क\u094d\u0937", "ก\u0e33", "\u0301", "\u20dd", "한"]
    SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>", "<|user|>",
               "<|reserved_special_token_12|>", "<|reserved_special_token_1|>", "<|start_header_id|>", "<|end|>", "<s>", "</s>",
               "<unk>", "<0x41>", "<0x0A>", "[PAD151700]", "<repo_name>", "<filename>", "<|assistant|>", "<|placeholder1|>"]

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        # Code points that were assigned in Unicode 14, and will never be: references differ about those between.
        self.assigned = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]
        self.by_kind = [[c for c in self.assigned if unicodedata.category(c)[0] == kind] for kind in "LMNPSZC"]

    def letters(self, pool, low, high) -> str:
        return "".join(self.random.choices(pool, k=self.random.randint(low, high)))

    def part(self) -> str:
        r = self.random
        kind = r.randrange(19)
        if kind == 0:
            return self.letters([chr(c) for c in range(0x80)], 1, 12)
        if kind == 1:
            return self.letters([chr(c) for c in range(0x20, 0x7f)], 1, 16)
        if kind == 2:
            return self.letters(self.assigned, 1, 6)
        if kind == 3:
            return self.letters(r.choice(self.by_kind), 1, 6)
        if kind == 4:
            return self.letters(self.SPACES, 1, 6)
        if kind == 5:
            return r.choice(" \n\t") * r.randint(1, 40)
        if kind == 6:
            return self.letters(self.SPACES + self.NOT_QUITE_SPACES + "a1'", 1, 8)
        if kind == 7:
            return r.choice(self.WORDS) + r.choice(self.CONTRACTIONS)
        if kind == 8:
            return self.letters("0123456789", 1, 12)
        if kind == 9:
            return r.choice(self.CODE)
        if kind == 10:
            return r.choice(self.EMOJI)
        if kind == 11:
            return r.choice(self.MARKS) * r.randint(1, 3)
        if kind == 12:
            return r.choice(self.SPECIAL) + r.choice(["", " ", "\n", "x"])
        if kind == 13:
            text = r.choice(self.SPECIAL)
            at = r.randint(1, len(text))
            return text[:at]
        if kind == 14:
            return r.choice("aA=-.!~*_#€中😀") * r.randint(2, 50)
        if kind == 15:
            return chr(r.choice([0, 1, 4, 6, 0x13, 0x1b, 0x7f, 0xad, 0xfffd, 0xfffe, 0xe000, 0x1fffe, 0x40000, 0x90000, 0x10fffd]))
        return " ".join(r.choices(self.WORDS, k=r.randint(1, 4)))

    def text(self) -> str:
        return "".join(self.part() for _ in range(self.random.choice([1, 1, 2, 3, 4])))


def long_texts() -> dict:
    """Texts that a naive tokenizer takes minutes for; the test has the same rules."""
    mib = 1 << 20
    state, letters = 1, []
    for _ in range(26_000):
        state = (state * 1103515245 + 12345) % (1 << 31)
        letters.append(chr(ord("a") + (state >> 16) % 26))
    return {
        "A": "A" * mib,
        "caret": "^" * mib,
        "cjk": "中" * (mib // 3),
        "spaces": " " * mib,
        "spaces and a letter": " " * (mib - 1) + "a",
        "newlines": "\n" * mib,
        "letters": "".join(letters),
    }


def fnv(ids: list) -> str:
    hash = 0xcbf29ce484222325
    for byte in b"".join(id.to_bytes(4, "little") for id in ids):
        hash = (hash ^ byte) * 0x100000001b3 % (1 << 64)
    return f"{hash:016x}"


def leb128(n: int) -> bytes:
    out = bytearray()
    while n > 0x7f:
        out.append(n & 0x7f | 0x80)
        n >>= 7
    return bytes(out + bytes([n]))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=0, help="print so many differences of each model")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tests/data/tokenizer")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    maker = Texts(args.seed)
    texts = ["", " ", "  ", "\n", "a", "\0", "a\0b", *maker.SPECIAL, *maker.EMOJI, *maker.WORDS]
    texts += [maker.text() for _ in range(args.count - len(texts))]
    (args.out / "texts.json").write_text(json.dumps(texts, ensure_ascii=True, separators=(",", ":"), indent=0) + "\n")

    long = {}
    for name, file in MODELS.items():
        ours, theirs = HuggingFace(cache() / file), LlamaCpp(cache() / file)
        out, differ = bytearray(), []
        for text in texts:
            lanes = []
            for parse_special in (True, False):
                ids = ours.encode(text, parse_special)
                other = theirs.encode(text, parse_special)
                if ids != other:
                    differ.append((text, parse_special, ids, other))
                lanes.append(ids)
            parsed, plain = lanes
            out += leb128(len(parsed) * 2 + (parsed != plain)) + b"".join(map(leb128, parsed))
            if parsed != plain:
                out += leb128(len(plain)) + b"".join(map(leb128, plain))
        (args.out / f"{name}.ids").write_bytes(out)
        print(f"{name}: {len(out)} bytes, {len(differ)} of {2 * len(texts)} differ between Hugging Face and llama.cpp")
        for text, parse_special, ids, other in differ[: args.show]:
            print(f"  {text!r} parse_special={parse_special}\n    {[ours.tokens[i] for i in ids]}\n    {[ours.tokens[i] for i in other]}")
        long[name] = {key: [len(ids), fnv(ids)] for key, text in long_texts().items() for ids in [ours.encode(text, False)]}
    (args.out / "long.json").write_text(json.dumps(long, indent=1) + "\n")


if __name__ == "__main__":
    main()
