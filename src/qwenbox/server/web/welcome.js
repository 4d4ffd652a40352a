// What an empty conversation offers.
import { send } from "./answer.js";
import { $, el } from "./dom.js";
import { t } from "./i18n.js";

export function showWelcome() {
  $("suggestions").replaceChildren(...[1, 2, 3, 4].map((n) => {
    const text = t(`suggestion${n}`);
    return el("li", {}, el("button", { type: "button", onclick: () => send(text) }, text));
  }));
}
