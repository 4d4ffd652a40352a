import json

import checks
import ollama
from checks import equal, raises, report

client = ollama.Client(host=checks.URL)


def ask(text, **more):
    return client.chat(model="tiny:latest", messages=[{"role": "user", "content": text}], **more)


def stream():
    equal("".join(part.message.content for part in ask("Hi", stream=True)), checks.TEXT)
    equal(ask("Hi").message.content, checks.TEXT)
    equal("".join(part.response for part in client.generate("tiny", "Hi", stream=True)), checks.TEXT)
    equal(client.generate("tiny", "", keep_alive="5m").done_reason, "load")
    equal([model.model for model in client.ps().models], ["tiny:latest"])
    assert client.show("tiny").capabilities
    vectors = client.embed("tiny", ["Hi", "there"], dimensions=4)
    equal([len(vector) for vector in vectors.embeddings], [4, 4])
    equal(vectors.prompt_eval_count, 7)
    assert client.embeddings("tiny", "Hi").embedding


def tools():
    for streamed in (False, True):
        messages = [{"role": "user", "content": checks.ASK_WEATHER}]
        answer = client.chat("tiny", messages=messages, tools=checks.TOOLS, stream=streamed)
        calls = [call for part in (answer if streamed else [answer]) for call in part.message.tool_calls or ()]
        equal([call.function.arguments["city"] for call in calls], list(checks.DEGREES))
        messages.append({"role": "assistant", "tool_calls": [call.model_dump() for call in calls]})
        for call in calls:
            messages.append({"role": "tool", "tool_name": call.function.name, "content": checks.DEGREES[call.function.arguments["city"]]})
        equal(client.chat("tiny", messages=messages, tools=checks.TOOLS).message.content, checks.BOTH)


def schema():
    equal(json.loads(ask(checks.ASK_PERSON, format=checks.SCHEMA).message.content), checks.PERSON)


def overflow():
    error = raises(ollama.ResponseError, lambda: ask(checks.TOO_LONG, options={"num_ctx": 100000}))
    assert error.status_code == 400
    assert "16384" in error.error


def cancel():
    parts = ask(checks.ASK_FOR_EVER, stream=True)
    next(iter(parts))
    parts.close()


def usage():
    answer = ask("Hi")
    equal(answer.eval_count, len(checks.TEXT.encode()) + 1)
    assert 0 < answer.eval_duration <= answer.total_duration


report(stream=stream, tools=tools, schema=schema, overflow=overflow, cancel=cancel, usage=usage)
