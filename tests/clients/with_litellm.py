import json

import litellm
from checks import (
    ASK_FOR_EVER,
    ASK_FULL,
    ASK_PERSON,
    ASK_WEATHER,
    BOTH,
    DEGREES,
    PERSON,
    SCHEMA,
    TEXT,
    TOO_LONG,
    TOOLS,
    URL,
    equal,
    raises,
    report,
)


def ask(messages, **more):
    messages = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    options = {"model": "hosted_vllm/tiny", "api_base": f"{URL}/v1", "api_key": "none", "num_retries": 0, "max_retries": 0}
    return litellm.completion(messages=messages, **options | more)


def stream():
    equal("".join(chunk.choices[0].delta.content or "" for chunk in ask("Hi", stream=True)), TEXT)


def tools():
    for streamed in (False, True):
        messages = [{"role": "user", "content": ASK_WEATHER}]
        answer = ask(messages, tools=TOOLS, stream=streamed)
        message = (litellm.stream_chunk_builder(list(answer)) if streamed else answer).choices[0].message
        equal([json.loads(call.function.arguments)["city"] for call in message.tool_calls], list(DEGREES))
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": DEGREES[json.loads(call.function.arguments)["city"]]})
        equal(ask(messages, tools=TOOLS).choices[0].message.content, BOTH)


def schema():
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
    equal(json.loads(ask(ASK_PERSON, response_format=form).choices[0].message.content), PERSON)


def full():
    raises(litellm.RateLimitError, lambda: ask(ASK_FULL))
    equal(ask(ASK_FULL, num_retries=3).choices[0].message.content, TEXT)


def overflow():
    raises(litellm.BadRequestError, lambda: ask(TOO_LONG))


def cancel():
    chunks = ask(ASK_FOR_EVER, stream=True)
    next(iter(chunks))  # the process ends with the stream open


def usage():
    equal(ask("Hi").usage.completion_tokens, len(TEXT.encode()) + 1)


report(stream=stream, tools=tools, schema=schema, full=full, overflow=overflow, cancel=cancel, usage=usage)
