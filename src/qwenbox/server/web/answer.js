// The answer that is being written: asked for, drawn as it comes, stopped, asked for again.
import { ApiError, answerNow, chat } from "./api.js";
import { drawConversation, keep, lastNode, messages, stick, toEnd } from "./conversation.js";
import { depthFields } from "./depth.js";
import { $ } from "./dom.js";
import { t } from "./i18n.js";
import { drawAnswer } from "./message.js";
import { model, state, watch, watchAgain } from "./service.js";
import { settings } from "./settings.js";
import { Pace, measureContext, showContext, showSpeed } from "./speed.js";

let running = null; // AbortController
let requestId = null; // its name at the service, once it has one

export function isRunning() { return running !== null; }

export function stop() { running?.abort(); }

export function send(text) {
  if (running || !text.trim()) return;
  messages.push({ role: "user", content: text });
  keep();
  answer();
}

export function forget() {
  stop();
  messages.length = 0;
  keep();
  showSpeed(0, null);
  draw();
}

/** Draws the whole conversation and what can be done now. */
export function draw() {
  drawConversation();
  $("send").hidden = running !== null;
  $("stop").hidden = running === null;
  if (!running) measureContext();
}

function retry() {
  if (running) return;
  while (messages.at(-1)?.role === "assistant") messages.pop();
  if (messages.length) answer();
}

function requestBody() {
  const history = messages.slice(0, -1).filter((message) => message.content).map(({ role, content }) => ({ role, content }));
  if (settings.system) history.unshift({ role: "system", content: settings.system });
  const body = { messages: history, ...depthFields(), timings: true, return_progress: true };
  if (settings.model !== null && model()) body.model = model().id;
  if (settings.temperature !== "") body.temperature = Number(settings.temperature);
  if (settings.maxTokens !== "") body.max_tokens = Number(settings.maxTokens);
  return body;
}

/** What a chunk adds to a message. */
function take(message, chunk, pace) {
  message.progress = chunk.prompt_progress ?? null;
  if (chunk.usage) {
    const { total_tokens: tokens, completion_tokens: count } = chunk.usage;
    pace.note(count);
    Object.assign(message, { tokens, count, rate: message.rate ?? pace.rate });
    showSpeed(count, pace.rate);
    showContext(tokens);
  }
  const choice = chunk.choices[0];
  if (!choice) return;
  message.content += choice.delta.content ?? "";
  message.reasoning += choice.delta.reasoning_content ?? "";
  if (choice.finish_reason === "length") message.state = chunk.qwenbox?.stop_detail === "loop" ? "loop" : "length";
  const { reason, source, ended } = chunk.qwenbox?.thinking ?? {};
  if (ended) message.why = t(`ended${ended[0].toUpperCase()}${ended.slice(1)}`);
  else if (reason && settings.depth === "auto" && source === "enable_thinking") message.why = reason;
}

async function answer() {
  const message = { role: "assistant", content: "", reasoning: "", state: "running" };
  messages.push(message);
  const mine = running = new AbortController();
  showSpeed(0, null);
  toEnd();
  draw();
  if (state() !== "ready") watchAgain(300); // the request loads its model
  let frame = 0;
  const drawPart = () => { frame = 0; drawAnswer(lastNode(), message, true, requestId !== null); stick(); };
  const pace = new Pace();
  let first = 0;
  requestId = null;
  try {
    for await (const chunk of chat(requestBody(), mine.signal, (id) => { requestId = id; })) {
      take(message, chunk, pace);
      if (!first && (message.content || message.reasoning)) {
        first = performance.now();
        if (state() !== "ready") watch();
      }
      if (chunk.choices[0]?.delta.reasoning_content) message.seconds = (performance.now() - first) / 1000;
      frame ||= requestAnimationFrame(drawPart);
    }
    if (message.state === "running") message.state = message.content || message.reasoning ? undefined : "empty";
  } catch (error) {
    if (error.name === "AbortError") message.state = "stopped";
    else if (error instanceof ApiError) message.state = { error: error.message, code: error.status === 401 ? "key" : error.code };
    else message.state = { error: String(error), code: "lost" };
  }
  cancelAnimationFrame(frame);
  message.progress = null;
  message.rate = pace.rate;
  running = requestId = null;
  keep();
  draw();
}

$("conversation").addEventListener("click", ({ target }) => {
  if (target.closest(".again")) retry();
  const hurry = target.closest(".hurry");
  if (hurry && requestId) {
    hurry.disabled = true;
    answerNow(requestId).catch(() => {}); // the answer comes either way
  }
});
$("stop").addEventListener("click", stop);
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && !document.querySelector("dialog[open]")) stop(); });
