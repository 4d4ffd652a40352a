// The answer that is being written: asked for, drawn as it comes, stopped, asked for again. It belongs to the service: a page that leaves, or loses its
// connection, finds it again.
import { addMessage, ApiError, answerNow, askAnswer, attachAnswer, cancelRequest, createConversation, getConversation } from "./api.js";
import { branchTo, confirm, conversationId, drawConversation, isKnown, lastNode, messageOf, messages, named, showConversation, stick, toEnd } from "./conversation.js";
import { markOpened, refresh } from "./conversations.js";
import { depthFields } from "./depth.js";
import { $ } from "./dom.js";
import { drawAnswer } from "./message.js";
import { model, state, watch, watchAgain } from "./service.js";
import { settings } from "./settings.js";
import { Pace, measureContext, showContext, showSpeed } from "./speed.js";
import { rememberPlace } from "./store.js";

const RETRY_MS = [300, 1000, 2000, 4000, 8000, 8000]; // before a connection that was lost is looked for again

let running = null; // {abort, requestId, stopped}: the answer that this page looks at; `requestId` is its name at the service, once it has one

export function isRunning() { return running !== null; }

/** Ends the answer. */
export function stop() {
  if (!running) return;
  running.stopped = true;
  if (running.requestId) cancelRequest(running.requestId).catch(() => {}); // it may be over
}

/** Looks away from the answer, which goes on. */
function leave() {
  running?.abort.abort();
  running = null;
}

/** Draws the whole conversation and what can be done now. */
export function draw() {
  drawConversation();
  $("conversation").classList.toggle("answering", running !== null);
  $("send").hidden = running !== null;
  $("stop").hidden = running === null;
  if (!running) measureContext();
}

// --- which conversation -------------------------------------------------------------------------

/** An empty conversation, which the service learns of with its first question. */
export function newConversation() {
  leave();
  showConversation();
  rememberPlace(null);
  markOpened(null);
  showSpeed(0, null);
  draw();
}

/** Shows a conversation, and its answer as it comes where one is under way. */
export async function openConversation(id) {
  leave();
  let conversation;
  try {
    conversation = await getConversation(id);
  } catch (error) {
    if (error.status === 404) rememberPlace(null);
    else if (messages.length === 0) messages.push({ role: "assistant", content: "", reasoning: "", state: problem(error), reopen: id });
    return draw();
  }
  if (running) return; // a question was asked meanwhile
  rememberPlace(id);
  markOpened(id);
  toEnd();
  show(conversation);
}

function show(conversation) {
  showConversation(conversation);
  showSpeed(0, null);
  const last = messages.at(-1);
  if (last?.state === "running") follow(last, (signal) => attachAnswer(conversation.id, signal));
  else draw();
}

let seen = null; // when the conversation on the screen had changed last, as far as the page has looked

/** Shows what another window, or another person, has added to the conversation on the screen. */
export async function catchUp({ id, updated, running: answered }) {
  const now = `${id} ${updated} ${answered}`;
  if (now === seen || running || id !== conversationId() || document.querySelector(".message.edited")) return;
  let conversation;
  try { conversation = await getConversation(id); } catch { return; } // the list is fetched again
  if (running || id !== conversationId() || document.querySelector(".message.edited")) return;
  seen = now;
  if (!isKnown(conversation)) show(conversation);
}

// --- asking -------------------------------------------------------------------------------------

/** Asks a question after the message `parent`, otherwise at the end of what is shown. */
export async function send(text, parent = messages.at(-1)?.id ?? null) {
  if (running || !text.trim()) return;
  const mine = running = { abort: new AbortController(), requestId: null, stopped: false };
  const question = { role: "user", content: text, parent };
  branchTo(parent);
  messages.push(question, blank());
  toEnd();
  draw();
  try {
    const id = conversationId() ?? (await createConversation()).id;
    const confirmed = await addMessage(id, parent, text);
    if (running !== mine) return refresh();
    named(id);
    confirm(Object.assign(question, confirmed));
    rememberPlace(id);
    markOpened(id);
  } catch (error) {
    if (running !== mine) return;
    messages.pop();
    question.state = problem(error);
    running = null;
    return draw();
  }
  running = null;
  if (!mine.stopped) return answer(question);
  branchTo(question.id);
  draw();
}

function blank() { return { role: "assistant", content: "", reasoning: "", state: "running" }; }

function answer(question) {
  const message = { ...blank(), parent: question.id };
  branchTo(question.id);
  messages.push(message);
  const body = { parent: question.id, ...depthFields(), timings: true, return_progress: true, stream_options: { continuous_usage_stats: true } };
  if (settings.system) body.system = settings.system;
  if (settings.model !== null && model()) body.model = model().id;
  if (settings.temperature !== "") body.temperature = Number(settings.temperature);
  if (settings.maxTokens !== "") body.max_tokens = Number(settings.maxTokens);
  return follow(message, (signal) => askAnswer(conversationId(), body, signal));
}

/** Another answer in place of `message`; a question that was not confirmed is asked again. */
function retry(message) {
  if (running) return;
  if (message.reopen) {
    messages.length = 0;
    openConversation(message.reopen);
  } else if (message.role === "user") {
    messages.pop();
    send(message.content, message.parent);
  } else {
    answer(messages[messages.indexOf(message) - 1]);
  }
}

// --- reading ------------------------------------------------------------------------------------

/** What a chunk adds to a message. */
function take(message, chunk, pace) {
  message.progress = chunk.prompt_progress ?? null;
  if (chunk.usage) {
    const { total_tokens: tokens, completion_tokens: count } = chunk.usage;
    pace.note(count);
    Object.assign(message, { tokens, count, rate: pace.rate ?? message.rate });
    showSpeed(count, pace.rate);
    showContext(tokens);
  }
  const choice = chunk.choices[0];
  if (choice) {
    message.content += choice.delta.content ?? "";
    message.reasoning += choice.delta.reasoning_content ?? "";
  } else if (chunk.qwenbox?.request_id) {
    // The beginning, also of an answer that is looked at again.
    Object.assign(message, { id: chunk.qwenbox.message, content: "", reasoning: "", state: "running" });
    confirm(message);
    running.requestId = chunk.qwenbox.request_id;
    refresh();
    if (running.stopped) stop();
  } else if (chunk.qwenbox) {
    const { state: how, error, seconds, why } = chunk.qwenbox; // how it ended, on the disk
    Object.assign(message, { state: error ? { error: error.message, code: error.code } : how, seconds, why });
  }
}

async function follow(message, begin) {
  const mine = running = { abort: new AbortController(), requestId: null, stopped: false };
  showSpeed(0, null);
  toEnd();
  draw();
  if (state() !== "ready") watchAgain(300); // the request loads its model
  let frame = 0;
  const drawPart = () => { frame = 0; if (running === mine) { drawAnswer(lastNode(), message, true, { hurried: mine.requestId !== null }); stick(); } };
  const pace = new Pace();
  let first = 0;
  for (let chunks = begin(mine.abort.signal); chunks;) {
    try {
      for await (const chunk of chunks) {
        if (running !== mine) return;
        take(message, chunk, pace);
        if (!first && (message.content || message.reasoning)) {
          first = performance.now();
          if (state() !== "ready") watch();
        }
        if (chunk.choices[0]?.delta.reasoning_content) message.seconds = (performance.now() - first) / 1000;
        frame ||= requestAnimationFrame(drawPart);
      }
      chunks = null;
    } catch (error) {
      if (running !== mine) return;
      chunks = message.id !== undefined && problem(error).code === "lost" ? await findAgain(message, mine) : null;
      if (running !== mine) return;
      if (!chunks && message.state === "running") message.state = problem(error);
    }
  }
  cancelAnimationFrame(frame);
  message.progress = null;
  running = null;
  showSpeed(0, null); // it stands under the answer
  draw();
  refresh();
}

/** The stream of an answer whose connection was lost; null where it is over, as `message` says then, or the service stays away. */
async function findAgain(message, mine) {
  for (const milliseconds of RETRY_MS) {
    await new Promise((done) => setTimeout(done, milliseconds));
    if (running !== mine) return null;
    try {
      const conversation = await getConversation(conversationId());
      const found = conversation.messages.find(({ id }) => id === message.id);
      if (found?.state === "running") return attachAnswer(conversation.id, mine.abort.signal);
      if (running === mine) showConversation(conversation);
      message.state = found?.state;
      return null;
    } catch { /* not yet */ }
  }
  return null;
}

function problem(error) {
  if (!(error instanceof ApiError)) return { error: String(error), code: "lost" };
  return { error: error.message, code: error.status === 401 ? "key" : error.code };
}

$("conversation").addEventListener("click", ({ target }) => {
  if (target.closest(".again")) retry(messageOf(target));
  const hurry = target.closest(".hurry");
  if (hurry && running?.requestId) {
    hurry.disabled = true;
    answerNow(running.requestId).catch(() => {}); // the answer comes either way
  }
});
$("stop").addEventListener("click", stop);
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && !document.querySelector("dialog[open]")) stop(); });
