// The conversation on the screen: a tree of messages, the branch of it that is shown, and the place to which it is scrolled.
import { $ } from "./dom.js";
import { messageNode } from "./message.js";

const NEAR_PX = 48; // so close to the end a person reads along

/** The branch that is shown. A message that the service has not confirmed yet has no id, and stands at the end. */
export const messages = [];
let current = null; // the id at the service; null: a new conversation
let all = []; // confirmed messages of all branches, in the order in which they were made

const scroller = $("scroller");
let follow = true;

export function conversationId() { return current; }

/** Shows a conversation as the service gives it; without one a new one. */
export function showConversation(conversation = null) {
  current = conversation?.id ?? null;
  all = (conversation?.messages ?? []).map(known);
  branchTo(conversation?.leaf ?? null);
}

/** A conversation that was new has its id now. */
export function named(id) { current = id; }

/** A message as the page has it. */
export function known({ error, usage, ...message }) {
  if (message.state === "error") message.state = { error: error?.message ?? "", code: error?.code ?? null };
  if (usage) Object.assign(message, { count: usage.completion_tokens, tokens: usage.prompt_tokens + usage.completion_tokens, rate: usage.tokens_per_second ?? null });
  return { reasoning: "", ...message };
}

/** Whether the page knows all that the service says of this conversation. */
export function isKnown(conversation) {
  return conversation.messages.length === all.length
    && conversation.messages.every(({ id, content, state }, index) => all[index].id === id && all[index].content === content && (state === "running") === (all[index].state === "running"));
}

/** The service has confirmed a message. */
export function confirm(message) { if (!all.includes(message)) all.push(message); }

/** Shows the branch that ends with the message `id`; null: none of it. */
export function branchTo(id) {
  const branch = [];
  for (let at = find(id); at; at = find(at.parent)) branch.unshift(at);
  messages.splice(0, messages.length, ...branch);
}

/** Shows the newest branch through the neighbour of `message` that is `step` away. Returns its end. */
export function turn(message, step) {
  const row = siblings(message);
  let end = row[row.indexOf(message) + step] ?? message;
  for (let next = end; next; next = all.findLast(({ parent }) => parent === end.id)) end = next;
  branchTo(end.id);
  return end.id;
}

function find(id) { return all.find((message) => message.id === id); }

function siblings(message) { return all.filter(({ parent, role }) => parent === message.parent && role === message.role); }

/** The element of the last message. */
export function lastNode() { return $("conversation").lastChild; }

/** The message that an element in the conversation belongs to. */
export function messageOf(node) { return messages[[...$("conversation").children].indexOf(node.closest("li.message"))]; }

export function drawConversation() {
  $("welcome").hidden = messages.length > 0;
  $("conversation").replaceChildren(...messages.map((message, index) => {
    const row = message.id === undefined ? [message] : siblings(message);
    return messageNode(message, index === messages.length - 1, { at: row.indexOf(message) + 1, of: row.length });
  }));
  if (messages.length) stick();
}

/** Stays at the end while a person reads along there. */
export function stick() { if (follow) scroller.scrollTop = scroller.scrollHeight; }

export function toEnd() { follow = true; stick(); }

scroller.addEventListener("scroll", () => {
  follow = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_PX;
  $("to-bottom").hidden = follow;
});
$("to-bottom").addEventListener("click", toEnd);
