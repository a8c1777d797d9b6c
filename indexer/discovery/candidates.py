"""What may be an image: files and stacks by their names, series by their headers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import indexer.discovery.sidecars as sidecars
from indexer.discovery.config import CONFIG, Config, find_config
from indexer.discovery.layout import IGNORED, Item
from indexer.discovery.people import Person
from indexer.discovery.plan import Discovery, Planned
from indexer.discovery.roles import understood
from indexer.discovery.stacks import in_order, is_stack
from indexer.discovery.tokens import stem
from indexer.errors import ReadError
from indexer.labels import Mentioned
from indexer.readers.formats import Format, installed_formats
from indexer.readers.source import Source
from indexer.trust import foreign


@dataclass
class Candidate:
    """A file, stack or series that may be an image."""

    format: Format
    source: Source
    item: Item


def claimed_by(
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


def make_candidates(
    claimed: Iterable[tuple[Path, Format]],
    home: Path,
    mentioned: Mentioned,
    channels: Sequence[sidecars.Channels],
    derived: set[Path],
    found: Discovery,
    *,
    stacks: bool,
) -> tuple[list[Candidate], list[Source]]:
    """Images by their names (files, stacks), and series by their headers."""
    by_header: dict[str, tuple[Format, list[Path]]] = {}
    pictures: dict[Path, list[tuple[Path, Format]]] = defaultdict(list)
    volumes: list[Candidate] = []
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
            volumes.append(Candidate(format, source, item))
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
        if said is not None:
            sources, failures = _labelled(sources, said, failures, found)
        found.failures += failures
        series += sources
        used = {file for source in sources for file in source.files}
        refused = {Path(failure.where) for failure in failures}
        no_image = "DICOM, but no image of a patient (report, segmentation, screenshot, presentation state)"
        found.ignored += [
            Planned((file,), IGNORED, reason=no_image)
            for file in members_
            if file not in used and refused.isdisjoint((file, *file.parents))
        ]
    return volumes, series


def _labelled(
    sources: Sequence[Source],
    said: Callable[[Source], dict[str, str]],
    failures: Sequence[ReadError],
    found: Discovery,
) -> tuple[list[Source], list[ReadError]]:
    """The sources whose own labels can be read, and the failures with those that cannot."""
    kept, refused = [], list(failures)
    for source in sources:
        try:
            labels = said(source)
        except ReadError as error:
            refused.append(error)
        else:
            found.labels.setdefault(source.patient_id, {}).update(labels)
            kept.append(source)
    return kept, refused


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


def fitting(candidates: Sequence[Candidate], home: Path, found: Discovery) -> list[Candidate]:
    """The candidates without those whose ``cbir.json`` has a pattern that fits none of its files."""
    governed: dict[Path, list[Candidate]] = defaultdict(list)
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
) -> list[Candidate]:
    """The pictures of a folder: a stack, or each by itself; outlines beside them apart."""
    format = members[0][1]
    outlines = [f for f, _ in members if understood(stem(f.name)).outline]
    images = [f for f, _ in members if f not in set(outlines)]

    def single(file: Path) -> Candidate:
        source = _source(file, file, (file,), format.kind, config)
        path = file.parent / stem(file.name)
        return Candidate(
            format, source, _stated(Item(path.relative_to(home).parts, picture=True), path, config)
        )

    found_ = [single(file) for file in outlines]
    if stacks and is_stack(folder, images, config, mentioned):
        try:
            ordered = in_order(folder, images)
        except ReadError as error:
            found.failures.append(error)
            return found_
        stack = _source(folder, folder, ordered, "stack", config)
        parts = folder.relative_to(home).parts or (folder.name,)
        return [Candidate(format, stack, _stated(Item(parts), folder, config)), *found_]
    return found_ + [single(file) for file in images]
