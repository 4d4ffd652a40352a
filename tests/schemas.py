"""JSON schemas drawn at random, all of them small enough that a model without sense comes to an end."""

from __future__ import annotations

from random import Random
from typing import Any

WORDS = ("name", "city", "größe", "数量", "a b", 'say "hi"', "tags", "x")


def draw(seed: int) -> dict[str, Any]:
    """A schema of an object."""
    random = Random(seed)
    schema = _object(random, 3)
    if random.random() < 0.3:
        schema["$defs"] = {"leaf": _leaf(random)}
        schema["properties"]["ref"] = {"$ref": "#/$defs/leaf"}
        schema["required"] = [*schema["required"], "ref"]
    return schema


def _object(random: Random, depth: int) -> dict[str, Any]:
    keys = random.sample(WORDS, random.randint(1, 4))
    return {
        "type": "object",
        "properties": {key: _any(random, depth - 1) for key in keys},
        "required": [key for key in keys if random.random() < 0.7],
        "additionalProperties": False,
    }


def _any(random: Random, depth: int) -> dict[str, Any]:
    kind = random.choice(["leaf", "leaf", "object", "array", "anyOf"]) if depth > 0 else "leaf"
    if kind == "object":
        return _object(random, depth)
    if kind == "array":
        least = random.randint(0, 2)
        return {"type": "array", "items": _any(random, depth - 1), "minItems": least, "maxItems": least + random.randint(0, 2)}
    if kind == "anyOf":
        return {"anyOf": [_any(random, depth - 1) for _ in range(2)]}
    return _leaf(random)


def _leaf(random: Random) -> dict[str, Any]:
    low = random.randint(-50, 50)
    return random.choice(
        [
            {"type": "string", "maxLength": random.randint(0, 8)},
            {"type": "string", "pattern": "^[a-z]{2,5}(-[0-9]+){1,2}$", "maxLength": 12},
            {"type": "string", "format": random.choice(["date", "uuid", "ipv4"])},
            {"enum": random.sample(["red", "grün", "蓝", 1, 2.5, None, True, "a/b"], 3)},
            {"const": random.choice(["only", 7, [1, 2], {"a": None}])},
            {"type": "integer", "minimum": low, "maximum": low + random.randint(0, 1000)},
            {"type": "integer", "multipleOf": 3, "minimum": 0, "maximum": 99},
            {"type": ["boolean", "null"]},
        ]
    )
