// One message: {role, content, reasoning, seconds, why, state, progress, count, rate, tokens}. `seconds` and `why` are of the thinking; `state` is undefined,
// "running", "stopped", "length", "loop", "empty" or {error, code}; `progress` is the service's `prompt_progress` while the prompt is read; `count` tokens were
// written, `rate` a second, and `tokens` are those of the whole conversation then. Its buttons have classes by which `answer.js` knows them.
import { el } from "./dom.js";
import { number, t, timeLeft } from "./i18n.js";
import { copyButton, render } from "./markdown.js";

export function messageNode(message, last) {
  const body = el("div", { class: "body" });
  const node = el("li", { class: `message ${message.role}`, "data-role": message.role }, body);
  if (message.role === "user") {
    body.textContent = message.content;
    node.append(el("div", { class: "actions" }, copyButton(() => message.content)));
  } else {
    drawAnswer(node, message, last);
  }
  return node;
}

/** Draws an answer in its present state: thoughts, text, what went wrong, what can be done with it. `hurried`: its thinking can be ended. */
export function drawAnswer(node, message, last, hurried = false) {
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
  const again = () => el("button", { type: "button", class: "again" }, t("again"));
  if (message.state?.error !== undefined) {
    const text = message.state.code === "lost" ? t("errorLost") : message.state.code === "key" ? t("errorKey") : message.state.error;
    node.append(el("div", { class: "problem", role: "alert" }, el("span", {}, text), last ? again() : ""));
  }
  const note = { stopped: t("stopped"), length: t("cutShort"), loop: t("wentInCircles"), empty: t("errorEmpty") }[message.state] ?? "";
  const actions = el("div", { class: "actions" });
  if (message.content) actions.append(copyButton(() => message.content));
  if (last && message.state?.error === undefined) actions.append(again());
  if (note) actions.append(el("span", {}, note));
  if (message.count && message.rate) actions.append(el("span", { class: "rate" }, t("speed", { count: number(message.count), rate: number(message.rate, 1) })));
  node.append(actions);
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
  box.lastChild.textContent = t("readingOf", { done: number(processed), total: number(total), left: timeLeft(left) });
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
  if (message.why) details.lastChild.append(el("p", { class: "why" }, message.why));
  const button = node.querySelector(".hurry");
  if (!thinks) button?.remove();
  else if (!button && hurried) details.after(el("button", { type: "button", class: "hurry" }, t("answerNow")));
}
