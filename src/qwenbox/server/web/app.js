import { ApiError, answerNow, chat, models, ready, setKey } from "./api.js";
import { el } from "./dom.js";
import { currentLanguage, setLanguage, t } from "./i18n.js";
import { copyButton, render } from "./markdown.js";
import { load, save } from "./store.js";

const $ = (id) => document.getElementById(id);
const settings = { system: "", temperature: "", maxTokens: "", key: "", model: null, depth: "auto", theme: "auto", language: null, ...load("settings", {}) };
// {role, content, reasoning, seconds, why, state}: seconds and why are of the thinking; state is undefined, "stopped", "length", "loop" or {error, code}
let messages = load("messages", []);
let installed = []; // what can be asked, the default model first
let running = null; // AbortController of the answer being written
let requestId = null; // its name at the service, once it has one
let follow = true;

// --- look ---------------------------------------------------------------------------------------

function applyLook() {
  if (settings.theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = settings.theme;
  setLanguage(settings.language ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en"));
  $("theme").textContent = t(`theme${settings.theme[0].toUpperCase()}${settings.theme.slice(1)}`);
  $("language").textContent = t("otherLanguage");
  $("suggestions").replaceChildren(...[1, 2, 3, 4].map((n) => {
    const text = t(`suggestion${n}`);
    return el("li", {}, el("button", { type: "button", onclick: () => send(text) }, text));
  }));
  showModel();
  showDepth();
  drawAll();
}

$("theme").addEventListener("click", () => {
  const order = ["auto", "light", "dark"];
  settings.theme = order[(order.indexOf(settings.theme) + 1) % order.length];
  save("settings", settings);
  applyLook();
});

$("language").addEventListener("click", () => {
  settings.language = currentLanguage() === "en" ? "zh" : "en";
  save("settings", settings);
  applyLook();
});

// --- the model's state --------------------------------------------------------------------------

let service = { state: "loading", progress: null };
let watching = 0;

/** The model that answers: the one that was chosen while it is there, else the default. */
function model() { return installed.find(({ id }) => id === settings.model) ?? installed[0] ?? null; }

function showModel() {
  const { state, progress } = service;
  const choice = $("model-choice");
  const names = installed.map(({ id }) => id);
  choice.hidden = names.length < 2;
  if (names.join() !== [...choice.options].map((option) => option.value).join()) choice.replaceChildren(...names.map((id) => el("option", { value: id }, id)));
  choice.value = model()?.id ?? "";
  const arriving = ["fetching", "verifying", "loading", "restarting"].includes(state);
  document.querySelector(".dot").dataset.state = state;
  const words = state === "ready" ? "" : arriving && progress ? `${t(state)} ${Math.floor(progress * 100)} %` : t(state);
  $("model-name").textContent = [choice.hidden ? model()?.id : null, words].filter(Boolean).join(" · ");
  const text = arriving ? arrivalText() : state === "locked" ? t("errorKey") : service.reason ? t("unavailable", { reason: service.reason }) : "";
  $("arrival").hidden = !text;
  $("arrival-text").textContent = text;
  $("arrival-part").hidden = !arriving;
  if (progress) $("arrival-part").value = progress;
  else $("arrival-part").removeAttribute("value");
}

function arrivalText() {
  const gigabytes = (bytes) => (bytes / 1e9).toFixed(2);
  const { state, bytes, totalBytes, secondsLeft: left, reason } = service;
  const parts = [t(`${state}Model`)];
  if (totalBytes) parts.push(t("bytesOf", { done: gigabytes(bytes), total: gigabytes(totalBytes) }));
  if (left !== null) parts.push(left < 90 ? t("secondsLeft", { count: Math.ceil(left) }) : t("minutesLeft", { count: Math.round(left / 60) }));
  return `${parts.join(t("comma"))}${t("period")}${reason ? t("triedAgain", { reason }) : t("writeAlready")}`;
}

/** Which depths the model knows; it is asked for as people left it, whatever it is. */
function showDepth() {
  const nature = model()?.thinking;
  $("depth").title = nature === "never" ? t("depthNever") : nature === "always" ? t("depthAlways") : t("depth");
  for (const choice of $("depth").querySelectorAll("input")) {
    choice.disabled = nature === "never";
    choice.checked = nature === "never" ? choice.value === "fast" : choice.value === settings.depth;
  }
}

$("depth").addEventListener("change", (event) => {
  settings.depth = event.target.value;
  save("settings", settings);
});

async function watch() {
  clearTimeout(watching);
  try {
    const first = await ready();
    if (first.state !== "failed") installed = await models();
    service = model() === (installed[0] ?? null) ? first : model();
  } catch (error) {
    // A service that ends because its model cannot be had has said why before.
    const reason = ["failed", "unreachable"].includes(service.state) ? service.reason : null;
    service = error.status === 401 ? { state: "locked" } : { state: "unreachable", reason };
  }
  showModel();
  showDepth();
  clearTimeout(watching);
  watching = setTimeout(watch, ["ready", "unloaded"].includes(service.state) ? 15000 : 1000);
}

$("model-choice").addEventListener("change", () => {
  settings.model = $("model-choice").value;
  save("settings", settings);
  watch();
});

// --- drawing the conversation -------------------------------------------------------------------

const scroller = $("scroller");
scroller.addEventListener("scroll", () => {
  follow = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 48;
  $("to-bottom").hidden = follow;
});
$("to-bottom").addEventListener("click", () => { follow = true; stick(); });
function stick() { if (follow) scroller.scrollTop = scroller.scrollHeight; }

function messageNode(message) {
  const body = el("div", { class: "body" });
  const node = el("li", { class: `message ${message.role}`, "data-role": message.role }, body);
  if (message.role === "user") body.textContent = message.content;
  else drawAnswer(node, message);
  if (message.role === "user") node.append(el("div", { class: "actions" }, copyButton(() => message.content)));
  return node;
}

/** Draws an answer in its present state: thoughts, text, what went wrong, what can be done with it. */
function drawAnswer(node, message) {
  const live = message.state === "running";
  const body = node.querySelector(".body");
  if (message.reasoning) {
    let details = node.querySelector(".reasoning");
    if (!details) {
      details = el("details", { class: "reasoning" }, el("summary"), el("div", { class: "thoughts body" }));
      node.prepend(details);
    }
    const thinks = live && !message.content;
    const [now, after] = message.seconds === undefined ? ["thinking", "thought"] : ["thinkingFor", "thoughtFor"];
    details.firstChild.textContent = t(thinks ? now : after, { count: message.seconds?.toFixed(message.seconds < 10 ? 1 : 0) });
    render(details.lastChild, message.reasoning);
    if (message.why) details.lastChild.append(el("p", { class: "why" }, message.why));
    const button = node.querySelector(".hurry");
    if (!thinks) button?.remove();
    else if (!button && requestId) details.after(el("button", { type: "button", class: "hurry", onclick: hurry }, t("answerNow")));
  }
  const answer = node.querySelector(":scope > .body");
  render(answer ?? body, message.content);
  (answer ?? body).classList.toggle("waiting", live && !message.content);
  node.setAttribute("aria-busy", String(live));
  node.querySelector(":scope > .actions")?.remove();
  node.querySelector(":scope > .problem")?.remove();
  if (live) return;
  const again = () => el("button", { type: "button", class: "again", onclick: retry }, t("again"));
  const last = messages.at(-1) === message;
  if (message.state?.error !== undefined) {
    const text = message.state.code === "lost" ? t("errorLost") : message.state.code === "key" ? t("errorKey") : message.state.error;
    node.append(el("div", { class: "problem", role: "alert" }, el("span", {}, text), last ? again() : ""));
  }
  const note = { stopped: t("stopped"), length: t("cutShort"), loop: t("wentInCircles"), empty: t("errorEmpty") }[message.state] ?? "";
  const actions = el("div", { class: "actions" });
  if (message.content) actions.append(copyButton(() => message.content));
  if (last && message.state?.error === undefined) actions.append(again());
  actions.append(note);
  node.append(actions);
}

function drawAll() {
  $("welcome").hidden = messages.length > 0;
  $("conversation").replaceChildren(...messages.map(messageNode));
  $("send").hidden = running !== null;
  $("stop").hidden = running === null;
  if (messages.length) stick();
}

// --- talking ------------------------------------------------------------------------------------

const AUTO_SECONDS = 20; // of thinking, where nobody chose how much

function requestBody() {
  const history = messages.slice(0, -1).filter((message) => message.content).map(({ role, content }) => ({ role, content }));
  if (settings.system) history.unshift({ role: "system", content: settings.system });
  const body = { messages: history };
  if (settings.model !== null && model()) body.model = model().id;
  if (settings.temperature !== "") body.temperature = Number(settings.temperature);
  if (settings.maxTokens !== "") body.max_tokens = Number(settings.maxTokens);
  if (model()?.thinking !== "never") {
    body.enable_thinking = { fast: false, auto: "auto", think: true }[settings.depth];
    if (settings.depth === "auto") body.thinking_seconds = AUTO_SECONDS;
  }
  return body;
}

function hurry(event) {
  event.target.disabled = true;
  answerNow(requestId).catch(() => {}); // the answer comes either way
}

async function answer() {
  const message = { role: "assistant", content: "", reasoning: "", state: "running" };
  messages.push(message);
  running = new AbortController();
  follow = true;
  drawAll();
  if (service.state !== "ready") watching = setTimeout(watch, 300); // the request loads its model
  let node = $("conversation").lastChild;
  let frame = 0;
  const draw = () => { frame = 0; node = $("conversation").lastChild; drawAnswer(node, message); stick(); };
  const began = performance.now();
  let first = 0;
  requestId = null;
  try {
    for await (const chunk of chat(requestBody(), running.signal, (id) => { requestId = id; })) {
      const choice = chunk.choices[0];
      if (choice) {
        message.content += choice.delta.content ?? "";
        message.reasoning += choice.delta.reasoning_content ?? "";
        if (choice.finish_reason === "length") message.state = chunk.qwenbox?.stop_detail === "loop" ? "loop" : "length";
        if (choice.delta.reasoning_content) message.seconds = (performance.now() - (first || performance.now())) / 1000;
        const { reason, source, ended } = chunk.qwenbox?.thinking ?? {};
        if (ended) message.why = t(`ended${ended[0].toUpperCase()}${ended.slice(1)}`);
        else if (reason && settings.depth === "auto" && source === "enable_thinking") message.why = reason;
        if (!first && (message.content || message.reasoning)) {
          first = performance.now();
          if (service.state !== "ready") watch();
        }
      }
      if (chunk.usage) showSpeed(chunk.usage.completion_tokens, (performance.now() - (first || began)) / 1000);
      frame ||= requestAnimationFrame(draw);
    }
    if (message.state === "running") message.state = message.content || message.reasoning ? undefined : "empty";
  } catch (error) {
    if (error.name === "AbortError") message.state = "stopped";
    else if (error instanceof ApiError) message.state = { error: error.message, code: error.status === 401 ? "key" : error.code };
    else message.state = { error: String(error), code: "lost" };
  }
  cancelAnimationFrame(frame);
  running = requestId = null;
  save("messages", messages);
  drawAll();
}

function showSpeed(count, seconds) {
  $("speed").textContent = seconds > 0 ? t("speed", { count, rate: (count / seconds).toFixed(1) }) : "";
}

function send(text) {
  if (running || !text.trim()) return;
  messages.push({ role: "user", content: text });
  $("speed").textContent = "";
  save("messages", messages);
  answer();
}

function retry() {
  if (running) return;
  while (messages.length && messages.at(-1).role === "assistant") messages.pop();
  if (messages.length) answer();
}

const prompt = $("prompt");
function grow() { prompt.style.height = "auto"; prompt.style.height = `${prompt.scrollHeight}px`; }
prompt.addEventListener("input", grow);
prompt.addEventListener("keydown", (event) => {
  // isComposing: Enter that picks a word in a Chinese input method must not send.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) { event.preventDefault(); $("composer").requestSubmit(); }
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running || !prompt.value.trim()) return;
  send(prompt.value);
  prompt.value = "";
  grow();
});
$("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && !$("settings").open) running?.abort(); });
$("new-chat").addEventListener("click", () => {
  running?.abort();
  messages = [];
  save("messages", messages);
  $("speed").textContent = "";
  drawAll();
  prompt.focus();
});

// --- settings -----------------------------------------------------------------------------------

const fields = { system: "system", temperature: "temperature", maxTokens: "max-tokens", key: "api-key" };
$("open-settings").addEventListener("click", () => {
  for (const [name, id] of Object.entries(fields)) $(id).value = settings[name];
  $("settings-error").textContent = "";
  $("settings").showModal();
});
$("settings").querySelector("form").addEventListener("submit", (event) => {
  const temperature = $("temperature");
  const tokens = $("max-tokens");
  const wrong = !temperature.validity.valid ? "badTemperature" : !tokens.validity.valid ? "badMaxTokens" : null;
  if (wrong) { event.preventDefault(); $("settings-error").textContent = t(wrong); return; }
  for (const [name, id] of Object.entries(fields)) settings[name] = $(id).value.trim();
  setKey(settings.key);
  save("settings", settings);
});
$("settings").querySelector("form").noValidate = true;

// --- start --------------------------------------------------------------------------------------

const signIn = new URLSearchParams(location.hash.slice(1)).get("key");
if (signIn) {
  settings.key = signIn;
  save("settings", settings);
  history.replaceState(null, "", location.pathname);
}
setKey(settings.key);
for (const message of messages) if (message.state === "running") message.state = "stopped";
applyLook();
watch();
prompt.focus();
