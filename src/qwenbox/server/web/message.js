// One message: {role, content, reasoning, seconds, why, state, progress, count, rate, tokens}. `seconds` and `why` are of the thinking; `state` is undefined,
// "running", "stopped", "length", "loop", "empty" or {error, code}; `progress` is the service's `prompt_progress` while the prompt is read; `count` tokens were
// written, `rate` a second, and `tokens` are those of the whole conversation then. `why` is what the service says of the thinking, or a text. Its buttons have classes by which `answer.js` and `branches.js` know them.
import { el } from "./dom.js";
import { drawSent } from "./files.js";
import { number, reason, t, timeLeft } from "./i18n.js";
import { copyButton, render } from "./markdown.js";

/** `place`: {at, of}, among the messages beside which it stands. */
export function messageNode(message, last, place) {
  const body = el("div", { class: "body" });
  const node = el("li", { class: `message ${message.role}`, "data-role": message.role }, body);
  if (message.role === "user") {
    drawSent(body, message.content);
    if (message.state?.error !== undefined) node.append(problem(message.state, true));
    else node.append(el("div", { class: "actions" }, ...arrows(place), el("button", { type: "button", class: "edit" }, t("edit")), copyButton(() => message.content)));
  } else {
    drawAnswer(node, message, last, { place });
  }
  return node;
}

/** Draws an answer in its present state: thoughts, text, what went wrong, what can be done with it. `hurried`: its thinking can be ended. */
export function drawAnswer(node, message, last, { hurried = false, place = null } = {}) {
  const live = message.state === "running";
  if (message.reasoning) drawThoughts(node, message, live && !message.content, hurried);
  const answer = node.querySelector(":scope > .body");
  render(answer, message.content);
  answer.classList.toggle("waiting", live && !message.content && !message.progress);
  drawProgress(node, live && !message.content && !message.reasoning ? message.progress : null);
  node.setAttribute("aria-busy", String(live));
  node.querySelector(":scope > .actions")?.remove();
  node.querySelector(":scope > .problem")?.remove();
  if (live) return;
  if (message.state?.error !== undefined) node.append(problem(message.state, last));
  const note = { stopped: t("stopped"), interrupted: t("interrupted"), length: t("cutShort"), loop: t("wentInCircles"), empty: t("errorEmpty") }[message.state] ?? "";
  const actions = el("div", { class: "actions" }, ...arrows(place));
  if (message.content) actions.append(copyButton(() => message.content));
  if (message.state?.error === undefined) actions.append(again());
  if (note) actions.append(el("span", {}, note));
  if (message.count && message.rate) actions.append(el("span", { class: "rate" }, t("speed", { count: number(message.count), rate: number(message.rate, 1) })));
  node.append(actions);
}

function again() { return el("button", { type: "button", class: "again" }, t("again")); }

function problem({ error, code }, last) {
  const text = code === "lost" ? t("errorLost") : code === "key" ? t("errorKey") : reason({ message: error, code });
  return el("div", { class: "problem", role: "alert" }, el("span", {}, text), last ? again() : "");
}

/** To the messages beside which this one stands. */
function arrows(place) {
  if (!place || place.of < 2) return [];
  const arrow = (name, sign, disabled) => el("button", { type: "button", class: name, "aria-label": t(name), title: t(name), disabled }, sign);
  return [arrow("earlier", "‹", place.at === 1), el("span", { class: "place" }, t("placeOf", place)), arrow("later", "›", place.at === place.of)];
}

/** Why it was thought so much, or no longer. */
function whyText(why) {
  if (typeof why !== "object") return why;
  if (why.ended) return t(`ended${why.ended[0].toUpperCase()}${why.ended.slice(1)}`);
  if (why.depth === undefined) return ""; // what a person chose needs no reason
  return why.cues ? why.cues.map((cue) => t(`cue_${cue}`)).join(t("semicolon")) : why.reason;
}

function drawProgress(node, progress) {
  let box = node.querySelector(".reading");
  if (!progress) return box?.remove();
  if (!box) {
    box = el("div", { class: "reading" }, el("progress", { "aria-label": t("reading") }), el("span"));
    node.querySelector(":scope > .body").before(box);
  }
  const { processed, total, seconds_left: left } = progress;
  box.firstChild.max = total;
  box.firstChild.value = processed;
  const read = t("readingOf", { done: number(processed), total: number(total) });
  box.lastChild.textContent = left === undefined ? read : `${read}${t("comma")}${timeLeft(left)}`;
}

function drawThoughts(node, message, thinks, hurried) {
  let details = node.querySelector(".reasoning");
  if (!details) {
    details = el("details", { class: "reasoning" }, el("summary"), el("div", { class: "thoughts body" }));
    node.prepend(details);
  }
  const [now, after] = message.seconds === undefined ? ["thinking", "thought"] : ["thinkingFor", "thoughtFor"];
  details.firstChild.textContent = t(thinks ? now : after, { count: message.seconds?.toFixed(message.seconds < 10 ? 1 : 0) });
  render(details.lastChild, message.reasoning);
  const why = message.why ? whyText(message.why) : "";
  if (why) details.lastChild.append(el("p", { class: "why" }, why));
  const button = node.querySelector(".hurry");
  if (!thinks) button?.remove();
  else if (!button && hurried) details.after(el("button", { type: "button", class: "hurry" }, t("answerNow")));
}
