"""Draws a picture with OpenAI's client: `draw.py URL PROMPT SIZE SEED > PNG`."""

import base64
import sys

import openai

url, prompt, size, seed = sys.argv[1:]
with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
    drawn = client.images.generate(prompt=prompt, size=size, extra_body={"seed": int(seed)})
sys.stdout.buffer.write(base64.b64decode(drawn.data[0].b64_json))
