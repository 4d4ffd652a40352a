// How other programs reach this service: its address and key, ready to copy.
import { $, el } from "./dom.js";
import { t } from "./i18n.js";
import { codeNode } from "./markdown.js";
import { model } from "./service.js";
import { settings } from "./settings.js";

/** The programs, by name: language of the snippet, and the snippet. `url` has no slash at its end. */
const programs = {
  curl: ({ url, key, model }) => ["bash", `curl ${url}/v1/chat/completions \\\n  -H 'Content-Type: application/json'${key ? ` \\\n  -H 'Authorization: Bearer ${key}'` : ""} \\\n  -d '{"model": "${model}", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}'`],
  "openai (Python)": ({ url, key, model }) => ["python", `from openai import OpenAI

client = OpenAI(base_url="${url}/v1", api_key="${key || "none"}")
answer = client.chat.completions.create(
    model="${model}",
    messages=[{"role": "user", "content": "Hello"}],
)
print(answer.choices[0].message.content)`],
  "anthropic (Python)": ({ url, key }) => ["python", `from anthropic import Anthropic

client = Anthropic(base_url="${url}", api_key="${key || "none"}")
answer = client.messages.create(
    model="claude-any",
    max_tokens=1000,
    messages=[{"role": "user", "content": "Hello"}],
)
print(answer.content[-1].text)`],
  "Ollama (Python)": ({ url, key, model }) => ["python", `from ollama import Client

client = Client(host="${url}"${key ? `, headers={"Authorization": "Bearer ${key}"}` : ""})
answer = client.chat(model="${model}", messages=[{"role": "user", "content": "Hello"}])
print(answer.message.content)`],
  "Claude Code": ({ url, key, model, window }) => ["bash", `export ANTHROPIC_BASE_URL=${url}
export ANTHROPIC_AUTH_TOKEN=${key || "none"}
export ANTHROPIC_MODEL=${model} ANTHROPIC_DEFAULT_HAIKU_MODEL=${model}
export CLAUDE_CODE_MAX_CONTEXT_TOKENS=${window ?? 32768}
export CLAUDE_STREAM_IDLE_TIMEOUT_MS=3600000 API_TIMEOUT_MS=3600000
claude`],
  Codex: ({ url, key, model, window }) => ["toml", `# ~/.codex/config.toml${key ? `; before codex: export QWENBOX_API_KEY=${key}` : ""}
model = "${model}"
model_provider = "qwenbox"${window ? `\nmodel_context_window = ${window}` : ""}

[model_providers.qwenbox]
name = "qwenbox"
base_url = "${url}/v1"
wire_api = "responses"${key ? '\nenv_key = "QWENBOX_API_KEY"' : ""}`],
  Continue: ({ url, key, model }) => ["yaml", `# ~/.continue/config.yaml
name: qwenbox
version: 1.0.0
schema: v1
models:
  - name: qwenbox
    provider: openai
    model: ${model}
    apiBase: ${url}/v1
    apiKey: ${key || "none"}
    roles: [chat, edit, apply, autocomplete]`],
  Dify: ({ url, key, model, window }) => ["", `OpenAI-API-compatible
Model Name: ${model}
API endpoint URL: ${url}/v1
API Key: ${key || "none"}
Completion mode: Chat
Model context size: ${window ?? 32768}`],
  "Open WebUI": ({ url, key }) => ["bash", `export OPENAI_API_BASE_URL=${url}/v1
export OPENAI_API_KEY=${key || "none"}
open-webui serve`],
};

const mask = (key) => `${key.slice(0, 3)}${"•".repeat(8)}`;

function draw() {
  const there = { url: location.origin, key: settings.key, model: model()?.id ?? "", window: model()?.window };
  const seen = { ...there, key: there.key && !$("connect-key").checked ? mask(there.key) : there.key };
  const open = $("connect-list").querySelector("details[open]")?.dataset.program ?? "curl";
  $("connect-address").textContent = `${there.url}/v1`;
  $("connect-secret").hidden = !there.key;
  $("connect-local").hidden = !["127.0.0.1", "localhost", "[::1]"].includes(location.hostname);
  $("connect-list").replaceChildren(...Object.entries(programs).map(([name, snippet]) => {
    const [language, text] = snippet(seen);
    return el("details", { name: "program", "data-program": name, open: name === open }, el("summary", {}, name), codeNode(text, language, () => snippet(there)[1]));
  }));
}

$("open-connect").addEventListener("click", () => {
  draw(); // before it opens: what has the focus must not be replaced
  $("connect").showModal();
  $("connect").scrollTop = 0; // where it was left
});
$("connect-key").addEventListener("change", draw);
