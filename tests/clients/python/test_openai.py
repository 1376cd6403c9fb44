"""What users of OpenAI's client for Python see. Run by tests/tests/clients.rs."""

import base64
import json
import os
import struct
import urllib.request
from pathlib import Path

import openai
import pytest

GOLDEN = Path(os.environ["XOMNI_GOLDEN"])
PROMPT = "a red fox"


def client(server: str, key: str = "none", **options) -> openai.OpenAI:
    """A client that shows every failure at once."""
    url = os.environ[server]
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, **{"max_retries": 0, **options})


@pytest.fixture
def free():
    """A server that answers."""
    with client("XOMNI_FREE") as opened:
        yield opened


@pytest.fixture
def held():
    """A server whose model stops after eight tokens and waits."""
    with client("XOMNI_HELD") as opened:
        yield opened


def png_size(picture: bytes) -> tuple[int, int]:
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", picture[16:24])


def question() -> tuple[dict, dict]:
    golden = json.loads((GOLDEN / "expected/04_understanding.json").read_text())
    picture = base64.b64encode((GOLDEN / golden["picture"]).read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "text", "text": golden["question"]},
    ]
    request = {
        "model": "tiny",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": golden["max_new_tokens"],
    }
    return golden, request


def test_models(free):
    assert [model.id for model in free.models.list()] == ["tiny"]
    assert free.models.retrieve("tiny").owned_by == "xomni"


def test_several_pictures(free):
    drawn = free.images.generate(prompt=PROMPT, n=3, size="64x48", extra_body={"seed": 7})
    pictures = [base64.b64decode(image.b64_json) for image in drawn.data]
    assert [png_size(picture) for picture in pictures] == [(64, 48)] * 3
    assert len(set(pictures)) == 3
    assert (drawn.size, drawn.output_format) == ("64x48", "png")
    assert drawn.usage.output_tokens > 0
    again = free.images.generate(prompt=PROMPT, n=3, size="64x48", extra_body={"seed": 7})
    assert [base64.b64decode(image.b64_json) for image in again.data] == pictures


def test_a_picture_by_address(free):
    drawn = free.images.generate(prompt=PROMPT, size="32x32", response_format="url")
    with urllib.request.urlopen(drawn.data[0].url, timeout=60) as fetched:
        assert fetched.headers["content-type"] == "image/png"
        assert png_size(fetched.read()) == (32, 32)


def test_a_stream_of_pictures(free):
    request = {"prompt": PROMPT, "size": "64x48", "n": 2, "extra_body": {"seed": 7}}
    whole = free.images.generate(**request)
    with free.images.generate(**request, stream=True) as events:
        events = list(events)
    assert {event.type for event in events} == {"image_generation.completed"}
    assert {event.b64_json for event in events} == {image.b64_json for image in whole.data}


def test_a_chat_with_a_picture(free):
    golden, request = question()
    answer = free.chat.completions.create(**request)
    assert answer.choices[0].message.content == golden["generated_text"]
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == len(golden["generated_ids"])


def test_a_streamed_chat_with_a_picture(free):
    golden, request = question()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    with free.chat.completions.create(**request, **options) as chunks:
        chunks = list(chunks)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == golden["generated_text"]
    assert chunks[-1].usage.completion_tokens == len(golden["generated_ids"])


def test_a_chat_with_an_uploaded_picture(free):
    golden, request = question()
    file = free.files.create(file=GOLDEN / golden["picture"], purpose="vision")
    shown = {"type": "file", "file": {"file_id": file.id}}
    request["messages"][0]["content"][0] = shown
    answer = free.chat.completions.create(**request)
    assert answer.choices[0].message.content == golden["generated_text"]
    assert file.id in [listed.id for listed in free.files.list()]
    assert free.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        free.files.retrieve(file.id)


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"size": "60x64"}, "size"), ({"n": 11}, "n"), ({"prompt": ""}, "prompt")],
)
def test_bad_requests(free, fields, param):
    with pytest.raises(openai.BadRequestError) as refused:
        free.images.generate(**{"prompt": PROMPT, **fields})
    error = refused.value
    assert (error.status_code, error.param, error.code) == (400, param, "invalid_value")
    assert error.type == "invalid_request_error"
    assert error.body["limit"] and error.request_id == error.body["request_id"]


def test_what_the_model_cannot(free):
    with pytest.raises(openai.BadRequestError):
        free.images.edit(image=b"none", prompt=PROMPT)


def test_an_unknown_model(free):
    with pytest.raises(openai.NotFoundError) as refused:
        free.images.generate(prompt=PROMPT, model="dall-e-3")
    assert (refused.value.param, refused.value.code) == ("model", "model_not_found")


def test_an_idempotency_key(free):
    def drawn(prompt):
        headers = {"Idempotency-Key": "python"}
        return free.images.generate(prompt=prompt, size="16x16", extra_headers=headers)

    assert drawn(PROMPT) == drawn(PROMPT)
    with pytest.raises(openai.ConflictError):
        drawn("a blue fox")


def test_a_wrong_key():
    with client("XOMNI_KEYED", "sk-xomni-wrong") as wrong:
        with pytest.raises(openai.AuthenticationError) as refused:
            wrong.models.list()
    assert refused.value.code == "invalid_api_key"


def test_a_key_that_is_used_up():
    with client("XOMNI_KEYED", os.environ["XOMNI_KEY"]) as keyed:
        keyed.images.generate(prompt=PROMPT, size="16x16")
        with pytest.raises(openai.RateLimitError) as refused:
            keyed.images.generate(prompt=PROMPT, size="16x16")
    assert refused.value.code == "rate_limit_exceeded"
    assert 0 < int(refused.value.response.headers["retry-after"]) <= 60


def test_a_deadline_of_the_server():
    with client("XOMNI_SHORT") as short:
        with pytest.raises(openai.InternalServerError) as failed:
            short.images.generate(prompt=PROMPT, size="64x64")
        assert failed.value.status_code == 504
        with pytest.raises(openai.APIError) as failed:
            with short.images.generate(prompt=PROMPT, size="64x64", stream=True) as events:
                list(events)
        assert failed.value.code == "timeout"


def test_a_timeout_of_the_client(held):
    impatient = held.with_options(timeout=0.5)
    with pytest.raises(openai.APITimeoutError):
        impatient.images.generate(prompt=PROMPT, size="64x64")
    with pytest.raises(openai.APITimeoutError):
        impatient.chat.completions.create(**question()[1])


def test_aborted_streams(held):
    request = {"prompt": PROMPT, "size": "96x64", "partial_images": 3}
    with held.images.generate(**request, stream=True) as events:
        event = next(events)
    assert (event.type, event.partial_image_index) == ("image_generation.partial_image", 0)
    assert png_size(base64.b64decode(event.b64_json)) == (96, 64)
    with held.chat.completions.create(**question()[1], stream=True) as chunks:
        assert any(chunk.choices[0].delta.content for chunk in chunks)
