import json

import checks
import openai
from checks import equal, raises, report

client = openai.OpenAI(base_url=f"{checks.URL}/v1", api_key="none", max_retries=0)
patient = client.with_options(max_retries=3)
RESPONSES_TOOLS = [{"type": "function", "name": "weather", "description": "Degrees in a city.", "parameters": checks.PARAMETERS}]


def ask(text, **more):
    return client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": text}], **more)


def stream():
    equal("".join(chunk.choices[0].delta.content or "" for chunk in ask("Hi", stream=True)), checks.TEXT)
    with client.responses.stream(model="tiny", input="Hi") as events:
        equal(events.get_final_response().output_text, checks.TEXT)


def tools():
    for streamed in (False, True):
        messages = [{"role": "user", "content": checks.ASK_WEATHER}]
        if streamed:
            with client.chat.completions.stream(model="tiny", messages=messages, tools=checks.TOOLS) as events:
                choice = events.get_final_completion().choices[0]
        else:
            choice = client.chat.completions.create(model="tiny", messages=messages, tools=checks.TOOLS).choices[0]
        equal(choice.finish_reason, "tool_calls")
        calls = choice.message.tool_calls
        equal([json.loads(call.function.arguments)["city"] for call in calls], list(checks.DEGREES))
        messages.append(choice.message.model_dump(exclude_none=True, exclude={"parsed"}))
        for call in calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": checks.DEGREES[json.loads(call.function.arguments)["city"]]})
        equal(client.chat.completions.create(model="tiny", messages=messages, tools=checks.TOOLS).choices[0].message.content, checks.BOTH)
    items = [{"role": "user", "content": checks.ASK_WEATHER}]
    response = client.responses.create(model="tiny", input=items, tools=RESPONSES_TOOLS)
    calls = [item for item in response.output if item.type == "function_call"]
    equal(len(calls), 2)
    items += response.output
    items += [
        {"type": "function_call_output", "call_id": call.call_id, "output": checks.DEGREES[json.loads(call.arguments)["city"]]} for call in calls
    ]
    equal(client.responses.create(model="tiny", input=items, tools=RESPONSES_TOOLS).output_text, checks.BOTH)


def schema():
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": checks.SCHEMA}}
    equal(json.loads(ask(checks.ASK_PERSON, response_format=form).choices[0].message.content), checks.PERSON)
    text = {"format": {"type": "json_schema", "name": "person", "strict": True, "schema": checks.SCHEMA}}
    equal(json.loads(client.responses.create(model="tiny", input=checks.ASK_PERSON, text=text).output_text), checks.PERSON)


def full():
    equal(raises(openai.RateLimitError, lambda: ask(checks.ASK_FULL)).status_code, 429)
    equal(
        patient.chat.completions.create(model="tiny", messages=[{"role": "user", "content": checks.ASK_FULL}]).choices[0].message.content, checks.TEXT
    )


def overflow():
    equal(raises(openai.BadRequestError, lambda: ask(checks.TOO_LONG)).code, "context_length_exceeded")


def cancel():
    chunks = ask(checks.ASK_FOR_EVER, stream=True)
    next(iter(chunks))
    chunks.close()


def usage():
    equal(ask("Hi").usage.completion_tokens, len(checks.TEXT.encode()) + 1)
    last = list(ask("Hi", stream=True, stream_options={"include_usage": True}))[-1]
    equal((last.usage.completion_tokens, last.usage.completion_tokens_details.reasoning_tokens), (len(checks.TEXT.encode()) + 1, 0))


report(stream=stream, tools=tools, schema=schema, full=full, overflow=overflow, cancel=cancel, usage=usage)
