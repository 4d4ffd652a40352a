// What this browser remembers. A full or forbidden store costs memory of the page, never the page itself.
const PREFIX = "qwenbox.";

export function load(name, fallback) {
  try { return JSON.parse(localStorage.getItem(PREFIX + name)) ?? fallback; } catch { return fallback; }
}

export function save(name, value) {
  try { localStorage.setItem(PREFIX + name, JSON.stringify(value)); } catch { /* private mode, or the quota is used up */ }
}
