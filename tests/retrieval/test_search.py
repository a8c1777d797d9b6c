from __future__ import annotations

import threading
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from cbir import Index, open_index
from indexer.case_index import CaseIndex
from indexer.discovery import read
from indexer.errors import EncoderError, QueryError, ReadError
from indexer.ingest import ingest
from indexer.labels import load_tables
from indexer.policy import SearchPolicy
from indexer.preprocess import Preprocessing, prepared, with_region
from indexer.sequences import COMPOSITE
from retrieval.crossmatch import CrossMatch
from retrieval.ranking import Ranking
from retrieval.search import NO_LESION, _healthy
from tests.support.encoders import TinyAnalyser, TinyEncoder
from tests.support.images import head_plane, phantom, write_nifti


@pytest.fixture
def make(tmp_path, tiny):
    """Index a folder with the tiny encoder and open it."""
    opened = []

    def make(root, folder="index", keep_ids=True):
        case_index = CaseIndex.create(tmp_path / folder, tiny, keep_ids=keep_ids)
        ingest(case_index, [root], tiny)
        opened.append(Index(case_index, tiny))
        return opened[-1]

    yield make
    for index in opened:
        index.close()


def brute_force(index, path, tiny, view=0):
    """Scores of all cases for a file, from the definition, without any of the search's code."""
    contents = index.case_index.catalog.contents()
    vectors = index.case_index.catalog.embeddings(contents.slice_ids)
    scores: dict[str, list[float]] = {}
    for scan in read(path):
        ready = prepared(scan, Preprocessing(tiny.size))
        rows = ready.views == view
        queries, weights = tiny.encode(ready.pixels[rows]), ready.weights[rows]
        for c, case in enumerate(contents.case_ids):
            of_case = [
                i
                for i in range(len(vectors))
                if contents.scan_case[contents.slice_scan[i]] == c
                and contents.scan_sequence[contents.slice_scan[i]] == scan.sequence
                and contents.slice_view[i] == view
            ]
            if of_case:
                if len(queries) == 1:
                    score = (queries @ vectors[of_case].T).max()
                else:
                    q, c = weights @ queries, contents.slice_weight[of_case] @ vectors[of_case]
                    score = q @ c / np.linalg.norm(q) / np.linalg.norm(c)
                scores.setdefault(case, []).append(float(score))
    return {case: np.mean(s) for case, s in scores.items()}


@pytest.mark.both
@pytest.mark.parametrize("approximate", [False, True])
def test_scores_are_those_of_the_definition(make, cohort, tiny, tmp_path, approximate):
    index = make(cohort(9, ("t1ce", "flair")))
    if approximate:
        index = Index(CaseIndex.open(index.case_index.folder, SearchPolicy(exact_below=0)), tiny)
    query = write_nifti(tmp_path / "new" / "new_t1ce.nii.gz", phantom(500, 4))
    answer = index.query(query, k=9, by="similarity")
    expected = sorted(brute_force(index, query, tiny).items(), key=lambda item: -item[1])
    assert [h.case_id for h in answer.hits] == [case for case, _ in expected]
    np.testing.assert_allclose([h.score for h in answer.hits], [s for _, s in expected], atol=1e-5)
    assert [h.rank for h in answer.hits] == list(range(1, 10))
    assert all(h.sequence == h.query_sequence == "t1ce" for h in answer.hits)


@pytest.mark.both
def test_several_sequences_are_matched_apart_and_fused(make, cohort, tiny, tmp_path):
    index = make(cohort(6, ("t1ce", "flair")))
    for s, sequence in enumerate(("t1ce", "flair")):
        write_nifti(tmp_path / "new" / f"new_{sequence}.nii.gz", phantom(500 + s, 4))
    answer = index.query(tmp_path / "new", k=6)
    expected = brute_force(index, tmp_path / "new", tiny)
    for hit in answer.hits:
        assert hit.score == pytest.approx(expected[hit.case_id], abs=1e-5)
        assert hit.sequence == hit.query_sequence
        assert hit.query_sequence in hit.query_source
    assert answer.query.sequence in ("t1ce+flair", "flair+t1ce")


def test_the_shown_pair_is_the_most_telling_one(make, cohort, tiny, tmp_path):
    index = make(cohort(4))
    query = write_nifti(tmp_path / "new_t1ce.nii.gz", phantom(500, 4))
    ready = prepared(read(query)[0], Preprocessing(tiny.size))
    queries = dict(zip(ready.positions.tolist(), tiny.encode(ready.pixels), strict=True))
    weight = dict(zip(ready.positions.tolist(), ready.weights.tolist(), strict=True))
    contents = index.case_index.catalog.contents()
    vectors = index.case_index.catalog.embeddings(contents.slice_ids)
    for hit in index.query(query, k=4).hits:
        of_case = [
            i for i in range(len(vectors)) if contents.scan_source[contents.slice_scan[i]] == hit.source
        ]
        telling = {
            (q, int(contents.slice_position[i])): weight[q] * float(queries[q] @ vectors[i])
            for q in queries
            for i in of_case
        }
        assert telling[hit.query_slice, hit.slice] == pytest.approx(max(telling.values()), abs=1e-6)


def test_an_indexed_file_finds_itself_and_has_no_vote(make, cohort):
    root = cohort(6)
    index = make(root)
    answer = index.query(root / "P-03" / "P-03_t1ce.nii.gz", k=3)
    assert answer.hits[0].case_id == "P-03"
    assert answer.hits[0].score == pytest.approx(1)
    assert answer.hits[0].slice == answer.hits[0].query_slice
    assert "P-03" in answer.notes[0]
    assert sum(answer.evidence["who_grade"].prior.values()) == pytest.approx(1)
    assert answer.evidence["who_grade"].prior["2"] == pytest.approx(1 / 5)  # P-00 of the five others


def test_exclude_patient_takes_the_id_of_the_files_or_of_the_index(make, cohort):
    root = cohort(4)
    index = make(root, keep_ids=False)
    file = root / "P-03" / "P-03_t1ce.nii.gz"
    own = index.query(file).hits[0].patient_id
    assert own != "P-03"
    for name in ("P-03", own):
        assert own not in [h.patient_id for h in index.query(file, exclude_patient=name).hits]


@pytest.mark.both
def test_where_keeps_only_matching_cases_and_leaves_the_vote_alone(make, cohort, tmp_path):
    index = make(cohort(9))
    query = write_nifti(tmp_path / "new_t1ce.nii.gz", phantom(500, 4))
    answer = index.query(query, where={"who_grade": "3"})
    assert [h.labels["who_grade"] for h in answer.hits] == ["3", "3", "3"]
    assert answer.evidence == index.query(query).evidence
    with pytest.raises(QueryError, match="who_grade=9.*2, 3, 4"):
        index.query(query, where={"who_grade": "9"})
    with pytest.raises(QueryError, match="there is no such label.*who_grade"):
        index.query(query, where={"colour": "red"})


def test_hits_are_distinct_patients_unless_all_cases_are_asked_for(make, tmp_path):
    for session, seed in (("ses-1", 1), ("ses-2", 2)):
        write_nifti(tmp_path / f"mri/sub-01/{session}/sub-01_{session}_T1w.nii.gz", phantom(seed))
    write_nifti(tmp_path / "mri/sub-02/ses-1/sub-02_ses-1_T1w.nii.gz", phantom(3))
    index = make(tmp_path / "mri")
    query = write_nifti(tmp_path / "new_t1.nii.gz", phantom(9))
    assert len(index.query(query).hits) == 2
    assert len(index.query(query, all_cases=True).hits) == 3


@pytest.mark.both
def test_like_asks_with_a_case_and_never_answers_with_its_patient(make, cohort, tiny):
    root = cohort(5)
    index = make(root)
    answer = index.like("P-02", k=5)
    assert "P-02" not in [h.case_id for h in answer.hits]
    expected = brute_force(index, root / "P-02", tiny)
    for hit in answer.hits:
        assert hit.score == pytest.approx(expected[hit.case_id], abs=1e-5)
    with pytest.raises(QueryError, match="no such case"):
        index.like("P-99")


@pytest.mark.both
def test_a_region_is_compared_with_the_regions_of_outlined_cases(make, tmp_path, tiny):
    rng = np.random.default_rng(0)
    for i in range(5):
        volume = phantom(i, 4)
        write_nifti(tmp_path / f"mri/P-{i}/P-{i}_t1.nii.gz", volume)
        mask = np.zeros(volume.shape, np.float32)
        x, y = rng.integers(6, 12, 2)
        mask[x : x + 6, y : y + 6, 4:6] = 1
        write_nifti(tmp_path / f"mri/P-{i}/P-{i}_seg.nii.gz", mask)
    index = make(tmp_path / "mri")
    source = tmp_path / "mri/P-3/P-3_t1.nii.gz"
    answer = index.query(source, k=1, mask=tmp_path / "mri/P-3/P-3_seg.nii.gz")
    assert answer.hits[0].case_id == "P-3"
    assert answer.hits[0].score == pytest.approx(1, abs=1e-4)
    assert answer.query.slices == 2
    expected = brute_force(index, source, tiny, view=1)
    everyone = index.query(source, mask=tmp_path / "mri/P-3/P-3_seg.nii.gz").hits
    for hit in everyone:
        assert hit.score == pytest.approx(expected[hit.case_id], abs=1e-4)


def test_a_box_looks_at_the_box_only(make, tmp_path):
    flat = np.full((64, 64), 60, np.uint8)
    rng = np.random.default_rng(1)
    for i in range(4):
        image = flat + rng.integers(0, 3, flat.shape).astype(np.uint8)
        image[20:36, 20:36] = rng.integers(0, 255, (16, 16))
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"images/{'abcd'[i]}.png")
    index = make(tmp_path / "images")
    query = tmp_path / "images/c.png"
    answer = index.query(query, region=(20, 20, 36, 36))
    assert answer.query.region == (20, 20, 36, 36)
    assert answer.query.region_slice == 0
    assert any("no outlined regions" in note for note in answer.notes)
    for box in ((20, 20, 200, 36), (30, 30, 30, 40), (-1, 0, 5, 5)):
        with pytest.raises(QueryError):
            index.query(query, region=box)


def test_a_sequence_the_index_lacks_is_compared_with_all_and_said(make, cohort, tmp_path):
    index = make(cohort(3, ("t1ce",)))
    answer = index.query(write_nifti(tmp_path / "new_t2.nii.gz", phantom(7)))
    assert len(answer.hits) == 3
    assert any("no other case has t2" in note for note in answer.notes)


def test_a_folder_of_several_patients_is_no_query(make, cohort):
    root = cohort(3)
    index = make(root)
    with pytest.raises(QueryError, match="3 patients"):
        index.query(root)


def test_an_unreadable_query_is_one_line(make, cohort, tmp_path):
    index = make(cohort(2))
    (tmp_path / "new.nii.gz").write_text("no image")
    with pytest.raises(ReadError, match=r"new\.nii\.gz"):
        index.query(tmp_path / "new.nii.gz")


def test_another_encoder_is_refused_at_the_query(make, cohort, tiny, tmp_path):
    index = make(cohort(2))
    tiny.version = "2"
    with pytest.raises(EncoderError, match="tiny"):
        index.query(write_nifti(tmp_path / "new_t1ce.nii.gz", phantom(7)))


@pytest.mark.both
def test_an_open_index_keeps_its_state_until_refreshed(make, cohort, tiny, tmp_path):
    root = cohort(3)
    index = make(root)
    query = write_nifti(tmp_path / "new_t1ce.nii.gz", phantom(7))
    write_nifti(root / "P-50" / "P-50_t1ce.nii.gz", phantom(7))
    with CaseIndex.open(index.case_index.folder) as writer:
        ingest(writer, [root], tiny)
    assert len(index.query(query).hits) == 3
    index.refresh()
    assert index.query(query).hits[0].case_id == "P-50"


@pytest.mark.both
def test_threads_may_share_an_index(make, cohort, tmp_path):
    index = make(cohort(6))
    queries = [write_nifti(tmp_path / f"new{i}_t1ce.nii.gz", phantom(100 + i)) for i in range(4)]
    alone = [index.query(q) for q in queries]
    found: dict[int, object] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.__setitem__(i, index.query(queries[i % 4])))
        for i in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(12)] == [alone[i % 4] for i in range(12)]


def test_orientation_of_the_file_does_not_matter(make, cohort, tmp_path):
    root = cohort(4)
    index = make(root)
    image = nib.load(root / "P-02" / "P-02_t1ce.nii.gz")
    turned = image.as_reoriented(nib.orientations.axcodes2ornt(("P", "S", "L")))
    nib.save(turned, tmp_path / "turned_t1ce.nii.gz")
    answer = index.query(tmp_path / "turned_t1ce.nii.gz")
    assert answer.hits[0].case_id == "P-02"
    assert answer.hits[0].score == pytest.approx(1)


def test_excluded_patients_leave_no_trace_and_unknown_ones_are_noted(make, cohort, tmp_path):
    index = make(cohort(6))
    query = write_nifti(tmp_path / "new_t1ce.nii.gz", phantom(500, 4))
    answer = index.query(query, exclude_patient=["P-00", "P-03", "typo"])
    assert {h.patient_id for h in answer.hits} == {"P-01", "P-02", "P-04", "P-05"}
    assert set(answer.evidence["who_grade"].prior) == {"3", "4"}  # the two of grade 2 are out
    assert set(answer.evidence["who_grade"].probabilities) == {"3", "4"}
    assert [index.has_patient(name) for name in ("P-00", "typo")] == [True, False]


def test_values_of_labels_may_be_numbers(make, cohort, tmp_path):
    index = make(cohort(6))
    query = write_nifti(tmp_path / "new_t1ce.nii.gz", phantom(500, 4))
    assert len(index.query(query, where={"who_grade": 4}).hits) == 2


def test_an_encoder_that_looks_takes_the_region_as_a_box(tmp_path, looking, cohort):
    root = cohort(4)
    with CaseIndex.create(tmp_path / "index", looking, keep_ids=True) as made:
        ingest(made, [root], looking)
    path = root / "P-02" / "P-02_t1ce.nii.gz"
    with open_index(tmp_path / "index", looking) as index:
        (scan,) = read(path)
        boxed = with_region(scan, (8, 8, 16, 20), 5)
        ready = prepared(boxed, Preprocessing.of(looking))
        vector = looking.analyse(ready.pixels[-1:], ready.boxes[-1:]).embeddings
        answer = index.query(path, region=(8, 8, 16, 20), region_slice=5)
        contents = index.contents
        stored = index.case_index.catalog.embeddings(contents.slice_ids)
        case = contents.scan_case[contents.slice_scan]
        for hit in answer.hits:
            best = (stored[case == contents.case_ids.index(hit.case_id)] @ vector[0]).max()
            assert hit.score == pytest.approx(min(best, 1), abs=1e-5)


def test_a_sequence_that_only_the_excluded_patient_has_is_compared_with_all_and_said(make, cohort, tmp_path):
    root = cohort(4)
    flair = write_nifti(root / "P-09" / "P-09_flair.nii.gz", phantom(9))
    index = make(root)
    answer = index.query(flair, exclude_patient="P-09")
    assert {hit.patient_id for hit in answer.hits} == {f"P-0{i}" for i in range(4)}
    assert any("no other case has flair" in note for note in answer.notes)


@pytest.mark.both
def test_a_large_index_is_searched_with_the_recall_asked_for(make, cohort, monkeypatch):
    index = make(cohort(40, ("t1ce",)))
    policy = SearchPolicy(exact_below=100)
    with (
        CaseIndex.open(index.case_index.folder, policy) as writer,
        writer.writing("compact"),
    ):
        writer.compact()
    case = index.contents.case_ids[3]
    exact = index.like(case, k=5)
    for recall in (0.9, 1.0):
        with open_index(index.case_index.folder, index.encoder, recall=recall, policy=policy) as opened:
            partition = opened.state.vectors.partition
            assert partition.recall == recall
            assert partition.probing(10).recall >= recall or recall == 1
            found = opened.like(case, k=5)
    assert [hit.case_id for hit in found.hits] == [hit.case_id for hit in exact.hits]


# ---- likeness --------------------------------------------------------------------------------------


def ball(radius: float, seed: int) -> np.ndarray:
    """A head with a bright ball of this radius on the left, on FLAIR."""
    rng = np.random.default_rng(seed)
    x, y, z = np.mgrid[-1:1:48j, -1:1:48j, -1:1:24j]
    head = (x**2 + y**2 + z**2 < 0.95) * (100 + rng.normal(0, 3, x.shape))
    lesion = (x + 0.4) ** 2 + y**2 + z**2 < radius**2
    return np.where(lesion, 200.0, head)


@pytest.fixture
def sizes(make, tmp_path):
    """Twelve patients with lesions of growing size; the order of sizes is none of the embeddings'."""
    for n in range(12):
        volume = ball(0.15 + 0.025 * n, n)
        path = tmp_path / "mri" / f"P-{n:02}" / f"P-{n:02}_flair.nii.gz"
        write_nifti(path, volume, spacing=(3.0, 3.0, 6.0))
    return make(tmp_path / "mri")


def test_measures_are_filed_and_tell_the_size(sizes):
    size = np.exp(sizes.state.census.lesions.measures[:, 0])
    radii = (0.15 + 0.025 * np.arange(12)) * 24 * 3.0  # the box is 48 voxels of 3 mm across
    np.testing.assert_allclose(size, 2 * radii, rtol=0.25)
    assert (np.diff(size) > 0).all()


def test_hits_are_ordered_by_class_by_appearance_and_by_both(sizes, tmp_path):
    query = write_nifti(tmp_path / "new_flair.nii.gz", ball(0.3, 99), spacing=(3.0, 3.0, 6.0))
    both, alone, looks = (sizes.query(query, k=12, by=by) for by in (None, "similarity", "appearance"))
    assert [hit.score for hit in alone.hits] == sorted((h.score for h in alone.hits), reverse=True)
    held = sizes.state.census.lesions
    asked = np.log(2 * 0.3 * 24 * 3.0)
    away = {
        name: abs(m - asked) for name, m in zip(sizes.contents.case_ids, held.measures[:, 0], strict=True)
    }
    far = [away[hit.case_id] for hit in looks.hits]
    assert np.mean(far[:4]) < np.mean(far[4:8]) < np.mean(far[8:])
    # each similarity is the same, whatever the order, and evidence too
    of = [{hit.case_id: hit.score for hit in answer.hits} for answer in (both, alone, looks)]
    assert of[0] == of[1] == of[2]
    assert both.evidence == alone.evidence == looks.evidence
    # the default by hand
    near = held.distance(held.measures[6], np.arange(12))
    like = sizes.like("P-06", k=11)
    score = {hit.case_id: hit.score for hit in sizes.like("P-06", k=11, by="similarity").hits}
    key = {f"P-{n:02}": score[f"P-{n:02}"] - Ranking().likeness * near[n] for n in range(12) if n != 6}
    assert [hit.case_id for hit in like.hits] == sorted(key, key=key.__getitem__, reverse=True)


def test_hits_say_what_agrees_and_what_differs(sizes):
    said = {hit.case_id: hit.likeness for hit in sizes.like("P-06", k=11).hits}
    assert "larger" in said["P-11"]
    assert "smaller" in said["P-00"]
    assert "similar size" in said["P-07"]
    assert all("left both" in words for words in said.values())
    assert all(hit["likeness"] == said[hit["case_id"]] for hit in sizes.like("P-06").to_dict()["hits"])


def test_an_order_that_there_is_not_is_refused(sizes):
    with pytest.raises(QueryError, match="'size' is no order of hits"):
        sizes.like("P-06", by="size")


class Blind(TinyEncoder):
    """Finds everything alike."""

    size = 128

    def encode(self, batch):
        return np.full((len(batch), self.dimension), self.dimension**-0.5, np.float32)


@pytest.fixture
def sides(tmp_path):
    """Flat images: three patients seen from three sides, and three each from one."""
    seen = {f"P-{n}": ("axial", "coronal", "sagittal") for n in range(3)}
    seen |= {"P-3": ("axial",), "P-4": ("coronal",), "P-5": ("sagittal",)}
    rows = [(f"{patient}_{name}.png", patient, name) for patient, names in seen.items() for name in names]
    for seed, (file, _, name) in enumerate(rows):
        draw(tmp_path / "flat" / file, name, seed)
    table = tmp_path / "slices.tsv"
    table.write_text("file\tparticipant_id\n" + "".join(f"{file}\t{who}\n" for file, who, _ in rows))
    with CaseIndex.create(tmp_path / "blind", Blind(), keep_ids=True) as made:
        ingest(made, [tmp_path / "flat"], Blind(), labels=load_tables(table))
    with open_index(tmp_path / "blind", Blind()) as index:
        yield index


def draw(path, name, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(head_plane(name, seed).clip(0, 255).astype(np.uint8)).save(path)
    return path


@pytest.mark.parametrize("name", ["axial", "coronal", "sagittal"])
def test_flat_images_are_shown_from_the_side_of_the_query(sides, tmp_path, name):
    query = draw(tmp_path / "new.png", name, 99)
    answer = sides.query(query, k=6)
    assert all(name in hit.scan.source for hit in answer.hits[:4])
    assert not any(name in hit.scan.source for hit in answer.hits[4:])
    assert {hit.patient_id for hit in answer.hits[4:]} <= {"P-3", "P-4", "P-5"}
    alone = sides.query(query, k=6, by="class")
    assert [hit.case_id for hit in alone.hits] == [f"P-{n}" for n in range(6)]  # all are alike
    assert {hit.score for hit in answer.hits} == {hit.score for hit in alone.hits}
    assert answer.evidence == alone.evidence


def test_a_case_that_asks_is_shown_beside_its_like(sides):
    hits = sides.like("P-4", k=5).hits
    assert {hit.patient_id for hit in hits[:3]} == {"P-0", "P-1", "P-2"}
    assert all("coronal" in hit.scan.source and "coronal" in hit.query_scan.source for hit in hits[:3])


def test_the_ranking_that_is_evaluated_is_the_one_that_is_shown(sides):
    items = CrossMatch.of(sides.case_index.snapshot())
    of = dict(zip(items.names, items.similarity(np.array([4]))[0].tolist(), strict=True))
    hits = [hit.case_id for hit in sides.like("P-4", k=5).hits]
    assert [of[case] for case in hits] == sorted((of[case] for case in hits), reverse=True)
    by_scan = CrossMatch.of(sides.case_index.snapshot(), "scan")
    scores = by_scan.similarities
    for row, name in enumerate(by_scan.names):
        first = np.argsort(-scores[row], kind="stable")[:4]
        side = name.rsplit("_", 1)[-1]
        assert all(by_scan.names[place].endswith(side) for place in first)


class Doubting(TinyAnalyser):
    """Sure of a lesion only where a whole part of a slice is as bright as can be."""

    def __init__(self, least):
        self.least_lesion = least


@pytest.mark.parametrize(
    ("least", "planes", "healthy"),
    [
        ({}, 20, False),
        ({"flat images": 1.0, "a stack": 0.05}, 20, False),
        ({"a stack": 1.0}, 20, True),
        ({"a stack": 1.0, "t1ce": 0.05}, 20, False),
        ({"a stack": 0.05, "t1ce": 1.0}, 20, True),
        ({"a stack": 0.05, "flair": 1.0, "flair + t1ce": 1.0}, 20, False),
        ({"flat images": 0.05, "a stack": 1.0}, 4, False),
        ({"flat images": 1.0}, 4, True),
    ],
)
def test_an_encoder_that_sees_no_lesion_leaves_nothing_to_vote_on(tmp_path, cohort, least, planes, healthy):
    encoder = Doubting(least)
    with CaseIndex.create(tmp_path / "index", encoder) as held:
        ingest(held, [cohort(6)], encoder)
        with Index(held, encoder) as index:
            query = write_nifti(tmp_path / "new" / "N_t1ce.nii.gz", phantom(50, 3, (24, 28, planes)))
            answer = index.query(query)
            assert answer.hits, "what is nearest is shown all the same"
            assert (NO_LESION in answer.notes) == healthy
            assert not (healthy and any("size" in word for hit in answer.hits for word in hit.likeness))
            (grade,) = answer.evidence.values()
            assert (grade.reason == NO_LESION and grade.abstain) == healthy
            marked = index.query(query, region=(4, 4, 14, 14))
            assert NO_LESION not in marked.notes, "whoever marks a lesion sees one"


@pytest.mark.parametrize(
    ("scans", "none"),
    [
        ([("t1", 20, 0.3), ("t1ce", 20, 0.1)], True),
        ([("t1", 20, 0.1), ("t1ce", 20, 0.6)], False),
        ([("t1", 20, 0.6), ("t1ce", 20, 0.6), ("flair", 20, 0.6)], True),
        ([("t1", 20, 0.3), ("t1", 4, 0.45)], False),
        ([("t1", 20, 0.3), (COMPOSITE, 20, 0.9)], True),
        ([("t1", 4, 0.3)], False),
    ],
)
def test_of_a_visit_the_scan_counts_that_shows_a_lesion_most(scans, none):
    visit = [
        SimpleNamespace(sequence=sequence, positions=np.arange(planes), lesion=chance)
        for sequence, planes, chance in scans
    ]
    limits = {"flat images": 0.2, "t1": 0.4, "t1 + t1ce": 0.5, "flair + t1": 0.8}
    assert _healthy(visit, Doubting(limits)) == none


def test_a_region_is_compared_with_whole_slices_of_cases_that_have_none(make, tmp_path):
    """Who outlines some cases alone must not get these alone."""
    for n in range(6):
        name = f"P-{n}"
        scan = phantom(n, 1.0 + n)
        write_nifti(tmp_path / "mri" / name / f"{name}_t1ce.nii.gz", scan)
        if n < 3:
            outline = np.zeros(scan.shape, np.uint8)
            outline[6:14, 6:14, 4:6] = 1
            write_nifti(tmp_path / "mri" / name / f"{name}_seg.nii.gz", outline)
    index = make(tmp_path / "mri")
    query = write_nifti(tmp_path / "new_t1ce.nii.gz", phantom(9, 5.5))
    answer = index.query(query, k=9, region=(6, 6, 14, 14), region_slice=5)
    assert {hit.case_id for hit in answer.hits} == {f"P-{n}" for n in range(6)}
    assert any(note.startswith("3 of 6 cases have no outlined regions") for note in answer.notes), (
        answer.notes
    )


def test_a_scan_that_is_there_twice_asks_once(make, tmp_path):
    for n in range(4):
        write_nifti(tmp_path / "mri" / f"P-{n}" / f"P-{n}_t1.nii.gz", phantom(n, 1.0 + n))
    index = make(tmp_path / "mri")
    once = write_nifti(tmp_path / "one" / "N_run-1_t1.nii.gz", phantom(9, 2.5))
    for run in (1, 2):
        write_nifti(tmp_path / "two" / f"N_run-{run}_t1.nii.gz", phantom(9, 2.5))
    alone, both = index.query(once, k=4), index.query(tmp_path / "two", k=4)
    assert [hit.score for hit in both.hits] == [hit.score for hit in alone.hits]
    assert both.query.slices == alone.query.slices
    (note,) = (note for note in both.notes if "shows the same as" in note)
    assert "run-2" in note


# ---- scans whose sequence nobody named -----------------------------------------------------------


@pytest.fixture
def named_and_not(make, tmp_path):
    """Two cases of two sequences each, one of T1 after contrast agent, and two whose files say nothing."""
    for n in range(3):
        write_nifti(tmp_path / "mri" / f"P-{n}" / f"P-{n}_t1ce.nii.gz", phantom(n, 1.0 + n))
        if n < 2:
            write_nifti(tmp_path / "mri" / f"P-{n}" / f"P-{n}_flair.nii.gz", phantom(50 + n, 9.0))
    for n in (3, 4):
        write_nifti(tmp_path / "mri" / f"P-{n}" / f"P-{n}.nii.gz", phantom(n, 1.0 + n))
    index = make(tmp_path / "mri")
    assert index.contents.scan_sequence.count(None) == 2
    return index


def test_a_known_sequence_meets_scans_of_an_unknown_one(named_and_not, tmp_path):
    query = write_nifti(tmp_path / "new_t1ce.nii.gz", phantom(3, 4.0))  # the very image of P-3
    hits = named_and_not.query(query, k=9).hits
    assert hits[0].case_id == "P-3"
    assert hits[0].score == pytest.approx(1, abs=1e-5)
    assert {hit.case_id for hit in hits} == {f"P-{n}" for n in range(5)}
    assert {hit.sequence for hit in hits} == {"t1ce", None}


def test_an_unknown_sequence_is_compared_with_each_of_a_case(named_and_not, tmp_path):
    """Not with the mean of a case's sequences: the image of its flair scores 1, though its T1 differs."""
    query = write_nifti(tmp_path / "new.nii.gz", phantom(51, 9.0))
    hits = named_and_not.query(query, k=9).hits
    assert hits[0].case_id == "P-1"
    assert hits[0].score == pytest.approx(1, abs=1e-5)
    assert hits[0].sequence == "flair"
    assert len(hits) == 5


@pytest.mark.both
def test_unknown_sequences_are_evaluated_as_they_are_asked(named_and_not):
    items = CrossMatch.of(named_and_not.case_index.snapshot()).unordered
    scores = items.similarities
    for row, case in enumerate(items.names):
        for hit in named_and_not.like(case, k=9).hits:
            assert scores[row, items.names.index(hit.case_id)] == pytest.approx(hit.score, abs=1e-5)
