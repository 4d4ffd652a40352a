// The service and its models: which there are, which one answers, and how far it is.
import { models, ready } from "./api.js";
import { $, el } from "./dom.js";
import { t } from "./i18n.js";
import { change, settings } from "./settings.js";

const WATCH_MS = 1000;
const IDLE_MS = 15000;

let installed = []; // what can be asked, the default model first
let service = { state: "loading", progress: null };
let timer = 0;
const listeners = [];

/** `changed` is called whenever something new is known of the service or its models. */
export function onService(changed) { listeners.push(changed); }

/** The model that answers: the one that was chosen while it is there, else the default. */
export function model() { return installed.find(({ id }) => id === settings.model) ?? installed[0] ?? null; }

/** How far the model that answers is. */
export function state() { return service.state; }

export async function watch() {
  clearTimeout(timer);
  try {
    const first = await ready();
    if (first.state !== "failed") installed = await models();
    service = model() === (installed[0] ?? null) ? first : model();
  } catch (error) {
    // A service that ends because its model cannot be had has said why before.
    const reason = ["failed", "unreachable"].includes(service.state) ? service.reason : null;
    service = error.status === 401 ? { state: "locked" } : { state: "unreachable", reason };
  }
  showService();
  for (const changed of listeners) changed();
  watchAgain(["ready", "unloaded"].includes(service.state) ? IDLE_MS : WATCH_MS);
}

/** Looks again after `milliseconds`, and not before. */
export function watchAgain(milliseconds) {
  clearTimeout(timer);
  timer = setTimeout(watch, milliseconds);
}

export function showService() {
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

$("model-choice").addEventListener("change", () => {
  change({ model: $("model-choice").value });
  watch();
});
