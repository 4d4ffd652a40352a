// Files that go into a message: dropped, pasted or chosen, read by the service, and sent whole or not at all.
import { readFile } from "./api.js";
import { $, el } from "./dom.js";
import { number, reason, t } from "./i18n.js";
import { model } from "./service.js";

const ANSWER_TOKENS = 1024; // of the window, or a quarter of it, are left for the question and its answer
const TAGGED = /^<file name="([^"\n]*)">\n([\s\S]*?)\n<\/file>\n\n/;

let files = []; // {name, text, tokens, error}: of one that is being read only the name
let window_ = null; // tokens that the model which counted them holds
let sendsWhenRead = false;

/** What a message says: its files as it has them before the text, each {name, text}, and the text itself. */
export function splitFiles(content) {
  const found = [];
  let text = content;
  for (let match; (match = TAGGED.exec(text)); text = text.slice(match[0].length)) found.push({ name: match[1], text: match[2] });
  return { head: content.slice(0, content.length - text.length), found, text };
}

/** Draws what a person sent: the text into `body`, the files before it, folded. */
export function drawSent(body, content) {
  const { found, text } = splitFiles(content);
  for (const file of found) body.before(el("details", { class: "sent-file" }, el("summary", {}, file.name), el("pre", {}, file.text)));
  body.textContent = text;
  body.hidden = !text;
}

export function hasFiles() { return files.length > 0; }

/** The files as the beginning of a message, which then are no longer here. Null while one cannot be sent; what is only being read is sent as soon as it can. */
export function takeFiles() {
  sendsWhenRead = files.some(isUnread);
  if (sendsWhenRead) return null;
  if (files.some(({ error }) => error) || !fits()) {
    $("files").querySelector(".bad button, button")?.focus();
    return null;
  }
  const text = files.map((file) => `<file name="${file.name.replace(/["<>\n]/g, "_")}">\n${file.text}\n</file>\n\n`).join("");
  files = [];
  showFiles();
  return text;
}

export function showFiles() {
  $("files").hidden = !hasFiles();
  $("files").replaceChildren(...files.map(chip));
  const used = total();
  $("files-note").textContent = fits() ? "" : t("filesTooLong", { used: number(used), window: number(window_) });
}

function problem({ status, code, message }) {
  if (code?.startsWith("file_")) return t(`file${code[5].toUpperCase()}${code.slice(6)}`);
  return status ? reason({ message, code }) : t("errorLost");
}

function isUnread(file) { return file.text === undefined && !file.error; }

function total() { return files.reduce((sum, { tokens }) => sum + (tokens ?? 0), 0); }

function fits() { return window_ === null || total() === 0 || total() + Math.min(ANSWER_TOKENS, Math.floor(window_ / 4)) <= window_; }

function chip(file) {
  const remove = el("button", { type: "button", "aria-label": t("removeFile", { name: file.name }), onclick: () => drop(file) }, "×");
  const state = file.error ? problem(file.error) : (isUnread(file) ? t("fileReading") : t("fileTokens", { count: number(file.tokens) }));
  return el("li", { class: file.error ? "file bad" : "file", "aria-busy": String(isUnread(file)) }, el("b", {}, file.name), el("span", {}, state), remove);
}

function drop(file) {
  file.cancel.abort();
  files = files.filter((other) => other !== file);
  showFiles();
  $("prompt").focus();
}

async function add(given) {
  const file = { name: given.name, cancel: new AbortController() };
  files.push(file);
  showFiles();
  try {
    const read = await readFile(given, model()?.id, file.cancel.signal);
    Object.assign(file, { name: read.name, text: read.text, tokens: read.num_tokens });
    window_ = read.window;
  } catch (error) {
    if (error.name === "AbortError") return;
    file.error = error;
  }
  if (!files.includes(file)) return;
  showFiles();
  if (sendsWhenRead && !files.some(isUnread)) $("composer").requestSubmit();
}

function addAll(list) { for (const file of list) add(file); }

function carriesFiles(event) { return event.dataTransfer?.types.includes("Files"); }

document.addEventListener("dragover", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => { if (event.relatedTarget === null) document.body.classList.remove("dropping"); });
document.addEventListener("drop", (event) => {
  document.body.classList.remove("dropping");
  if (!carriesFiles(event)) return;
  event.preventDefault();
  addAll(event.dataTransfer.files);
  $("prompt").focus();
});
$("prompt").addEventListener("paste", (event) => {
  if (!event.clipboardData?.files.length) return;
  event.preventDefault();
  addAll(event.clipboardData.files);
});
$("attach").addEventListener("click", () => $("file-choice").click());
$("file-choice").addEventListener("change", () => { addAll($("file-choice").files); $("file-choice").value = ""; });
