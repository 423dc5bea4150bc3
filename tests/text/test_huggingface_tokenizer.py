"""A `tokenizer.json`: made by Hugging Face's own library here, of GPT-2's kind and of Llama's."""

import json

import numpy as np
import pytest

from common.data.corpora import corpus
from common.errors import UserError
from common.tokenizers import Stream, tokenizer

TEXT = corpus("pydoc").text[:40_000]
ODD = ["naïve café 東京 👩‍👩‍👧", " two  spaces ", "a\n\nb\t", "don't", ""]


def of_gpt2s_kind():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    specials = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "special_tokens": ["<|endoftext|>"]}
    made.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=600, show_progress=False, **specials))
    return made


def of_llamas_kind():
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(parts)
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, show_progress=False, special_tokens=specials)
    made.train_from_iterator([line for line in TEXT.split("\n") if line], trainer)
    told = json.loads(made.to_str())
    told["added_tokens"] = told["added_tokens"][:3]  # bytes are tokens like any other there
    return Tokenizer.from_str(json.dumps(told))


KINDS = {"ByteLevel": of_gpt2s_kind, "ByteFallback": of_llamas_kind}


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """(theirs, ours) of one file."""
    theirs = KINDS[request.param]()
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    theirs.save(str(path))
    return theirs, tokenizer("hf", path.parent)


def test_ids_are_theirs_and_text_comes_back(pair):
    theirs, ours = pair
    for text in (*ODD, TEXT[:3000]):
        ids = ours.encode(text)
        assert ids.tolist() == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == theirs.decode(ids.tolist(), skip_special_tokens=False) == text


def test_special_tokens_are_text_unless_they_are_allowed(pair):
    _, ours = pair
    end = {600: "<|endoftext|>"}.get(ours.vocab_size, "</s>")
    assert ours.end_token is not None
    assert ours.end_token not in ours.encode(f"a{end}b")
    assert (ours.encode(f"a{end}b", special=True) == ours.end_token).sum() == 1
    assert end in ours.decode([ours.end_token])


def test_a_stream_of_single_ids_is_the_text(pair):
    _, ours = pair
    ids = ours.encode(ODD[0])
    stream = Stream(ours)
    pieces = "".join(stream.feed(int(one)) for one in ids) + stream.finish()
    assert pieces.removeprefix(" ") == ODD[0]


def test_it_is_kept_with_what_is_trained_with_it(pair, tmp_path):
    pair[1].save(tmp_path)
    assert tokenizer("hf", tmp_path).describe() == pair[1].describe()


def test_ids_outside_are_refused(pair):
    with pytest.raises(UserError, match="outside the vocabulary of 'hf'"):
        pair[1].decode(np.array([pair[1].vocab_size]))


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match=r"There is no tokenizer\.json at"):
        tokenizer("hf", tmp_path)
    with pytest.raises(UserError, match=r"needs the folder of its vocabulary"):
        tokenizer("hf")
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(UserError, match="cannot be read as a tokenizer"):
        tokenizer("hf", path)
    made = of_gpt2s_kind()
    told = json.loads(made.to_str())
    told["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    path.write_text(json.dumps(told))
    with pytest.raises(UserError, match="decodes by WordPiece; known are ByteLevel"):
        tokenizer("hf", path)
