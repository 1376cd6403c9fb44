// The page of a coordinator: draws over its own HTTP API and shows what its cluster does.

const POLL_MS = 2000;
const KEPT = 12;
const $ = (id) => document.getElementById(id);
const form = $("form");
let key = sessionStorage.getItem("key") ?? "";
let drawing = null;

/// An element with these properties and children.
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/// Asks the API; an answer that is an error is thrown as what it says.
async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.authorization = `Bearer ${key}`;
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  if (answer.status === 401) askForKey();
  const body = await answer.json().catch(() => null);
  throw new Error(body?.error?.message ?? `${answer.status} ${answer.statusText}`);
}

/// The data of a stream's server-sent events, as they come.
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split(/\r?\n\r?\n/);
    text = blocks.pop();
    for (const block of blocks) {
      const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      const joined = data.map((line) => line.slice(5).trimStart()).join("\n");
      if (joined && joined !== "[DONE]") yield JSON.parse(joined);
    }
  }
}

function blob(base64, format) {
  const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
  return new Blob([bytes], { type: `image/${format}` });
}

/// One picture that is being drawn.
class Sheet {
  constructor(prompt) {
    this.prompt = prompt;
    this.bar = make("progress", { max: 1 });
    this.caption = make("figcaption", { textContent: "waits for its turn" });
    this.blank = make("div", { className: "blank" });
    this.figure = make("figure", {}, this.caption, this.bar, this.blank);
    $("easel").append(this.figure);
  }

  show(picture) {
    this.image ??= make("img", { alt: this.prompt });
    const before = this.image.src;
    this.image.src = URL.createObjectURL(picture);
    if (before) URL.revokeObjectURL(before);
    this.blank.replaceWith(this.image);
  }

  progress(stage, done, total) {
    const parts = { drawing: "draws tokens", encoding: "reads the prompt", denoising: "develops", finishing: "finishes" };
    this.caption.textContent = (parts[stage] ?? stage) + (total ? ` ${done} of ${total}` : "");
    if (total) this.bar.value = done / total;
    else this.bar.removeAttribute("value");
  }

  finish(picture, seed) {
    this.show(picture);
    this.figure.classList.add("done");
    this.bar.remove();
    const link = make("a", { href: this.image.src, download: `xomni-${seed}.png`, textContent: "save" });
    this.caption.replaceChildren(`seed ${seed} · `, link);
  }
}

function request() {
  const given = new FormData(form);
  const body = { prompt: given.get("prompt"), stream: true, progress: true };
  const numbers = ["n", "seed", "partial_images"].filter((name) => given.get(name));
  for (const name of numbers) body[name] = Number(given.get(name));
  body.size = given.get("size") || "auto";
  return body;
}

async function draw() {
  const body = request();
  const started = performance.now();
  $("error").textContent = "";
  $("status").textContent = "Asks …";
  $("easel").replaceChildren();
  const sheets = Array.from({ length: body.n ?? 1 }, () => new Sheet(body.prompt));
  let finished = 0;
  const answer = await ask("v1/images/generations", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal: drawing.signal,
  });
  $("status").textContent = "";
  for await (const event of events(answer)) {
    const sheet = sheets[event.index ?? 0];
    if (event.error) throw new Error(event.error.message);
    if (event.type === "image_generation.progress") {
      if (event.stage !== "started") sheet?.progress(event.stage, event.done, event.total);
    } else if (event.type === "image_generation.partial_image") {
      sheet?.show(blob(event.b64_json, event.output_format));
    } else if (event.type === "image_generation.completed") {
      const picture = blob(event.b64_json, event.output_format);
      sheet?.finish(picture, event.seed);
      finished += 1;
      await keep({ prompt: body.prompt, seed: event.seed, size: event.size, picture });
    }
  }
  if (finished < sheets.length) throw new Error("The stream ended before the last picture.");
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  $("status").textContent = `Drawn in ${seconds} s.`;
}

/// Shows where a key is given, unless that is seen already.
function askForKey() {
  if (!$("access").hidden) return;
  $("access").hidden = false;
  if (!form.elements.prompt.value) form.elements.key.focus();
}

/// Takes the key that stands in the form, if one does.
function unlock() {
  const given = new FormData(form).get("key").trim();
  if (!given) return;
  key = given;
  sessionStorage.setItem("key", key);
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (drawing) return;
  unlock();
  drawing = new AbortController();
  $("draw").disabled = true;
  $("stop").hidden = false;
  try {
    await draw();
  } catch (error) {
    $("status").textContent = drawing.signal.aborted ? "Stopped." : "";
    if (!drawing.signal.aborted) $("error").textContent = error.message;
    for (const blank of document.querySelectorAll("#easel .blank")) blank.parentElement.remove();
  } finally {
    drawing = null;
    $("draw").disabled = false;
    $("stop").hidden = true;
    look();
  }
});
form.elements.key.addEventListener("change", () => {
  unlock();
  look();
});
$("stop").addEventListener("click", () => drawing?.abort());
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});

// The last pictures, kept in this browser alone.

const shelf = new Promise((resolve) => {
  const open = indexedDB.open("xomni", 1);
  open.onupgradeneeded = () => open.result.createObjectStore("pictures", { autoIncrement: true });
  open.onsuccess = () => resolve(open.result);
  open.onerror = () => resolve(null);
});

function finished(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function keep(entry) {
  const pictures = (await shelf)?.transaction("pictures", "readwrite").objectStore("pictures");
  if (!pictures) return;
  try {
    await finished(pictures.add(entry));
    const keys = await finished(pictures.getAllKeys());
    for (const old of keys.slice(0, -KEPT)) pictures.delete(old);
    await hang();
  } catch {
    // A browser without room for them draws all the same.
  }
}

async function hang() {
  const pictures = (await shelf)?.transaction("pictures").objectStore("pictures");
  const entries = pictures ? await finished(pictures.getAll()) : [];
  for (const image of $("pictures").querySelectorAll("img")) URL.revokeObjectURL(image.src);
  $("pictures").replaceChildren(...entries.reverse().map(({ prompt, seed, size, picture }) => {
    const href = URL.createObjectURL(picture);
    const title = `${prompt}\n${size}, seed ${seed}`;
    const image = make("img", { src: href, alt: prompt, loading: "lazy" });
    return make("li", {}, make("a", { href, target: "_blank", title }, image, make("span", { textContent: prompt })));
  }));
  $("recent").hidden = entries.length === 0;
}

// What the cluster does.

function state(name) {
  return make("span", { className: `state ${name}`, textContent: name });
}

function card(title, standing, ...lines) {
  const heading = make("h3", {}, make("span", { textContent: title }), state(standing));
  const texts = lines.filter(Boolean).map((line) =>
    typeof line === "string" ? make("p", { textContent: line }) : line);
  return make("article", {}, heading, ...texts);
}

function work({ running, queued, rate }, unit) {
  const busy = running ? `${running} running` : "idle";
  return `${busy}${queued ? `, ${queued} waiting` : ""}${rate >= 1 ? ` · ${Math.round(rate)} ${unit}/s` : ""}`;
}

function group({ id, state, tp, ranks_present, epoch, load }) {
  const used = load.kv_blocks - load.kv_blocks_free;
  const memory = load.kv_blocks
    ? make("meter", { max: load.kv_blocks, value: used, title: `${used} of ${load.kv_blocks} K/V blocks` })
    : null;
  memory?.setAttribute("aria-label", "K/V blocks in use");
  return card(`Group ${id}`, state, `${ranks_present} of ${tp} ranks, epoch ${epoch}`, work(load, "rows"), memory);
}

function show({ model, coordinator, membership, groups, decoders }) {
  $("model").textContent = model;
  $("health").replaceChildren(state(coordinator.state));
  const { in_flight, waiting } = coordinator;
  const cards = [
    card("Coordinator", coordinator.state, `${in_flight} running, ${waiting} waiting`,
      membership.current ? "" : "etcd is away: the workers are as last seen"),
    ...groups.map(group),
    ...decoders.map((decoder, index) => card(`Decoder ${index + 1}`, decoder.state, work(decoder.load, "steps"))),
  ];
  if (!groups.length) cards.push(make("p", { className: "quiet", textContent: "No backbone group." }));
  if (!decoders.length) cards.push(make("p", { className: "quiet", textContent: "No decoder." }));
  $("cluster").replaceChildren(...cards);
}

async function look() {
  try {
    show(await (await ask("v1/cluster")).json());
  } catch (error) {
    $("health").replaceChildren(state("lost"));
    $("cluster").replaceChildren(make("p", { className: "quiet", textContent: error.message }));
  }
}

async function watch() {
  for (;;) {
    if (!document.hidden) await look();
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

hang();
watch();
