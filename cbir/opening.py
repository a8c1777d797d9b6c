"""Where an index comes from: opened, made, or the one that comes with cbir."""

from __future__ import annotations

import os
from pathlib import Path

from cbir.index import Index
from indexer import reference
from indexer.case_index import CaseIndex
from indexer.encoder import DEFAULT, Encoder, load_encoder
from indexer.errors import CaseIndexError
from indexer.files import there
from indexer.manifest import MANIFEST
from indexer.policy import SearchPolicy
from indexer.stores import LOCAL
from retrieval.calibration import POLICY
from retrieval.evidence import RANKING
from retrieval.ranking import Ranking

FOLDER = "cbir-index"
"""The index where none is named, as on the command line; ``CBIR_INDEX`` in the environment goes first."""


def open_index(
    path: str | os.PathLike[str] | None = None,
    encoder: Encoder | None = None,
    *,
    recall: float | None = None,
    ranking: Ranking = RANKING,
    policy: SearchPolicy = POLICY,
    lazy: bool = False,
) -> Index:
    """Open an index folder.

    Parameters
    ----------
    path : path, optional
        ``cbir-index``, or what the variable ``CBIR_INDEX`` says, if not given.
    encoder, recall, ranking, lazy
        As in :class:`Index`.
    policy : SearchPolicy
        How the index is searched.

    Raises
    ------
    CaseIndexError
        If there is no index, or it is damaged or of another format.

    Examples
    --------
    >>> with open_index("cbir-index") as index:               # doctest: +SKIP
    ...     answer = index.query("scan.nii", k=10, where={"who_grade": "4"})
    ...     answer.hits[0].labels
    {'who_grade': '4'}
    """
    folder = Path(path or os.environ.get("CBIR_INDEX") or FOLDER)
    return Index(CaseIndex.open(folder, policy), encoder, recall, ranking=ranking, lazy=lazy)


def create_index(
    path: str | os.PathLike[str],
    *,
    encoder: Encoder | str | None = None,
    keep_ids: bool = False,
    ranking: Ranking = RANKING,
    policy: SearchPolicy = POLICY,
    store: str = LOCAL,
    catalog: str | None = None,
) -> Index:
    """Make an empty index.

    Parameters
    ----------
    path : path
        A new or empty folder.
    encoder : Encoder or str, optional
        The one that comes with cbir, if not given; by its name, or a file of weights.
    keep_ids : bool
        Patients keep the ids that the files give them.
    ranking : Ranking
        How cases are ranked and vote.
    policy : SearchPolicy
        How it is searched.
    store : str
        Address of the engine for the vectors, such as ``milvus+http://host:19530``; the folder itself, if
        not given (:mod:`indexer.stores.registry`).
    catalog : str, optional
        URL of a PostgreSQL database for the catalog; a file in the folder, if not given.

    Raises
    ------
    CaseIndexError
        If there is an index already, or the folder holds something else or cannot be written.
    EncoderError
        If there is no such encoder.
    """
    folder = Path(path)
    if there(folder / MANIFEST, CaseIndexError):
        raise CaseIndexError(folder, "there is an index already", "open it, or name another folder")
    chosen = load_encoder(encoder or DEFAULT) if encoder is None or isinstance(encoder, str) else encoder
    made = CaseIndex.create(folder, chosen, keep_ids=keep_ids, store=store, catalog=catalog, policy=policy)
    return Index(made, chosen, ranking=ranking, lazy=True)


def reference_index(encoder: Encoder | None = None) -> Index:
    """Open the public graded cases that come with cbir (see :mod:`indexer.reference`), for questions only.

    Parameters
    ----------
    encoder : Encoder, optional
        Instead of the installed one that made them; it must be the same.

    Raises
    ------
    CaseIndexError
        If there are none, or they are damaged.
    EncoderError
        If the encoder that made them is not installed.
    """
    if encoder is not None:
        reference.require(encoder)
    return Index(reference.opened(), encoder)
