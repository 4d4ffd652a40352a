import json

import openai
from checks import (
    ASK_FOR_EVER,
    ASK_FULL,
    ASK_PERSON,
    ASK_WEATHER,
    BOTH,
    DEGREES,
    PARAMETERS,
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

client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
patient = client.with_options(max_retries=3)
RESPONSES_TOOLS = [{"type": "function", "name": "weather", "description": "Degrees in a city.", "parameters": PARAMETERS}]


def ask(text, **more):
    return client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": text}], **more)


def stream():
    equal("".join(chunk.choices[0].delta.content or "" for chunk in ask("Hi", stream=True)), TEXT)
    with client.responses.stream(model="tiny", input="Hi") as events:
        equal(events.get_final_response().output_text, TEXT)


def tools():
    for streamed in (False, True):
        messages = [{"role": "user", "content": ASK_WEATHER}]
        if streamed:
            with client.chat.completions.stream(model="tiny", messages=messages, tools=TOOLS) as events:
                choice = events.get_final_completion().choices[0]
        else:
            choice = client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS).choices[0]
        equal(choice.finish_reason, "tool_calls")
        calls = choice.message.tool_calls
        equal([json.loads(call.function.arguments)["city"] for call in calls], list(DEGREES))
        messages.append(choice.message.model_dump(exclude_none=True, exclude={"parsed"}))
        for call in calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": DEGREES[json.loads(call.function.arguments)["city"]]})
        equal(client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS).choices[0].message.content, BOTH)
    items = [{"role": "user", "content": ASK_WEATHER}]
    response = client.responses.create(model="tiny", input=items, tools=RESPONSES_TOOLS)
    calls = [item for item in response.output if item.type == "function_call"]
    equal(len(calls), 2)
    items += response.output
    items += [{"type": "function_call_output", "call_id": call.call_id, "output": DEGREES[json.loads(call.arguments)["city"]]} for call in calls]
    equal(client.responses.create(model="tiny", input=items, tools=RESPONSES_TOOLS).output_text, BOTH)


def schema():
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
    equal(json.loads(ask(ASK_PERSON, response_format=form).choices[0].message.content), PERSON)
    text = {"format": {"type": "json_schema", "name": "person", "strict": True, "schema": SCHEMA}}
    equal(json.loads(client.responses.create(model="tiny", input=ASK_PERSON, text=text).output_text), PERSON)


def full():
    equal(raises(openai.RateLimitError, lambda: ask(ASK_FULL)).status_code, 429)
    equal(patient.chat.completions.create(model="tiny", messages=[{"role": "user", "content": ASK_FULL}]).choices[0].message.content, TEXT)


def overflow():
    equal(raises(openai.BadRequestError, lambda: ask(TOO_LONG)).code, "context_length_exceeded")


def cancel():
    chunks = ask(ASK_FOR_EVER, stream=True)
    next(iter(chunks))
    chunks.close()


def usage():
    equal(ask("Hi").usage.completion_tokens, len(TEXT.encode()) + 1)
    last = list(ask("Hi", stream=True, stream_options={"include_usage": True}))[-1]
    equal((last.usage.completion_tokens, last.usage.completion_tokens_details.reasoning_tokens), (len(TEXT.encode()) + 1, 0))


report(stream=stream, tools=tools, schema=schema, full=full, overflow=overflow, cancel=cancel, usage=usage)
