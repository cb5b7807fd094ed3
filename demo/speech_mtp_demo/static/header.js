// The line at the top: the name, the voice and the speed that all tabs use, light or dark.
import { SPEEDS, el, picker, voicePicker } from "./dom.js";
import { isDark, toggle } from "./theme.js";

export function start(element) {
  const theme = el("button", { class: "plain", type: "button", onclick: toggle });
  const name = () => (theme.textContent = isDark() ? "Light" : "Dark");
  const describe = () => theme.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
  addEventListener("themed", () => (name(), describe()));
  name();
  describe();
  element.querySelector(".widget").replaceChildren(
    el("header", { class: "top" },
      el("h1", {}, "speech_mtp"),
      el("div", { class: "top-tools" },
        el("label", {}, el("span", {}, "Voice"), voicePicker({ name: "voice" })),
        el("label", {}, el("span", {}, "Speed"), picker("speed", SPEEDS, { name: "speed" })),
      ),
      theme,
    ),
  );
}
