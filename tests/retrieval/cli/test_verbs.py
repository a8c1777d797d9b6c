from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexer.case_index import CaseIndex
from indexer.encoder import load_encoder
from indexer.ingest import ingest
from retrieval.cli import main
from tests.support.images import phantom, write_cohort, write_dicom, write_nifti


@pytest.fixture
def cbir(monkeypatch, capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cbir", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def indexed(cbir, cohort, tmp_path, monkeypatch):
    root = cohort(6, ("t1ce", "flair"))
    monkeypatch.setenv("CBIR_INDEX", str(tmp_path / "index"))
    code, out, _ = cbir("index", root, "--keep-ids", "--json")
    assert code == 0
    return root, json.loads(out)


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    """The same images and index, made once."""
    folder = tmp_path_factory.mktemp("twelve")
    encoder = load_encoder()
    with CaseIndex.create(folder / "index", encoder, keep_ids=True) as index:
        assert ingest(index, [write_cohort(folder / "mri", 6, ("t1ce", "flair"))], encoder).indexed == 12
    return folder


@pytest.fixture
def copied(twelve, tmp_path, monkeypatch):
    """A copy of that index."""
    monkeypatch.setenv("CBIR_INDEX", str(tmp_path / "index"))
    return shutil.copytree(twelve / "index", tmp_path / "index")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with images and an index of them that no test changes."""
    folder = tmp_path_factory.mktemp("kept")
    lines = ["participant_id\twho_grade"]
    for i in range(3):
        write_nifti(folder / "mri" / f"P-{i}" / f"P-{i}_t1ce.nii.gz", phantom(i, 2 + i))
        lines.append(f"P-{i}\t{2 + i}")
    (folder / "mri" / "participants.tsv").write_text("\n".join(lines) + "\n")
    encoder = load_encoder()
    with CaseIndex.create(folder / "index", encoder, keep_ids=True) as index:
        assert ingest(index, [folder / "mri"], encoder).cases == 3
    return folder


@pytest.mark.both
def test_index_prints_the_agreed_json(indexed, cbir):
    root, report = indexed
    assert report["schema"] == 1
    assert (report["indexed"], report["unchanged"], report["failed"], report["cases"]) == (12, 0, [], 6)
    assert {"slices", "seconds", "encoder_seconds"} <= report.keys()
    code, out, _ = cbir("index", root, "--json")
    assert code == 0
    again = json.loads(out)
    assert (again["indexed"], again["unchanged"], again["embedded"]) == (0, 12, 0)


def test_a_question_loads_nothing_that_it_does_not_need(kept, tmp_path):
    query = write_nifti(tmp_path / "scan_t1ce.nii.gz", phantom(500, 4))
    code = """if True:
        import sys
        sys.argv[1:] = ["query", *sys.argv[1:], "--json"]
        from retrieval.cli import main
        try:
            main()
        finally:
            idle = {"scipy", "skfuzzy", "jinja2", "nibabel", "pydicom", "SimpleITK", "matplotlib"}
            print(sorted(idle & sys.modules.keys()), file=sys.stderr)
    """
    asked = [sys.executable, "-c", code, str(query), "--index", str(kept / "index")]
    ran = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout)["hits"]
    assert ran.stderr.splitlines()[-1] == "[]"


@pytest.mark.both
def test_query_prints_the_agreed_json(indexed, cbir, tmp_path):
    query = write_nifti(tmp_path / "scan_t1ce.nii.gz", phantom(500, 4))
    code, out, err = cbir("query", query, "--json", "-k", 3)
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["schema"] == 1
    assert answer["query"]["source"] == str(query)
    assert answer["query"]["sequence"] == "t1ce"
    assert answer["query"]["slices"] > 0
    assert answer["query"]["region"] is None
    assert len(answer["hits"]) == 3
    fields = {
        "rank",
        "score",
        "case_id",
        "patient_id",
        "labels",
        "sequence",
        "source",
        "slice",
        "query_slice",
    }
    for hit in answer["hits"]:
        assert fields <= hit.keys()
        assert -1 <= hit["score"] <= 1
        assert hit["labels"].keys() == {"who_grade"}
    assert [h["score"] for h in answer["hits"]] == sorted((h["score"] for h in answer["hits"]), reverse=True)
    evidence = answer["evidence"]["who_grade"]
    assert sum(evidence["probabilities"].values()) == pytest.approx(1)
    assert set(evidence["set"]) <= {"2", "3", "4"}
    assert evidence["abstain"] is False
    assert answer["notice"] == "research use only, not a medical device"


def test_python_and_the_command_line_give_the_same_answer(copied, cbir, tmp_path):
    from cbir import open_index

    query = write_nifti(tmp_path / "scan_t1ce.nii.gz", phantom(500, 4))
    with open_index(tmp_path / "index") as index:
        answer = index.query(query, k=5, where={"who_grade": "3"}).to_dict()
    _, out, _ = cbir("query", query, "-k", 5, "--where", "who_grade=3", "--json")
    assert json.loads(out) == json.loads(json.dumps(answer))


def test_the_table_is_for_people_and_pipes(copied, cbir, tmp_path):
    query = write_nifti(tmp_path / "scan_t1ce.nii.gz", phantom(500, 4))
    code, out, _ = cbir("query", query, "-k", 2)
    assert code == 0
    header, first, *_ = out.splitlines()
    assert header.split("\t")[:4] == ["#", "score", "case", "who_grade"]
    assert first.split("\t")[0] == "1"
    assert "prior" in out
    assert "not a medical device" in out


def test_a_query_answers_with_every_format(copied, cbir, tmp_path):
    volume = phantom(500, 4)
    write_dicom(tmp_path / "dicom", volume)
    (tmp_path / "stack").mkdir()
    for i in range(volume.shape[2]):
        plane = volume[::-1, ::-1, i].T.clip(0, 255).astype(np.uint8)
        Image.fromarray(plane).resize((96, 112)).save(tmp_path / "stack" / f"slice-{i + 1:03}.png")
    Image.fromarray(plane).resize((96, 112)).save(tmp_path / "photo.jpg")
    middle = volume[::-1, ::-1, 5].T.clip(0, 255).astype(np.uint8)
    Image.fromarray(middle).resize((96, 112)).save(tmp_path / "one.jpg")
    nifti = write_nifti(tmp_path / "scan_t1ce.nii", volume)
    for source in (nifti, tmp_path / "dicom", tmp_path / "stack", tmp_path / "one.jpg"):
        code, out, err = cbir("query", source, "--json")
        assert code == 0, err
        assert len(json.loads(out)["hits"]) == 6


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["query", "nowhere.nii"], 1, "nowhere.nii: does not exist"),
        (["query"], 2, "one of them"),
        (["query", "{scan}", "--region", "1,2,3"], 2, "X0,Y0,X1,Y1"),
        (["query", "{scan}", "--where", "who_grade"], 2, "LABEL=VALUE"),
        (["query", "{scan}", "--where", "who_grade=7"], 1, "no case has this value"),
        (["query", "{scan}", "--region", "0,0,999,999"], 1, "region"),
        (["query", "{scan}", "-k", "0"], 2, "equal to 1"),
        (["query", "{scan}", "--index", "{tmp}/none"], 1, "cbir index"),
        (["query", "--like", "P-99"], 1, "no such case"),
        (["index", "{tmp}/none"], 1, "does not exist"),
        (["index", "{tmp}/none", "--index", "{tmp}/new"], 1, "does not exist"),
        (["remove", "P-99"], 1, "no such case"),
        (["remove"], 2, "--patient"),
        (["eval", "--label", "nothing"], 1, "nothing"),
        (["index", "{root}", "--encoder", "unknown", "--index", "{tmp}/new"], 1, "imagenet"),
        (["index", "{root}", "--labels", "{tmp}/none.csv"], 1, "none.csv"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_mistakes_end_in_one_line_without_a_traceback(
    kept, cbir, tmp_path, monkeypatch, arguments, code, told
):
    monkeypatch.setenv("CBIR_INDEX", str(kept / "index"))
    scan = write_nifti(tmp_path / "scan_t1ce.nii.gz", phantom(500, 4))
    names = {"scan": scan, "tmp": tmp_path, "root": kept / "mri"}
    got, out, err = cbir(*[a.format(**names) for a in arguments])
    assert got == code
    assert out == ""
    assert told in " ".join(err.split())
    assert "Traceback" not in err
    if code == 1:
        assert len(err.splitlines()) == 1


def test_strict_and_nothing_indexed_exit_with_one(cbir, cohort, tmp_path):
    root = cohort(2)
    (root / "broken.nii.gz").write_text("no image")
    index = ("--index", tmp_path / "i")
    code, _, err = cbir("index", root, *index)
    assert code == 0
    assert "not indexed" in err
    assert "broken.nii.gz" in err
    assert cbir("index", root, *index, "--strict")[0] == 1
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "broken.nii.gz").write_text("no image")
    assert cbir("index", tmp_path / "bad", "--index", tmp_path / "j")[0] == 1


@pytest.mark.both
def test_info_verify_remove_compact(indexed, cbir):
    code, out, _ = cbir("info", "--json")
    about = json.loads(out)
    assert code == 0
    assert (about["cases"], about["scans"], about["patients"]) == (6, 12, 6)
    assert about["encoder"].startswith("cbir ")
    assert about["slices"] == indexed[1]["slices"]
    check = json.loads(cbir("info", "--check", "--json")[1])
    assert check["recall_at_10"] == 1
    assert "P-03  who_grade=2" in cbir("info", "--cases")[1]
    assert cbir("verify")[:2] == (0, "sound\n")
    assert json.loads(cbir("remove", "P-03", "--json")[1])["removed"] == 1
    both = ("--patient", "P-04", "--patient", "P-05")
    assert json.loads(cbir("remove", *both, "--json")[1])["removed"] == 2
    about = json.loads(cbir("info", "--json")[1])
    assert (about["cases"], about["labels"], about["sequences"]) == (3, "who_grade", "flair, t1ce")
    assert cbir("--version")[:2] == (0, f"{version('cbir')}\n")
    assert cbir("compact")[0] == 0
    assert cbir("verify")[:2] == (0, "sound\n")


@pytest.mark.local
def test_verify_tells_damage_and_mends_it(copied, cbir, tmp_path):
    (vectors,) = (tmp_path / "index").glob("vectors-*")
    data = bytearray(vectors.read_bytes())
    data[-33] ^= 1
    vectors.write_bytes(data)
    code, out, err = cbir("verify")
    assert code == 1
    assert "checksum" in out
    assert "--repair" in err
    assert cbir("verify", "--repair")[0] == 0
    assert cbir("verify")[:2] == (0, "sound\n")


def test_eval_prints_the_protocol(copied, cbir, tmp_path):
    code, out, err = cbir("eval", "--json", "--bootstrap", 50, "--plot", tmp_path / "p.svg")
    assert code == 0, err
    result = json.loads(out)
    assert result["queries"] == 6
    assert (tmp_path / "p.svg").read_text().lstrip().startswith("<?xml")
    code, out, _ = cbir("eval", "--bootstrap", 50)
    assert code == 0
    for figure in ("P@1", "P@5", "P@10", "R-precision", "mAP", "MAP@R", "nDCG@10", "chance"):
        assert figure in out


def test_help_needs_no_heavy_library():
    """The reason why it is quick: nothing heavy is imported."""
    code = (
        "import sys, retrieval.cli as c\n"
        "sys.argv = ['cbir', '--help']\n"
        "try: c.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'faiss', 'numpy', 'sqlalchemy', 'pydicom', 'nibabel', 'skfuzzy', 'scipy', 'PIL'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "HEAVY []" in out
    for verb in ("index", "query", "eval", "info", "verify", "remove", "compact", "demo"):
        assert f" {verb} " in out


@pytest.mark.slow
@pytest.mark.both
def test_ctrl_c_ends_in_one_line_and_keeps_what_was_committed(cohort, tmp_path):
    import signal

    root = cohort(300)
    arguments = [sys.executable, "-m", "retrieval.cli", "index", str(root), "--index", str(tmp_path / "i")]
    held = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, held)
    for _ in range(3000):
        if (tmp_path / "i" / "writer.json").exists():
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(err.splitlines()) == 1
    assert "run it again" in err


def test_a_query_writes_its_report(copied, cbir, tmp_path):
    query = write_nifti(tmp_path / "scan_t1ce.nii.gz", phantom(500, 4))
    code, _, err = cbir("query", query, "--report", tmp_path / "out.html", "-k", 2)
    assert code == 0
    assert "out.html" in err
    page = Path(tmp_path / "out.html").read_text()
    assert page.count("data:image/") >= 4
    assert "not a medical device" in page
