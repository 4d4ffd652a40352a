// What this browser remembers. A full or forbidden store costs memory of the page, never the page itself.
const PREFIX = "qwenbox.";

export function load(name, fallback) {
  try { return JSON.parse(localStorage.getItem(PREFIX + name)) ?? fallback; } catch { return fallback; }
}

export function save(name, value) {
  try { localStorage.setItem(PREFIX + name, JSON.stringify(value)); } catch { /* private mode, or the quota is used up */ }
}

export function forget(name) {
  try { localStorage.removeItem(PREFIX + name); } catch { /* the same */ }
}

/** The conversation that this window shows: a reload comes back to it, and a new window begins with the last one of any. */
export function place() {
  try {
    const here = sessionStorage.getItem(`${PREFIX}place`);
    if (here !== null) return JSON.parse(here);
  } catch { /* the same */ }
  return load("place", null);
}

export function rememberPlace(id) {
  save("place", id);
  try { sessionStorage.setItem(`${PREFIX}place`, JSON.stringify(id)); } catch { /* the same */ }
}
