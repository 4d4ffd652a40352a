import json

import checks
import litellm
from checks import equal, raises, report


def ask(messages, **more):
    messages = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    options = {"model": "hosted_vllm/tiny", "api_base": f"{checks.URL}/v1", "api_key": "none", "num_retries": 0, "max_retries": 0}
    return litellm.completion(messages=messages, **options | more)


def stream():
    equal("".join(chunk.choices[0].delta.content or "" for chunk in ask("Hi", stream=True)), checks.TEXT)


def tools():
    for streamed in (False, True):
        messages = [{"role": "user", "content": checks.ASK_WEATHER}]
        answer = ask(messages, tools=checks.TOOLS, stream=streamed)
        message = (litellm.stream_chunk_builder(list(answer)) if streamed else answer).choices[0].message
        equal([json.loads(call.function.arguments)["city"] for call in message.tool_calls], list(checks.DEGREES))
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": checks.DEGREES[json.loads(call.function.arguments)["city"]]})
        equal(ask(messages, tools=checks.TOOLS).choices[0].message.content, checks.BOTH)


def schema():
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": checks.SCHEMA}}
    equal(json.loads(ask(checks.ASK_PERSON, response_format=form).choices[0].message.content), checks.PERSON)


def full():
    raises(litellm.RateLimitError, lambda: ask(checks.ASK_FULL))
    equal(ask(checks.ASK_FULL, num_retries=3).choices[0].message.content, checks.TEXT)


def overflow():
    raises(litellm.BadRequestError, lambda: ask(checks.TOO_LONG))


def cancel():
    chunks = ask(checks.ASK_FOR_EVER, stream=True)
    next(iter(chunks))  # the process ends with the stream open


def usage():
    equal(ask("Hi").usage.completion_tokens, len(checks.TEXT.encode()) + 1)


report(stream=stream, tools=tools, schema=schema, full=full, overflow=overflow, cancel=cancel, usage=usage)
