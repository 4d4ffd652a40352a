"""The client that Dify's provider "OpenAI-API-compatible" is made of, with what a person copied into its form."""

import json
import os

from checks import TEXT, equal, report
from dify_plugin.entities.model import ModelPropertyKey
from dify_plugin.entities.model.message import UserPromptMessage
from dify_plugin.interfaces.model.openai_compatible.llm import OAICompatLargeLanguageModel

# Beside the request it counts tokens with a tokenizer that it fetches from elsewhere.
OAICompatLargeLanguageModel._get_num_tokens_by_gpt2 = lambda self, text: len(text)
form = json.loads(os.environ["DIFY_FORM"])
model = OAICompatLargeLanguageModel([])
credentials = {
    "endpoint_url": form["API endpoint URL"],
    "api_key": form["API Key"],
    "mode": form["Completion mode"].lower(),
    "context_size": form["Model context size"],
    "stream_mode_delimiter": "\\n\\n",
}


def stream():
    model.validate_credentials(form["Model Name"], credentials)
    schema = model.get_customizable_model_schema(form["Model Name"], credentials)
    equal(schema.model_properties[ModelPropertyKey.CONTEXT_SIZE], int(form["Model context size"]))
    pieces = model.invoke(form["Model Name"], credentials, [UserPromptMessage(content="Hello")], {"max_tokens": 200}, stream=True)
    equal("".join(piece.delta.message.content for piece in pieces), TEXT)


report(stream=stream)
