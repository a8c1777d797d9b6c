"""One look at a whole folder: what will be read as what, whose it is, and what is left out and why."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import indexer.discovery.colour as colour
import indexer.discovery.content as content
import indexer.discovery.sidecars as sidecars
import indexer.discovery.walk as walk
import indexer.readers as readers
from indexer.discovery.candidates import Candidate, claimed_by, fitting, make_candidates
from indexer.discovery.classes import offer_classes
from indexer.discovery.config import CONFIG
from indexer.discovery.layout import IGNORED, IMAGE, REGION, Decision, layout
from indexer.discovery.memory import Memory
from indexer.discovery.outlines import outlines_of
from indexer.discovery.people import Person
from indexer.discovery.plan import Discovery, Planned
from indexer.discovery.series import left_out
from indexer.discovery.unread import PROGRAMS, is_clutter, tell_unread
from indexer.errors import ReadError
from indexer.labels import Table, find_tables, join, mentions, renamed
from indexer.readers.formats import installed_formats
from indexer.readers.source import Source
from indexer.runtime import uncollected
from indexer.scan import Scan


@uncollected()  # what is found stays, and walking it again and again takes half of the time
def discover(
    root: Path,
    tables: Sequence[Table] = (),
    *,
    without: Collection[Path] = (),
    all_images: bool = False,
    looked: Mapping[str, str] | None = None,
) -> Discovery:
    """Find everything readable in a folder and below it, or in one file, and decide what it is.

    Parameters
    ----------
    root : Path
        A folder or a file. A file is taken on its own, even if it is called like a slice of a stack.
    tables : sequence of Table
        Of labels. Where they know whose an image is, they decide (see :func:`indexer.labels.join`); they
        never part what structure holds together.
    without : collection of Path
        Folders to leave out.
    all_images : bool
        Take maps and copies in another preparation as scans, too.
    looked : mapping, optional
        `Discovery.looked` of the last time: what has not changed is not looked into again.

    Raises
    ------
    ReadError
        If nothing below `root` could be an image.
    LabelsError
        If a table that the user named cannot be joined.
    """
    root = root.resolve() if root.is_dir() else root.parent.resolve() / root.name
    if not root.exists():
        raise ReadError(root, "does not exist", "check the path")
    memory = Memory(looked or {})
    if root.is_file():
        found = _alone(root)
        number = 1
    else:
        found = Discovery()
        files = sorted(walk.files(root, found.failures, without))
        _decide(files, root, tables, found, memory, all_images=all_images)
        number = len(files)
    found.failures = list({str(failure): failure for failure in found.failures}.values())
    found.joined = join(tables, found.sources)
    _rename(found)
    found.sources.sort(key=lambda source: source.path)
    found.unlike = colour.mixed(found.sources, memory)
    found.notes += found.unlike
    found.looked = memory.now
    _counted(found)
    if not found.sources and not found.failures:
        raise _nothing(root, found, number)
    return found


def _rename(found: Discovery) -> None:
    """Call patients as labels tables call them."""
    called = {}
    sources = []
    for source in found.sources:
        sources.append(_of_patient(source, found.joined.patients))
        called[source.patient_id] = sources[-1].patient_id
    found.sources = sources
    for planned in (found.regions, found.ignored):
        planned[:] = [replace(p, patient=called.get(p.patient or "", p.patient)) for p in planned]
    found.labels = {called.get(patient, patient): row for patient, row in found.labels.items()}


def read(what: Source | Path) -> list[Scan]:
    """The scans of a source, of a file, or of all that is to be read in a folder.

    Raises
    ------
    ReadError
        The first reason met why something cannot be read.
    LabelsError
        If a ``participants.tsv`` beside or above it cannot be understood.
    """
    if isinstance(what, Source):
        return readers.read(what)
    found = discover(what, find_tables(what)[0])
    if found.failures:
        raise found.failures[0]
    return [scan for source in found.sources for scan in readers.read(source)]


def _decide(
    files: Sequence[Path],
    root: Path,
    tables: Sequence[Table],
    found: Discovery,
    memory: Memory,
    *,
    all_images: bool,
    stacks: bool = True,
) -> None:
    """What the files below a folder are."""
    claimed, rest = claimed_by(files, found.failures)
    programs = {file.parent for file in rest if file.suffix.lower() in PROGRAMS}
    clutter = {file for file, format in claimed if format.pictures and is_clutter(file, programs)}
    found.ignored += [
        Planned((file,), IGNORED, reason="a picture of a program or a page") for file in sorted(clutter)
    ]
    claimed = [(file, format) for file, format in claimed if file not in clutter]
    named = [file for file in files if file.suffix.lower() == ".json"]
    channels, derived = sidecars.channels(named), sidecars.derivatives(named)
    candidates, series = make_candidates(
        claimed, root, mentions(tables), channels, derived, found, stacks=stacks
    )
    if stacks:
        candidates = fitting(candidates, root, found)
    above = [root.name, *(parent.name for parent in root.parents)]
    look = _looker(candidates, memory) if stacks else lambda item, images: None
    decided = layout([each.item for each in candidates], above, look, all_images=all_images)
    found.notes += decided.doubts
    found.alone += decided.alone
    tell_unread(rest, {table.path for table in tables}, found)
    _series(series, found, all_images=all_images)
    _filed(candidates, decided.decisions, found)
    offer_classes(candidates, decided.decisions, found)


def _alone(file: Path) -> Discovery:
    """One file: what it is among those beside it, which say whose it is and what outlines it.

    Whoever names a file wants it, be it a map or a copy; but no outline.
    """
    format = next((f for f in installed_formats() if f.claims(file)), None)
    if format is None:
        return Discovery()
    if format.series is not None:
        found = Discovery()
        _decide([file], file.parent, (), found, Memory(), all_images=True)
        return found
    folder = _folder(file.parent, _changed(file.parent))
    found = Discovery(failures=list(folder.failures))
    found.notes = [note for note in folder.notes if f"{CONFIG} lies above" in note]
    found.sources = [source for source in folder.sources if file in source.files]
    found.regions = [each for each in folder.regions if file in each.files]
    found.ignored = [each for each in folder.ignored if file in each.files]
    return found


def _changed(folder: Path) -> tuple[object, ...]:
    """What changes with the files of a folder and with what is said of them."""
    beside = [folder / sidecars.DATASET, *(above / CONFIG for above in (folder, *folder.parents))]
    stats = [file.stat() for file in (folder, *beside) if file.exists()]
    return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)


@functools.lru_cache(maxsize=8)
def _folder(folder: Path, _changed: tuple[object, ...]) -> Discovery:
    """The files of a folder, without those below it and without stacks; asked for once for all of them."""
    found = Discovery()
    named = [f for f in installed_formats() if f.series is None]
    files = [file for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
    claimed = [file for file in files if any(f.claims(file) for f in named) and file.is_file()]
    sides = [file for file in files if file.name == sidecars.DATASET]
    _decide([*claimed, *sides], folder, (), found, Memory(), all_images=True, stacks=False)
    return found


def _looker(candidates: Sequence[Candidate], memory: Memory):  # type: ignore[no-untyped-def]
    """A look into the files of candidates, for the layout."""

    def load(file: Path):  # type: ignore[no-untyped-def]
        format = next(f for f in installed_formats() if f.claims(file))
        scan = format.read(Source(file, format.kind, format.files(file)))[0]
        return scan.voxels, scan.affine

    def look(item: int, images: Sequence[int]) -> str | None:
        file = candidates[item].source.files[0]
        files = [candidates[i].source.files[0] for i in images[:4]]
        return memory.recall("role", [file, *files], lambda: content.looks(file, files, load))

    return look


def _filed(candidates: Sequence[Candidate], decisions: Sequence[Decision], found: Discovery) -> None:
    """Sources with the outlines that belong to them; what is left out."""
    outlines: dict[Person, list[tuple[Candidate, Decision]]] = defaultdict(list)
    taken = {source.path for source in found.sources}
    for each, decision in zip(candidates, decisions, strict=True):
        person = decision.person
        patient, visit = (person.patient, person.visit) if person else (None, None)
        if decision.role == REGION and person is not None:
            outlines[person].append((each, decision))
            found.regions.append(Planned(each.source.files, REGION, patient, visit, decision.sequence))
        elif decision.role == IGNORED:
            found.ignored.append(
                Planned(each.source.files, IGNORED, patient, visit, decision.sequence, decision.reason)
            )
    for each, decision in zip(candidates, decisions, strict=True):
        if decision.role != IMAGE or decision.person is None:
            continue
        person = decision.person
        source = replace(
            each.source,
            patient_id=person.patient,
            study_id=person.visit,
            sequence=decision.sequence,
        )
        if source.path in taken:  # a series, not the pictures that were made of it, has the name of a folder
            what = each.format.kinds[source.kind]
            reason = f"is one of the {what}, but holds another format too"
            found.failures.append(ReadError(source.path, reason, "give each a folder of its own"))
            continue
        found.sources.append(replace(source, region_files=outlines_of(each, decision, outlines[person])))


def _series(series: Sequence[Source], found: Discovery, *, all_images: bool) -> None:
    """Series by their headers: images, localizers, maps."""
    nameless = {source.study_id for source in series if source.patient_id == source.study_id}
    if len(nameless) > 1:
        found.notes.append(
            f"{len(nameless)} DICOM studies name no patient: each counts as a patient of its own"
        )
    for source in series:
        reason, derived = left_out(source)
        if reason is not None and not (derived and all_images):
            found.ignored.append(
                Planned(source.files, IGNORED, source.patient_id, source.study_id, source.sequence, reason)
            )
        else:
            found.sources.append(source)


def _of_patient(source: Source, patients: Mapping[Path, str]) -> Source:
    """The source with the patient that a labels table says it is of."""
    patient = patients.get(source.path)
    if patient is None:
        return source
    return replace(source, patient_id=patient, study_id=renamed(source.study_id, source.patient_id, patient))


def _counted(found: Discovery) -> None:
    kinds = {kind: name for format in installed_formats() for kind, name in format.kinds.items()}
    counts = Counter(kinds[source.kind] for source in found.sources)
    taken = {name: counts[name] for name in dict.fromkeys(kinds.values()) if counts[name]}
    ignored = found.taken.pop("ignored files", 0) + sum(len(each.files) for each in found.ignored)
    if found.regions:
        taken["region files"] = len(found.regions)
    if ignored:
        taken["ignored files"] = ignored
    found.taken = taken


def _nothing(root: Path, found: Discovery, files: int) -> ReadError:
    what = f"holds no image among its {files} files" if files else "is empty"
    if root.is_file():
        what = "is not an image of a known format"
        if found.regions or found.ignored:
            reason = found.ignored[0].reason if found.ignored else "a region"
            return ReadError(root, f"is {reason}, no scan", "give its image")
    return ReadError(root, what, "give NIfTI, DICOM, PNG, JPEG, TIFF or WebP files")
