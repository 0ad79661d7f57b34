// The first picture of the book: one button for each class, one for each method, and the map on the photo.
import { checksum, highestFirst } from "./maths.js";
import { button, figure, h, legend, paint, picture, place } from "./draw.js";
import { methodCode } from "./code.js";

export function ask(view) {
  const { model, set, el } = view;
  const canvas = picture();
  const caption = h("span");
  const questions = h("div", { class: "gmar-buttons gmar-big", role: "group", "aria-label": "Why this class?" });
  const methods = h("div", { class: "gmar-buttons gmar-big", role: "group", "aria-label": "Method" });
  const range = (trait, label, max) => {
    const input = h("input", { type: "range", min: 0, max, step: 0.05, "aria-label": label });
    input.addEventListener("input", () => set({ [trait]: +input.value }));
    return { input, el: h("label", { class: "gmar-range" }, h("span", {}, label), input) };
  };
  const alpha = range("alpha", "α", 10);
  const opacity = range("opacity", "opacity", 1);
  const answer = h("p", { class: "gmar-answer" }, model.get("answer"));
  answer.hidden = !model.get("answer");
  let words = "";

  // A map that follows α is computed here; the others are as they were packed.
  const mapOf = (t, m) => {
    if (!moves(m)) return view.photo.map(t, m);
    const [norm, variant] = view.photo.follows[m];
    return view.map({ t, norm, variant });
  };
  const choose = (group, names, trait, chosen) => {
    const words = names.join("\n");
    if (group.dataset.names !== words)
      group.replaceChildren(...names.map((name, i) => button(name, () => set({ [trait]: i }))));
    group.dataset.names = words;
    [...group.children].forEach((b, i) => b.setAttribute("aria-pressed", i === chosen));
  };
  const method = () => Math.min(model.get("method"), view.photo.methods.length - 1);
  const moves = (m) => view.photo.light && view.photo.follows[m]; // with α

  function update() {
    const { photo, state } = view;
    const m = method();
    choose(questions, photo.target_names, "target", state.t);
    choose(methods, photo.methods, "method", m);
    const shown = mapOf(state.t, m);
    paint(canvas, photo, shown, model.get("opacity"));
    alpha.input.value = state.alpha;
    opacity.input.value = model.get("opacity");
    alpha.el.hidden = !moves(m);
    const same = (map) => map.every((x, k) => Math.abs(x - shown[k]) < 1e-3);
    const blind = photo.targets.length > 1 && photo.targets.every((_, t) => same(mapOf(t, m)));
    const strongest = `Strongest patch: ${place(photo, highestFirst(shown)[0])}.`;
    caption.textContent = `Why ${view.word()}? ${photo.methods[m]}`;
    words = (blind ? "The same map for every class: this method never asks which. " : "") + strongest;
    canvas.setAttribute("aria-label", `${photo.name}. ${caption.textContent}. ${words}`);
    el.dataset.asked = checksum(shown).toFixed(7);
  }

  return {
    update,
    code: () => `explanation = ${methodCode(view, method(), moves(method()) ? view.state.alpha : null)}`,
    say: () => words,
    el: h(
      "section",
      { class: "gmar-ask" },
      h("div", {}, questions, figure(canvas, caption, legend("low", "high"))),
      h("div", {}, methods, h("div", { class: "gmar-ranges" }, alpha.el, opacity.el), answer),
    ),
  };
}
