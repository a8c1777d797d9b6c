"""What happens between Orthanc, the service and the browser. Run by ``test_pacs.py``, in this order.

The scenarios share one installation: each takes up what the one before has left. Whatever is waited for
is asked for again and again; nothing is slept for.
"""

from __future__ import annotations

import io
import json
import shutil
import ssl
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from PIL import Image

from cbir import open_index
from indexer.case_index import CaseIndex
from indexer.demo import write_cohort
from indexer.encoder import load_encoder
from indexer.errors import CbirError
from indexer.ingest import ingest
from pacs.installation import Installation, free_port, missing, until
from pacs.sample import write_study
from tests.retrieval.test_report import FLAGS
from tests.service.test_deployment import block, proxy
from tests.support.paths import ARTIFACTS, REAL

COHORT = 6
PLANTED = {
    "PatientName": "Plantedname^Jane",
    "PatientBirthDate": "19610203",
    "AccessionNumber": "ACC-777-PLANT",
    "InstitutionName": "Planted General Hospital",
    "ReferringPhysicianName": "Plantedref^Otto",
    "StudyDescription": "plantedstudy",
    "PatientComments": "plantedcomment",
    "StudyDate": "20190817",
    "StationName": "PLANTEDSTATION",
    "PatientAddress": "Planted Street 5",
    "ImageComments": "plantedimage",
}
PATIENT = "PID-4711-planted"


class World(Installation):
    """The installation, and what was sent to it."""

    studies: dict[str, dict[str, list[Path]]]
    told: str = ""
    """Everything that the service and the plugin have answered."""

    def caught_up(self, **counts: int) -> dict[str, int]:
        """Wait until the follower has made that many series into each."""

        found: dict[str, int] | None = None

        def there() -> bool:
            nonlocal found
            found = self.followed()
            return found is not None and all(found[name] == n for name, n in counts.items())

        try:
            until("the follower", there)
        except CbirError as error:
            raise AssertionError(f"{error}: {found} instead of {counts}") from None
        assert found is not None
        return found

    def similar(self, series: str, **more: str) -> dict[str, Any]:
        with self.asking_orthanc() as orthanc:
            reply = orthanc.get("/cbir/similar", params={"series": series, **more})
        self.told += reply.text
        assert reply.status_code == 200, reply.text
        return reply.json()

    def info(self) -> dict[str, Any]:
        with self.asking_service() as service:
            return service.get("/info").json()


def uid(files: list[Path], keyword: str = "SeriesInstanceUID") -> str:
    return str(pydicom.dcmread(files[0], stop_before_pixels=True)[keyword].value)


def orthanc_id(world: World, of: str) -> str:
    with world.asking_orthanc() as orthanc:
        (found,) = orthanc.post("/tools/lookup", content=of).json()
    return found["ID"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if absent := missing():
        pytest.skip(f"not installed: {' '.join(absent)} (apt-get install them)")
    folder = tmp_path_factory.mktemp("world")
    cohort, new = write_cohort(folder / "cohort", COHORT), write_cohort(folder / "new", 4, seed=1)
    encoder = load_encoder("imagenet")
    with CaseIndex.create(folder / "index", encoder) as index:
        ingest(index, [cohort.folder], encoder)
    with World(folder) as world:
        world.studies = {}
        for name in new.grades:
            sequences = ("t1ce",) if name != list(new.grades)[1] else ("t1ce", "flair")
            volumes = {s: new.folder / name / f"{name}_{s}.nii.gz" for s in sequences}
            world.studies[name] = write_study(
                volumes, folder / "dicom" / name, f"{PATIENT}-{name}", **PLANTED
            )
        world.start_service()
        world.start_orthanc()
        yield world


@pytest.fixture(scope="module")
def scan(world: World) -> list[Path]:
    """A real MR series (a slab of it) with planted identifiers, or a phantom where there is none."""
    real = sorted((REAL / "dicom-t1").glob("*.dcm"))
    if not real:
        return world.studies["SYNTH-1-001"]["t1ce"]
    folder = world.folder / "dicom" / "real"
    folder.mkdir()
    for file in real[160:200]:
        image = pydicom.dcmread(file)
        image.PatientID, image.SeriesDescription = PATIENT, "AX T1 POST GD"  # the cohort has no other T1
        for keyword, value in PLANTED.items():
            setattr(image, keyword, value)
        image.save_as(folder / file.name)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=chromium, args=FLAGS)
        yield opened
        opened.close()


# ---- in the order of a day ---------------------------------------------------------------------------


def test_a_series_sent_by_c_store_is_found_similar_cases_for(world: World, scan: list[Path]) -> None:
    world.send(scan)
    world.caught_up(filed=1, failed=0)
    assert world.info()["cases"] == COHORT + 1
    answer = world.similar(uid(scan), k="3")
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3]
    assert all(hit["labels"]["who_grade"] for hit in answer["hits"]), (
        "the graded cases, not the series itself"
    )
    with open_index(world.index) as index:
        assert [hit["score"] for hit in answer["hits"]] == pytest.approx(
            [hit.score for hit in index.query(_alone(scan), 3, exclude_patient=_patient(scan)).hits], abs=1e-5
        )


def test_a_zip_uploaded_to_orthanc_is_indexed(world: World) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for files in world.studies["SYNTH-1-002"].values():
            for file in files:
                archive.write(file, f"{file.parent.name}/{file.name}")
    with world.asking_orthanc() as orthanc:
        stored = orthanc.post("/instances", content=packed.getvalue())
        assert {one["Status"] for one in stored.json()} == {"Success"}
    world.caught_up(filed=3, failed=0)
    with world.asking_service() as service:
        spool = {path.name for path in (world.index / "spool").iterdir()}
        assert len(spool) == 3
        assert world.info()["scans"] == 2 * COHORT + 3
        assert service.get("/pacs").json()["reason"] is None


@pytest.mark.browser
def test_the_button_leads_to_similar_cases_side_by_side(world: World, browser: Any, scan: list[Path]) -> None:
    page = browser.new_page(viewport={"width": 1366, "height": 768})
    explorer = f"{world.orthanc_url}/app/explorer.html"
    page.goto(f"{explorer}#series?uuid={orthanc_id(world, uid(scan))}")
    page.locator("#cbir-series").wait_for()
    until("the page at rest", lambda: page.evaluate("!$('.ui-mobile-viewport-transitioning').length"))
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / "pacs-explorer.png")
    with page.expect_popup() as opening:
        page.locator("#cbir-series").click()
    _side_by_side(opening.value, "pacs-series.png")

    # a study of several series asks which
    study = world.studies["SYNTH-1-002"]
    page.goto(f"{explorer}#study?uuid={orthanc_id(world, uid(study['t1ce'], 'StudyInstanceUID'))}")
    page.locator("#cbir-study").click()
    choices = page.locator("#cbir-choice a")
    choices.first.wait_for()
    assert sorted(choice.split(" (")[0] for choice in choices.all_inner_texts()) == [
        "AX FLAIR",
        "AX T1 POST GD",
        "all sequences together",
    ]
    until("the page at rest", lambda: page.evaluate("!$('.ui-mobile-viewport-transitioning').length"))
    page.screenshot(path=ARTIFACTS / "pacs-study.png")
    with page.expect_popup() as opening:
        choices.filter(has_text="T1").click()
    _side_by_side(opening.value, "pacs-viewer.png")


@pytest.mark.browser
def test_a_file_opened_in_the_viewer_passes_through_orthanc(world: World, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1366, "height": 768})
    page.goto(f"{world.orthanc_url}/cbir/ui")
    page.wait_for_url("**/cbir/ui/viewer")
    page.locator("#holds", has_text="known").wait_for()
    page.set_input_files("#file", world.folder / "new" / "SYNTH-1-003" / "SYNTH-1-003_flair.nii.gz")
    page.locator("#hits ol li").first.wait_for(timeout=60_000)
    assert "#query=" in page.url
    assert "flair" in page.locator("#asked").inner_text()
    assert page.locator("#filing button").is_disabled(), "a file belongs to no study of the PACS"
    page.close()


def _side_by_side(page: Any, picture: str) -> None:
    hosts = set()
    page.on("request", lambda request: hosts.add(httpx.URL(request.url).host))
    page.locator("#hits ol li").first.wait_for(timeout=60_000)
    assert "research use only" in page.locator("footer").inner_text().lower()

    def drawn() -> bool:
        shots = [page.locator(f"#{side}-pane canvas").first.screenshot() for side in ("query", "hit")]
        return all(np.asarray(Image.open(io.BytesIO(shot)).convert("L")).std() > 10 for shot in shots)

    until("both images drawn", drawn)
    until("all pictures of the strip", lambda: _loaded(page))
    places = ("#hit-pane canvas", "#hits")
    image, strip = (page.locator(place).first.bounding_box() for place in places)
    assert image["x"] + image["width"] <= strip["x"] + 1, "nothing covers anything"
    page.screenshot(path=ARTIFACTS / picture)
    assert hosts <= {"127.0.0.1", ""}, "nothing is asked of anybody else"
    page.close()


def _loaded(page: Any) -> bool:
    return bool(
        page.evaluate("[...document.querySelectorAll('#hits img')].every(i => i.complete && i.naturalWidth)")
    )


def test_a_report_is_stored_beside_the_images_and_names_nobody_else(world: World) -> None:
    files = world.studies["SYNTH-1-002"]["t1ce"]
    hits = world.similar(uid(files))["hits"]
    with world.asking_orthanc() as orthanc:
        reply = orthanc.post("/cbir/ui/sr", data={"series": uid(files), "k": "5"})
        assert reply.status_code == 201, reply.text
        content = orthanc.get(f"/instances/{reply.json()['stored']}/file").content
    report = pydicom.dcmread(io.BytesIO(content))
    source = pydicom.dcmread(files[0], stop_before_pixels=True)
    assert report.SOPClassUID.name == "Comprehensive 3D SR Storage"
    assert (report.StudyInstanceUID, report.PatientID) == (source.StudyInstanceUID, source.PatientID)
    assert report.SeriesInstanceUID != source.SeriesInstanceUID
    assert b"research use only" in content
    for hit in hits:
        assert hit["case_id"].encode() not in content
        assert hit["patient_id"].encode() not in content
    (world.folder / "sr.dcm").write_bytes(content)
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed: apt-get install dicom3tools")
    told = subprocess.run(["dciodvfy", "-new", world.folder / "sr.dcm"], capture_output=True, text=True)
    assert "Comprehensive3DSR" in told.stdout + told.stderr
    assert not [line for line in told.stderr.splitlines() if line.startswith("Error")]
    world.caught_up(filed=3, ignored=1)  # the report itself is no image


@pytest.mark.browser
def test_the_viewer_files_a_report_of_what_it_shows(world: World, browser: Any, scan: list[Path]) -> None:
    page = browser.new_page(viewport={"width": 1366, "height": 768})
    page.goto(f"{world.orthanc_url}/cbir/ui/viewer#series={orthanc_id(world, uid(scan))}&where=who_grade=4")
    page.locator("#hits ol li").first.wait_for(timeout=60_000)
    assert page.locator("#filing button").is_enabled()
    page.keyboard.press("f")
    page.locator("#sure").wait_for()
    page.keyboard.press("Enter")
    page.locator("#filing a").wait_for(timeout=60_000)
    assert "Filed in the study" in page.locator("#filing p").inner_text()
    assert page.locator("#filing button").is_disabled()
    page.screenshot(path=ARTIFACTS / "pacs-filed.png")
    with page.expect_popup() as opening:
        page.locator("#filing a").click()
    opening.value.wait_for_url(lambda address: "/app/explorer.html#instance?uuid=" in address)
    stored = opening.value.url.rpartition("=")[2]
    page.close()
    with world.asking_orthanc() as orthanc:
        report = pydicom.dcmread(io.BytesIO(orthanc.get(f"/instances/{stored}/file").content))
        kept = orthanc.get(f"/studies/{orthanc_id(world, uid(scan, 'StudyInstanceUID'))}").json()["Series"]
        kinds = [orthanc.get(f"/series/{one}").json()["MainDicomTags"]["Modality"] for one in kept]
    assert sorted(kinds) == ["MR", "SR"]
    assert (report.Modality, report.StudyInstanceUID) == ("SR", uid(scan, "StudyInstanceUID"))
    world.caught_up(filed=3, ignored=2)


def test_late_slices_replace_the_series(world: World) -> None:
    files = world.studies["SYNTH-1-003"]["t1ce"]
    world.send(files[:20])
    world.caught_up(filed=4)
    before = world.info()
    assert _slices(world, files) == 20
    world.send(files[20:])
    until("the late slices", lambda: _slices(world, files) == len(files))
    after = world.info()
    assert (after["cases"], after["scans"]) == (before["cases"], before["scans"])
    assert after["slices"] > before["slices"]  # empty slices do not count


def _slices(world: World, files: list[Path]) -> int:
    """Slices of a series as the service knows them."""
    with CaseIndex.open(world.index) as index:
        case = index.case(uid(files, "PatientID"), uid(files, "StudyInstanceUID"))
    with world.asking_service() as service:
        (scan,) = service.get(f"/cases/{case}").json()["scans"]
    return scan["slices"]


def test_a_series_that_cannot_be_read_is_recorded_once(world: World) -> None:
    files = world.studies["SYNTH-1-004"]["t1ce"]
    world.send(files[:10] + files[14:])
    world.caught_up(filed=4, failed=1)
    with world.asking_service() as service:
        (failed,) = service.get("/pacs").json()["failed"]
        assert "apart" in failed["reason"], "the reason is that slices are missing"
        jobs = len(service.get("/jobs").json()["jobs"])
        world.told += json.dumps(failed)
        service.post("/pacs/nudge")
    world.stop("service")
    world.start_service()
    world.caught_up(filed=4, failed=1)
    with world.asking_service() as service:
        assert service.get("/jobs").json()["jobs"] == [], f"after {jobs} jobs nothing is done again"
    world.send(files[10:14])
    world.caught_up(filed=5, failed=0)


def test_without_the_service_orthanc_works_and_says_so(world: World, scan: list[Path]) -> None:
    world.stop("service")
    with world.asking_orthanc() as orthanc:
        for path in ("/cbir/similar?series=1.2.3", "/cbir/volume?case=c-1", "/cbir/ui/info"):
            reply = orthanc.get(path)
            assert reply.status_code == 503, path
            assert reply.headers["Retry-After"]
            assert reply.json() == {"detail": "the cbir service does not answer"}
        page = orthanc.get("/cbir/ui/viewer", headers={"Accept": "text/html"})
        assert page.status_code == 503
        assert "not available" in page.text
        assert orthanc.get("/system").status_code == 200

        # meanwhile: a study is deleted, and the one with the report sent again under another patient
        study = orthanc_id(world, uid(world.studies["SYNTH-1-003"]["t1ce"], "StudyInstanceUID"))
        assert orthanc.delete(f"/studies/{study}").status_code == 200
    fresh = write_cohort(world.folder / "fresh", 1, seed=2).folder
    (name,) = (path.name for path in fresh.iterdir() if path.is_dir())
    world.studies[name] = write_study(
        {"flair": fresh / name / f"{name}_flair.nii.gz"},
        world.folder / "dicom" / name,
        PATIENT + "-2",
        **PLANTED,
    )
    world.send(world.studies[name]["flair"])
    world.start_service()
    world.caught_up(filed=5, failed=0)
    until("what was sent meanwhile", lambda: _slices(world, world.studies[name]["flair"]) == 32)
    _is_gone(world, world.studies["SYNTH-1-003"]["t1ce"])


def test_a_deletion_is_followed(world: World, scan: list[Path]) -> None:
    with world.asking_orthanc() as orthanc:
        orthanc.delete(f"/series/{orthanc_id(world, uid(scan))}")
    world.caught_up(filed=4)
    _is_gone(world, scan)


def _is_gone(world: World, files: list[Path]) -> None:
    with CaseIndex.open(world.index) as index:
        case = index.case(uid(files, "PatientID"), uid(files, "StudyInstanceUID"))
        name = index.pseudonym("series", uid(files))
        assert not list((world.index / "spool").glob(f"{name}*"))
    with world.asking_service() as service:
        assert service.get(f"/cases/{case}").status_code == 404


def test_orthanc_killed_before_a_series_was_stable_misses_nothing(world: World, scan: list[Path]) -> None:
    world.stop("orthanc")
    world.configure(stable_age=3600)
    world.start_orthanc()
    world.send(scan)
    world.kill("orthanc")
    world.configure(stable_age=1)
    world.start_orthanc()
    with world.asking_orthanc() as orthanc:
        series = orthanc_id(world, uid(scan))
        assert orthanc.get(f"/series/{series}").json()["IsStable"], "and yet nothing ever said so"
    world.caught_up(filed=5)


def test_the_service_killed_while_it_indexes_does_nothing_twice(world: World) -> None:
    files = world.studies["SYNTH-1-003"]["t1ce"]
    world.send(files)
    until("a job", lambda: _running(world))
    world.kill("service")
    world.start_service()
    world.caught_up(filed=6, failed=0)
    found = world.info()
    assert found["scans"] == 2 * COHORT + 6
    assert len(list((world.index / "spool").iterdir())) == 6
    verified = subprocess.run(
        [sys.executable, "-m", "retrieval.cli", "verify", "--index", world.index],
        capture_output=True,
        text=True,
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr


def _running(world: World) -> bool:
    with world.asking_service() as service:
        return any(job["what"] == "index" for job in service.get("/jobs").json()["jobs"][:1])


def test_the_plugin_lets_through_only_what_the_viewer_needs(world: World) -> None:
    with world.asking_orthanc() as orthanc:
        case = world.similar(uid(world.studies["SYNTH-1-002"]["t1ce"]))["hits"][0]["case_id"]
        volume = orthanc.get("/cbir/volume", params={"case": case, "sequence": "t1ce"})
        assert volume.content[:2] == b"\x1f\x8b"
        # Orthanc keeps multipart/form-data for itself, so the viewer's uploads come under another name
        sent = httpx.Request(
            "POST", "http://x", files={"file": ("t1ce.nii.gz", volume.content)}, data={"k": "2"}
        )
        kind = sent.headers["Content-Type"].replace("form-data", "x-form-data")
        found = orthanc.post("/cbir/ui/query", content=sent.read(), headers={"Content-Type": kind})
        assert [hit["rank"] for hit in found.json()["hits"]] == [1, 2]
        assert orthanc.delete(f"/cbir/ui/cases/{case}").status_code == 405
        for path in ("index", "jobs", "pacs/nudge", "openapi.json"):
            assert orthanc.get(f"/cbir/ui/{path}").status_code == 404, path
            assert orthanc.post(f"/cbir/ui/{path}").status_code == 404, path
        for path in ("cases/%2e%2e/openapi.json", "static/%2e%2e/%2e%2e/core.py", "cases/../../system"):
            assert orthanc.get(f"/cbir/ui/{path}").status_code == 404, path
        for headers in ({"Origin": "http://elsewhere.example"}, {"Sec-Fetch-Site": "cross-site"}):
            for path in ("/cbir/ui/query", "/cbir/ui/sr", "/cbir/similar"):
                assert orthanc.post(path, data={"series": "1.2"}, headers=headers).status_code == 403
        unknown = orthanc.get("/cbir/similar", params={"series": "1.2.3"})
        assert (unknown.status_code, "no such series" in unknown.json()["detail"]) == (404, True)
        world.told += unknown.text
    for headers, status in (({}, 401), ({"Authorization": "Bearer wrong"}, 401)):
        asked = httpx.post(f"{world.service_url}/pacs/nudge", headers=headers, trust_env=False)
        assert asked.status_code == status


def test_a_study_that_orthanc_has_anonymised_is_no_other_patient(world: World) -> None:
    files = world.studies["SYNTH-1-002"]["t1ce"]
    study = orthanc_id(world, uid(files, "StudyInstanceUID"))
    documented = block("sh", "anonymize")
    assert "http://127.0.0.1:8042" in documented
    command = documented.replace("http://127.0.0.1:8042", world.orthanc_url)
    ignored = world.caught_up(filed=6)["ignored"]
    done = subprocess.run(["sh", "-c", command], env={"STUDY": study}, capture_output=True, text=True)
    copy = json.loads(done.stdout)["ID"]
    with world.asking_orthanc() as orthanc:
        images = orthanc.get(f"/studies/{copy}/archive").content
        with zipfile.ZipFile(io.BytesIO(images)) as archive:
            contents = [archive.read(name) for name in archive.namelist()]
        assert len(contents) >= 64, "both sequences"
        for secret in [*PLANTED.values(), PATIENT, uid(files)]:
            assert not any(secret.encode() in content for content in contents), secret
        copies = orthanc.get(f"/studies/{copy}/series").json()
        world.caught_up(filed=6, ignored=ignored + len(copies))
        orthanc.delete(f"/studies/{copy}")
    world.caught_up(filed=6, ignored=ignored)


def test_nginx_asks_who_it_is_and_passes_the_rest_on(world: World) -> None:
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    folder = world.folder / "nginx"
    folder.mkdir()
    port = free_port()
    server = subprocess.Popen(
        ["nginx", "-c", proxy(folder, port, world.http_port)], stderr=subprocess.DEVNULL
    )
    try:
        url = f"https://127.0.0.1:{port}"
        trusted = ssl.create_default_context(cafile=folder / "pacs.pem")
        with httpx.Client(base_url=url, verify=trusted, trust_env=False, timeout=60) as client:
            until("nginx", lambda: _status(client))
            assert client.get("/app/explorer.html").status_code == 401
            client.auth = ("reader", "secret")
            assert "cbir" in client.get("/cbir/ui/viewer").text
            asked = {"series": uid(world.studies["SYNTH-1-002"]["t1ce"]), "k": "2"}
            same = client.post("/cbir/ui/query", data=asked, headers={"Origin": url})
            assert len(same.json()["hits"]) == 2
            other = client.post("/cbir/ui/query", data=asked, headers={"Origin": "https://elsewhere.example"})
            assert other.status_code == 403
        # the audit trail tells where a question came from, whatever the client says of itself
        far = httpx.HTTPTransport(verify=trusted, local_address="127.0.0.7", trust_env=False)
        with httpx.Client(base_url=url, transport=far, auth=("reader", "secret"), timeout=60) as client:
            lie = {"X-Forwarded-For": "203.0.113.9"}
            assert client.post("/cbir/ui/query", data=asked, headers=lie).status_code == 200
        trail = (world.index / "audit" / "dicom-audit.xml").read_text()
        assert 'NetworkAccessPointID="127.0.0.7"' in trail
        assert "203.0.113.9" not in trail
    finally:
        server.terminate()
        server.wait()


def _status(client: httpx.Client) -> int | None:
    try:
        return client.get("/").status_code
    except httpx.ConnectError:
        return None


def test_no_identifier_is_kept_or_told(world: World) -> None:
    uids = [uid(files, keyword) for study in world.studies.values() for files in study.values()
            for keyword in ("SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID")]  # fmt: skip
    secrets = [*PLANTED.values(), "Plantedname", "Plantedref", PATIENT, *uids]
    with world.asking_orthanc() as orthanc:
        secrets += orthanc.get("/series").json() + orthanc.get("/studies").json()
    written = [path for path in world.index.rglob("*") if path.is_file()]
    assert {"pacs.sqlite", "catalog.sqlite"} <= {path.name for path in written}
    texts = {str(path): path.read_bytes() for path in written}
    texts |= {name: world.log(name).encode() for name in ("service", "orthanc")}
    texts["answers"] = world.told.encode()
    for secret in secrets:
        for place, content in texts.items():
            if place == "orthanc":  # its own log names its own resources; ours are the lines of the plugin
                content = b"\n".join(line for line in content.splitlines() if b"cbir" in line)
            for encoding in ("utf-8", "utf-16-le"):
                assert secret.lower().encode(encoding) not in content.lower(), (secret, place)


def _alone(files: list[Path]) -> Path:
    """A folder with these files and no others."""
    folder = files[0].parent
    assert sorted(folder.iterdir()) == files
    return folder


def _patient(files: list[Path]) -> str:
    return uid(files, "PatientID")
