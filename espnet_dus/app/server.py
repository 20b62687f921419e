"""A server with the endpoints of OpenAI's API that clients know.

    POST /v1/audio/transcriptions    a recording to its transcript
    POST /v1/chat/completions        text, answered by the LLM without the added layers,
                                     whole or as a stream of pieces
    GET  /v1/models                  the name of the model

The model runs in one thread, see `model_thread`.
"""

import asyncio
import json
import logging
import secrets
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, AsyncIterator, Callable, List, Literal, Optional

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import (
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from pydantic import BaseModel, Field
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.exceptions import HTTPException
from transformers import TextIteratorStreamer

from espnet_dus.app.model_thread import ModelThread
from espnet_dus.app.transcription import check_kind, render, transcribe
from espnet_dus.data.audio import open_audio
from espnet_dus.search.speech2text import Speech2Text

MAX_MESSAGES = 256
# of a request for a transcript; the model knows one language
FIELDS = {"file", "model", "response_format", "temperature", "language"}
FIELDS |= {"timestamp_granularities[]"}  # words have times in verbose_json, if any


class Message(BaseModel, extra="forbid"):
    """A message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class StreamOptions(BaseModel, extra="forbid"):
    """The options of a stream."""

    include_usage: Optional[bool] = None


class ChatRequest(BaseModel, extra="forbid"):
    """The supported fields of a request for a chat completion."""

    model: str
    messages: List[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: Optional[int] = Field(None, ge=1)
    max_tokens: Optional[int] = Field(None, ge=1)  # its former name
    temperature: Literal[0, None] = None  # the answer is greedy
    n: Literal[1, None] = None
    stream: Optional[bool] = None
    stream_options: Optional[StreamOptions] = None


class _Streamer(TextIteratorStreamer):
    """Yields the pieces of an answer, and keeps its ids and the length of the prompt.

    Attributes:
        num_prompt: Number of tokens of the prompt.
        ids: The answer's ids so far; empty if generation has failed before the first.
        cancelled: Whether the client has disconnected, so that generation stops.
    """

    def __init__(self, tokenizer):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.num_prompt = 0
        self.ids: List[int] = []
        self.cancelled = False

    def put(self, value) -> None:
        if self.cancelled:
            raise _Cancelled
        if self.next_tokens_are_prompt:
            self.num_prompt = value.numel()
        else:
            self.ids += value.flatten().tolist()
        super().put(value)


class _Cancelled(Exception):
    """The client has left."""


def build(
    speech2text: Speech2Text,
    name: str,
    api_key: Optional[str] = None,
    segment_seconds: float = 20.0,
    batch_seconds: float = 60.0,
    max_megabytes: float = 25.0,
    max_seconds: float = 3600.0,
    max_new_tokens: int = 1024,
) -> FastAPI:
    """Build the server.

    Args:
        speech2text: The model.
        name: Name of the model, in answers.
        api_key: The key that requests must send, or None.
        segment_seconds: Maximum duration of a segment; recordings are cut at pauses.
        batch_seconds: Seconds of segments in a batch, padding included.
        max_megabytes: Maximum size of a request.
        max_seconds: Maximum duration of a recording.
        max_new_tokens: Maximum number of tokens of an answer.
    """
    app = FastAPI(title="espnet_dus", docs_url=None, redoc_url=None)
    model = ModelThread(speech2text, batch_seconds)

    @app.middleware("http")
    async def check_request(request: Request, call_next: Callable) -> Response:
        # before the body is read
        if api_key is not None and not _has_key(request, api_key):
            return _error(401, "the API key is missing or wrong")
        if request.method == "POST":
            length = request.headers.get("content-length", "")
            if not length.isdecimal():
                return _error(411, "the request has no Content-Length")
            if int(length) > max_megabytes * 1e6:
                return _error(
                    413,
                    f"the request has {int(length) / 1e6:.1f} MB, at most "
                    f"{max_megabytes:g} MB are accepted",
                )
        return await call_next(request)

    @app.exception_handler(HTTPException)
    async def on_http_error(_, error: HTTPException) -> Response:
        return _error(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def on_bad_request(_, error: RequestValidationError) -> Response:
        reasons = (
            f"{'.'.join(str(part) for part in reason['loc'][1:])}: {reason['msg']}"
            for reason in error.errors()
        )
        return _error(400, "; ".join(reasons))

    @app.exception_handler(ValueError)
    async def on_user_error(_, error: ValueError) -> Response:
        logging.info(error)
        return _error(400, str(error))

    @app.get("/v1/models")
    def models() -> dict:
        entry = {"id": name, "object": "model", "created": 0, "owned_by": "espnet_dus"}
        return {"object": "list", "data": [entry]}

    @app.post("/v1/audio/transcriptions")
    async def transcriptions(
        request: Request,
        file: UploadFile = File(),
        response_format: Literal["json", "text", "srt", "verbose_json"] = Form("json"),
        temperature: Literal["0", "0.0"] = Form("0"),
    ) -> Response:
        if unknown := sorted(set(await request.form()) - FIELDS):
            raise ValueError(f"not supported: {', '.join(unknown)}")
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "recording")
            await run_in_threadpool(_save, file, path)
            try:
                return await run_in_threadpool(answer_recording, path, response_format)
            except ValueError as error:
                named = str(error).replace(str(path), file.filename or "file")
                raise ValueError(named) from error

    def answer_recording(path: Path, response_format: str) -> Response:
        kind = {"text": "txt", "srt": "srt"}.get(response_format)
        if kind is not None:
            check_kind(speech2text, kind)
        with open_audio(path) as recording:
            if recording.seconds > max_seconds:
                raise ValueError(
                    f"{path}: lasts {recording.seconds:.0f} s, at most "
                    f"{max_seconds:g} s are accepted"
                )
        transcript = transcribe(
            speech2text,
            path,
            segment_seconds,
            batch_size=batch_seconds,
            transcribe=model.transcribe,
        )
        if kind is not None:
            return PlainTextResponse(render(transcript, kind))
        if response_format == "json":
            return JSONResponse({"text": transcript.text})
        # OpenAI's `verbose_json`; confidences are ours
        words = [word._asdict() for word in transcript.words]
        content = {"task": "transcribe", "language": "", "duration": transcript.seconds}
        return JSONResponse({**content, "text": transcript.text, "words": words})

    @app.post("/v1/chat/completions")
    def chat_completions(body: ChatRequest) -> Response:
        limit = body.max_completion_tokens or body.max_tokens or max_new_tokens
        limit = min(limit, max_new_tokens)
        messages = [(message.role, message.content) for message in body.messages]
        streamer = _Streamer(speech2text.model.tokenizer)

        def generate() -> str:
            try:
                return speech2text.generate_text(messages, limit, streamer=streamer)
            finally:
                streamer.end()  # after an error too, so that nobody waits for more

        future = model.submit(generate)
        head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": name,
        }
        if not body.stream:
            message = {"role": "assistant", "content": future.result()}
            choice = {"index": 0, "message": message, "finish_reason": reason(streamer)}
            content = {"object": "chat.completion", "choices": [choice]}
            return JSONResponse({**head, **content, "usage": _usage(streamer)})
        first = next(streamer)
        if not streamer.ids:
            future.result()  # raises what is wrong with the request
        with_usage = body.stream_options and body.stream_options.include_usage

        async def events() -> AsyncIterator[str]:
            def event(choices: List[dict], **more: Any) -> str:
                chunk = {"object": "chat.completion.chunk", "choices": choices}
                return f"data: {json.dumps({**head, **chunk, **more})}\n\n"

            def delta(ends: Optional[str] = None, **content: str) -> List[dict]:
                return [{"index": 0, "delta": content, "finish_reason": ends}]

            try:
                yield event(delta(role="assistant", content=first))
                async for text in iterate_in_threadpool(streamer):
                    if text:
                        yield event(delta(content=text))
                await asyncio.wrap_future(future)  # raises what went wrong
                yield event(delta(reason(streamer)))
                if with_usage:
                    yield event([], usage=_usage(streamer))
                yield "data: [DONE]\n\n"
            finally:
                streamer.cancelled = True

        return StreamingResponse(events(), media_type="text/event-stream")

    def reason(streamer: _Streamer) -> str:
        ends = speech2text.model.generation_config.eos_token_id
        ended = streamer.ids[-1] in (ends if isinstance(ends, list) else [ends])
        return "stop" if ended else "length"

    return app


def _has_key(request: Request, api_key: str) -> bool:
    given = request.headers.get("authorization", "").encode()
    return secrets.compare_digest(given, f"Bearer {api_key}".encode())


def _error(status: int, message: str) -> Response:
    error = {"message": message, "type": "invalid_request_error"}
    content = {"error": {**error, "param": None, "code": None}}
    return JSONResponse(content, status_code=status)


def _usage(streamer: _Streamer) -> dict:
    prompt, answer = streamer.num_prompt, len(streamer.ids)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
    }


def _save(file: UploadFile, path: Path) -> None:
    with path.open("wb") as out:
        shutil.copyfileobj(file.file, out)
