"""One look at a whole folder: what will be read as what, whose it is, and what is left out and why."""

from __future__ import annotations

import functools
import gc
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import indexer.discovery.colour as colour
import indexer.discovery.content as content
import indexer.discovery.sidecars as sidecars
import indexer.discovery.walk as walk
import indexer.readers as readers
from indexer.discovery.config import CONFIG, Config, find_config
from indexer.discovery.layout import IGNORED, IMAGE, REGION, STRUCTURAL, Decision, Item, layout
from indexer.discovery.memory import Memory
from indexer.discovery.people import Person
from indexer.discovery.roles import understood
from indexer.discovery.series import left_out
from indexer.discovery.stacks import in_order, is_stack
from indexer.discovery.tokens import split, stem
from indexer.discovery.vocabulary import CLASSES, Kind
from indexer.errors import ReadError
from indexer.labels import (
    PARTICIPANTS,
    Joined,
    Mentioned,
    Table,
    find_tables,
    join,
    mentions,
    renamed,
)
from indexer.readers.formats import Format, installed_formats
from indexer.readers.source import Source
from indexer.scan import Scan
from indexer.trust import foreign

COMPOSITE = "composite"

PROGRAMS = {".exe", ".dll", ".jar", ".js", ".css", ".inf", ".app", ".ico"}
"""Endings of files beside which pictures belong to a program or a page."""

_VAGUE = {"patient", "patients", "lesion", "lesions", "tumor", "tumour"}
_CLUTTER = {"logo", "icon", "thumb", "thumbnail", "thumbnails", "preview", "screenshot", "favicon", "banner"}

KNOWN = {
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".mgz": "FreeSurfer",
    ".mgh": "FreeSurfer",
    ".mnc": "MINC",
    ".par": "Philips PAR/REC",
    ".rec": "Philips PAR/REC",
    ".brik": "AFNI",
    ".head": "AFNI",
    ".img": "Analyze",
    ".hdr": "Analyze",
    ".bz2": "bzip2",
    ".zst": "Zstandard",
    ".mat": "MATLAB",
    ".npy": "NumPy",
    ".npz": "NumPy",
    ".h5": "HDF5",
    ".zip": "ZIP archive",
    ".tgz": "archive",
    ".tar": "archive",
    ".7z": "archive",
    ".rar": "archive",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".jp2": "JPEG 2000",
    ".svs": "whole-slide image",
    ".ima": "DICOM",
    ".v": "ECAT",
    ".pfile": "GE raw",
    ".dat": "raw data",
}
"""Endings of images and archives that are named if nothing reads them."""


@dataclass(frozen=True)
class Planned:
    """A scan, an outline, or something that is left out.

    Attributes
    ----------
    files : tuple of Path
    role : str
        ``image``, ``region``, ``ignored`` or ``composite``.
    patient, visit : str, optional
        As files name them; None of what belongs to nobody.
    sequence : str, optional
        Of several channels all, with ``+`` between them.
    reason : str, optional
        Why it is left out.
    labels : dict
    """

    files: tuple[Path, ...]
    role: str
    patient: str | None = None
    visit: str | None = None
    sequence: str | None = None
    reason: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The entry of ``cbir index --dry-run --json``."""
        return {
            "files": [str(file) for file in self.files],
            "patient": self.patient,
            "visit": self.visit or None,
            "sequence": self.sequence,
            "role": self.role,
            "reason": self.reason,
            "labels": dict(self.labels),
        }


@dataclass
class Discovery:
    """What there is to read.

    Attributes
    ----------
    sources : list of Source
        Sorted by path.
    failures : list of ReadError
        What cannot be read, as far as that shows without reading it.
    taken : dict
        How many there are of what, for a summary: ``{"NIfTI volumes": 24, "region files": 4, …}``.
    regions, ignored : list of Planned
        Outlines with their cases; what is left out, with the reason.
    labels : dict
        What class folders, and the files themselves, say of patients.
    notes : list of str
        What the user should know.
    unread : dict
        Files of known formats that nothing here reads, by ending.
    joined : Joined
        What labels tables say of the sources.
    alone : int
        Pictures that do not say whose they are: each counts as a patient of its own.
    unlike : list of str
        Those of the notes that tell of pictures whose channels are unlike.
    looked : dict
        What was seen of voxels, for the next discovery of the same root.
    """

    sources: list[Source] = field(default_factory=list)
    failures: list[ReadError] = field(default_factory=list)
    taken: dict[str, int] = field(default_factory=dict)
    regions: list[Planned] = field(default_factory=list)
    ignored: list[Planned] = field(default_factory=list)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unread: dict[str, int] = field(default_factory=dict)
    joined: Joined = field(default_factory=Joined)
    alone: int = 0
    unlike: list[str] = field(default_factory=list)
    looked: dict[str, str] = field(default_factory=dict)

    def planned(self) -> list[Planned]:
        """All of it, images first."""
        images = [
            Planned(
                source.files,
                COMPOSITE if source.kind == COMPOSITE else IMAGE,
                source.patient_id,
                source.study_id,
                "+".join(source.channels) or source.sequence,
                labels=self.labels_of(source),
            )
            for source in self.sources
        ]
        return images + self.regions + self.ignored

    def labels_of(self, source: Source) -> dict[str, str]:
        """What tables and the class folder say of a source's visit."""
        return self.labels.get(source.patient_id, {}) | self.joined.labels.of_case(
            source.patient_id, source.study_id
        )


@dataclass
class _Found:
    """A file, stack or series that may be an image."""

    format: Format
    source: Source
    item: Item


@contextmanager
def _uncollected() -> Iterator[None]:
    """No collection of cycles: what is found stays, and walking it again and again takes half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_uncollected()
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
    claimed, rest = _claimed(files, found.failures)
    programs = {file.parent for file in rest if file.suffix.lower() in PROGRAMS}
    clutter = {file for file, format in claimed if format.pictures and _is_clutter(file, programs)}
    found.ignored += [
        Planned((file,), IGNORED, reason="a picture of a program or a page") for file in sorted(clutter)
    ]
    claimed = [(file, format) for file, format in claimed if file not in clutter]
    named = [file for file in files if file.suffix.lower() == ".json"]
    channels, derived = sidecars.channels(named), sidecars.derivatives(named)
    candidates, series = _candidates(claimed, root, mentions(tables), channels, derived, found, stacks=stacks)
    if stacks:
        candidates = _fitting(candidates, root, found)
    above = [root.name, *(parent.name for parent in root.parents)]
    look = _looker(candidates, memory) if stacks else lambda item, images: None
    decided = layout([each.item for each in candidates], above, look, all_images=all_images)
    found.notes += decided.doubts
    found.alone += decided.alone
    _left(rest, {table.path for table in tables}, found)
    _series(series, found, all_images=all_images)
    _filed(candidates, decided.decisions, found)
    _classes(candidates, decided.decisions, found)


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


def _claimed(
    files: Sequence[Path], failures: list[ReadError]
) -> tuple[list[tuple[Path, Format]], list[Path]]:
    """Which format each file is of; and those that are of none."""
    claimed, rest = [], []
    known = installed_formats()
    for file in files:
        try:
            format = next((f for f in known if f.claims(file)), None)
        except OSError as error:
            failures.append(ReadError(file, f"cannot be read ({error.strerror})"))
            continue
        if format is None:
            rest.append(file)
        else:
            claimed.append((file, format))
    return claimed, rest


def _candidates(
    claimed: Iterable[tuple[Path, Format]],
    home: Path,
    mentioned: Mentioned,
    channels: Sequence[sidecars.Channels],
    derived: set[Path],
    found: Discovery,
    *,
    stacks: bool,
) -> tuple[list[_Found], list[Source]]:
    """Images by their names (files, stacks), and series by their headers."""
    by_header: dict[str, tuple[Format, list[Path]]] = {}
    pictures: dict[Path, list[tuple[Path, Format]]] = defaultdict(list)
    volumes: list[_Found] = []
    configs: dict[Path, Config | ReadError | None] = {}
    for file, format in claimed:
        if format.series is not None:
            if understood(stem(file.name)).outline:
                found.ignored.append(Planned((file,), IGNORED, reason="called an outline among series"))
            else:
                by_header.setdefault(format.name, (format, []))[1].append(file)
        elif format.pictures:
            pictures[file.parent].append((file, format))
        else:
            config = _config(file.parent, configs, home, found)
            if isinstance(config, ReadError):
                continue
            files = format.files(file)
            if file != files[0]:
                continue  # the other half of a pair
            source = _source(file, file, files, format.kind, config)
            item = _item(file.parent / stem(file.name), home, channels, derived, config)
            if config is None or not config.channels:
                source = _with_channels(source, channels, item)
            volumes.append(_Found(format, source, item))
    for folder, members in pictures.items():
        config = _config(folder, configs, home, found)
        if isinstance(config, ReadError):
            continue
        volumes += _pictures(folder, members, config, mentioned, home, found, stacks=stacks)
    series: list[Source] = []
    for format, members_ in by_header.values():
        assert format.series is not None
        said = format.labels
        sources, failures = format.series(members_, home)
        found.failures += failures
        series += sources
        if said is not None:
            for source in sources:
                found.labels.setdefault(source.patient_id, {}).update(said(source))
        used = {file for source in sources for file in source.files}
        refused = {Path(failure.where) for failure in failures}
        no_image = "DICOM, but no image of a patient (report, segmentation, screenshot, presentation state)"
        found.ignored += [
            Planned((file,), IGNORED, reason=no_image)
            for file in members_
            if file not in used and refused.isdisjoint((file, *file.parents))
        ]
    return volumes, series


def _config(
    folder: Path, configs: dict[Path, Config | ReadError | None], home: Path, found: Discovery
) -> Config | ReadError | None:
    """The ``cbir.json`` for a folder; a wrong one is told once, and what it is for is left out."""

    def obeyed(path: Path) -> bool:
        if path.is_relative_to(home) or path.stat().st_size <= len("{}"):  # which says nothing
            return True
        why = foreign(path)
        note = f"{path} lies above {home} and is " + ("used" if why is None else f"not used: {why}")
        if note not in found.notes:
            found.notes.append(note)
        return why is None

    if folder in configs:
        return configs[folder]
    if folder != home and not (folder / CONFIG).is_file():
        configs[folder] = _config(folder.parent, configs, home, found)
        return configs[folder]
    try:
        configs[folder] = find_config(folder, obeyed)
    except ReadError as error:
        found.failures.append(error)
        configs[folder] = error
    return configs[folder]


def _source(path: Path, named: Path, files: tuple[Path, ...], kind: str, config: Config | None) -> Source:
    return Source(
        path=path,
        kind=kind,
        files=files,
        series_id=stem(named.name) if path == files[0] else path.name,
        channels=config.channels if config else (),
        config=config.path if config else None,
    )


def _item(
    path: Path,
    home: Path,
    channels: Sequence[sidecars.Channels],
    derived: set[Path],
    config: Config | None,
) -> Item:
    parts = path.relative_to(home).parts
    described = next((c for c in channels if path.is_relative_to(c.folder)), None)
    channel = None
    cut = _channel_number(parts[-1])
    if described is not None and cut is not None and cut[1] < len(described.names):
        parts, channel = (*parts[:-1], cut[0]), described.names[cut[1]]
    return _stated(
        Item(parts, channel=channel, derived=any(path.is_relative_to(folder) for folder in derived)),
        path,
        config,
    )


def _stated(item: Item, path: Path, config: Config | None) -> Item:
    """The item with what the pattern of a ``cbir.json`` says of its path."""
    said = config.said(path) if config is not None else {}
    if not said:
        return item
    sequence = said.get("sequence")
    return replace(
        item,
        person=Person(said["patient"], said.get("visit", "")),
        channel=understood(sequence).sequence if sequence else item.channel,
    )


def _fitting(candidates: Sequence[_Found], home: Path, found: Discovery) -> list[_Found]:
    """The candidates without those whose ``cbir.json`` has a pattern that fits none of its files."""
    governed: dict[Path, list[_Found]] = defaultdict(list)
    for each in candidates:
        path = each.source.config
        if path is not None and path.is_relative_to(home):  # one above was written for more than this
            governed[path].append(each)
    unfit: set[Path] = set()
    for path, members in governed.items():
        config = find_config(path.parent)
        if config is None or config.pattern is None:
            continue
        others = [each.source.path for each in members if each.item.person is None]
        if not others:
            continue
        example = others[0].relative_to(path.parent)
        if len(others) == len(members):
            unfit.add(path)
            reason = f"its pattern fits none of {len(members)} images, such as {example}"
            found.failures.append(ReadError(path, reason, "mend it, or take it out"))
        else:
            found.notes.append(
                f"{path}: its pattern fits {len(members) - len(others)} of {len(members)} images; whose the "
                f"others are, such as {example}, is found by their names"
            )
    return [each for each in candidates if each.source.config not in unfit]


def _channel_number(name: str) -> tuple[str, int] | None:
    """A name and the number of four digits behind it, which nnU-Net gives to channels."""
    head, _, number = name.rpartition("_")
    return (head, int(number)) if head and number.isdigit() and len(number) == 4 else None


def _with_channels(source: Source, channels: Sequence[sidecars.Channels], item: Item) -> Source:
    described = next((c for c in channels if source.path.is_relative_to(c.folder)), None)
    if described is None or len(described.names) < 2 or item.channel is not None:
        return source
    return replace(source, channels=described.names)


def _pictures(
    folder: Path,
    members: Sequence[tuple[Path, Format]],
    config: Config | None,
    mentioned: Mentioned,
    home: Path,
    found: Discovery,
    *,
    stacks: bool,
) -> list[_Found]:
    """The pictures of a folder: a stack, or each by itself; outlines beside them apart."""
    format = members[0][1]
    outlines = [f for f, _ in members if understood(stem(f.name)).outline]
    images = [f for f, _ in members if f not in set(outlines)]

    def single(file: Path) -> _Found:
        source = _source(file, file, (file,), format.kind, config)
        path = file.parent / stem(file.name)
        return _Found(format, source, _stated(Item(path.relative_to(home).parts, picture=True), path, config))

    found_ = [single(file) for file in outlines]
    if stacks and is_stack(folder, images, config, mentioned):
        try:
            ordered = in_order(folder, images)
        except ReadError as error:
            found.failures.append(error)
            return found_
        stack = _source(folder, folder, ordered, "stack", config)
        parts = folder.relative_to(home).parts or (folder.name,)
        return [_Found(format, stack, _stated(Item(parts), folder, config)), *found_]
    return found_ + [single(file) for file in images]


def _looker(candidates: Sequence[_Found], memory: Memory):  # type: ignore[no-untyped-def]
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


def _filed(candidates: Sequence[_Found], decisions: Sequence[Decision], found: Discovery) -> None:
    """Sources with the outlines that belong to them; what is left out."""
    outlines: dict[Person, list[tuple[_Found, Decision]]] = defaultdict(list)
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
        found.sources.append(replace(source, region_files=_outlined(each, decision, outlines[person])))


def _is_clutter(file: Path, programs: Collection[Path]) -> bool:
    """Whether a picture belongs to a viewer or a page, and is no patient's."""
    words = {token.text for token in split(stem(file.name))}
    return bool(words & _CLUTTER) or file.parent in programs


def _outlined(
    image: _Found, decision: Decision, outlines: Sequence[tuple[_Found, Decision]]
) -> tuple[Path, ...]:
    """The outlines of an image: those of its own sequence, then those of the case; drawn by hand first."""
    if image.format.pictures:
        names = {stem(file.name).lower() for file in image.source.files}
        files = [o.source.files[0] for o, _ in outlines]
        return tuple(sorted(f for f in files if outline_of(f) in names))
    own = image.source.path.parent

    def rank(pair: tuple[_Found, Decision]) -> tuple[object, ...]:
        outline, what = pair
        return (
            what.sequence != decision.sequence,
            what.automatic,
            outline.source.path.parent != own,
            -len(stem(outline.source.path.name)),
            outline.source.path,
        )

    fitting = [
        (outline, what)
        for outline, what in outlines
        if outline.format is image.format and what.sequence in (None, decision.sequence)
    ]
    return tuple(o.source.files[0] for o, _ in sorted(fitting, key=rank))


def outline_of(file: Path) -> str:
    """The name (in lower case, without extension) of the picture that a picture outlines."""
    tokens = list(split(stem(file.name)))
    while len(tokens) > 1 and tokens[-1].kind in (Kind.REGION, Kind.TARGET, Kind.TISSUE):
        tokens.pop()
    return stem(file.name)[: tokens[-1].end].lower() if tokens else stem(file.name).lower()


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


def _classes(candidates: Sequence[_Found], decisions: Sequence[Decision], found: Discovery) -> None:
    """What folders by class say of the patients in them."""
    of: dict[str, set[str]] = defaultdict(set)
    for each, decision in zip(candidates, decisions, strict=True):
        if decision.role != IMAGE or decision.person is None:
            continue
        for depth, name in enumerate(reversed(each.item.path[:-1])):
            tokens = [t for t in split(name) if t.kind not in (Kind.SEQUENCE, Kind.CONTRAST)]
            texts = {t.text for t in tokens}
            plain = all(t.text in CLASSES or t.text.rstrip("s") in CLASSES for t in tokens)
            if (
                tokens
                and plain
                and not texts <= {"patient", "patients", "lesion", "lesions", "tumor", "tumour"}
            ):
                of[decision.person.patient].add(_without_sequence(name))
                break
            if (
                each.item.picture
                and depth == 0
                and not any(map(str.isdigit, _without_sequence(name)))
                and not _says_nothing(name)
            ):
                of[decision.person.patient].add(_without_sequence(name))
                break
    values = {value for held in of.values() for value in held}
    if len(values) > 1:
        for patient, held in of.items():
            if len(held) == 1:
                found.labels.setdefault(patient, {})["class"] = min(held)
        found.notes.append(
            f"folders stand for classes ({', '.join(sorted(values)[:6])}): offered as the label class"
        )


def _without_sequence(name: str) -> str:
    """A class folder's name without the sequence that it also says: ``glioma T1C+``."""
    said = [t for t in split(name) if t.kind in (Kind.SEQUENCE, Kind.CONTRAST)]
    for token in reversed(said):
        name = name[: token.start] + name[token.end :]
    return name.strip(" _-+") if said else name


def _says_nothing(name: str) -> bool:
    return all(t.kind in (Kind.CONTAINER, Kind.PROTOCOL, Kind.PLAIN, Kind.SEQUENCE) for t in split(name))


def _left(rest: Iterable[Path], tables: Collection[Path], found: Discovery) -> None:
    """Files of no format here; known image formats are counted by their ending."""
    ignored = 0
    unread: Counter[str] = Counter()
    for file in rest:
        if file.name in (CONFIG, PARTICIPANTS) or file in tables:
            continue
        ending = file.suffix.lower()
        if ending == ".gz":
            ending = Path(file.stem).suffix.lower()
        if ending in KNOWN:
            unread[ending] += 1
        ignored += 1
    found.unread = dict(unread)
    found.taken["ignored files"] = ignored
    found.notes += [
        f"{n} {KNOWN[ending]} files ({ending}) are not read" for ending, n in sorted(unread.items())
    ]


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


__all__ = ["STRUCTURAL", "Discovery", "Planned", "discover", "read"]
