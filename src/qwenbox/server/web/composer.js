// Where a person writes.
import { isRunning, send } from "./answer.js";
import { $ } from "./dom.js";
import { hasFiles, takeFiles } from "./files.js";

const prompt = $("prompt");

function grow() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

export function focusComposer() { prompt.focus(); }

prompt.addEventListener("input", grow);
prompt.addEventListener("keydown", (event) => {
  // isComposing: Enter that picks a word in a Chinese input method must not send.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) { event.preventDefault(); $("composer").requestSubmit(); }
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (isRunning() || !(prompt.value.trim() || hasFiles())) return;
  const files = takeFiles();
  if (files === null) return;
  send(files + prompt.value);
  prompt.value = "";
  grow();
});
