// The page speaks the same public API as every other client.

export class ApiError extends Error {
  constructor(message, status = 0, code = null) { super(message); this.status = status; this.code = code; }
}

let key = "";
export function setKey(value) { key = value; }

function headers(extra = {}) { return key ? { ...extra, Authorization: `Bearer ${key}` } : extra; }

async function failure(response) {
  let error = {};
  try { error = (await response.json()).error ?? {}; } catch { /* not our body: the status has to do */ }
  return new ApiError(error.message ?? `HTTP ${response.status}`, response.status, error.code ?? null);
}

function progressOf(body) {
  return {
    state: body.state === "unloaded" && body.requests_waiting ? "queued" : body.state ?? "loading", progress: body.progress ?? null,
    error: body.error ?? null, bytes: body.bytes ?? null, totalBytes: body.total_bytes ?? null, secondsLeft: body.seconds_left ?? null, isa: body.isa ?? null, threads: body.threads ?? null,
    onDisk: body.conversations?.on_disk ?? true,
  };
}

/** How far the default model of the service is; throws when the service cannot be reached. */
export async function ready() {
  const response = await fetch("health", { headers: headers() }); // what /ready says, without a 503 in the browser's console
  const body = await response.json().catch(() => ({}));
  return { ...progressOf(body), choice: body.choice ?? null, predicted: body.speed ?? null };
}

/** The models that can be asked and how far each is, the default one first. */
export async function listModels() {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) throw await failure(response);
  return (await response.json()).data.map((model) => ({
    id: model.id, window: model.max_model_len ?? null, thinking: model.qwenbox?.thinking ?? null, diskBytes: model.qwenbox?.size_bytes ?? null,
    memoryBytes: model.qwenbox?.memory_bytes ?? null, needBytes: model.qwenbox?.need_bytes ?? null, speed: model.qwenbox?.speed ?? null, ...progressOf(model.qwenbox ?? {}),
  }));
}

/** Ends the thinking of an answer that is under way; it has a name as long as it is. */
export async function answerNow(requestId) {
  const response = await fetch(`v1/requests/${encodeURIComponent(requestId)}/answer`, { method: "POST", headers: headers() });
  if (!response.ok && response.status !== 404) throw await failure(response);
}

/** Has a model loaded, or its memory given back. */
export async function setLoaded(id, loaded) {
  const response = await fetch(`v1/models/${encodeURIComponent(id)}/${loaded ? "load" : "unload"}`, { method: "POST", headers: headers() });
  if (!response.ok) throw await failure(response);
}

/** Tokens of a conversation, for a model that is loaded. */
export async function countTokens(messages, model) {
  const response = await fetch("tokenize", { method: "POST", headers: headers({ "Content-Type": "application/json" }), body: JSON.stringify({ messages, model }) });
  if (!response.ok) throw await failure(response);
  return (await response.json()).count;
}

/** The text of a file, {name, text, num_tokens, window}. */
export async function readFile(file, model, signal) {
  const query = new URLSearchParams({ name: file.name, ...(model ? { model } : {}) });
  const response = await fetch(`files/text?${query}`, { method: "POST", signal, headers: headers({ "Content-Type": "application/octet-stream" }), body: file });
  if (!response.ok) throw await failure(response);
  return response.json();
}

/** Ends an answer; what there is of it is kept. */
export async function cancelRequest(requestId) { await ask("POST", `v1/requests/${encodeURIComponent(requestId)}/cancel`); }

/** What the service says of the choice of its model. */
export function choice() { return ask("GET", "choice"); }

/** Decides of it: one of {model}, {yes}, {path}, {folder}, {endpoint}. */
export function decide(body) { return ask("POST", "choice", body); }

// --- conversations ------------------------------------------------------------------------------

async function ask(method, path, body) {
  const response = await fetch(path, { method, headers: headers(body ? { "Content-Type": "application/json" } : {}), body: body && JSON.stringify(body) });
  if (!response.ok) throw await failure(response);
  return response.json();
}

/** The conversations that have every word of `query`, the last used first, those after the conversation `before`: {conversations, more}. */
export function listConversations(query, before, limit) {
  return ask("GET", `conversations?${new URLSearchParams(Object.entries({ query, before, limit }).filter(([, value]) => value))}`);
}

export function createConversation(content = {}) { return ask("POST", "conversations", content); }

/** Takes the conversations of a file: {taken: how many, refused: [{title, reason}]}. */
export async function importConversations(file) {
  const response = await fetch("conversations/import", { method: "POST", headers: headers({ "Content-Type": "application/json" }), body: file });
  if (!response.ok) throw await failure(response);
  return response.json();
}

/** What has changed since the number `after`: {at: the number now, changed: ids, or null where nobody knows}. */
export function listNews(after) { return ask("GET", `conversations/news${after === null ? "" : `?after=${after}`}`); }
export function getConversation(id) { return ask("GET", `conversations/${id}`); }
export function changeConversation(id, values) { return ask("PATCH", `conversations/${id}`, values); }
export function deleteConversation(id) { return ask("DELETE", `conversations/${id}`); }

/** A conversation as a file: {name, blob}. */
export async function exportConversation(id, format) {
  const response = await fetch(`conversations/${id}/export?format=${format}`, { headers: headers() });
  if (!response.ok) throw await failure(response);
  const name = decodeURIComponent(response.headers.get("content-disposition").split("filename*=UTF-8''")[1]);
  return { name, blob: await response.blob() };
}

/** Adds a question; it is on the service's disk when this returns it. */
export function addMessage(id, parent, content) { return ask("POST", `conversations/${id}/messages`, { parent, content }); }

/** Begins an answer and yields its chunks. */
export async function* askAnswer(id, body, signal) {
  yield* chunks(await fetch(`conversations/${id}/answer`, { method: "POST", signal, headers: headers({ "Content-Type": "application/json" }), body: JSON.stringify(body) }));
}

/** Yields the chunks of the answer that is under way, from its beginning. */
export async function* attachAnswer(id, signal) { yield* chunks(await fetch(`conversations/${id}/answer`, { signal, headers: headers() })); }

/** The data of each server-sent event; a stream that ends without [DONE] is an error. */
async function* chunks(response) {
  if (!response.ok) throw await failure(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    buffer += value;
    let cut;
    while ((cut = buffer.indexOf("\n\n")) >= 0) {
      const frame = buffer.slice(0, cut);
      buffer = buffer.slice(cut + 2);
      for (const line of frame.split("\n")) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiError(chunk.error.message, 200, chunk.error.code ?? null);
        yield chunk;
      }
    }
  }
  throw new ApiError("", 0, "lost");
}
