"""Reading and embedding on several machines, by Ray: stateless workers, and this process as the one writer.

The work is cut as it is in one process (:mod:`indexer.ingest`): a task reads one source, another takes
one group of sources to the network. So the index is the same, and images go from worker to worker
through Ray's store without passing here. A task whose worker dies runs again elsewhere.
"""

from __future__ import annotations

import ipaddress
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stdout
from typing import Any

from indexer import sandbox
from indexer.encoder import Encoder
from indexer.errors import CbirError, ClusterError, ReadError
from indexer.ingest import Embedding, Pick, embed
from indexer.preprocess import Preprocessing
from indexer.readers import Source
from indexer.reading import Read
from indexer.runtime import prepare

RETRIES = 3
"""Times that a task is tried again after its worker has died."""
LOCAL = "local"
"""Address that stands for a cluster on this machine alone, started for one run."""
STARTS = 3
"""Times that such a cluster is started: Ray waits 30 s for its parts, which a busy machine exceeds."""
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is told to anybody
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # they are told here, in one line
    "RAY_worker_niceness": "0",  # as without Ray; of a cluster that is started here
}
"""Of Ray, read from the environment, unless the user has chosen otherwise."""

_encoders: dict[str, Encoder] = {}
"""In a worker: the encoder, loaded once."""


@contextmanager
def cluster(address: str, encoder: Encoder) -> Iterator[Cluster]:
    """The workers of a Ray cluster.

    Parameters
    ----------
    address : str
        What ``ray.init`` takes (``auto``, ``ray://HOST:10001``, ``HOST:6379``), or ``local``.
    encoder : Encoder
        Is sent to the workers; one from a package has to be installed there, too.

    Raises
    ------
    ClusterError
        If Ray is not installed, or the cluster cannot be reached.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if address == LOCAL:
        # Ray replaces 127.0.0.1 by an address that others reach, unless this, read at its import, is set
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
    except ModuleNotFoundError:
        raise ClusterError(
            "--ray", "Ray is not installed", "install what this needs: pip install 'cbir[ray]'"
        ) from None
    with (
        tempfile.TemporaryDirectory(prefix="cbir-ray-", ignore_cleanup_errors=True) as folder,
        redirect_stdout(sys.stderr),  # where Ray says which worker died; stdout is the caller's
    ):
        how: dict[str, Any] = {"address": address}
        if address == LOCAL:
            if not ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
                reason = "Ray was imported before, and would listen beyond this machine"
                raise ClusterError(LOCAL, reason, "start it in a process of its own")
            how |= {"include_dashboard": False, "_temp_dir": folder}
        try:
            _start(how)
            yield Cluster(address, encoder)
        finally:
            ray.shutdown()


def _start(how: dict[str, Any]) -> None:
    import ray

    address = how["address"]
    for tries in range(STARTS if address == LOCAL else 1, 0, -1):
        try:
            with warnings.catch_warnings(action="ignore"):  # the error says it again
                ray.init(**how, log_to_driver=False, logging_level="ERROR")
            return
        except Exception as error:  # Ray raises whatever it meets; the first line says what
            if tries > 1:
                ray.shutdown()  # what it had started
                continue
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            remedy = "start it with `ray start --head`, or use `--ray local`"
            if address == LOCAL:
                remedy = "run it again when this machine is less busy, or without --ray"
            raise ClusterError(address, f"the cluster cannot be reached ({reason})", remedy) from error


class Cluster:
    """Workers as :class:`indexer.ingest.Workers` describes them.

    Parameters
    ----------
    address : str
        For messages.
    encoder : Encoder
    """

    def __init__(self, address: str, encoder: Encoder) -> None:
        import ray

        processors = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self.ahead, self.groups = 2 * processors, processors
        self._address = address
        self._encoder = [ray.put(encoder)]  # in a list, it is not fetched anew for every task
        task = ray.remote(num_cpus=1, max_retries=RETRIES)
        self._read, self._embed = task(_read).options(num_returns=2), task(_embed)

    def read(self, source: Source, preprocessing: Preprocessing) -> Future[Read]:
        """See :meth:`indexer.ingest.Workers.read`."""
        told, images = self._read.remote(source, preprocessing, preprocessing.version)
        return _then(told.future(), lambda scans: Read(scans, images), self._explained(source))

    def embed(self, picks: Sequence[Pick]) -> Future[Embedding]:
        """See :meth:`indexer.ingest.Workers.embed`."""
        held = list({id(images): images for images, *_ in picks}.values())
        place = {id(images): i for i, images in enumerate(held)}
        where = [(place[id(images)], *rest) for images, *rest in picks]
        return _then(
            self._embed.remote(self._encoder, where, *held).future(), lambda found: found, self._explained()
        )

    def _explained(self, source: Source | None = None) -> Any:
        from ray import exceptions as told

        def explained(error: Exception) -> CbirError:
            died = isinstance(error, told.WorkerCrashedError | told.OutOfMemoryError)
            if died and source is not None:
                reason = f"each of the {RETRIES + 1} workers that read it died"
                return ReadError(source.name, reason, "see whether it needs more memory than they have")
            if died:
                reason = f"{RETRIES + 1} workers died while they embedded the same slices"
                return ClusterError(self._address, reason, "give them more memory, and run it again")
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, CbirError):
                return cause
            reason = f"a worker failed ({type(cause).__name__})"
            remedy = "install the same cbir, with its encoder, on all of its machines; then run it again"
            return ClusterError(self._address, reason, remedy)

        return explained


def _read(source: Source, preprocessing: Preprocessing, version: str) -> tuple[Any, Any]:
    prepare()
    if preprocessing.version != version:
        raise ClusterError(
            "--ray",
            f"a worker prepares images as {preprocessing.version}, this process as {version}",
            "install the same cbir on all machines",
        )
    try:
        found = sandbox.prepare(source, preprocessing)
    except ReadError as error:
        return error, None
    return found.scans, found.images


def _embed(encoder: list[Any], where: Sequence[tuple[Any, ...]], *held: Any) -> Embedding:
    prepare()
    (ref,) = encoder
    if ref.hex() not in _encoders:
        import ray

        _encoders.clear()
        _encoders[ref.hex()] = ray.get(ref)
    return embed(_encoders[ref.hex()], [(held[i], *rest) for i, *rest in where])


def _then(future: Any, made: Any, explained: Any) -> Future[Any]:
    """A future with the result made into something else, and errors explained."""
    after: Future[Any] = Future()

    def done(future: Future[Any]) -> None:
        try:
            value = future.result()
            if isinstance(value, CbirError):
                raise value
            after.set_result(made(value))
        except CbirError as error:
            after.set_exception(error)
        except Exception as error:
            after.set_exception(explained(error))

    future.add_done_callback(done)
    return after
