import json

import anthropic
import checks
from checks import equal, raises, report

client = anthropic.Anthropic(base_url=checks.URL, api_key="none", max_retries=0)
patient = client.with_options(max_retries=3)
TOOLS = [{"name": "weather", "description": "Degrees in a city.", "input_schema": checks.PARAMETERS}]


def ask(text, asked=client, **more):
    return asked.messages.create(model="claude-any", max_tokens=5000, messages=[{"role": "user", "content": text}], **more)


def stream():
    with client.messages.stream(model="claude-any", max_tokens=500, messages=[{"role": "user", "content": "Hi"}]) as events:
        equal("".join(events.text_stream), checks.TEXT)


def tools():
    for streamed in (False, True):
        messages = [{"role": "user", "content": checks.ASK_WEATHER}]
        if streamed:
            with client.messages.stream(model="claude-any", max_tokens=500, messages=messages, tools=TOOLS) as events:
                message = events.get_final_message()
        else:
            message = client.messages.create(model="claude-any", max_tokens=500, messages=messages, tools=TOOLS)
        equal(message.stop_reason, "tool_use")
        calls = [block for block in message.content if block.type == "tool_use"]
        equal([call.input["city"] for call in calls], list(checks.DEGREES))
        messages.append({"role": "assistant", "content": message.content})
        results = [{"type": "tool_result", "tool_use_id": call.id, "content": checks.DEGREES[call.input["city"]]} for call in calls]
        messages.append({"role": "user", "content": results})
        equal(client.messages.create(model="claude-any", max_tokens=500, messages=messages, tools=TOOLS).content[0].text, checks.BOTH)


def schema():
    answer = ask(checks.ASK_PERSON, output_config={"format": {"type": "json_schema", "schema": checks.SCHEMA}})
    equal(json.loads(answer.content[-1].text), checks.PERSON)


def full():
    equal(raises(anthropic.RateLimitError, lambda: ask(checks.ASK_FULL)).status_code, 429)
    equal(ask(checks.ASK_FULL, patient).content[0].text, checks.TEXT)


def overflow():
    assert "prompt is too long" in str(raises(anthropic.BadRequestError, lambda: ask(checks.TOO_LONG)))


def cancel():
    events = ask(checks.ASK_FOR_EVER, stream=True)
    next(iter(events))
    events.close()


def usage():
    answer = ask("Hi")
    equal(answer.usage.output_tokens, len(checks.TEXT.encode()) + 1)
    counted = client.messages.count_tokens(model="claude-any", messages=[{"role": "user", "content": "Hi"}])
    equal(counted.input_tokens, answer.usage.input_tokens)


report(stream=stream, tools=tools, schema=schema, full=full, overflow=overflow, cancel=cancel, usage=usage)
