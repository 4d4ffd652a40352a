// How much the model should think: Fast, Auto, Think.
import { $ } from "./dom.js";
import { t } from "./i18n.js";
import { model } from "./service.js";
import { change, settings } from "./settings.js";

const AUTO_SECONDS = 20; // of thinking, where nobody chose how much

/** Which depths the model knows; it is asked for as people left it, whatever it is. */
export function showDepth() {
  const nature = model()?.thinking;
  $("depth-why").textContent = nature === "never" ? t("depthNever") : nature === "always" && settings.depth === "fast" ? t("depthAlways") : "";
  for (const choice of $("depth").querySelectorAll("input")) {
    choice.disabled = nature === "never";
    choice.checked = nature === "never" ? choice.value === "fast" : choice.value === settings.depth;
  }
}

/** What a request says of it. */
export function depthFields() {
  if (model()?.thinking === "never") return {};
  if (settings.depth === "auto") return { enable_thinking: "auto", thinking_seconds: AUTO_SECONDS };
  return { enable_thinking: settings.depth === "think" };
}

$("depth").addEventListener("change", (event) => {
  change({ depth: event.target.value });
  showDepth();
});
