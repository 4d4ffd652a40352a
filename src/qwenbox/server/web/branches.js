// Questions asked anew in other words, and the arrows between what stands beside each other.
import { draw, isRunning, send } from "./answer.js";
import { changeConversation } from "./api.js";
import { conversationId, messageOf, turn } from "./conversation.js";
import { $, el } from "./dom.js";
import { splitFiles } from "./files.js";
import { t } from "./i18n.js";

function edit(node, message) {
  const text = el("textarea", { rows: 2, "aria-label": t("editQuestion") });
  const { head, text: question } = splitFiles(message.content); // its files stay as they are
  text.value = question;
  const end = (keep) => {
    draw();
    if (keep && text.value.trim()) send(head + text.value, message.parent);
  };
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) { event.preventDefault(); end(true); }
    if (event.key === "Escape") { event.stopPropagation(); end(false); }
  });
  node.replaceChildren(text, el("div", { class: "row" },
    el("button", { type: "button", class: "cancel", onclick: () => end(false) }, t("cancel")),
    el("button", { type: "button", class: "primary", onclick: () => end(true) }, t("send"))));
  node.classList.add("edited");
  text.style.height = `${Math.min(text.scrollHeight, innerHeight / 2)}px`;
  text.focus();
}

$("conversation").addEventListener("click", ({ target }) => {
  const button = target.closest(".edit, .earlier, .later");
  if (!button || isRunning()) return;
  const message = messageOf(button);
  if (button.matches(".edit")) return edit(button.closest("li"), message);
  const place = [...$("conversation").children].indexOf(button.closest("li"));
  const leaf = turn(message, button.matches(".later") ? 1 : -1);
  changeConversation(conversationId(), { leaf }).catch(() => {}); // what is shown is shown; only a reload would not know
  draw();
  const node = $("conversation").children[place];
  (node.querySelector(button.matches(".later") ? ".later:enabled" : ".earlier:enabled") ?? node.querySelector(".earlier, .later"))?.focus();
  node.scrollIntoView({ block: "nearest" });
});
