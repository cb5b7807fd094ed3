// Light or dark: as the system says until the reader says otherwise. Runs before the page is drawn.
import { settings } from "./dom.js";

const system = matchMedia("(prefers-color-scheme: dark)");

export function isDark() {
  return settings.get("theme") ? settings.get("theme") === "dark" : system.matches;
}

function apply() {
  document.documentElement.dataset.theme = isDark() ? "dark" : "light";
  document.body?.classList.toggle("dark", isDark()); // what Gradio looks at
  dispatchEvent(new CustomEvent("themed"));
}

export function toggle() {
  settings.set("theme", isDark() ? "light" : "dark");
  apply();
}

system.addEventListener("change", apply);
addEventListener("DOMContentLoaded", apply);
document.documentElement.lang = "en";
apply();
