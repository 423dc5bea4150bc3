"""Labelled texts: what is read, the sentence for every row that cannot be used, balance and splits."""

import json
import zipfile
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from common.data import sets
from common.data.labelled import Labelled, balance, read_labelled, split
from common.errors import UserError


@pytest.fixture
def sms(data_dir):
    return read_labelled(data_dir / "sms_spam" / "SMSSpamCollection")


def labels(*counts):
    data = np.repeat(np.arange(len(counts)), counts)
    return Labelled([f"text {i}" for i in range(len(data))], data, tuple(f"class {c}" for c in range(len(counts))))


@pytest.fixture
def write(tmp_path):
    def made(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return made


def test_all_messages_are_read_and_none_is_swallowed_by_a_quotation_mark(sms):
    assert len(sms) == 5574
    assert sms.counts() == {"ham": 4827, "spam": 747}
    assert (sms.texts[0][:20], sms.labels[0], sms.labels[2]) == ("Go until jurong poin", 0, 1)
    assert any(text.count('"') % 2 for text in sms.texts)


def test_balanced_and_split_messages_have_the_sizes_of_the_book(sms):
    """Raschka 2024, section 6.2: 1494 messages, of which 1045, 149 and 300."""
    even = balance(sms, 123)
    assert even.counts() == {"ham": 747, "spam": 747}
    assert {t for t, c in zip(sms.texts, sms.labels, strict=True) if c} <= set(even.texts)
    parts = split(even, (0.7, 0.1, 0.2), 123)
    assert [len(part) for part in parts] == [1045, 149, 300]
    assert Counter(t for part in parts for t in part.texts) == Counter(even.texts)
    assert all(0.35 < part.labels.mean() < 0.65 for part in parts)


def test_messages_by_name(data_dir, monkeypatch, sms, tmp_path):
    monkeypatch.setenv("PARALLAX_DATA", str(data_dir))
    assert read_labelled("sms-spam").describe() == sms.describe()
    monkeypatch.delenv("PARALLAX_DATA")
    monkeypatch.setenv("PARALLAX_HOME", str(tmp_path))
    (tmp_path / "data" / "sms_spam").mkdir(parents=True)
    (tmp_path / "data" / "sms_spam" / "SMSSpamCollection").symlink_to(data_dir / "sms_spam" / "SMSSpamCollection")
    assert read_labelled("sms-spam").describe() == sms.describe()


def test_missing_data_set_says_where_to_put_it(monkeypatch, tmp_path):
    monkeypatch.setattr(sets, "folders", lambda: (tmp_path,))
    monkeypatch.setenv("PARALLAX_HOME", str(tmp_path))
    with pytest.raises(
        UserError, match=r"not here: get it from .* put it at .*/data/sms_spam/SMSSpamCollection, or set"
    ):
        read_labelled("sms-spam")
    (tmp_path / "movie_reviews.zip").write_bytes(b"x")
    with pytest.raises(
        UserError, match=r"movie_reviews\.zip is not the data set 'movie-reviews' \(its SHA-256 is 2d71"
    ):
        read_labelled("movie-reviews")


def test_film_reviews(data_dir):
    reviews = read_labelled(data_dir / "movie_reviews.zip")
    assert reviews.counts() == {"neg": 1000, "pos": 1000}
    assert reviews.texts[0].startswith("plot : two teen couples")
    assert reviews.texts[1000].startswith("films adapted from comic books")


def test_archives_that_hold_no_reviews(tmp_path, write, monkeypatch):
    with pytest.raises(UserError, match="cannot be read as a zip archive"):
        read_labelled(write("movie_reviews.zip", "PK"))

    def archive(**files):
        with zipfile.ZipFile(tmp_path / "movie_reviews.zip", "w") as made:
            for name, text in files.items():
                made.writestr(f"movie_reviews/{name.replace('_', '/')}.txt", text)
        return tmp_path / "movie_reviews.zip"

    assert read_labelled(archive(pos_b="B", neg_a="A", other_c="C")).texts == ["A", "B"]
    with pytest.raises(UserError, match="holds no reviews"):
        read_labelled(archive(other_c="C"))
    with pytest.raises(UserError, match=r"movie_reviews/pos/b\.txt in movie_reviews\.zip is empty"):
        read_labelled(archive(neg_a="A", pos_b=" "))
    with pytest.raises(UserError, match=r"All 1 texts .* label 'neg'"):
        read_labelled(archive(neg_a="A"))
    with pytest.raises(UserError, match="UTF-8"):
        read_labelled(archive(neg_a=b"\xff", pos_b="B"))
    monkeypatch.setattr("common.data.labelled.REVIEW_BYTES", 3)
    with pytest.raises(UserError, match=r"neg/a\.txt .* has 4 bytes"):
        read_labelled(archive(neg_a="AAAA", pos_b="B"))


ROWS = [("Who, me?", "b"), ('She said "no"\nand left', "a"), ("tab\there", "b")]
AS_JSON = [json.dumps({"label": label, "text": text, "more": None}) for text, label in ROWS]
FILES = {
    "x.csv": 'text,label\n"Who, me?",b\n"She said ""no""\nand left",a\ntab\there,b\n',
    "x.tsv": 'Label\tText\nb\tWho, me?\na\t"She said ""no""\nand left"\nb\t"tab\there"\n',
    "x.jsonl": "\n".join(AS_JSON) + "\n\n",
    "x.json": f"[{','.join(AS_JSON)}]",
    "windows.csv": '\ufefftext,label\r\n"Who, me?",b\r\n"She said ""no""\nand left",a\r\ntab\there,b\r\n',
}


@pytest.mark.parametrize("name", FILES)
def test_the_same_rows_in_every_form(write, name):
    data = read_labelled(write(name, FILES[name]))
    assert data.texts == [text for text, _ in ROWS]
    assert (data.labels.tolist(), data.names) == ([1, 0, 1], ("a", "b"))
    given = read_labelled(write(name, FILES[name]), ("b", "a"))
    assert (given.labels.tolist(), given.names) == ([0, 1, 0], ("b", "a"))


def test_numbers_as_labels_are_sorted_as_numbers(write):
    lines = "\n".join(json.dumps({"text": "t", "label": label}) for label in (10, 9, "2", "x"))
    assert read_labelled(write("n.jsonl", lines)).names == ("2", "9", "10", "x")


GOOD = "text,label\nfine,a\n"
WRONG = {
    "text,label\nfine,a\n ,b\n": "Line 3 of x.csv has an empty field 'text'",
    "text,label\nfine,a\nfine,\n": "Line 3 of x.csv has an empty field 'label'",
    "text,label\nfine,a\nalone\n": r"Line 3 of x.csv has 1 fields where 2 belong \(text, label\)",
    'text,label\n"two\nlines",a\n"three",b,c\n': "Line 4 of x.csv has 3 fields where 2 belong",
    'text,label\nfine,a\n"open,b\n': r"Line 3 of x.csv cannot be read \(unexpected end of data\)",
    "texts,label\nfine,a\n": "Line 2 of x.csv lacks the field 'text': is 'texts' meant",
    "words,label\nfine,a\n": "Line 2 of x.csv lacks the field 'text': it has words, label",
    "text,label\n": "x.csv has no rows",
    "": "x.csv has no rows",
    "text,label\nfine,a\nalso fine,a\n": "All 2 texts of x.csv have the label 'a'; two classes are needed",
}


@pytest.mark.parametrize("content", WRONG)
def test_a_wrong_row_is_named(write, content):
    with pytest.raises(UserError, match=WRONG[content]):
        read_labelled(write("x.csv", content))


WRONG_JSON = {
    '{"text": "t", "label": "a"}\n{"text": 3, "label": "b"}': "Line 2 of x.jsonl has the number 3 in the field 'text'",
    '{"text": "t", "label": "a"}\n\n{"text": "t", "label": null}': "Line 3 of x.jsonl has null in the field 'label'",
    '{"text": "t", "label": true}': "Line 1 of x.jsonl has true in the field 'label'",
    '{"text": "t", "label": 0.5}': "Line 1 of x.jsonl has the number 0.5 in the field 'label'",
    '["t", "a"]': "Line 1 of x.jsonl is a list; it must be an object",
    '{"text": "t", ': r"Line 1 of x.jsonl is no JSON \(line 1, column 15",
    '{"text": "\\ud800", "label": "a"}': r"Line 1 of x.jsonl, field 'text': .*U\+D800",
    "[" * 100_000: "Line 1 of x.jsonl is JSON that cannot be read",
}


@pytest.mark.parametrize("content", WRONG_JSON, ids=range(len(WRONG_JSON)))
def test_a_wrong_line_of_json_is_named(write, content):
    with pytest.raises(UserError, match=WRONG_JSON[content]):
        read_labelled(write("x.jsonl", content))


@pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
@pytest.mark.parametrize(
    ("again", "told"),
    [
        ("text", "Line 2 of {} names the column 'text' twice"),
        (" label ", "Line 2 of {} names the column 'label' twice"),
        ("Text", "Line 3 of {} has the fields 'text' and 'Text'; rename one of them"),
    ],
)
def test_a_column_that_is_named_twice_is_refused(write, name, again, told):
    with pytest.raises(UserError, match=told.format(name)):
        read_labelled(write(name, f"\ntext,label,{again}\na,x,b\nc,y,d\n".replace(",", "\t" if "tsv" in name else ",")))
    unnamed = "text,label,,\na,x,,\nc,y,,\n"
    assert read_labelled(write("unnamed.csv", unnamed)).texts == ["a", "c"]


def test_label_outside_of_the_given_names(write):
    path = write("x.csv", "text,label\nt,ham\nt,spam\nt,spma\n")
    with pytest.raises(UserError, match=r"Line 4 of x\.csv: Unknown label 'spma': did you mean 'spam'\?"):
        read_labelled(path, ("ham", "spam"))
    with pytest.raises(UserError, match="may stand there once"):
        read_labelled(path, ("ham", "ham"))


def test_a_message_without_a_tab_is_named(write):
    with pytest.raises(UserError, match=r"Line 2 of SMSSpamCollection is no label, tab and text: 'spam only'"):
        read_labelled(write("SMSSpamCollection", "ham\tHi\nspam only\n"))
    with pytest.raises(UserError, match=r"Line 2 .*Unknown label 'scam'"):
        read_labelled(write("SMSSpamCollection", "ham\tHi\nscam\tHi\n"))


def test_messages_with_line_ends_of_windows_are_the_same(write):
    content = "ham\tHi \r there\nspam\tWin\n"
    want = read_labelled(write("SMSSpamCollection", content)).describe()
    assert read_labelled(write("SMSSpamCollection", content.replace("\n", "\r\n"))).describe() == want


def test_sources_that_are_none(write, tmp_path):
    write("spam.csv", GOOD)
    for source, told in {
        tmp_path / "spam.cvs": r"do not exist; did you mean 'spam\.csv'",
        "sms-spma": "do not exist; did you mean 'sms-spam'",
        tmp_path: "is a folder",
        write("a.txt", "x"): r"a\.txt is of no known form; its name must end in \.csv or \.tsv or",
        write("b.csv", b"text,label\n\xff,a\n"): "not UTF-8 text",
    }.items():
        with pytest.raises(UserError, match=told):
            read_labelled(source)


def test_labels_are_those_of_the_names():
    with pytest.raises(UserError, match=r"Text 1 has the label 2; allowed are 0 to 1"):
        Labelled(["a", "b"], np.array([0, 2]), ("x", "y"))
    with pytest.raises(UserError, match="2 texts need as many labels"):
        Labelled(["a", "b"], np.array([0]), ("x", "y"))


@given(st.lists(st.integers(1, 30), min_size=2, max_size=4), st.integers(0, 2**32 - 1))
def test_balance_keeps_the_smallest_class_whole_and_all_in_order(counts, seed):
    even = balance(labels(*counts), seed)
    assert set(even.counts().values()) == {min(counts)}
    places = [int(text.split()[1]) for text in even.texts]
    assert places == sorted(set(places))
    assert even.describe() == balance(labels(*counts), seed).describe()


@given(st.integers(2, 60), st.integers(2, 60), st.floats(0.05, 0.9), st.floats(0.05, 0.9), st.integers(0, 2**32 - 1))
def test_parts_are_all_texts_once(first, second, train, validation, seed):
    assume(train + validation < 0.99)
    data, shares = labels(first, second), (train, validation, 1 - train - validation)
    sizes = [int(len(data) * share) for share in shares[:2]]
    sizes.append(len(data) - sum(sizes))
    if min(sizes) == 0:
        with pytest.raises(UserError, match="a part is empty"):
            split(data, shares, seed)
        return
    try:
        parts = split(data, shares, seed)
    except UserError as error:
        if "to train on have the label" not in str(error):
            raise
        return
    assert [len(part) for part in parts] == sizes
    assert sorted(t for part in parts for t in part.texts) == sorted(data.texts)
    labelled = dict(zip(data.texts, data.labels, strict=True))
    assert all(labelled[t] == c for part in parts for t, c in zip(part.texts, part.labels, strict=True))


def test_seeds_give_other_parts_and_other_texts():
    data = labels(40, 20)
    assert split(data, seed=1).train.texts == split(data, seed=1).train.texts
    assert split(data, seed=1).train.texts != split(data, seed=2).train.texts
    assert balance(data, 1).texts != balance(data, 2).texts
    for wrong in (-1, 2**32, 0.5, True):
        with pytest.raises(UserError, match="Seed is"):
            balance(data, wrong)


def test_parts_that_would_be_empty_are_told_with_their_sizes():
    with pytest.raises(UserError, match=r"9 texts cannot be split .* empty \(train 6, validation 0, test 3\)"):
        split(labels(5, 4))
    with pytest.raises(UserError, match="All 1 texts to train on have the label"):
        split(labels(2, 1), (0.4, 0.4, 0.2))
    for shares in ((0.7, 0.3), (0.7, 0.3, 0.0), (0.7, 0.2, 0.2), (float("nan"), 0.1, 0.2)):
        with pytest.raises(UserError, match="whose sum is 1"):
            split(labels(20, 20), shares)
    with pytest.raises(UserError, match="Class 'class 1' has no texts"):
        balance(labels(3, 0, 2), 0)


def test_what_is_drawn_is_pinned():
    """The orders come from jax.random: argsort of bits(fold_in(fold_in(key(5), 3), 2^32 - 1 or - 2), (10,), uint64)."""
    data = labels(7, 3)
    drawn = [9, 7, 4, 3, 5, 1, 8, 0, 2, 6]
    kept = [*[i for i in drawn if i < 7][:3], 7, 8, 9]
    assert balance(data, 5).texts == [f"text {i}" for i in sorted(kept)]
    order = [text for part in split(data, (0.5, 0.2, 0.3), 5) for text in part.texts]
    assert order == [f"text {i}" for i in (9, 5, 2, 3, 1, 0, 7, 6, 8, 4)]
