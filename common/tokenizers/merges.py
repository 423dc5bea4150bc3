"""Byte-pair encoding itself, on ids: which pairs are merged, learnt from counted words, and applied in that order.

Source: Gage 1994; Sennrich et al. 2016, algorithm 1.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

Pair = tuple[int, int]
Ranks = Mapping[Pair, tuple[int, int]]  # of a pair: which merge it is, and the id that takes its place


def learn(words: Mapping[tuple[int, ...], int], first_new: int, count: int, least: int = 2) -> Iterator[Pair]:
    """The pairs to merge, one after the other, `count` at most: always the most frequent one in `words` (ids and how
    often they occur), of equally frequent ones the smallest. The n-th becomes id `first_new` + n. Ends where no pair
    occurs `least` times.

    Counts are kept up to date, not taken anew: of every merge only the words with that pair are looked at.
    """
    corpus = _Corpus(words)
    heap = [(-often, pair) for pair, often in corpus.often.items()]
    heapq.heapify(heap)
    for new in range(first_new, first_new + count):
        pair = _most_frequent(heap, corpus, least)
        if pair is None:
            return
        yield pair
        for changed in corpus.merge(pair, new):
            heapq.heappush(heap, (-corpus.often[changed], changed))


def learn_first_met(words: Mapping[tuple[int, ...], int], first_new: int, count: int, least: int = 2) -> Iterator[Pair]:
    """The same, but of equally frequent pairs the one that comes first in the words, as the book has it: slower."""
    corpus = _Corpus(words)
    for new in range(first_new, first_new + count):
        most = max(corpus.often.values(), default=0)
        if most < least:
            return
        pair = min((pair for pair, often in corpus.often.items() if often == most), key=corpus.first)
        yield pair
        corpus.merge(pair, new)


class _Corpus:
    """Words as they stand after some merges. `often` counts every pair, overlapping ones too."""

    def __init__(self, words: Mapping[tuple[int, ...], int]):
        self._words, self._counts = [list(word) for word in words], list(words.values())
        self.often: dict[Pair, int] = defaultdict(int)
        self._where: dict[Pair, set[int]] = defaultdict(set)
        for number in range(len(self._words)):
            self._count(number, 1)

    def _count(self, number: int, sign: int) -> set[Pair]:
        """Take the pairs of a word into account, or out of it; which they are."""
        word, times = self._words[number], sign * self._counts[number]
        pairs = list(pairwise(word))
        for pair in pairs:
            self.often[pair] += times
        found = set(pairs)
        for pair in found:
            if sign > 0:
                self._where[pair].add(number)
            else:
                self._where[pair].discard(number)
        return found

    def merge(self, pair: Pair, new: int) -> set[Pair]:
        """Put `new` in place of a pair everywhere, from left to right; all pairs whose counts have changed."""
        changed: set[Pair] = set()
        for number in tuple(self._where[pair]):
            changed |= self._count(number, -1)
            self._words[number] = merged(self._words[number], pair, new)
            changed |= self._count(number, 1)
        for gone in [one for one in changed if not self.often[one]]:
            del self.often[gone], self._where[gone]
            changed.discard(gone)
        return changed

    def first(self, pair: Pair) -> tuple[int, int]:
        """Where a pair comes first: its word and its place in it."""
        number = min(self._where[pair])
        word = self._words[number]
        return number, next(at for at in range(len(word) - 1) if (word[at], word[at + 1]) == pair)


def _most_frequent(heap: list[tuple[int, Pair]], corpus: _Corpus, least: int) -> Pair | None:
    """The pair on top whose count still holds."""
    while heap:
        negative, pair = heapq.heappop(heap)
        if corpus.often.get(pair) == -negative:
            return pair if -negative >= least else None
    return None


def merged(word: Sequence[int], pair: Pair, new: int) -> list[int]:
    """The word with `new` in place of that pair, from left to right."""
    found, at = [], 0
    while at < len(word):
        if at + 1 < len(word) and (word[at], word[at + 1]) == pair:
            found.append(new)
            at += 2
        else:
            found.append(word[at])
            at += 1
    return found


def apply(ranks: Ranks, word: Sequence[int]) -> list[int]:
    """The word after all merges, the earliest learnt first, each from left to right.

    Neighbours are linked and pairs wait in a heap, so a word of n ids takes n log n steps, however long it is.
    """
    ids, after = list(word), list(range(1, len(word) + 1))
    before = list(range(-1, len(word) - 1))
    waiting = []

    def wait(at: int) -> None:
        if at >= 0 and after[at] < len(ids):
            pair = (ids[at], ids[after[at]])
            if pair in ranks:
                heapq.heappush(waiting, (ranks[pair][0], at, pair))

    for at in range(len(ids) - 1):
        wait(at)
    while waiting:
        _, at, pair = heapq.heappop(waiting)
        right = after[at]
        if ids[at] is None or right >= len(ids) or (ids[at], ids[right]) != pair:
            continue  # one of the two is merged already
        ids[at], ids[right] = ranks[pair][1], None
        after[at] = after[right]
        if after[at] < len(ids):
            before[after[at]] = at
        wait(before[at])
        wait(at)
    return [one for one in ids if one is not None]


def apply_left_to_right(ranks: Ranks, word: Sequence[int]) -> list[int]:
    """The word after merging any known pair from left to right, again and again, as the book's encoder does: other
    tokens than those that were learnt."""
    ids, before = list(word), None
    while ids != before:
        before, at, found = ids, 0, []
        while at < len(ids):
            known = ranks.get((ids[at], ids[at + 1])) if at + 1 < len(ids) else None
            found.append(ids[at] if known is None else known[1])
            at += 1 if known is None else 2
        ids = found
    return ids
