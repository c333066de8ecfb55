"""`mcvd serve`: the page's questions, asked of a server that runs."""

import asyncio
import contextlib
import importlib.util
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

import tiny
from mcvd.cli.main import main
from mcvd.data.video import contact_sheet, read_video, write_video
from mcvd.errors import McvdError
from mcvd.layout import Masking
from mcvd.model import VideoDiffusion
from mcvd.web import jobs
from mcvd.web.app import application
from mcvd.web.clips import COLUMNS, Clip, ClipStore, file_name

HOST = "127.0.0.1"


class Server:
    """The page of a tiny model, and questions to it."""

    def __init__(self, model=None, **options):
        self.model = model or tiny.model()
        listening = socket.create_server((HOST, 0))
        self.url = f"http://{HOST}:{listening.getsockname()[1]}/"
        app = application(self.model, "tiny", ["Mine.example"], **options)
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listening]}, daemon=True)
        self.thread.start()

    def stop(self):
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()

    def ask(self, path, data=None, method=None, **headers):
        """(status, body)"""
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def json(self, path, data=None, method=None):
        status, body = self.ask(path, data, method)
        assert status in (200, 202), body
        return json.loads(body)

    def refused(self, path, data=None):
        status, body = self.ask(path, data)
        assert status == 400
        return json.loads(body)["error"]

    def send(self, path, query=""):
        return self.json(f"clips?name={path.name}{query}", path.read_bytes())

    def order(self, timeline, **more):
        return self.json("orders", json.dumps({"timeline": timeline, **more}).encode())["id"]

    def finished(self, key):
        for _ in range(600):
            if (now := self.json(f"orders/{key}"))["state"] not in ("waiting", "running"):
                return now
            time.sleep(0.05)
        raise AssertionError(now)

    def frames(self, clip, folder):
        path = folder / f"{clip['id']}.npz"
        path.write_bytes(self.ask(f"clips/{clip['id']}/file.npz")[1])
        return read_video(path)


@pytest.fixture(scope="module")
def server():
    made = Server()
    yield made
    made.stop()


@pytest.fixture
def sent(server, tmp_path):
    """A clip of six frames that the server has, and its frames."""
    path = tmp_path / "six.npz"
    write_video(path, frames := tiny.video(6, 1, 16, 16))
    return server.send(path), frames


def cells(clip, frames, given=True):
    return [{"clip": clip["id"], "frame": i, "given": given} for i in frames]


def test_the_page_asks_nobody_else(server):
    for path in ("", "page.css", "page.js"):
        status, body = server.ask(path)
        assert status == 200
        assert not re.search(rb"https?://", body)
    assert b"default-src 'self'" in urllib.request.urlopen(server.url).headers["Content-Security-Policy"].encode()


def test_every_name_that_the_page_uses_is_on_it(server):
    page, script = server.ask("")[1].decode(), server.ask("page.js")[1].decode()
    used = set(re.findall(r'(?:\$|number)\("([a-z-]+)"\)', script))
    assert used <= set(re.findall(r'id="([a-z0-9-]+)"', page))


def test_the_model_is_told(server):
    about = server.json("model")
    assert (about["name"], about["height"], about["channels"]) == ("tiny", 16, 1)
    assert (about["past"], about["current"], about["future"]) == (2, 3, 1)
    assert about["tasks"] == ["predict", "backward", "interpolate", "generate"]
    assert about["solver"] in about["solvers"]


def test_a_clip_that_is_sent_comes_back_as_frames(server, sent):
    clip, frames = sent
    assert (clip["name"], clip["frames"]) == ("six.npz", 6)
    picture = Image.open(io.BytesIO(server.ask(f"clips/{clip['id']}/grid.png")[1]))
    assert picture.size == (COLUMNS * 16, 16)
    pixels = torch.tensor(list(picture.getdata())).view(16, COLUMNS, 16)
    assert torch.equal(pixels[:, :6].movedim(1, 0), frames[:, 0].long())


def test_rows_of_the_picture_are_those_that_the_page_counts():
    for frames, rows in ((COLUMNS, 1), (COLUMNS + 1, 2)):
        clip = Clip("a", tiny.video(frames, 1, 16, 16), 10.0, "")
        assert Image.open(io.BytesIO(clip.grid())).size == (COLUMNS * 16, rows * 16)


def test_a_clip_of_another_kind_is_brought_to_the_model(server, tmp_path):
    path = tmp_path / "wide.mp4"
    write_video(path, tiny.video(40, 3, 48, 64), fps=20, scale=1)
    clip = server.send(path, "&stride=2&fit=stretch")
    assert (clip["frames"], clip["fps"]) == (20, 10.0)
    assert clip["was"] == "64x48, 40 frames at 20 fps"
    picture = Image.open(io.BytesIO(server.ask(f"clips/{clip['id']}/grid.png")[1]))
    assert picture.size == (COLUMNS * 16, 2 * 16)


def test_what_is_made_is_what_fill_makes(server, sent, tmp_path):
    clip, frames = sent
    timeline = [None, *cells(clip, [4, 1]), *cells(clip, [2], given=False), None, *cells(clip, [0])]
    done = server.finished(server.order(timeline, samples=2, steps=3, solver="ddpm", seed=5, name="mine"))
    assert done["state"] == "done"
    known = [False, True, True, False, False, True]
    assert [bool(block) for block in done["blocks"]] == [not flag for flag in known]

    video = torch.zeros(6, 1, 16, 16, dtype=torch.uint8)
    video[1], video[2], video[5] = frames[4], frames[1], frames[0]
    expected = server.model.fill(video, known, samples=2, steps=3, solver="ddpm", seed=5)
    assert [made["name"] for made in done["clips"]] == ["mine 1", "mine 2"]
    for made, want in zip(done["clips"], expected):
        got = server.frames(made, tmp_path)
        assert torch.equal(got[known], video[known])
        assert torch.equal(got, (want * 255).round().to(torch.uint8))


def test_what_is_made_can_be_gone_on_from_and_taken_home(server, tmp_path):
    [made] = server.finished(server.order([None] * 4, steps=2))["clips"]
    again = server.finished(server.order([*cells(made, range(4)), None], steps=2))
    assert torch.equal(server.frames(again["clips"][0], tmp_path)[:4], server.frames(made, tmp_path))
    assert again["clips"][0]["was"] == "1 frame generated from 4 given frames"
    for suffix, start in (("mp4", b"ftyp"), ("gif", b"GIF89a"), ("webm", b"\x1aE\xdf\xa3"), ("png", b"\x89PNG")):
        status, body = server.ask(f"clips/{made['id']}/file.{suffix}")
        assert status == 200
        assert start in body[:16]


def test_a_model_of_another_kind_has_its_own_defaults(tmp_path, monkeypatch):
    """In colour, of every second frame, for prediction alone, with few noise levels, a solver and a rate of its own."""
    model = tiny.model(channels=3, masking=Masking(0.0, 0.5), steps=8)
    model.config = replace(model.config, solver="ddim", fps=7.0)
    model.notes["stride"] = 2
    server = Server(model, precision="bf16", engine="openvino")
    try:
        about = server.json("model")
        assert (about["tasks"], about["stride"], about["solver"]) == (["predict", "interpolate"], 2, "ddim")
        assert about["solvers"]["ddpm"]["steps"] == 8
        write_video(tmp_path / "a.npz", frames := tiny.video(8, 3, 16, 16))
        clip = server.send(tmp_path / "a.npz")
        assert (clip["frames"], clip["fps"]) == (4, 7.0)  # arrays have no rate
        picture = Image.open(io.BytesIO(server.ask(f"clips/{clip['id']}/grid.png")[1]))
        assert torch.equal(torch.tensor(np.array(picture)[:, :16]).movedim(2, 0), frames[0])
        write_video(tmp_path / "b.mkv", frames, fps=20)

        asked = {}

        def fill(video, known, **options):
            asked.update(options)
            return video[None].repeat(2, 1, 1, 1, 1)

        monkeypatch.setattr(model, "fill", fill)
        refused = server.refused("orders", b'{"timeline": [null], "guidance": 1.5}')
        assert "guidance needs a model that saw blocks with everything hidden" in refused
        now = server.finished(server.order([*cells(server.send(tmp_path / "b.mkv"), [0, 1]), None], samples=2))
        assert now["fps"] == 10.0  # the clip's, of every second frame
        del asked["progress"]
        assert asked == {
            "samples": 2,
            "solver": "ddim",
            "steps": None,
            "seed": 0,
            "guidance": 1.0,
            "precision": "bf16",
            "engine": "openvino",
        }
    finally:
        server.stop()


def test_what_is_made_has_the_rate_of_the_first_clip(server, tmp_path):
    timeline = []
    for fps in (20, 5):
        write_video(path := tmp_path / f"{fps}.mkv", tiny.video(3, 1, 16, 16), fps=fps, scale=1)
        timeline += cells(server.send(path), [0])
    assert server.finished(server.order([*timeline, None], steps=1))["fps"] == 20


def test_finished_orders_are_forgotten_from_the_oldest_on(server, monkeypatch):
    monkeypatch.setattr(jobs, "MOST_REMEMBERED", 2)
    keys = [server.order([None], steps=1) for _ in range(2)]
    server.finished(keys[1])
    keys += [server.order([None], steps=1) for _ in range(2)]
    server.finished(keys[-1])
    server.order([None], steps=1)
    here = [found["id"] for found in server.json("orders")]
    assert here[-3:-1] == keys[2:]
    assert not set(keys[:2]) & set(here)


def test_the_picture_of_all(server, sent, tmp_path):
    key = server.order([*cells(sent[0], range(2)), None], samples=2, steps=2)
    made = server.finished(key)["clips"]
    rows = [(f"sample {i}", server.frames(clip, tmp_path)) for i, clip in enumerate(made, 1)]
    expected = contact_sheet(rows, [0, 0, 1])
    with urllib.request.urlopen(f"{server.url}orders/{key}/sheet.png") as answer:
        assert np.array_equal(Image.open(answer), expected)
        assert answer.headers["Content-Disposition"] is None  # shown, not saved
    long = server.order([None] * 600)
    assert "that order has no videos yet" in server.refused(f"orders/{long}/sheet.png")
    server.ask(f"orders/{long}", method="DELETE")


def test_a_page_that_is_opened_again_finds_what_was_made(server, sent):
    clip, _ = sent
    key = server.order([*cells(clip, [0]), None], steps=2)
    mine = next(found for found in server.json("orders") if found["id"] == key)
    assert mine["order"]["timeline"] == [*cells(clip, [0]), None]
    assert mine["clips"] == {clip["id"]: clip}
    server.finished(key)


def test_an_order_is_told_to_other_pages_as_it_was_carried_out(server):
    asked = {"timeline": [None], "steps": 1, "name": "half a letter: \ud800"}
    key = server.json("orders", json.dumps(asked).encode())["id"]
    assert [made["name"] for made in server.finished(key)["clips"]] == ["half a letter: ?"]
    order = next(found["order"] for found in server.json("orders") if found["id"] == key)
    assert order == {**asked, "samples": 1, "solver": "ddpm", "seed": 0, "guidance": 1.0, "name": "half a letter: ?"}


def test_the_guidance_that_is_asked_for_reaches_the_model(server, monkeypatch):
    asked = {}
    monkeypatch.setattr(
        VideoDiffusion, "fill", lambda self, video, known, **options: asked.update(options) or video[None]
    )
    server.finished(server.order([None], guidance=1.5))
    assert asked["guidance"] == 1.5


def test_an_order_outlives_what_it_made(server, monkeypatch):
    key = server.order([None], steps=1)
    server.finished(key)
    monkeypatch.setattr(ClipStore, "get", lambda self, key: None)
    now = server.json(f"orders/{key}")
    assert (now["state"], now["clips"]) == ("done", [])


def test_the_page_is_told_how_long_it_takes(server, monkeypatch):
    key = server.order([None], steps=1)
    assert server.finished(key)["seconds"] > 0
    job = jobs.Job(jobs.Order([None]), [False], [1], 10.0, "running", done=2, total=8, began=100.0)
    monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=lambda: 110.0))
    assert (job.status()["seconds"], job.status()["left"]) == (10.0, 30.0)
    job.done = 0
    assert job.status()["left"] is None


def test_orders_wait_for_each_other_and_can_be_stopped(server, monkeypatch):
    began, go = threading.Event(), threading.Event()
    fill = server.model.fill

    def slow(*args, progress, **options):
        def step(done, total):
            began.set()
            assert go.wait(30)
            progress(done, total)

        return fill(*args, progress=step, **options)

    monkeypatch.setattr(server.model, "fill", slow)
    first, second, third = (server.order([None] * 3, steps=4) for _ in range(3))
    assert began.wait(30)
    assert [server.json(f"orders/{key}")["state"] for key in (first, second)] == ["running", "waiting"]
    monkeypatch.setattr(jobs, "MOST_WAITING", 2)
    assert "2 orders are waiting already" in server.refused("orders", b'{"timeline": [null]}')
    for key in (first, third):
        assert server.ask(f"orders/{key}", method="DELETE")[0] == 204
    assert server.json(f"orders/{third}")["state"] == "cancelled"  # at once, though the first is not done
    third = server.order([None], steps=4)  # in its place
    assert server.ask(f"orders/{third}", method="DELETE")[0] == 204
    go.set()
    assert [server.finished(key)["state"] for key in (first, second, third)] == ["cancelled", "done", "cancelled"]
    assert server.json(f"orders/{second}")["done"] == 4


def test_an_order_that_fails_says_why_and_the_next_one_works(server, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no luck\nat all")

    with monkeypatch.context() as patch:
        patch.setattr(server.model, "fill", broken)
        failed = server.finished(server.order([None]))
    assert (failed["state"], failed["error"], failed["clips"]) == ("failed", "RuntimeError: no luck", [])
    assert server.finished(server.order([None], steps=1))["state"] == "done"


@pytest.mark.parametrize(
    ("order", "says"),
    [
        (b"{", "an order must be JSON"),
        (b"[]", "order: expected keys and values"),
        (b"{}", "timeline is missing"),
        (b'{"timeline": [null], "sampels": 2}', "did you mean samples?"),
        (b'{"timeline": []}', "frames in the timeline is 0"),
        (b'{"timeline": [' + b"null, " * 600 + b"null]}", "frames in the timeline is 601; it must be at most 600"),
        (b'{"timeline": [null], "samples": 1000}', "samples is 1000; it must be at most"),
        (b'{"timeline": [null], "solver": "dpm"}', "solver is 'dpm'; it is one of"),
        (b'{"timeline": [null], "steps": 0}', "steps"),
        (b'{"timeline": [{"clip": "x", "frame": 0}, null]}', "that clip is no longer here"),
        (b'{"timeline": [null], "seed": -1}', "seed is -1; it must be at least 0"),
        (b'{"timeline": [null], "guidance": NaN}', "guidance is nan; it must be a finite number"),
        (b'{"timeline": [null], "\\ud800": 1}', "unknown key ?"),
        (b'{"timeline": [null], "seed": ' + b"9" * 5000 + b"}", "an order must be JSON"),
        (b"[" * 100_000, "an order must be JSON"),
        (b'"' + bytes(2**20), "the order has more than 1 MiB"),
    ],
)
def test_orders_that_make_no_sense(server, order, says):
    assert says in server.refused("orders", order)


def test_frames_that_a_clip_does_not_have(server, sent):
    clip, _ = sent
    for given in (True, False):
        order = json.dumps({"timeline": [*cells(clip, [6], given), None]}).encode()
        assert "the frame of six.npz is 6; it must be at most 5" in server.refused("orders", order)
    order = {"timeline": cells(clip, range(6))}
    assert "every frame is given" in server.refused("orders", json.dumps(order).encode())


def test_files_that_are_no_videos(server, tmp_path):
    assert "cannot read notes.mp4 as a video" in server.refused("clips?name=notes.mp4", b"words, not frames")
    assert "empty" in server.refused("clips?name=none.gif", b"")
    assert "cannot read" in server.refused(f"clips?name=..%2Fa.%00{'b' * 300}", b"x")
    assert "'two' is not a whole number" in server.refused("clips?name=a.mp4&stride=two", b"")
    assert "stride is 1" in server.refused(f"clips?name=a.gif&stride=1{'0' * 20}", _gif(tmp_path).read_bytes())
    assert "fit is 'pad'" in server.refused("clips?name=a.gif&fit=pad", _gif(tmp_path).read_bytes())
    assert "no format exe" in server.refused(f"clips/{server.send(_gif(tmp_path))['id']}/file.exe")
    assert "no longer here" in server.refused("orders/gone")


def test_files_that_would_fill_the_memory(server, monkeypatch):
    header = {"descr": "|u1", "fortran_order": False, "shape": (3 * 10**12, 16, 16)}
    np.lib.format.write_array_header_1_0(file := io.BytesIO(), header)
    assert "more numbers than fit into memory" in server.refused("clips?name=a.npy", file.getvalue())
    monkeypatch.setattr("mcvd.web.clips.MOST_KEPT", 2**20)
    np.savez_compressed(file := io.BytesIO(), video=np.zeros((2**13, 16, 16), np.uint8))
    assert "b.npz has more than 1 MiB of frames" in server.refused("clips?name=b.npz", file.getvalue())


def test_files_that_name_others(server, tmp_path):
    write_video(tmp_path / "secret.mp4", tiny.video(3, 1, 16, 16))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n"
    assert "cannot read list.m3u8" in server.refused("clips?name=list.m3u8", playlist.encode())


def test_files_that_are_programs(server):
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"
    assert "cannot identify image file" in server.refused("clips?name=a.png", drawing)  # Ghostscript is not looked for


def _gif(folder):
    return write_video(folder / "a.gif", tiny.video(3, 1, 16, 16), scale=1)


def test_too_much_at_once(server, tmp_path, monkeypatch):
    monkeypatch.setattr("mcvd.web.clips.MOST_FRAMES", 2)
    clip = server.send(_gif(tmp_path))
    assert (clip["frames"], clip["was"]) == (2, "16x16, 3 frames at 10 fps; only the first 2 are used")
    clip = server.send(_gif(tmp_path), "&stride=2")
    assert (clip["frames"], clip["was"]) == (2, "16x16, 3 frames at 10 fps")
    monkeypatch.setattr("mcvd.web.app.MOST_SENT", 2**20)
    assert "more than 1 MiB" in server.refused("clips?name=big.mp4", bytes(2**20 + 1))
    assert "cannot read big.mp4" in server.refused("clips?name=big.mp4", bytes(2**20))


def test_who_leaves_in_the_middle_of_an_upload_is_no_failure_of_the_server(server):
    parts = iter([{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}])
    scope = {"type": "http", "method": "POST", "path": "/clips", "query_string": b"", "headers": [(b"host", b"box")]}

    async def receive():
        return next(parts)

    async def send(message):
        """To nobody."""

    asyncio.run(application(server.model, "tiny")(scope, receive, send))


def test_other_sites_are_refused(server):
    for host in ("elsewhere.example", "elsewhere.example:8000", "127.0.0.1.elsewhere.example", "a.notlocal"):
        status, body = server.ask("", Host=host)
        assert status == 403
        assert f"--host ADDRESS {host.removesuffix(':8000')}" in json.loads(body)["error"]
    for origin in ("http://elsewhere.example", "null", "http://[::1"):
        assert server.ask("orders", b'{"timeline": [null]}', Origin=origin)[0] == 403
        assert server.ask("orders/x", method="DELETE", Origin=origin)[0] == 403


@pytest.mark.parametrize(
    "host", ["192.0.2.7:80", "[::1]:8000", "[::ffff:192.0.2.7]", "box", "box.local", "MINE.example:1"]
)
def test_names_that_no_other_site_can_have_are_served(server, host):
    assert server.ask("model", Host=host)[0] == 200
    assert server.ask("orders", b"{", Host=host, Origin=f"https://{host.lower()}")[0] == 400  # let in, and no order


def test_the_oldest_clips_make_room():
    def clip(name):
        return Clip(name, torch.zeros(2, 1, 4, 4, dtype=torch.uint8), 10.0, "")

    store = ClipStore(most=100)  # three of 32 bytes
    keys = [store.put(clip(str(i))) for i in range(5)]
    assert [store.get(key) is not None for key in keys] == [False, False, True, True, True]
    with pytest.raises(McvdError, match="no longer here"):
        store[keys[0]]
    store = ClipStore(most=1)
    assert store.get(store.put(clip("larger than all the room"))) is not None


def test_names_of_files():
    assert file_name("my clip: 2, predict 1", "gif") == "my-clip-2-predict-1.gif"
    assert file_name("../../étc", "mp4") == "tc.mp4"
    assert file_name("視頻", "mp4") == "clip.mp4"
    assert file_name("a" * 1000, "mp4") == f"{'a' * 100}.mp4"


def test_a_port_that_is_taken(capsys):
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port), "--device", "cpu"]) == 1
    said = capsys.readouterr().err
    assert f"cannot listen at 127.0.0.1, port {port}: Address already in use; try another --port, or 0" in said


@pytest.fixture
def unserved(monkeypatch):
    """The command ends where it would begin to serve."""

    async def serve(server, listening, scratch):
        listening.close()

    monkeypatch.setattr("mcvd.cli.serve._serve", serve)


@pytest.mark.usefixtures("unserved")
def test_a_host_that_is_none_of_this_machine(capsys):
    for host, says in (("", "--host is empty"), ("192.0.2.1", "cannot listen at .*; try another --host\n")):
        assert main(["serve", "--host", host, "--port", "0", "--device", "cpu"]) == 1
        assert re.search(says, capsys.readouterr().err)


@pytest.mark.usefixtures("unserved")
@pytest.mark.parametrize("host", ["127.0.0.2", "0.0.0.0"])
def test_the_machine_goes_by_its_own_name(host, monkeypatch, capsys):
    seen, said = [], {}

    def page(model, name, hosts, scratch, **options):
        seen.append(hosts)
        said.update(options)

    monkeypatch.setattr("mcvd.web.app.application", page)
    monkeypatch.setattr(socket, "getfqdn", lambda name: f"name of {name}")
    assert main(["serve", "--host", host, "--port", "0", "--device", "cpu"]) == 0
    assert seen == [[host, f"name of {host}"]]
    assert re.search(rf"digits on cpu: http://{host}:\d+ ", capsys.readouterr().out)
    assert main(["serve", "--host", host, "public.example", "--port", "0", "--device", "cpu"]) == 0
    assert seen[1] == [host, f"name of {host}", "public.example"]
    assert said == {"precision": "fp32", "engine": "torch"}


@pytest.mark.usefixtures("unserved")
def test_what_this_machine_lacks_is_missed_at_once(monkeypatch, capsys):
    assert main(["serve", "--precision", "fp16", "--port", "0", "--device", "cpu"]) == 1
    assert "fp16" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["serve", "--engine", "openvino", "--port", "0", "--device", "cpu"]) == 1
    assert "pip install 'mcvd[openvino]'" in capsys.readouterr().err


def started(command, temporary):
    """A server in a process of its own, with a folder of its own for temporary files."""
    temporary.mkdir()
    env = os.environ | {"TMPDIR": str(temporary)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def test_ctrl_c_waits_neither_for_a_file_that_is_read_nor_for_samples(tmp_path):
    tiny.model().save(tmp_path / "model")
    endless = (
        "import sys, time; from mcvd.cli.main import main; from mcvd.model import VideoDiffusion; import mcvd.web.app;"
        "VideoDiffusion.fill = mcvd.web.app.received = lambda *_, **__: [print('busy', flush=True), time.sleep(300)];"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", endless, "serve", "--model", str(tmp_path / "model"), "--port", "0"]
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(started([*command, "--device", "cpu"], tmp_path / "temporary"))
        stack.callback(served.kill)
        port = int(re.search(r":(\d+) ", served.stdout.readline())[1])
        for path, body in (("orders", b'{"timeline": [null]}'), ("clips", b"frames")):
            sending = stack.enter_context(socket.create_connection((HOST, port)))
            head = f"POST /{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            sending.sendall(head.encode() + body)
            assert served.stdout.readline() == "busy\n"
        began = time.monotonic()
        served.send_signal(signal.SIGINT)
        assert served.wait(60) == 0
        assert time.monotonic() - began < 10  # it is 1, on a machine that does nothing else
        assert (served.stdout.read(), served.stderr.read()) == ("", "")
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("ends", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_without_a_word_or_a_trace_while_a_file_is_sent(tmp_path, ends):
    tiny.model().save(tmp_path / "model")
    command = [sys.executable, "-m", "mcvd.cli.main", "serve", "--model", str(tmp_path / "model"), "--port", "0"]
    with started([*command, "--device", "cpu"], tmp_path / "temporary") as served:
        port = int(re.search(r":(\d+) ", served.stdout.readline())[1])
        with socket.create_connection((HOST, port)) as sending:
            sending.sendall(
                b"POST /clips HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
            )
            assert b"100 Continue" in sending.recv(100)  # it waits for the body
            served.send_signal(ends)
            assert served.wait(30) == 0
        assert (served.stdout.read(), served.stderr.read()) == ("", "")
    assert not list((tmp_path / "temporary").iterdir())


def test_without_the_extra_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    assert main(["serve"]) == 1
    assert "pip install 'mcvd[serve]'" in capsys.readouterr().err
