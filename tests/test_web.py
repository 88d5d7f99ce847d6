"""The server of verdicts: what it answers, what it refuses, and that nothing is lost."""

import asyncio
import contextlib
import copy
import csv
import json
import re
import socket
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import requests
import uvicorn
from fastapi import FastAPI
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from stages.lib.core.errors import UserError
from stages.lib.detector.hardware import set_up_hardware
from stages.lib.evaluation.verdict_rules import DOUBTS
from stages.lib.verdict.examiner import Examiner
from stages.lib.verdict.printing import CSV_COLUMNS
from stages.lib.verdict.record import read_records
from stages.lib.verdict.results import ImageVerdict
from stages.lib.verdict.server import PAGE, make_app
from stages.lib.verdict.server_connections import server_config
from stages.lib.verdict.server_guard import Guard, Limits, plain_host
from stages.tools import serve
from tests.conftest import wait_for
from tests.films import faces_of, scene, write_film


@pytest.fixture(scope="module")
def examiner(pipeline: Path) -> Examiner:
    hardware = set_up_hardware("cpu", 1)
    return Examiner(pipeline / "data/model", hardware, crop=False, max_pixels=1_000_000)


@pytest.fixture(scope="module")
def images(pipeline: Path) -> list[bytes]:
    folder = pipeline / "data/raw/sample/phase1/valset"
    return [file.read_bytes() for file in sorted(folder.iterdir())]


@contextmanager
def served(examiner: Any, limits: Limits) -> Iterator[str]:
    """Serve verdicts on loopback; yields the address."""
    with serving(make_app(examiner, limits, ["127.0.0.1"])) as address:
        yield address


@contextmanager
def serving(guard: Guard) -> Iterator[str]:
    """Serve on loopback; yields the address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(server_config(guard, log_level="error"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            wait_for(lambda: server.started)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


@pytest.fixture(scope="module")
def address(examiner: Examiner) -> Iterator[str]:
    with served(examiner, Limits(megabytes=0.5)) as url:
        yield url


def ask(address: str, content: bytes, path: str = "detect", name: str = "a.jpg") -> Any:
    return requests.post(f"{address}/{path}", files={"file": (name, content)}, timeout=60)


def test_an_upload_gets_the_verdict_of_the_examiner(
    address: str, examiner: Examiner, images: list[bytes]
) -> None:
    answer = ask(address, images[0], name="../some name.jpg")
    record = answer.json()
    (expected,) = examiner.examine([images[0]])
    assert isinstance(expected, ImageVerdict)
    assert answer.status_code == 200 and record["file"] == "../some name.jpg"
    verdict = {name: record[name] for name in type(expected).model_fields}
    assert ImageVerdict.model_validate(verdict) == expected
    assert record["detector"]["weights"] == examiner.config.weights_sha256
    assert record["provenance"] == {
        "c2pa": None, "source_types": [], "camera": {}, "camera_from": "EXIF",
    }  # fmt: skip
    assert record["doubt"] == "trained on drawn faces alone" and record["probability"] is None


def test_an_explanation_has_the_verdict_and_its_drawings(address: str, images: list[bytes]) -> None:
    explanation = ask(address, images[0], "explain").json()
    assert explanation["record"]["sha256"] == ask(address, images[0]).json()["sha256"]
    (face,) = explanation["faces"]
    doubt = DOUBTS["trained on drawn faces alone"]
    assert explanation["in_words"] == doubt
    assert len(explanation["not_told"]) == 3
    drawings = [face["image"], face["heatmap"], *face["views"].values()]
    assert len(drawings) == 7
    assert all(one.startswith("data:image/png;base64,") for one in drawings)


class Counting:
    """An examiner that is slow and counts the images of each batch."""

    def __init__(self, examiner: Examiner, seconds: float) -> None:
        self.real, self.seconds = examiner, seconds
        self.batches: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def examine(self, contents: list[bytes]) -> Any:
        time.sleep(self.seconds)
        self.batches.append(len(contents))
        return self.real.examine(contents)


def test_requests_that_arrive_together_are_examined_together(
    examiner: Examiner, images: list[bytes]
) -> None:
    counting = Counting(examiner, seconds=0.3)
    with served(counting, Limits(batch_size=8)) as address, ThreadPoolExecutor(24) as pool:
        contents = [*images[:20], b"no image"]
        answers = list(pool.map(lambda content: ask(address, content), contents))
    expected = [
        one.sha256 for one in examiner.examine(images[:20]) if isinstance(one, ImageVerdict)
    ]
    assert [answer.json()["sha256"] for answer in answers[:20]] == expected
    assert answers[20].status_code == 400
    assert sum(counting.batches) == 21 and max(counting.batches) == 8
    assert len(counting.batches) <= 6


def test_more_requests_than_may_wait_are_sent_away(examiner: Examiner, images: list[bytes]) -> None:
    counting = Counting(examiner, seconds=0.5)
    with (
        served(counting, Limits(requests=2, batch_size=1)) as address,
        ThreadPoolExecutor(8) as pool,
    ):
        answers = list(pool.map(lambda _: ask(address, images[0]), range(8)))
    codes = sorted(answer.status_code for answer in answers)
    assert set(codes) == {200, 503} and codes.count(200) >= 2
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.json()["detail"] == "2 requests are waiting; try again in a moment"
    assert refused.headers["Retry-After"] == "1"


def test_a_request_without_its_body_keeps_nobody_out(
    examiner: Examiner, images: list[bytes]
) -> None:
    """Where too many bytes are announced, the oldest uploads end before their time."""
    silent = "POST /detect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: "
    limits = Limits(megabytes=0.05, video_megabytes=0.07, requests=1, seconds=3)
    with served(examiner, limits) as address:
        connections = [connect(address, f"{silent}75000\r\n\r\n") for _ in range(8)]
        start = time.monotonic()
        assert ask(address, images[0]).status_code == 200
        answers = [read_all(connection) for connection in connections[:6]]
        assert time.monotonic() - start < 2
        answers += [read_all(connection) for connection in connections[6:]]
    assert {answer.split("\r\n")[0] for answer in answers} == {"HTTP/1.1 408 Request Timeout"}
    assert all("the file did not arrive in time" in answer for answer in answers)
    assert 2.5 < time.monotonic() - start < 6


def connect(address: str, request: str) -> socket.socket:
    """Send the beginning of a request; return its connection."""
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=9)
    connection.sendall(request.encode())
    return connection


def read_all(connection: socket.socket) -> str:
    """Return what comes until the server ends the connection, and end it."""
    answer = b""
    with connection, contextlib.suppress(ConnectionResetError):
        while part := connection.recv(4096):
            answer += part
    return answer.decode()


@pytest.mark.parametrize(
    "drops",
    [
        [""],
        ["POST /detect HTTP/1.1\r\nHost: 127.0.0.1\r\n", *["X-A: b\r\n"] * 9],
        ["GET /health HTTP/1.1\r\nHost: a\r\n\r\n", *["X-A: b\r\n"] * 9],
        ["POST /detect HTTP/1.1\r\nHost: evil\r\nContent-Length: 99999\r\n\r\n", *["x"] * 9],
    ],
    ids=["nothing", "headers without end", "second headers without end", "body after the answer"],
)
def test_a_connection_that_asks_nothing_is_ended(drops: list[str]) -> None:
    """Drops of bytes do not renew its time."""
    guard = Guard(make_health(), Limits(seconds=0.6), ["127.0.0.1"])
    with serving(guard) as address:
        connection = connect(address, "")
        connection.settimeout(0.3)
        start, is_open = time.monotonic(), True
        for drop in drops * 3 if drops == [""] else drops:
            try:
                connection.sendall(drop.encode())
                is_open = connection.recv(4096) != b""
            except TimeoutError:
                continue
            except ConnectionError:
                is_open = False
            if not is_open:
                break
        connection.close()
    assert not is_open and 0.5 < time.monotonic() - start < 2.5


def make_health() -> FastAPI:
    """Return a server that has nothing but its health."""
    app = FastAPI()
    app.get("/health")(lambda: {})
    return app


def test_a_connection_that_asks_again_and_again_stays() -> None:
    guard = Guard(make_health(), Limits(seconds=0.6), ["127.0.0.1"])
    with serving(guard) as address:
        connection = HTTPConnection(address.removeprefix("http://"), timeout=9)
        connection.connect()
        first = connection.sock
        for _ in range(5):
            connection.request("GET", "/health")
            assert connection.getresponse().read() == b"{}"
            time.sleep(0.25)
        assert connection.sock is first
        connection.close()


def test_a_request_that_takes_too_long_is_told_and_not_examined(
    examiner: Examiner, images: list[bytes]
) -> None:
    counting = Counting(examiner, seconds=1.0)
    with served(counting, Limits(seconds=0.4, batch_size=1)) as address:
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda _: ask(address, images[0]), range(3)))
        assert {(answer.status_code, answer.json()["detail"]) for answer in answers} == {
            (504, "no answer within 0.4 seconds; try again later")
        }
        counting.seconds = 0.0
        time.sleep(1)
        assert ask(address, images[0]).status_code == 200
    assert sum(counting.batches) == 2  # the first of the three, which had begun, and the last one


def test_a_defect_is_an_error_of_one_request_and_the_server_stays(
    examiner: Examiner, images: list[bytes]
) -> None:
    counting = Counting(examiner, seconds=0)
    with served(counting, Limits()) as address:
        counting.real = None  # pyrefly: ignore[bad-assignment]
        answer = ask(address, images[0])
        assert answer.status_code == 500
        assert answer.json()["detail"] == "an error inside the server; its log has the details"
        counting.real = examiner
        assert ask(address, images[0]).status_code == 200


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 400, "empty file"),
        (b"no image", 400, "not an image of a known format"),
        (b"x" * 600_000, 413, "the file is larger than 0.5 MB"),
    ],
)
def test_what_is_no_image_is_refused(address: str, content: bytes, status: int, words: str) -> None:
    for path in ("detect", "explain"):
        answer = ask(address, content, path)
        assert (answer.status_code, answer.json()["detail"]) == (status, words)


def test_other_requests_are_refused_in_words(address: str) -> None:
    answer = requests.post(f"{address}/detect", data=iter([b"x"]), timeout=9)  # in chunks
    assert answer.status_code == 411 and "Content-Length" in answer.json()["detail"]
    for path in ("/../params.yaml", "/%2e%2e/params.yaml", "//etc/passwd", "/docs"):
        assert raw(address, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").startswith("404")
    chunked = "POST /detect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n"
    assert raw(address, chunked + "Transfer-Encoding: chunked\r\n\r\n").startswith("411")
    stranger = requests.get(address, headers={"Host": "example.org"}, timeout=9)
    assert stranger.status_code == 400 and "under that name" in stranger.json()["detail"]
    headers = {"Sec-Fetch-Site": "cross-site"}
    answer = requests.post(f"{address}/detect", files={"file": b"x"}, headers=headers, timeout=9)
    assert answer.status_code == 403 and "other sites" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("files", "data", "status", "words"),
    [
        ([("file", b"a"), ("file", b"b")], {}, 422, "and nothing else; the form has file, file"),
        ([("file", b"a"), ("other", b"b")], {}, 422, "and nothing else; the form has file, other"),
        ([("file", b"a")], {"crop": "no"}, 422, "and nothing else; the form has crop, file"),
        ([("file", b"a")], {"file": "no"}, 422, "and nothing else; the form has file, file"),
        ([("image", b"a")], {}, 422, "send one image or video as the form field `file`, and"),
        (
            [],
            {"file": "text"},
            422,
            "send one image or video as the form field `file`, and nothing else",
        ),
        ([], {"path": "/etc/passwd"}, 422, "send one image or video as the form field `file`, and"),
        ([], {}, 422, "send one image or video as the form field `file`, and"),
    ],
)
def test_a_form_is_one_image_and_nothing_else(
    address: str, files: list[tuple[str, bytes]], data: dict[str, str], status: int, words: str
) -> None:
    for path in ("detect", "explain"):
        named = [(name, ("a.jpg", content)) for name, content in files]
        answer = requests.post(f"{address}/{path}", files=named, data=data, timeout=9)
        assert answer.status_code == status and words in answer.json()["detail"]


def test_a_form_of_a_browser_in_which_no_file_was_chosen_is_refused(address: str) -> None:
    part = 'Content-Disposition: form-data; name="file"; filename=""'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    body = f"--x\r\n{part}\r\n\r\n\r\n--x--\r\n"
    answer = requests.post(f"{address}/detect", data=body, headers=headers, timeout=9)
    assert answer.status_code == 422 and "send one image" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("::1", "[::1]:8000"),
        ("::1", "[0:0:0:0:0:0:0:1]"),
        ("0:0::1", "[::1]"),
        ("[::1]", "[::1]:1"),
        ("FE80::A", "[fe80::a]"),
        ("localhost", "LOCALHOST:8000"),
        ("Faces.Example", "faces.example"),
        ("localhost", "localhost.:8000"),
    ],
)
def test_a_name_of_a_server_has_one_form(name: str, host: str) -> None:
    assert plain_host(name) == plain_host(host) != ""
    assert plain_host("127.0.0.1") not in (plain_host(""), plain_host("x127.0.0.1"))
    for strange in ("[::1", "127.0.0.1:80:90", "a:b", "user@localhost", "[::1]x", "null"):
        assert plain_host(strange) not in {plain_host(name), "127.0.0.1", "localhost", "::1"}


@pytest.mark.parametrize(
    ("origin", "is_let_in"),
    [
        (None, True),
        ("http://127.0.0.1:8000", True),
        ("https://127.0.0.1", True),
        ("http://example.org", False),
        ("http://127.0.0.1.example.org", False),
        ("null", False),
        ("", False),
        ("http://127.0.0.1@example.org", False),
        ("http://[::1]:8000", False),
    ],
)
def test_a_page_of_another_origin_may_not_send_images(
    address: str, images: list[bytes], origin: str | None, is_let_in: bool
) -> None:
    """Also of a browser that is too old for Sec-Fetch-Site."""
    headers = {} if origin is None else {"Origin": origin}
    files = {"file": ("a.jpg", images[0])}
    answer = requests.post(f"{address}/detect", files=files, headers=headers, timeout=60)
    assert answer.status_code == (200 if is_let_in else 403)


def test_health_is_told_under_any_name_and_to_head(address: str) -> None:
    for host in ("10.1.2.3:80", "[fd00::1]", "balancer.example", ""):
        for ask_health in (requests.get, requests.head):
            answer = ask_health(f"{address}/health", headers={"Host": host}, timeout=9)
            assert answer.status_code == 200
        assert answer.content == b""
        for method, path in (("POST", "health"), ("GET", "model"), ("GET", ""), ("HEAD", "")):
            headers = {"Host": host}
            answer = requests.request(method, f"{address}/{path}", headers=headers, timeout=9)
            assert answer.status_code == 400


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_a_server_at_an_address_of_ipv6_can_be_asked(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    """It prints an address that a browser takes, and what its detector is worth."""
    with socket.socket(socket.AF_INET6) as free:
        try:
            free.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    answers = []

    def run_server(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        address = capsys.readouterr()
        assert "drawn faces alone" in address.err
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets)))
        thread.start()
        wait_for(lambda: server.started)
        answers.append(requests.get(f"{address.out.split()[0]}/model", timeout=9))
        server.should_exit = True
        thread.join(10)

    monkeypatch.chdir(pipeline)
    monkeypatch.setattr(sys, "argv", ["serve", "--host", host, "--port", "0"])
    monkeypatch.setattr(uvicorn.Server, "run", run_server)
    serve.main()
    assert answers[0].status_code == 200 and answers[0].url.startswith("http://[::1]:")


@pytest.mark.parametrize("port", ["70000", "-1", "http"])
def test_a_port_that_there_is_not_is_one_line(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setattr(sys, "argv", ["serve", f"--port={port}"])
    with pytest.raises(UserError, match=f"argument --port: invalid port value: '{port}'; see"):
        serve.main()


def raw(address: str, request: str) -> str:
    """Send a request as it is; return the beginning of the answer."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=9) as connection:
        connection.sendall(request.encode())
        return connection.recv(4096).decode().removeprefix("HTTP/1.1 ")


def test_the_server_says_what_it_is(address: str, examiner: Examiner) -> None:
    assert requests.get(f"{address}/health", timeout=9).json() == {"status": "ok"}
    facts = requests.get(f"{address}/model", timeout=9).json()
    assert facts["detector"]["thresholds"] == examiner.rules.thresholds.model_dump()
    assert facts["trained_on"]["num_images"] == examiner.rules.trained_on.num_images
    assert facts["doubt"] == DOUBTS["trained on drawn faces alone"]
    assert {"/detect", "/explain", "/model", "/health"} <= set(
        requests.get(f"{address}/openapi.json", timeout=9).json()["paths"]
    )


def test_the_page_needs_no_network(address: str) -> None:
    answer = requests.get(address, timeout=9)
    assert answer.text == PAGE.read_text()
    assert not re.search(r"(https?:)?//\w", answer.text)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy


@pytest.fixture
def believed_address(examiner: Examiner, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server whose detector is not doubted."""
    monkeypatch.setattr(examiner, "rules", examiner.rules.model_copy(update={"doubt": None}))
    with served(examiner, Limits(megabytes=0.5)) as url:
        yield url


def test_a_detector_that_is_believed_tells_its_probability(
    believed_address: str, images: list[bytes]
) -> None:
    assert requests.get(f"{believed_address}/model", timeout=9).json()["doubt"] is None
    explanation = ask(believed_address, images[0], "explain").json()
    record = explanation["record"]
    assert record["doubt"] is None and record["probability"] == record["faces"][0]["probability"]
    words = f"{record['probability']:.1%} probability of a fake. "
    assert explanation["in_words"].startswith(words)
    assert "reason to look closer" in explanation["not_told"][0]


@pytest.fixture(scope="module")
def film(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    first, second = faces_of(pipeline, 2)
    moving = scene([(first, 20, 2), (second, 400, -2)], 50)
    return write_film(tmp_path_factory.mktemp("films") / "film.mp4", moving)


@pytest.fixture(scope="module")
def cutting_address(examiner: Examiner) -> Iterator[str]:
    """The address of a server that is believed and cuts out the faces."""
    cutting = copy.copy(examiner)
    cutting.crop, cutting.rules = True, examiner.rules.model_copy(update={"doubt": None})
    with served(cutting, Limits(video_megabytes=1, frames=6)) as url:
        yield url


def post(url: str, path: Path) -> requests.Response:
    with path.open("rb") as file:
        return requests.post(url, files={"file": (path.name, file)}, timeout=60)


def test_a_video_has_a_record_its_persons_and_its_strongest_frames(
    cutting_address: str, film: Path, tmp_path: Path
) -> None:
    record = post(f"{cutting_address}/detect", film).json()
    assert record["frames_judged"] == 6 and len(record["persons"]) == 2
    explanation = post(f"{cutting_address}/explain", film).json()
    assert explanation["record"]["sha256"] == record["sha256"] and explanation["faces"] == []
    assert {person["number"] for person in explanation["persons"]} == {1, 2}
    scores = [frame["score"] for frame in explanation["frames"]]
    assert len(scores) == 4 and scores == sorted(scores, reverse=True)
    shown = {(frame["person"], frame["seconds"]) for frame in explanation["frames"]}
    for number, person in enumerate(record["persons"], 1):
        strongest = sorted(person["frames"], key=lambda frame: frame["logit"])[-2:]
        assert {(number, frame["seconds"]) for frame in strongest} <= shown
    assert "persons in 6 of 50 frames" in explanation["in_words"]
    for bad in (b"no video", film.read_bytes()[:9000]):
        (tmp_path / "bad.mov").write_bytes(bad)
        answer = post(f"{cutting_address}/detect", tmp_path / "bad.mov")
        assert answer.status_code == 400 and "damaged video" in answer.json()["detail"]
    (tmp_path / "large.mp4").write_bytes(bytes(1_100_000))
    assert post(f"{cutting_address}/detect", tmp_path / "large.mp4").status_code == 413


def test_records_and_errors_become_the_table_of_the_command(
    believed_address: str, images: list[bytes]
) -> None:
    lines = [ask(believed_address, images[number]).text for number in range(2)]
    lines.append(json.dumps({"file": "=bad.jpg", "verdict": "error", "error": "empty file"}))
    answer = requests.post(f"{believed_address}/csv", data="\n".join(lines), timeout=9)
    rows = list(csv.DictReader(StringIO(answer.text)))
    assert list(rows[0]) == list(CSV_COLUMNS) and len(rows) == 3
    records = [json.loads(line) for line in lines]
    assert [row["verdict"] for row in rows] == [record["verdict"] for record in records]
    assert float(rows[0]["probability"]) == pytest.approx(records[0]["probability"], abs=1e-6)
    assert rows[2]["file"] == "'=bad.jpg" and rows[2]["why"] == "empty file"
    for bad in ("[]", "{}", "text", '{"verdict": "error"}', "[" * 100_000):
        answer = requests.post(f"{believed_address}/csv", data=bad, timeout=9)
        assert answer.status_code == 422 and "JSON a line" in answer.json()["detail"]


@pytest.mark.slow
def test_a_person_looks_through_a_folder_with_the_keyboard(
    cutting_address: str,
    browser: webdriver.Chrome,
    images: list[bytes],
    film: Path,
    screenshots: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "folder"
    (folder / "inside").mkdir(parents=True)
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(images[number])
    (folder / "inside/film.mp4").write_bytes(film.read_bytes())
    (folder / "broken.jpg").write_text("no image")
    (folder / "notes.txt").write_text("no image either")
    (folder / "@eaDir").mkdir()
    (folder / "@eaDir/0.jpg").write_bytes(images[0])
    browser.get(cutting_address)
    learnt = browser.find_element(By.ID, "learnt")
    wait_for(lambda: "has learnt from 60 images" in learnt.text)
    browser.find_element(By.ID, "folder").send_keys(str(folder))
    status = browser.find_element(By.ID, "status")
    wait_for(lambda: status.text.startswith("6 of 6 examined: "))
    assert status.text.endswith("; left out 2 other files")
    rows = browser.find_elements(By.CSS_SELECTOR, "#files tbody tr")
    cells = [[cell.text for cell in row.find_elements(By.TAG_NAME, "td")] for row in rows]
    ranks = [["fake", "unsure", "real", "error"].index(row[2]) for row in cells]
    assert ranks == sorted(ranks) and len(rows) == 6
    assert cells[-1] == ["", "folder/broken.jpg", "error", "", "not an image of a known format"]
    assert any(row[1] == "folder/inside/film.mp4" for row in cells)
    for width in (1200, 390):
        browser.set_window_size(width, 900)
        browser.save_screenshot(str(screenshots / f"table-{width}.png"))
        wide = "return document.documentElement.scrollWidth > innerWidth"
        assert not browser.execute_script(wide)
    body = browser.find_element(By.TAG_NAME, "body")
    number = [row[1] for row in cells].index("folder/inside/film.mp4")
    browser.execute_script("arguments[0].focus()", rows[-1])
    for _ in rows:
        browser.switch_to.active_element.send_keys(Keys.ARROW_UP)
    assert browser.switch_to.active_element == rows[0]
    for _ in range(number):
        browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert browser.switch_to.active_element == rows[number]
    rows[number].send_keys(Keys.ENTER)
    result = browser.find_element(By.ID, "result")
    wait_for(result.is_displayed)
    assert result.text.count("folder/inside/film.mp4") == 1
    assert "P(fake) over time" in result.text and "Person 1 at " in result.text
    assert len(browser.find_elements(By.CSS_SELECTOR, "#course .frame")) == 12
    browser.save_screenshot(str(screenshots / "video.png"))
    body.send_keys(Keys.ESCAPE)
    wait_for(lambda: not result.is_displayed())
    assert browser.switch_to.active_element == rows[number]
    severe = [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert all("400" in line for line in severe)  # that of the broken file


DROP = """
const files = new DataTransfer();
for (const [name, content] of Object.entries(arguments[0])) {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  files.items.add(new File([bytes], name, { type: "image/jpeg" }));
}
document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: files }));
"""
SAVE = """
window.saved = {};
const real = URL.createObjectURL;
URL.createObjectURL = (blob) => {
  if (/csv|jsonl/.test(blob.type)) blob.text().then((text) => { saved[blob.type] = text; });
  return real.call(URL, blob);
};
"""


@pytest.mark.slow
def test_what_is_dropped_can_be_downloaded_as_csv_and_as_a_record(
    cutting_address: str, browser: webdriver.Chrome, images: list[bytes], tmp_path: Path
) -> None:
    browser.get(cutting_address)
    contents = {f"{number}.jpg": images[number] for number in range(3)} | {"bad.jpg": b"text"}
    dropped = {name: b64encode(content).decode() for name, content in contents.items()}
    for _ in range(2):  # what the first drop gives must not come among the files of the second one
        browser.execute_script(DROP, dropped)
    status = browser.find_element(By.ID, "status")
    wait_for(lambda: status.text.startswith("4 of 4 examined: "))
    assert len(browser.find_elements(By.CSS_SELECTOR, "#files tbody tr")) == 4
    browser.execute_script(SAVE)
    for name in ("csv", "record"):
        browser.find_element(By.ID, name).click()
    saved = wait_for(lambda: len(found := browser.execute_script("return saved")) == 2 and found)
    rows = list(csv.DictReader(StringIO(saved["text/csv"])))
    assert {row["file"] for row in rows} == set(contents) and rows[-1]["verdict"] == "error"
    record = tmp_path / "verdicts.jsonl"
    record.write_text(saved["application/jsonl"])
    records, half_line = read_records(record)
    assert not half_line and {one.file for one in records} == {"0.jpg", "1.jpg", "2.jpg"}


@pytest.mark.slow
def test_a_person_is_told_first_that_a_detector_cannot_be_believed(
    address: str, browser: webdriver.Chrome, pipeline: Path, screenshots: Path
) -> None:
    browser.get(address)
    doubt = browser.find_element(By.ID, "doubt")
    wait_for(doubt.is_displayed)
    assert doubt.text == DOUBTS["trained on drawn faces alone"]
    photo = min((pipeline / "data/raw/sample/phase1/valset").iterdir())
    browser.find_element(By.ID, "file").send_keys(str(photo))
    result = browser.find_element(By.ID, "result")
    wait_for(result.is_displayed)
    text = browser.find_element(By.TAG_NAME, "main").text
    assert text.index(doubt.text) < text.index(photo.name)
    assert "probability" not in text and "P(fake)" not in text and "look closer" not in text
    assert not browser.find_element(By.ID, "meter").is_displayed()
    browser.save_screenshot(str(screenshots / "doubt.png"))


@pytest.mark.slow
def test_a_person_examines_an_image_with_the_keyboard(
    believed_address: str,
    browser: webdriver.Chrome,
    pipeline: Path,
    screenshots: Path,
    tmp_path: Path,
) -> None:
    browser.get(believed_address)
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    chooser = browser.switch_to.active_element
    assert chooser.get_attribute("id") == "file" and chooser.accessible_name
    labels = pd.read_csv(pipeline / "data/labels/val.csv")
    name = labels.loc[labels["face"] > 0, "img_name"].iloc[0]
    photo = pipeline / "data/raw/sample/phase1/valset" / name
    chooser.send_keys(str(photo))
    result = browser.find_element(By.ID, "result")
    wait_for(result.is_displayed)
    assert browser.switch_to.active_element == result  # so that a screen reader goes on there
    status = browser.find_element(By.ID, "status")
    assert status.text == "" and status.get_attribute("aria-live") == "polite"
    assert result.text.count(photo.name) == 1  # the name and the verdict once
    for words in (
        "probability of a fake",
        "Face 1: ",
        "P(fake) after a little compression",
        "Nothing in this file",
        "What this does not tell you",
        "SHA-256",
    ):
        assert words in result.text
    assert all(image.accessible_name for image in browser.find_elements(By.TAG_NAME, "img"))
    slider = browser.find_element(By.CSS_SELECTOR, "input[type=range]")
    assert slider.accessible_name == "Heatmap of face 1, from hidden to full"
    heat = browser.find_element(By.CSS_SELECTOR, ".heat")
    slider.send_keys(Keys.HOME)
    assert heat.value_of_css_property("opacity") == "0"
    slider.send_keys(Keys.END)
    assert heat.value_of_css_property("opacity") == "1"
    browser.save_screenshot(str(screenshots / "verdict.png"))
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    browser.find_element(By.ID, "file").send_keys(str(text))
    alert = browser.find_element(By.ID, "error")
    wait_for(alert.is_displayed)
    assert alert.text == "text.jpg: not an image of a known format"
    assert alert.get_attribute("role") == "alert" and not result.is_displayed()
    severe = [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert all("400" in message for message in severe), severe  # the answer to text.jpg
