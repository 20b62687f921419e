"""The server: OpenAI's endpoints, limits, and many uploads at once."""

import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import soundfile
import uvicorn
from fastapi.testclient import TestClient

from espnet_dus.app.server import _Streamer, build
from espnet_dus.app.transcription import render, transcribe

TRANSCRIPTIONS = "/v1/audio/transcriptions"
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def client(loaded):
    return TestClient(build(loaded, "toy"), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def expected(loaded, recording):
    transcript = transcribe(loaded, recording)
    assert transcript.words
    return transcript


def upload(client, content, **fields):
    files = {"file": ("speech.wav", content)}
    return client.post(TRANSCRIPTIONS, files=files, data={"model": "toy", **fields})


def message_of(response, status):
    assert response.status_code == status, response.text
    return response.json()["error"]["message"]


def chat(client, url=CHAT, **body):
    messages = [{"role": "user", "content": "the cat sat"}]
    body = {"model": "toy", "messages": messages, **body}
    return client.post(url, json=body)


# -- transcripts -----------------------------------------------------------------------


def test_a_transcript_has_the_format_that_is_asked_for(client, recording, expected):
    content = recording.read_bytes()
    assert upload(client, content).json() == {"text": expected.text}
    for name, kind in (("text", "txt"), ("srt", "srt")):
        response = upload(client, content, response_format=name)
        assert response.text == render(expected, kind)
        assert response.headers["content-type"].startswith("text/plain")
    verbose = upload(client, content, response_format="verbose_json").json()
    assert verbose["duration"] == expected.seconds
    words = [word._asdict() for word in expected.words]
    assert verbose["words"] == json.loads(json.dumps(words))
    assert message_of(upload(client, content, response_format="vtt"), 400).startswith(
        "response_format: Input should be 'json', 'text', 'srt' or 'verbose_json'"
    )


def test_what_is_not_supported_is_refused_by_name(client, recording):
    content = recording.read_bytes()
    message = message_of(upload(client, content, prompt="x"), 400)
    assert message == "not supported: prompt"
    message = message_of(upload(client, content, temperature="0.7"), 400)
    assert message.startswith("temperature: ")
    assert message_of(chat(client, top_p=0.5), 400).startswith("top_p: Extra inputs")


def test_a_bad_file_is_an_error_and_the_next_one_is_transcribed(
    client, recording, expected
):
    for content, reason in (
        (b"RIFF, but no more", "speech.wav: "),
        (b"", "speech.wav: is empty (0 bytes)"),
        (recording.read_bytes()[:-1000], "speech.wav: is truncated"),
    ):
        assert message_of(upload(client, content), 400).startswith(reason)
    assert "file: Field required" in message_of(
        client.post(TRANSCRIPTIONS, data={}), 400
    )
    assert upload(client, recording.read_bytes()).json() == {"text": expected.text}


def test_size_and_duration_are_limited(loaded, recording):
    client = TestClient(build(loaded, "toy", max_megabytes=0.1, max_seconds=0.5))
    message = message_of(upload(client, bytes(200_000)), 413)
    assert message == "the request has 0.2 MB, at most 0.1 MB are accepted"
    wav = io.BytesIO()
    soundfile.write(wav, np.zeros(16000), 16000, format="WAV")
    message = message_of(upload(client, wav.getvalue()), 400)
    assert message == "speech.wav: lasts 1 s, at most 0.5 s are accepted"
    response = client.post(TRANSCRIPTIONS, content=iter([b"no", b"length"]))
    assert message_of(response, 411) == "the request has no Content-Length"


def test_fifty_uploads_at_once_share_batches(loaded, recording, expected, monkeypatch):
    sizes, original = [], type(loaded).__call__

    def counted(self, speech):
        sizes.append(len(speech))
        return original(self, speech)

    monkeypatch.setattr(type(loaded), "__call__", counted)
    content = recording.read_bytes()
    with TestClient(build(loaded, "toy")) as client, ThreadPoolExecutor(50) as pool:
        uploads = [content] * 49 + [b"not audio"]
        responses = list(pool.map(lambda wav: upload(client, wav), uploads))
    assert [r.status_code for r in responses] == [200] * 49 + [400]
    texts = {response.json()["text"] for response in responses[:49]}
    assert texts == {expected.text}
    assert len(sizes) < sum(sizes) and max(sizes) > 1


# -- chat, keys ------------------------------------------------------------------------


def test_a_chat_is_answered_by_the_base_lm(client, loaded):
    answer = chat(client, max_completion_tokens=5).json()
    dropped = loaded.generate_text("the cat sat", 5, "dropped")
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": dropped}
    tokens = loaded.model.tokenizer("the cat sat", add_special_tokens=False).input_ids
    usage = answer["usage"]
    assert usage["prompt_tokens"] == len(tokens) and usage["completion_tokens"] == 5
    assert usage["total_tokens"] == len(tokens) + 5
    assert answer["choices"][0]["finish_reason"] == "length"
    too_long = [{"role": "user", "content": "cat " * 600}]
    message = message_of(chat(client, messages=too_long), 400)
    assert "expected 1 to 511 (the base LM's context, with an answer)" in message


def streamed(client, **body):
    """Return the events of a streamed answer, without the last."""
    response = chat(client, stream=True, **body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, last = response.text.removesuffix("\n\n").split("\n\n")
    assert last == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_a_streamed_answer_is_the_whole_one_in_pieces(client, loaded):
    whole = chat(client, max_tokens=20).json()
    assert "usage" not in streamed(client, max_tokens=20)[-1]
    *chunks, end, usage = streamed(
        client, max_tokens=20, stream_options={"include_usage": True}
    )
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    pieces = [chunk["choices"][0]["delta"]["content"] for chunk in chunks]
    assert "".join(pieces).strip() == whole["choices"][0]["message"]["content"]
    assert len(pieces) > 1 and {c["choices"][0]["finish_reason"] for c in chunks} == {
        None
    }
    (choice,) = end["choices"]
    assert choice["delta"] == {}
    assert choice["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]
    assert len({event["id"] for event in (*chunks, end, usage)}) == 1


def test_a_bad_request_for_a_stream_is_an_error_and_no_stream(client):
    too_long = [{"role": "user", "content": "cat " * 600}]
    message = message_of(chat(client, messages=too_long, stream=True), 400)
    assert message.startswith("the prompt has ")


@pytest.fixture
def served(loaded):
    """The address of a server that runs in a thread."""
    config = uvicorn.Config(build(loaded, "toy"), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def test_an_answer_whose_reader_leaves_is_not_generated_to_its_end(
    served, loaded, monkeypatch
):
    streamers, put = [], _Streamer.put

    def slow_put(self, value):
        streamers.append(self)
        time.sleep(0.02)
        put(self, value)

    monkeypatch.setattr(_Streamer, "put", slow_put)
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", [])
    messages = [{"role": "user", "content": "the cat sat"}]
    body = {"model": "toy", "messages": messages, "max_tokens": 400, "stream": True}
    with httpx.stream("POST", served + CHAT, json=body, timeout=60) as response:
        assert next(response.iter_lines()).startswith("data: ")  # before the last token
        assert len(streamers[0].ids) < 200
    with httpx.Client(
        timeout=60
    ) as client:  # the model is free again, long before 400 tokens
        assert chat(client, url=served + CHAT, max_tokens=1).status_code == 200
    assert streamers[0].cancelled and len(streamers[0].ids) < 400


def test_a_key_is_needed_if_there_is_one(loaded):
    client = TestClient(build(loaded, "toy", api_key="secret"))
    for headers in ({}, {"Authorization": "Bearer other"}):
        response = client.get("/v1/models", headers=headers)
        assert message_of(response, 401) == "the API key is missing or wrong"
    response = client.get("/v1/models", headers={"Authorization": "Bearer secret"})
    assert [entry["id"] for entry in response.json()["data"]] == ["toy"]


def test_the_client_of_openai_understands_the_answers(loaded, recording, expected):
    openai = pytest.importorskip("openai")
    app = build(loaded, "toy", api_key="secret")
    with TestClient(app, base_url="http://testserver") as http:
        client = openai.OpenAI(
            api_key="secret", base_url="http://testserver/v1", http_client=http
        )
        with recording.open("rb") as file:
            heard = client.audio.transcriptions.create(
                model="toy",
                file=file,
                response_format="verbose_json",
                timestamp_granularities=["word"],
            )
        assert heard.text == expected.text and heard.duration == expected.seconds
        assert [word.start for word in heard.words] == [w.start for w in expected.words]
        answer = client.chat.completions.create(
            model="toy", messages=[{"role": "user", "content": "the cat"}], max_tokens=4
        )
        assert answer.choices[0].message.content == loaded.generate_text("the cat", 4)
        stream = client.chat.completions.create(
            model="toy",
            messages=[{"role": "user", "content": "the cat"}],
            max_tokens=4,
            stream=True,
        )
        deltas = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(deltas).strip() == answer.choices[0].message.content
        with pytest.raises(openai.BadRequestError, match="is empty"):
            client.audio.transcriptions.create(model="toy", file=("a.wav", b""))
