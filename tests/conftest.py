"""Shared by all tests: a small encoder, small cohorts, and the real data where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import hypothesis
import nibabel as nib
import numpy as np
import pydicom
import pytest
from elsewhere import Run
from elsewhere import started as engine_tests
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from servers import Milvus, Postgres, missing, started

from indexer.case_index import CaseIndex
from indexer.encoder import Analysis

# machines are shared and noisy: no test is about time
hypothesis.settings.register_profile("cbir", deadline=None)
hypothesis.settings.load_profile("cbir")

REAL = Path(__file__).parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=6, help="moments at which the crash test kills a run")
    parser.addoption(
        "--elsewhere",
        action="store_true",
        help="every index that a test makes lies on a Milvus and a PostgreSQL, started for the run",
    )


@pytest.fixture(scope="session")
def servers() -> Iterator[tuple[Milvus, Postgres]]:
    """A real Milvus and a real PostgreSQL."""
    with started() as both:
        yield both


@pytest.fixture(autouse=True)
def elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``--elsewhere`` an index lies on the servers where a test does not say otherwise."""
    if request.config.getoption("--elsewhere"):
        milvus, postgres = request.getfixturevalue("servers")
        create = partial(CaseIndex.create, engine="milvus", uri=milvus.uri, catalog=postgres.url)
        monkeypatch.setattr(CaseIndex, "create", staticmethod(create))


@pytest.fixture(scope="session", autouse=True)
def engine_runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Run] | None]:
    """What goes on beside the other tests for ``test_engines.py``; None if it is not there or cannot be."""
    wanted = any(item.get_closest_marker("engines") for item in request.session.items)
    if not wanted or missing():
        yield None
        return
    with engine_tests(tmp_path_factory.mktemp("engines")) as runs:
        yield runs


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: bool(item.get_closest_marker("engines")))  # they only read reports
    if config.getoption("--elsewhere"):
        apart = {"local", "browser"}  # what a page looks like does not depend on engines
        items[:] = [item for item in items if apart.isdisjoint(m.name for m in item.iter_markers())]
    if not REAL.is_dir():
        for item in items:
            if item.get_closest_marker("real"):
                item.add_marker(pytest.mark.skip(reason="no ../shared/data beside the checkout"))


@pytest.fixture(scope="session")
def real() -> Path:
    """The real data; only for tests marked `real`."""
    return REAL


class TinyEncoder:
    """An 8 × 8 thumbnail, centred: quick, deterministic, and nearer for more similar images."""

    name = "tiny"
    dimension = 64
    version = "1"
    size = 32

    def encode(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        x = batch.reshape(len(batch), 8, 4, 8, 4).mean(axis=(2, 4), dtype=np.float32).reshape(len(batch), 64)
        x = x - x.mean(axis=1, keepdims=True) + 1e-3
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


class TinyAnalyser(TinyEncoder):
    """Looks at the region it is told, else at the brightest sixteenth; was trained on patient P-01."""

    name = "looking"

    def analyse(self, batch: NDArray[np.uint8], boxes: NDArray[np.float32] | None = None) -> Analysis:
        blocks = batch.reshape(len(batch), 4, 8, 4, 8).mean(axis=(2, 4)).reshape(len(batch), 16)
        row, column = np.divmod(blocks.argmax(1), 4)
        own = np.stack([column, row, column + 1, row + 1], 1).astype(np.float32) / 4
        where = own if boxes is None else np.where(np.isnan(boxes), own, boxes)
        seen = np.zeros_like(batch)
        for image, part, box in zip(batch, seen, (where * self.size).astype(int), strict=True):
            inside = np.s_[box[1] : box[3], box[0] : box[2]]
            part[inside] = image[inside]
        weights = (blocks.max(1) / 255).astype(np.float32)
        maps = blocks.reshape(-1, 4, 4).astype(np.float32)
        return Analysis(self.encode(seen), weights, maps, where, np.ones(len(batch), np.float32))

    def trained_on(self, patient_id: str) -> bool:
        return patient_id == "P-01"


@pytest.fixture
def tiny() -> TinyEncoder:
    return TinyEncoder()


@pytest.fixture
def looking() -> TinyAnalyser:
    return TinyAnalyser()


def phantom(seed: int, grade: int = 2, shape: tuple[int, int, int] = (24, 28, 10)) -> NDArray[np.float32]:
    """A noisy ellipsoid with a bright lesion whose size follows the grade; zero outside."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    head = sum(g**2 for g in grid) < 0.9
    centre = rng.uniform(-0.4, 0.4, 3)
    lesion = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) < (0.1 * grade) ** 2
    volume = 100 + 40 * grid[0] + rng.normal(0, 4, shape) + 120 * lesion
    return np.where(head, volume, 0).astype(np.float32)


def write_nifti(path: Path, volume: NDArray[np.float32], spacing: tuple[float, ...] = (1, 1, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, np.diag([*spacing, 1.0])), path)
    return path


def write_dicom(folder: Path, volume: NDArray[np.float32], **tags: object) -> Path:
    """An axial MR series of the volume (RAS+, 1 × 1 × 3 mm), one file a slice, without extension."""
    folder.mkdir(parents=True)
    series, study = generate_uid(), generate_uid()
    for i in range(volume.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = series, study, series
        ds.PatientID, ds.Modality, ds.InstanceNumber = "D-01", "MR", i + 1
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 3.0 * i], [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.SliceThickness = [1, 1], 3
        ds.Rows, ds.Columns = volume.shape[1], volume.shape[0]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.PixelData = volume[::-1, ::-1, i].T.clip(0).astype("<u2").tobytes()
        for name, value in tags.items():
            setattr(ds, name, value)
        pydicom.dcmwrite(folder / f"{i:03}", ds)
    return folder


@pytest.fixture
def cohort(tmp_path: Path) -> Callable[..., Path]:
    """Write a cohort of phantoms: `cohort(n)` gives its folder."""

    def write(n: int = 6, sequences: tuple[str, ...] = ("t1ce",), folder: str = "mri") -> Path:
        root = tmp_path / folder
        lines = ["participant_id\twho_grade\tsite"]
        for i in range(n):
            grade = 2 + i % 3
            lines.append(f"P-{i:02}\t{grade}\tn/a")
            for s, sequence in enumerate(sequences):
                write_nifti(root / f"P-{i:02}" / f"P-{i:02}_{sequence}.nii.gz", phantom(10 * i + s, grade))
        (root / "participants.tsv").write_text("\n".join(lines) + "\n")
        return root

    return write
