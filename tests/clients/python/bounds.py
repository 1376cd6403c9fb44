"""Makes of what schemathesis asks for within the schemas what the descriptions beside them ask for too, and little work."""

import schemathesis


def at_most(fields, name, limit):
    value = fields.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and value > limit:
        fields[name] = limit


@schemathesis.hook
def before_call(ctx, case, kwargs):
    body = case.body
    if not isinstance(body, dict) or case.meta is None or case.meta.generation.mode.is_negative:
        return
    # Only one model is served.
    body.pop("model", None)
    at_most(body, "n", 2)
    at_most(body, "max_tokens", 8)
    at_most(body, "max_completion_tokens", 8)
    for fields in (body, body.get("image")):
        if isinstance(fields, dict):
            at_most(fields, "num_inference_steps", 2)
            # Multiples of 16, within the model's bounds.
            if isinstance(fields.get("size"), str) and "x" in fields["size"]:
                fields["size"] = "32x48"
    if case.operation.label == "POST /v1/images/generations":
        if body.get("output_format") != "jpeg":
            body.pop("output_compression", None)
        if body.get("stream"):
            body.pop("response_format", None)
        else:
            body.pop("partial_images", None)
            body.pop("progress", None)
