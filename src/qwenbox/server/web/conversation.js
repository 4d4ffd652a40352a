// The conversation on the screen: its messages, and the place to which it is scrolled.
import { $ } from "./dom.js";
import { messageNode } from "./message.js";
import { load, save } from "./store.js";

const NEAR_PX = 48; // so close to the end a person reads along

export const messages = load("messages", []);
for (const message of messages) if (message.state === "running") message.state = "stopped";

const scroller = $("scroller");
let follow = true;

export function keep() { save("messages", messages); }

/** The element of the last message. */
export function lastNode() { return $("conversation").lastChild; }

export function drawConversation() {
  $("welcome").hidden = messages.length > 0;
  $("conversation").replaceChildren(...messages.map((message, index) => messageNode(message, index === messages.length - 1)));
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
