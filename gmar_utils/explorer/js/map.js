// The map under the sliders, and buttons for the settings worth a look.
import { highestFirst } from "./maths.js";
import { button, figure, h, legend, paint, picture, place } from "./draw.js";

export function map(view) {
  const { model, set } = view;
  const canvas = picture();
  const caption = h("span");
  const say = h("p");
  const presets = model.get("presets");
  const buttons = presets.map((p) => button(p.label, () => set(p.state)));

  function update() {
    const { photo, state } = view;
    paint(canvas, photo, state.map, model.get("opacity"));
    const strongest = place(photo, highestFirst(state.map)[0]);
    canvas.setAttribute(
      "aria-label",
      `Map of ${photo.name} for ${view.name()}: ${view.settings()}. Strongest patch: ${strongest}.`,
    );
    caption.textContent = `Why ${view.word()}?`;
    const on = (p) => Object.entries(p.state).every(([trait, value]) => model.get(trait) === value);
    presets.forEach((p, i) => buttons[i].setAttribute("aria-pressed", on(p)));
    say.textContent =
      presets.find(on)?.say ?? "Your own setting. The buttons above bring you back to known places.";
  }

  const known = h("div", { class: "gmar-buttons", role: "group", "aria-label": "Settings worth a look" }, ...buttons);
  return {
    update,
    el: h("section", { class: "gmar-map" }, figure(canvas, caption, legend("low", "high")), h("div", {}, known, say)),
  };
}
