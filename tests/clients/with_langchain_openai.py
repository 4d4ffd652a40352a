import checks
import openai
from checks import equal, raises, report
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

model = ChatOpenAI(model="tiny", base_url=f"{checks.URL}/v1", api_key="none", max_retries=0)
patient = ChatOpenAI(model="tiny", base_url=f"{checks.URL}/v1", api_key="none", max_retries=3)


@tool
def weather(city: str) -> str:
    """Degrees in a city."""
    return checks.DEGREES[city]


def stream():
    equal("".join(chunk.content for chunk in model.stream("Hi")), checks.TEXT)


def tools():
    bound = model.bind_tools([weather])
    for streamed in (False, True):
        messages = [HumanMessage(checks.ASK_WEATHER)]
        if streamed:
            chunks = list(bound.stream(messages))
            answer = sum(chunks[1:], chunks[0])
        else:
            answer = bound.invoke(messages)
        equal([call["args"]["city"] for call in answer.tool_calls], list(checks.DEGREES))
        messages.append(answer)
        messages += [ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"]) for call in answer.tool_calls]
        equal(bound.invoke(messages).content, checks.BOTH)


def schema():
    equal(model.with_structured_output(checks.SCHEMA | {"title": "person"}, method="json_schema").invoke(checks.ASK_PERSON), checks.PERSON)


def full():
    raises(openai.RateLimitError, lambda: model.invoke(checks.ASK_FULL))
    equal(patient.invoke(checks.ASK_FULL).content, checks.TEXT)


def overflow():
    raises(openai.BadRequestError, lambda: model.invoke(checks.TOO_LONG))


def cancel():
    chunks = model.stream(checks.ASK_FOR_EVER)
    next(chunks)
    chunks.close()


def usage():
    equal(model.invoke("Hi").usage_metadata["output_tokens"], len(checks.TEXT.encode()) + 1)
    chunks = list(model.stream("Hi", stream_usage=True))
    equal(sum(chunks[1:], chunks[0]).usage_metadata["output_tokens"], len(checks.TEXT.encode()) + 1)


report(stream=stream, tools=tools, schema=schema, full=full, overflow=overflow, cancel=cancel, usage=usage)
