// The service's first minute: which model it comes to, what it asks, what else it offers.
import { choice, decide } from "./api.js";
import { $, el } from "./dom.js";
import { number, reason, t, timeLeft } from "./i18n.js";
import { choose as chooseModel, health, watch } from "./service.js";

const WATCH_MS = 1000;
const gigabytes = (bytes) => number(bytes / 1e9, bytes < 1e10 ? 1 : 0);

let now = null; // what the service says of its choice
let told = null; // the change of models that has been read
let timer = 0;
let drawn = "";

async function refresh() {
  clearTimeout(timer);
  try { show(await choice()); } catch { /* the page says elsewhere that the service cannot be reached */ }
  if (now && now.phase !== "settled") timer = setTimeout(refresh, WATCH_MS);
}

function show(next) {
  const changed = now && next.model !== now.model;
  now = next;
  showChoice();
  if (changed) watch();
}

async function say(body) {
  $("choose-error").textContent = $("models-error").textContent = "";
  try {
    show(await decide(body));
    refresh();
    return true;
  } catch (error) {
    $($("models").open ? "choose-error" : "choice-text").textContent = reason(error);
    return false;
  }
}

/** Looks again whenever the service is asked how it is; one that was told its model has nothing to say here. */
export function watchChoice() {
  const { choice: phase } = health();
  if (phase && (!now || phase !== now.phase || phase !== "settled")) refresh();
}

/** The line above the conversation, and the offers below the models. */
export function showChoice() {
  if (!now) return;
  const text = sentence();
  $("choice").hidden = !text;
  if ($("choice-text").textContent !== text) $("choice-text").textContent = text;
  const buttons = actions().map(([name, act]) => el("button", { type: "button", class: name === "choiceYes" ? "primary" : null, onclick: act }, t(name)));
  if (buttons.map((button) => button.textContent).join() !== [...$("choice-actions").children].map((button) => button.textContent).join()) $("choice-actions").replaceChildren(...buttons);
  $("more").hidden = false;
  const source = JSON.stringify([now.offers, now.here, now.model, now.fetching?.name, t("fetch")]);
  if (source === drawn) return;
  drawn = source;
  $("offers").replaceChildren(...now.offers.map(offer));
  $("troubles").replaceChildren(...now.here.filter(({ problem }) => problem).map((one) => el("li", {}, `${one.name} (${one.origin}): ${said(one)}`)));
  $("troubled").hidden = !$("troubles").children.length;
}

function said({ problem, problem_code: code }) { return reason({ message: problem, code }); }

function facts({ download, speed, verified }) { return { size: `${verified ? "" : "≈ "}${gigabytes(download)}`, rate: number(speed, speed < 10 ? 1 : 0) }; }

function sentence() {
  const { phase, asked, fetching, problem, model, practice, offers, switched } = now;
  if (phase === "looking") return t("choiceLooking");
  if (asked) return t(phase === "asking" ? "choiceAsked" : "choiceAskedEarly", { name: asked, model: model ?? "", ...facts(offers.find(({ name }) => name === asked)) });
  if (fetching) {
    const parts = [t("choiceFetching", { name: fetching.name })];
    if (fetching.total_bytes) parts.push(t("bytesOf", { done: number(fetching.bytes / 1e9, 2), total: number(fetching.total_bytes / 1e9, 2) }));
    if (fetching.seconds_left !== null) parts.push(timeLeft(fetching.seconds_left));
    return `${parts.join(t("comma"))}${t("period")}${fetching.error ? t("triedAgain", { reason: reason({ message: fetching.error, code: fetching.error_code }) }) : t("choiceMeanwhile", { model })}`;
  }
  if (phase === "nothing") return t("choiceNothing", { reason: problem ? said(now) : "" });
  if (problem) return said(now);
  if (switched && told !== switched.to) return t("choiceSwitched", { name: switched.to, before: switched.from });
  return practice && told !== model ? t("choicePractice", { model }) : "";
}

function actions() {
  if (now.asked) return [["choiceYes", () => say({ yes: true })], ["choiceNo", () => say({ yes: false })], ["choiceOthers", others]];
  if (now.phase === "nothing") return [["choiceOthers", others]];
  if (now.phase !== "settled" || now.fetching) return [];
  return [["choiceOthers", others], ["choiceRead", () => { told = now.switched?.to ?? now.model; showChoice(); }]];
}

function others() {
  $("model").click();
  $("more").open = true;
  $("choose-path").focus();
}

function offer(one) {
  const why = one.problem ? said(one) : (one.fits ? (one.suits ? t("offerSuits") : t("offerSlow")) : t("offerLarge", { size: gigabytes(one.memory) }));
  const button = el("button", { type: "button", onclick: () => fetchModel(one.name) }, t("fetch"));
  button.disabled = now.fetching?.name === one.name;
  return el("li", { class: "card", "data-offer": one.name }, el("span", { class: "what" }, el("span", { class: "name" }, one.name),
    el("span", { class: "facts" }, ...[t("offerFacts", facts(one)), why].map((text) => el("span", {}, text)))), button);
}

async function fetchModel(model) {
  if (!await say({ model })) return;
  chooseModel(null); // what the service goes over to is what answers
  $("models").close();
}

for (const name of ["path", "folder", "endpoint"]) {
  const field = $(`choose-${name}`);
  const take = async () => { if (field.value.trim() && await say({ [name]: field.value.trim() })) field.value = ""; };
  $(`take-${name}`).addEventListener("click", take);
  field.addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.isComposing) { event.preventDefault(); take(); } });
}
