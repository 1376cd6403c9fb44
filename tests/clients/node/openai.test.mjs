// What users of OpenAI's client for Node see. Run by tests/tests/clients.rs.

import assert from "node:assert/strict";
import buffer from "node:buffer";
import { createReadStream, readFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";

import OpenAI from "openai";

// Node 18 has it, but not where OpenAI's client looks for it.
globalThis.File ??= buffer.File;

const GOLDEN = process.env.XOMNI_GOLDEN;
const PROMPT = "a red fox";

/** A client that shows every failure at once. */
function client(server, apiKey = "none") {
  return new OpenAI({ baseURL: `${process.env[server]}/v1`, apiKey, maxRetries: 0 });
}

/** A server that answers. */
const free = client("XOMNI_FREE");
/** A server whose model stops after eight tokens and waits. */
const held = client("XOMNI_HELD");

function pngSize(picture) {
  assert.equal(picture.subarray(1, 4).toString(), "PNG");
  return [picture.readUInt32BE(16), picture.readUInt32BE(20)];
}

function question() {
  const golden = JSON.parse(readFileSync(path.join(GOLDEN, "expected/04_understanding.json")));
  const picture = readFileSync(path.join(GOLDEN, golden.picture)).toString("base64");
  const content = [
    { type: "image_url", image_url: { url: `data:image/png;base64,${picture}` } },
    { type: "text", text: golden.question },
  ];
  const messages = [{ role: "user", content }];
  return { golden, request: { model: "tiny", messages, max_tokens: golden.max_new_tokens } };
}

async function collect(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}

/** The exception of this type that a call ends in. */
async function failure(call, type) {
  try {
    await call();
  } catch (error) {
    assert.ok(error instanceof type, `${error.constructor.name}: ${error.message}`);
    return error;
  }
  assert.fail(`no ${type.name}`);
}

test("models", async () => {
  const models = await collect(await free.models.list());
  assert.deepEqual(models.map((model) => model.id), ["tiny"]);
  assert.equal((await free.models.retrieve("tiny")).owned_by, "xomni");
});

test("several pictures", async () => {
  const request = { prompt: PROMPT, n: 3, size: "64x48", seed: 7 };
  const drawn = await free.images.generate(request);
  const pictures = drawn.data.map((image) => image.b64_json);
  assert.equal(new Set(pictures).size, 3);
  for (const picture of pictures) {
    assert.deepEqual(pngSize(Buffer.from(picture, "base64")), [64, 48]);
  }
  assert.ok(drawn.usage.output_tokens > 0);
  const again = await free.images.generate(request);
  assert.deepEqual(again.data.map((image) => image.b64_json), pictures);
});

test("a picture by address", async () => {
  const drawn = await free.images.generate({ prompt: PROMPT, size: "32x32", response_format: "url" });
  const fetched = await fetch(drawn.data[0].url);
  assert.equal(fetched.headers.get("content-type"), "image/png");
  assert.deepEqual(pngSize(Buffer.from(await fetched.arrayBuffer())), [32, 32]);
});

test("a stream of pictures", async () => {
  const request = { prompt: PROMPT, size: "64x48", n: 2, seed: 7 };
  const whole = await free.images.generate(request);
  const events = await collect(await free.images.generate({ ...request, stream: true }));
  assert.ok(events.every((event) => event.type === "image_generation.completed"));
  assert.deepEqual(
    events.map((event) => event.b64_json).sort(),
    whole.data.map((image) => image.b64_json).sort(),
  );
});

test("a chat with a picture", async () => {
  const { golden, request } = question();
  const answer = await free.chat.completions.create(request);
  assert.equal(answer.choices[0].message.content, golden.generated_text);
  assert.equal(answer.choices[0].finish_reason, "length");
  assert.equal(answer.usage.completion_tokens, golden.generated_ids.length);
});

test("a streamed chat with a picture", async () => {
  const { golden, request } = question();
  const options = { stream: true, stream_options: { include_usage: true } };
  const chunks = await collect(await free.chat.completions.create({ ...request, ...options }));
  const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
  assert.equal(text, golden.generated_text);
  assert.equal(chunks.at(-1).usage.completion_tokens, golden.generated_ids.length);
});

test("a chat with an uploaded picture", async () => {
  const { golden, request } = question();
  const picture = createReadStream(path.join(GOLDEN, golden.picture));
  const file = await free.files.create({ file: picture, purpose: "vision" });
  request.messages[0].content[0] = { type: "file", file: { file_id: file.id } };
  const answer = await free.chat.completions.create(request);
  assert.equal(answer.choices[0].message.content, golden.generated_text);
  assert.equal((await free.files.delete(file.id)).deleted, true);
  await failure(() => free.files.retrieve(file.id), OpenAI.NotFoundError);
});

for (const [param, value] of [["size", "60x64"], ["n", 11], ["prompt", ""]]) {
  test(`bad requests: ${param}`, async () => {
    const call = () => free.images.generate({ prompt: PROMPT, [param]: value });
    const error = await failure(call, OpenAI.BadRequestError);
    assert.deepEqual([error.status, error.param, error.code], [400, param, "invalid_value"]);
    assert.equal(error.type, "invalid_request_error");
    assert.ok(error.error.limit);
    assert.equal(error.requestID, error.error.request_id);
  });
}

test("an unknown model", async () => {
  const call = () => free.images.generate({ prompt: PROMPT, model: "dall-e-3" });
  const error = await failure(call, OpenAI.NotFoundError);
  assert.deepEqual([error.param, error.code], ["model", "model_not_found"]);
});

test("an idempotency key", async () => {
  const headers = { "Idempotency-Key": "node" };
  const drawn = (prompt) => free.images.generate({ prompt, size: "16x16" }, { headers });
  assert.deepEqual(await drawn(PROMPT), await drawn(PROMPT));
  await failure(() => drawn("a blue fox"), OpenAI.ConflictError);
});

test("a wrong key", async () => {
  const wrong = client("XOMNI_KEYED", "sk-xomni-wrong");
  const error = await failure(() => wrong.models.list(), OpenAI.AuthenticationError);
  assert.equal(error.code, "invalid_api_key");
});

test("a key that is used up", async () => {
  const keyed = client("XOMNI_KEYED", process.env.XOMNI_KEY);
  const call = () => keyed.images.generate({ prompt: PROMPT, size: "16x16" });
  await call();
  const error = await failure(call, OpenAI.RateLimitError);
  assert.equal(error.code, "rate_limit_exceeded");
  const wait = Number(error.headers.get("retry-after"));
  assert.ok(0 < wait && wait <= 60, `${wait}`);
});

test("a deadline of the server", async () => {
  const short = client("XOMNI_SHORT");
  const request = { prompt: PROMPT, size: "64x64" };
  const late = await failure(() => short.images.generate(request), OpenAI.InternalServerError);
  assert.equal(late.status, 504);
  const stream = async () => collect(await short.images.generate({ ...request, stream: true }));
  assert.equal((await failure(stream, OpenAI.APIError)).code, "timeout");
});

test("a timeout of the client", async () => {
  const options = { timeout: 500 };
  const draw = () => held.images.generate({ prompt: PROMPT, size: "64x64" }, options);
  await failure(draw, OpenAI.APIConnectionTimeoutError);
  const chat = () => held.chat.completions.create(question().request, options);
  await failure(chat, OpenAI.APIConnectionTimeoutError);
});

test("aborted streams", async () => {
  const request = { prompt: PROMPT, size: "96x64", partial_images: 3, stream: true };
  const events = await held.images.generate(request);
  for await (const event of events) {
    assert.equal(event.type, "image_generation.partial_image");
    assert.equal(event.partial_image_index, 0);
    assert.deepEqual(pngSize(Buffer.from(event.b64_json, "base64")), [96, 64]);
    break;
  }
  const chunks = await held.chat.completions.create({ ...question().request, stream: true });
  for await (const chunk of chunks) {
    if (chunk.choices[0].delta.content) chunks.controller.abort();
  }
});
