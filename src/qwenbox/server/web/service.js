// The service and its models: which there are, which one answers, and how far it is.
import { ready, listModels } from "./api.js";
import { $ } from "./dom.js";
import { number, reason, t, timeLeft } from "./i18n.js";
import { change, settings } from "./settings.js";

const WATCH_MS = 1000;
const IDLE_MS = 15000;

let models = []; // what can be asked, the default model first
let service = { state: "loading", progress: null };
let first = null; // what the service says of the default model
let machine = {};
let timer = 0;
const listeners = [];

/** `changed` is called whenever something new is known of the service or its models. */
export function onService(changed) { listeners.push(changed); }

/** The model that answers: the one that was chosen while it is there, else the default. */
export function model() { return models.find(({ id }) => id === settings.model) ?? models[0] ?? null; }

/** All that can be asked. */
export function installed() { return models; }

/** Another model answers from now on. */
export function choose(id) {
  change({ model: id });
  watch();
}

/** How far the model that answers is. */
export function state() { return service.state; }

/** What runs the default model: its kernels and threads; and how far the service is that chooses its model. */
export function health() { return machine; }

export async function watch() {
  clearTimeout(timer);
  try {
    first = await ready();
    machine = { isa: first.isa, threads: first.threads, choice: first.choice, onDisk: first.onDisk, predicted: first.predicted };
    if (first.state !== "failed") models = await listModels();
    service = model() === (models[0] ?? null) ? first : model();
  } catch (error) {
    // A service that ends because its model cannot be had has said why before.
    const before = ["failed", "unreachable"].includes(service.state) ? service.error : null;
    service = error.status === 401 ? { state: "locked" } : { state: "unreachable", error: before };
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
  const arriving = first !== null && ["fetching", "verifying", "loading", "restarting"].includes(state);
  $("model").querySelector(".dot").dataset.state = state;
  const words = state === "ready" ? "" : arriving && progress ? `${t(state)} ${Math.floor(progress * 100)} %` : t(state);
  $("model-name").textContent = model()?.id ?? "";
  $("model-state").textContent = words;
  const text = arriving ? arrivalText() : state === "locked" ? t("errorKey") : service.error ? t("unavailable", { reason: reason(service.error) }) : "";
  $("arrival").hidden = !text;
  $("arrival-text").textContent = text;
  $("arrival-part").hidden = !arriving;
  if (progress) $("arrival-part").value = progress;
  else $("arrival-part").removeAttribute("value");
}

function arrivalText() {
  const gigabytes = (bytes) => (bytes / 1e9).toFixed(2);
  const { state, bytes, totalBytes, secondsLeft: left, error } = service;
  const parts = [t(`${state}Model`)];
  if (totalBytes) parts.push(t("bytesOf", { done: gigabytes(bytes), total: gigabytes(totalBytes) }));
  if (left !== null) parts.push(timeLeft(left));
  const runs = service === first && machine.isa ? [t("arrivalRuns", { model: model()?.id ?? "", isa: machine.isa })] : [];
  if (runs.length && machine.predicted) runs.push(t("arrivalSpeed", { rate: number(machine.predicted, machine.predicted < 10 ? 1 : 0) }));
  return `${parts.join(t("comma"))}${t("period")}${runs.length ? runs.join(t("comma")) + t("period") : ""}${error ? t("triedAgain", { reason: reason(error) }) : t("writeAlready")}`;
}
