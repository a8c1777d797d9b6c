"""What the follower remembers, and how the client of Orthanc takes what goes wrong. See test_pacs.py, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

httpx = pytest.importorskip("httpx", reason="the extra cbir[serve] is not installed")
from retrieval.service.follower import FAILED, FILED, IGNORED, Held, Memory  # noqa: E402
from retrieval.service.orthanc import Change, NotInPacs, Orthanc, PacsError  # noqa: E402

ID = "0123abcd-0123abcd-0123abcd-0123abcd-0123abcd"


def orthanc(answer: Callable[[httpx.Request], httpx.Response]) -> Orthanc:
    """A client whose requests are answered by a function."""
    client = Orthanc("http://reader:hidden@pacs.example:8042")
    client._http = httpx.Client(base_url="http://pacs", transport=httpx.MockTransport(answer))
    return client


def test_the_memory_outlives_the_process_and_keeps_each_pacs_apart(tmp_path: Path) -> None:
    path = tmp_path / "pacs.sqlite"
    one, other = Memory(path, "one"), Memory(path, "other")
    assert one.cursor is None
    one.cursor = 7
    one.put("k1", Held("s-1", "v1", FILED))
    one.put("k2", Held("s-2", "v1", FAILED, "its slices lie apart"))
    one.put("k1", Held("s-1", "v2", IGNORED))
    one.put("k3", Held("s-3", "v1", FILED))
    one.forget("k3")
    other.put("k1", Held("s-9", "v1", FILED))
    one.close()
    again = Memory(path, "one")
    assert again.cursor == 7
    assert other.cursor is None
    assert again.all() == {
        "k1": Held("s-1", "v2", IGNORED),
        "k2": Held("s-2", "v1", FAILED, "its slices lie apart"),
    }
    assert again.get("k3") is None
    assert again.summary() == {
        "series": {"filed": 0, "failed": 1, "ignored": 1},
        "failed": [{"series": "s-2", "reason": "its slices lie apart"}],
        "change": 7,
    }
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_series_that_another_patient_has_too_is_known(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "pacs.sqlite", "one")
    memory.put("k1", Held("s-1", "v1", FILED))
    memory.put("k2", Held("s-1", "v1", FAILED))
    assert memory.is_filed("s-1", besides="k2")
    assert not memory.is_filed("s-1", besides="k1"), "the other one failed"


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (404, "{}", NotInPacs, "no such series"),
        (401, "{}", PacsError, "refuses us"),
        (500, "{}", PacsError, "status 500"),
        (200, "<html>", PacsError, "unlike Orthanc"),
        (200, "{}", PacsError, "unlike Orthanc"),
    ],
)
def test_what_goes_wrong_is_one_line_without_address_or_password(
    status: int, body: str, kind: type[PacsError], words: str
) -> None:
    client = orthanc(lambda request: httpx.Response(status, text=body))
    with pytest.raises(PacsError, match=words) as caught:
        client.describe(ID)
    assert type(caught.value) is kind
    assert "the PACS at pacs.example:8042" in str(caught.value)
    for secret in ("reader", "hidden", ID):
        assert secret not in str(caught.value)


def test_no_answer_is_told_as_such() -> None:
    def refused(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("to 10.1.2.3 failed", request=request)

    with pytest.raises(PacsError, match="does not answer") as caught:
        orthanc(refused).all_series()
    assert "10.1.2.3" not in str(caught.value)


@pytest.mark.parametrize("which", ["", "../system", "1.2/../../system", "x" * 44, "1." * 40 + "1", "1.2\n"])
def test_what_is_no_identifier_is_not_even_asked_for(which: str) -> None:
    def never(request: httpx.Request) -> httpx.Response:
        raise AssertionError(request.url)

    with pytest.raises(NotInPacs):
        orthanc(never).find(which)


def test_a_uid_is_looked_up_among_series_alone() -> None:
    found = [{"Type": "Study", "ID": "a"}, {"Type": "Series", "ID": ID}]
    assert orthanc(lambda request: httpx.Response(200, json=found)).find("1.2.3") == ID
    with pytest.raises(NotInPacs):
        orthanc(lambda request: httpx.Response(200, json=found[:1])).find("1.2.3")


def test_the_version_of_a_series_changes_with_what_it_holds() -> None:
    def described(updated: str, *instances: str) -> str:
        answer = {
            "MainDicomTags": {"Modality": "MR", "SeriesInstanceUID": "1.2"},
            "IsStable": True,
            "LastUpdate": updated,
            "Instances": list(instances),
        }
        return orthanc(lambda request: httpx.Response(200, json=answer)).describe(ID).version

    assert described("t1", "a", "b") == described("t1", "b", "a")
    assert len({described("t1", "a", "b"), described("t2", "a", "b"), described("t1", "a")}) == 3


def test_the_change_log_is_read_on_from_a_number() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.params["since"] == "5"
        lines = [{"Seq": 6, "ChangeType": "StableSeries", "ID": "a", "Path": "/series/a"}]
        return httpx.Response(200, json={"Changes": lines, "Last": 6, "Done": True})

    assert orthanc(answer).changes(5) == ([Change("StableSeries", "a")], 6, True)
