"""Near-duplicate clusters."""

from __future__ import annotations

import random

import numpy as np
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st

from align.data.quality.near_duplicate import Cluster, band_rows, jaccard, near_duplicate_clusters
from align.data.quality.shingle import SEED, Signer, shingle_hashes, shingle_text, shingles

LINE = "The committee will publish its findings on the harbour bridge before the end of the summer."


def noise(characters: int, source: random.Random) -> str:
    return "".join(source.choices("abcdefghijklmnopqrstuvwxyz ", k=characters))


def test_clusters_hold_the_first_row_and_its_near_duplicates() -> None:
    texts = ["Something else altogether, which resembles nothing.", LINE, LINE.upper() + " ", LINE[:-1] + "!", "short", "short"]
    found = near_duplicate_clusters(texts)
    assert found.clusters == (Cluster((1, 2, 3), same_text=1), Cluster((4, 5), same_text=1))
    assert found.redundant == [2, 3, 5]


def test_every_member_resembles_the_first_row_not_just_a_neighbour() -> None:
    """Of a chain of overlapping windows, each near its neighbour, those far from the first are left out."""
    long = noise(400, random.Random(3))
    windows = [long[start : start + 200] for start in range(0, 100, 10)]
    [first, *others] = near_duplicate_clusters(windows).clusters
    assert first.rows[0] == 0
    for cluster in (first, *others):
        sets = [shingles(shingle_text(windows[row])) for row in cluster.rows]
        assert all(jaccard(sets[0], other) >= 0.8 for other in sets[1:])
    assert 9 not in first.rows


def test_korean_is_compared_by_letters() -> None:
    """Taken by syllables, 6 of 16 shingles (Jaccard 11 / 17 = 0.65) would be those of the last word."""
    assert near_duplicate_clusters(["괜찮은 줄 알았는데", "괜찮은 줄 알았는데."]).redundant == [1]
    assert near_duplicate_clusters(["맨날 똑같아", "맨날 똑같애"]).redundant == [1]
    assert near_duplicate_clusters(["배고파", "배 아파"]).redundant == []


def test_blank_texts_are_in_no_cluster() -> None:
    assert near_duplicate_clusters(["", "", " \n", "\u3000"]).clusters == ()
    assert near_duplicate_clusters([]).redundant == []


def test_order_of_the_rows_is_kept_and_nothing_is_random() -> None:
    source = random.Random(5)
    texts = [noise(60, source) for _ in range(50)] * 2
    first, second = near_duplicate_clusters(iter(texts)), near_duplicate_clusters(texts)
    assert first == second
    assert [cluster.rows for cluster in first.clusters] == [(row, row + 50) for row in range(50)]


def test_planted_near_duplicates_are_found() -> None:
    """300 texts, each with a copy that one or two replaced letters bring down to a similarity of 0.8 to 0.95."""
    source, texts, planted = random.Random(11), [], 0
    for _ in range(300):
        text = noise(120, source)
        place = source.randrange(5, 110)
        copy = text[:place] + "#" + text[place + 1 :]
        planted += jaccard(shingles(shingle_text(text)), shingles(shingle_text(copy))) >= 0.8
        texts += [text, copy]
    assert planted > 250
    found = near_duplicate_clusters(texts).clusters
    assert all(len(cluster.rows) == 2 and cluster.rows[1] == cluster.rows[0] + 1 for cluster in found)
    assert len(found) >= 0.95 * planted
    assert len(found) <= planted


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="ab 가ß", max_size=14), max_size=12), st.sampled_from([0.5, 0.8, 1.0]))
def test_no_pair_below_the_threshold_is_reported(texts: list[str], threshold: float) -> None:
    found = near_duplicate_clusters(texts, threshold=threshold)
    rows = [row for cluster in found.clusters for row in cluster.rows]
    assert len(rows) == len(set(rows))
    for cluster in found.clusters:
        first, *others = (shingles(shingle_text(texts[row])) for row in cluster.rows)
        assert all(len(first & other) / len(first | other) >= threshold for other in others)


def test_signatures_are_those_of_datasketch() -> None:
    texts = [shingle_text(text) for text in (LINE, "안녕하세요, 반갑습니다", "abc", "a" * 300)]
    hashes, starts = shingle_hashes(texts)
    ours = Signer(32).signatures(texts)
    for text, row, part in zip(texts, ours, np.split(hashes, starts[1:]), strict=True):
        assert len(set(part.tolist())) == len(shingles(text))
        theirs = MinHash(num_perm=32, seed=SEED, scheme="affine32", hashfunc=int)
        theirs.update_batch(part.tolist())
        assert row.tolist() == theirs.hashvalues.tolist()


def test_bands_find_what_is_at_the_threshold() -> None:
    """0.8^6 = 0.262; 1 − (1 − 0.262)^21 = 0.998, while seven columns would give 0.985."""
    assert band_rows(0.8, 128) == 6
    assert band_rows(1.0, 128) == 128


@pytest.mark.parametrize(("threshold", "num_perm"), [(0.0, 128), (1.1, 128), (0.8, 1)])
def test_impossible_settings_are_refused(threshold: float, num_perm: int) -> None:
    with pytest.raises(ValueError, match="expected 0 < threshold"):
        near_duplicate_clusters(["a"], threshold=threshold, num_perm=num_perm)
