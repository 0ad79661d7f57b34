// Patches vanish in the order of a map, and the probability falls.
import { highestFirst, percent } from "./maths.js";
import { button, cell, figure, h, picture, svg } from "./draw.js";
import { methodCode, photoCode } from "./code.js";

const W = 320;
const H = 200;
const PAD = { l: 46, r: 10, t: 10, b: 34 };

export function deletion(view) {
  const { model, set, el } = view;
  const canvas = picture();
  const caption = h("span");
  const chart = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", class: "gmar-chart" });
  const play = button("Play", () => (timer ? stop() : start()));
  const key = h("ul", { class: "gmar-curves", role: "list" });
  const hint = "Area under each curve, in percent. Lower means that the map found the patches that matter.";
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const steps = () => view.photo.fractions.length - 1;
  let timer = null;

  function stop() {
    clearInterval(timer);
    timer = null;
    view.schedule();
  }
  function start() {
    if (model.get("step") >= steps()) set({ step: 0 });
    timer = setInterval(() => {
      // on a busy machine the event 'change' below comes several steps late
      if (calm.matches || model.get("step") >= steps()) stop();
      else set({ step: model.get("step") + 1 });
    }, 150);
    view.schedule();
  }
  const settle = () => {
    if (calm.matches) stop();
    view.schedule();
  };
  calm.addEventListener("change", settle);
  view.cleanups.push(() => {
    calm.removeEventListener("change", settle);
    clearInterval(timer);
  });
  const drag = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const r = chart.getBoundingClientRect();
    const x = ((event.clientX - r.left) / r.width) * W;
    set({ step: Math.max(0, Math.min(steps(), Math.round(((x - PAD.l) / (W - PAD.l - PAD.r)) * steps()))) });
  };
  chart.addEventListener("pointerdown", (event) => {
    chart.setPointerCapture(event.pointerId);
    drag(event);
  });
  chart.addEventListener("pointermove", drag);

  // two methods that share a colour (GMAR with two norms): the second one's line is dashed
  const line = (i, points, width) =>
    svg("polyline", {
      points,
      fill: "none",
      stroke: view.photo.colours[i],
      "stroke-width": width,
      "stroke-dasharray": view.photo.colours.indexOf(view.photo.colours[i]) < i ? "5 3" : "none",
    });
  const area = (c) => (100 * c.reduce((s, p, k) => s + p * (k % steps() ? 1 : 0.5), 0)) / steps();
  const text = (x, y, anchor, words) => svg("text", { x, y, "text-anchor": anchor }, words);

  function drawPhoto(photo, map, gone) {
    const context = canvas.getContext("2d");
    canvas.width = photo.colour.width;
    canvas.height = photo.colour.height;
    context.drawImage(photo.colour, 0, 0);
    context.fillStyle = `rgb(${photo.fill.join()})`;
    for (const k of highestFirst(map).slice(0, gone)) {
      const [x, y, width, height] = cell(photo, k);
      context.fillRect(x - 0.5, y - 0.5, width + 1, height + 1);
    }
  }

  function drawChart(curves, m, step) {
    const S = steps();
    const top = Math.max(...curves.flat());
    const x = (s) => PAD.l + (s / S) * (W - PAD.l - PAD.r);
    const y = (p) => H - PAD.b - (p / top) * (H - PAD.t - PAD.b);
    const points = (c) => c.map((p, s) => `${x(s).toFixed(1)},${y(p).toFixed(1)}`).join(" ");
    const colour = view.photo.colours[m];
    chart.replaceChildren(
      svg("path", { d: `M${PAD.l} ${PAD.t}V${H - PAD.b}H${W - PAD.r}`, class: "gmar-axis" }),
      svg("polygon", { points: `${x(0)},${y(0)} ${points(curves[m])} ${x(S)},${y(0)}`, fill: colour, opacity: 0.2 }),
      ...curves.map((c, i) => line(i, points(c), 1.5)).filter((_, i) => i !== m),
      line(m, points(curves[m]), 3.5),
      svg("path", { d: `M${x(step)} ${PAD.t}V${H - PAD.b}`, class: "gmar-axis" }),
      svg("circle", { cx: x(step), cy: y(curves[m][step]), r: 6, fill: colour, class: "gmar-dot" }),
      text(PAD.l - 5, y(0), "end", "0"),
      text(PAD.l - 5, y(top) + 4, "end", percent(top)),
      text(PAD.l, H - PAD.b + 14, "start", "0"),
      text(W - PAD.r, H - PAD.b + 14, "end", "100 %"),
      text((W + PAD.l) / 2, H - 4, "middle", "patches removed"),
    );
  }

  function update() {
    const { photo, state } = view;
    const m = model.get("method");
    const step = Math.min(model.get("step"), steps());
    const curves = photo.methods.map((_, i) => [...photo.curve(state.t, i)]);
    const patches = photo.R * photo.C;
    const gone = Math.round(photo.fractions[step] * patches);
    drawPhoto(photo, photo.map(state.t, m), gone);
    drawChart(curves, m, step);
    const share = Math.round((100 * gone) / patches);
    const fact = `${share}\u00a0% of the patches removed: probability ${percent(curves[m][step])}`;
    caption.textContent = fact;
    canvas.setAttribute("aria-label", `${photo.name}, ${fact}`);
    chart.setAttribute("aria-label", `Deletion curve of ${photo.methods[m]} for ${view.name()}. ${fact}.`);
    key.replaceChildren(
      ...photo.methods.map((name, i) =>
        h(
          "li",
          { "aria-current": i === m ? "true" : null },
          svg("svg", { viewBox: "0 0 24 8", "aria-hidden": "true" }, line(i, "0,4 24,4", i === m ? 3.5 : 2)),
          `${name} ${area(curves[i]).toFixed(1)}`,
        ),
      ),
    );
    play.hidden = calm.matches;
    play.textContent = timer ? "Pause" : "Play";
    el.dataset.probability = curves[m][step].toFixed(7);
    el.dataset.removed = gone;
  }

  const code = () =>
    `explanation = ${methodCode(view, model.get("method"))}\ncurve = gmar_utils.metrics.deletion(\n` +
    `    vit.model, vit.preprocess(${photoCode(view)}), explanation.map[None],\n    target=${view.photo.targets[view.state.t]}, ` +
    `steps=${steps()},\n)`;
  const controls = [h("div", { class: "gmar-buttons" }, play), key, h("p", { class: "gmar-key" }, hint)];
  return {
    update,
    code,
    say: () => `${view.word()}, order by ${view.photo.methods[model.get("method")]}. ${caption.textContent}.`,
    el: h("section", { class: "gmar-deletion" }, figure(canvas, caption), h("div", {}, chart, ...controls)),
  };
}
