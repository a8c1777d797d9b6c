from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.errors import CaseIndexError, PartitionError
from indexer.ids import NONE
from indexer.partition import Partition, Probing
from indexer.policy import ONLY_BY_LISTS, SearchPolicy
from indexer.stores.faiss import codes
from indexer.stores.faiss import vectors as module
from indexer.stores.faiss.vectors import Part, Vectors


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def clustered(n, seed, d=32, clusters=60, spread=1.3):
    centres = unit(np.random.default_rng(100).normal(size=(clusters, d)))
    rng = np.random.default_rng(seed)
    return unit(centres[rng.integers(clusters, size=n)] + spread * rng.normal(size=(n, d)) / np.sqrt(d))


@contextmanager
def only_by_lists(*several):
    """No exact search: whatever the size, the filter or the depth."""
    held = [vectors.policy for vectors in several]
    for vectors in several:
        vectors.policy = ONLY_BY_LISTS
    yield
    for vectors, policy in zip(several, held, strict=True):
        vectors.policy = policy


def hand_made(x, c, seed, *, everything=True):
    """A partition on random members of x; most vectors are filed twice, and all lists are probed."""
    centroids = x[np.random.default_rng(seed).integers(len(x), size=c)]
    return Partition(
        centroids=centroids.astype(np.float32),
        fuzzifier=1.5,
        m_crit=np.inf,
        m_local=np.inf,
        reason="made by hand",
        border=0.3,
        coefficient=1.0,
        sizes=np.ones(c, np.int64),
        judged=len(x),
        low=x.min(axis=0) - 1e-6,
        high=x.max(axis=0) + 1e-6,
        probings=(Probing(0.0, c, c) if everything else Probing(0.3, 1, c),),
    )


def check(vectors, truth, q, k, keep=None, but=NONE):
    """Compare a search with brute force over `truth`, a dict of id to vector."""
    kept = truth.keys() if keep is None else set(keep.tolist())
    allowed = {i: v for i, v in truth.items() if i in kept and i not in but}
    scores, ids = vectors.search(q, k, keep, but)
    assert scores.shape == ids.shape == (len(q), k)
    assert scores.dtype == np.float32
    assert ids.dtype == np.int64
    for query, row_scores, row_ids in zip(q, scores, ids, strict=True):
        found = row_ids[row_ids >= 0]
        n = min(k, len(allowed))
        assert (row_ids[:n] >= 0).all()
        assert (row_ids[n:] == -1).all()
        assert (row_scores[n:] == -np.inf).all()
        assert len(set(found.tolist())) == n
        assert set(found.tolist()) <= set(allowed)
        assert (row_scores <= 1).all()
        # ties may come in any order: the scores decide, and each must be that of its id
        np.testing.assert_allclose(row_scores[:n], [query @ truth[i] for i in found.tolist()], atol=1e-5)
        best = sorted((float(query @ v) for v in allowed.values()), reverse=True)[:n]
        np.testing.assert_allclose(row_scores[:n], best, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_search_is_brute_force_through_adds_removals_and_filters(data):
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    d, n = data.draw(st.integers(2, 12)), data.draw(st.integers(1, 60))
    x = unit(rng.normal(size=(n, d)))
    copies = data.draw(st.integers(0, n // 2))
    x[:copies] = x[n - copies :]  # identical vectors under different ids
    highest = data.draw(st.sampled_from([n, 10 * n, 2**62]))
    ids = np.array(
        data.draw(st.lists(st.integers(0, highest), min_size=n, max_size=n, unique=True)), np.int64
    )
    partition = hand_made(x, data.draw(st.integers(2, 8)), seed) if data.draw(st.booleans()) else None

    first = data.draw(st.integers(0, n))
    vectors = Vectors.build(ids[:first], x[:first], partition)
    vectors.add(ids[first:], x[first:])
    truth = dict(zip(ids.tolist(), x, strict=True))
    gone = ids[rng.permutation(n)[: data.draw(st.integers(0, n))]]
    assert vectors.remove(np.append(gone, highest + 1)) == len(gone)
    for i in gone.tolist():
        del truth[i]
    assert len(vectors) == len(truth)
    assert vectors.ids().tolist() == sorted(truth)

    q = unit(rng.normal(size=(3, d)))
    k = data.draw(st.integers(1, n + 5))
    keep = rng.choice(np.append(ids, highest + 2), data.draw(st.integers(0, n + 1)), replace=False)
    but = rng.choice(np.append(ids, highest + 3), data.draw(st.integers(0, n + 1)), replace=False)
    for asked in (None, keep, keep):
        for out in (NONE, but):
            check(vectors, truth, q, k, asked, out)
            with only_by_lists(vectors):
                check(vectors, truth, q, k, asked, out)
    left = rng.permutation(np.array(list(truth), np.int64))
    np.testing.assert_array_equal(
        vectors.gather(left), np.array([truth[i] for i in left.tolist()]).reshape(-1, d)
    )


def test_what_was_asked_among_is_not_remembered_beyond_a_change():
    x, ids = clustered(30, 0), np.arange(30)
    keep, truth = ids[::2], dict(enumerate(x))
    for partition in (None, hand_made(x, 4, 0)):
        vectors = Vectors.build(ids[:20], x[:20], partition)
        check(vectors, {i: truth[i] for i in range(20)}, x[:3], 5, keep)
        after = vectors.changed(ids[20:], x[20:], ids[:4])
        check(after, {i: truth[i] for i in range(4, 30)}, x[:3], 15, keep)
        check(vectors, {i: truth[i] for i in range(20)}, x[:3], 15, keep)


def test_exact_search_goes_on_past_its_block(monkeypatch):
    monkeypatch.setattr(module, "GATHERED", 7)
    x = clustered(50, 0)
    ids = np.arange(50) * 3
    vectors = Vectors.build(ids, x, hand_made(x, 5, 0))
    truth = dict(zip(ids.tolist(), x, strict=True))
    check(vectors, truth, clustered(4, 1), 12)
    check(vectors, truth, clustered(4, 1), 60, ids[::2])


@pytest.fixture(scope="module")
def collection():
    """4000 clustered vectors in both kinds of index, and 300 fresh queries."""
    x, ids = clustered(4000, 0), np.random.default_rng(0).permutation(9000)[:4000].astype(np.int64)
    partition = Partition.fit(x)
    partition.calibrate(clustered(400, 1), x)
    partition = replace(partition, border=0.05)  # whatever pays here, some are in two lists
    return x, ids, partition, clustered(300, 2)


def recall(found, truth):
    return np.mean(
        [len(set(f) & set(t)) / len(t) for f, t in zip(found.tolist(), truth.tolist(), strict=True)]
    )


@pytest.mark.slow
def test_lists_find_what_exact_search_finds(collection):
    x, ids, partition, q = collection
    vectors, flat = Vectors.build(ids, x, partition), Vectors.build(ids, x)
    sizes = vectors.list_sizes()
    assert 1.05 * len(x) < sizes.sum() <= 1.5 * len(x)  # some are in two lists
    assert flat.list_sizes().tolist() == [len(x)]
    truth = flat.search(q, 10)[1]
    with only_by_lists(vectors):
        scores, found = vectors.search(q, 10)
        assert recall(found, truth) >= 0.94
        assert all(len(set(row)) == 10 for row in found.tolist())
        assert (np.diff(scores, axis=1) <= 0).all()
        # fewer lists find fewer: it is the lists that are searched
        partition_of_one = replace(partition, probings=(Probing(1.0, 1, 1),))
        assert recall(Vectors.build(ids, x, partition_of_one, ONLY_BY_LISTS).search(q, 10)[1], truth) < 0.9
    np.testing.assert_array_equal(np.sort(vectors.search(q, 10)[1]), np.sort(truth))


def test_filters_that_keep_little_and_deep_rankings_are_exact(collection):
    x, ids, partition, q = collection
    vectors, flat = Vectors.build(ids, x, partition, SearchPolicy(exact_below=0)), Vectors.build(ids, x)
    few = ids[:300]
    np.testing.assert_allclose(vectors.search(q, 10, few)[0], flat.search(q, 10, few)[0], atol=1e-6)
    np.testing.assert_allclose(vectors.search(q, 400)[0], flat.search(q, 400)[0], atol=1e-6)
    half = ids[:2000]
    found, truth = vectors.search(q, 10, half)[1], flat.search(q, 10, half)[1]
    assert np.isin(found, half).all()
    assert 0.9 <= recall(found, truth) < 1  # by lists


def test_what_was_removed_never_comes_back(collection, tmp_path):
    x, ids, partition, _ = collection
    vectors = Vectors.build(ids, x, partition)
    gone = ids[::3]
    vectors.remove(gone)
    vectors.save(tmp_path / "index", tmp_path / "rows")
    for index in (vectors, Vectors.load(tmp_path / "index", partition, tmp_path / "rows")):
        with only_by_lists(index):
            assert not np.isin(index.search(x[::3], 5)[1], gone).any()
        assert not np.isin(index.search(x[::3], 5)[1], gone).any()
        assert index.list_sizes().sum() < 1.5 * len(index)
    with pytest.raises(KeyError):
        vectors.gather(gone[:1])
    vectors.add(gone, x[::3])
    np.testing.assert_array_equal(vectors.search(x[::3], 1)[1][:, 0], gone)


@pytest.mark.parametrize("by_lists", [False, True])
def test_an_index_comes_back_from_its_file_and_grows_on(collection, tmp_path, by_lists):
    x, ids, partition, q = collection
    used = partition if by_lists else None
    vectors = Vectors.build(ids[:3000], x[:3000], used)
    vectors.save(tmp_path / "index", tmp_path / "rows")
    back = Vectors.load(tmp_path / "index", used, tmp_path / "rows")
    assert len(back) == 3000
    for index in (vectors, back):
        index.add(ids[3000:], x[3000:])
    np.testing.assert_array_equal(back.ids(), np.sort(ids))
    np.testing.assert_array_equal(back.gather(ids), x)
    with only_by_lists(vectors, back):
        for one, two in zip(vectors.search(q, 20), back.search(q, 20), strict=True):
            np.testing.assert_array_equal(one, two)


def test_files_written_block_by_block_are_those_of_the_whole(collection, tmp_path):
    x, ids, partition, q = collection
    order = np.argsort(ids)
    blocks = [(ids[part], x[part]) for part in np.array_split(order, 7)]
    for used in (partition, None):
        Vectors.write(tmp_path / "index", tmp_path / "rows", iter(blocks), x.shape[1], used)
        back = Vectors.load(tmp_path / "index", used, tmp_path / "rows")
        np.testing.assert_array_equal(back.gather(ids), x)
        whole = Vectors.build(ids, x, used, ONLY_BY_LISTS)
        with only_by_lists(back):
            scores, found = back.search(q, 20)
            again, same = whole.search(q, 20)
        np.testing.assert_allclose(scores, again, atol=1e-6)
        assert recall(found, same) > 0.999


def test_scores_are_those_of_the_vectors_and_not_of_the_codes(collection):
    x, ids, partition, q = collection
    vectors = Vectors.build(ids, x, partition.at(1.0))
    with only_by_lists(vectors):
        scores, found = vectors.search(q, 10)
    np.testing.assert_allclose(
        scores, np.einsum("qd,qkd->qk", q, vectors.gather(found.ravel()).reshape(*found.shape, -1)), atol=1e-6
    )
    assert recall(found, Vectors.build(ids, x).search(q, 10)[1]) > 0.999


def test_threads_get_the_same_answers(collection):
    x, ids, partition, q = collection
    vectors = Vectors.build(ids, x, partition)
    with only_by_lists(vectors), ThreadPoolExecutor(8) as pool:
        jobs = [(q[i : i + 1 + i % 7], 5 + i % 3, None if i % 2 else ids[i:]) for i in range(100)]
        alone = [vectors.search(*job) for job in jobs]
        for (one, two), (scores, found) in zip(
            alone, pool.map(lambda job: vectors.search(*job), jobs), strict=True
        ):
            np.testing.assert_array_equal(one, scores)
            np.testing.assert_array_equal(two, found)


def test_an_empty_index_answers():
    empty = np.empty(0, np.int64), np.empty((0, 32), np.float32)
    for partition in (None, hand_made(clustered(10, 0), 3, 0)):
        vectors = Vectors.build(*empty, partition)
        scores, ids = vectors.search(clustered(2, 1), 3)
        assert (ids == -1).all()
        assert (scores == -np.inf).all()
        assert vectors.gather(empty[0]).shape == (0, 32)
        assert vectors.search(empty[1], 3)[1].shape == (0, 3)
        vectors.add(*empty)
        assert vectors.remove(np.array([5])) == len(vectors) == 0


def test_misuse_is_refused(collection):
    x, ids, partition, _ = collection
    vectors = Vectors.build(ids[:100], x[:100], partition)
    for wrong in (ids[:1], np.array([-1])):
        with pytest.raises(ValueError, match="new, distinct and not negative"):
            vectors.add(wrong, x[:1])
    with pytest.raises(ValueError, match="distinct"):
        vectors.add(np.array([9001, 9001]), x[:2])
    with pytest.raises(ValueError, match="shape"):
        vectors.add(np.array([9001]), x[:2])
    with pytest.raises(ValueError, match="shape"):
        vectors.search(x[:1, :5], 3)
    with pytest.raises(ValueError, match="k >= 1"):
        vectors.search(x[:1], 0)
    assert len(vectors) == 100


def test_files_that_do_not_fit_are_refused(collection, tmp_path):
    x, ids, partition, _ = collection
    path, flat = tmp_path / "lists", tmp_path / "flat"
    Vectors.build(ids, x, partition).save(path)
    Vectors.build(ids, x).save(flat)
    other = Partition.fit(x, seed=1)
    for file, wrong in ((path, other), (path, None), (flat, partition)):
        with pytest.raises(PartitionError, match="another partition"):
            Vectors.load(file, wrong)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(CaseIndexError, match="cannot be read"):
        Vectors.load(path, partition)
    Vectors.build(ids, x, partition).save(path, tmp_path / "rows")
    (tmp_path / "rows").write_bytes((tmp_path / "rows").read_bytes()[:-128])
    with pytest.raises(CaseIndexError, match="rows: holds 3999 vectors, not 4000"):
        Vectors.load(path, partition, tmp_path / "rows")
    with pytest.raises(FileNotFoundError):
        Vectors.load(tmp_path / "absent")


def test_files_are_faiss_own_both_ways(collection, tmp_path):
    x, ids, partition, _ = collection
    for used in (None, partition):
        index = codes.empty(x.shape[1], used)
        codes.file(index, used, ids, x)
        with (tmp_path / "ours").open("wb") as to:
            codes.write(index, to)
        codes.faiss.write_index(index, str(tmp_path / "theirs"))
        theirs = codes.faiss.read_index(str(tmp_path / "ours"))
        assert theirs.ntotal == index.ntotal
        for path in ("ours", "theirs"):
            part = Part.read(tmp_path / path, used, None, x.shape[1])
            assert part.ids.tolist() == sorted(ids.tolist())
            if used is not None:
                for (own, filed), (held, kept) in zip(
                    codes.lists(index), codes.lists(part.index), strict=True
                ):
                    np.testing.assert_array_equal(own, held)
                    np.testing.assert_array_equal(filed, kept)


def test_few_lists_that_hold_anything_are_read(collection, tmp_path):
    """FAISS writes the sizes of mostly empty lists in another way."""
    x, ids, partition, _ = collection
    first = partition.lists_for(x)[:, 0] == 0
    index = codes.empty(x.shape[1], partition)
    codes.file(index, partition, ids[first][:5], x[first][:5])
    codes.faiss.write_index(index, str(tmp_path / "sparse"))
    assert b"sprs" in (tmp_path / "sparse").read_bytes()
    part = Part.read(tmp_path / "sparse", partition, None, x.shape[1])
    assert part.ids.tolist() == sorted(ids[first][:5].tolist())


@pytest.mark.parametrize("kind", ["flat", "lists"])
def test_a_file_that_lies_is_refused(collection, tmp_path, kind):
    """Each number in turn says something else: it is refused, or only what is held is otherwise."""
    x, ids, partition, _ = collection
    used = None if kind == "flat" else partition
    index = codes.empty(x.shape[1], used)
    codes.file(index, used, ids[:50], x[:50])
    with (tmp_path / "sound").open("wb") as to:
        codes.write(index, to)
    sound, refused = (tmp_path / "sound").read_bytes(), 0
    for at in (*range(0, 300), *range(len(sound) - 500, len(sound), 7)):
        for number in (2**63 - 1, 2**40, 3, 0):
            lie = sound[:at] + number.to_bytes(8, "little") + sound[at + 8 :]
            (tmp_path / "lie").write_bytes(lie[: len(sound)])
            try:
                part = Part.read(tmp_path / "lie", used, None, x.shape[1])
                assert len(part.ids) <= 2 * 50  # a border vector lies in two lists
            except (CaseIndexError, PartitionError):
                refused += 1
    for size in (0, 3, 40, len(sound) - 1):
        (tmp_path / "lie").write_bytes(sound[:size])
        with pytest.raises((CaseIndexError, PartitionError)):
            Part.read(tmp_path / "lie", used, None, x.shape[1])
    (tmp_path / "lie").write_bytes(sound + b"more")
    with pytest.raises(CaseIndexError, match="goes on behind its end"):
        Part.read(tmp_path / "lie", used, None, x.shape[1])
    assert refused > 150
