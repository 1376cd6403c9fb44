// Draws a picture with OpenAI's client: `draw.mjs URL PROMPT SIZE SEED > PNG`.

import OpenAI from "openai";

const [url, prompt, size, seed] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
const drawn = await client.images.generate({ prompt, size, seed: Number(seed) });
process.stdout.write(Buffer.from(drawn.data[0].b64_json, "base64"));
