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
    reason: body.error?.message ?? null, bytes: body.bytes ?? null, totalBytes: body.total_bytes ?? null, secondsLeft: body.seconds_left ?? null, isa: body.isa ?? null, threads: body.threads ?? null,
  };
}

/** How far the default model of the service is; throws when the service cannot be reached. */
export async function ready() {
  const response = await fetch("health", { headers: headers() }); // what /ready says, without a 503 in the browser's console
  return progressOf(await response.json().catch(() => ({})));
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

/** Yields the data of each server-sent event; a stream that ends without [DONE] is an error. `named` gets the request's id. */
export async function* chat(request, signal, named) {
  const response = await fetch("v1/chat/completions", {
    method: "POST", signal, headers: headers({ "Content-Type": "application/json" }),
    body: JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } }),
  });
  if (!response.ok) throw await failure(response);
  named(response.headers.get("x-request-id"));
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
