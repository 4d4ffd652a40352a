// Markdown as models write it, built as DOM nodes. Text never becomes HTML, links are http, https or mailto, images become links.
import { el } from "./dom.js";
import { highlight } from "./highlight.js";
import { t } from "./i18n.js";

const FENCE = /^( {0,3})(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(?:\s+|$)(.*)$/;
const QUOTE = /^ {0,3}>\s?(.*)$/;
const TABLE_RULE = /^ {0,3}\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;
const MAX_DEPTH = 12;

const indentOf = (line) => line.length - line.trimStart().length;
const blank = (line) => line.trim() === "";
const startsBlock = (line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);

/** Cuts text into top-level blocks; each block's source alone decides how it looks, which is what lets a stream redraw only its tail. */
export function splitBlocks(text) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  const blocks = [];
  let i = 0;
  while (i < lines.length) {
    if (blank(lines[i])) { i++; continue; }
    const start = i;
    const fence = lines[i].match(FENCE);
    if (fence) {
      const closing = new RegExp(`^ {0,3}${fence[2][0] === "~" ? "~" : "`"}{${fence[2].length},}\\s*$`);
      i++;
      while (i < lines.length && !closing.test(lines[i])) i++;
      i++;
    } else if (HEADING.test(lines[i]) || RULE.test(lines[i])) {
      i++;
    } else if (QUOTE.test(lines[i])) {
      while (i < lines.length && !blank(lines[i]) && (QUOTE.test(lines[i]) || !startsBlock(lines[i]))) i++;
    } else if (ITEM.test(lines[i])) {
      const ordered = /\d/.test(lines[i].match(ITEM)[2]);
      i++;
      while (i < lines.length) {
        if (blank(lines[i])) {
          let next = i;
          while (next < lines.length && blank(lines[next])) next++;
          if (next === lines.length) break;
          const item = lines[next].match(ITEM);
          if (!(indentOf(lines[next]) >= 2 || (item && /\d/.test(item[2]) === ordered))) break;
          i = next;
        } else if (indentOf(lines[i]) < 2 && (RULE.test(lines[i]) || HEADING.test(lines[i]) || FENCE.test(lines[i]) || QUOTE.test(lines[i]))) {
          break;
        } else {
          const item = lines[i].match(ITEM);
          if (item && indentOf(lines[i]) < 2 && /\d/.test(item[2]) !== ordered) break;
          i++;
        }
      }
    } else if (lines[i].includes("|") && i + 1 < lines.length && TABLE_RULE.test(lines[i + 1]) && lines[i + 1].includes("-")) {
      while (i < lines.length && !blank(lines[i]) && lines[i].includes("|")) i++;
    } else {
      i++;
      while (i < lines.length && !blank(lines[i]) && !FENCE.test(lines[i]) && !HEADING.test(lines[i]) && !RULE.test(lines[i]) && !QUOTE.test(lines[i]) && !/^\s{0,3}(?:[-*+]|1[.)])\s/.test(lines[i])) i++;
    }
    blocks.push(lines.slice(start, i).join("\n"));
  }
  return blocks;
}

function renderBlock(source, depth) {
  const lines = source.split("\n");
  const fence = lines[0].match(FENCE);
  if (fence) return codeBlock(lines, fence);
  const heading = lines[0].match(HEADING);
  if (heading) return el(`h${heading[1].length}`, {}, inline(heading[2]));
  if (RULE.test(lines[0])) return el("hr");
  if (depth < MAX_DEPTH && QUOTE.test(lines[0])) return el("blockquote", {}, renderBlocks(lines.map((line) => (line.match(QUOTE) ?? [null, line])[1]).join("\n"), depth + 1));
  if (depth < MAX_DEPTH && ITEM.test(lines[0])) return list(lines, depth);
  if (lines.length > 1 && lines[0].includes("|") && TABLE_RULE.test(lines[1])) return table(lines);
  return el("p", {}, inline(source.trim()));
}

function renderBlocks(text, depth) {
  const fragment = document.createDocumentFragment();
  for (const block of splitBlocks(text)) fragment.append(renderBlock(block, depth));
  return fragment;
}

function codeBlock(lines, [, indent, marks, language]) {
  const closed = lines.length > 1 && lines.at(-1).trim().startsWith(marks) && lines.at(-1).trim().replaceAll(marks[0], "") === "";
  const body = lines.slice(1, closed ? -1 : undefined).map((line) => (line.startsWith(indent) ? line.slice(indent.length) : line)).join("\n");
  return codeNode(body, language);
}

/** Code with its colours and a button that copies it, or what `source` gives. */
export function codeNode(text, language, source = () => text) {
  const code = el("code");
  highlight(code, text, language);
  return el("div", { class: "code" }, el("div", { class: "code-head" }, el("span", {}, language), copyButton(source)), el("pre", { tabindex: 0 }, code));
}

/** A button that copies what `text()` gives, and says so. */
export function copyButton(text) {
  const button = el("button", { type: "button", class: "copy" }, t("copy"));
  button.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(text()); } catch { copyBySelection(text()); }
    button.textContent = t("copied");
    setTimeout(() => { button.textContent = t("copy"); }, 1500);
  });
  return button;
}

// The clipboard interface exists only on https and localhost; a class reads this page over plain http.
function copyBySelection(text) {
  const area = el("textarea", { readonly: true, class: "copy-area" });
  area.value = text;
  const focused = document.activeElement;
  (document.querySelector("dialog[open]") ?? document.body).append(area); // what lies behind a dialog cannot be selected
  area.select();
  document.execCommand("copy");
  area.remove();
  focused?.focus();
}

function list(lines, depth) {
  const [, base, mark] = lines[0].match(ITEM);
  const ordered = /\d/.test(mark);
  const items = [];
  let loose = false;
  for (const [index, line] of lines.entries()) {
    const item = line.match(ITEM);
    if (item && item[1].length < base.length + 2 && !(item[1].length > base.length && items.length && item[1].length >= items.at(-1).width)) {
      items.push({ width: item[1].length + item[2].length + 1, lines: [item[3]] });
    } else {
      if (blank(line) && index + 1 < lines.length) loose = loose || (ITEM.test(lines[index + 1]) && indentOf(lines[index + 1]) <= base.length + 1);
      const current = items.at(-1);
      current.lines.push(line.slice(Math.min(indentOf(line), current.width)));
    }
  }
  const node = el(ordered ? "ol" : "ul", { start: ordered && parseInt(mark, 10) !== 1 ? parseInt(mark, 10) : undefined });
  for (const { lines: content } of items) {
    const item = el("li");
    let blocks = splitBlocks(content.join("\n"));
    if (!loose && blocks.length && !startsBlock(blocks[0])) {
      item.append(inline(blocks[0].trim()));
      blocks = blocks.slice(1);
    }
    for (const block of blocks) item.append(renderBlock(block, depth + 1));
    node.append(item);
  }
  return node;
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\|/, "").replace(/\|$/, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
  const row = (tag, line) => el("tr", {}, ...cells(line).map((cell) => el(tag, {}, inline(cell))));
  return el("div", { class: "scroll" }, el("table", {}, el("thead", {}, row("th", lines[0])), el("tbody", {}, ...lines.slice(2).map((line) => row("td", line)))));
}

const INLINE = /(?<code>(?<ticks>`+)(?!`)(?<codeText>[\s\S]*?[^`])\k<ticks>(?!`))|(?<image>!\[(?<alt>[^\]\n]*)\]\((?<source>[^()\s]+)[^()\n]*\))|(?<link>\[(?<label>[^\]\n]+)\]\((?<target>[^()\s]*(?:\([^()\s]*\)[^()\s]*)*)(?:\s+"[^"\n]*")?\))|(?<auto>https?:\/\/[^\s<>"'`]*[^\s<>"'`.,;:!?)\]}，。；：！？、）】])|(?<strong>(?<bold>\*\*|__)(?=\S)(?<strongText>[\s\S]*?\S)\k<bold>)|(?<em>\*(?=[^\s*])(?<emText>[^*\n]*[^\s*])\*|(?<![\w])_(?=[^\s_])(?<emText2>[^_\n]*[^\s_])_(?!\w))|(?<strike>~~(?=\S)(?<strikeText>[^~\n]*\S)~~)|(?<escape>\\[\\`*_{}[\]()#+\-.!~|>])|(?<br> {2,}\n|\\\n)/g;

/** Inline Markdown as a fragment. */
export function inline(text, depth = 0) {
  const fragment = document.createDocumentFragment();
  let end = 0;
  for (const match of depth < MAX_DEPTH ? text.matchAll(INLINE) : []) {
    const g = match.groups;
    if (match.index > end) fragment.append(text.slice(end, match.index));
    end = match.index + match[0].length;
    if (g.code !== undefined) fragment.append(el("code", {}, g.codeText.replaceAll("\n", " ").replace(/^ (.*) $/, "$1")));
    else if (g.image !== undefined) fragment.append(link(g.source, g.alt || g.source, depth));
    else if (g.link !== undefined) fragment.append(link(g.target, g.label, depth));
    else if (g.auto !== undefined) fragment.append(link(g.auto, null, depth));
    else if (g.strong !== undefined) fragment.append(el("strong", {}, inline(g.strongText, depth + 1)));
    else if (g.em !== undefined) fragment.append(el("em", {}, inline(g.emText ?? g.emText2, depth + 1)));
    else if (g.strike !== undefined) fragment.append(el("s", {}, inline(g.strikeText, depth + 1)));
    else if (g.escape !== undefined) fragment.append(g.escape.slice(1));
    else fragment.append(el("br"));
  }
  if (end < text.length) fragment.append(text.slice(end));
  return fragment;
}

function link(target, label, depth) {
  const content = label === null ? target : inline(label, depth + 1);
  let scheme = "";
  try { scheme = new URL(target).protocol; } catch { /* relative: not a place a model can know */ }
  if (!["http:", "https:", "mailto:"].includes(scheme)) return label === null ? target : content;
  return el("a", { href: target, target: "_blank", rel: "noopener noreferrer nofollow" }, content);
}

const drawn = new WeakMap();

/** Draws `text` into `node`, keeping the blocks that did not change since the last call. */
export function render(node, text) {
  const blocks = splitBlocks(text);
  const before = drawn.get(node) ?? [];
  let same = 0;
  while (same < blocks.length && same < before.length && blocks[same] === before[same]) same++;
  while (node.childNodes.length > same) node.lastChild.remove();
  for (const block of blocks.slice(same)) node.append(renderBlock(block, 0));
  drawn.set(node, blocks);
}
