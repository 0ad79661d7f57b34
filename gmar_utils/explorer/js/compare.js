// Two maps, what differs, and one laid over the other.
import { checksum, highestFirst } from "./maths.js";
import { figure, h, legend, paint, picture, place } from "./draw.js";
import { methodCode, stateCode } from "./code.js";

// blue: the left map is stronger, orange: the right one is; as strong as the difference
const signed = (v, data, k) => {
  const x = 2 * v - 1;
  data.set(x < 0 ? [70, 150, 255, -255 * x] : [255, 150, 30, 255 * x], k);
};

export function compare(view) {
  const { model, el } = view;
  const [left, right, difference, under] = [picture(), picture(), picture(), picture()];
  const captions = [h("span"), h("span"), h("span", {}, "Difference")];
  const scale = [h("span"), h("span")];
  const topLeft = h("canvas", { "aria-hidden": "true" });
  const swipe = h("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "Swipe between the two maps" });
  const bar = h("span", { class: "gmar-bar" });
  const over = h("div", { class: "gmar-over" }, under, topLeft, bar, swipe);
  let words = "";
  swipe.addEventListener("input", () => view.schedule());

  // what left and right count: your settings, equal heads, then the methods
  const chosen = (i) =>
    i === 0 ? view.state.map : i === 1 ? view.map({ norm: 2 }) : view.photo.map(view.state.t, i - 2);
  const choiceCode = (i) =>
    i === 0 ? stateCode(view, view.state.norm) : i === 1 ? stateCode(view, 2) : `${methodCode(view, i - 2)}.map`;

  function update() {
    const { photo } = view;
    const opacity = model.get("opacity");
    const ids = [model.get("left"), model.get("right")];
    const maps = ids.map(chosen);
    const d = maps[1].map((x, k) => x - maps[0][k]);
    const most = Math.max(...d.map(Math.abs));
    const halves = d.map((x) => (x / (most || 1) + 1) / 2);
    for (const [canvas, map] of [[left, maps[0]], [right, maps[1]], [under, maps[1]], [topLeft, maps[0]]])
      paint(canvas, photo, map, opacity);
    paint(difference, photo, halves, opacity, { ramp: signed });

    const names = ids.map((i) => model.get("choices")[i]);
    const strongest = maps.map((map) => place(photo, highestFirst(map)[0]));
    [left, right].forEach((canvas, n) => {
      captions[n].textContent = names[n];
      canvas.setAttribute("aria-label", `${names[n]}, strongest patch ${strongest[n]}`);
    });
    scale[0].textContent = `left +${most.toFixed(2)}`;
    scale[1].textContent = `right +${most.toFixed(2)}`;
    const furthest = `Largest difference ${most.toFixed(2)}: ${place(photo, highestFirst(d.map(Math.abs))[0])}.`;
    difference.setAttribute("aria-label", `Right minus left. ${furthest}`);
    under.setAttribute("aria-label", `${names[0]} left of the handle, ${names[1]} right of it`);
    words = `Strongest patch: left ${strongest[0]}; right ${strongest[1]}. ${furthest}`;
    topLeft.style.clipPath = `inset(0 ${100 - swipe.value}% 0 0)`;
    bar.style.left = `${swipe.value}%`;
    el.dataset.left = checksum(maps[0]).toFixed(7);
    el.dataset.right = checksum(maps[1]).toFixed(7);
    el.dataset.difference = most.toFixed(7);
  }

  const ramp = legend(scale[0], scale[1], "linear-gradient(to right, #4696ff, #8888, #ff961e)");
  return {
    update,
    code: () =>
      `left = ${choiceCode(model.get("left"))}\nright = ${choiceCode(model.get("right"))}\ndifference = right - left`,
    say: () => words,
    el: h(
      "section",
      { class: "gmar-compare" },
      figure(left, captions[0]),
      figure(right, captions[1]),
      figure(difference, captions[2], ramp),
      figure(over, "Swipe: left map, right map"),
    ),
  };
}
