"""Uploading to a stand-in of the hub on this machine, and what the model card says."""

import base64
import hashlib
import http.server
import json
import re
import threading
import zipfile

import pytest
import yaml

from espnet_dus.app import cli
from espnet_dus.zoo.upload import upload

MODEL = "exp/dus_tiny/valid.acc.ave.pth"


class Hub:
    """The part of the hub's API that an upload uses, with one repository."""

    def __init__(self):
        self.created = []
        self.objects = {}  # large files by sha256
        self.files = {}  # what is committed: path -> bytes
        self.requests = []  # method and path
        self.refuse_commits = 0

    def answer(self, method, path, body):
        self.requests.append((method, path))
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            status = 409 if len(self.created) > 1 else 200
            return status, {"url": f"{self.url}/owner/model"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/models/owner/model/preupload/main":
            files = [f["path"] for f in json.loads(body)["files"]]
            modes = {True: "lfs", False: "regular"}
            return 200, {
                "files": [
                    {
                        "path": file,
                        "uploadMode": modes[file.endswith((".pth", ".npz"))],
                        "shouldIgnore": False,
                    }
                    for file in files
                ]
            }
        if path == "/owner/model.git/info/lfs/objects/batch":
            objects = []
            for wanted in json.loads(body)["objects"]:
                if wanted["oid"] not in self.objects:
                    href = f"{self.url}/put/{wanted['oid']}"
                    wanted["actions"] = {"upload": {"href": href}}
                objects.append(wanted)
            return 200, {"transfer": "basic", "objects": objects}
        if method == "PUT":
            oid = path.rsplit("/", 1)[1]
            assert hashlib.sha256(body).hexdigest() == oid
            self.objects[oid] = body
            return 200, {}
        if path == "/api/models/owner/model/commit/main":
            if self.refuse_commits:
                self.refuse_commits -= 1
                return 403, {"error": "try again later"}
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[value["path"]] = self.objects[value["oid"]]
            return 200, {
                "commitUrl": f"{self.url}/owner/model/commit/0",
                "commitOid": "0",
            }
        return 404, {"error": f"{method} {path}"}


@pytest.fixture
def hub(cache, monkeypatch):
    """The stand-in, which the hub's client takes for the hub."""
    import huggingface_hub
    import huggingface_hub.constants as constants

    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def serve(self):
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.split("?")[0]
            status, content = hub.answer(self.command, path, body)
            content = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = serve

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # its protocol for large files is not for a stand-in; Git LFS's is its other
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
        huggingface_hub.close_session()
        yield hub
        huggingface_hub.close_session()
        server.shutdown()


def front_matter(card):
    return yaml.safe_load(card.split("---")[1])


def from_the_hub(content):
    meta = yaml.safe_load(content)
    meta["base_lm"]["source"] = "owner/lm"
    return yaml.safe_dump(meta)


def test_the_hub_gets_what_the_pack_holds_and_a_card(tampered, hub):
    packed = tampered(**{"meta.yaml": from_the_hub})
    sizes = upload(packed, "owner/model", "an4", lang="en")
    assert hub.created[0]["name"] == "model"
    assert hub.created[0]["organization"] == "owner"
    with zipfile.ZipFile(packed) as archive:
        for name in archive.namelist():
            if not name.endswith("/"):
                assert hub.files[name] == archive.read(name), name
    assert {name: len(content) for name, content in hub.files.items()} == sizes

    card = hub.files["README.md"].decode()
    assert front_matter(card) == {
        "tags": ["espnet", "audio", "automatic-speech-recognition"],
        "language": "en",
        "datasets": ["an4"],
        "license": "cc-by-4.0",
        "base_model": "owner/lm",
        "library_name": "espnet",
        "pipeline_tag": "automatic-speech-recognition",
    }
    for part in (
        "### WER",  # the title of RESULTS.md is one level down, and so are these
        "|decode/test|130|773|98.2|1.3|0.5|0.1|1.9|7.7|",
        "|wiki|9|token_perplexity|20.00|20.00|+0.00|0.0000|",
        'Speech2Text.from_pretrained("owner/model")',
        "--download_model owner/model",
        "Base LM: `tiny-random-llama` revision test",
        "Speech recognition by multimodal depth up-scaling: trained layers",
        "`dus` (",
        "kind e_branchformer",
        "2604.00489",
    ):
        assert part in card, part
    assert "\n# RESULTS" not in card


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(packed, hub, caplog):
    caplog.set_level("INFO")
    options = ["--pack", str(packed), "--repo", "owner/model", "--dataset", "an4"]
    cli.main(["upload", *options, "--dry_run", "true"])
    assert hub.requests == []
    with zipfile.ZipFile(packed) as archive:
        size = archive.getinfo(MODEL).file_size
    assert re.search(rf"{size:,} bytes  {MODEL}\n", caplog.text)
    assert "nothing was sent to owner/model" in caplog.text
    assert "tags:\n- espnet" in caplog.text and "language:" not in caplog.text


def test_an_upload_that_failed_goes_on_where_it_was(packed, hub):
    hub.refuse_commits = 1
    with pytest.raises(
        RuntimeError, match="(?s)upload to owner/model: .*try again later"
    ):
        upload(packed, "owner/model", "an4")
    assert not hub.files and len(hub.objects) == 2
    upload(packed, "owner/model", "an4")
    assert MODEL in hub.files
    assert [method for method, _ in hub.requests].count("PUT") == 2


def test_what_is_no_pack_or_no_repository_is_not_sent(packed, tampered, hub):
    with pytest.raises(ValueError, match="repository 'model': expected user/name"):
        upload(packed, "model", "an4")
    with pytest.raises(ValueError, match="repository 'a b/c'"):
        upload(packed, "a b/c", "an4")
    with pytest.raises(ValueError, match="outside the directory"):
        upload(tampered(**{"../x": b""}), "owner/model", "an4")
    assert hub.requests == []


def test_a_model_that_was_not_scored_says_so(tampered, hub):
    path = tampered(**{"exp/dus_tiny/RESULTS.md": None})
    upload(path, "owner/model", "an4")
    assert "has not been scored" in hub.files["README.md"].decode()
