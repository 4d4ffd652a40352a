// The conversations that the service keeps: listed beside the page, searched, opened, renamed, exported, deleted.
import { changeConversation, deleteConversation, exportConversation, importConversations, listConversations, listNews } from "./api.js";
import { $, el } from "./dom.js";
import { currentLanguage, reason, t } from "./i18n.js";
import { health, onService, state } from "./service.js";
import { change, settings } from "./settings.js";

const SHOWN_REFUSALS = 5;
const FIND_MS = 200; // of silence before a search
const NEWS_MS = 2000; // between questions whether other windows have changed something
const PAGE = 50; // conversations that are fetched at once,
const MOST = 200; // and of those that are on the screen
const wide = matchMedia("(min-width: 900px)");

let at = null; // the number of the last change that this page has heard of
let listed = [];
let listedOf = ""; // what was searched for
let more = false;
let opened = null; // the conversation on the screen
let unfolded = null; // the one whose actions are shown
let renaming = null;
let problem = "";
let outcome = null; // {text, bad}: what became of what a person has done here last
let drawn = "";
let open = () => {};
let gone = () => {};
let news = () => {};

/** `onOpen(id)` shows a conversation, `onGone(id)` is told of one that was deleted, `onNews(summary)` how the one on the screen stands in the list. */
export function startConversations(onOpen, onGone, onNews) {
  open = onOpen;
  gone = onGone;
  news = onNews;
  showSidebar(wide.matches && settings.sidebar);
  hear();
  refresh();
  setInterval(hear, NEWS_MS);
}

/** Marks the conversation that is on the screen; null: a new one. */
export function markOpened(id) {
  opened = id;
  if (id === null) outcome = null;
  showConversations();
}

/** Asks the service again: something is new. */
export async function refresh() { await fetchList(); }

/** The conversations that others have changed since the last time, or a title that came by itself. */
async function hear() {
  if (document.visibilityState !== "visible" || ["locked", "unreachable"].includes(state())) return [];
  let told;
  try { told = await listNews(at); } catch { return []; } // the next time
  const first = at === null;
  at = told.at;
  if (!first && told.changed?.length !== 0) await fetchList();
  return told.changed ?? [];
}

async function fetchList(before = null) {
  const query = $("find").value.trim();
  try {
    const answer = await listConversations(query, before, before || query !== listedOf ? PAGE : Math.min(Math.max(listed.length, PAGE), MOST));
    if (query !== $("find").value.trim()) return;
    const known = new Set(before ? listed.map(({ id }) => id) : []);
    listed = [...(before ? listed : []), ...answer.conversations.filter(({ id }) => !known.has(id))];
    ({ more } = answer);
    listedOf = query;
    problem = "";
    const here = listed.find(({ id }) => id === opened);
    if (here) news(here);
  } catch (error) {
    problem = error.status === 401 ? "" : reason(error); // of a missing key the page says so elsewhere
  }
  showConversations();
}

export function showConversations() {
  const query = $("find").value.trim();
  const hits = listed.length ? t("found", { count: `${listed.length}${more ? "+" : ""}` }) : t("foundNothing");
  const kept = health().onDisk === false ? t("inMemoryOnly") : listed.length ? "" : t("noConversations");
  $("find-status").textContent = problem || outcome?.text || (query ? hits : kept);
  const title = listed.find(({ id }) => id === opened)?.title;
  document.title = title ? `${title} · qwenbox` : "qwenbox";
  $("find-status").classList.toggle("error-text", problem !== "" || outcome?.bad === true);
  if (renaming) return; // nobody's words are drawn over
  const now = JSON.stringify([listed.map(({ updated, ...shown }) => shown), more, opened, unfolded, currentLanguage()]);
  if (now === drawn) return; // what a finger is just pressing stays
  drawn = now;
  const list = $("history");
  const focused = list.contains(document.activeElement) ? [document.activeElement.closest("li")?.dataset.id, document.activeElement.className] : null;
  list.replaceChildren(...listed.map(item), ...(more ? [el("li", {}, el("button", { type: "button", class: "further", onclick: () => fetchList(listed.at(-1).id) }, t("showMore")))] : []));
  if (focused) [...list.children].find(({ dataset }) => dataset.id === focused[0])?.querySelector(`.${focused[1]}`)?.focus();
}

function item({ id, title, snippet, running }) {
  const name = title || t("newChat");
  const actions = el("div", { class: "row", hidden: unfolded !== id },
    el("button", { type: "button", class: "rename", onclick: () => rename(id) }, t("rename")),
    el("button", { type: "button", class: "as-markdown", onclick: () => save(id, "markdown") }, "Markdown"),
    el("button", { type: "button", class: "as-json", onclick: () => save(id, "json") }, "JSON"),
    el("button", { type: "button", class: "remove", onclick: () => remove(id, name) }, t("remove")));
  const line = el("div", { class: "line" },
    el("button", { type: "button", class: "open", "aria-current": id === opened ? "true" : false, onclick: () => choose(id) },
      el("span", { class: "name" }, name), running ? el("span", { class: "dot", title: t("answering"), role: "img", "aria-label": t("answering") }) : "", snippet ? el("span", { class: "snippet" }, snippet) : ""),
    el("button", { type: "button", class: "menu", "aria-label": t("actionsOf", { title: name }), title: t("actionsOf", { title: name }), "aria-expanded": String(unfolded === id), onclick: () => unfold(id) }, "⋯"));
  return el("li", { "data-id": id }, line, actions);
}

function choose(id) {
  outcome = null;
  if (!wide.matches) showSidebar(false);
  open(id);
}

function unfold(id) {
  unfolded = unfolded === id ? null : id;
  showConversations();
}

// --- what is done with one -----------------------------------------------------------------------

function rename(id) {
  const node = [...$("history").children].find(({ dataset }) => dataset.id === id);
  const input = el("input", { class: "title", "aria-label": t("title"), maxlength: 200 });
  input.value = listed.find((one) => one.id === id).title;
  renaming = id;
  drawn = "";
  const end = async (keep) => {
    if (renaming !== id) return;
    renaming = unfolded = null;
    const title = input.value.trim();
    const back = () => [...$("history").children].find(({ dataset }) => dataset.id === id)?.querySelector(".menu").focus();
    showConversations();
    back();
    if (!keep || !title) return;
    await attempt(() => changeConversation(id, { title }));
    back();
  };
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing && event.keyCode !== 229) { event.preventDefault(); end(true); } // it would press what gets the focus
    if (event.key === "Escape") { event.stopPropagation(); end(false); }
  });
  input.addEventListener("blur", () => end(true));
  node.querySelector(".line").replaceChildren(input);
  input.select();
  input.focus();
}

async function save(id, form) {
  await attempt(async () => {
    const { name, blob } = await exportConversation(id, form);
    const link = el("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  });
}

async function takeIn(files) {
  await hear();
  let taken = 0;
  const refused = [];
  for (const file of files) {
    try {
      const answer = await importConversations(file);
      taken += answer.taken;
      refused.push(...answer.refused.map((one) => t("notImported", { name: one.title || file.name, reason: whyRefused(one) })));
    } catch (error) {
      refused.push(t("notImported", { name: file.name, reason: error.code === "invalid_json" ? t("notJson") : reason(error) }));
    }
  }
  const changed = await hear();
  outcome = { text: [t("imported", { count: taken }), ...refused.slice(0, SHOWN_REFUSALS)].join("\n"), bad: refused.length > 0 };
  showConversations();
  if (taken === 1 && changed.length === 1) open(changed[0]);
}

function whyRefused({ reason: message, code, param }) { return param ? t("notAsExported", { param }) : reason({ message, code }); }

function remove(id, name) {
  $("remove-text").textContent = t("removeText", { title: name });
  const dialog = $("remove");
  dialog.returnValue = "";
  dialog.onclose = async () => {
    if (dialog.returnValue !== "remove") return;
    unfolded = null;
    if (await attempt(() => deleteConversation(id))) gone(id);
    $("find").focus();
  };
  dialog.showModal();
}

async function attempt(work) {
  let failed = "";
  try { await work(); } catch (error) { failed = reason(error); }
  await refresh();
  outcome = failed ? { text: failed, bad: true } : null;
  showConversations();
  return !failed;
}

// --- the sidebar --------------------------------------------------------------------------------

function showSidebar(shown) {
  $("sidebar").inert = !shown;
  document.body.classList.toggle("with-sidebar", shown);
  $("open-sidebar").setAttribute("aria-expanded", String(shown));
  const over = shown && !wide.matches; // a drawer over the rest, which then is out of reach
  $("curtain").hidden = !over;
  for (const rest of document.querySelectorAll(".bar, main, #composer")) rest.inert = over;
}

function toggle() {
  const shown = $("sidebar").inert;
  showSidebar(shown);
  if (wide.matches) change({ sidebar: shown });
  (shown ? $("find") : $("open-sidebar")).focus();
}

$("import").addEventListener("click", () => $("import-choice").click());
$("import-choice").addEventListener("change", async () => {
  await takeIn([...$("import-choice").files]);
  $("import-choice").value = "";
});
$("open-sidebar").addEventListener("click", toggle);
$("close-sidebar").addEventListener("click", toggle);
$("curtain").addEventListener("click", toggle);
wide.addEventListener("change", () => showSidebar(wide.matches && settings.sidebar));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !wide.matches && !$("sidebar").inert && !document.querySelector("dialog[open]")) {
    event.stopImmediatePropagation();
    toggle();
  }
}, { capture: true });
let away = false; // the service was not to be reached, or asked for a key
onService(() => {
  const now = ["locked", "unreachable"].includes(state());
  if (away && !now) refresh();
  else showConversations();
  away = now;
});
let finding = 0;
$("find").addEventListener("input", () => {
  outcome = null;
  clearTimeout(finding);
  finding = setTimeout(() => fetchList(), FIND_MS);
});
document.addEventListener("visibilitychange", hear);
