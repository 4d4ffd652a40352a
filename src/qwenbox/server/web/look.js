// Colours and language.
import { $, el } from "./dom.js";
import { currentLanguage, setLanguage, t } from "./i18n.js";
import { change, settings } from "./settings.js";

const THEMES = ["auto", "light", "dark"];
const redraws = [];

/** `redraw` is called when every sentence has to be written anew. */
export function onLook(redraw) { redraws.push(redraw); }

export function applyLook() {
  if (settings.theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = settings.theme;
  setLanguage(settings.language ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en"));
  const theme = t(`theme${settings.theme[0].toUpperCase()}${settings.theme.slice(1)}`);
  $("theme").replaceChildren("◐ ", el("span", {}, theme));
  $("theme").ariaLabel = $("theme").title = t("themeIs", { theme });
  $("language").textContent = t("otherLanguage");
  $("language").lang = currentLanguage() === "en" ? "zh-CN" : "en";
  for (const redraw of redraws) redraw();
}

$("theme").addEventListener("click", () => {
  change({ theme: THEMES[(THEMES.indexOf(settings.theme) + 1) % THEMES.length] });
  applyLook();
});

$("language").addEventListener("click", () => {
  change({ language: currentLanguage() === "en" ? "zh" : "en" });
  applyLook();
});
