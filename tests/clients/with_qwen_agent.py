import json

import checks
from checks import equal, raises, report
from qwen_agent.llm import get_chat_model
from qwen_agent.llm.base import ModelServiceError

FUNCTIONS = [{"name": "weather", "description": "Degrees in a city.", "parameters": checks.PARAMETERS}]


model = get_chat_model({"model": "tiny", "model_server": f"{checks.URL}/v1", "api_key": "none", "generate_cfg": {"max_input_tokens": 10**6}})


def user(text):
    return [{"role": "user", "content": text}]


def stream():
    *_, last = model.chat(user("Hi"), stream=True)
    equal(last[0]["content"], checks.TEXT)


def tools():
    messages = user(checks.ASK_WEATHER)
    for streamed in (False, True):
        answer = model.chat(messages, functions=FUNCTIONS, stream=streamed, extra_generate_cfg={"parallel_function_calls": True})
        if streamed:
            *_, answer = answer
        calls = [message for message in answer if message.get("function_call")]
        equal([json.loads(call["function_call"]["arguments"])["city"] for call in calls], list(checks.DEGREES))
    messages += answer
    for call in calls:
        city = json.loads(call["function_call"]["arguments"])["city"]
        messages.append({"role": "function", "name": "weather", "content": checks.DEGREES[city], "extra": call.get("extra") or {}})
    *_, last = model.chat(messages, functions=FUNCTIONS, stream=True, extra_generate_cfg={"parallel_function_calls": True})
    equal(last[-1]["content"], checks.BOTH)


def full():
    """The openai client inside tries twice more by itself."""
    equal(list(model.chat(user(checks.ASK_FULL), stream=True))[-1][0]["content"], checks.TEXT)


def overflow():
    assert "context" in str(raises(ModelServiceError, lambda: list(model.chat(user(checks.TOO_LONG), stream=True))))


def cancel():
    chunks = model.chat(user(checks.ASK_FOR_EVER), stream=True)
    next(chunks)
    chunks.close()


report(stream=stream, tools=tools, full=full, overflow=overflow, cancel=cancel)
