// The models that can be asked: what each takes, how fast it is, how far it is; one of them answers.
import { setLoaded } from "./api.js";
import { $, el } from "./dom.js";
import { currentLanguage, number, reason, t } from "./i18n.js";
import { choose, health, installed, model, watch } from "./service.js";

const BUSY = ["fetching", "verifying", "loading", "restarting", "draining", "queued"];
const gigabytes = (bytes) => number(bytes / 1e9, bytes < 1e10 ? 2 : 1);

/** What is known of a model, as sentences. */
function facts({ state, progress, diskBytes, memoryBytes, needBytes, window, speed, thinking }) {
  const busy = BUSY.includes(state);
  const memory = memoryBytes ? t("inMemory", { size: gigabytes(memoryBytes) }) : needBytes ? t("needsMemory", { size: gigabytes(needBytes) }) : "";
  return [
    `${t(state === "ready" ? "loaded" : state)}${busy && progress ? ` ${Math.floor(progress * 100)} %` : ""}`,
    memory || (diskBytes ? t("onDisk", { size: gigabytes(diskBytes) }) : ""),
    speed ? t(speed.measured ? "measuredSpeed" : "predictedSpeed", { rate: number(speed.write, speed.write < 10 ? 1 : 0) }) : "",
    window ? t("window", { count: number(window) }) : "",
    { never: t("thinksNever"), always: t("thinksAlways"), hybrid: t("thinksHybrid") }[thinking] ?? "",
  ].filter(Boolean);
}

function card(one) {
  const chosen = one === model();
  const loaded = one.state === "ready";
  const input = el("input", { type: "radio", name: "model", value: one.id, id: `model-${one.id}` });
  input.checked = chosen;
  const button = loaded || one.state === "unloaded" ? el("button", { type: "button", onclick: (event) => toggle(event.target, one.id, !loaded) }, t(loaded ? "unload" : "load")) : "";
  return el("li", { class: "card", "data-model": one.id }, input,
    el("label", { for: input.id }, el("span", { class: "name" }, el("i", { class: "dot", "data-state": one.state }), one.id), el("span", { class: "facts" }, ...facts(one).map((text) => el("span", {}, text)))), button);
}

async function toggle(button, id, loaded) {
  button.disabled = true;
  $("models-error").textContent = "";
  watch();
  try { await setLoaded(id, loaded); } catch (error) { $("models-error").textContent = reason(error); }
  await watch();
}

const cards = new Map(); // by name: what a card was drawn of, and its element

/** Draws what has changed: somebody may be about to press a button of the rest. */
export function showModels() {
  const list = $("model-list");
  const { isa, threads } = health();
  $("models-machine").textContent = isa ? t("machine", { isa, threads }) : "";
  const nodes = installed().map((one) => {
    const source = JSON.stringify([currentLanguage(), one === model(), one]);
    const before = cards.get(one.id);
    if (before?.source === source) return before.node;
    const node = card(one);
    cards.set(one.id, { source, node });
    const focused = before?.node.contains(document.activeElement) ? document.activeElement.tagName : null;
    before?.node.replaceWith(node);
    if (focused) node.querySelector(focused)?.focus();
    return node;
  });
  if (nodes.length !== list.children.length || nodes.some((node, index) => node !== list.children[index])) list.replaceChildren(...nodes);
}

$("model").addEventListener("click", () => {
  $("models-error").textContent = "";
  showModels();
  $("models").showModal();
  watch();
});
$("model-list").addEventListener("change", (event) => choose(event.target.value));
