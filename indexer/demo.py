"""A small synthetic graded cohort: brain-like phantoms whose lesion follows the WHO grade.

The phantoms let anyone try the engine without a patient's data. They are drawn, not measured: the
anatomy is a handful of ellipsoids, tubes and noise, in millimetres around the anterior commissure.
Nothing learned from them says anything about real tumours.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation
from scipy.special import expit

from indexer.errors import CbirError
from indexer.files import ASIDE, written_whole

Field = NDArray[Any]

SHAPE = (128, 144, 32)
SPACING = (1.5, 1.5, 5.0)
CENTRE = (0.0, -17.0, 8.0)
MARK = "SYNTHETIC images written by cbir demo"
DESCRIPTION = "SYNTHETIC phantom by cbir demo, not a patient"
README = f"""{MARK}

No patient is behind any file here: every image is drawn by a program, and every WHO grade is the one
the drawing was made for. The files show how cbir works; accuracy on them means nothing.

A folder a patient: NAME_t1ce.nii.gz, NAME_flair.nii.gz, and the lesion in NAME_seg.nii.gz (1 necrosis,
2 oedema or infiltration, 4 enhancing). participants.tsv holds the labels.
"""

TUMOUR = {2: "astrocytoma", 3: "astrocytoma", 4: "glioblastoma"}

INTENSITY = {
    "t1ce": {"white": 300, "grey": 236, "csf": 75, "oedema": 232, "tumour": 205, "necrosis": 105}
    | {"enhancing": 470, "vessel": 450},
    "flair": {"white": 196, "grey": 240, "csf": 45, "oedema": 372, "tumour": 345, "necrosis": 175}
    | {"enhancing": 318, "vessel": 110},
}
"""Signal of each tissue in each sequence, in arbitrary units."""


@dataclass(frozen=True)
class Cohort:
    """What :func:`write_cohort` wrote.

    Attributes
    ----------
    folder : Path
        A folder a patient, and ``participants.tsv``.
    grades : dict
        WHO grade of every patient.
    """

    folder: Path
    grades: dict[str, int]


def write_cohort(folder: Path, patients: int = 24, seed: int = 0) -> Cohort:
    """Write a cohort into `folder`.

    The same arguments give the same files, byte for byte; files that are already right stay
    untouched, so that a second run leaves nothing new to index.

    Parameters
    ----------
    folder : Path
        New, empty, or the folder of an earlier demo.
    patients : int
        Grades 2, 3 and 4 are dealt out evenly.
    seed : int
        Another seed draws other patients with other names: new ones to ask about.

    Raises
    ------
    CbirError
        If `patients` is less than 1, or if `folder` holds anything but an earlier demo or cannot
        be written.
    """
    if patients < 1:
        raise CbirError(folder, f"a cohort of {patients} patients", "ask for at least 1")
    dealt = np.random.default_rng(seed).permutation(np.arange(patients) % 3 + 2)
    prefix = f"SYNTH-{seed}" if seed else "SYNTH"
    grades = {f"{prefix}-{i + 1:03d}": int(grade) for i, grade in enumerate(dealt)}
    try:
        _claim(folder)
        written = set()
        for number, (name, grade) in enumerate(grades.items()):
            images, seg = phantom(np.random.default_rng([seed, number]), grade)
            drawn: dict[str, NDArray[Any]] = {**images, "seg": seg}
            for suffix, voxels in drawn.items():
                written.add(_write(folder / name / f"{name}_{suffix}.nii.gz", _nifti(voxels)))
        rows = [f"{name}\t{TUMOUR[grade]}\t{grade}\tyes\n" for name, grade in grades.items()]
        table = "participant_id\ttumour\twho_grade\tsynthetic\n" + "".join(rows)
        _write(folder / "participants.tsv", table.encode())
        for stale in set(folder.glob("SYNTH-*/SYNTH-*.nii.gz")) - written:
            stale.unlink()
            if not any(stale.parent.iterdir()):
                stale.parent.rmdir()
    except OSError as error:
        raise CbirError(folder, error.strerror or str(error), "choose another folder") from error
    return Cohort(folder, grades)


def _claim(folder: Path) -> None:
    """Make `folder` a demo folder, or refuse one that holds something else."""
    readme = folder / "README.txt"
    begun = {f"{readme.name}.0{ASIDE}"}  # one that was ended at once
    if folder.is_dir() and {path.name for path in folder.iterdir()} - begun:
        # the readme is written first, so that an interrupted demo is still known as one
        if not readme.is_file() or not readme.read_bytes().startswith(MARK.encode()):
            raise CbirError(folder, "not empty and not a demo of cbir", "name a new folder")
    elif folder.exists() and not folder.is_dir():
        raise CbirError(folder, "a file, not a folder", "name a new folder")
    _write(readme, README.encode())


def _write(path: Path, data: bytes) -> Path:
    if not path.is_file() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as aside:
            aside.write_bytes(data)
    return path


def _nifti(voxels: NDArray[Any]) -> bytes:
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = np.array(CENTRE) - (np.array(SHAPE) - 1) / 2 * SPACING
    image = nibabel.Nifti1Image(voxels, affine)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    image.header["descrip"] = DESCRIPTION
    return gzip.compress(image.to_bytes(), 6, mtime=0)


# --- the drawing: points have shape (3, …), distances are in mm and negative inside ---------------

VAULT = ((0, -17, 14), (68, 86, 65))
TEMPORAL = ((41, -14, -20), (25, 50, 27))
BRAINSTEM = ((0, -28, -40), (15, 13, 44))
NUCLEI = (((14, 14, 6), (5, 10, 11)), ((27, 3, 3), (6, 17, 12)), ((11, -18, 6), (9, 14, 9)))


def phantom(rng: np.random.Generator, grade: int) -> tuple[dict[str, NDArray[np.int16]], NDArray[np.uint8]]:
    """One patient: a skull-stripped brain with a lesion of the grade.

    Parameters
    ----------
    rng : Generator
        Decides anatomy, lesion, position in the scanner and noise.
    grade : {2, 3, 4}
        2: diffuse, bright on FLAIR, as good as no enhancement. 3: larger, patches of enhancement.
        4: an enhancing ring around necrosis, with wide oedema. The grades overlap: one in six is
        drawn with less (3), more (2) or less orderly (4) enhancement than its grade promises.

    Returns
    -------
    images : dict of str to ndarray, shape `SHAPE`
        Sequence to voxels on a RAS+ grid of `SPACING` mm; 0 outside the brain.
    seg : ndarray, shape `SHAPE`
        1 necrosis, 2 oedema or infiltration, 4 enhancing (the BraTS codes).
    """
    axes = [c + (np.arange(n) - (n - 1) / 2) * s for c, n, s in zip(CENTRE, SHAPE, SPACING, strict=True)]
    middle = _point(CENTRE)
    grid = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1)
    turn = Rotation.from_euler("zyx", rng.normal(0, (4, 2, 2)), degrees=True).as_matrix()
    size = rng.uniform(0.89, 0.97) * rng.uniform(0.98, 1.02, (3, 1))
    place = (turn @ (grid - middle - rng.normal(0, 2, (3, 1))) / size + middle).astype(np.float32)
    outline = np.minimum(_cerebrum(place), np.minimum(_cerebellum(place), _ellipsoid(place, BRAINSTEM)))
    inside = (outline < 1.6).reshape(SHAPE)
    place = place[:, inside.ravel()]

    centre = np.array([rng.choice([-1, 1]) * rng.uniform(22, 44), rng.uniform(-58, 30), rng.uniform(0, 42)])
    radius = rng.uniform(*{2: (16, 24), 3: (20, 30), 4: (20, 30)}[grade])
    tissue = _anatomy(rng, place, inside, centre, radius * rng.uniform(0.8, 1.2))
    _add_lesion(rng, tissue, place, inside, centre, radius, grade)

    bias = np.exp(rng.normal(0, 0.1, 3) @ (place - middle) / 100)
    images = {}
    for sequence, signal in INTENSITY.items():
        clean = np.zeros(SHAPE)
        clean[inside] = bias * sum(signal[name] * rng.normal(1, 0.03) * w for name, w in tissue.items())
        clean = gaussian_filter(clean, (0.45, 0.45, 0)) * rng.uniform(0.8, 1.3)
        # the magnitude of a complex signal: Rician noise
        noisy = np.hypot(clean + rng.normal(0, 8, SHAPE), rng.normal(0, 8, SHAPE))
        images[sequence] = np.where(inside, np.rint(noisy), 0).astype(np.int16)
    lesion = sum(tissue[name] for name in ("oedema", "tumour", "enhancing", "necrosis"))
    seg = np.zeros(SHAPE, np.uint8)
    seg[inside] = np.select([tissue["necrosis"] > 0.5, tissue["enhancing"] > 0.5, lesion > 0.5], [1, 4, 2])
    return images, seg


def _anatomy(
    rng: np.random.Generator,
    place: Field,
    inside: NDArray[np.bool_],
    centre: NDArray[np.float64],
    push: float,
) -> dict[str, Field]:
    """Share of each tissue at each place inside the brain."""
    cerebrum, cerebellum = _cerebrum(place), _cerebellum(place)
    stem = _ellipsoid(place, BRAINSTEM)
    depth = -np.minimum(_ellipsoid(_egg(place), VAULT), _ellipsoid(_egg(place), TEMPORAL))
    own = cerebrum < np.minimum(cerebellum, stem) + 1
    fold, other = (_sheet(_radial(_noise(rng, 3.8)))[inside] for _ in range(2))

    # the lesion pushes what lies around it away, but not the skull
    offset = place - _point(centre)
    pull = 0.28 * np.exp(-np.sum(offset**2, 0) / (2 * (1.3 * push) ** 2))
    x, y, z = moved = place - pull * offset
    half = np.abs(moved, where=[[True], [False], [False]], out=moved.copy())

    fissure = np.abs(x) - 0.5 - 1.3 * expit((6 - depth) / 2)
    fissure = np.maximum(fissure, 1.5 * (20 + 0.12 * np.abs(y + 10) - z) * (np.abs(y + 17) < 52))
    # it climbs towards the back
    climbing = z + 0.5 * y + 2.5 * _noise(rng, 6)[inside]
    sylvian = _ellipsoid(np.stack([half[0], y, climbing]), ((50, -4, 0), (14, 25, 1.6)))
    sulcus = np.where(depth < 22, fold - 0.9 + depth / 24, 9)
    cleft = np.where(own, np.minimum(np.minimum(fissure, sylvian), sulcus), 9)
    ventricle = _ventricles(half, rng.uniform(0.75, 1.35))
    fourth = _ellipsoid(half, ((0, -46, -30), (7, 5, 10)))
    cistern = _ellipsoid(half, ((0, 3, -17), (10, 6, 6)))
    ambient = np.where((z < -2) & (y < -20), np.abs(stem - 1) - 0.6, 9)
    tentorium = np.where(cerebrum < 3, np.abs(cerebellum - 1) - 1.2, 9)

    tissue = {name: np.zeros_like(x) for name in INTENSITY["t1ce"]}
    tissue["white"] += 1
    _paint(tissue, "grey", expit((3.0 - np.minimum(depth, cleft)) / 0.5) * own)
    for nucleus in NUCLEI:
        _paint(tissue, "grey", 0.85 * expit(-_ellipsoid(half, nucleus) / 0.8))
    folia = 0.5 + 0.3 * np.cos(2 * np.pi * (cerebellum + 1.5 * _noise(rng, 6)[inside]) / 5)
    _paint(tissue, "grey", folia * expit((13 + cerebellum) / 2) * ~own * (stem > 0))
    outside = np.minimum(cerebrum, np.minimum(cerebellum, stem)) - 0.3
    for hollow in (cleft, ventricle, fourth, cistern, ambient, tentorium, -outside):
        _paint(tissue, "csf", expit(-hollow / 0.5))

    here = (depth > -2) & (depth < 14) & own
    _paint(tissue, "vessel", expit((0.9 - np.hypot(fold, other)) / 0.3) * here)
    plexus = np.maximum(ventricle + 1.5, _ellipsoid(half, ((22, -38, 13), (9, 12, 6))))
    _paint(tissue, "vessel", 0.8 * expit(-plexus / 0.8) * expit(3 * _noise(rng, 2)[inside]))
    sinus = np.hypot(x, np.minimum(depth, 20) - 1.5) - 2.2
    _paint(tissue, "vessel", 0.9 * expit(-sinus / 0.7) * ((z > 20) | (y < -80)))
    _paint(tissue, "vessel", 0.35 * expit((0.4 - np.abs(x)) / 0.4) * (fissure < 0) * (depth < 22))
    return tissue


def _add_lesion(
    rng: np.random.Generator,
    tissue: dict[str, Field],
    place: Field,
    inside: NDArray[np.bool_],
    centre: NDArray[np.float64],
    radius: float,
    grade: int,
) -> None:
    """Paint a lesion of the grade into the tissue shares."""
    stretch = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix() * rng.uniform(0.85, 1.2, 3)
    reach = _length(stretch.T.astype(np.float32) @ (place - _point(centre)))
    rough, fine = _noise(rng, 8)[inside], _noise(rng, 3.5)[inside]
    solid = 1 - tissue["csf"] - 0.8 * tissue["vessel"]
    unusual = rng.random() < 1 / 6
    margin = {2: rng.uniform(0, 4), 3: rng.uniform(4, 12), 4: rng.uniform(9, 22)}[grade]
    spread = expit((radius + margin + 5 * rough + 2 * fine - reach) / 2.5)
    _paint(tissue, "oedema", spread * solid * np.clip(tissue["white"] + 0.15, 0, 1))
    bulk = radius - reach + 0.16 * radius * rough
    _paint(tissue, "tumour", rng.uniform(0.75, 0.95) * expit(bulk / {2: 3.0, 3: 2.0, 4: 1.2}[grade]) * solid)
    if grade == 4:
        wall = rng.uniform(3.5, 6) * np.exp(0.45 * _noise(rng, 5)[inside]) + (5 if unusual else 0)
        _paint(tissue, "necrosis", (0.5 + 0.5 * expit(rough + 2 * fine + 1)) * expit((bulk - wall) / 0.8))
        shell = expit((bulk - 0.5) / 0.8) * expit((wall - bulk) / 0.8)
        _paint(tissue, "enhancing", rng.uniform(0.7, 1) * shell * expit((fine + 1.5) / 0.3) * solid)
    elif (grade == 3) != unusual:
        amount, cut = (rng.uniform(0.55, 0.95), rng.uniform(0.4, 1.0)) if grade == 3 else (0.25, 1.6)
        spots = expit((fine - cut) / 0.2) * expit((bulk - 0.3 * radius) / 1.5)
        _paint(tissue, "enhancing", amount * spots * solid)


def _egg(place: Field) -> Field:
    """One half for both, narrower in front."""
    x, y, z = place
    return np.stack([np.abs(x) * (1 + 0.0016 * (y + 17)), y, z])


def _cerebrum(place: Field) -> Field:
    egg = _egg(place)
    base = np.maximum(_ellipsoid(egg, VAULT), (-22 - place[2]) * 0.9)
    temporal = _ellipsoid(egg, TEMPORAL)
    # rounded over 10 mm where they meet
    share = np.clip(0.5 + (temporal - base) / 20, 0, 1)
    joined: Field = temporal + (base - temporal) * share - 10 * share * (1 - share)
    return joined


def _cerebellum(place: Field) -> Field:
    return _ellipsoid(_egg(place), ((18, -64, -36), (34, 30, 24)))


def _ventricles(half: Field, width: float) -> Field:
    """Distance to the lateral and third ventricles."""
    path = [((11, 32, 2), 4.0), ((8, 6, 20), 5.5), ((13, -24, 22), 5.5), ((25, -44, 11), 7.0)]
    tubes = [*pairwise(path)]
    tubes += [(path[3], ((19, -66, 6), 3.0)), (path[3], ((33, -20, -13), 2.5))]
    distance = _ellipsoid(half, ((0, -10, -1), (2.6 * width, 15, 9)))
    for (start, thick), (end, thin) in tubes:
        origin, along = _point(start), _point(end) - _point(start)
        t = np.clip(np.sum(along * (half - origin), 0) / np.sum(along**2), 0, 1)
        away = _length(half - origin - t * along)
        distance = np.minimum(distance, away - width * (thick + t * (thin - thick)))
    # a thin wall, the septum, parts left from right
    return np.where(half[2] > 4, np.maximum(distance, 1.0 - half[0]), distance)


def _ellipsoid(place: Field, form: tuple[tuple[float, ...], tuple[float, ...]]) -> Field:
    """Distance to an ellipsoid of centre and radii, exact to first order at its surface."""
    centre, radii = (_point(values) for values in form)
    scaled = (place - centre) / radii
    length, slope = _length(scaled), _length(scaled / radii)
    distance: Field = length * (length - 1) / np.maximum(slope, 1e-6)
    return distance


def _length(vectors: Field) -> Field:
    length: Field = np.sqrt(np.einsum("i...,i...->...", vectors, vectors))
    return length


def _point(values: Any) -> Field:
    """Three numbers as a column, to be added to points."""
    return np.asarray(values, np.float32).reshape(3, 1)


def _noise(rng: np.random.Generator, sigma: float) -> Field:
    """Noise on the grid of mean 0 and variance 1, smooth over `sigma` mm."""
    rough = rng.standard_normal(SHAPE, np.float32)
    noise: Field = gaussian_filter(rough, np.divide(sigma, SPACING), mode="wrap", truncate=3)
    noise = (noise - noise.mean()) / noise.std()
    return noise


def _radial(noise: Field) -> Field:
    """`noise` drawn out along the radii of the vault, as sulci are."""
    (centre, radii), spacing, shape = map(_point, VAULT), _point(SPACING), _point(SHAPE)
    index = np.indices(SHAPE, np.float32).reshape(3, -1)
    middle = (centre - _point(CENTRE)) / spacing + (shape - 1) / 2
    arm = index - middle
    target = middle + arm * (0.5 / np.maximum(_length(arm * spacing / radii), 0.05) + 0.5)
    drawn: Field = map_coordinates(noise, target, order=1, mode="nearest")
    return drawn.reshape(SHAPE)


def _sheet(noise: Field) -> Field:
    """Distance to the surface where `noise` is 0, to first order."""
    slope = _length(np.stack([np.gradient(noise, step, axis=i) for i, step in enumerate(SPACING)]))
    return np.abs(noise) / np.maximum(slope, 1e-3)


def _paint(tissue: dict[str, Field], name: str, weight: Field) -> None:
    """Give `weight` of each voxel to one tissue; the others keep their shares of the rest."""
    for share in tissue.values():
        share *= 1 - weight
    tissue[name] += weight
