// What a person chose, kept in this browser, and the dialog that changes it.
import { setKey } from "./api.js";
import { $ } from "./dom.js";
import { t } from "./i18n.js";
import { load, save } from "./store.js";

export const settings = { system: "", temperature: "", maxTokens: "", key: "", model: null, depth: "auto", theme: "auto", language: null, sidebar: true, ...load("settings", {}) };

export function change(values) {
  Object.assign(settings, values);
  save("settings", settings);
}

const fields = { system: "system", temperature: "temperature", maxTokens: "max-tokens", key: "api-key" };
const form = $("settings").querySelector("form");
form.noValidate = true; // the reasons are told in the language of the page

$("open-settings").addEventListener("click", () => {
  for (const [name, id] of Object.entries(fields)) $(id).value = settings[name];
  $("settings-error").textContent = "";
  $("settings").showModal();
});

form.addEventListener("submit", (event) => {
  const wrong = !$("temperature").validity.valid ? "badTemperature" : !$("max-tokens").validity.valid ? "badMaxTokens" : null;
  if (wrong) { event.preventDefault(); $("settings-error").textContent = t(wrong); return; }
  change(Object.fromEntries(Object.entries(fields).map(([name, id]) => [name, $(id).value.trim()])));
  setKey(settings.key);
});

/** A key that came in the address is kept and leaves the address. */
export function signIn() {
  const key = new URLSearchParams(location.hash.slice(1)).get("key");
  if (key) {
    change({ key });
    history.replaceState(null, "", location.pathname);
  }
  setKey(settings.key);
}
