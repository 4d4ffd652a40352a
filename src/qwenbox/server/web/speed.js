// How fast an answer is written, and how much of the model's window its conversation fills.
import { countTokens } from "./api.js";
import { messages } from "./conversation.js";
import { $ } from "./dom.js";
import { number, t } from "./i18n.js";
import { model, state } from "./service.js";

const SETTLED_MS = 300; // a rate over less time than this says nothing
const FULL = 0.85;

/** Tokens per second of an answer under way, from the counts that its chunks bring. */
export class Pace {
  #first = null;
  #count = 0;
  rate = null;

  /** `count` tokens are there now. */
  note(count, now = performance.now()) {
    if (count <= this.#count) return;
    this.#count = count;
    this.#first ??= { count, now };
    const milliseconds = now - this.#first.now;
    if (milliseconds >= SETTLED_MS) this.rate = ((count - this.#first.count) * 1000) / milliseconds;
  }
}

export function showSpeed(count, rate) {
  $("speed").textContent = rate ? t("speed", { count: number(count), rate: number(rate, 1) }) : "";
}

/** Shows how many tokens of the window are taken; nothing where that is not known. */
export function showContext(used) {
  const window = model()?.window;
  $("context").hidden = !used || !window;
  if (!used || !window) return;
  const meter = $("context-part");
  meter.max = window;
  meter.high = Math.round(window * FULL);
  meter.value = used;
  $("context-text").textContent = t("contextOf", { used: number(used), window: number(window) });
  $("context").title = t(used > meter.high ? "contextFull" : "context");
}

/** The same for the conversation as it stands: of its last answer, or counted by the service. */
export async function measureContext() {
  const last = messages.at(-1);
  if (last?.tokens) return showContext(last.tokens);
  showContext(0);
  if (!last || state() !== "ready") return;
  try {
    const used = await countTokens(messages.filter(({ content }) => content).map(({ role, content }) => ({ role, content })), model().id);
    if (messages.at(-1) === last) showContext(used);
  } catch { /* the meter stays away */ }
}
